"""The questions of a queue as a tree, inside a transaction: reading rows, adding to the log, and keeping states and counts."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mathpipe.corpus.annotation.records import (
    FINAL,
    HANDLED,
    Conflict,
    Decision,
    Finished,
    Question,
    Row,
    is_hidden,
    num_wanted,
    resolve,
)
from mathpipe.corpus.annotation.schema import Transaction

MAX_QUESTIONS = 10_000_000
"""Per queue: question's number = queue × this + place."""
COLUMNS = (
    "id, queue_id, parent_id, prefix, num_pages, num_collected, mean_score, num_tokens, gain, samples, num_wanted, num_children, "
    "num_children_left, state, version, is_done, is_blind"
)
LOG = "id, prefix, who, verdict, note, kind, queue_id, round, at, undone_at"


def blind_prefixes(c: Transaction, queue: int, prefixes: list[str]) -> set[str]:
    """Those of the prefixes on which, in a queue, people must not see each other's verdicts."""
    if not prefixes:
        return set()
    select = "SELECT prefix FROM questions WHERE queue_id = :queue AND prefix IN :prefixes AND is_blind = 1"
    return set(c.column(select, {"queue": queue, "prefixes": prefixes}))


# reading


def read_queue(c: Transaction, queue: int) -> Any:
    """A queue's row, or LookupError."""
    found = c.first("SELECT * FROM queues WHERE id = :queue", {"queue": queue})
    if found is None:
        raise LookupError(f"no queue {queue}")
    return found


def read_open_queue(c: Transaction, queue: int) -> Any:
    """A queue that takes decisions, or Finished."""
    found = read_queue(c, queue)
    if found.is_finished:
        how = f"by {found.finished_by}" if found.finished_by else f"by itself: {found.finish_reason}"
        raise Finished(f"round {found.round} was finished {how}; open it again to decide")
    return found


def is_spent(queue: Any) -> bool:
    """Whether a queue's budget of decisions is spent."""
    return 0 < queue.max_decisions <= queue.num_decisions


def read_question(c: Transaction, question: int) -> Any:
    """A question's row, or LookupError."""
    found = c.first(f"SELECT {COLUMNS} FROM questions WHERE id = :id", {"id": question})
    if found is None:
        raise LookupError(f"no question {question}")
    return found


def with_ancestors(c: Transaction, rows: Iterable[Any]) -> dict[int, Any]:
    """Number → question, of the given ones and all above them."""
    found = {row.id: row for row in rows}
    wanted = {row.parent_id for row in found.values()} - {0}
    while wanted - found.keys():
        above = c.all(f"SELECT {COLUMNS} FROM questions WHERE id IN :ids", {"ids": sorted(wanted - found.keys())})
        found |= {row.id: row for row in above}
        wanted = {row.parent_id for row in above} - {0}
    return found


def above(known: dict[int, Any], question: Any) -> Iterator[Any]:
    """Ancestors of a question, nearest first."""
    while question.parent_id:
        question = known[question.parent_id]
        yield question


def view(c: Transaction, ids: Sequence[int], who: str) -> list[Row]:
    """The questions of these numbers, in their order, as `who` may see them."""
    if not ids:
        return []
    select = f"SELECT {COLUMNS} FROM questions WHERE id IN :ids"
    known = with_ancestors(c, c.all(select, {"ids": list(ids)}))
    waiting = [known[number].prefix for number in ids if known[number].is_blind and known[number].state == "open"]
    own: dict[str, str] = {}
    if waiting:
        mine = "SELECT prefix, verdict FROM decisions WHERE prefix IN :prefixes AND who = :who AND undone_at IS NULL ORDER BY id"
        own = dict(c.all(mine, {"prefixes": waiting, "who": who}))
    return [_row(known, known[number], own) for number in ids]


def view_one(c: Transaction, question: int, who: str) -> Row:
    """One question as `who` may see it, or LookupError."""
    read_question(c, question)
    return view(c, [question], who)[0]


def _row(known: dict[int, Any], q: Any, own: dict[str, str]) -> Row:
    decided = q if q.state in FINAL else next((ancestor for ancestor in above(known, q) if ancestor.state in FINAL), None)
    return Row(
        id=q.id, queue=q.queue_id, prefix=q.prefix, parent_id=q.parent_id or None, num_pages=q.num_pages, num_collected=q.num_collected,
        mean_score=q.mean_score, num_tokens=q.num_tokens, gain=q.gain, saved_samples=q.samples,
        num_children=q.num_children, state=own.get(q.prefix, q.state), verdict=decided.state if decided else "",
        inherited_from=decided.prefix if decided and decided is not q else "", version=q.version, is_done=bool(q.is_done),
        num_wanted=q.num_wanted,
    )  # fmt: skip


