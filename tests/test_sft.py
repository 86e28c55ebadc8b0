"""Problems, formats, prompts and the loss on packed examples of the SFT stage."""

import itertools

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mathpipe.eval.grader import grade
from mathpipe.pretrain.model import TokenLoss
from mathpipe.sft.generated import make_examples
from mathpipe.sft.packing import IGNORE, Encoded, collate
from mathpipe.sft.problems import TEMPLATES, generate, is_held_out, make
from mathpipe.sft.prompts import render, render_answer


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


def test_chain_of_thought_is_graded_right():
    examples = list(make_examples(60, {"cot": 0.4, "pot": 0.3, "tir": 0.3}, 1, 10, 100))
    assert {e.format for e in examples} == {"cot", "pot", "tir"}
    for example in examples:
        if example.format != "pot":
            assert grade(example.text, example.answer).correct


def test_prompts_are_the_published_ones():
    """README.md and evaluation/README.md of deepseek-ai/DeepSeek-Math."""
    assert render("1 + 1?") == "User: 1 + 1?\nPlease reason step by step, and put your final answer within \\boxed{}.\n\nAssistant:"
    assert render("1+1?", "cot", "zh") == "User: 1+1?\n请通过逐步推理来解答问题，并把最终答案放置于\\boxed{}中。\n\nAssistant:"
    tools = "请结合自然语言和Python程序语言来解答问题，并把最终答案放置于\\boxed{}中。"
    assert render("1+1?", "tir", "zh") == f"User: 1+1?\n{tools}\n\nAssistant:"


def test_two_rounds_of_tools_learn_the_fence_and_not_the_output():
    pieces = render_answer([("text", "First:"), ("code", "a"), ("output", "1"), ("code", "b"), ("output", "2"), ("text", "So 2.")])
    assert pieces == [
        (" First:\n```python\na\n```\n```output", True), ("\n1\n```\n", False),
        ("```python\nb\n```\n```output", True), ("\n2\n```\n", False), ("So 2.", True),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def loss_of():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    return TokenLoss(LlamaForCausalLM(config))


X = IGNORE
EXAMPLES = [
    ([5, 6, 7, 8, 0], [X, X, 7, 8, 0]),
    ([9, 10, 0], [X, 10, 0]),
    ([11, 12, 13, 0], [11, 12, X, 0]),
]
"""Ids and labels. The last is labelled on its first token, which packing must not let the example before predict."""


def as_encoded(examples):
    ids, labels = (np.array(list(itertools.chain(*column))) for column in zip(*examples, strict=True))
    return Encoded(ids, labels != IGNORE, np.cumsum([0, *(len(ids) for ids, _ in examples)]))


def summed_loss(loss_of, rows, examples=EXAMPLES):
    batch = collate(as_encoded(examples), rows, context=20, pad=1)
    return loss_of(batch.ids, batch.labels, batch.positions, batch.documents).sum()


def test_packed_loss_and_gradient_equal_unpacked(loss_of):
    packed = summed_loss(loss_of, [[0, 1, 2]])
    packed_gradient = torch.autograd.grad(packed, list(loss_of.parameters()))
    apart = sum(summed_loss(loss_of, [[number]]) for number in range(3))
    torch.testing.assert_close(packed, apart, atol=1e-5, rtol=1e-6)
    for one, other in zip(packed_gradient, torch.autograd.grad(apart, list(loss_of.parameters())), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_attention_does_not_cross_examples_unless_allowed(loss_of):
    """Changing the first example leaves the logits of the others as they were, to the bit."""
    batches = [
        collate(as_encoded([(first, [X] * 5), *EXAMPLES[1:]]), [[0, 1, 2]], 20, 1) for first in ([5, 6, 7, 8, 0], [20, 21, 22, 23, 0])
    ]
    isolated = [loss_of(b.ids, b.labels, b.positions, b.documents).detach() for b in batches]
    assert torch.equal(*isolated)
    crossing = [loss_of(b.ids, b.labels, b.positions, b.documents.clamp(max=0)).detach() for b in batches]
    assert abs(float(crossing[0] - crossing[1])) > 1e-4


def test_padding_does_not_change_the_loss(loss_of):
    together = summed_loss(loss_of, [[0, 1, 2], [0]])
    apart = summed_loss(loss_of, [[0, 1, 2]]) + summed_loss(loss_of, [[0]])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-6)
