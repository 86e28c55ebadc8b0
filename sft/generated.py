"""Examples of the generated family in three formats, written from a problem's steps."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping

from mathpipe.sft.problems import Problem, generate
from mathpipe.sft.schema import Example, Segment

SOURCE = "generated"


def chain(problem: Problem) -> str:
    r"""Worked steps and boxed answer.

    >>> from mathpipe.sft.problems import make
    >>> print(chain(make(1, (3, 4, 5), "Tom", "pens")))
    3*4=12
    12+5=17
    \boxed{17}
    """
    lines = [f"{s.left}{s.operator}{s.right}={s.result}" for s in problem.steps]
    return "\n".join([*lines, f"\\boxed{{{problem.answer}}}"])


def program(problem: Problem) -> str:
    """Python program that prints the answer."""
    first, *rest = problem.steps
    lines = [f"x = {first.left}{first.operator}{first.right}"]
    lines += [f"x = x{s.operator}{s.right}" for s in rest]
    return "\n".join([*lines, "print(x)"])


def write(problem: Problem, kind: str) -> Example:
    """The problem answered in a format (`cot`, `pot` or `tir`)."""
    answer = str(problem.answer)
    code = Segment("code", program(problem))
    segments = {
        "cot": (Segment("text", chain(problem)),),
        "pot": (code,),
        "tir": (code, Segment("output", answer), Segment("text", f"\\boxed{{{answer}}}")),
    }
    return Example(problem.question, segments[kind], answer, kind, SOURCE)


def make_examples(num_examples: int, fractions: Mapping[str, float], seed: int, max_number: int, max_result: int) -> Iterator[Example]:
    """Examples of the training split in the given shares of formats, shuffled formats, deterministic for a seed."""
    rng = random.Random(f"formats-{seed}")
    kinds = rng.choices(list(fractions), weights=list(fractions.values()), k=num_examples)
    problems = itertools.islice(generate(seed, max_number, max_result, held_out=False), num_examples)
    return (write(problem, kind) for problem, kind in zip(problems, kinds, strict=True))
