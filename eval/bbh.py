r"""BIG-Bench Hard: the published three worked examples, greedy chain of thought, exact match (Suzgun et al., arXiv 2210.09261).

Differences from the authors' script, on purpose:
1. Generation stops at "\n\nQ:", where the model begins a question of its own; stopping at "Q" cuts answers that contain it.
2. A completion without "the answer is" has no answer; the script compares the whole completion instead.
"""

from __future__ import annotations

import re
from pathlib import Path

from mathpipe.eval.grader import Grader, Reason
from mathpipe.eval.task import Row, Task, read_items

STOP = ("\n\nQ:",)
NUM_SHOTS = 3
START = "Let's think step by step."
MARKER = "the answer is"
OPTION = re.compile(r"\([A-Z]\)")


def prompt(published: str, num_shots: int, question: str) -> str:
    """Description, the first `num_shots` worked examples and the question; the line ends where it does in the examples."""
    description, *shots = published.split("\n\nQ: ")
    end = "\n" if f"{START}\n" in published else ""
    return "\n\nQ: ".join([description, *shots[:num_shots], question]) + f"\nA: {START}{end}"


def extract(completion: str) -> str | None:
    """The text after the last "the answer is" up to the end of its line, without the final full stop; None without one.

    >>> extract("2 + 2 = 4. So the answer is 5. No, so the answer is (B).")
    '(B)'
    """
    _, marker, rest = completion.rpartition(MARKER)
    line = rest.lstrip(" :").partition("\n")[0]
    return (line.strip().removesuffix(".").strip() or None) if marker else None


def is_right(extracted: str | None, target: str) -> bool:
    """Exact match; for a multiple-choice target the first option in the answer counts.

    >>> is_right("(B) the second one", "(B)"), is_right("True", "True"), is_right(None, "None")
    (True, True, False)
    """
    if extracted is None:
        return False
    option = OPTION.search(extracted)
    return (option[0] if option and OPTION.fullmatch(target) else extracted) == target


def rows(benchmarks: Path) -> list[Row]:
    """The questions by task, each with its task's published prompt."""
    published = {row["task"]: row["prompt"] for row in read_items(benchmarks, "bbh_prompts")}
    found = [
        {"item": f"{row['task']}/{row['item']}", "group": row["task"], "question": row["input"], "target": row["target"],
         "published": published[row["task"]]}
        for row in read_items(benchmarks, "bbh")
    ]  # fmt: skip
    return sorted(found, key=lambda row: row["group"])


def ask(row: Row, num_shots: int, chat: bool) -> str:
    """The published prompt, for models of every kind."""
    return prompt(row["published"], num_shots, row["question"])


def grade(extracted: str | None, row: Row, grader: Grader) -> Reason:
    """Exact match."""
    if extracted is None:
        return "no_answer"
    return "correct" if is_right(extracted, row["target"]) else "wrong"


TASK = Task("bbh", "bbh", "generate", NUM_SHOTS, "cot", STOP, 512, rows, ask, lambda text, row: extract(text), grade, chat=False)
