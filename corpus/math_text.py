r"""Formulas delimited in a page's text: forum tags, bare environments, AsciiMath and delimiters of the page's own become `\(…\)`.

`\(…\)`, `\[…\]`, `$…$` and `$$…$$` stay as they are, and so does all that stands in code.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from mathpipe.corpus import math_asciimath, math_source
from mathpipe.corpus.math_dom import SCRIPT_CLOSE, SCRIPT_OPEN

CODE_OPEN, CODE_CLOSE = "\ue000", "\ue001"
"""Put around code before the text is taken, where a rule of this module applies."""
CODE = re.compile(f"({CODE_OPEN}[^{CODE_OPEN}]*{CODE_CLOSE})")
TAGGED = re.compile(
    r"\[(i?tex|latex|i?math|dmath|eqn?)(=inline)?\](.{1,4000}?)\[/\1\]|\[;(.{1,1000}?);\]|\$latex\s([^$]{1,1000}?)(?:&\w+=\w+)*\$",
    re.DOTALL | re.IGNORECASE,
)
TAGGED_MARKS = ("[/", ";]", "$latex")
DISPLAY_TAGS = ("tex", "dmath", "eqn", "eq")
ENVIRONMENT = re.compile(
    r"\$\$.{1,4000}?\$\$|\\\[.{1,4000}?\\\]|\\\(.{1,4000}?\\\)|(?<![\\$])\$[^$\n]{1,400}\$|"
    r"\\begin\{((?:equation|align|aligned|alignat|gather|gathered|multline|eqnarray|displaymath|math|split|flalign)\*?)\}.{1,4000}?\\end\{\1\}",
    re.DOTALL,
)
PAIR = re.compile(r"\[\s*([\"'])((?:\\.|(?!\1).)+)\1\s*,\s*([\"'])((?:\\.|(?!\3).)+)\3\s*\]")
CONFIGURED = re.compile(r"\b(inlineMath|displayMath)[\"']?\s*:\s*\[((?:[^\[\]\"']|\[|\]|\"(?:\\.|[^\"])*\"|'(?:\\.|[^'])*')*?\])\s*\]")
ASCII_CONFIGURED = re.compile(r"asciimath2jax\s*:\s*\{.*?delimiters\s*:\s*\[(.*?\])\s*\]", re.DOTALL)
STANDARD = {"$", "$$", r"\(", r"\[", "[tex]", "[itex]", "[math]", "[latex]", "`"}
DECLARES_ASCIIMATH = ("sciiMath", "sciimath", "SCIIMath", "SCIIMATH", "=AM_", "-AM_")
"""In the name of a script, of a MathJax configuration, or in a page's own configuration."""
BACKTICKS = re.compile(r"(?<![`\\])`([^`\n]{1,500})`(?!`)")
LONELY = re.compile(
    r"([A-Za-z]{0,3}\([\w+*/=., -]{1,30}\)|[A-Za-z0-9\u0370-\u03ff\u2100-\u214f]*)"
    f"((?:{SCRIPT_OPEN}[^{SCRIPT_CLOSE}]*{SCRIPT_CLOSE})+)"
)
WORD = re.compile(r"[^\W\d_]{4,}|")
FUNCTIONS = {"sinh", "cosh", "tanh", "sech", "csch", "coth"}


Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]


def rules(text: str, html: str) -> list[Rule]:
    """What to replace in the text of a page (`html` for what the page declares); mostly nothing."""
    found: list[Rule] = []
    if any(mark in text for mark in TAGGED_MARKS) and TAGGED.search(text):
        found.append((TAGGED, _tagged))
    if "lineMath" in html:
        found += [(pattern, functools.partial(_plain, display)) for pattern, display in _configured(html)]
    if "##" in text and "physicsforums" in html:
        found.append((_between("##", "##"), functools.partial(_plain, False)))
    if r"\begin{" in text and ENVIRONMENT.search(text):
        found.append((ENVIRONMENT, _environment))
    if "asciimath2jax" in html:
        found += [(_between(*pair), _ascii) for pair in _pairs(ASCII_CONFIGURED.findall(html)) if pair[0] != "`"]
    if "`" in text and any(mark in html for mark in DECLARES_ASCIIMATH):
        found.append((BACKTICKS, _ascii))
    return found


def delimit(text: str, found: list[Rule]) -> str:
    """The text with every formula in delimiters."""
    pieces = CODE.split(text)
    for number in range(0, len(pieces), 2):
        for pattern, replace in found:
            pieces[number] = pattern.sub(replace, pieces[number])
    return "".join(pieces).replace(CODE_OPEN, "").replace(CODE_CLOSE, "")


def with_scripts(text: str) -> str:
    r"""Sub- and superscripts with the base before them: `x` and `^2` → `\(x^2\)`; after a word, or nothing, they stay bare."""
    return LONELY.sub(_scripted, text) if SCRIPT_OPEN in text else text


def _plain(display: bool, found: re.Match[str]) -> str:
    return math_source.delimited(found.group(1), display)


def _ascii(found: re.Match[str]) -> str:
    return math_source.delimited(math_asciimath.to_tex(found.group(1)))


def _tagged(found: re.Match[str]) -> str:
    tag, inline, forum, reddit, wordpress = found.groups()
    return math_source.delimited(forum or reddit or wordpress, (tag or "").lower() in DISPLAY_TAGS and not inline)


def _environment(found: re.Match[str]) -> str:
    return rf"\[{' '.join(found.group(0).split())}\]" if found.group(1) else found.group(0)


def _pairs(lists: list[str]) -> list[tuple[str, str]]:
    """(left, right) of the pairs of a JavaScript list, escapes resolved."""
    return [(re.sub(r"\\(.)", r"\1", left), re.sub(r"\\(.)", r"\1", right)) for each in lists for _, left, _, right in PAIR.findall(each)]


def _configured(html: str) -> list[tuple[re.Pattern[str], bool]]:
    """Delimiters of a MathJax configuration that are not the usual ones, the display ones first."""
    found = [(kind == "displayMath", pair) for kind, pairs in CONFIGURED.findall(html) for pair in _pairs([pairs])]
    return [(_between(*pair), display) for display, pair in sorted(found, reverse=True) if pair[0] not in STANDARD and len(pair[0]) < 12]


def _between(left: str, right: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(left)}(?=\S)(.{{1,1000}}?){re.escape(right)}", re.DOTALL if len(left) > 1 else 0)


def _scripted(found: re.Match[str]) -> str:
    base, scripts = found.group(1), found.group(2).replace(SCRIPT_OPEN, "").replace(SCRIPT_CLOSE, "")
    if WORD.fullmatch(base) and base not in FUNCTIONS:
        return base + (scripts if not base else re.sub(r"[\^_{}]", "", scripts))
    return rf"\({base}{scripts}\)"
