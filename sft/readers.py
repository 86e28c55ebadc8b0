r"""Readers: a record of a public set, in exactly the form in which it is published, becomes an `Example`.

| reader | set, on the hub unless said otherwise | fields |
|---|---|---|
| metamath | meta-math/MetaMathQA | query, response ("… The answer is: X"), type, original_question |
| mathinstruct | TIGER-Lab/MathInstruct | source ("data/CoT/…", "data/PoT/…"), instruction, output |
| numina | AI-MO/NuminaMath-CoT and -TIR | problem, solution (\boxed{}; ```python and ```output blocks), messages |
| tora | microsoft/ToRA on GitHub, data/tora/*.jsonl | messages (user, assistant with blocks or without), gt, id |
| gsm8k | openai/gsm8k | question, answer (<<48/2=24>> annotations, "#### 24" at the end) |
| math | EleutherAI/hendrycks_math | problem, solution (\boxed{}) |

What ends with "The answer is: X", "The answer is X" or "#### X" is rewritten to end with "The answer is: \boxed{X}" (or without
the colon), because the prompt asks for a box. A record without a final answer (a proof, free talk) is rejected: nothing could be
put into the box. MathInstruct states no answers for its programs; what the program prints is the answer (verify.py). "Let's write
a program …" at the end of its questions is left out: our prompt says it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mathpipe.sft.schema import Example, Segment

BLOCK = re.compile(r"```(python|output)[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)
FENCE = re.compile(r"```(?:py|output)", re.IGNORECASE)
CALCULATOR = re.compile(r"<<[^<>\n]*>>")
ANSWER_IS = re.compile(r"\bthe answer is:?\s*(?P<answer>(?:(?!the answer is)[^\n]){1,200}?)\.?\s*$", re.IGNORECASE)
HASHES = re.compile(r"\s*^####[ \t]*(?P<answer>[^\n]{1,200}?)\s*(?:\Z|$(?=\n[^\n]*answer is))", re.MULTILINE)
DOLLARS = re.compile(r"\$([^$]+)\$")
ASKS_FOR_PROGRAM = re.compile(r"\s*(?:Let's|Please)\s[^.?!]*\b(?:program|Python|code)\b[^.?!]*[.!]?\s*$")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
MIN_CHINESE_FRAC = 0.1
"""Of a question's characters, for it to be Chinese: formulas and numbers are the rest."""
BOX = r"\boxed{"
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
"""A brace, or what a backslash makes something else."""


class Unusable(Exception):
    """The record does not have the form or the content of an example; the message is the reason of its reject."""


@dataclass(frozen=True)
class Reader:
    """Fields that a record must have, and the function that reads it."""

    fields: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Example]


