"""What the annotation queue is made of, and the rule by which decisions become the state of a prefix."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

VERDICTS = ("math", "not_math", "skip", "flag")
"""`skip`: left undecided, but handled; `flag`: to be settled with others."""
FINAL = ("math", "not_math")
HANDLED = (*FINAL, "skip")
UNSETTLED = ("flag", "disagreement")
MAX_WHO = 100
"""Characters of a name in a file of decisions."""


class Sample(NamedTuple):
    """A page that is shown of a prefix."""

    id: int
    score: float
    is_collected: bool


@dataclass(frozen=True)
class Question:
    """A prefix that a stage asks about; parents come before their children."""

    prefix: str
    """`host/` or `host/folder/folder/`."""
    parent: str
    """Prefix of the parent, empty for a root."""
    num_pages: int
    num_collected: int
    mean_score: float
    num_tokens: int
    """Tokens of its uncollected pages."""
    samples: tuple[Sample, ...]
    """Pages under it, collected and not."""
    suggestion: str = ""
    """The policy's: math, not_math or empty."""

    @property
    def gain(self) -> float:
        """Mathematical pages that a yes is expected to add: uncollected pages × share collected."""
        return (self.num_pages - self.num_collected) * self.num_collected / max(1, self.num_pages)


@dataclass(frozen=True)
class Queue:
    """The questions of one stage."""

    id: int
    name: str
    round: int
    stage: str
    pages: Path
    is_finished: bool
    finished_by: str
    created_at: float
    is_waited_for: bool
    """Whether a stage was there a moment ago and goes on when the queue ends."""


@dataclass(frozen=True)
class Row:
    """A question with its state, as one annotator may see it."""

    id: int
    queue: int
    prefix: str
    parent_id: int | None
    num_pages: int
    num_collected: int
    mean_score: float
    num_tokens: int
    gain: float
    saved_samples: str
    """As JSON, which lists need not read."""
    num_children: int
    state: str
    """Its own: open, math, not_math, skip, flag, disagreement. While a second annotator is awaited: open, but to the first who
    decided their own verdict."""
    verdict: str
    """What holds here: math or not_math, its own or inherited; else empty."""
    inherited_from: str
    """Prefix of the nearest decided ancestor where the verdict is not its own, else empty."""
    version: int
    """Number of decisions and undos on the prefix."""
    is_done: bool
    num_wanted: int
    """Annotators who must handle it; below a host always one."""

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Pages under it, collected and not."""
        return tuple(Sample(page, score, bool(is_collected)) for page, score, is_collected in json.loads(self.saved_samples))


@dataclass(frozen=True)
class Decision:
    """One line of the log."""

    id: int
    prefix: str
    who: str
    verdict: str
    """One of VERDICTS; `hidden` where a further annotator is awaited and must not see it."""
    note: str
    kind: str
    """decide, settle or import."""
    queue: int
    round: int
    at: float
    undone_at: float | None


@dataclass(frozen=True)
class Suggestion:
    """What a machine thinks of a prefix; it decides nothing."""

    source: str
    verdict: str
    reason: str
    at: float


@dataclass(frozen=True)
class Progress:
    """How far a queue is."""

    total: int
    """Roots."""
    left: int
    """Roots that are not done, or what is left of the budget where that is less."""
    num_decisions: int
    """Made in this queue, neither undone nor imported."""
    budget: int
    """Decisions after which the queue ends; 0: none."""
    num_flagged: int
    num_disagreements: int
    seconds_left: float | None
    """At the pace of the last decisions, pauses left out; None before there are some."""
    is_finished: bool
    tokens_added: int
    """Tokens of the uncollected pages that are math by the verdicts so far."""

    @property
    def num_unsettled(self) -> int:
        """Flags and disagreements."""
        return self.num_flagged + self.num_disagreements


class Conflict(Exception):
    """Somebody else has decided since the author looked; nothing was written."""

    def __init__(self, decisions: list[Decision], version: int) -> None:
        super().__init__("decided by " + ", ".join(dict.fromkeys(decision.who for decision in decisions)))
        self.decisions, self.version = decisions, version


class Finished(ValueError):
    """The queue takes no more decisions."""


def num_wanted(root: str, overlap_frac: float) -> int:
    """Annotators wanted on a root: two for `overlap_frac` of the roots, chosen by their hash."""
    share = int.from_bytes(hashlib.sha256(root.encode()).digest()[:6]) / 2**48
    return 2 if share < overlap_frac else 1


def standing(decisions: Sequence[Decision]) -> list[Decision]:
    """Of the decisions on a prefix in their order, those that count: not undone, not before the last settlement, each person's last.

    A settlement replaces what was said before it; who differs later disagrees with it.
    """
    valid = [decision for decision in decisions if decision.undone_at is None]
    settled = max((i for i, decision in enumerate(valid) if decision.kind == "settle"), default=0)
    return list({decision.who: decision for decision in valid[settled:]}.values())


def resolve(decisions: Sequence[Decision], wanted: int) -> str:
    """State of a prefix with these decisions.

    Flags and opposite verdicts wait for a settlement; a verdict counts more than a skip; fewer people than wanted leave it open,
    except where it was settled. An import is the verdict of who imported it.
    """
    counting = standing(decisions)
    verdicts = {decision.verdict for decision in counting}
    if "flag" in verdicts:
        return "flag"
    if verdicts >= set(FINAL):
        return "disagreement"
    is_enough = len(counting) >= wanted or is_settled(decisions)
    return next((verdict for verdict in HANDLED if verdict in verdicts), "open") if is_enough else "open"


def is_settled(decisions: Sequence[Decision]) -> bool:
    """Whether a settlement holds."""
    return any(decision.kind == "settle" and decision.undone_at is None for decision in decisions)


def is_hidden(decisions: Sequence[Decision], wanted: int) -> bool:
    """Whether people must not see each other's verdicts on a prefix: it needs several, and not so many have handled it yet."""
    num_handled = sum(decision.verdict in HANDLED for decision in standing(decisions))
    return wanted > 1 and num_handled < wanted and not is_settled(decisions)


