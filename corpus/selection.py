"""round N, step select: the pages with the highest scores, up to the round's number of tokens (section 2.1).

Artifact: `data/selected.parquet` with id, url, host, score, num_tokens of the collected pages, in the order of the ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mathpipe.corpus.round_config import SelectConfig, SelectInputs
from mathpipe.pipeline import artifact, stage

NUM_BINS = 50


def run(config: SelectConfig, inputs: SelectInputs, out: Path) -> dict[str, Any]:
    """Collect; returns counts, the score of the last page that got in, and the histogram of all scores."""
    number = artifact.read_manifest(inputs.scores)["round"]
    scores = pa.concat_tables(artifact.read_columns(inputs.scores, ["id", "score"]))
    pages = pa.concat_tables(artifact.read_columns(inputs.pages, ["id", "url", "host", "num_tokens"]))
    if not pages["id"].equals(scores["id"]):
        raise artifact.ContractError(f"{inputs.scores}: ids are not those of {inputs.pages}; run the score step on these pages")
    score_N = scores["score"].to_numpy()
    max_tokens = config.top_tokens[min(number, len(config.top_tokens)) - 1]
    chosen = top(score_N, pages["num_tokens"].to_numpy(), max_tokens, config.min_score)
    if not len(chosen):
        raise ValueError(f"no page reaches select.min_score = {config.min_score}; the highest score is {score_N.max():.4f}: lower it")
    table = pages.append_column("score", scores["score"]).take(pa.array(chosen))
    artifact.write_parquet(out / "data" / "selected.parquet", table)
    counts, edges = np.histogram(score_N, bins=NUM_BINS, range=(0.0, 1.0))
    return {
        "round": number, "num_pages": len(table), "num_tokens": int(table["num_tokens"].to_numpy().sum()), "max_tokens": max_tokens,
        "lowest_score": float(score_N[chosen].min()), "score_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }  # fmt: skip


def top(score_N: np.ndarray, num_tokens_N: np.ndarray, max_tokens: int, min_score: float) -> np.ndarray:
    """Rows of the best-scored pages that fit into `max_tokens` together, ascending; of equal scores the earlier row goes first.

    >>> top(np.array([.9, .5, .9, .7]), np.array([10, 10, 10, 10]), 30, 0.0).tolist()
    [0, 2, 3]
    """
    order = np.argsort(-score_N, kind="stable")
    fits = (np.cumsum(num_tokens_N[order]) <= max_tokens) & (score_N[order] >= min_score)
    return np.sort(order[fits])


if __name__ == "__main__":
    stage.main(run)
