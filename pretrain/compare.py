"""Stage ablate.NAME: the arms of a comparison on the same held-out texts, with the spread over seeds (section 5.1).

How to read the table (bits per byte, lower is better; models of one seed begin with the same weights):
- `problems`: training problems and solutions of GSM8K and MATH, what mathematics is learnt for. The paper counts solved test
  problems, which takes models that solve some.
- `math`, `code`, `general`, `arxiv`: documents that the stage tokens held out of each source, in pieces of `max_chars`.
- `± SE`: standard error of the mean over seeds. `difference`: to the first arm with the same seed, with its own standard error.
  With three seeds a difference below about four of its standard errors is not settled (t, 2 degrees of freedom, 95 %: 4.3).

    items/ARM-SEED.parquet   kind, url, num_bytes and nats of every text
    metrics.jsonl            the table, one line an arm
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mathpipe.pipeline import artifact, log, stage
from mathpipe.pretrain import model, tokens
from mathpipe.pretrain.ablation_config import CompareInputs
from mathpipe.pretrain.config import VolumesConfig
from mathpipe.pretrain.volumes import draw, held_out_pages, measure, problems

PROBLEMS = "problems"


def run(config: VolumesConfig, inputs: CompareInputs, out: Path) -> dict[str, Any]:
    """Measure every run; facts: arms, seeds and the number of texts of each kind."""
    torch.set_num_threads(config.runtime.num_threads)
    texts = draw(config, held_out_texts(config, inputs))
    runs: dict[str, list[Path]] = {}
    for run_name, path in inputs.runs.items():
        runs.setdefault(run_name.rpartition(".")[0], []).append(path)
    arms = [[artifact.read_manifest(path) for path in paths] for paths in runs.values()]
    measured: list[list[pa.Table]] = []
    with log.Progress(out, sum(map(len, arms)) * len(texts), "texts", "held-out loss") as progress:
        for name, paths in runs.items():
            measured.append([])
            for seed, path in enumerate(paths):
                file = out / "items" / f"{name}-{seed}.parquet"
                if file.exists():
                    progress.advance(len(texts))
                else:
                    artifact.write_parquet(file, measure(config, path / model.MODEL, texts, progress))
                measured[-1].append(pq.read_table(file))
    (out / "metrics.jsonl").unlink(missing_ok=True)
    kinds = list(dict.fromkeys(kind for kind, _, _ in texts))
    values = [
        np.array([[bits_per_byte(table, kind) for kind in kinds] for table in tables]) for tables in measured
    ]  # [seeds, kinds] an arm
    for name, made, value_SK in zip(runs, arms, values, strict=True):
        artifact.append_metrics(out, arm=name, tokens=made[0]["num_tokens"], **table_row(kinds, value_SK, values[0]))
    counts = {kind: sum(1 for text in texts if text[0] == kind) for kind in kinds}
    return {"arms": list(runs), "num_seeds": len(arms[0]), "seeds": [made["seed"] for made in arms[0]], "texts": counts}


def held_out_texts(config: VolumesConfig, inputs: CompareInputs) -> dict[str, list[tuple[str, str]]]:
    """Kind → (URL, text) of everything that may be drawn."""
    frac = artifact.read_manifest(inputs.tokens)["held_out_frac"]
    pages = {"math": sorted(held_out_pages(inputs.corpus, frac))}
    for file in artifact.parquet_files(inputs.sources):
        pages.setdefault(file.stem.rpartition("-")[0], []).extend(_held_out_of(file, frac))
    parts = {kind: [part for url, text in rows for part in pieces(url, text, config.max_chars)] for kind, rows in pages.items()}
    return {PROBLEMS: sorted(problems(inputs.benchmarks, config.benchmarks)), **parts}


def pieces(url: str, text: str, max_chars: int) -> list[tuple[str, str]]:
    """A document in pieces that fit the models' context: it may be the only one of its kind that is held out.

    >>> pieces("u", "abcde", 2)
    [('u#0', 'ab'), ('u#2', 'cd'), ('u#4', 'e')]
    """
    return [(f"{url}#{start}", text[start : start + max_chars]) for start in range(0, len(text), max_chars)]


def _held_out_of(file: Path, frac: float) -> Iterator[tuple[str, str]]:
    table = pq.read_table(file, columns=["url", "text"])
    for url, text in zip(table["url"].to_pylist(), table["text"].to_pylist(), strict=True):
        if tokens.is_held_out(url, frac):
            yield url, text


def bits_per_byte(items: pa.Table, kind: str) -> float:
    """Of all texts of a kind together."""
    chosen = items.filter(pa.compute.equal(items["kind"], kind))
    return float(np.sum(chosen["nats"].to_numpy()) / np.sum(chosen["num_bytes"].to_numpy()) / math.log(2))


def table_row(kinds: list[str], value_SK: np.ndarray, first_SK: np.ndarray) -> dict[str, Any]:
    """Mean and standard error over S seeds of each of K kinds, and of the difference to the first arm seed by seed.

    >>> row = table_row(["code"], np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [1.0], [1.0]]))
    >>> row["code bits_per_byte"], round(row["code stderr"], 4), row["code difference"], round(row["code difference stderr"], 4)
    (2.0, 0.5774, 1.0, 0.5774)
    """
    row: dict[str, Any] = {}
    for column, kind in enumerate(kinds):
        value_S, difference_S = value_SK[:, column], (value_SK - first_SK)[:, column]
        row |= {f"{kind} values": value_S.tolist(), f"{kind} bits_per_byte": float(value_S.mean()), f"{kind} stderr": stderr(value_S)}
        row |= {f"{kind} difference": float(difference_S.mean()), f"{kind} difference stderr": stderr(difference_S)}
    return row


def stderr(value_S: np.ndarray) -> float:
    """Standard error of the mean of S values (ddof 1)."""
    return float(value_S.std(ddof=1) / math.sqrt(len(value_S)))


if __name__ == "__main__":
    stage.main(run)
