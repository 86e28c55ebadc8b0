r"""One web page to text in which mathematics stays delimited LaTeX: `\(…\)` in a line, `\[…\]` on its own.

Every kind of formula becomes a text node of the parsed page (`math_dom.py`), boilerplate goes from it, resiliparse writes the
text, and what the text itself delimits in other ways is rewritten (`math_text.py`).
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urljoin

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree

from mathpipe.corpus import boilerplate, math_dom, math_text

RISKY = re.compile(r"[\\\[$`#@;]")
"""What code must contain to be mistaken for a formula."""
MIN_CHARS, MIN_FRAC = 100, 0.2
"""What is left of a page, if it is shorter than this and a smaller share of it: then the page is kept whole (an index)."""


def html_to_text(html: str) -> str:
    r"""Text of a page without its boilerplate, formulas as delimited LaTeX.

    >>> html_to_text('<main><p>Area <script type="math/tex">a^2</script>.</p></main>')
    'Area \\(a^2\\).'
    """
    if ":math" in html:
        html = math_dom.MATHML_PREFIX.sub(r"\1", html)
    classes = math_dom.class_names(html)
    text = _text(html, classes, without_boilerplate=True)
    if len(text) < MIN_CHARS:
        whole = _text(html, classes, without_boilerplate=False)
        text = whole if len(text) < MIN_FRAC * len(whole) else text
    return text


def _text(html: str, classes: set[str], without_boilerplate: bool) -> str:
    tree = HTMLTree.parse(html)
    if without_boilerplate:
        boilerplate.remove(tree, classes)
    math_dom.rewrite(tree, math_dom.signs(html, classes))
    skipped = [f".{name}" for name in sorted(boilerplate.SMALL & classes)] or None
    text = _write(tree, skipped)
    if rules := math_text.rules(text, html):
        if tree.body and _protect_code(tree):
            text = _write(tree, skipped)
        text = math_text.delimit(text, rules)
    return math_text.with_scripts(text).strip()


def _write(tree: Any, skipped: list[str] | None) -> str:
    return extract_plain_text(tree, preserve_formatting=True, main_content=False, alt_texts=False, skip_elements=skipped)


def _protect_code(tree: Any) -> bool:
    """Mark the begin and the end of code; returns whether there is any."""
    listings = tree.body.query_selector_all("pre, :not(pre) > code, :not(pre) > tt, :not(pre) > samp")[:]
    for node in listings:
        if not RISKY.search(node.text or ""):
            continue
        node.prepend(tree.create_text_node(math_text.CODE_OPEN))
        node.append(tree.create_text_node(math_text.CODE_CLOSE))
    return bool(listings)


def hyperlinks(html: str, base_url: str) -> list[str]:
    """Absolute http(s) targets of a page's links, in order, each once, without fragments."""
    tree: Any = HTMLTree.parse(html)
    base = tree.document.query_selector("base[href]")
    root = urljoin(base_url, base.getattr("href").strip()) if base else base_url
    found: dict[str, None] = {}
    for node in tree.document.query_selector_all("a[href], area[href]")[:]:
        try:
            target = urljoin(root, node.getattr("href").strip()).partition("#")[0]
        except ValueError:  # such as http://[
            continue
        if target.lower().startswith(("http://", "https://")):
            found[target] = None
    return list(found)