def text_of(record: Mapping[str, Any], field: str) -> str:
    """A field's text without white space around it.

    Raises:
        Unusable: it is missing, no text, empty, or nothing that a file can hold.
    """
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        raise Unusable(f"no text in {field}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise Unusable(f"half a character (an unpaired surrogate) in {field}")
    return value.replace("\r\n", "\n").strip()


def language_of(question: str) -> str:
    """`zh` or `en`.

    >>> language_of("小明有3个苹果"), language_of("What is 2+3?")
    ('zh', 'en')
    """
    return "zh" if len(CHINESE.findall(question)) >= MIN_CHINESE_FRAC * len(question) else "en"


def boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{}` with balanced braces, or None.

    >>> boxed(r"so \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    _, box, rest = text.rpartition(BOX)
    depth = 1
    for sign in BRACE.finditer(rest if box else ""):
        depth += {"{": 1, "}": -1}.get(sign[0], 0)
        if depth == 0:
            return rest[: sign.start()].strip() or None
    return None


def box_answer(text: str) -> tuple[str, str]:
    r"""(text that ends with a box, answer) of a solution that states its answer in words or after ####, or boxes it.

    >>> box_answer("3 + 4 = 7\n#### 7\nThe answer is: 7")
    ('3 + 4 = 7\nThe answer is: \\boxed{7}', '7')

    Raises:
        Unusable: it states none, or one with unbalanced braces.
    """
    text = HASHES.sub(lambda match: "" if match.end() < len(text) else f"\nThe answer is: {match['answer']}", text).lstrip()
    stated = ANSWER_IS.search(text)
    if stated and BOX not in stated["answer"]:
        answer = DOLLARS.fullmatch(stated["answer"])
        inside = answer[1].strip() if answer else stated["answer"]
        text = f"{text[: stated.start('answer')]}\\boxed{{{inside}}}{text[stated.end('answer') :]}"
        if boxed(text) != inside:
            raise Unusable("braces of the final answer are not balanced")
        return text, inside
    found = boxed(text)
    if found is None:
        raise Unusable("no final answer")
    return text, found


def split_blocks(text: str) -> tuple[Segment, ...]:
    r"""Text, code and output segments of an answer with fenced blocks.

    >>> [s.kind for s in split_blocks("Sum:\n```python\nprint(2)\n```\n```output\n2\n```\nSo \\boxed{2}.")]
    ['text', 'code', 'output', 'text']
    """
    segments, end = [], 0
    for block in BLOCK.finditer(text):
        segments += [Segment("text", text[end : block.start()].strip()), Segment("code" if block[1] == "python" else "output", block[2])]
        end = block.end()
    segments.append(Segment("text", text[end:].strip()))
    return tuple(s for s in segments if s.text or s.kind == "output")


def solution(question: str, text: str, source: str, answer: str | None = None) -> Example:
    """Chain of thought, or tool-integrated where the text has program blocks.

    Raises:
        Unusable: no final answer, a block that does not end, no output after a program, or output of no program.
    """
    segments = split_blocks(text)
    kinds = [s.kind for s in segments]
    if any(s.kind == "text" and FENCE.search(s.text) for s in segments):
        raise Unusable("program block that does not end, or of another form")
    if "code" not in kinds and "output" not in kinds:
        text, found = box_answer(text)
        return Example(question, (Segment("text", text),), answer or found, "cot", source, language_of(question))
    if any(kind == "output" and (place == 0 or kinds[place - 1] != "code") for place, kind in enumerate(kinds)):
        raise Unusable("output without a program")
    if any(kind == "code" and kinds[place + 1 : place + 2] != ["output"] for place, kind in enumerate(kinds)):
        raise Unusable("program without output")
    if kinds[-1] != "text":
        raise Unusable("no final answer")
    last, found = box_answer(segments[-1].text)
    return Example(question, (*segments[:-1], Segment("text", last)), answer or found, "tir", source, language_of(question))


def metamath(record: Mapping[str, Any]) -> Example:
    """A question that was rephrased or turned round, with a generated solution."""
    return solution(text_of(record, "query"), text_of(record, "response"), "metamath")


def mathinstruct(record: Mapping[str, Any]) -> Example:
    """`data/PoT/…`: a program alone; `data/CoT/…`: a solution."""
    question, output = text_of(record, "instruction"), text_of(record, "output")
    if "/PoT/" not in text_of(record, "source"):
        return solution(question, output, "mathinstruct")
    question = ASKS_FOR_PROGRAM.sub("", question)
    if not question:
        raise Unusable("no question")
    program = next((s.text for s in split_blocks(output) if s.kind == "code"), output)
    return Example(question, (Segment("code", program),), "", "pot", "mathinstruct", language_of(question))


def numina(record: Mapping[str, Any]) -> Example:
    """A problem with a solution, with or without program blocks."""
    return solution(text_of(record, "problem"), text_of(record, "solution"), "numina")


def tora(record: Mapping[str, Any]) -> Example:
    """A question and a tool-integrated answer, as chat messages; `gt` is the right answer."""
    messages = record["messages"]
    if not isinstance(messages, list) or [m.get("role") if isinstance(m, Mapping) else None for m in messages] != ["user", "assistant"]:
        raise Unusable("messages are not one of the user and one of the assistant")
    return solution(text_of(messages[0], "content"), text_of(messages[1], "content"), "tora", text_of(record, "gt"))


def gsm8k(record: Mapping[str, Any]) -> Example:
    """A worked solution; the annotations for a calculator are left out."""
    return solution(text_of(record, "question"), CALCULATOR.sub("", text_of(record, "answer")), "gsm8k")


def competition_math(record: Mapping[str, Any]) -> Example:
    """A problem of MATH; copies of the set that keep the answers only have no solution to learn from."""
    return solution(text_of(record, "problem"), text_of(record, "solution"), "math")


READERS = {
    "metamath": Reader(("query", "response"), metamath),
    "mathinstruct": Reader(("source", "instruction", "output"), mathinstruct),
    "numina": Reader(("problem", "solution", "messages"), numina),
    "tora": Reader(("messages", "gt"), tora),
    "gsm8k": Reader(("question", "answer"), gsm8k),
    "math": Reader(("problem",), competition_math),
}
"""Reader's name (the same as config.READERS) → how it reads."""
