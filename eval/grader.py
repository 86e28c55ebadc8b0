r"""The grader: is the final answer of a completion right? One function for the training reward and for the reported metric.

The answer is the content of the last `\boxed{}` with balanced braces, at most `MAX_ANSWER_CHARS` long. A verdict carries its
reason: correct, wrong, no_answer (nothing boxed), parse_error (not mathematics, or no reference to compare with), timeout.

Numbers are compared as exact fractions, without sympy: a GRPO step grades a thousand of them in milliseconds. Units, degrees
and `x =` are left out, and two numbers are no answer to one. Everything else goes to math-verify in a process of its own,
which is killed and replaced when it exceeds its time (a signal.alarm works in the main thread only, and never inside a long
native call).

Where the reference is a number, an unevaluated expression is wrong (`\boxed{7+5}` is no answer to "how much is 7+5"):
otherwise the reward would teach to leave the arithmetic to the grader.
"""

from __future__ import annotations

import atexit
import json
import re
import select
import subprocess
import sys
import threading
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Literal

MAX_ANSWER_CHARS = 256
START_TIMEOUT_S = 120.0
MEMORY_BYTES = 4 * 2**30
"""Address space of the checking process."""

Reason = Literal["correct", "wrong", "no_answer", "parse_error", "timeout"]

Spellings = tuple[tuple[re.Pattern[str], str], ...]
"""Pattern → what is written in its place."""


def spellings(*pairs: tuple[str, str]) -> Spellings:
    """A table for `respelled`."""
    return tuple((re.compile(pattern), spelling) for pattern, spelling in pairs)


def respelled(text: str, table: Spellings) -> str:
    """The text after all replacements, in their order."""
    for pattern, spelling in table:
        text = pattern.sub(spelling, text)
    return text


BOX = r"\boxed{"
INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
NUMBER = re.compile(rf"([+-]?)({INTEGER}(?:\.[0-9]*)?|\.[0-9]+)")
SOME_NUMBER = re.compile(rf"{INTEGER}(?:\.[0-9]+)?")
FRACTION = re.compile(r"([+-]?)(?:([0-9]*)\\frac\{(-?[0-9]+)\}\{([0-9]+)\}|([0-9]+)/([0-9]+))")
"""Behind a whole number it is a mixed number."""
OPERATOR = re.compile(r"[+*^!/]|(?<=.)-|\\(?!approx|quad)[A-Za-z]")
"""What an evaluated number has not."""
WRAPPER = re.compile(r"\\(?:text|mbox|math)(?:bf|it|rm|sf|tt|normal)?\{([^{}]*)\}")
POWER = r"(?:\^\{?-?[0-9]\}?)?"
UNIT = re.compile(
    rf"(?<=[0-9.}}])(?:(?:[\s~/]|\\[ ,;!]|\\cdot)*\\(?:text|mbox|mathrm)\{{(?!\s*[ap]\.)(?:[^{{}}0-9]|\^[0-9])*\}}{POWER})+\.?$"
)
"""Words in text mode behind a number, such as `\\text{ cm}^2`, but for a.m. and p.m."""
WORDS = re.compile(rf"(?<=[0-9.}}])\s+(?:[A-Za-z]{{2}}|[A-Zgms](?![A-Za-z])|[a-z]/)[A-Za-z /]*{POWER}\.?$")
"""Plain words, or a letter that is a unit, behind a number, such as ` dollars`, ` m/s` or ` V`."""
ASSIGNED = re.compile(r"^[A-Za-z](?:_\{?[A-Za-z0-9]\}?)?=")
SPELLINGS = spellings(
    (WRAPPER.pattern, r"\1"),
    (r"\\[dtc]frac", r"\\frac"),
    (r"\\frac\s*([0-9])", r"\\frac{\1}"),
    (r"(\\frac\{[^{}]*\})\s*([0-9])", r"\1{\2}"),
    (r"([0-9])\s+([0-9]+)/([0-9]+)$", r"\1\\frac{\2}{\3}"),
    (r"\^\{?\\circ\}?|°", ""),
    (r"\{,\}", ","),
    (r"\\%", "%"),
)
"""Spelling → the one it is compared in: of `\\tfrac12`, `1 1/2`, degrees, `1{,}000`, per cent."""
IGNORED = re.compile(r"\\[!,;: ]|\\left(?![a-z])|\\right(?![a-z])|\\\$|\$|~|\s+")


@dataclass(frozen=True)
class Verdict:
    """What the grader found."""

    reason: Reason
    extracted: str | None
    """The boxed text, or None."""

    @property
    def correct(self) -> bool:
        """Whether the answer is right."""
        return self.reason == "correct"


def extract_boxed(text: str) -> str | None:
    r"""Content of the last balanced `\boxed{}`; None when there is none, it is empty, or it is too long.

    >>> extract_boxed(r"first \boxed{1}, then \boxed{\frac{1}{2}}, then \boxed{3")
    '\\frac{1}{2}'
    """
    start = text.rfind(BOX)
    while start >= 0:
        inside = text[start + len(BOX) : start + len(BOX) + MAX_ANSWER_CHARS + 1]
        end = _closing_brace(inside)
        if end is not None:
            return inside[:end].strip() or None
        start = text.rfind(BOX, 0, start)
    return None


def _closing_brace(text: str) -> int | None:
    """Position of the brace that closes one opened before `text`; escaped braces do not count."""
    depth, escaped = 1, False
    for position, character in enumerate(text):
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character in "{}":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return position
    return None


def normalise(text: str) -> str:
    r"""The text in one spelling (SPELLINGS), without spacing, dollar signs, `\left`, `\right`, `\text{…}` wrappers and a final full stop.

    >>> normalise(r"\$ 1,234."), normalise(r"1\tfrac12"), normalise(r"\text{ 90}^\circ")
    ('1,234', '1\\frac{1}{2}', '90')
    """
    return IGNORED.sub("", respelled(text, SPELLINGS)).removesuffix(".")


