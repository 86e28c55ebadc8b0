"""Which windows an optimizer step trains on: sources mixed by phases, exact and without state.

Everything follows from (config, tokens, step), so nothing has to be saved: a run that is resumed, on any number of
processes, sees the same windows in the same order.

- Windows are `context` consecutive tokens of a source, documents one after another with EOS behind each; they cross documents
  and shards. The last, incomplete one of a source is not used.
- After every step the number of windows taken from each source differs by less than one from its share of all windows so far
  (`schedule`). A phase may end inside a step.
- A source's windows are visited in epochs, each in an order of its own (`permuted`), and go on where the phase before left off.

Shapes: B windows of a step, T tokens of a window, S sources.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mathpipe.pipeline import artifact
from mathpipe.pipeline.config import nearest
from mathpipe.pretrain import tokens
from mathpipe.pretrain.config import PretrainConfig

ROUNDS = 6
"""Rounds of the Feistel network behind `permuted`; four are enough to look random."""
ALL_ROWS = slice(None)


@dataclass(frozen=True)
class Batch:
    """Windows of one optimizer step."""

    ids_BT: Tensor
    """int64 token ids."""
    source_B: np.ndarray
    """Index of each window's source."""
    documents_BT: Tensor | None
    """int64 number of the document inside the window, an EOS belonging to the one before it; None unless `isolate`."""


