"""`mathpipe show eval`: answers of a model that are not right, and why."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

Rows = list[dict[str, Any]]
FOLDER = "items"
MAX_CHARS = 600
BLANK = re.compile(r"\n\s*\n")


def files(artifact: Path, model: str, task: str) -> list[Path]:
    """Files of a model's answers, of a finished evaluation or of one that is under way; of one task, or of all for "".

    Raises:
        FileNotFoundError: there are none; the message says which there are.
    """
    there = sorted((artifact / FOLDER).glob("*-*.parquet"))
    found = [file for file in there if file.stem.partition("-")[0] == model and (not task or file.stem.partition("-")[2] == task)]
    if not found:
        names = ", ".join(file.stem for file in there) or "none; `mathpipe run evaluate` writes them"
        asked = f"model {model!r}" + (f" to task {task!r}" if task else "")
        raise FileNotFoundError(f"{artifact / FOLDER}: no answers of {asked}; there are: {names}")
    return found


def wrong(rows: Rows, limit: int) -> Rows:
    """At most `limit` answers that are not right, one of each reason after the other.

    >>> rows = [{"reason": reason, "item": n} for n, reason in enumerate(["wrong", "correct", "wrong", "no_answer"])]
    >>> [row["item"] for row in wrong(rows, 2)]
    [0, 3]
    """
    by_reason: dict[str, Rows] = {}
    for row in rows:
        if row["reason"] != "correct":
            by_reason.setdefault(row["reason"], []).append(row)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_reason.values()))
    return list(itertools.islice((row for row in turns if row is not None), limit))


def question(prompt: str) -> str:
    """The end of a prompt, where its question stands: all below the last worked example.

    >>> question("Q: 1 + 1?\\nA: 2\\n\\nQ: 2 + 2?\\nA:")
    'Q: 2 + 2?\\nA:'
    """
    parts = [part for part in prompt.rstrip().split("\n\n") if part.strip()]
    starts = [i for i, part in enumerate(parts) if part.startswith(("Q:", "Problem:", "问题：", "User:"))]
    return "\n\n".join(parts[starts[-1] if starts else -1 :])


def cells(row: dict[str, Any]) -> Iterator[str]:
    """Item, question, answer, what was found and wanted, why it does not count."""
    yield f"{row['task']}\n{row['item']}" + (f" #{row['sample']}" if row["sample"] else "")
    yield shorten(question(row["prompt"]))
    yield shorten(row["completion"].strip()) or ", ".join(f"{logprob:.2f}" for logprob in row["logprobs"])
    yield "–" if row["extracted"] is None else row["extracted"]
    yield row["target"]
    yield row["reason"]


def shorten(text: str) -> str:
    """A text without blank lines, and without its middle where it is long."""
    text, half = BLANK.sub("\n", text), MAX_CHARS // 2
    return text if len(text) <= MAX_CHARS else f"{text[:half]} […] {text[-half:]}"


def main(artifact: Path, model: str, task: str, limit: int, console: Any) -> None:
    """Print the answers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = [row for file in files(artifact, model, task) for row in pq.read_table(file).to_pylist()]
    table = Table("item", "question", "answer", "found", "wanted", "reason", box=box.SIMPLE_HEAD, show_lines=True)
    for row in wrong(rows, limit):
        table.add_row(*(Text(cell) for cell in cells(row)))
    if table.rows:
        console.print(table)
    reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(row["reason"] for row in rows).most_common())
    print(f"{model}: {len(rows)} answers, {reasons}; {artifact / FOLDER}")
