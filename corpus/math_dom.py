r"""Formulas of a parsed page, each replaced in the tree by a text node with its delimited LaTeX.

One query finds every element that may hold a formula, in document order, so that the outermost one, which names the source,
comes before what was drawn from it. Nodes are read, then replaced as a whole: no other edit is made to the tree. A selector costs
as much as a search for a substring, so a page is asked only for what its source names (`signs`). Node lists of resiliparse 2
are copied (`[:]`) before they are iterated, since every step of an iteration makes all nodes anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from resiliparse.parse.html import HTMLTree

from mathpipe.corpus import math_asciimath, math_glyphs, math_mathml, math_source

DATA = ("data-latex", "data-tex", "data-katex", "data-equation-content", "data-math", "data-expr", "data-equation", "data-formula",
        "data-entry", "data-original-tex", "data-asciimath", "data-mathml", "data-mml")  # fmt: skip
RENDERED = ("MathJax_Preview", "MathJax_Display", "MathJax", "MathJax_SVG", "MathJax_SVG_Display", "MathJax_CHTML", "mjx-chtml",
            "MJXc-display", "MathJax_MathML", "MathJax_PlainSource")  # fmt: skip
"""What MathJax 2 drew beside the script with the source."""
SOURCES = ("katex-error", "wp-katex-eq", "math", "math-tex", "tex", "latex", "ql-formula", "asciimath", "AM", "texerror", "js-render-math")
"""Classes of elements whose text is the source."""
CLASSES = ("mwe-math-element", "katex-display", "katex", "texhtml", "formula", *RENDERED, *SOURCES)
ELEMENT = re.compile(r"<(img|sup|sub)\b", re.IGNORECASE)
TAGS = {"<math": "math, math-field, mathjax", "<mjx-c": "mjx-container", "tex>": "tex, latex, tex-math", "math/": 'script[type^="math/"]'}
"""What the source of a page contains → the elements to look for."""
CLASS, UNQUOTED_CLASS = re.compile(r'class="([^"]*)"'), re.compile(r"class=([^\"'> ]+)|class='([^'>]*)'")
DATA_NAME = re.compile(r"(data-[a-z-]+)=")
TEX_ENCODINGS = ("application/x-tex", "tex", "latex", "application/x-latex", "text/x-tex")
DELIMITED = re.compile(r"\\\(|\\\[|\$|\\begin\{|`")
DISPLAYED = ".katex-display, .ltx_equation, .ltx_equationgroup, .mwe-math-mathml-display, mjx-container[display=true]"
DISPLAY_CLASS = re.compile(r"display|block|center", re.IGNORECASE)
MATHML_PREFIX = re.compile(r"(</?)(?:m|mml|mathml):(?=[a-z])", re.IGNORECASE)
SCRIPT_OPEN, SCRIPT_CLOSE = "\ue002", "\ue003"
"""Around `^…` and `_…` that stood for `<sup>` and `<sub>` (`math_text.py` gives them their base)."""
PLAIN_SUPERSCRIPT = re.compile(r"\s*(?:st|nd|rd|th|er|re|e|ème|eme|o|a|ª|º|tm|sm|[®™©*†‡§¶#]+|\[.*\]|)\s*", re.IGNORECASE | re.DOTALL)


def class_names(html: str) -> set[str]:
    """Every class that the source of a page names."""
    values = set(CLASS.findall(html)) or {first or second for first, second in UNQUOTED_CLASS.findall(html)}
    return set(" ".join(values).split())


def signs(html: str, classes: set[str]) -> list[str]:
    """Selectors of what may hold a formula in a page."""
    found = sorted({name.lower() for name in ELEMENT.findall(html)})
    found += [selector for mark, selector in TAGS.items() if mark in html]
    found += [f".{name}" for name in classes.intersection(CLASSES)]
    if "ltx_eqn_row" in classes:
        found.append("tr.ltx_eqn_row")
    return found + [f"[{name}]" for name in set(DATA_NAME.findall(html)).intersection(DATA)]


def rewrite(tree: Any, selectors: list[str]) -> None:
    """Replace every formula of the page by text."""
    if tree.body is None or not selectors:
        return
    nodes = tree.body.query_selector_all(", ".join(selectors))[:]
    has_scripts = any(node.tag == "script" for node in nodes)
    gone = None
    for node in nodes:
        if gone is not None and gone.contains(node):  # what it was part of is replaced
            continue
        text = _formula(node, has_scripts)
        if text is not None:
            node.replace_with(tree.create_text_node(text))
            gone = node


def _formula(node: Any, has_scripts: bool) -> str | None:
    """Text instead of an element, or None where it stays."""
    tag, classes = node.tag, set((node.class_name or "").split())
    if tag in BY_TAG:
        return BY_TAG[tag](node)
    if classes & set(RENDERED):
        return "" if has_scripts or "MathJax_Preview" in classes and not (node.text or "").strip() else _drawn(node)
    if classes & {"katex", "katex-display", "mwe-math-element"}:
        return _katex(node)
    if classes & {"texhtml", "formula"}:
        return _inline_html(node)
    if (source := node.getattr("data-mathml") or node.getattr("data-mml")) and "<" in source:
        return of_mathml_source(source)
    if source := node.getattr("data-asciimath"):
        return math_source.delimited(math_asciimath.to_tex(source))
    if source := math_source.of_attributes(node):
        return math_source.delimited(source, _is_display(node))
    if node.closest("pre, code") is not None and "js-render-math" not in classes:  # a listing in the language latex
        return None
    return _text_of(node) if classes & set(SOURCES) else None


def _script(node: Any) -> str | None:
    kind, _, options = (node.getattr("type") or "").lower().partition(";")
    source = node.text or ""
    if "mml" in kind or "mathml" in kind:
        return of_mathml_source(source)
    if "asciimath" in kind:
        source = math_asciimath.to_tex(source)
    return math_source.delimited(source, "display" in options)


def of_mathml_source(source: str) -> str:
    """Delimited LaTeX of MathML that stands in a string."""
    node = _math_in(MATHML_PREFIX.sub(r"\1", source))
    return _mathml(node) if node else ""


def _math_in(source: str) -> Any:
    tree: Any = HTMLTree.parse(source)
    return tree.document.query_selector("math")


def _mathml(node: Any) -> str:
    """Its TeX annotation, else its alternative text, else the presentation converted."""
    return math_source.delimited(_mathml_tex(node), _is_display(node))


def _mathml_tex(node: Any) -> str:
    for annotation in node.query_selector_all("annotation")[:]:
        encoding = (annotation.getattr("encoding") or "").lower()
        if encoding in TEX_ENCODINGS and (annotation.text or "").strip():
            return annotation.text
    alternative = node.getattr("alttext") or node.getattr("data-latex") or node.getattr("data-code") or node.getattr("data-tex")
    return alternative or math_mathml.to_tex(math_mathml.from_node(node))


def _is_display(node: Any) -> bool:
    modes = {node.getattr(name) for name in ("display", "data-display", "data-math-style", "mode")}
    if modes & {"block", "true", "display"}:
        return True
    if node.tag == "math":
        return node.closest(DISPLAYED) is not None
    return bool(node.tag in ("div", "p") or DISPLAY_CLASS.search(node.class_name or ""))


def _katex(node: Any) -> str | None:
    """KaTeX and Wikipedia: MathML beside what is shown; Wikipedia may have only the picture."""
    display = _is_display(node)
    if math := node.query_selector("math"):
        return math_source.delimited(_mathml_tex(math), display or _is_display(math))
    if source := math_source.of_attributes(node):
        return math_source.delimited(source, display)
    if (annotation := node.query_selector("annotation")) and (annotation.text or "").strip():
        return math_source.delimited(annotation.text, display)
    if (image := node.query_selector("img")) and image.getattr("alt"):
        return math_source.delimited(image.getattr("alt"), display or "display" in (image.class_name or ""))
    return None


def _container(node: Any) -> str:
    """MathJax 3 and 4: the source in an attribute, else MathML for screen readers, else what was drawn."""
    display = node.getattr("display") == "true"
    drawn = node.query_selector("mjx-math")
    for holder in (node, drawn):
        if holder and (source := math_source.of_attributes(holder)):
            return math_source.delimited(source, display)
    if math := node.query_selector("math"):
        return math_source.delimited(_mathml_tex(math), display or _is_display(math))
    group = node.query_selector("[data-mml-node=math]")
    if group and (source := group.getattr("data-latex")):
        return math_source.delimited(source, display)
    element = math_glyphs.from_chtml(drawn) if drawn else math_glyphs.from_svg(group) if group else None
    return math_source.delimited(math_mathml.to_tex(element), display) if element else ""


def _drawn(node: Any) -> str | None:
    """MathJax 2 without its scripts: MathML in an attribute or beside the glyphs."""
    display = bool({"MathJax_Display", "MathJax_SVG_Display", "MJXc-display"} & set((node.class_name or "").split()))
    holder = node if node.getattr("data-mathml") else node.query_selector("[data-mathml]")
    source = holder.getattr("data-mathml") if holder else ""
    math = _math_in(source) if "<" in source else node.query_selector("math")
    return math_source.delimited(_mathml_tex(math), display or _is_display(math)) if math else None


def _image(node: Any) -> str | None:
    source = math_source.of_image(node)
    if source and "<math" in source:
        return of_mathml_source(source)
    if (mathml := node.getattr("data-mathml")) and ("«math" in mathml or "<math" in mathml):  # WIRIS writes « for <
        return of_mathml_source(mathml.translate(str.maketrans({"«": "<", "»": ">", "¨": '"', "§": "&"})))
    return math_source.delimited(source, bool(re.search(r"display|block|center$", node.class_name or ""))) if source else None


def _element(node: Any) -> str | None:
    """`<tex>`, `<latex>`, `<math-field>` and their like."""
    source = math_source.of_attributes(node) or node.getattr("value") or node.text or ""
    return math_source.delimited(source, _is_display(node)) if source.strip() and not node.query_selector("math, script") else None


def _text_of(node: Any) -> str | None:
    """An element of a class for formulas whose text is the bare source; text with delimiters of its own stays."""
    text, classes = (node.text or "").strip(), set((node.class_name or "").split())
    if classes & {"asciimath", "AM"}:
        return math_source.delimited(math_asciimath.to_tex(text.strip("`")))
    if not text or node.query_selector("*:not(br):not(em):not(wbr)") or DELIMITED.search(text) and "wp-katex-eq" not in classes:
        return None
    is_inline = node.tag == "span" and len(text) <= 30 or bool({"wp-katex-eq", "math-tex", "js-render-math"} & classes)
    return math_source.delimited(text, _is_display(node)) if math_source.COMMAND.search(text) or is_inline else None


def _inline_html(node: Any) -> str | None:
    """A formula written in HTML, as `<i>x</i><sup>2</sup>` (Wikipedia's `texhtml`, docutils' `formula`)."""
    if node.query_selector("math, mjx-container, script, img, svg, table, p, .katex, .MathJax"):
        return None
    tex = "" if DELIMITED.search(node.text or "") else " ".join(_inline_tex(node).split())
    return math_source.delimited(tex, node.tag == "div") if tex and len(tex) < 400 else None


def _inline_tex(node: Any) -> str:
    if not hasattr(node, "attrs"):
        return "".join(_symbol(char) for char in node.value or "")
    classes = set((node.class_name or "").split())
    if classes & {"sfrac", "frac"} and (top := node.query_selector(".num")) and (bottom := node.query_selector(".den")):
        return rf"\frac{{{_inline_tex(top)}}}{{{_inline_tex(bottom)}}}"
    inside = "".join(_inline_tex(child) for child in node.child_nodes[:])
    if node.tag in ("sup", "sub"):
        return ("^" if node.tag == "sup" else "_") + f"{{{inside.strip()}}}"
    return rf"\mathbf{{{inside}}}" if node.tag in ("b", "strong") and inside.strip() else inside


def _symbol(char: str) -> str:
    tex = " " if char.isspace() else math_mathml.character(char)
    return f"{tex} " if tex[:1] == "\\" and tex[-1:].isalpha() else tex


def _sup_or_sub(node: Any) -> str | None:
    """A marked script; notes, ordinals and code stay text, markers of notes go."""
    text = (node.text or "").strip()
    if node.closest("pre, code") is not None or node.query_selector("sup, sub, img, math, script, span"):
        return None
    if node.query_selector("a") or re.search(r"reference|footnote|cite", node.class_name or ""):
        return "" if node.tag == "sup" and len(text) <= 4 else None
    if PLAIN_SUPERSCRIPT.fullmatch(text) or len(text) > 30 or (node.parent and DELIMITED.search((node.parent.text or "")[:2000])):
        return None if not text or PLAIN_SUPERSCRIPT.fullmatch(text) or len(text) > 30 else _marked(node, text)
    return SCRIPT_OPEN + _marked(node, text) + SCRIPT_CLOSE


def _marked(node: Any, text: str) -> str:
    tex = "".join(_symbol(char) for char in text).strip()
    return ("^" if node.tag == "sup" else "_") + (tex if len(tex) == 1 else f"{{{tex}}}")


def _equation_row(row: Any) -> None:
    """LaTeXML splits one equation over cells: they become one formula, in the first cell that has a part; its number goes."""
    formulas = row.query_selector_all("math")[:]
    for number in row.query_selector_all(".ltx_tag")[:]:
        number.decompose()
    if len(formulas) > 1:
        tex = " ".join(re.sub(r"^\\displaystyle\s*", "", math_source.clean(_mathml_tex(formula))[0]) for formula in formulas)
        formulas[0].set_attribute("alttext", tex)
        for annotation in formulas[0].query_selector_all("annotation")[:]:
            annotation.decompose()
        for formula in formulas[1:]:
            formula.decompose()


BY_TAG: dict[str, Callable[[Any], str | None]] = {
    "script": _script, "math": _mathml, "mjx-container": _container, "img": _image, "sup": _sup_or_sub, "sub": _sup_or_sub,
    "tr": _equation_row, **dict.fromkeys(("tex", "latex", "tex-math", "math-field", "mathjax"), _element),
}  # fmt: skip
