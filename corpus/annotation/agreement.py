"""How far annotators agree beyond chance: Cohen's kappa (Cohen 1960, "A coefficient of agreement for nominal scales")."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mathpipe.corpus.annotation.records import FINAL, HANDLED


@dataclass(frozen=True)
class Pair:
    """Two annotators on the prefixes that both called math or not math."""

    a: str
    b: str
    n: int
    agreed: float
    """Share of the prefixes on which they agree."""
    kappa: float | None
    """None where chance alone would agree always."""


@dataclass(frozen=True)
class Agreement:
    """All pairs of a queue."""

    pairs: list[Pair]
    n: int
    agreed: float | None
    """Share of all pairs of verdicts that agree."""
    kappa: float | None
    """Mean of the pairs' kappas, weighted by n."""


def kappa(pairs: Iterable[tuple[str, str]]) -> float | None:
    """Cohen's kappa of two annotators' verdicts: (observed − chance) / (1 − chance); None where chance is 1.

    >>> kappa([("math", "math"), ("math", "not_math"), ("not_math", "not_math"), ("not_math", "not_math")])
    0.5
    """
    verdicts = list(pairs)
    num = len(verdicts)
    first, second = ([pair[side] for pair in verdicts] for side in (0, 1))
    by_chance = sum(first.count(verdict) * second.count(verdict) for verdict in set(first))
    if by_chance == num * num:
        return None
    return (num * sum(a == b for a, b in verdicts) - by_chance) / (num * num - by_chance)


def blind_verdicts(events: Sequence[Any], wanted: int) -> dict[str, str]:
    """Who said what of a prefix at the moment when as many as wanted had handled it: until then nobody saw the others.

    Args:
        events: rows with who, verdict, kind, version and undone_version, in order of version.
    """
    for moment in sorted({number for event in events for number in (event.version, event.undone_version) if number is not None}):
        valid = [e for e in events if e.version <= moment and (e.undone_version is None or moment < e.undone_version)]
        if any(event.kind == "settle" for event in valid):
            return {}
        handled = {who: event for who, event in {e.who: e for e in valid}.items() if event.verdict in HANDLED}
        if len(handled) >= wanted:
            is_own = all(event.kind == "decide" for event in handled.values())
            return {who: event.verdict for who, event in handled.items()} if is_own else {}
    return {}


def agree(verdicts: Iterable[Mapping[str, str]]) -> Agreement:
    """The agreement of people, from who said what of every prefix; skips and flags are left out."""
    together: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for said in verdicts:
        for a, b in itertools.combinations(sorted(who for who, verdict in said.items() if verdict in FINAL), 2):
            together[a, b].append((said[a], said[b]))
    pairs = [Pair(a, b, len(both), _share(both), kappa(both)) for (a, b), both in sorted(together.items())]
    known = [(pair.kappa, pair.n) for pair in pairs if pair.kappa is not None]
    every = [verdict for both in together.values() for verdict in both]
    mean = sum(value * n for value, n in known) / sum(n for _, n in known) if known else None
    return Agreement(pairs, len(every), _share(every) if every else None, mean)


def _share(verdicts: list[tuple[str, str]]) -> float:
    return sum(a == b for a, b in verdicts) / len(verdicts)
