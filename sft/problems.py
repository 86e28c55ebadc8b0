"""Arithmetic word problems: the question family on which the tiny chain is fine-tuned, reinforced and measured.

A problem is a template with small whole numbers; its solution is a list of binary steps, so chain-of-thought,
program-of-thought and tool-integrated answers are all written from the same steps (`generated.py`). Problems are split by
template *and* numbers: no training problem shares both with a held-out one, whatever names and things it mentions.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

NAMES = ("Tom", "Ana", "Ben", "Mia", "Sam", "Eva", "Leo", "Zoe", "Max", "Ida")
THINGS = ("apples", "pens", "books", "coins", "cards", "stones", "eggs", "balls")
NUM_BUCKETS, HELD_OUT_BUCKET = 10, 7
"""Of the (template, numbers) pairs one bucket in this many is held out; settings were chosen with another one."""


@dataclass(frozen=True)
class Step:
    """One binary operation, `left operator right = result`."""

    left: int
    operator: str
    right: int
    result: int


@dataclass(frozen=True)
class Problem:
    """A question with the steps that solve it; the answer is the result of the last step."""

    question: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        return self.steps[-1].result


TEMPLATES: tuple[tuple[str, str], ...] = (
    ("a+b c-", "{name} has {a} {things}, gets {b} more and loses {c}. How many {things} are left?"),
    ("a*b c+", "{name} buys {a} boxes of {b} {things} and finds {c} more. How many {things} are there?"),
    ("a*b c-", "{name} has {a} bags of {b} {things} and gives away {c}. How many {things} are left?"),
    ("a+b c*", "Each of {c} boxes holds {a} old and {b} new {things}. How many {things} are there?"),
    ("a-b c*", "{name} had {a} {things} a day but lost {b} of them every day. How many are kept in {c} days?"),
    ("a+b c+", "{name} has {a} {things}, finds {b} and buys {c}. How many {things} are there?"),
    ("a-b c+", "{name} has {a} {things}, loses {b} and gets {c} more. How many {things} are there now?"),
    ("a*b c*", "{name} fills {c} rooms with {a} shelves of {b} {things} each. How many {things} are there?"),
)
"""(steps, text): `a+b c-` means first a + b, then that minus c."""


def _apply(left: int, operator: str, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def make(template: int, numbers: tuple[int, int, int], name: str, things: str) -> Problem:
    """The problem of a template with numbers (a, b, c).

    >>> make(1, (3, 4, 5), "Tom", "pens").steps
    (Step(left=3, operator='*', right=4, result=12), Step(left=12, operator='+', right=5, result=17))
    """
    recipe, text = TEMPLATES[template]
    a, b, c = numbers
    first = Step(a, recipe[1], b, _apply(a, recipe[1], b))
    second = Step(first.result, recipe[-1], c, _apply(first.result, recipe[-1], c))
    return Problem(text.format(a=a, b=b, c=c, name=name, things=things), (first, second))


def is_held_out(template: int, numbers: tuple[int, int, int]) -> bool:
    """Whether this (template, numbers) pair belongs to the held-out split; the same for every seed."""
    digest = hashlib.sha256(f"{template}:{numbers}".encode()).digest()
    return digest[0] % NUM_BUCKETS == HELD_OUT_BUCKET


def generate(seed: int, max_number: int, max_result: int, held_out: bool) -> Iterator[Problem]:
    """Endless stream of distinct-by-chance problems of one split.

    Args:
        max_number: a, b and c are between 2 and this.
        max_result: no intermediate or final result exceeds this; all are ≥ 0.
        held_out: which side of the split.
    """
    rng = random.Random(f"problems-{seed}-{held_out}")
    while True:
        template = rng.randrange(len(TEMPLATES))
        numbers = (rng.randint(2, max_number), rng.randint(2, max_number), rng.randint(2, max_number))
        if is_held_out(template, numbers) != held_out:
            continue
        problem = make(template, numbers, rng.choice(NAMES), rng.choice(THINGS))
        if all(0 <= step.result <= max_result for step in problem.steps):
            yield problem
