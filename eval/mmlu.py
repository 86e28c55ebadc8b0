"""MMLU: few-shot multiple choice, scored by the log-probability of the letters (Hendrycks et al., arXiv 2009.03300).

White space around a question is left out, as lm-evaluation-harness does; the authors' script keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mathpipe.eval.grader import Grader, Reason
from mathpipe.eval.suites import LETTERS
from mathpipe.eval.task import Row, Task, read_items

CHANCE = 0.25
NUM_SHOTS = 5


def prompt(subject: str, shots: Sequence[dict[str, Any]], question: dict[str, Any]) -> str:
    r"""The published prompt: subject, worked questions, the question up to `Answer:`.

    >>> row = {"question": "1 + 1?", "choices": ["1", "2", "3", "4"], "answer": 1}
    >>> prompt("global_facts", [], row)
    'The following are multiple choice questions (with answers) about global facts.\n\n1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:'
    """
    header = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    worked = "".join(f"{_question(shot)} {LETTERS[shot['answer']]}\n\n" for shot in shots)
    return header + worked + _question(question)


def _question(row: dict[str, Any]) -> str:
    choices = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, row["choices"], strict=True))
    return f"{row['question'].strip()}\n{choices}Answer:"


def rows(benchmarks: Path) -> list[Row]:
    """The test questions by subject, each with the worked questions of its subject."""
    shots: dict[str, list[Row]] = {}
    asked = []
    for row in read_items(benchmarks, "mmlu"):
        if row["split"] == "dev":
            shots.setdefault(row["subject"], []).append(row)
        elif row["split"] == "test":
            asked.append(row)
    return [
        row | {"item": f"{row['subject']}/{row['item']}", "group": row["subject"], "target": LETTERS[row["answer"]],
               "shots": shots.get(row["subject"], [])[:NUM_SHOTS]}
        for row in sorted(asked, key=lambda row: row["subject"])
    ]  # fmt: skip


def ask(row: Row, num_shots: int, chat: bool) -> str:
    """The prompt with the first worked questions."""
    return prompt(row["group"], row["shots"][:num_shots], row)


def likeliest(logprobs: Sequence[float]) -> str:
    """The letter of highest probability.

    >>> likeliest([-2.0, -0.5, -1.0, -3.0])
    'B'
    """
    return LETTERS[max(range(len(logprobs)), key=logprobs.__getitem__)]


def grade(extracted: str | None, row: Row, grader: Grader) -> Reason:
    """The most likely letter is the answer; there always is one."""
    return "correct" if extracted == row["target"] else "wrong"


TASK = Task("mmlu", "mmlu", "choice", NUM_SHOTS, "", (), 0, rows, ask, lambda letter, row: letter, grade, chat=False)
