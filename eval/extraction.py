r"""How an answer is read from a completion: the last balanced `\boxed{}` (grader.py), then what the form of a task says.

Every function returns the answer or None. Nothing falls back on "the last number": a completion that does not say which number
is its answer has none. (The published scripts do so; it counts guesses as answers.)
"""

from __future__ import annotations

import re

from mathpipe.eval.grader import MAX_ANSWER_CHARS, WRAPPER, extract_boxed, respelled, spellings

SENTENCE = re.compile(r"The answer is (-?[0-9.,]+)")
"""How the worked examples of Wei et al. (arXiv 2201.11903) end."""
FINAL = re.compile(r"[Ff]inal [Aa]nswer is:?\s*(.*?)\.?\s*(?:I hope it is correct|\n|\Z)")
"""How those of Lewkowycz et al. (arXiv 2206.14858) end."""
DELIMITER = re.compile(r"^(?:\$+|\\[(\[])\s*|\s*(?:\$+|\\[)\]])$")
CHINESE = re.compile(r"答案是\s*[:：]?\s*([^\n]*)")
CHINESE_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?")
CHINESE_WORDS = re.compile(r"^[\u4e00-\u9fff：，、 ]+|[\u4e00-\u9fff，、 ]+$")
"""Before and after a formula."""
LETTER = re.compile(r"\(?([A-D])(?:[).:].*)?", re.DOTALL)
"""An option, alone or with its text."""
OPTION = re.compile(r"[Aa]nswer is:?\s*(?:option |choice )?[$*]*\(?([A-D])(?![A-Za-z])")
OUTPUT = re.compile(r"```output\n(.*?)\n?```", re.DOTALL)
SYMPY = spellings(
    (r"\*\*\(([^()]*)\)", r"^{\1}"),
    (r"\*\*(-?\w+)", r"^{\1}"),
    (r"\bsqrt\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"\bexp\(([^()]*)\)", r"e^{\1}"),
    (r"\b(pi|cos|sin|tan|log)\b", r"\\\1"),
    (r"\boo\b", r"\\infty"),
    (r"\bI\b", "i"),
    (r"\*", " "),
)
"""How SymPy prints → how it is written by hand."""
PROGRAM = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


def number(completion: str) -> str | None:
    """The box, else the number after the first "The answer is", as lm-eval's strict match reads it.

    >>> number("So 5 + 4 = 9. The answer is 1,009. The answer is 3."), number("It is 9.")
    ('1,009', None)
    """
    found = SENTENCE.search(completion)
    return extract_boxed(completion) or (found[1].rstrip(".,") or None if found else None)


def formula(completion: str) -> str | None:
    r"""The box, else what follows "The final answer is" up to "I hope it is correct" or the end of the line.

    >>> formula("Final Answer: The final answer is $[2,5)$. I hope it is correct."), formula(r"The final answer is \[x+1\].")
    ('[2,5)', 'x+1')
    """
    found = FINAL.search(completion)
    return extract_boxed(completion) or (short(DELIMITER.sub("", found[1].strip())) if found else None)


def chinese(completion: str) -> str | None:
    r"""The box, else what follows the last 答案是; of text with Chinese words its last number.

    >>> chinese("99-90=9。所以答案是：9页。"), chinese(r"\boxed{1200元}"), chinese(r"\boxed{\frac{1}{2}\text{米}}")
    ('9', '1200', '\\frac{1}{2}')
    """
    found = CHINESE.findall(completion)
    text = WRAPPER.sub(r"\1", extract_boxed(completion) or (found[-1].strip() if found else ""))
    text = CHINESE_WORDS.sub("", text.strip("。$ ").replace("\\%", "%"))
    if re.search(r"[\u4e00-\u9fff]", text):
        return next(reversed(CHINESE_NUMBER.findall(text)), None)
    return short(text)


def letter(completion: str) -> str | None:
    r"""The last box where it holds an option and not a value, else the option after "the answer is".

    >>> letter(r"so $\boxed{[2,5)}$. Final Answer: The final answer is (B). I hope"), letter(r"\boxed{\text{(C)}}"), letter("B")
    ('B', 'C', None)
    """
    box = WRAPPER.sub(r"\1", extract_boxed(completion) or "").strip("$ ")
    if found := LETTER.fullmatch(box):
        return found[1]
    options = OPTION.findall(WRAPPER.sub(r"\1", completion))
    return options[-1] if options else None


def program(completion: str) -> str | None:
    r"""The first block of code, whose end the model may have left out.

    >>> program("I compute.\n```python\nprint(2)\n```\nDone."), program("no code")
    ('print(2)', None)
    """
    found = PROGRAM.search(completion)
    return found[1] if found and found[1].strip() else None


def printed(completion: str) -> str | None:
    r"""The last line that the last program printed, in LaTeX where it is SymPy's.

    >>> printed("```python\nprint(1)\n```\n```output\n1\n```"), printed("```output\n2*sqrt(3)*I + x**2\n```")
    ('1', '2 \\sqrt{3} i + x^{2}')
    """
    blocks = OUTPUT.findall(completion)
    lines = blocks[-1].strip().splitlines() if blocks else []
    return short(respelled(lines[-1].strip(), SYMPY)) if lines else None


def short(text: str) -> str | None:
    """The text, or None where it is empty or too long to be an answer."""
    return text if 0 < len(text) <= MAX_ANSWER_CHARS else None
