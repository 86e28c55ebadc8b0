"""The annotation queue in its database: questions, the log of decisions, and what follows from it.

Decisions belong to prefixes, not to queues: what was decided in one round holds in the next. The log is only added to; an undo
marks. The state of a question, of its ancestors and the counts of its queue change in the transaction of the event, so that
every list is read from an index. A question's number stays for good: 10,000,000 × queue + place.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mathpipe.corpus.annotation import agreement, tree
from mathpipe.corpus.annotation.presence import PRESENT_S, Presence
from mathpipe.corpus.annotation.records import (
    FINAL,
    HANDLED,
    UNSETTLED,
    VERDICTS,
    Conflict,
    Decision,
    Finished,
    Progress,
    Question,
    Queue,
    Row,
    Sample,
    Suggestion,
    checked,
    nearest_above,
    resolve,
    standing,
)
from mathpipe.corpus.annotation.schema import Transaction

__all__ = [
    "VERDICTS", "Conflict", "Decision", "Finished", "Progress", "Question", "Queue", "Row", "Sample", "Store", "Suggestion",
]  # fmt: skip

CLAIM_S = 120
"""A question that was given to somebody is not given to others for so long."""
MAX_LINES, MAX_NOTE = 100_000, 2_000
"""Of an import; characters of a note in it."""
PAUSE_S = 300
"""Longer times between decisions are breaks."""
NUM_RECENT = 30
"""Decisions from which the pace is taken."""
IS_UNSETTLED = f"state IN {UNSETTLED}"
# `|| ''` keeps SQLite from going through all prefixes in order in search of those that a list has
ORDERS = {
    "gain": "gain DESC, id", "pages": "num_pages DESC, id", "score": "mean_score DESC, id", "tokens": "num_tokens DESC, id",
    "prefix": "prefix || ''",
}  # fmt: skip


class Store(Presence):
    """One database of annotations; safe for many threads and processes."""

    # queues

    def add_queue(
        self, name: str, round_number: int, pages: Path, questions: Iterable[Question], *,
        overlap_frac: float = 0.0, max_decisions: int = 0, annotate: str = "",
    ) -> int:  # fmt: skip
        """Load the questions of a stage, parents before children, or find them loaded; returns the queue's number."""
        with self.database.writing() as c:
            known = c.scalar("SELECT id FROM queues WHERE name = :name", {"name": name})
            if known is not None:
                return known
            insert = (
                "INSERT INTO queues (name, round, stage, pages, max_decisions, num_roots, num_left, num_decisions, tokens_added, "
                "is_finished, finished_by, finish_reason, created_at, waiting_at) "
                "VALUES (:name, :round, :stage, :pages, :budget, 0, 0, 0, 0, 0, '', '', :at, 0) RETURNING id"
            )
            values = {"name": name, "round": round_number, "stage": annotate, "pages": str(pages), "budget": max_decisions}
            queue = c.scalar(insert, values | {"at": time.time()})
            tree.load(c, queue, questions, overlap_frac)
            return queue

    def queues(self) -> list[Queue]:
        """Newest first."""
        return self._queues("id DESC")

    def waiting(self, profile: str = "") -> Queue | None:
        """The queue to decide on, of one profile or of all: the unfinished one for which a stage waits, else the newest unfinished."""
        found = self._queues("CASE WHEN waiting_at > :after THEN waiting_at ELSE 0 END DESC, id DESC")
        return next((one for one in found if not one.is_finished and (not profile or one.name.startswith(f"{profile}/"))), None)

    def _queues(self, order: str) -> list[Queue]:
        names, after = "id, name, round, stage, pages, is_finished, finished_by, created_at, waiting_at", time.time() - PRESENT_S
        with self.database.reading() as c:
            rows = c.all(f"SELECT {names} FROM queues ORDER BY {order}", {"after": after})
        return [
            Queue(r.id, r.name, r.round, r.stage, Path(r.pages), bool(r.is_finished), r.finished_by, r.created_at, r.waiting_at > after)
            for r in rows
        ]

    def progress(self, queue: int) -> Progress:
        """How far a queue is."""
        with self.database.reading() as c:
            head = tree.read_queue(c, queue)
            by_state = f"SELECT state, count(*) FROM questions WHERE queue_id = :queue AND {IS_UNSETTLED} GROUP BY state"
            unsettled = {state: num for state, num in c.all(by_state, {"queue": queue})}
            recent = "SELECT at FROM decisions WHERE queue_id = :queue AND kind = 'decide' ORDER BY id DESC LIMIT :num"
            times = c.column(recent, {"queue": queue, "num": NUM_RECENT})
        gaps = [later - earlier for later, earlier in zip(times, times[1:], strict=False) if later - earlier < PAUSE_S]
        left = min(head.num_left, max(0, head.max_decisions - head.num_decisions)) if head.max_decisions else head.num_left
        return Progress(
            total=head.num_roots, left=left, num_decisions=head.num_decisions, budget=head.max_decisions,
            num_flagged=unsettled.get("flag", 0), num_disagreements=unsettled.get("disagreement", 0),
            seconds_left=left * sum(gaps) / len(gaps) if gaps else None, is_finished=bool(head.is_finished),
            tokens_added=head.tokens_added,
        )  # fmt: skip

    def finish(self, queue: int, who: str, why: str) -> None:
        """Take no more decisions; the first who finishes is kept."""
        update = "UPDATE queues SET is_finished = 1, finished_by = :who, finish_reason = :why WHERE id = :queue AND is_finished = 0"
        with self.database.writing() as c:
            tree.read_queue(c, queue)
            c.run(update, {"queue": queue, "who": who, "why": why})

    def reopen(self, queue: int) -> None:
        """Take decisions again."""
        update = "UPDATE queues SET is_finished = 0, finished_by = '', finish_reason = '' WHERE id = :queue"
        with self.database.writing() as c:
            tree.read_queue(c, queue)
            c.run(update, {"queue": queue})

    # reading questions

    def rows(
        self, queue: int, who: str, *, parent: int | None = None, state: str = "", search: str = "", order: str = "gain",
        offset: int = 0, limit: int = 50,
    ) -> tuple[list[Row], int]:  # fmt: skip
        """(questions as `who` may see them, number of all): the roots or the children of `parent`; with `state` (or `left`: roots
        that are not done) or `search` (part of the prefix) those of any level.

        Raises:
            ValueError: no such order.
        """
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}; found {order!r}")
        where = ["queue_id = :queue"]
        values: dict[str, Any] = {"queue": queue, "offset": offset, "limit": limit}
        if parent is not None or state == "left" or not (state or search):
            where.append("parent_id = :parent")
            values["parent"] = parent or 0
        if state == "left":
            where.append("is_done = 0")
        elif state:
            where.append("state = :state")
            values["state"] = state
        if search:
            where.append(f"prefix {'LIKE' if self.database.is_sqlite else 'ILIKE'} :search ESCAPE '\\'")
            values["search"] = "%" + search.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_") + "%"
        with self.database.reading() as c:
            head = tree.read_queue(c, queue)
            known = {"": head.num_roots, "left": head.num_left}.get(state) if parent is None and not search else None
            return _page(c, " AND ".join(where), ORDERS[order], values, who, known)

    def disagreements(self, queue: int, who: str = "", *, offset: int = 0, limit: int = 50) -> tuple[list[Row], int]:
        """(flags and disagreements to settle, number of all)."""
        values = {"queue": queue, "offset": offset, "limit": limit}
        with self.database.reading() as c:
            return _page(c, f"queue_id = :queue AND {IS_UNSETTLED}", ORDERS["gain"], values, who)

    def row(self, question: int, who: str) -> Row:
        """One question.

        Raises:
            LookupError: there is none of that number.
        """
        with self.database.reading() as c:
            return tree.view_one(c, question, who)

    def path(self, question: int, who: str = "") -> list[Row]:
        """The ancestors of a question, root first."""
        with self.database.reading() as c:
            asked = tree.read_question(c, question)
            chain = [one.id for one in tree.above(tree.with_ancestors(c, [asked]), asked)]
            return tree.view(c, chain[::-1], who)

    def next_open(self, queue: int, who: str, after: int | None = None) -> Row | None:
        """The question of highest gain that needs `who` and that nobody else was given lately: after a child the next one beside or
        above it, else a root. It is given to `who` now."""
        select = """SELECT q.id FROM questions q
            WHERE q.queue_id = :queue AND q.parent_id = :parent AND q.is_done = 0 AND q.state IN ('open', 'flag') AND q.id <> :after
            AND NOT EXISTS (SELECT 1 FROM decisions d WHERE d.prefix = q.prefix AND d.who = :who AND d.undone_at IS NULL)
            AND (SELECT count(*) FROM claims WHERE question_id = q.id AND who <> :who AND at >= :stale) < q.num_wanted - (SELECT
            count(DISTINCT d.who) FROM decisions d WHERE d.prefix = q.prefix AND q.state = 'open' AND d.undone_at IS NULL)
            ORDER BY q.gain DESC, q.id LIMIT 1"""
        claim = "INSERT INTO claims VALUES (:id, :who, :now) ON CONFLICT (question_id, who) DO UPDATE SET at = excluded.at"
        now = time.time()
        values = {"queue": queue, "who": who, "after": after or 0, "stale": now - CLAIM_S}
        with self.database.writing() as c:
            if tree.is_spent(tree.read_queue(c, queue)):
                return None
            for parent in tree.open_levels(c, after):
                found = c.scalar(select, values | {"parent": parent})
                if found is not None:
                    c.run(claim, {"id": found, "who": who, "now": now})
                    return tree.view_one(c, found, who)
        return None

    # deciding

    def decide(self, question: int, who: str, verdict: str, note: str = "", version: int | None = None, kind: str = "decide") -> Row:
        """Record a verdict; it is on the disk when this returns.

        Args:
            version: of the row that the author saw; None: whatever has happened since.
            kind: `decide`, or `settle` for a verdict that replaces what was said before.

        Raises:
            Conflict: something was decided since; nothing was written.
            Finished: the queue takes no more decisions, or its budget is spent.
            LookupError: no such question.
            ValueError: no such verdict, or nothing to settle.
        """
        allowed = HANDLED if kind == "settle" else VERDICTS
        if kind not in ("decide", "settle") or verdict not in allowed or not who:
            raise ValueError(f"expected who, and one of {', '.join(allowed)} to {kind}; found {who!r}, {verdict!r}")
        with self.database.writing() as c:
            asked = tree.read_question(c, question)
            queue = tree.read_open_queue(c, asked.queue_id)
            if version is not None and version != asked.version:
                tree.require_seen(c, asked, who, version)
            if kind == "settle" and asked.state not in UNSETTLED:
                raise ValueError(f"{asked.prefix}: nothing to settle; it is {asked.state}")
            if tree.is_spent(queue):
                raise Finished(f"the budget of {queue.max_decisions} decisions of round {queue.round} is spent; undo one to decide another")
            tree.add_decision(c, queue, asked.prefix, who, verdict, note, kind, time.time())
            c.run("DELETE FROM claims WHERE question_id = :id AND who = :who", {"id": question, "who": who})
            tree.refresh(c, asked.prefix)
            return tree.view_one(c, question, who)

    def undo(self, queue: int, who: str) -> Row | None:
        """Take back the latest decision of `who` in the queue, or the whole import if it was one; None where nothing is left to undo."""
        latest = """SELECT id, prefix, kind, at FROM decisions WHERE queue_id = :queue AND who = :who AND undone_at IS NULL
            ORDER BY id DESC LIMIT 1"""
        together = """SELECT id, prefix FROM decisions WHERE queue_id = :queue AND who = :who AND undone_at IS NULL AND kind = 'import'
            AND at = :at ORDER BY id"""
        with self.database.writing() as c:
            tree.read_open_queue(c, queue)
            last = c.first(latest, {"queue": queue, "who": who})
            if last is None:
                return None
            is_import = last.kind == "import"
            undone = c.all(together, {"queue": queue, "who": who, "at": last.at}) if is_import else [last]
            mark, now = "UPDATE decisions SET undone_at = :at, undone_version = :version WHERE id = :id", time.time()
            for one in undone:
                c.run(mark, {"at": now, "version": tree.count_events(c, one.prefix) + 1, "id": one.id})
                tree.refresh(c, one.prefix)
            if not is_import:
                c.run("UPDATE queues SET num_decisions = num_decisions - 1 WHERE id = :queue", {"queue": queue})
            place = """SELECT min(q.id) FROM decisions d JOIN questions q ON q.prefix = d.prefix AND q.queue_id = d.queue_id
                WHERE d.queue_id = :queue AND d.who = :who AND d.id >= :first AND d.undone_at = :at"""
            found = c.scalar(place, {"queue": queue, "who": who, "first": undone[0].id, "at": now})
            # an import may lie beside the queue's questions
            return tree.view_one(c, found or c.scalar("SELECT min(id) FROM questions WHERE queue_id = :queue", {"queue": queue}), who)

    def import_decisions(self, queue: int, lines: Iterable[dict[str, Any]], who: str) -> int:
        """Record decisions made elsewhere (prefix, decision, reason, who) as verdicts of `who`, who answers for them, all or none; of
        several on a prefix the last counts, and what `who` says already is left out. Returns how many are new.

        Raises:
            ValueError: a line is not a decision, or there are too many.
        """
        said: dict[str, tuple[str, str]] = {}
        for number, line in enumerate(lines, 1):
            if number > MAX_LINES:
                raise ValueError(f"more than {MAX_LINES:,} lines; import them in parts")
            prefix, author, verdict, reason = checked(number, line, who)
            by = f" ({author})" if author != who else ""
            said[prefix] = verdict, (reason[: MAX_NOTE - len(by)] + by).strip()
        num_new, now = 0, time.time()
        with self.database.writing() as c:
            head = tree.read_open_queue(c, queue)
            for prefix, (verdict, note) in said.items():
                before = standing(tree.decisions_by_prefix(c, [prefix])[prefix])
                if not any(d.who == who and d.verdict == verdict for d in before):
                    tree.add_decision(c, head, prefix, who, verdict, note, "import", now)
                    tree.refresh(c, prefix)
                    num_new += 1
        return num_new

    # the log and what it says

    def log(
        self, queue: int, *, who: str = "", prefix: str = "", viewer: str = "", offset: int = 0, limit: int = 100
    ) -> tuple[list[Decision], int]:  # fmt: skip
        """(decisions of a queue, newest first, undone ones too, number of all), of one person or on what begins with `prefix`; where
        a second annotator is awaited, others than the author see `hidden` for a verdict."""
        where = ["queue_id = :queue"]
        values: dict[str, Any] = {"queue": queue, "offset": offset, "limit": limit}
        if who:
            where.append("who = :who")
            values["who"] = who
        if prefix:
            where.append("prefix >= :prefix AND prefix < :end")
            values |= {"prefix": prefix, "end": prefix + "\U0010ffff"}
        condition = " AND ".join(where)
        with self.database.reading() as c:
            total = c.scalar(f"SELECT count(*) FROM decisions WHERE {condition}", values)
            select = f"SELECT {tree.LOG} FROM decisions WHERE {condition} ORDER BY id DESC LIMIT :limit OFFSET :offset"
            found = [Decision(*row) for row in c.all(select, values)]
            blind = tree.blind_prefixes(c, queue, [d.prefix for d in found])
        return [_hidden(d) if d.prefix in blind and not _is_shown(d, viewer) else d for d in found], total

    def people(self, queue: int) -> dict[str, int]:
        """Who decided in a queue, and how often."""
        select = "SELECT who, count(*) FROM decisions WHERE queue_id = :queue AND undone_at IS NULL GROUP BY who ORDER BY who"
        with self.database.reading() as c:
            return dict(c.all(select, {"queue": queue}))

    def decisions_on(self, question: int, viewer: str) -> list[Decision]:
        """All on one prefix, in any round, undone ones too, oldest first; only flags and the viewer's own where others are awaited."""
        with self.database.reading() as c:
            asked = tree.read_question(c, question)
            found = tree.decisions_by_prefix(c, [asked.prefix])[asked.prefix]
        return [d for d in found if _is_shown(d, viewer)] if asked.is_blind else found

    def suggest(self, queue: int, prefix: str, source: str, verdict: str, reason: str) -> None:
        """Record what a machine thinks; it replaces what the same source said before."""
        upsert = """INSERT INTO suggestions VALUES (:queue, :prefix, :source, :verdict, :reason, :at) ON CONFLICT (queue_id, prefix, source)
            DO UPDATE SET verdict = excluded.verdict, reason = excluded.reason, at = excluded.at"""
        values = {"queue": queue, "prefix": prefix, "source": source, "verdict": verdict, "reason": reason, "at": time.time()}
        with self.database.writing() as c:
            c.run(upsert, values)

    def suggestions(self, question: int) -> list[Suggestion]:
        """What machines think of a question."""
        select = "SELECT source, verdict, reason, at FROM suggestions WHERE queue_id = :queue AND prefix = :prefix ORDER BY source"
        with self.database.reading() as c:
            asked = tree.read_question(c, question)
            return [Suggestion(*row) for row in c.all(select, {"queue": asked.queue_id, "prefix": asked.prefix})]

    def agreement(self, queue: int) -> agreement.Agreement:
        """How far people agree on the prefixes that needed several of them, before they saw each other's verdicts."""
        select = """SELECT d.prefix, d.who, d.verdict, d.kind, d.version, d.undone_version, q.num_wanted
            FROM questions q JOIN decisions d ON d.prefix = q.prefix WHERE q.queue_id = :queue AND q.num_wanted > 1 ORDER BY d.id"""
        events: dict[str, list[Any]] = defaultdict(list)
        with self.database.reading() as c:
            for event in c.all(select, {"queue": queue}):
                events[event.prefix].append(event)
        return agreement.agree(agreement.blind_verdicts(found, found[0].num_wanted) for found in events.values())

    def final(self, queue: int) -> list[dict[str, Any]]:
        """The decisions that count: math and not_math on the prefixes of the queue and, decided before, elsewhere on its hosts; as
        lines of a decisions file, sorted by prefix. What is not settled is not_math where it would be math with what is above it."""
        decided = """SELECT DISTINCT q.prefix, q.num_wanted FROM decisions d JOIN questions q ON q.prefix = d.prefix
            WHERE q.queue_id = :queue"""
        roots = "SELECT prefix FROM questions WHERE queue_id = :queue AND parent_id = 0"
        with self.database.reading() as c:
            wanted = dict(c.all(decided, {"queue": queue}))
            hosts = {prefix.partition("/")[0] for prefix in c.column(roots, {"queue": queue})}
            everything = tree.decisions_by_prefix(c, None)
        lines: dict[str, dict[str, Any]] = {}
        for prefix in sorted(name for name in everything if name.partition("/")[0] in hosts):  # parents before children
            state, counting = resolve(everything[prefix], wanted.get(prefix, 1)), standing(everything[prefix])
            if state in FINAL:
                counting = [d for d in counting if d.verdict == state]
                verdict, reason = state, "; ".join(dict.fromkeys(d.note for d in counting if d.note))
            elif state in UNSETTLED and nearest_above(lines, prefix) == "math":
                verdict, reason = "not_math", f"not settled: {state}"
            else:
                continue
            who, at = ", ".join(d.who for d in counting), max(d.at for d in counting)
            lines[prefix] = {"prefix": prefix, "decision": verdict, "reason": reason, "who": who, "at": at}
        return list(lines.values())


def _page(
    c: Transaction, where: str, order: str, values: dict[str, Any], who: str, total: int | None = None
) -> tuple[list[Row], int]:  # fmt: skip
    """(a page of the questions that fulfil a condition, number of all, counted where it is not known)."""
    page = f"SELECT id FROM questions WHERE {where} ORDER BY {order} LIMIT :limit OFFSET :offset"
    ids = c.column(page, values)
    if len(ids) < values["limit"] and (ids or not values["offset"]):
        total = values["offset"] + len(ids)
    elif total is None:
        total = c.scalar(f"SELECT count(*) FROM questions WHERE {where}", values)
    return tree.view(c, ids, who), total


def _is_shown(decision: Decision, viewer: str) -> bool:
    """Whether a viewer sees a decision on a prefix where others are awaited: a flag asks for them."""
    return decision.who == viewer or decision.verdict == "flag"


def _hidden(decision: Decision) -> Decision:
    return dataclasses.replace(decision, verdict="hidden", note="")
