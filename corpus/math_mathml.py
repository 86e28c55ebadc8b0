r"""Presentation MathML to LaTeX: `<msup><mi>x</mi><mn>2</mn></msup>` → `x^{2}`.

The structure is translated here; the LaTeX names of characters are those of the library mathml-to-latex, whose own converter
writes tables without an environment, `|` as `\left|\right.` and raises on HTML's MathML (`CHARACTERS` corrects its tables).
Formulas come as `Element` trees, so that what MathJax draws (`math_glyphs.py`) is translated by the same functions.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Element:
    """One MathML element: tag without prefix, its own text, attributes, children."""

    tag: str
    text: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Element] = field(default_factory=list)


LEAVES = {"mi", "mn", "mo", "mtext", "ms", "mspace"}
ROWS = {"math", "mrow", "mstyle", "mpadded", "mtd", "merror", "texatom"}
IGNORED = {"annotation", "annotation-xml", "mprescripts", "none", "maligngroup", "malignmark", "mphantom", "script", "style"}
CHARACTERS = {
    "{": r"\{", "}": r"\}", "%": r"\%", "#": r"\#", "&": r"\&", "$": r"\$", "_": r"\_", "\\": r"\backslash", "~": r"\sim",
    "|": "|", "‖": r"\|", "∥": r"\|", "∣": r"\mid", "−": "-", "–": "-", "∓": r"\mp", "∼": r"\sim", "↦": r"\mapsto", "⋯": r"\cdots",
    "∘": r"\circ", "⊕": r"\oplus", "⊗": r"\otimes", "⊙": r"\odot", "∗": "*", "⋆": r"\star", "′": "'", "″": "''", "‴": "'''", "·": r"\cdot",
    "⇒": r"\Rightarrow", "⇔": r"\Leftrightarrow", "⟹": r"\implies", "⟺": r"\iff", "⟶": r"\longrightarrow", "≔": ":=", "∖": r"\setminus",
    "ϕ": r"\phi", "φ": r"\varphi", "ϵ": r"\epsilon", "ε": r"\varepsilon", "ϑ": r"\vartheta", "ς": r"\varsigma", "ϱ": r"\varrho",
    "ℓ": r"\ell", "ℜ": r"\Re", "ℑ": r"\Im", "℘": r"\wp", "ℵ": r"\aleph", "…": r"\ldots", "⋮": r"\vdots", "⋱": r"\ddots", "√": r"\surd",
    "¬": r"\neg", "∧": r"\wedge", "∨": r"\vee", "⌊": r"\lfloor", "⌋": r"\rfloor", "⌈": r"\lceil", "⌉": r"\rceil", "⟨": r"\langle",
    "⟩": r"\rangle", "〈": r"\langle", "〉": r"\rangle", "⋃": r"\bigcup", "⋂": r"\bigcap", "⨁": r"\bigoplus", "⨂": r"\bigotimes",
    "÷": r"\div", "°": r"^\circ", "⊥": r"\perp", "⊤": r"\top", "⊢": r"\vdash", "⊨": r"\models", "⁎": "*", "ħ": r"\hbar", "ı": r"\imath",
    "⩽": r"\leqslant", "⩾": r"\geqslant", "≪": r"\ll", "≫": r"\gg", "△": r"\triangle", "□": r"\square", "≜": r"\triangleq",
    "∬": r"\iint", "∭": r"\iiint", "∮": r"\oint", "⊊": r"\subsetneq", "∤": r"\nmid", "∄": r"\nexists", "∠": r"\angle",
    "\u2061": "", "\u2062": "", "\u2063": "", "\u2064": "", "\u200b": "", "\u00a0": r"\ ",
}  # fmt: skip
FUNCTIONS = frozenset(re.findall(r"\w+", """
    arccos arcsin arctan arg cos cosh cot coth csc deg det dim exp gcd hom inf ker lg lim liminf limsup ln log max min Pr sec sin sinh
    sup tan tanh"""))  # fmt: skip
LIMITS = frozenset(re.findall(r"\\\w+", r"""
    \lim \liminf \limsup \max \min \sup \inf \det \gcd \Pr \sum \prod \coprod \bigcup \bigcap \bigoplus \bigotimes \int \oint \iint
    \iiint \bigvee \bigwedge \underbrace \overbrace"""))  # fmt: skip
VARIANTS = {
    "bold": "mathbf", "double-struck": "mathbb", "script": "mathcal", "fraktur": "mathfrak", "sans-serif": "mathsf",
    "monospace": "mathtt", "bold-italic": "boldsymbol", "normal": "mathrm", "-tex-calligraphic": "mathcal",
}  # fmt: skip
OVER = {
    "^": "hat", "ˆ": "hat", "~": "tilde", "˜": "tilde", "¯": "bar", "‾": "bar", "―": "bar", "ˉ": "bar", "_": "bar", "-": "bar", "−": "bar",
    "→": "vec", "⃗": "vec", "˙": "dot", ".": "dot", "⋅": "dot", "¨": "ddot", "⋯": "dddot", "⏞": "overbrace", "︷": "overbrace",
    "˘": "breve", "ˇ": "check", "´": "acute", "`": "grave", "˚": "mathring", "⟶": "overrightarrow", "←": "overleftarrow",
}  # fmt: skip
UNDER = {"⏟": "underbrace", "︸": "underbrace", "_": "underline", "―": "underline", "¯": "underline", "‾": "underline", "̲": "underline"}
WIDE = {"bar": "overline", "hat": "widehat", "tilde": "widetilde", "vec": "overrightarrow"}
FENCES = {"(": ")", "[": "]", "{": "}", "|": "|", "‖": "‖", "⟨": "⟩", "⌊": "⌋", "⌈": "⌉", "∥": "∥"}
MATRICES = {"(": "pmatrix", "[": "bmatrix", "{": "Bmatrix", "|": "vmatrix", "‖": "Vmatrix", "∥": "Vmatrix"}
ENCLOSED = {"top": "overline", "bottom": "underline", "box": "boxed", "updiagonalstrike": "cancel", "downdiagonalstrike": "bcancel",
            "radical": "sqrt", "roundedbox": "boxed", "actuarial": "overline"}  # fmt: skip
TALL = {"mfrac", "mtable", "munderover", "munder", "mover", "msqrt", "mroot"}
NO_LINE = ("0", "0px", "0pt", "0em")
EQUATION_NUMBER = re.compile(r"\(?\s*[\d.]+\s*\)?")


def from_node(node: Any) -> Element:
    """The `Element` of a node of a parsed page."""
    tag = node.tag.rpartition(":")[2]
    attributes = {name.lower(): node.getattr(name) or "" for name in node.attrs}
    if tag in LEAVES:
        return Element(tag, node.text or "", attributes)
    return Element(tag, "", attributes, [from_node(child) for child in node.children[:] if child.tag.rpartition(":")[2] not in IGNORED])


def to_tex(formula: Element) -> str:
    """LaTeX of a formula.

    >>> x, two = Element("mi", "x"), Element("mn", "2")
    >>> to_tex(Element("math", children=[Element("msup", children=[x, two])]))
    'x^{2}'
    """
    return re.sub(r"\s+", " ", _tex(formula)).strip()


def _tex(element: Element) -> str:
    tag, children = element.tag, element.children
    if tag in LEAVES:
        return _leaf(element)
    if tag in ("semantics", "maction"):
        return _tex(children[0]) if children else ""
    if tag == "mfenced":
        return _fenced(element)
    if tag in STRUCTURES and len(children) == STRUCTURES[tag][0]:
        return STRUCTURES[tag][1](element, *children)
    if tag == "msqrt":
        return rf"\sqrt{{{_row(children)}}}"
    if tag == "mmultiscripts" and children:
        return _tex(children[0]) + _pairs(children[1:])
    if tag == "menclose":
        command = next((ENCLOSED[name] for name in element.attributes.get("notation", "").split() if name in ENCLOSED), "")
        return rf"\{command}{{{_row(children)}}}" if command else _row(children)
    if tag == "mtable":
        return _table(element, "aligned" if _is_aligned(element) else "matrix")
    if tag == "math" and len(children) == 1 and children[0].tag in ROWS:
        return _tex(Element("math", "", element.attributes, children[0].children))
    if tag == "math" and len(children) == 1 and children[0].tag == "mtable":
        return _table(children[0], "aligned")
    return _row(children)


def _leaf(element: Element) -> str:
    text = " ".join(element.text.split()) if element.text.strip("\u00a0 \n\t") else element.text.strip("\n\t ")
    if element.tag == "mspace":
        width = re.match(r"([\d.]+)em", element.attributes.get("width", ""))
        return r"\quad" if width and float(width.group(1)) >= 1 else ""
    if element.tag in ("mtext", "ms"):
        text = element.text.replace("\u00a0", " ")
        escaped = re.sub(r"([%&#$_])", r"\\\1", text)
        return rf"\text{{{escaped}}}" if text.strip() else r"\ " if text else ""
    if text in FUNCTIONS:
        return f"\\{text}"
    variant = VARIANTS.get(element.attributes.get("mathvariant", ""))
    if element.tag == "mi" and variant and text.isascii() and text.isalnum():
        return rf"\{variant}{{{text}}}" if variant != "mathrm" or len(text) == 1 else text
    tex = " ".join(filter(None, map(character, text))) if not text.isascii() or len(text) == 1 else "".join(map(character, text))
    return rf"\{variant}{{{tex}}}" if variant in ("mathbf", "boldsymbol") and tex else tex


@functools.cache
def character(char: str) -> str:
    r"""LaTeX of one character: `≤` → `\leq`, `𝐱` → `\mathbf{x}`, `𝑥` → `x`."""
    from mathml_to_latex.syntax import all_math_operators_by_glyph, all_math_symbols_by_glyph

    if char in CHARACTERS:
        return CHARACTERS[char]
    if char.isascii():
        return char
    name, plain = unicodedata.name(char, ""), unicodedata.normalize("NFKC", char)
    styles = [style for style in ("DOUBLE-STRUCK", "FRAKTUR", "SCRIPT", "BOLD", "SANS-SERIF", "MONOSPACE") if f" {style}" in f" {name}"]
    if styles and len(plain) == 1 and plain != char and plain.isalnum():
        style = VARIANTS[styles[0].lower()]
        return rf"\{style}{{{character(plain)}}}"
    if name.startswith("MATHEMATICAL") and len(plain) == 1:
        return character(plain)
    return all_math_operators_by_glyph.get(char) or all_math_symbols_by_glyph.get(char) or char


def _row(children: list[Element]) -> str:
    """Elements side by side; tall ones stretch the fences around them."""
    parts: list[str] = []
    number = 0
    while number < len(children):
        tex, width = _environment(children[number : number + 3]) or (_tex(children[number]), 1)
        parts.append(tex)
        number += width
    first, last = _mo(children, 0), _mo(children, len(children) - 1)
    if len(parts) > 2 and first in FENCES and FENCES[first] == last and any(child.tag in TALL for child in children[1:-1]):
        parts[0], parts[-1] = rf"\left{parts[0]}", rf"\right{parts[-1]}"
    return " ".join(filter(None, parts))


def _environment(elements: list[Element]) -> tuple[str, int] | None:
    """(LaTeX, number of elements used) of a fenced table or of a fenced fraction without line."""
    opening, closing = _mo(elements, 0), _mo(elements, 2)
    if opening not in FENCES or len(elements) < 2:
        return None
    inner = _only(elements[1])
    if inner.tag == "mtable" and closing == FENCES[opening] and opening in MATRICES:
        return _table(inner, MATRICES[opening]), 3
    if inner.tag == "mtable" and opening == "{":
        return _table(inner, "cases"), 3 if closing == "" else 2
    if inner.tag == "mfrac" and inner.attributes.get("linethickness") in NO_LINE and (opening, closing) == ("(", ")"):
        top, bottom = map(_tex, inner.children)
        return rf"\binom{{{top}}}{{{bottom}}}", 3
    return None


def _mo(children: list[Element], number: int) -> str | None:
    """The operator at that place, or None."""
    element = _only(children[number]) if 0 <= number < len(children) else None
    return element.text.strip() if element and element.tag == "mo" else None


def _only(element: Element) -> Element:
    """What stands in rows of one."""
    while element.tag in ROWS and len(element.children) == 1:
        element = element.children[0]
    return element


def _base(element: Element) -> str:
    tex, inner = _tex(element), _only(element)
    return tex if inner.tag in LEAVES and " " not in tex else f"{{{tex}}}"


def _script(mark: str, element: Element) -> str:
    tex = _tex(element)
    if mark == "^" and re.fullmatch(r"[' ]+", tex):
        return tex.replace(" ", "")
    return f"{mark}{{{tex.removeprefix('^')}}}" if tex else ""


def _fraction(element: Element, top: Element, bottom: Element) -> str:
    if element.attributes.get("linethickness") in NO_LINE:
        return rf"\genfrac{{}}{{}}{{0pt}}{{}}{{{_tex(top)}}}{{{_tex(bottom)}}}"
    return rf"\frac{{{_tex(top)}}}{{{_tex(bottom)}}}"


def _accent(element: Element, base: Element, mark: Element, commands: dict[str, str], script: str, stack: str) -> str:
    """A mark over or under: an accent, a limit, or a stack."""
    inner, tex, glyph = _only(base), _tex(base), _only(mark).text.strip()
    command = commands.get(glyph) if _only(mark).tag in ("mo", "mi", "mtext") else None
    if command:
        return rf"\{command if len(tex) == 1 or tex.startswith(chr(92)) and inner.tag in LEAVES else WIDE.get(command, command)}{{{tex}}}"
    if tex.split("{")[0].split("_")[0].strip() in LIMITS or inner.tag == "mi" and len(inner.text.strip()) > 1:
        return tex + _script(script, mark)
    if tex in (r"\rightarrow", r"\longrightarrow") and script == "^":
        return rf"\xrightarrow{{{_tex(mark)}}}"
    return rf"\{stack}{{{_tex(mark)}}}{{{tex}}}"


def _pairs(scripts: list[Element]) -> str:
    """Tensor indices after the base: sub, sup, sub, sup, …"""
    return "".join(_script("_^"[number % 2], script) for number, script in enumerate(scripts))


def _fenced(element: Element) -> str:
    opening, closing = element.attributes.get("open", "("), element.attributes.get("close", ")")
    separator = (element.attributes.get("separators", ",").strip() or "")[:1]
    row: list[Element] = []
    for child in element.children:
        row += [Element("mo", separator), child] if row and separator else [child]
    return _row([*([Element("mo", opening)] if opening else []), *row, *([Element("mo", closing)] if closing else [])])


def _is_aligned(table: Element) -> bool:
    return table.attributes.get("displaystyle") == "true" or {"right", "left"} <= set(table.attributes.get("columnalign", "").split())


def _table(table: Element, env: str) -> str:
    """Rows with `&`; one row of one cell needs no environment; automatic equation numbers go, other labels become `\\tag`."""
    lines, tag = [], ""
    for row in table.children:
        cells = [_tex(cell) for cell in row.children]
        if row.tag == "mlabeledtr" and cells:
            label = re.sub(r"\\text|[{} ()]", "", cells.pop(0))
            tag = "" if EQUATION_NUMBER.fullmatch(label) or not label else rf" \tag{{{label}}}"
        lines.append((cells, tag))
        tag = ""
    if env == "aligned" and len(lines) == 1:
        return " ".join(lines[0][0]) + lines[0][1]
    body = r" \\ ".join(" & ".join(cells) + tag for cells, tag in lines)
    return rf"\begin{{{env}}} {body} \end{{{env}}}"


STRUCTURES: dict[str, tuple[int, Any]] = {
    "mfrac": (2, _fraction),
    "mroot": (2, lambda _, base, index: rf"\sqrt[{_tex(index)}]{{{_tex(base)}}}"),
    "msup": (2, lambda _, base, sup: _base(base) + _script("^", sup)),
    "msub": (2, lambda _, base, sub: _base(base) + _script("_", sub)),
    "msubsup": (3, lambda _, base, sub, sup: _base(base) + _script("_", sub) + _script("^", sup)),
    "munderover": (3, lambda _, base, sub, sup: _base(base) + _script("_", sub) + _script("^", sup)),
    "mover": (2, lambda element, base, mark: _accent(element, base, mark, OVER, "^", "overset")),
    "munder": (2, lambda element, base, mark: _accent(element, base, mark, UNDER, "_", "underset")),
}
"""Tag → number of children, and how they become LaTeX."""
