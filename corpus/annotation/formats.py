"""How figures, times, states and foreign text stand on the page."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from markupsafe import Markup, escape

from mathpipe.corpus.annotation.render import seen

STATES = {
    "math": ("∑", "math"),
    "not_math": ("✕", "not math"),
    "skip": ("→", "skipped"),
    "flag": ("⚑", "flagged"),
    "disagreement": ("≠", "disputed"),
    "open": ("○", "open"),
    "hidden": ("•", "hidden for now"),
}
"""A sign and a word for each: colour is never the only sign."""
VERBS = [("math", "Math", "m"), ("not_math", "Not math", "n"), ("skip", "Skip", "s"), ("flag", "Flag", "f")]
"""(verdict, what its button says, its key)."""
KINDS = {"decide": "decided", "settle": "settled", "import": "imported"}
ORDERS = {"gain": "expected gain", "pages": "pages", "score": "mean score", "tokens": "tokens", "prefix": "name"}
FILTERS_OF_STATE = {
    "": "all domains", "left": "domains left", "open": "open", "math": "math", "not_math": "not math", "skip": "skipped",
    "flag": "flagged", "disagreement": "disagreement",
}  # fmt: skip


def number(value: float) -> str:
    """With thousands separated; one digit after the point below 10.

    >>> number(12345), number(3.26), number(40.6)
    ('12,345', '3.3', '41')
    """
    return f"{value:,.1f}" if isinstance(value, float) and abs(value) < 9.95 and value != int(value) else f"{round(value):,}"


def short(value: float) -> str:
    """A count in three digits.

    >>> short(950), short(12345), short(2_500_000)
    ('950', '12.3k', '2.5M')
    """
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}" if value / limit < 999.5 else f"{value / limit:.0f}{unit}"
    return f"{value:.0f}"


def percent(value: float) -> str:
    """A share of 1, without digits after the point unless it is small.

    >>> percent(0.256), percent(0.0042), percent(0)
    ('26 %', '0.4 %', '0 %')
    """
    return f"{100 * value:.1f} %" if 0 < value < 0.0095 else f"{100 * value:.0f} %"


def duration(seconds: float) -> str:
    """A time to wait, rounded.

    >>> duration(40), duration(800), duration(9000), duration(200_000)
    ('under a minute', '13 min', '2.5 h', '2 days')
    """
    if seconds < 60:
        return "under a minute"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 86_400 else f"{seconds / 86_400:.0f} days"


def ago(at: float) -> str:
    """How long ago something was."""
    seconds = max(0.0, time.time() - at)
    return f"{seconds:.0f} s ago" if seconds < 60 else f"{duration(seconds)} ago"


def date(at: float) -> str:
    """A point in time, UTC.

    >>> date(0)
    '1970-01-01 00:00 UTC'
    """
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def is_web(url: str) -> bool:
    """Whether an address may become a link.

    >>> is_web("https://a.org/"), is_web("javascript:alert(1)"), is_web("https:x")
    (True, False, False)
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def share(row: Any) -> float:
    """Share of a question's pages that was collected."""
    return row.num_collected / max(1, row.num_pages)


@lru_cache(64)
def chip(state: str, inherited: bool = False) -> Markup:
    """A state as its sign and word. (This and the next are no macros because a list calls them a hundred times.)"""
    sign, word = STATES[state]
    more = ' inherited" title="inherited' if inherited else ""
    after = " <small>inherited</small>" if inherited else ""
    return Markup(f'<span class="chip {state}{more}"><i aria-hidden="true">{"↳" if inherited else sign}</i> {word}{after}</span>')


def shown_prefix(prefix: str) -> Markup:
    """A prefix with nothing hidden in it, that may break after each folder.

    >>> shown_prefix("a.org/b")
    Markup('<bdi class="prefix">a.org/<wbr>b</bdi>')
    """
    shown = escape(seen(prefix)).replace("/", Markup("/<wbr>"))
    return Markup(f'<bdi class="prefix">{shown}</bdi>')


FILTERS = {
    "seen": seen, "number": number, "short": short, "percent": percent, "duration": duration, "ago": ago, "date": date, "share": share,
}  # fmt: skip
GLOBALS = {
    "STATES": STATES, "VERBS": VERBS, "KINDS": KINDS, "ORDERS": ORDERS, "FILTERS_OF_STATE": FILTERS_OF_STATE, "is_web": is_web,
    "chip": chip, "shown_prefix": shown_prefix,
}  # fmt: skip
