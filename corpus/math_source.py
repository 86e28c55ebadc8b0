r"""LaTeX as pages carry it outside their text: in attributes, in the addresses of images, in alternative texts."""

from __future__ import annotations

import re
from html import unescape
from typing import Any
from urllib.parse import unquote, unquote_plus

_PLAIN = r"[\w\s()+\-*/<>|,.']{0,60}"
LOOKS_TEX = re.compile(rf"\\[a-zA-Z]{{2,}}|\\[,;:!{{}}|\\ ]|[\^_]\s*[{{\w\\]|^\s*(?:\$|\\\(|\\\[)|^{_PLAIN}=[=\s]*{_PLAIN}$")
COMMAND = re.compile(r"\\(?:[a-zA-Z]{2,}|[,;:!{}|\\([])|[\^_]\{|^\s*\$.+\$\s*$", re.DOTALL)
"""What hardly stands in a text that is no LaTeX."""
CDATA = re.compile(r"(?:%\s*)?<!\[CDATA\[|(?:%\s*)?\]\]>")
COMMENT = re.compile(r"(?<!\\)%[^\n]*(?:\n|$)")
WRAPPERS = (
    (re.compile(r"\$\$(.*)\$\$", re.DOTALL), True), (re.compile(r"\\\[(.*)\\\]", re.DOTALL), True),
    (re.compile(r"\\\((.*)\\\)", re.DOTALL), False), (re.compile(r"\$(?:latex\s)?([^$]*)\$", re.DOTALL), False),
    (re.compile(r"\[(?:i?tex|latex|math)\](.*)\[/(?:i?tex|latex|math)\]", re.DOTALL), False),
)  # fmt: skip
"""Delimiters around a whole source, and whether they display it."""
STYLE = re.compile(r"\{\\(?:displaystyle|textstyle)\b(.*)\}", re.DOTALL)
SERVICE_SETTINGS = re.compile(r"\\(?:inline|dpi\{\d*\}|bg_\w+|fn_\w+|(?:opaque|large|Large|LARGE|small|tiny|huge|Huge)(?![A-Za-z]))\s*")
SERVICES = re.compile(
    r"codecogs\.com|latex\.php|tex\.php|mimetex|mathtex|cht=tx|quicklatex|texify|mathurl|upmath\.me|s2cms\.ru|latex2png|texrender|"
    r"math\.vercel\.app|sciweavers|/equation_images/|/latexrender/|/mathtran|render/math|zhihu\.com/equation|\.latex\?",
    re.IGNORECASE,
)  # fmt: skip
PARAMETER = re.compile(r"(?:^|[?&])(?:latex|tex|chl|eq|equation|formula|math|from|expression|code)=([^&]*)", re.IGNORECASE)
PATH = re.compile(r"/((?:[^/?]|/(?=[^/]*%5C))*(?:%5C|\\)[^?]*)(?:\?|$)", re.IGNORECASE)
MATH_CLASS = re.compile(r"latex|tex\b|math|equation|formula|asciimath|ql-img|mwe-|\beqn?\b", re.IGNORECASE)
ATTRIBUTES = ("data-latex", "data-tex", "data-katex", "data-equation-content", "data-math", "data-expr", "data-equation", "data-formula",
              "data-entry", "data-original-tex", "data-tex-source", "tex", "latex", "data-value")  # fmt: skip
SURE = {"data-latex", "data-tex", "data-katex", "data-equation-content", "data-original-tex", "data-tex-source"}
FLAGS = {"", "true", "false", "0", "1", "inline", "display", "block", "yes", "no", "on", "off", "none", "auto", "tex", "latex", "math"}


def clean(tex: str) -> tuple[str, bool]:
    r"""(source without comments, delimiters and `{\displaystyle …}`; whether its delimiters display it).

    >>> clean("{\\displaystyle a^{2}}"), clean("$$x$$")
    (('a^{2}', False), ('x', True))
    """
    tex, display = COMMENT.sub("\n", CDATA.sub("", tex)).strip(), False
    for pattern, displays in WRAPPERS:
        if found := pattern.fullmatch(tex):
            tex, display = found.group(1).strip(), displays
            break
    if (found := STYLE.fullmatch(tex)) and _is_balanced(found.group(1)):
        tex = found.group(1)
    return " ".join(tex.split()), display or tex.startswith((r"\begin{equation", r"\begin{align", r"\begin{gather", r"\begin{eqnarray"))


def _is_balanced(tex: str) -> bool:
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", tex):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def delimited(tex: str, display: bool = False) -> str:
    r"""`\(tex\)` or `\[tex\]`; empty without a source."""
    tex, displays = clean(tex)
    if not tex:
        return ""
    return rf"\[{tex}\]" if display or displays else rf"\({tex}\)"


def of_attributes(node: Any) -> str:
    """LaTeX in an attribute of an element, or empty: a name that means LaTeX, or a value that looks it on an element of mathematics."""
    for name in ATTRIBUTES:
        value = node.getattr(name)
        if value is None or value.strip().lower() in FLAGS:
            continue
        value = unescape(unquote(value) if "%5C" in value or "%7B" in value else value)
        if name in SURE or COMMAND.search(value) or MATH_CLASS.search(node.class_name or ""):
            return value
    return ""


def of_image(node: Any) -> str:
    """LaTeX of a picture of a formula, or empty: its attributes, then its address, then its alternative text."""
    if source := of_attributes(node):
        return source
    address = next(filter(None, (node.getattr(name) for name in ("data-src", "data-lazy-src", "data-original", "src"))), "")
    alternative = (node.getattr("alt") or node.getattr("title") or "").strip()
    if any(mark in address for mark in "?\\%") and (source := of_address(address)):
        return source
    if not alternative or alternative.lower() in FLAGS:
        return ""
    if MATH_CLASS.search(node.class_name or "") or SERVICES.search(address[:300]):
        return alternative if LOOKS_TEX.search(alternative) or len(alternative) <= 8 else ""
    return alternative if COMMAND.search(alternative) and ":\\" not in alternative else ""


def of_address(address: str) -> str:
    r"""LaTeX in the address of an image service.

    >>> of_address("https://latex.codecogs.com/gif.latex?%5Cinline%20%5Cfrac%7Ba%7D%7Bb%7D&space;+c")
    '\\frac{a}{b} +c'
    """
    if address.startswith("data:"):
        return ""
    is_service, has_tex = bool(SERVICES.search(address)), "%5c" in address.lower() or "\\" in address
    if not (is_service or has_tex):
        return ""
    _, _, query = address.partition("?")
    if parameter := PARAMETER.search(query):
        return _decoded(unquote_plus(parameter.group(1)))
    if query and (is_service or COMMAND.search(unquote(query))):
        tex = _decoded(unquote(query.replace("&space;", " ").replace("&plus;", "+")))
        return tex if has_tex or LOOKS_TEX.search(tex) or len(tex) <= 8 else ""
    path = PATH.search(address.partition("://")[2])
    tex = _decoded(unquote(path.group(1))) if path else ""
    tex = re.sub(r"^.*?(?=\\)", "", tex) if "/" in tex.partition("\\")[0] else tex
    return tex if COMMAND.search(tex) else ""


def _decoded(tex: str) -> str:
    tex = unquote(tex) if "%5C" in tex or "%7B" in tex else tex
    return SERVICE_SETTINGS.sub("", re.sub(r"&(?:bg|fg|s|c|w|h)=\w*", "", unescape(tex))).strip()
