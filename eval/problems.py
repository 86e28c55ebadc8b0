"""Rows of the mathematics suites, from the records of their published files: item, group, question, choices, answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from mathpipe.eval.grader import extract_boxed
from mathpipe.eval.suites import LETTERS, Row

Record = dict[str, Any]
SAT_OPTION = re.compile(r"(?:^|\s)([A-D])[).]\s")
UNBRACED = re.compile(r"\\(?:boxed|fbox)\s*\{?([^{}$]*)")
"""`\\boxed 2` and `\\fbox{2}`, which a few MATH solutions have."""


def gsm8k(record: Record) -> Row:
    """Answer: what stands after ####."""
    return problem("", record["question"], record["answer"].rpartition("####")[2].strip().replace(",", ""))


def math(record: Record) -> Row:
    r"""By subject; the answer is the field, or the last box of the solution.

    >>> math({"problem": "?", "type": "Algebra", "solution": r"so \boxed 2$."})["answer"]
    '2'
    """
    answer = record.get("answer")
    if answer is None:
        found = UNBRACED.findall(record["solution"])
        answer = extract_boxed(record["solution"]) or (found[-1].strip() if found else "")
    return problem(record.get("subject") or record.get("type", ""), record["problem"], answer)


def cmath(record: Record) -> Row:
    """By grade."""
    return problem(f"grade {record['grade']}", record["question"], record["golden"].strip().replace(",", ""))


def mgsm_zh(record: Record) -> Row:
    """The question is the first message."""
    return problem("", record["messages"][0]["content"], record["answer"].replace(",", ""))


def ocw(record: Record) -> Row:
    """University courses."""
    return problem("", record["problem"].strip(), record["answer"])


def sat(record: Record) -> Row:
    """The choices stand in one string.

    >>> sat({"question": "1 + 1?", "options": "A) 1 B) 2 C) 3 D) 4", "Answer": "B"})["choices"]
    ['1', '2', '3', '4']
    """
    _, *parts = SAT_OPTION.split(record["options"])
    if parts[::2] != list(LETTERS):
        raise ValueError(f"sat: {record['options']!r} is not four choices, A to D; fetch the published file again")
    return problem("", record["question"], record["Answer"], [text.strip() for text in parts[1::2]])


def mmlu_stem(record: Record) -> Row:
    """By subject; some choices are numbers."""
    return problem(record["topic"], record["question"], record["answer"], [str(choice).strip() for choice in record["options"]])


def problem(group: str, question: str, answer: str, choices: Iterable[str] = ()) -> Row:
    """One row, without its number."""
    return {"group": group, "question": question, "choices": list(choices), "answer": answer}


def rows(read: Callable[[Record], Row], records: Iterable[Record]) -> list[Row]:
    """Numbered rows."""
    return [{"item": str(number)} | read(record) for number, record in enumerate(records)]


READERS: dict[str, Callable[[Record], Row]] = {reader.__name__: reader for reader in (gsm8k, math, cmath, mgsm_zh, ocw, sat, mmlu_stem)}
"""Suite → its reader."""
