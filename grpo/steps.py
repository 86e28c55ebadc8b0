r"""Steps of a chain of thought: where they end, and whether their arithmetic is exact.

A step is a line with something in it (Math-Shepherd cuts at line breaks too); it ends with the token that holds the line break, the
last one with the last token of the response, EOS included. So every token belongs to one step. An empty response is one step.

The checker reads equalities between written numbers, `3*4=12` as well as `12 + 5 = 17` inside a sentence or LaTeX, and evaluates both
sides as fractions. What it cannot read (variables, percentages, words between numbers) is no evidence either way. A decimal after
`=` may be the rounded value; whole numbers must be exact. Division by zero is wrong.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from mathpipe.eval.grader import BOX

BLANK = " \t\r"
MAX_POWER_BITS, MAX_DIGITS, MAX_DEPTH = 1024, 40, 50
"""Larger powers, longer numbers and deeper brackets are not read: checking stays cheap whatever was generated."""

PLAIN = [
    (re.compile(r"^\s*(?:[-*•]\s+|\d+[.)]\s+)"), ""),  # bullet, number of an item
    (re.compile(r"\\(?:text|mathrm)\s*\{[^{}]*\}|\\[,;:! ()\[\]\\]|\\left(?![a-z])|\\right(?![a-z])|\\?[$€£]|(?<!\d)\*\*|\*\*(?!\d)"), " "),
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"((\1)/(\2))"),
    (re.compile(r"\\(?:times|cdot)(?![a-z])|×|·"), "*"),
    (re.compile(r"\\div(?![a-z])|÷"), "/"),
    (re.compile("−|–"), "-"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\^\{([^{}]*)\}"), r"^(\1)"),
    (re.compile(r"(?<=\d)(?:(?:\s+[A-Za-z]{2,}){1,3}\s*(?=[-+*/])|\s+[A-Za-z]{2,}\s*(?==))"), " "),  # `12 apples + 5 apples =`
]
"""What is written as plain arithmetic, in order."""
NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
TOKEN = re.compile(
    rf"(?P<word>[A-Za-z_\\]+|\d+:\d+)|(?P<number>{NUMBER})|(?P<sign>[-+*/^()])|(?P<equals>(?<![<>!=:])=(?![=>]))|(?P<other>\S)"
)
OPERATORS = ("+", "-", "*", "/", "^")
UNREADABLE_AFTER = ("%", "{", "!", "R", "r", "remainder")


class Unreadable(ValueError):
    """No arithmetic of written numbers."""


@dataclass(frozen=True)
class Token:
    """A piece of a line: word, number, sign, equals or other."""

    kind: str
    text: str
    spaced: bool
    """Whether white space stands before it."""


def split_steps(text: str) -> list[str]:
    r"""The steps of a response, at least one.

    >>> split_steps("3*4=12\n\n\\boxed{12}\n")
    ['3*4=12', '\\boxed{12}']
    """
    return [line for line in text.split("\n") if line.strip(BLANK)] or [""]


def step_ends(tokenizer: Any, ids: Sequence[int]) -> tuple[int, ...]:
    r"""Places in `ids` of each step's last token, as many as `split_steps` of the decoded text has.

    >>> step_ends(tokenizer, bpe.encode(tokenizer, "3*4=12\n12+5=17"))   # doctest: +SKIP
    (6, 13)
    """
    ends: list[int] = []
    begun = False
    for place, piece in enumerate(tokenizer.batch_decode([[token] for token in ids], skip_special_tokens=True)):
        *closed, rest = piece.split("\n")
        for line in closed:
            if begun or line.strip(BLANK):
                ends.append(place)
            begun = False
        begun = begun or bool(rest.strip(BLANK))
    kept = ends if begun else ends[:-1]
    return (*kept, len(ids) - 1)


def score_steps(text: str, answer: float) -> list[float]:
    r"""1 (right), 0 (wrong) or NaN (nothing to check) for each step of a response.

    The step with the last `\boxed` is as right as the final answer; where there is none, the last step is wrong: it had to end with
    one. A step that repeats an earlier one word for word is NaN: writing 1+1=2 ten times earns nothing.

    Args:
        answer: 1, 0 or NaN for the final answer.

    >>> score_steps("3*4=12\n12+5=18\n\\boxed{18}", 0.0)
    [1.0, 0.0, 0.0]
    """
    lines = [line.strip() for line in split_steps(text)]
    scores = [math.nan if line in lines[:number] else check_line(line) for number, line in enumerate(lines)]
    boxed = [number for number, line in enumerate(lines) if BOX in line]
    scores[boxed[-1] if boxed else -1] = answer if boxed else 0.0
    return scores


def check_steps(text: str) -> list[float]:
    r"""Whether the arithmetic of each step is exact: 1, 0, or NaN for a step without any.

    >>> check_steps("First, 12 + 5 = 17 apples.\nThat is half: 17/2 = 8.\nDone")
    [1.0, 0.0, nan]
    """
    return [check_line(line) for line in split_steps(text)]


def check_line(line: str) -> float:
    r"""1 where every readable equality of a line holds, 0 where one does not, NaN where there is none.

    >>> check_line(r"so \(\frac{1}{2} \times 10 = 5\) and 10/3 = 3.33"), check_line("3*4 = 12 + 5 = 17"), check_line("x + 5 = 17")
    (1.0, 0.0, nan)
    """
    for pattern, replacement in PLAIN:
        line = pattern.sub(replacement, line)
    matches = list(TOKEN.finditer(line))
    tokens = [Token(m.lastgroup or "", m[0], m.start() > 0 and line[m.start() - 1].isspace()) for m in matches]
    found = [_holds(tokens, place) for place, token in enumerate(tokens) if token.kind == "equals"]
    known = [one for one in found if one is not None]
    return float(all(known)) if known else math.nan


def _holds(tokens: Sequence[Token], equals: int) -> bool | None:
    """Whether the two sides of the sign at a place are equal; None where they cannot be read or nothing is computed."""
    try:
        left, right = _left(tokens[:equals]), _right(tokens[equals + 1 :])
        if not any(token.text in OPERATORS and place for side in (left, right) for place, token in enumerate(side)):
            return None
        a, b = Expression(left).value(), Expression(right).value()
    except Unreadable:
        return None
    except ZeroDivisionError:
        return False
    digits = len(right[0].text.partition(".")[2]) if len(right) == 1 else 0
    return a == b or (digits > 0 and abs(a - b) <= Fraction(1, 2 * 10**digits))


def _right(tokens: Sequence[Token]) -> list[Token]:
    """The expression that tokens begin with."""
    run: list[Token] = []
    depth = 0
    for token in tokens:
        depth += {"(": 1, ")": -1}.get(token.text, 0)
        if token.kind not in ("number", "sign") or depth < 0 or (run and _apart(run[-1], token)):
            if token.text in UNREADABLE_AFTER or (token.kind == "word" and not token.spaced):
                raise Unreadable
            break
        run.append(token)
    return run


def _left(tokens: Sequence[Token]) -> list[Token]:
    """The expression that tokens end with."""
    run: list[Token] = []
    depth = 0
    before: Token | None = None
    for token in reversed(tokens):
        depth += {")": 1, "(": -1}.get(token.text, 0)
        if token.kind not in ("number", "sign") or depth < 0 or (run and _apart(token, run[0])):
            before = token
            break
        run.insert(0, token)
    if not run or (before and before.kind == "word" and not run[0].spaced):
        raise Unreadable
    is_minus = run[0].text == "-" and len(run) > 1 and not run[1].spaced  # a sign of the number, not an operator after something
    if run[0].text in "+*/^" or (run[0].text == "-" and before and before.kind in ("word", "other") and not (is_minus and run[0].spaced)):
        raise Unreadable
    return run


def _apart(one: Token, following: Token) -> bool:
    """Whether two tokens stand side by side without an operator: `5 3`, `5 (`, `) 3`; `5(` is a product."""
    ends = one.kind == "number" or one.text == ")"
    return ends and (following.kind == "number" or (following.text == "(" and following.spaced))


class Expression:
    """Recursive descent over numbers, + - * / ^ and brackets."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.texts = [token.text for token in tokens]
        self.place = 0
        self.depth = 0

    def value(self) -> Fraction:
        """Raises: Unreadable, ZeroDivisionError."""
        found = self._sum()
        if self.place < len(self.texts):
            raise Unreadable
        return found

    def _next(self, *wanted: str) -> str:
        if self.place < len(self.texts) and self.texts[self.place] in wanted:
            self.place += 1
            return self.texts[self.place - 1]
        return ""

    def _sum(self) -> Fraction:
        found = self._product()
        while sign := self._next("+", "-"):
            found += self._product() * (1 if sign == "+" else -1)
        return found

    def _product(self) -> Fraction:
        found = self._signed()
        while True:
            if self._next("*") or self.texts[self.place : self.place + 1] == ["("]:
                found *= self._signed()
            elif self._next("/"):
                found /= self._signed()
            else:
                return found

    def _signed(self) -> Fraction:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable
        found = -self._signed() if self._next("-") else self._power()
        self.depth -= 1
        return found

    def _power(self) -> Fraction:
        base = self._atom()
        if not self._next("^"):
            return base
        exponent = self._signed()
        size = max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent)
        if exponent.denominator > 1 or size > MAX_POWER_BITS:
            raise Unreadable
        return base ** int(exponent)

    def _atom(self) -> Fraction:
        if self.place == len(self.texts):
            raise Unreadable
        text = self.texts[self.place]
        self.place += 1
        if text == "(":
            found = self._sum()
            if not self._next(")"):
                raise Unreadable
        elif text[0] in "0123456789." and len(text) <= MAX_DIGITS:
            found = Fraction(text.replace(",", ""))
        else:
            raise Unreadable
        return found
