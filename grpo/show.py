"""`mathpipe show completions`: what the policy wrote at a step, question by question, best and worst of each group."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Rows = list[dict[str, Any]]
FOLDER = "completions"


def steps(artifact: Path) -> list[int]:
    """Steps whose completions are there, of a finished run or of one that is under way."""
    return sorted({int(file.stem.split("-")[1]) for file in (artifact / FOLDER).glob("step-*.parquet")})


def groups(artifact: Path, step: int) -> list[Rows]:
    """The completions of a step by question, in the order of processes.

    Args:
        step: from 1; negative ones count from the last that is there, as in `[-1]`.

    Raises:
        FileNotFoundError: there is no such step; the message says which there are.
    """
    there = steps(artifact)
    if not there:
        written = "grpo and the arms of `mathpipe ablate` write them, a file a step, and with these settings have not begun"
        raise FileNotFoundError(f"{artifact / FOLDER}: no completions there; {written}")
    if step < 0 and -step <= len(there):
        step = there[step]
    if step not in there:
        raise FileNotFoundError(f"{artifact / FOLDER}: no completions of step {step}; there are steps {there[0]} to {there[-1]}")
    files = sorted((artifact / FOLDER).glob(f"step-{step:05d}-*.parquet"), key=lambda file: int(file.stem.split("-")[2]))
    found: list[Rows] = []
    for row in pa.concat_tables([pq.read_table(file) for file in files]).to_pylist():
        if not found or found[-1][0]["question"] != row["question"]:
            found.append([])
        found[-1].append(row)
    return found


def best_and_worst(rows: Rows) -> tuple[dict[str, Any], dict[str, Any]]:
    """The completions with the highest and the lowest known reward; of equal ones by advantage, then the first.

    >>> best_and_worst([{"reward": 0.0, "advantage": -1.0}, {"reward": 1.0, "advantage": 1.0}])[0]["reward"]
    1.0
    """
    known = [row for row in rows if not math.isnan(row["reward"])] or rows

    def rank(row: dict[str, Any]) -> tuple[float, float]:
        return row["reward"], row["advantage"]

    return max(known, key=rank), min(known, key=rank)


def summary(rows: Rows) -> str:
    """One line on a group.

    >>> summary([{"reward": 1.0, "found": "7", "reason": "correct"}, {"reward": 0.0, "found": "8", "reason": "wrong"}])
    'reward 0.500 ± 0.500, 2 distinct answers; 1 correct, 1 wrong'
    """
    known = [row["reward"] for row in rows if not math.isnan(row["reward"])]
    mean = sum(known) / max(len(known), 1)
    std = math.sqrt(sum((value - mean) ** 2 for value in known) / max(len(known), 1))
    reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(row["reason"] for row in rows).most_common())
    return f"reward {mean:.3f} ± {std:.3f}, {len({row['found'] for row in rows})} distinct answers; {reasons}"


def table_rows(rows: Rows) -> Iterator[tuple[str, ...]]:
    """(which, completion, reward, advantage of the output or of its steps, tokens, temperature) of best and worst."""
    for name, row in zip(("best", "worst"), best_and_worst(rows), strict=True):
        steps_of = row["step_advantages"]
        advantage = ", ".join(f"{value:+.2f}" for value in steps_of) if len(set(steps_of)) > 1 else f"{row['advantage']:+.3f}"
        length = f"{row['num_tokens']}{'' if row['finished'] else ' (cut)'}"
        yield name, row["completion"].strip(), f"{row['reward']:.3f} {row['reason']}", advantage, length, f"{row['temperature']:g}"


def main(artifact: Path, step: int, limit: int, console: Any) -> None:
    """Print the groups of a step."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    found = groups(artifact, step)
    for rows in found[:limit]:
        title = f"[bold]{escape(rows[0]['question'])}[/]  → {escape(rows[0]['answer'])}"
        table = Table("", "completion", "reward", "advantage", "tokens", "T", title=title, caption=summary(rows), box=box.SIMPLE_HEAD,
                      title_justify="left", caption_justify="left")  # fmt: skip
        for cells in table_rows(rows):
            table.add_row(*map(escape, cells))
        console.print(table)
    shown: Sequence[Rows] = found[:limit]
    print(f"step {found[0][0]['step']}: {len(shown)} of {len(found)} questions, {len(found[0])} completions each; {artifact / FOLDER}")
