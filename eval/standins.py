"""Stand-ins for the suites where neither files nor the hub can be had: questions of the same form, made from a seed.

They exercise every step of the evaluation and measure nothing anyone publishes; the manifest and every table call them
stand-ins.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from mathpipe.eval.problems import problem
from mathpipe.eval.sources import mmlu_row
from mathpipe.eval.suites import LETTERS, Suites

NUM_DEV, NUM_VAL, NUM_PROMPT_SHOTS = 5, 5, 3
_WORDS = "anchor basil copper dragon ember forest garnet harbor island jacket kettle lantern marble needle orchard pepper"
WORDS = _WORDS.split()
THINGS = ["apples", "books", "cups", "drums", "forks", "grapes", "hats", "lamps", "onions", "pears"]

Question = tuple[str, int]
Worked = tuple[str, str, str]
"""Input, reasoning, answer."""


def addition(rng: random.Random) -> Question:
    """Sum of two numbers."""
    a, b = rng.randint(10, 999), rng.randint(10, 999)
    return f"What is the sum of {a} and {b}?", a + b


def subtraction(rng: random.Random) -> Question:
    """Difference of two numbers."""
    a, b = rng.randint(500, 999), rng.randint(10, 499)
    return f"A tank holds {a} litres and loses {b} litres. How many litres are left?", a - b


def multiplication(rng: random.Random) -> Question:
    """Product of two numbers."""
    a, b = rng.randint(3, 99), rng.randint(3, 19)
    return f"Each of {b} boxes holds {a} nails. How many nails are there in all?", a * b


def division(rng: random.Random) -> Question:
    """An exact quotient."""
    a, b = rng.randint(3, 99), rng.randint(3, 12)
    return f"{a * b} coins are shared equally by {b} people. How many coins does each person get?", a


def divisors(rng: random.Random) -> Question:
    """Greatest common divisor."""
    factor, a, b = rng.randint(2, 20), rng.randint(2, 12), rng.randint(2, 12)
    return f"What is the greatest common divisor of {factor * a} and {factor * b}?", math.gcd(factor * a, factor * b)


def powers(rng: random.Random) -> Question:
    """A power."""
    a, b = rng.randint(2, 12), rng.randint(2, 3)
    return f"What is {a} to the power of {b}?", a**b


def sequences(rng: random.Random) -> Question:
    """Next term of an arithmetic sequence."""
    start, step = rng.randint(1, 50), rng.randint(2, 15)
    terms = ", ".join(str(start + step * i) for i in range(4))
    return f"What is the next term of the sequence {terms}?", start + 4 * step


def perimeters(rng: random.Random) -> Question:
    """Perimeter of a rectangle."""
    a, b = rng.randint(2, 60), rng.randint(2, 60)
    return f"What is the perimeter of a rectangle with sides {a} and {b}?", 2 * (a + b)


SUBJECTS: dict[str, Callable[[random.Random], Question]] = {
    f.__name__: f for f in (addition, subtraction, multiplication, division, divisors, powers, sequences, perimeters)
}


def boolean_expressions(rng: random.Random) -> Worked:
    """Two literals and an operator."""
    left, right = ((rng.random() < 0.5, rng.random() < 0.5) for _ in range(2))
    word = rng.choice(["and", "or"])
    a, b = (value != negated for value, negated in (left, right))
    shown = [f"not {value}" if negated else str(value) for value, negated in (left, right)]
    result = (a and b) if word == "and" else (a or b)
    return f"{shown[0]} {word} {shown[1]} is", f"{shown[0]} is {a} and {shown[1]} is {b}, and {a} {word} {b} is {result}.", str(result)


def multistep_arithmetic(rng: random.Random) -> Worked:
    """(a op b) op c."""
    a, b, c = (rng.randint(-9, 9) for _ in range(3))
    inner, total = a * b, a * b - c
    return f"(({a} * {b}) - {c}) =", f"{a} * {b} = {inner}, and {inner} - {c} = {total}.", str(total)


def object_counting(rng: random.Random) -> Worked:
    """How many things in three piles."""
    names, counts = rng.sample(THINGS, 3), [rng.randint(1, 9) for _ in range(3)]
    listed = ", ".join(f"{count} {name}" for count, name in zip(counts, names, strict=True))
    return f"I have {listed}. How many things do I have?", f"{counts[0]} + {counts[1]} + {counts[2]} = {sum(counts)}.", str(sum(counts))


def word_sorting(rng: random.Random) -> Worked:
    """Words in alphabetical order."""
    words = rng.sample(WORDS, 4)
    ordered = " ".join(sorted(words))
    return f"Sort the following words alphabetically: List: {' '.join(words)}", f"By first letter the order is {ordered}.", ordered


TASKS: dict[str, tuple[str, Callable[[random.Random], Worked]]] = {
    "boolean_expressions": ("Evaluate the result of a random Boolean expression.", boolean_expressions),
    "multistep_arithmetic": ("Solve multi-step arithmetic problems.", multistep_arithmetic),
    "object_counting": ("Count the things.", object_counting),
    "word_sorting": ("Sort a list of words.", word_sorting),
}


CHINESE: dict[str, Callable[[int, int], int]] = {
    "{a}加{b}等于多少？": lambda a, b: a + b,
    "每盒有{a}支铅笔，{b}盒一共有多少支？": lambda a, b: a * b,
}
"""Question → its answer."""


def chinese(rng: random.Random) -> Question:
    """A sum or a product, in Chinese."""
    (text, answer), a, b = rng.choice(list(CHINESE.items())), rng.randint(2, 99), rng.randint(2, 19)
    return text.format(a=a, b=b), answer(a, b)


def mixed(rng: random.Random) -> Question:
    """A question of any kind."""
    return rng.choice(list(SUBJECTS.values()))(rng)


PROBLEMS = {"gsm8k": mixed, "math": mixed, "ocw": mixed, "cmath": chinese, "mgsm_zh": chinese}
OPTIONS = ("sat", "mmlu_stem")


def make(seed: int, num_items: int) -> Suites:
    """Stand-ins of every suite, the same for the same arguments."""
    suites = Suites("stand-in", "generated by mathpipe.eval.standins")
    for subject, question in SUBJECTS.items():
        rng = random.Random(f"{seed} {subject}")
        for split, count in (("dev", NUM_DEV), ("val", NUM_VAL), ("test", num_items)):
            suites.mmlu += [_multiple_choice(subject, split, i, question(rng), rng) for i in range(count)]
    for suite, question in PROBLEMS.items():
        rng = random.Random(f"{seed} {suite}")
        asked = [question(rng) for _ in range(num_items)]
        suites.problems[suite] = [{"item": str(i)} | problem("", text, str(right)) for i, (text, right) in enumerate(asked)]
    for suite in OPTIONS:
        rng = random.Random(f"{seed} {suite}")
        rows = [_multiple_choice("", "test", i, mixed(rng), rng) for i in range(num_items)]
        suites.problems[suite] = [
            {"item": str(row["item"])} | problem("", row["question"], LETTERS[row["answer"]], row["choices"]) for row in rows
        ]
    for task, (description, worked) in TASKS.items():
        rng = random.Random(f"{seed} {task}")
        shots = [worked(rng) for _ in range(NUM_PROMPT_SHOTS)]
        blocks = [f"Q: {given}\nA: Let's think step by step.\n{reasoning} So the answer is {answer}." for given, reasoning, answer in shots]
        suites.bbh_prompts[task] = "\n\n".join([description, *blocks])
        for item in range(num_items):
            given, _, answer = worked(rng)
            suites.bbh.append({"task": task, "item": item, "input": given, "target": answer})
    return suites


def _multiple_choice(subject: str, split: str, item: int, question: Question, rng: random.Random) -> dict[str, Any]:
    text, right = question
    wrong = rng.sample([right + d for d in (-11, -10, -3, -2, -1, 1, 2, 3, 10, 11)], 3)
    choices = [right, *wrong]
    rng.shuffle(choices)
    return mmlu_row(subject, split, item, text, [str(choice) for choice in choices], choices.index(right))
