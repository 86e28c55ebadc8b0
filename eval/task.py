"""What a task of the evaluation is: which items, how they are asked, how an answer is read and judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from mathpipe.eval.grader import Grader, Reason
from mathpipe.pipeline.artifact import ContractError

Row = dict[str, Any]
"""One item: `item` (unique in the task), `group`, `question`, `target`, and what the task's own functions need."""


@dataclass(frozen=True)
class Task:
    """One way of asking the items of one suite."""

    name: str
    """The suite, and the style where there are several: `gsm8k`, `gsm8k-pot`, `gsm8k-tir`."""
    suite: str
    """Whose items they are: `<suite>.parquet` of the benchmarks artifact."""
    kind: Literal["choice", "generate"]
    """`choice`: the most likely of the letters; `generate`: a completion from which an answer is read."""
    num_shots: int
    """Worked examples before the question; a chat prompt has none."""
    style: Literal["", "cot", "pot", "tir"]
    """Chain of thought, a program that prints the answer, or text and programs by turns."""
    stop: tuple[str, ...]
    """Strings at which a completion after worked examples ends."""
    max_new_tokens: int
    """Longest completion; 0 for `choice`."""
    rows: Callable[[Path], list[Row]]
    """The items of a benchmarks artifact, in a fixed order."""
    prompt: Callable[[Row, int, bool], str]
    """(item, worked examples, whether the model is one that was taught to chat) → prompt."""
    extract: Callable[[str, Row], str | None]
    """(completion, item) → answer; for `pot` and `tir` the completion holds what the programs printed."""
    grade: Callable[[str | None, Row, Grader], Reason]
    """(answer, item, grader) → why it counts or not."""
    chat: bool = True
    """Whether models that were taught to chat are asked in a chat prompt without worked examples; else as base models are."""
    base: bool = True
    """Whether models that were not taught to chat are asked."""


def read_items(benchmarks: Path, suite: str) -> list[Row]:
    """The rows of `<suite>.parquet`.

    Raises:
        ContractError: the benchmarks artifact has no such suite, or a broken one.
    """
    file = benchmarks / f"{suite}.parquet"
    if not file.exists():
        raise ContractError(f"{file}: missing; run stage benchmarks again, or leave the suite out of evaluate.tasks")
    try:
        return pq.read_table(file).to_pylist()
    except pa.ArrowInvalid as error:
        raise ContractError(f"{file}: cannot be read ({error}); delete {benchmarks} and run stage benchmarks again") from error
