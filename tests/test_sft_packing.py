"""Tokenising and packing: whole examples once each, labels where they belong, figures by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from mathpipe.pretrain.tokenizer import EOS, PAD, encode_prompt, load, train
from mathpipe.sft import train as sft_train
from mathpipe.sft.generated import make_examples, write
from mathpipe.sft.packing import IGNORE, Encoded, best_fit_decreasing, collate, encode, figures, next_fit, pack
from mathpipe.sft.problems import make
from mathpipe.sft.schema import Example, Segment

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@pytest.fixture(scope="module")
def tokenizer():
    return train(["Each of 5 boxes holds 10 old and 11 new apples.", "x = 3 * 4\nprint(x)", r"\boxed{17}"], 300)


def test_labels_cover_answers_and_eos_but_not_prompt_or_tool_output(tokenizer):
    example = write(make(1, (3, 4, 5), "Tom", "pens"), "tir")
    encoded = encode([example], tokenizer)
    assert tokenizer.decode(encoded.ids) == example.prompt + example.text + tokenizer.eos_token
    learnt = "".join(text for text, learnt in example.pieces if learnt)
    assert tokenizer.decode(encoded.ids[encoded.learn]) == learnt + tokenizer.eos_token
    assert "\n17\n```\n" not in learnt and learnt.endswith("```output\\boxed{17}")
    assert encoded.ids[-1] == tokenizer.eos_token_id and encoded.learn[-1]


def test_a_prompt_begins_as_in_evaluation_and_special_tokens_in_an_example_are_text(tokenizer, tmp_path):
    """With a tokenizer that puts BOS before every text, as DeepSeek's does."""
    tokenizer.save_pretrained(tmp_path)
    other = load(tmp_path)
    other.backend_tokenizer.post_processor = TemplateProcessing(f"{PAD} $A", special_tokens=[(PAD, other.pad_token_id)])
    plain, odd = (Example(question, (Segment("text", "17"),), "17", "cot", "test") for question in ("5 + 12?", f"Is {EOS} an end?"))
    encoded = encode([plain, odd], other)
    prompt = encode_prompt(other, plain.prompt)
    assert prompt[0] == other.pad_token_id and encoded.ids[: len(prompt)].tolist() == prompt
    ids = encoded.ids[encoded.starts[1] :].tolist()
    assert ids.count(other.pad_token_id) == ids.count(other.eos_token_id) == 1
    assert other.decode(ids[1:]) == odd.prompt + odd.text + EOS


def test_tokenising_in_batches_is_tokenising_one_by_one(tokenizer, monkeypatch, tmp_path):
    examples = list(make_examples(25, {"cot": 0.4, "pot": 0.3, "tir": 0.3}, 1, 10, 100))
    whole = encode(examples, tokenizer)
    monkeypatch.setattr("mathpipe.sft.packing.BATCH_EXAMPLES", 7)
    encode(examples, tokenizer).save(tmp_path)
    again = Encoded.open(tmp_path)
    apart = [encode([example], tokenizer) for example in examples]
    for name in ("ids", "learn", "starts"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(again, name))
    np.testing.assert_array_equal(whole.ids, np.concatenate([one.ids for one in apart]))
    np.testing.assert_array_equal(whole.lengths, [len(one.ids) for one in apart])


