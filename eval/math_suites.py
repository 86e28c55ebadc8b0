"""The mathematics suites of DeepSeekMath's evaluation: GSM8K, MATH, OCW, SAT, MMLU-STEM, and in Chinese CMATH and MGSM.

Base models see worked examples (few_shot.py), models that were taught to chat the published instruction and no example
(sft/prompts.py). With `pot` one program is run and prints the answer; with `tir` text and programs take turns (tir.py), which no base
model is asked for.

Differences from the published scripts, on purpose:
1. An answer that is not stated is none; there the last number of a GSM8K completion is taken for the answer.
2. Answers are compared by grader.py, exactly; there two numbers closer than 0.001 are equal. Printed numbers and those of OCW, which
   are rounded, may differ by 0.001 or by one part in 10⁵.
3. The scores of TIR count the answer in the text, and what the last program printed only where the text has none.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path

from mathpipe.eval import extraction, few_shot
from mathpipe.eval.grader import UNIT, WORDS, Grader, Reason, as_number, normalise
from mathpipe.eval.suites import LETTERS
from mathpipe.eval.task import Row, Task, read_items
from mathpipe.sft.prompts import render

PROBLEM_STOP = ("Problem:",)
QUESTION_STOP = ("Q:",)
CHINESE_STOP = ("\n问题：",)
PROGRAM_STOP = ("\n```\n",)
CHOICE = "What of the following is the right choice? Explain your answer."
ABSOLUTE, RELATIVE = 1e-3, 1e-5
"""How far printed and rounded numbers may be off."""
POWER = re.compile(r"\s*(?:\\times|\\cdot|\*|x)\s*10\^\{?([+-]?\d+)\}?")
FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][+-]?[0-9]+")
BARE_POWER = re.compile(r"^10\^\{?([+-]?\d+)\}?")


def rows(benchmarks: Path, suite: str) -> list[Row]:
    """The items of one of these suites."""
    return [row | {"target": row["answer"]} for row in read_items(benchmarks, suite)]


def with_options(row: Row) -> str:
    """A question with its choices, in the published form."""
    choices = ", ".join(f"({letter}) {text}" for letter, text in zip(LETTERS, row["choices"], strict=True))
    return f"{row['question'].strip()}\n{CHOICE}\n{choices}"


def first(shots: tuple[str, ...], num_shots: int, end: str) -> str:
    """The first worked examples, each with the blank lines below it."""
    return "".join(shot + end for shot in shots[:num_shots])


GSM8K_SHOTS = tuple(f"Q: {question}\nA: {thought}" for question, thought in few_shot.GSM8K)
MATH_SHOTS = tuple(f"Problem:\n{problem}\n\nSolution: {solution}\n{few_shot.hope(answer)}" for problem, solution, answer in few_shot.MATH)
OPTION_SHOTS = tuple(
    f"Problem:\n{with_options({'question': problem, 'choices': choices})}\nSolution:\n{solution}\n"
    f"Final Answer: The final answer is ({letter}). I hope it is correct."
    for (problem, solution, _), (choices, letter) in zip(few_shot.MATH, few_shot.OPTIONS, strict=True)
)
CHINESE_SHOTS = tuple(f"问题：{question}\n答案：{solution}" for question, solution in few_shot.CHINESE)
PROGRAM_SHOTS = {
    suite: tuple(f"Q: {question}\nA:\n```python\n{program}\n```" for question, program in shots)
    for suite, shots in few_shot.PROGRAMS.items()
}


def gsm8k(row: Row, num_shots: int) -> str:
    """As in lm-evaluation-harness."""
    return f"{first(GSM8K_SHOTS, num_shots, chr(10) * 2)}Q: {row['question']}\nA:"


def minerva(row: Row, num_shots: int) -> str:
    """As in lm-evaluation-harness."""
    return f"{first(MATH_SHOTS, num_shots, chr(10) * 2)}Problem:\n{row['question']}\n\nSolution:"


def options(row: Row, num_shots: int) -> str:
    """The same problems with choices."""
    return f"{first(OPTION_SHOTS, num_shots, chr(10) * 2)}Problem:\n{with_options(row)}\nSolution:"


def chinese(row: Row, num_shots: int) -> str:
    """The published form."""
    return f"{first(CHINESE_SHOTS, num_shots, chr(10) * 3)}问题：{row['question']}\n答案："


def program(row: Row, num_shots: int, suite: str) -> str:
    """Questions with programs in fences."""
    return f"{first(PROGRAM_SHOTS[suite], num_shots, chr(10) * 2)}Q: {row['question']}\nA:\n"


def compare(extracted: str | None, row: Row, grader: Grader) -> Reason:
    """The grader's verdict."""
    return "no_answer" if extracted is None else grader.compare(extracted, row["target"])


