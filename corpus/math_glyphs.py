"""What MathJax 3 drew, back to MathML, for pages that carry neither the source nor MathML: characters are named by their code
points (`mjx-c1D465` in CHTML, `data-c="1D465"` in SVG), the structure by its elements.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from mathpipe.corpus.math_mathml import Element

LEAVES = {"mi", "mn", "mo", "mtext", "ms"}
CODE = re.compile(r"(?:mjx-c|-)([0-9A-F]{2,6})(?:$|\s)")
SCRIPTED = {"msub", "msup", "msubsup"}
STACKED = {"munder": ("base", "under"), "mover": ("base", "over"), "munderover": ("base", "under", "over")}
LIMIT_TAGS = {"munder": "msub", "mover": "msup", "munderover": "msubsup"}
"""What limits beside their operator look like."""
ALTITUDE = re.compile(r"translate\(\s*[-\d.]+[\s,]+([-\d.]+)")


def from_chtml(node: Any) -> Element:
    """The formula of an `mjx-math` element."""
    tag = node.tag.removeprefix("mjx-").lower()
    if tag in LEAVES:
        return Element(tag, "".join(_chtml_chars(node)))
    children = [child for child in node.children[:] if child.tag not in ("mjx-assistive-mml", "mjx-labels", "mjx-spacer")]
    if tag == "mfrac":
        return Element(tag, "", {}, [_chtml_row(part) for part in (*_parts(node, {"num"}), *_parts(node, {"den"}))])
    scripts = list(_parts(node, {"script"})) if tag in SCRIPTED | set(STACKED) else []
    if scripts:  # children of the one script are superscript, subscript
        inside = [from_chtml(child) for child in scripts[0].children[:] if child.tag != "mjx-spacer"]
        return Element(LIMIT_TAGS.get(tag, tag), "", {}, [from_chtml(children[0]), *reversed(inside)])
    if tag in STACKED:
        return Element(tag, "", {}, [_chtml_row(part) for name in STACKED[tag] for part in _parts(node, {name})])
    if tag in ("msqrt", "mroot"):
        return Element(tag, "", {}, [_chtml_row(part) for part in (*_parts(node, {"box"}), *(_parts(node, {"root"})))])
    if tag == "mtable":
        rows = [Element("mtr", "", {}, [_chtml_row(cell) for cell in _parts(row, {"mtd"})]) for row in _parts(node, {"mtr", "mlabeledtr"})]
        return Element(tag, "", {}, rows)
    return Element(tag if tag == "math" else "mrow", "", {}, [from_chtml(child) for child in children])


def _chtml_row(node: Any) -> Element:
    return Element("mrow", "", {}, [from_chtml(child) for child in node.children[:] if not child.tag.endswith("strut")])


def _parts(node: Any, names: set[str]) -> Iterator[Any]:
    """The outermost descendants of those names, in order."""
    for child in node.children[:]:
        if child.tag.removeprefix("mjx-") in names:
            yield child
        elif child.tag.removeprefix("mjx-") not in ("num", "den", "script", "base", "under", "over", "mtr", "root") or not names & {"den"}:
            yield from _parts(child, names)


def _chtml_chars(node: Any) -> Iterator[str]:
    for child in node.children[:]:
        code = CODE.search(child.class_name or "")
        if code and child.tag in ("mjx-c", "mjx-stretchy-v", "mjx-stretchy-h"):
            yield chr(int(code.group(1), 16))
        elif child.tag == "mjx-utext":
            yield child.text or ""
        else:
            yield from _chtml_chars(child)


def from_svg(node: Any) -> Element:
    """The formula of the group with `data-mml-node="math"` (or of one below it)."""
    tag = (node.getattr("data-mml-node") or "mrow").lower()
    if tag in LEAVES:
        return Element(tag, "".join(_svg_chars(node)))
    groups = [child for child in node.children[:] if child.tag == "g"]
    if tag in ("msqrt", "mroot"):
        groups = [group for group in groups if group.getattr("data-mml-node") != "mo"]
    if tag in ("msubsup", "munderover") and len(groups) == 3:
        groups[1:] = sorted(groups[1:], key=_altitude)
    return Element(tag, "", {}, [from_svg(group) for group in groups])


def _altitude(group: Any) -> float:
    found = ALTITUDE.search(group.getattr("transform") or "")
    return float(found.group(1)) if found else 0.0


def _svg_chars(node: Any) -> Iterator[str]:
    for child in node.children[:]:
        code = child.getattr("data-c") or next(iter(CODE.findall(child.getattr("xlink:href") or child.getattr("href") or "")), None)
        if code:
            yield chr(int(code, 16))
        elif child.tag == "text":
            yield child.text or ""
        else:
            yield from _svg_chars(child)
