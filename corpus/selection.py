"""round N, step select: the pages with the highest scores, up to the round's number of tokens (section 2.1).

The lowest score that gets in is found by histograms of tokens by score: one over the upper half of the bits of all scores,
one over the lower half within its last bin. That is as exact as sorting all pages, and keeps none of them. Among pages of
the lowest score those with smaller ids go first.

Artifact: `data/`, for every file of pages one with id, url, host, num_tokens, score of its collected pages, in their order.
Where the loop has stopped before: the selection of the round before.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mathpipe.corpus.round_config import DomainsInputs, SelectConfig, SelectInputs
from mathpipe.pipeline import artifact, log, stage

NUM_BINS = 50
"""Bins of the histogram in the manifest."""
LOW_BITS = 15
NUM_LOW = 2**LOW_BITS
NUM_HIGH = (int(np.float32(1).view(np.int32)) >> LOW_BITS) + 1
PASSED_ON = ("num_pages", "num_tokens", "max_tokens", "lowest_score", "score_histogram")


def run(config: SelectConfig, inputs: SelectInputs, out: Path) -> dict[str, Any]:
    """Collect; returns counts, the score of the last page that got in, and the histogram of all scores."""
    scored = artifact.read_manifest(inputs.scores)
    number = scored["round"]
    if scored.get("stopped") and inputs.previous:
        shutil.copytree(inputs.previous / "data", out / "data", dirs_exist_ok=True)
        before = artifact.read_manifest(inputs.previous)
        return {key: before[key] for key in PASSED_ON} | {"round": number, "stopped": scored["stopped"]}
    max_tokens = config.top_tokens[min(number, len(config.top_tokens)) - 1]
    lowest = int(np.float32(config.min_score).view(np.int32))
    num_pages, num_tokens, used, lowest_score = 0, 0, 0, 1.0
    counts_B = np.zeros(NUM_BINS, np.int64)
    with log.Progress(out, 3 * len(artifact.parquet_files(inputs.pages)), "files", "selecting") as progress:
        cut, left = find_cut(inputs, lowest, max_tokens, progress)
        for name, table in scored_pages(inputs, ["url", "host", "num_tokens"]):
            chosen_N, used = choose(bits(table), table["num_tokens"].to_numpy(), lowest, cut, left, used)
            chosen = table.filter(pa.array(chosen_N))
            if not (out / "data" / name).exists():
                artifact.write_parquet(out / "data" / name, chosen)
            score_N = table["score"].to_numpy()
            counts_B += np.histogram(score_N, NUM_BINS, (0.0, 1.0))[0]
            num_pages, num_tokens = num_pages + len(chosen), num_tokens + int(chosen["num_tokens"].to_numpy().sum())
            lowest_score = min(lowest_score, float(score_N[chosen_N].min(initial=1.0)))
            progress.advance()
    if not num_pages:
        wanted = "lower select.min_score, or raise select.top_tokens"
        raise ValueError(f"no page has a score of at least {config.min_score} and at most {max_tokens:,} tokens: {wanted}")
    edges = np.linspace(0, 1, NUM_BINS + 1).tolist()
    return {
        "round": number, "num_pages": num_pages, "num_tokens": num_tokens, "max_tokens": max_tokens, "lowest_score": lowest_score,
        "score_histogram": {"edges": edges, "counts": counts_B.tolist()},
    }  # fmt: skip


def bits(table: pa.Table) -> np.ndarray:
    """The scores as integers in the same order: the bits of float32 from 0 to 1."""
    return (table["score"].to_numpy() + np.float32(0)).view(np.int32)  # adding 0 makes 0 of -0


def find_cut(inputs: SelectInputs, lowest: int, max_tokens: int, progress: log.Progress) -> tuple[int, int]:
    """(bits of the lowest score that gets in, tokens left for the pages that have it)."""
    tokens_B = np.zeros(NUM_HIGH, np.int64)
    for _, table in scored_pages(inputs, ["num_tokens"]):
        bits_N, tokens_N = bits(table), table["num_tokens"].to_numpy()
        is_in_N = bits_N >= lowest
        tokens_B += count(bits_N[is_in_N] >> LOW_BITS, tokens_N[is_in_N], NUM_HIGH)
        progress.advance()
    high, left = last_bin(tokens_B, max_tokens)
    tokens_B = np.zeros(NUM_LOW, np.int64)
    for _, table in scored_pages(inputs, ["num_tokens"]):
        bits_N, tokens_N = bits(table), table["num_tokens"].to_numpy()
        is_in_N = (bits_N >= lowest) & (bits_N >> LOW_BITS == high)
        tokens_B += count(bits_N[is_in_N] % NUM_LOW, tokens_N[is_in_N], NUM_LOW)
        progress.advance()
    low, left = last_bin(tokens_B, left)
    return high * NUM_LOW + low, left


def count(bin_N: np.ndarray, tokens_N: np.ndarray, num_bins: int) -> np.ndarray:
    """Tokens by bin (float64 is exact as far as 2⁵³)."""
    return np.bincount(bin_N, tokens_N, num_bins).astype(np.int64)


def last_bin(tokens_B: np.ndarray, max_tokens: int) -> tuple[int, int]:
    """From the last bin down, the one with which `max_tokens` are exceeded, and the tokens left for it; bin 0 if none is.

    >>> last_bin(np.array([5, 5, 5]), 7)
    (1, 2)
    """
    from_B = tokens_B[::-1].cumsum()[::-1]
    exceeded = np.flatnonzero(from_B > max_tokens)
    place = int(exceeded[-1]) if len(exceeded) else 0
    return place, max_tokens - int(from_B[place] - tokens_B[place])


def choose(
    bits_N: np.ndarray, tokens_N: np.ndarray, lowest: int, cut: int, left: int, used: int
) -> tuple[np.ndarray, int]:  # fmt: skip
    """(which pages of a file are collected, tokens of the pages at the cut in this file and those before)."""
    is_tie_N = bits_N == cut
    used_N = used + np.cumsum(np.where(is_tie_N, tokens_N, 0))
    chosen_N = (bits_N >= lowest) & ((bits_N > cut) | (is_tie_N & (used_N <= left)))
    return chosen_N, int(used_N[-1]) if len(used_N) else used


def scored_pages(inputs: SelectInputs | DomainsInputs, columns: list[str]) -> Iterator[tuple[str, pa.Table]]:
    """(file name, id, columns and score of its pages), a file at a time.

    Raises:
        ContractError: the scores are not those of these pages.
    """
    for file in artifact.parquet_files(inputs.pages):
        table, sidecar = pq.read_table(file, columns=["id", *columns]), inputs.scores / "data" / file.name
        scores = pq.read_table(sidecar, columns=["id", "score"]) if sidecar.exists() else None
        if scores is None or not scores["id"].equals(table["id"]):
            raise artifact.ContractError(f"{sidecar}: not the scores of the pages in {file}; run the score step on these pages")
        yield file.name, table.append_column("score", scores["score"])


if __name__ == "__main__":
    stage.main(run)