def without_unit(text: str) -> str:
    r"""The text without dollar signs around it and a unit behind it.

    >>> without_unit(r"$45 \text{ units}^2$"), without_unit(r"\$18")
    ('45', '18')
    """
    return UNIT.sub("", text.replace(r"\$", "").strip("$ \n"))


def as_number(text: str) -> Fraction | None:
    r"""The value of a plain integer, decimal, proper fraction or mixed number in normalised text, else None.

    A fraction that is a whole number (`36/2`) is an unevaluated division, not a number.

    >>> as_number("1,234.50"), as_number(r"-\frac{3}{4}"), as_number(r"1\frac{1}{2}"), as_number("36/2"), as_number("7+5")
    (Fraction(2469, 2), Fraction(-3, 4), Fraction(3, 2), None, None)
    """
    if match := NUMBER.fullmatch(text):
        value = Fraction(match[2].replace(",", ""))
    elif match := FRACTION.fullmatch(text):
        whole, top, bottom = int(match[2] or 0), int(match[3] or match[5]), int(match[4] or match[6])
        if bottom == 0 or top % bottom == 0 or (match[2] and not 0 < top < bottom):
            return None
        value = whole + Fraction(top, bottom)
    else:
        return None
    return -value if match[1] == "-" else value


class Grader:
    """Grades completions; owns the process that compares what is not a plain number. Safe to use from several threads."""

    def __init__(self, timeout_s: float = 5.0) -> None:
        self.timeout_s = timeout_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def grade(self, completion: str, answer: str) -> Verdict:
        """Verdict on the boxed answer of a completion against the reference answer."""
        extracted = extract_boxed(completion)
        return Verdict("no_answer", None) if extracted is None else Verdict(self.compare(extracted, answer), extracted)

    def compare(self, found: str, answer: str) -> Reason:
        """Whether two answers are the same mathematics. A missing one is equal to nothing, not even to another missing one."""
        bare, wanted = without_unit(found), without_unit(answer)
        mine, reference = normalise(bare), normalise(wanted)
        reference_number = as_number(reference.removesuffix("%"))
        if reference_number is not None:
            mine = ASSIGNED.sub("", normalise(WORDS.sub("", WRAPPER.sub(r"\1", bare))))
        if not mine:
            return "no_answer"
        if not reference:
            return "parse_error"
        if mine == reference or (len(mine) > 2 and mine.isalpha() and mine.lower() == reference.lower()):
            return "correct"
        if reference_number is not None:
            mine_number = as_number(mine.removesuffix("%"))
            if mine_number is not None:
                scale = 100 if reference.endswith("%") and not mine.endswith("%") else 1  # 7 % may be 7 or 0.07
                return "correct" if reference_number in (mine_number, scale * mine_number) else "wrong"
            if OPERATOR.search(mine) or len(SOME_NUMBER.findall(mine)) > 1:
                return "wrong"
        return self._ask(found, answer)

    def _ask(self, found: str, answer: str) -> Reason:
        with self._lock:
            process = self._process = self._process or start_worker()
            assert process.stdin and process.stdout
            try:
                process.stdin.write(json.dumps([found, answer]) + "\n")
                process.stdin.flush()
                line = _read_line(process, self.timeout_s)
            except BrokenPipeError:  # the worker died between two answers
                line = ""
            if not line:  # out of time, or out of memory
                self._stop()
                return "timeout"
            return json.loads(line)

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def close(self) -> None:
        """End the checking process; the next comparison starts another."""
        with self._lock:
            self._stop()


@cache
def shared_grader() -> Grader:
    """The grader of this process, closed at its end."""
    grader = Grader()
    atexit.register(grader.close)
    return grader


def grade(completion: str, answer: str) -> Verdict:
    r"""Verdict on one completion, by this process's grader.

    >>> grade(r"3 + 4 = 7, so \boxed{7}", "7.0").reason
    'correct'
    """
    return shared_grader().grade(completion, answer)


def start_worker() -> subprocess.Popen[str]:
    """A checking process that is ready to answer.

    Raises:
        RuntimeError: it does not start.
    """
    command = [sys.executable, "-m", "mathpipe.eval.grader"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if _read_line(process, START_TIMEOUT_S) != "ready\n":
        process.kill()
        raise RuntimeError(f"the answer checker does not start; try it by hand: {' '.join(command)}")
    return process


def _read_line(process: subprocess.Popen[str], timeout_s: float) -> str:
    """The one line the worker owes us, or an empty string when the time is over or the worker has died."""
    assert process.stdout
    ready, _, _ = select.select([process.stdout], [], [], timeout_s)
    return process.stdout.readline() if ready else ""


def same_mathematics(found: str, answer: str) -> Reason:
    """math-verify's opinion, without any time limit: call it in a process that can be killed."""
    from math_verify import parse, verify

    gold, target = (parse(f"${text.replace('$', '')}$", parsing_timeout=None, fallback_mode="no_fallback") for text in (answer, found))
    if not gold or not target:
        return "parse_error"
    return "correct" if verify(gold, target, timeout_seconds=None) else "wrong"


def serve() -> None:
    """Answer `[found, answer]` lines on standard input with a reason each, until it closes."""
    import logging
    import resource

    logging.disable(logging.ERROR)  # math-verify reports every answer it cannot read
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    same_mathematics("x+1", "1+x")  # imports and parser tables before the first clock runs
    print("ready", flush=True)
    for line in sys.stdin:
        found, answer = json.loads(line)
        print(json.dumps(same_mathematics(found, answer)), flush=True)


if __name__ == "__main__":
    serve()
