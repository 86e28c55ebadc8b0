"""Examples as token arrays, and their packing into rows of `context` tokens (section 3.2: concatenated at random to 4K).

`shuffle` is the paper's: whole examples in random order, the next one begins a new row when it does not fit. `bfd` is best-fit
decreasing (Ding et al. 2024, arXiv 2404.10830): longest first, each into the fullest row with room; rows are shuffled after. `none`
is one example a row. What is longer than a row is left out (`drop`) or cut at its end (`cut`), and counted.

Positions restart at every example, labels cover answers only, and no label stands on an example's first token, so nothing is
predicted from the example before.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mathpipe.pretrain import tokenizer as bpe
from mathpipe.sft.schema import Example

IGNORE = -100
BATCH_EXAMPLES = 1000
"""Examples that are tokenised in one call."""
Rows = list[list[int]]
"""Numbers of the examples of each row, in order."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of all examples, one after the other, EOS last in each; 5 bytes a token.

    Shapes: ids and learn `[tokens]` (learn: the loss counts there), starts `[examples + 1]`.
    """

    ids: np.ndarray
    learn: np.ndarray
    starts: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example."""
        return np.diff(self.starts)

    def save(self, folder: Path) -> None:
        """Write the arrays; the folder is whole when `starts.npy` is there."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("ids", "learn", "starts"):
            with (folder / f".{name}.tmp").open("wb") as file:
                np.save(file, getattr(self, name))
            (folder / f".{name}.tmp").replace(folder / f"{name}.npy")

    @classmethod
    def open(cls, folder: Path) -> Encoded:
        """The arrays, memory-mapped."""
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ids", "learn", "starts")))


def encode(examples: Iterable[Example], tokenizer: Any) -> Encoded:
    """Tokenise prompts and pieces of answers apart, so that masks fall on token borders; EOS is learnt.

    A prompt begins as in GRPO and evaluation, with a BOS where the tokenizer has one; what looks like a special token is text.

    Raises:
        ValueError: there are no examples.
    """
    ids, learn, lengths = [], [], []
    tokens_of, begin = bpe.encoder(tokenizer), bpe.encode_prompt(tokenizer, "")
    iterator = iter(examples)
    while batch := list(itertools.islice(iterator, BATCH_EXAMPLES)):
        pieces = [[(e.prompt, False), *e.pieces] for e in batch]
        texts = [text for example in pieces for text, _ in example]
        found = iter(tokens_of(texts))
        parts = [
            [(begin, False), *((next(found), learnt) for _, learnt in example), ([tokenizer.eos_token_id], True)] for example in pieces
        ]
        flat = [part for example in parts for part in example]
        ids.append(np.array(list(itertools.chain.from_iterable(tokens for tokens, _ in flat)), np.int32))
        learn.append(np.repeat([learnt for _, learnt in flat], [len(tokens) for tokens, _ in flat]))
        lengths += [sum(len(tokens) for tokens, _ in example) for example in parts]
    if not lengths:
        raise ValueError("there are no examples; look at the artifact of stage examples")
    return Encoded(np.concatenate(ids), np.concatenate(learn), np.concatenate([[0], np.cumsum(lengths)]))


def pack(lengths: Sequence[int] | np.ndarray, context: int, packing: str, too_long: str, seed: int) -> tuple[Rows, list[int]]:
    """Rows of examples, and the examples longer than `context` (with `cut` they are in the rows too)."""
    lengths = np.asarray(lengths)
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    long = np.flatnonzero(lengths > context)
    if too_long == "drop":
        order = [number for number in order if lengths[number] <= context]
    sizes = np.minimum(lengths, context).tolist()
    if packing == "none":
        return [[number] for number in order], long.tolist()
    if packing == "shuffle":
        return next_fit(sizes, context, order), long.tolist()
    rows = best_fit_decreasing(sizes, context, order)
    random.Random(f"rows-{seed}").shuffle(rows)
    return rows, long.tolist()


def next_fit(lengths: Sequence[int], context: int, order: Iterable[int]) -> Rows:
    """Examples in order, a new row where the next does not fit.

    >>> next_fit([3, 4, 2, 5], 7, [0, 1, 2, 3])
    [[0, 1], [2, 3]]
    """
    rows: Rows = []
    room = 0
    for number in order:
        if lengths[number] > room or not rows:
            rows.append([])
            room = context
        rows[-1].append(number)
        room -= lengths[number]
    return rows


def best_fit_decreasing(lengths: Sequence[int], context: int, order: Sequence[int]) -> Rows:
    """Longest first (ties in order), each into a row with the least room that is enough; O(n log context).

    >>> best_fit_decreasing([3, 4, 2, 5], 7, [0, 1, 2, 3])
    [[3, 2], [1, 0]]
    """
    rows: Rows = []
    rooms: list[int] = []
    with_room: dict[int, list[int]] = {}
    for number in sorted(order, key=lambda n: -lengths[n]):
        length = lengths[number]
        place = bisect.bisect_left(rooms, length)
        if place == len(rooms):
            row, room = len(rows), context
            rows.append([])
        else:
            room = rooms[place]
            row = with_room[room].pop()
            if not with_room[room]:
                del rooms[place]
        rows[row].append(number)
        left = room - length
        if left and not with_room.get(left):
            bisect.insort(rooms, left)
        if left:
            with_room.setdefault(left, []).append(row)
    return rows


def figures(lengths: np.ndarray, context: int, too_long: str, seed: int) -> dict[str, dict[str, float]]:
    """For each packing: rows, share of padding in rows of `context` tokens, share of examples left out or cut, and of tokens so lost.

    Unpacked rows are padded to the longest of their batch only, so that less than this is computed.
    """
    found = {}
    for packing in ("shuffle", "bfd", "none"):
        rows, long = pack(lengths, context, packing, too_long, seed)
        lost = int(sum(lengths[n] - (context if too_long == "cut" else 0) for n in long))
        used = int(lengths.sum()) - lost
        found[packing] = {
            "num_rows": len(rows), "padding_frac": round(1 - used / (len(rows) * context), 6) if rows else 0.0,
            "too_long_frac": round(len(long) / len(lengths), 6), "lost_tokens_frac": round(lost / int(lengths.sum()), 6),
        }  # fmt: skip
    return found


@dataclass(frozen=True)
class Batch:
    """Packed rows, all `[B, T]`: ids, labels, positions that restart per example, example numbers (-1: padding)."""

    ids: Tensor
    labels: Tensor
    positions: Tensor
    documents: Tensor


def collate(encoded: Encoded, rows: Sequence[Sequence[int]], context: int, pad: int) -> Batch:
    """Concatenate each row's examples, the longest ones cut to `context`, and pad to the longest row of the batch."""
    starts = encoded.starts
    sizes = [[min(int(starts[n + 1] - starts[n]), context) for n in row] for row in rows]
    shape = (len(rows), max(map(sum, sizes)))
    ids, labels = np.full(shape, pad), np.full(shape, IGNORE)
    positions, documents = np.zeros(shape, np.int64), np.full(shape, -1)
    for place, row in enumerate(rows):
        at = 0
        for document, (number, size) in enumerate(zip(row, sizes[place], strict=True)):
            here, there = slice(at, at + size), slice(int(starts[number]), int(starts[number]) + size)
            ids[place, here] = encoded.ids[there]
            labels[place, here] = np.where(encoded.learn[there], encoded.ids[there], IGNORE)
            labels[place, at] = IGNORE
            positions[place, here] = np.arange(size)
            documents[place, here] = document
            at += size
    return Batch(*(torch.from_numpy(array) for array in (ids, labels, positions, documents)))
