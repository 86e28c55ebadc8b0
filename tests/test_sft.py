"""Problems, formats, packing and program verification of the SFT stage."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from mathpipe.eval.grader import grade
from mathpipe.pretrain.model import TokenLoss
from mathpipe.pretrain.tokenizer import train
from mathpipe.sft.examples import Segment, make_examples, write
from mathpipe.sft.packing import IGNORE, Encoded, collate, encode_example, pack
from mathpipe.sft.problems import TEMPLATES, generate, is_held_out, make
from mathpipe.sft.prompts import render
from mathpipe.sft.verify import run_programs


@pytest.fixture(scope="module")
def tokenizer():
    return train(["Each of 5 boxes holds 10 old and 11 new apples.", "x = 3 * 4\nprint(x)", r"\boxed{17}"], 300)


@pytest.mark.parametrize(
    ("template", "answer"), [(0, 3 + 4 - 5), (1, 3 * 4 + 5), (2, 3 * 4 - 5), (3, (3 + 4) * 5), (4, (3 - 4) * 5), (5, 12), (6, 4), (7, 60)]
)
def test_answers_by_hand(template, answer):
    problem = make(template, (3, 4, 5), "Tom", "pens")
    assert problem.answer == answer
    assert all(str(n) in problem.question for n in (3, 4, 5))


def test_splits_share_no_template_with_the_same_numbers():
    def keys(held_out):
        found = set()
        for problem in itertools.islice(generate(3, 10, 100, held_out), 500):
            first, second = problem.steps
            recipe = f"a{first.operator}b c{second.operator}"  # no two templates share a recipe
            template = [r for r, _ in TEMPLATES].index(recipe)
            found.add((template, (first.left, first.right, second.right)))
        return found

    training, held_out = keys(False), keys(True)
    assert not training & held_out
    assert all(is_held_out(*key) for key in held_out)
    assert len(held_out) > 100


def test_problems_repeat_for_a_seed_and_stay_within_bounds():
    first = list(itertools.islice(generate(7, 10, 100, False), 300))
    assert first == list(itertools.islice(generate(7, 10, 100, False), 300))
    assert first != list(itertools.islice(generate(8, 10, 100, False), 300))
    assert all(0 <= step.result <= 100 for problem in first for step in problem.steps)


def test_chain_of_thought_is_graded_right_and_programs_print_the_answer():
    examples = make_examples(60, {"cot": 0.4, "pot": 0.3, "tir": 0.3}, 1, 10, 100)
    assert {e.kind for e in examples} == {"cot", "pot", "tir"}
    for example in examples:
        if example.kind != "pot":
            assert grade(example.text, example.answer).correct
    programs = [e for e in examples if e.program]
    assert [r for r, _ in run_programs([e.program for e in programs])] == [e.answer for e in programs]


def test_a_wrong_a_broken_and_an_exiting_program_are_told_apart():
    results = run_programs(["print(1 + 1)", "print(1/0)", "import sys; sys.exit(3)", "print('last')"])
    assert results[0] == ("2", None)
    assert "ZeroDivisionError" in results[1][1]
    assert "SystemExit" in results[2][1]
    assert results[3] == ("last", None)


def test_a_program_that_never_ends_stops_the_batch_with_a_clear_error():
    with pytest.raises(RuntimeError, match="1 programs"):
        run_programs(["while True: pass"], timeout_s=1)


def test_prompt_is_the_papers():
    assert render("1 + 1?") == "User: 1 + 1?\nPlease reason step by step, and put your final answer within \\boxed{}.\n\nAssistant:"


def test_labels_cover_answers_and_eos_but_not_prompt_or_tool_output(tokenizer):
    example = write(make(1, (3, 4, 5), "Tom", "pens"), "tir")
    encoded = encode_example(example, tokenizer)
    learnt = tokenizer.decode([i for i in encoded.labels if i != IGNORE])
    assert learnt == "".join(s.text for s in example.segments if s.learn) + tokenizer.eos_token
    assert Segment("\n17\n```\n", learn=False) in example.segments
    assert encoded.labels[-1] == encoded.ids[-1] == tokenizer.eos_token_id


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(10, 50), st.randoms())
@settings(max_examples=60, deadline=None)
def test_packing_keeps_every_whole_example_once_and_in_order(lengths, context, rng):
    order = list(range(len(lengths)))
    rng.shuffle(order)
    sequences, too_long = pack(lengths, context, order)
    placed = [n for sequence in sequences for n in sequence]
    assert placed == [n for n in order if lengths[n] <= context]
    assert too_long == [n for n in order if lengths[n] > context]
    assert all(sum(lengths[n] for n in sequence) <= context for sequence in sequences)
    for one, following in itertools.pairwise(sequences):  # a sequence is closed only when the next example did not fit
        assert sum(lengths[n] for n in one) + lengths[following[0]] > context


@pytest.fixture(scope="module")
def loss_of():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    return TokenLoss(LlamaForCausalLM(config))


EXAMPLES = [
    Encoded([5, 6, 7, 8, 0], [IGNORE, IGNORE, 7, 8, 0]),
    Encoded([9, 10, 0], [IGNORE, 10, 0]),
    Encoded([11, 12, 13, 0], [11, 12, IGNORE, 0]),
]
"""The last is labelled on its first token, which packing must not let the example before predict."""


def summed_loss(loss_of, sequences):
    batch = collate(sequences, pad=1)
    return loss_of(batch.ids, batch.labels, batch.positions, batch.documents).sum()


def test_packed_loss_and_gradient_equal_unpacked(loss_of):
    packed = summed_loss(loss_of, [EXAMPLES])
    packed_gradient = torch.autograd.grad(packed, list(loss_of.parameters()))
    apart = sum(summed_loss(loss_of, [[example]]) for example in EXAMPLES)
    torch.testing.assert_close(packed, apart, atol=1e-5, rtol=1e-6)
    for one, other in zip(packed_gradient, torch.autograd.grad(apart, list(loss_of.parameters())), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_attention_does_not_cross_examples_unless_allowed(loss_of):
    changed = [Encoded([20, 21, 22, 23, 0], [IGNORE] * 5), *EXAMPLES[1:]]
    unlabelled = [Encoded(EXAMPLES[0].ids, [IGNORE] * 5), *EXAMPLES[1:]]
    assert float(summed_loss(loss_of, [changed]).detach()) == pytest.approx(float(summed_loss(loss_of, [unlabelled]).detach()), abs=1e-6)
    batches = [collate([changed], 1), collate([unlabelled], 1)]
    crossing = [loss_of(b.ids, b.labels, b.positions, b.documents.clamp(max=0)).sum().detach() for b in batches]
    assert abs(float(crossing[0] - crossing[1])) > 1e-4


def test_padding_does_not_change_the_loss(loss_of):
    together = summed_loss(loss_of, [EXAMPLES, EXAMPLES[:1]])
    apart = summed_loss(loss_of, [EXAMPLES]) + summed_loss(loss_of, [EXAMPLES[:1]])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-6)
