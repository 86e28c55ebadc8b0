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

ALWAYS = "nav, footer, header, [id*=nav], [id*=foot], [id*=side], [id*=menu], [id*=toc]"
"""Every selector costs a walk over the page, so classes are named only where the page has them, ids by what they contain."""
NAME = re.compile(
    r"(?:(?:main|page|site|top|global|bottom|local|sub|left|right|posts?|entry|article|prev-?next|section|doc|sphinx|wiki|bd|mw|vector|wy|"
    r"page-body|header|primary|secondary|mobile|related|see-?also)[-_]*)*"
    r"(?:nav|navbar|navi|navigation|navpath|navheader|navfooter|navbox|sidebar|side-?(?:nav|menu)|footer|foot|breadcrumbs?|b?crumbs?|menu|"
    r"menubar|portlet|dropdown|jump-?link|toc(?!tree-?wrapper)|tableofcontents?|table-of-contents|related|share|sharing|social|cookies?|pagination|pager|paging|prev-?next|skip-?to|search|"
    r"searchbox|adverts?|advertisement|newsletter|subscribe|comment-?(?:form|respond)|copyright|edit-?(?:this-?)?page|(?:post|entry)-?meta|"
    r"catlinks|hatnote|back-?to-?top|toplang|bottomlang|language-?(?:switcher|selector)|noprint)"
    r"(?:[-_]?(?:container|wrapper|wrap|drawer|content|area|inner|bottom|top|left|right|primary|secondary|widgets?|text|links?|column|"
    r"menu|list|section|bar|block|region|panel|box|form|field|tabs?|tree|title|buttons?|media|icons?|banner|notice|consent|posts|articles|"
    r"topics|pages|results?-?summary|to-?content|main|nav|slot|body|lang))*",
    re.IGNORECASE,
)
"""A class or id that names boilerplate, from its first to its last letter."""
SMALL = {"headerlink", "anchorlink", "anchor-link", "permalink", "mw-editsection", "backlink", "visually-hidden", "sr-only", "skip-link",
         "screen-reader-text"}  # fmt: skip
"""Classes of the small pieces beside headings and links; a page has many, so they are left to the writer of the text."""
TAGS = {"nav", "footer", "header"}
CONTENT = {"section", "article", "main", "h1", "h2", "h3", "h4", "h5", "h6", "dl", "dt", "body"}
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


def remove(tree: HTMLTree, classes: set[str]) -> None:
    """Take the boilerplate out of a page (`classes`: those that its source names)."""
    body = tree.body
    if body is None:
        return
    selectors = [ALWAYS, *(f".{name}" for name in classes if is_boilerplate(name))]
    num_chars = len(body.text or "")
    dropped: list[Any] = []
    for node in body.query_selector_all(", ".join(selectors))[:]:
        if dropped and dropped[-1].contains(node):
            continue
        if not (node.tag in TAGS or any(map(is_boilerplate, (node.class_name or "").split())) or _is_named_by_id(node)):
            continue
        length = len(node.text or "")
        if node.tag == "header" and _heads_the_text(node) or length > MAX_CHARS and node.query_selector("article, main"):
            continue
        if length <= MAX_FRAC * num_chars or _is_links(node, MAX_CHARS_A_NAMED_LINK):
            dropped.append(node)
    for node in dropped:
        node.decompose()
    for node in [block for block in _edge(body, num_chars, 1) if _is_links(block, MAX_CHARS_A_LINK)]:
        node.decompose()


def _is_named_by_id(node: Any) -> bool:
    """The id of a section names its subject."""
    return node.tag not in CONTENT and node.class_name != "section" and is_boilerplate(node.id)


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
    for node in (single := dict.fromkeys(blocks)):
        length = num_chars if len(single) == 1 else len(node.text or "")
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