@given(LENGTHS, st.integers(10, 50), st.sampled_from(["shuffle", "bfd", "none"]), st.sampled_from(["drop", "cut"]), st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_every_packing_places_every_example_once_and_within_the_context(lengths, context, packing, too_long, seed):
    rows, long = pack(lengths, context, packing, too_long, seed)
    assert long == [n for n, length in enumerate(lengths) if length > context]
    placed = sorted(itertools.chain(*rows))
    assert placed == [n for n in range(len(lengths)) if too_long == "cut" or lengths[n] <= context]
    assert all(sum(min(lengths[n], context) for n in row) <= context and row for row in rows)
    assert (rows, long) == pack(lengths, context, packing, too_long, seed)
    if packing == "none":
        assert all(len(row) == 1 for row in rows)


@given(LENGTHS, st.integers(40, 60))
@settings(max_examples=60, deadline=None)
def test_the_papers_packing_closes_a_row_only_when_the_next_does_not_fit(lengths, context):
    rows = next_fit(lengths, context, range(len(lengths)))
    assert list(itertools.chain(*rows)) == list(range(len(lengths)))
    for one, following in itertools.pairwise(rows):
        assert sum(lengths[n] for n in one) + lengths[following[0]] > context


@given(LENGTHS, st.integers(40, 60))
@settings(max_examples=100, deadline=None)
def test_best_fit_is_best_fit(lengths, context):
    """Against the definition, in quadratic time: the fullest row with room, the latest of equals."""
    rows: list[list[int]] = []
    stack: list[int] = []  # rows by when they last changed
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        rooms = {row: context - sum(lengths[n] for n in rows[row]) for row in stack}
        fitting = [row for row in stack if rooms[row] >= lengths[number]]
        least = min((rooms[row] for row in fitting), default=None)
        row = [row for row in fitting if rooms[row] == least][-1] if fitting else len(rows)
        if row == len(rows):
            rows.append([])
        else:
            stack.remove(row)
        rows[row].append(number)
        stack.append(row)
    assert best_fit_decreasing(lengths, context, range(len(lengths))) == rows


def test_figures_by_hand():
    """Rows of 10: 6+4, 7+3 fill two rows by best fit; 12 is too long, cut it fills a row and loses 2 of 32 tokens."""
    lengths = np.array([6, 7, 3, 4, 12])
    dropped = figures(lengths, 10, "drop", seed=0)
    assert dropped["bfd"] == {"num_rows": 2, "padding_frac": 0.0, "too_long_frac": 0.2, "lost_tokens_frac": 0.375}
    assert dropped["none"] == {"num_rows": 4, "padding_frac": 0.5, "too_long_frac": 0.2, "lost_tokens_frac": 0.375}
    cut = figures(lengths, 10, "cut", seed=0)
    assert cut["bfd"] == {"num_rows": 3, "padding_frac": 0.0, "too_long_frac": 0.2, "lost_tokens_frac": 0.0625}
    assert cut["none"]["padding_frac"] == pytest.approx(1 - 30 / 50)
    assert cut["shuffle"]["padding_frac"] >= cut["bfd"]["padding_frac"]


def test_collating_restarts_positions_masks_first_tokens_and_cuts():
    encoded = Encoded(np.arange(10, 19), np.array([1, 1, 1, 0, 1, 1, 1, 1, 1], bool), np.array([0, 3, 9]))
    batch = collate(encoded, [[0, 1], [0]], context=8, pad=1)
    assert batch.ids.tolist() == [[10, 11, 12, 13, 14, 15, 16, 17, 18], [10, 11, 12, 1, 1, 1, 1, 1, 1]]
    assert batch.labels.tolist() == [[IGNORE, 11, 12, IGNORE, 14, 15, 16, 17, 18], [IGNORE, 11, 12] + [IGNORE] * 6]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 5], [0, 1, 2] + [0] * 6]
    assert batch.documents.tolist() == [[0, 0, 0, 1, 1, 1, 1, 1, 1], [0, 0, 0] + [-1] * 6]
    cut = collate(encoded, [[1]], context=4, pad=1)
    assert cut.ids.tolist() == [[13, 14, 15, 16]] and cut.labels.tolist() == [[IGNORE, 14, 15, 16]]


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_each_pass_takes_every_row_once(num_rows, per_step, num_steps):
    taken = np.concatenate([sft_train.rows_of_step(num_rows, step, per_step, seed=3) for step in range(num_steps)])
    for start in range(0, len(taken) - num_rows + 1, num_rows):
        assert sorted(taken[start : start + num_rows]) == list(range(num_rows))
    assert taken[:num_rows].tolist() == list(range(min(num_rows, len(taken))))