def decisions_by_prefix(c: Transaction, prefixes: list[str] | None) -> dict[str, list[Decision]]:
    """The log of the given prefixes or of all, oldest first."""
    where = "" if prefixes is None else "WHERE prefix IN :prefixes"
    select = f"SELECT {LOG} FROM decisions {where} ORDER BY id"
    found: dict[str, list[Decision]] = defaultdict(list)
    for row in c.all(select, {} if prefixes is None else {"prefixes": prefixes}):
        found[row.prefix].append(Decision(*row))
    return found


def open_levels(c: Transaction, after: int | None) -> Iterator[int]:
    """Parents among whose children the next question is looked for: those above `after`, nearest first, unless a verdict holds there
    already; at last 0, the roots."""
    if after is not None:
        question = read_question(c, after)
        chain = list(above(with_ancestors(c, [question]), question))
        for place, ancestor in enumerate(chain):
            if not any(one.state in HANDLED for one in chain[place:]):
                yield ancestor.id
    yield 0


def require_seen(c: Transaction, question: Any, who: str, version: int) -> None:
    """Raise Conflict where something was decided on a prefix since `version`, also under the same name (in another window); what is to
    be hidden from `who` does not count."""
    visible = "AND who = :who" if question.is_blind else ""
    since = f"""SELECT {LOG} FROM decisions WHERE prefix = :prefix {visible} AND (version > :seen OR undone_version > :seen)
        ORDER BY id"""
    decisions = [Decision(*row) for row in c.all(since, {"prefix": question.prefix, "who": who, "seen": version})]
    if decisions:
        raise Conflict(decisions, question.version)


# writing


def num_events(decisions: Sequence[Decision]) -> int:
    """Version of the prefix that has these decisions."""
    return len(decisions) + sum(decision.undone_at is not None for decision in decisions)


def count_events(c: Transaction, prefix: str) -> int:
    """Version of a prefix: decisions and undos on it."""
    return c.scalar("SELECT count(*) + count(undone_at) FROM decisions WHERE prefix = :prefix", {"prefix": prefix})


def add_decision(c: Transaction, queue: Any, prefix: str, who: str, verdict: str, note: str, kind: str, at: float) -> None:
    """One more line of the log."""
    insert = """INSERT INTO decisions (prefix, who, verdict, note, kind, queue_id, round, at, version)
        VALUES (:prefix, :who, :verdict, :note, :kind, :queue, :round, :at, :version)"""
    values = {"prefix": prefix, "who": who, "verdict": verdict, "note": note, "kind": kind, "queue": queue.id, "round": queue.round}
    c.run(insert, values | {"at": at, "version": count_events(c, prefix) + 1})
    if kind != "import":
        c.run("UPDATE queues SET num_decisions = num_decisions + 1 WHERE id = :queue", {"queue": queue.id})


def refresh(c: Transaction, prefix: str) -> None:
    """Bring all questions on a prefix, what is above them and their queues in line with the log."""
    said = decisions_by_prefix(c, [prefix])[prefix]
    version = num_events(said)
    select = f"SELECT {COLUMNS} FROM questions WHERE prefix = :prefix ORDER BY id"
    for question in c.all(select, {"prefix": prefix}):
        state = resolve(said, question.num_wanted)
        is_done = state in HANDLED or (question.num_children > 0 and question.num_children_left == 0)
        tokens = 0
        if state != question.state and {state, question.state} & set(FINAL):
            tokens = change_of_tokens(c, question, state)
        update = "UPDATE questions SET state = :state, version = :version, is_done = :is_done, is_blind = :is_blind WHERE id = :id"
        is_blind = int(is_hidden(said, question.num_wanted))
        c.run(update, {"state": state, "version": version, "is_done": int(is_done), "is_blind": is_blind, "id": question.id})
        left = _carry_up(c, question, is_done)
        if left or tokens:
            count = "UPDATE queues SET num_left = num_left + :left, tokens_added = tokens_added + :tokens WHERE id = :queue"
            c.run(count, {"left": left, "tokens": tokens, "queue": question.queue_id})


def _carry_up(c: Transaction, question: Any, is_done: bool) -> int:
    """Tell the ancestors that a question is done or no longer; returns by how much the queue's number of roots left changes."""
    while is_done != bool(question.is_done):
        change = -1 if is_done else 1
        if not question.parent_id:
            return change
        count = "UPDATE questions SET num_children_left = num_children_left + :change WHERE id = :id"
        c.run(count, {"change": change, "id": question.parent_id})
        question = read_question(c, question.parent_id)
        is_done = question.state in HANDLED or question.num_children_left == 0
        c.run("UPDATE questions SET is_done = :is_done WHERE id = :id", {"is_done": int(is_done), "id": question.id})
    return 0


