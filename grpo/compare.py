"""Stage ablate.NAME for reinforcement: arms beside each other, with the spread over seeds (figure 5).

How to read the table (all runs begin with the same model and are measured on the same held-out questions):
- `sampled`, `greedy`: held-out accuracy after the last step, at temperature 1 and greedy; `before` is the SFT model's.
- `zero_std_frac`, `distinct_frac`, `step_s` and its parts: medians over a run's steps; `peak_memory_gb`: the highest;
  `reward`, `kl`, `entropy`: of the last step.
- `stderr`: standard error of the mean over seeds. `difference`: to the first arm with the same seed, with its own standard error. With
  three seeds a difference below about four of its standard errors is not settled (t, 2 degrees of freedom, 95 %: 4.3; 4: 2.8).

    metrics.jsonl      the table, one line an arm
    curves.parquet     arm, seed, step and what was measured there
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mathpipe.grpo.arms_config import CompareConfig, CompareInputs
from mathpipe.pipeline import artifact, log, stage

MEDIANS = ("zero_std_frac", "distinct_frac", "distinct_text_frac", "step_s", "sample_s", "reward_s", "reference_s", "update_s", "sync_s")
LAST = ("reward", "kl", "entropy")
CURVES = ("greedy_accuracy", "sampled_accuracy", "reward", "distinct_frac", "zero_std_frac")


def run(config: CompareConfig, inputs: CompareInputs, out: Path) -> dict[str, Any]:
    """Read every run; facts: arms in order, seeds, the arms by sampled accuracy, number of held-out questions."""
    runs: dict[str, list[Path]] = {}
    for name, path in inputs.runs.items():
        runs.setdefault(name.rpartition(".")[0], []).append(path)
    found: dict[str, list[dict[str, float]]] = {}
    points: list[dict[str, Any]] = []
    with log.Progress(out, len(inputs.runs), "runs", "compare") as progress:
        for arm, paths in runs.items():
            for seed, path in enumerate(paths):
                rows = artifact.read_metrics(path)
                found.setdefault(arm, []).append(figures(artifact.read_manifest(path)["held_out"], rows))
                points += [{"arm": arm, "seed": seed, "step": row["step"], **{key: row.get(key) for key in CURVES}} for row in rows]
                progress.advance(1, f"{arm} {seed}")
    (out / "metrics.jsonl").unlink(missing_ok=True)
    first, *_ = found.values()
    for arm, made in found.items():
        artifact.append_metrics(out, arm=arm, **table_row(made, first))
    kinds = dict.fromkeys(CURVES, pa.float64()) | {"arm": pa.string(), "seed": pa.int64(), "step": pa.int64()}
    artifact.write_parquet(out / "curves.parquet", pa.Table.from_pylist(points, schema=pa.schema(kinds)))
    by_accuracy = sorted(found, key=lambda arm: float(np.mean([made["sampled"] for made in found[arm]])))
    manifest = artifact.read_manifest(next(iter(inputs.runs.values())))
    return {"arms": list(found), "num_seeds": len(first), "by_accuracy": by_accuracy, "num_questions": manifest["held_out"]["n"]}


def figures(held_out: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, float]:
    """What one run came to."""
    found = {kind: held_out[kind]["after"] for kind in ("sampled", "greedy")}
    found |= {f"{kind}_before": held_out[kind]["before"] for kind in ("sampled", "greedy")}
    columns = {key: [row[key] for row in rows if row.get(key) is not None] for key in (*MEDIANS, *LAST, "peak_memory_gb")}
    found |= {key: float(np.median(columns[key])) for key in MEDIANS if columns[key]}
    found |= {key: columns[key][-1] for key in LAST if columns[key]}
    return found | ({"peak_memory_gb": max(columns["peak_memory_gb"])} if columns["peak_memory_gb"] else {})


def table_row(runs: list[dict[str, float]], first: list[dict[str, float]]) -> dict[str, Any]:
    """Mean and standard error over seeds of what all runs of an arm have, and of the difference to the first arm seed by seed.

    >>> row = table_row([{"a": 1.0}, {"a": 2.0}, {"a": 3.0}], [{"a": 1.0}, {"a": 1.0}, {"a": 1.0}])
    >>> row["a"], round(row["a stderr"], 4), row["a difference"], round(row["a difference stderr"], 4)
    (2.0, 0.5774, 1.0, 0.5774)
    """
    row: dict[str, Any] = {}
    for key in (key for key in runs[0] if all(key in one for one in (*runs, *first))):
        value_S = np.array([one[key] for one in runs])
        difference_S = value_S - np.array([one[key] for one in first])
        row |= {f"{key} values": value_S.tolist(), key: float(value_S.mean()), f"{key} stderr": stderr(value_S)}
        row |= {f"{key} difference": float(difference_S.mean()), f"{key} difference stderr": stderr(difference_S)}
    return row


def stderr(value_S: np.ndarray) -> float | None:
    """Standard error of the mean of S values (ddof 1); None of a single one."""
    return float(value_S.std(ddof=1) / math.sqrt(len(value_S))) if len(value_S) > 1 else None


if __name__ == "__main__":
    stage.main(run)