def same_letter(extracted: str | None, row: Row, grader: Grader) -> Reason:
    """Whether the option is the right one."""
    return "no_answer" if extracted is None else "correct" if extracted == row["target"] else "wrong"


def close(extracted: str | None, row: Row, grader: Grader) -> Reason:
    r"""As `compare`, for numbers that a program printed or a solution rounded: nearly equal ones are equal.

    >>> row = {"target": "4.5e33"}
    >>> close(r"4.5 \times 10^{33}", row, Grader()), close("8.9999999", {"target": "9"}, Grader()), close("4.6e33", row, Grader())
    ('correct', 'correct', 'wrong')
    """
    if extracted is None:
        return "no_answer"
    found, wanted = as_float(extracted), as_float(row["target"])
    if found is None or wanted is None:
        return grader.compare(extracted, row["target"])
    small = min(ABSOLUTE, abs(wanted) * ABSOLUTE)  # of a wavelength in metres a thousandth is no tolerance
    whole = as_number(normalise(row["target"]))
    relative = 0.0 if whole is not None and whole.denominator == 1 else RELATIVE  # of a million whole things none may be missing
    return "correct" if math.isclose(found, wanted, rel_tol=relative, abs_tol=small) else "wrong"


def as_float(text: str) -> float | None:
    r"""The value of a number in decimal or scientific notation, units and dollar signs aside.

    >>> as_float(r"$1.5 \times 10^{-3} \mathrm{~cm}$"), as_float(r"$10^{11}$ m/s"), as_float("-1./4"), as_float("x"), as_float("1e999")
    (0.0015, 100000000000.0, -0.25, None, None)
    """
    decimal = POWER.sub(r"e\1", BARE_POWER.sub(r"1e\1", text.replace("$", "").strip()))
    plain = normalise(WORDS.sub("", UNIT.sub("", decimal))).replace("./", "/")
    exact = as_number(plain)
    if exact is None and not FLOAT.fullmatch(plain):
        return None
    value = float(plain if exact is None else exact)
    return value if math.isfinite(value) else None


def task(
    suite: str, style: str, num_shots: int, stop: tuple[str, ...], extract: Callable[[str], str | None],
    grade: Callable[[str | None, Row, Grader], Reason], few: Callable[[Row, int], str] | None, language: str = "en",
) -> Task:  # fmt: skip
    """A task of these suites; `few` writes the prompt of base models."""
    question = with_options if grade is same_letter else lambda row: row["question"]

    def prompt(row: Row, shots: int, chat: bool) -> str:
        if chat or few is None:
            return render(question(row), style, language)
        return few(row, shots)

    return Task(
        suite if style == "cot" else f"{suite}-{style}", suite, "generate", num_shots, style, stop, 1024,
        functools.partial(rows, suite=suite), prompt, lambda text, row: extract(text), grade, base=few is not None,
    )  # fmt: skip


def from_text_or_program(read: Callable[[str], str | None]) -> Callable[[str], str | None]:
    """The answer in the text, else what the last program printed."""
    return lambda text: read(text) or extraction.printed(text)


TASKS = (
    task("gsm8k", "cot", 8, QUESTION_STOP, extraction.number, compare, gsm8k),
    task("gsm8k", "pot", 8, PROGRAM_STOP, extraction.printed, close, functools.partial(program, suite="gsm8k")),
    task("gsm8k", "tir", 0, (), from_text_or_program(extraction.number), close, None),
    task("math", "cot", 4, PROBLEM_STOP, extraction.formula, compare, minerva),
    task("math", "pot", 4, PROGRAM_STOP, extraction.printed, close, functools.partial(program, suite="math")),
    task("math", "tir", 0, (), from_text_or_program(extraction.formula), close, None),
    task("ocw", "cot", 4, PROBLEM_STOP, extraction.formula, close, minerva),
    task("sat", "cot", 4, PROBLEM_STOP, extraction.letter, same_letter, options),
    task("mmlu_stem", "cot", 4, PROBLEM_STOP, extraction.letter, same_letter, options),
    task("cmath", "cot", 6, CHINESE_STOP, extraction.chinese, compare, chinese, "zh"),
    task("cmath", "tir", 0, (), from_text_or_program(extraction.chinese), close, None, "zh"),
    task("mgsm_zh", "cot", 6, CHINESE_STOP, extraction.chinese, compare, chinese, "zh"),
    task("mgsm_zh", "tir", 0, (), from_text_or_program(extraction.chinese), close, None, "zh"),
)