def change_of_tokens(c: Transaction, question: Any, state: str) -> int:
    """Tokens that a question's new state adds to its queue's, or takes away: those under it without those under exceptions."""
    inherited = next((one.state for one in above(with_ancestors(c, [question]), question) if one.state in FINAL), "")
    before, after = (own if own in FINAL else inherited for own in (question.state, state))
    change = (after == "math") - (before == "math")
    if not change:
        return 0
    select = """SELECT prefix, num_tokens FROM questions WHERE queue_id = :queue AND prefix > :prefix AND prefix < :end
        AND state IN ('math', 'not_math') ORDER BY prefix"""
    end = question.prefix[:-1] + "0"  # "0" follows "/"
    tokens, last = question.num_tokens, "\0"
    for row in c.all(select, {"queue": question.queue_id, "prefix": question.prefix, "end": end}):
        if not row.prefix.startswith(last):
            tokens, last = tokens - row.num_tokens, row.prefix
    return change * tokens


def load(c: Transaction, queue: int, questions: Iterable[Question], overlap_frac: float) -> None:
    """Write the questions of a queue with the states that the log gives them, and the queue's counts."""
    log = decisions_by_prefix(c, None)
    rows: list[dict[str, Any]] = []
    by_prefix: dict[str, dict[str, Any]] = {"": {"id": 0, "verdict": ""}}
    suggested, tokens_added = [], 0
    for place, question in enumerate(questions):
        if place == MAX_QUESTIONS or question.prefix in by_prefix or question.parent not in by_prefix:
            expected = f"at most {MAX_QUESTIONS:,} different prefixes, parents before children"
            raise ValueError(f"question {place} on {question.prefix!r} below {question.parent!r}: expected {expected}")
        parent, said = by_prefix[question.parent], log.get(question.prefix, [])
        wanted = 1 if question.parent else num_wanted(question.prefix, overlap_frac)
        state = resolve(said, wanted)
        row = {
            "id": queue * MAX_QUESTIONS + place, "queue_id": queue, "parent_id": parent["id"], "prefix": question.prefix,
            "num_pages": question.num_pages, "num_collected": question.num_collected, "mean_score": question.mean_score,
            "num_tokens": question.num_tokens, "gain": question.gain, "samples": json.dumps(question.samples),
            "num_wanted": wanted, "num_children": 0, "num_children_left": 0, "state": state,
            "version": num_events(said), "is_done": 0, "is_blind": int(is_hidden(said, wanted)),
        }  # fmt: skip
        rows.append(row)
        verdict = state if state in FINAL else parent["verdict"]
        by_prefix[question.prefix] = row | {"verdict": verdict}
        tokens_added += question.num_tokens * ((verdict == "math") - (parent["verdict"] == "math"))
        if question.suggestion:
            reason = f"{question.num_collected} of {question.num_pages} pages collected"
            values = {"queue": queue, "prefix": question.prefix, "verdict": question.suggestion, "reason": reason}
            suggested.append(values | {"at": time.time()})
    num_roots, num_left = _count_children(rows)
    insert = f"INSERT INTO questions ({COLUMNS}) VALUES ({', '.join(':' + name for name in COLUMNS.split(', '))})"
    if rows:
        c.run(insert, rows)
    if suggested:
        c.run("INSERT INTO suggestions VALUES (:queue, :prefix, 'policy', :verdict, :reason, :at)", suggested)
    update = "UPDATE queues SET num_roots = :roots, num_left = :left, tokens_added = :tokens WHERE id = :queue"
    c.run(update, {"roots": num_roots, "left": num_left, "tokens": tokens_added, "queue": queue})


def _count_children(rows: list[dict[str, Any]]) -> tuple[int, int]:
    """Fill in children and `is_done`, from the last to the first; returns (roots, roots left). Children answer for their parent only
    where no page of it lies beside them."""
    by_id = {row["id"]: row for row in rows}
    pages_below: Counter[int] = Counter()
    for row in rows:
        pages_below[row["parent_id"]] += row["num_pages"]
    root = {"num_children": 0, "num_children_left": 0}
    for row in reversed(rows):
        row["num_children_left"] += row["num_children"] > 0 and pages_below[row["id"]] < row["num_pages"]
        row["is_done"] = int(row["state"] in HANDLED or (row["num_children"] > 0 and row["num_children_left"] == 0))
        parent = by_id.get(row["parent_id"], root)
        parent["num_children"] += 1
        parent["num_children_left"] += 1 - row["is_done"]
    return root["num_children"], root["num_children_left"]
