"""The problems that GRPO held out, asked and graded as its reward does."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from mathpipe.eval.grader import extract_boxed
from mathpipe.eval.math_suites import compare
from mathpipe.eval.task import Row, Task
from mathpipe.pipeline.artifact import ContractError

COLUMNS = ("question", "answer", "prompt")


def rows(grpo: Path) -> list[Row]:
    """The held-out problems of a GRPO artifact.

    Raises:
        ContractError: its file is missing, or lacks a column.
    """
    file = grpo / "held_out.parquet"
    if not file.exists():
        raise ContractError(f"{file}: missing; run stage grpo again")
    missing = set(COLUMNS) - set(pq.read_schema(file).names)
    if missing:
        raise ContractError(f"{file}: no column {', '.join(sorted(missing))}; run stage grpo again")
    found = pq.read_table(file, columns=list(COLUMNS)).to_pylist()
    return [row | {"item": str(number), "group": "", "target": str(row["answer"])} for number, row in enumerate(found)]


TASK = Task(
    "held_out", "held_out", "generate", 0, "cot", (), 1024, rows, lambda row, shots, chat: row["prompt"],
    lambda text, row: extract_boxed(text), compare,
)  # fmt: skip
