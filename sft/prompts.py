r"""The one renderer of SFT, GRPO and evaluation: the prompts of DeepSeekMath's published evaluation and the form of answers.

English and Chinese instructions stand in deepseek-ai/DeepSeek-Math, README.md (chain of thought) and evaluation/README.md (tools);
the chat form `User: …\n\nAssistant:` in its README.md. An answer with tools is text, ```python and ```output blocks, one below
the other; generation stops at "```output" and goes on after the block.
"""

from __future__ import annotations

from collections.abc import Iterable

INSTRUCTIONS = {
    ("cot", "en"): "Please reason step by step, and put your final answer within \\boxed{}.",
    ("cot", "zh"): "请通过逐步推理来解答问题，并把最终答案放置于\\boxed{}中。",
    ("tir", "en"): "Please integrate natural language reasoning with programs to solve the problem above, "
    "and put your final answer within \\boxed{}.",
    ("tir", "zh"): "请结合自然语言和Python程序语言来解答问题，并把最终答案放置于\\boxed{}中。",
    ("pot", "en"): "Please write a program that prints the final answer.",
    ("pot", "zh"): "请编写一个程序来输出最终答案。",
}
"""(format, language) → instruction. `cot` and `tir` are the published ones; none is published for `pot`, these are ours."""
FORMATS, LANGUAGES = ("cot", "pot", "tir"), ("en", "zh")
OUTPUT_FENCE = "```output"
"""Generation of a tool-integrated answer stops here; the program's output follows."""


def render(question: str, kind: str = "cot", language: str = "en") -> str:
    """Chat prompt for a question; the answer follows after one space.

    >>> render("1 + 1?")
    'User: 1 + 1?\\nPlease reason step by step, and put your final answer within \\\\boxed{}.\\n\\nAssistant:'
    """
    return f"User: {question}\n{INSTRUCTIONS[kind, language]}\n\nAssistant:"


def render_answer(segments: Iterable[tuple[str, str]]) -> list[tuple[str, bool]]:
    r"""Pieces (text, whether the loss counts) of an answer made of (kind, text) segments: text, code, output.

    What a tool printed is read, not learnt; the fence that asks for it is.

    >>> render_answer([("code", "print(2)"), ("output", "2"), ("text", r"So \boxed{2}.")])
    [(' ```python\nprint(2)\n```\n```output', True), ('\n2\n```\n', False), ('So \\boxed{2}.', True)]
    """
    pieces: list[tuple[str, bool]] = []
    learnt, separator = " ", ""
    for kind, text in segments:
        if kind == "output":
            pieces += [(f"{learnt}{separator}{OUTPUT_FENCE}", True), (f"\n{text}\n```\n", False)]
            learnt, separator = "", ""
            continue
        learnt += separator + (f"```python\n{text}\n```" if kind == "code" else text)
        separator = "\n"
    return [*pieces, (learnt, True)] if learnt else pieces
