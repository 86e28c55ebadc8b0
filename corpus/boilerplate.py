"""What every page of a site repeats, taken out of the parsed page: navigation, footers, side bars, tables of contents.

By name (elements, roles, classes, ids), and by links: blocks at the edges of the page that are little but links. All other
text stays, wherever it stands: resiliparse's guess at the main content loses paragraphs behind the footer, and of Octave's
manual 204 pages of 254.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

from resiliparse.parse.html import HTMLTree

ALWAYS = "nav, footer, header, [role=navigation], [role=contentinfo], [role=search], [role=banner], a.headerlink, dialog"
ID = re.compile(r" id=[\"']?([\w-]+)")
NAME = re.compile(
    r"(?:(?:main|page|site|top|global|bottom|local|sub|left|right|post|posts|entry|article|prev-?next|section|doc|sphinx|wiki|bd|mw|wy|"
    r"page-body|header|primary|secondary)[-_]*)*"
    r"(?:nav|navbar\w*|navigation\w*|navi|navheader|navfooter|nav-?(?:links?|path|menu|tabs?|header|footer|area|list|wrap\w*|container)|navbox|"
    r"sidebar\w*|side-?(?:bar|nav|menu)\w*|footer\w*|foot|(?:footer|sidebar|navbar|menu|nav)[-_][\w-]+|footer-?(?:text|links|wrap\w*|content)|"
    r"breadcrumbs?\w*|b?crumbs?|menu|menubar|dropdown-menu|tableofcontents?|toc|toctree-wrapper-side|toc-?(?:tree|drawer|container|list|title)|"
    r"table-of-contents|related|related-?(?:posts|articles|links|topics|pages|content)|see-?also-?links|"
    r"share|sharing|share-?(?:buttons?|bar|links)|social\w*|social-?(?:links|share|media|icons)|cookie-?(?:banner|notice|consent|bar)\w*|"
    r"pagination|pager|paging|prev-?next|skip-?(?:link|nav|to-content)\w*|skiplink|screen-reader-text|sr-only|visually-hidden|"
    r"search-?(?:box|form|bar|field|results-?summary)|searchbox|advert\w*|ads?-?(?:container|banner|wrapper|slot)|banner-ad|adsbygoogle|"
    r"newsletter\w*|subscribe\w*|comment-?(?:form|respond)|respond|copyright|license-?footer|edit-?(?:this-?)?page|editsection|mw-editsection|"
    r"headerlink|anchor-?link|permalink|backlink|post-?(?:meta|tags|share)|noprint|printfooter|catlinks|hatnote|"
    r"back-?to-?top|clearfooter|toplang|bottomlang|siteinfo|language-?(?:switcher|selector))",
    re.IGNORECASE,
)
"""A class or id that names boilerplate, from its first to its last letter."""
MAX_FRAC = 0.5
"""What holds more than this share of the page's text is the page, whatever its name."""
NUM_EDGE_BLOCKS, MIN_LINKS, MAX_OTHER_FRAC, MAX_CHARS = 4, 2, 0.35, 1500
"""At each edge so many blocks are looked at; one goes that has so many links, at most this share of other text, and is so short."""


@functools.lru_cache(maxsize=100_000)
def is_boilerplate(name: str) -> bool:
    """Whether a class or an id names boilerplate.

    >>> is_boilerplate("page-sidebar"), is_boilerplate("navigable-text")
    (True, False)
    """
    return NAME.fullmatch(name) is not None and name.isascii()


def remove(tree: HTMLTree, html: str, classes: set[str]) -> None:
    """Take the boilerplate out of a page (`classes`: those that its source names)."""
    body = tree.body
    if body is None:
        return
    simple = re.compile(r"[A-Za-z][\w-]*").fullmatch
    selectors = [ALWAYS, *(f".{name}" for name in classes if is_boilerplate(name) and simple(name))]
    selectors += [f"#{name}" for name in set(ID.findall(html)) if is_boilerplate(name) and simple(name)]
    limit = MAX_FRAC * len(body.text or "")
    dropped: list[Any] = []
    for node in body.query_selector_all(", ".join(selectors))[:]:
        if dropped and dropped[-1].contains(node):
            continue
        if node.tag == "header" and _heads_the_text(node) or node.query_selector("article, main"):
            continue
        if len(node.text or "") <= limit or _is_links(node):
            dropped.append(node)
    for node in dropped:
        node.decompose()
    for node in [block for block in dict.fromkeys(_edge(body, 2)) if len(block.text or "") <= MAX_CHARS and _is_links(block)]:
        node.decompose()


def _heads_the_text(header: Any) -> bool:
    return header.closest("article, main") is not None or header.query_selector("h1") is not None


def _edge(parent: Any, depth: int) -> Iterator[Any]:
    """The first and last blocks of an element, and of the one among them that holds most of its text."""
    blocks = []
    for start, step in (("first_element_child", "next_element_sibling"), ("last_element_child", "previous_element_sibling")):
        node, number = getattr(parent, start), 0
        while node is not None and number < NUM_EDGE_BLOCKS:
            if node.tag not in ("script", "style", "link", "hr", "br"):
                blocks.append(node)
                number += 1
            node = getattr(node, step)
    total = len(parent.text or "")
    for node in blocks:
        if depth and len(node.text or "") > 0.5 * total:
            yield from _edge(node, depth - 1)
            return
    yield from blocks


def _is_links(block: Any) -> bool:
    text = block.text or ""
    if not text.strip() or block.tag in ("a", "h1", "h2", "pre"):
        return False
    links = block.query_selector_all("a[href]")[:]
    if len(links) < MIN_LINKS:
        return False
    linked = sum(_num_chars(link.text or "") for link in links)
    return _num_chars(text) - linked <= MAX_OTHER_FRAC * linked


def _num_chars(text: str) -> int:
    """Characters without white space."""
    return len("".join(text.split()))