def nearest_above(lines: Mapping[str, dict[str, Any]], prefix: str) -> str:
    """The decision on the nearest ancestor that has one, or an empty string.

    >>> nearest_above({"a/": {"decision": "math"}, "a/x/": {"decision": "not_math"}, "a/x/y/": {"decision": "math"}}, "a/x/y/")
    'not_math'
    """
    folders = prefix.split("/")
    above = ("/".join(folders[:depth]) + "/" for depth in range(len(folders) - 2, 0, -1))
    return next((lines[name]["decision"] for name in above if name in lines), "")


def parsed(lines: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """(number, value) of each line of JSON that is not empty.

    Raises:
        ValueError: a line is not JSON in UTF-8.
    """
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except RecursionError:
                raise ValueError(f"line {number}: nested too deep to be a decision") from None
            except ValueError as error:
                raise ValueError(f"line {number}: not JSON: {error}") from None


def checked(number: int, line: Any, who: str) -> tuple[str, str, str, str]:
    """(prefix, who, verdict, reason) of a line of a decisions file; `who` where it names nobody.

    Raises:
        ValueError: it is not a decision.
    """
    keys = ("prefix", "who", "reason")
    values: list[Any] = [line.get(key) or "" for key in keys] if isinstance(line, dict) else [None]
    # a lone half of a surrogate pair cannot be stored
    is_text = all(isinstance(value, str) and value.encode(errors="replace").decode() == value for value in values)
    if not is_text or not values[0] or line.get("decision") not in FINAL:
        raise ValueError(f"line {number}: expected prefix, decision (math or not_math), reason, who; found {json.dumps(line)[:100]}")
    prefix, author, reason = values
    if not prefix.endswith("/"):
        raise ValueError(f"line {number}: a prefix ends in /; found {prefix[:100]!r}")
    return prefix, author[:MAX_WHO] or who, line["decision"], reason
