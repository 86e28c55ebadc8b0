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

ALWAYS = "nav, footer, header, [role=navigation], [role=contentinfo]"
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
    r"newsletter\w*|subscribe\w*|comment-?(?:form|respond)|respond|copyright|license-?footer|edit-?(?:this-?)?page|editsection|"
    r"post-?(?:meta|tags|share)|noprint|printfooter|catlinks|hatnote|"
    r"back-?to-?top|clearfooter|toplang|bottomlang|siteinfo|language-?(?:switcher|selector))",
    re.IGNORECASE,
)
"""A class or id that names boilerplate, from its first to its last letter."""
ANCHORS = {"headerlink", "anchorlink", "anchor-link", "permalink", "mw-editsection", "backlink"}
"""Classes of the small links beside headings; a page has many, so they are left to the writer of the text."""
MAX_FRAC = 0.5
"""What holds more than this share of the page's text is the page, whatever its name."""
MIN_LINKS, MAX_CHARS_A_NAMED_LINK = 2, 60
"""… unless it is little but links: so many, with so little text for each."""
NUM_EDGE_BLOCKS, MAX_CHARS, MAX_CHARS_A_LINK = 4, 1500, 30
"""At each edge so many blocks are looked at; one that is so short, with so little text for each link, goes whatever its name."""


@functools.lru_cache(maxsize=100_000)
def is_boilerplate(name: str) -> bool:
    """Whether a class or an id names boilerplate.

    >>> is_boilerplate("page-sidebar"), is_boilerplate("navigable-text")
    (True, False)
    """
    return name.isascii() and NAME.fullmatch(name) is not None


def remove(tree: HTMLTree, html: str, classes: set[str]) -> None:
    """Take the boilerplate out of a page (`classes`: those that its source names)."""
    body = tree.body
    if body is None:
        return
    selectors = [ALWAYS, *(f".{name}" for name in classes if is_boilerplate(name))]
    selectors += [f"#{name}" for name in set(ID.findall(html)) if is_boilerplate(name)]
    num_chars = len(body.text or "")
    dropped: list[Any] = []
    for node in body.query_selector_all(", ".join(selectors))[:]:
        if dropped and dropped[-1].contains(node):
            continue
        length = len(node.text or "")
        if node.tag == "header" and _heads_the_text(node) or length > MAX_CHARS and node.query_selector("article, main"):
            continue
        if length <= MAX_FRAC * num_chars or _is_links(node, MAX_CHARS_A_NAMED_LINK):
            dropped.append(node)
    for node in dropped:
        node.decompose()
    for node in [block for block in _edge(body, num_chars, 2) if _is_links(block, MAX_CHARS_A_LINK)]:
        node.decompose()


def _heads_the_text(header: Any) -> bool:
    return header.closest("article, main") is not None or header.query_selector("h1") is not None


def _edge(parent: Any, num_chars: int, depth: int) -> Iterator[Any]:
    """The short ones of the first and last blocks of an element, and of those among them that hold most of its text."""
    blocks = []
    for start, step in (("first_element_child", "next_element_sibling"), ("last_element_child", "previous_element_sibling")):
        node, number = getattr(parent, start), 0
        while node is not None and number < NUM_EDGE_BLOCKS:
            if node.tag not in ("script", "style", "link", "hr", "br"):
                blocks.append(node)
                number += 1
            node = getattr(node, step)
    for node in dict.fromkeys(blocks):
        length = len(node.text or "")
        if depth and length > MAX_FRAC * num_chars:
            yield from _edge(node, length, depth - 1)
        elif length <= MAX_CHARS:
            yield node


def _is_links(block: Any, max_chars_a_link: int) -> bool:
    """Little but links, by characters of text for each of them."""
    text = "".join((block.text or "").split())
    if not text or block.tag in ("a", "h1", "h2", "pre"):
        return False
    num_links = len(block.query_selector_all("a[href]"))
    return num_links >= MIN_LINKS and len(text) <= max_chars_a_link * num_links