class Mixture:
    """The training windows of every step, and the held-out tokens of every source."""

    def __init__(self, folder: Path, config: PretrainConfig) -> None:
        """Open the tokens without reading them.

        Raises:
            ValueError: a phase names a source that is not there, or one that is shorter than a window.
            ContractError: no tokens, or no held-out ones.
        """
        facts = artifact.read_manifest(folder)
        self.config, self.eos, self.folder = config, facts["eos"], folder
        self.facts: dict[str, dict[str, dict[str, int]]] = facts["sources"]
        self.sources = tuple(sorted(self.facts))
        """All sources of the tokens, also those that no phase uses."""
        self.train = {source: tokens.read(folder, "train", source) for source in self.sources}
        self.num_windows = np.array([len(self.train[source]) // config.context for source in self.sources])
        self._check()
        weights_PS = np.array([[phase.mix.get(source, 0.0) for source in self.sources] for phase in config.phases])
        per_step = config.batch_tokens // config.context
        self.taken_NS = schedule([phase.frac for phase in config.phases], weights_PS, config.num_steps, per_step)

    def _check(self) -> None:
        named = sorted({source for phase in self.config.phases for source, weight in phase.mix.items() if weight})
        for source in named:
            if source not in self.facts:
                there = f"{nearest(source, self.sources)} (there are: {', '.join(self.sources)})"
                raise ValueError(f"{self.folder}: no source {source!r}, which a phase names{there}")
            if not self.num_windows[self.sources.index(source)]:
                found = f"{len(self.train[source])} training tokens of {source!r}"
                raise ValueError(f"{self.folder}: {found}, fewer than a window of {self.config.context}; enlarge that source")
        if not any(self.facts[source]["held_out"]["num_tokens"] for source in self.sources):
            raise artifact.ContractError(f"{self.folder}: no held-out tokens; raise tokens.held_out_frac or enlarge the corpus")

    def batch(self, step: int, rows: slice = ALL_ROWS) -> Batch:
        """The windows of optimizer step `step` (0-based), or those in `rows`; only these are read.

        Args:
            rows: a process takes `slice(rank, None, world_size)`.
        """
        before, after = self.taken_NS[step], self.taken_NS[step + 1]
        source_B = np.repeat(np.arange(len(self.sources)), after - before)
        place_B = np.concatenate([np.arange(a, b) for a, b in zip(before, after, strict=True)])
        order = np.random.default_rng([self.config.seed, step]).permutation(len(source_B))[rows]
        source_B, place_B = source_B[order], place_B[order]
        window_B = np.empty_like(place_B)
        for source in np.unique(source_B):
            window_B[source_B == source] = self._windows(int(source), place_B[source_B == source])
        ids_BT = np.empty((len(order), self.config.context), np.int64)
        for row, (source, window) in enumerate(zip(source_B, window_B, strict=True)):
            start = int(window) * self.config.context
            ids_BT[row] = self.train[self.sources[source]][start : start + self.config.context]
        documents_BT = torch.from_numpy(document_numbers(ids_BT, self.eos)) if self.config.isolate else None
        return Batch(torch.from_numpy(ids_BT), source_B, documents_BT)

    def _windows(self, source: int, place_N: np.ndarray) -> np.ndarray:
        """The windows at these places of a source's endless sequence of shuffled epochs."""
        count = int(self.num_windows[source])
        epoch_N = place_N // count
        window_N = np.empty_like(place_N)
        for epoch in np.unique(epoch_N):
            key = f"{self.config.seed}/{self.sources[source]}/{epoch}"
            window_N[epoch_N == epoch] = permuted(place_N[epoch_N == epoch] % count, count, key)
        return window_N

    def epochs(self, step: int) -> dict[str, float]:
        """How often each source has been seen after `step` steps; a source without a window counts as not seen."""
        seen_S = self.taken_NS[step] / np.maximum(self.num_windows, 1)
        return {source: float(seen) for source, seen in zip(self.sources, seen_S, strict=True)}

    def held_out(self, source: str) -> np.ndarray:
        """The held-out tokens of a source; empty where none of its documents was held out."""
        return tokens.read(self.folder, "held_out", source)[:]

    def held_out_bytes_per_token(self, source: str) -> float:
        """UTF-8 bytes of the held-out documents by their tokens (EOS included); NaN where there are none."""
        held_out = self.facts[source]["held_out"]
        return held_out["num_bytes"] / held_out["num_tokens"] if held_out["num_tokens"] else math.nan


def schedule(fracs: Sequence[float], weights_PS: np.ndarray, num_steps: int, per_step: int) -> np.ndarray:
    """Windows taken from each source before every step, `[num_steps + 1, S]`; a row sums to step × per_step.

    Each entry differs from its target (the weights' share of the windows so far) by less than 1. That always exists: the m-th
    window of a source may be taken once the target exceeds m - 1 and must be once it reaches m; the target itself shows that
    the slots suffice, and of unit jobs with release and due times those due first are the right ones to take.

    Args:
        fracs: share of the run of each phase.
        weights_PS: weight of each source in each phase; the rows need not sum to 1.

    >>> schedule([0.5, 0.5], np.array([[1.0, 0.0], [1.0, 3.0]]), 2, 4).tolist()
    [[0, 0], [4, 0], [5, 3]]
    """
    windows_N = np.arange(num_steps + 1) * float(per_step)
    share_PS = weights_PS / weights_PS.sum(1, keepdims=True)
    starts = np.cumsum([0.0, *fracs]) * num_steps * per_step
    starts[-1] = num_steps * per_step
    parts = zip(starts, starts[1:], share_PS, strict=False)
    target_NS = sum(np.clip(windows_N - start, 0, end - start)[:, None] * share_S for start, end, share_S in parts)
    nearest_NS = np.rint(target_NS)
    target_NS = np.where(np.abs(target_NS - nearest_NS) < 1e-6, nearest_NS, target_NS)  # 2.9999999 windows are 3
    due_NS, free_NS = np.floor(target_NS).astype(np.int64), np.ceil(target_NS).astype(np.int64)
    due_at_NS = np.stack([np.searchsorted(target, free) for target, free in zip(target_NS.T, free_NS.T, strict=True)], axis=1)
    taken_NS = np.zeros_like(due_NS)
    for step in range(1, num_steps + 1):
        taken_S = np.maximum(taken_NS[step - 1], due_NS[step])
        left = step * per_step - int(taken_S.sum())
        may_S = np.flatnonzero(free_NS[step] > taken_S)
        assert 0 <= left <= len(may_S)
        taken_S[may_S[np.argsort(due_at_NS[step, may_S], kind="stable")[:left]]] += 1
        taken_NS[step] = taken_S
    return taken_NS


def permuted(index_N: np.ndarray, count: int, key: str) -> np.ndarray:
    """Where a pseudo-random permutation of range(count), chosen by `key`, sends these indices; takes no memory for the others.

    A Feistel network permutes the next power of 4; what leaves range(count) is sent on until it is back.

    >>> sorted(permuted(np.arange(5), 5, "a").tolist())
    [0, 1, 2, 3, 4]
    """
    half = max(1, math.ceil((count - 1).bit_length() / 2))
    mask = np.uint64(2**half - 1)
    round_keys = np.frombuffer(hashlib.sha512(key.encode()).digest(), np.uint64)[:ROUNDS]
    value_N = index_N.astype(np.uint64)
    outside = np.ones(len(value_N), bool)
    while outside.any():
        value = value_N[outside]
        left, right = value >> np.uint64(half), value & mask
        for round_key in round_keys:
            left, right = right, left ^ (_scrambled(right ^ round_key) & mask)
        value_N[outside] = left << np.uint64(half) | right
        outside = value_N >= count
    return value_N.astype(np.int64)


def _scrambled(value_N: np.ndarray) -> np.ndarray:
    """A 64-bit hash (the finaliser of SplitMix64)."""
    value_N = (value_N ^ value_N >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    value_N = (value_N ^ value_N >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return value_N ^ value_N >> np.uint64(31)


def document_numbers(ids_BT: np.ndarray, eos: int) -> np.ndarray:
    """Number of each token's document inside its window.

    >>> document_numbers(np.array([[5, 6, 0, 7, 0, 0, 8]]), eos=0).tolist()
    [[0, 0, 0, 1, 1, 2, 3]]
    """
    ends_BT = ids_BT == eos
    return np.cumsum(ends_BT, axis=1) - ends_BT
