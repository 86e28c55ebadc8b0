"""The annotation queue over rounds, in files, and its database: kill -9, many at once, other schemas."""

from __future__ import annotations

import itertools
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from annotation_database import PAGES, add, question, tree

from mathpipe.corpus.annotation import schema
from mathpipe.corpus.annotation.store import Store

# rounds, files, servers


def test_a_queue_is_added_once_and_decisions_hold_in_later_rounds(address: str) -> None:
    one = Store(address)
    queue, ids = add(one, tree("example"), max_decisions=9)
    name = one.queues()[0].name
    one.decide(ids["a.example/"], "ann", "math", "yes")
    one.decide(ids["b.example/"], "ann", "skip")
    assert one.add_queue(name, 1, PAGES, []) == queue and one.progress(queue).total == 2
    later, new_ids = add(one, [*tree("example"), question("c.example/")], 2)
    assert [found.round for found in one.queues()] == [2, 1] and one.queues()[0].pages == PAGES
    row = one.row(new_ids["a.example/"], "bob")
    assert (row.state, row.version, row.is_done) == ("math", 1, True)
    assert [(d.who, d.round) for d in one.decisions_on(row.id, "bob")] == [("ann", 1)]
    progress = one.progress(later)
    assert (progress.total, progress.left, progress.num_decisions, progress.tokens_added) == (3, 1, 0, 1000)
    assert one.next_open(later, "ann").prefix == "c.example/"  # type: ignore[union-attr]
    assert one.undo(later, "ann") is None, "what was decided in round 1 is not undone from round 2"
    one.decide(row.id, "bob", "not_math", version=1)
    assert one.row(ids["a.example/"], "bob").state == "disagreement" and one.progress(queue).left == 1, "round 1 shows it too"
    only_hosts = [asked for asked in tree("example") if not asked.parent]
    one.decide(new_ids["a.example/x/"], "bob", "math")
    third, _ = add(one, [*only_hosts, question("d.example/")], 3)
    assert [line["prefix"] for line in one.final(third)] == ["a.example/x/"], "decided before, on one of its hosts"
    with pytest.raises(ValueError, match="question 1 on 'e.example/y/' below 'e.example/x/': expected .* parents before children"):
        add(one, [question("e.example/"), question("e.example/y/", "e.example/x/")], 4)
    assert len(one.queues()) == 3, "taken back as a whole"


def test_exported_decisions_come_back_under_the_name_of_who_imports_them(address: str, tmp_path: Path) -> None:
    one, other = Store(address), Store(str(tmp_path / "other.sqlite"))
    questions = tree("example")
    queue, ids = add(one, questions, overlap_frac=1.0)
    said = [("a.example/", "math", "math"), ("a.example/y/", "not_math", "not_math"), ("b.example/", "math", "skip")]
    for prefix, by_ann, by_bob in said:
        one.decide(ids[prefix], "ann", by_ann, f"ann on {prefix}")
        one.decide(ids[prefix], "bob", by_bob, f"bob on {prefix}")
    exported = one.final(queue)
    assert [line["who"] for line in exported] == ["ann, bob", "ann, bob", "ann"]
    again, _ = add(other, questions)
    assert other.import_decisions(again, exported, "eve") == 3 and other.import_decisions(again, exported, "eve") == 0
    same = [(line["prefix"], line["decision"], f"{line['reason']} ({line['who']})", "eve") for line in exported]
    assert [(line["prefix"], line["decision"], line["reason"], line["who"]) for line in other.final(again)] == same
    assert other.progress(again).left == 0 and other.progress(again).num_decisions == 0 and other.undo(again, "ann") is None
    elsewhere = [{"prefix": "b.example/z/", "decision": "not_math"}, {"prefix": "far.example/", "decision": "math", "who": "bob"}]
    assert other.import_decisions(again, elsewhere, "eve") == 2
    assert [(line["prefix"], line["who"]) for line in other.final(again)[-1:]] == [("b.example/z/", "eve")], "on the queue's hosts only"
    assert other.undo(again, "eve").id == again * 10_000_000, "beside the questions: it shows the first"  # type: ignore[union-attr]
    assert other.undo(again, "eve").prefix == "a.example/"  # type: ignore[union-attr]
    assert other.final(again) == [] and other.progress(again).left == 2 and other.undo(again, "eve") is None, "as a whole"
    assert other.row(again * 10_000_000, "eve").version == 2 and other.progress(again).num_decisions == 0


def test_an_import_is_one_persons_verdict_and_replaces_nobodys(address: str) -> None:
    one = Store(address)
    queue, ids = add(one, tree("example"))
    one.decide(ids["a.example/"], "ann", "math")
    lines = [{"prefix": prefix, "decision": "not_math", "who": "ann", "reason": "a shop"} for prefix in ids]
    assert one.import_decisions(queue, lines, "bob") == 5
    assert one.row(ids["a.example/"], "ann").state == "disagreement", "in her name, but not her verdict"
    assert [(d.who, d.note, d.kind) for d in one.decisions_on(ids["a.example/"], "ann")][1:] == [("bob", "a shop (ann)", "import")]
    twice, twice_ids = add(one, [question("two.example/")], overlap_frac=1.0)
    one.import_decisions(twice, [{"prefix": "two.example/", "decision": "math"}], "bob")
    assert one.progress(twice).left == 1 and one.final(twice) == [] and one.decisions_on(twice_ids["two.example/"], "ann") == []
    one.decide(twice_ids["two.example/"], "ann", "math", version=0)
    assert one.progress(twice).left == 0 and one.final(twice)[0]["who"] == "bob, ann" and one.agreement(twice).pairs == []


def test_a_large_import_is_bounded(tmp_path: Path) -> None:
    one = Store(str(tmp_path / "a.sqlite"))
    queue, ids = add(one, tree("example"))
    line = {"prefix": "b.example/", "decision": "math", "who": "w" * 900, "reason": "r" * 5000}
    begin = time.process_time()
    assert one.import_decisions(queue, [line | {"who": f"{number}"} for number in range(1000)], "ann") == 1
    assert time.process_time() - begin < 0.5
    assert one.import_decisions(queue, [line], "bob") == 1
    first, second = one.decisions_on(ids["b.example/"], "ann")
    assert first.note.endswith("r (999)") and second.note.endswith("r (" + "w" * 100 + ")")
    assert len(first.note) == len(second.note) == 2000
    with pytest.raises(ValueError, match="more than 100,000 lines; import them in parts"):
        one.import_decisions(queue, itertools.repeat(line), "ann")
    assert one.log(queue)[1] == 2


@pytest.mark.parametrize("line", [
    {"prefix": "a/"}, {"prefix": "a/", "decision": "skip"}, {"prefix": 1, "decision": "math"}, ["a/"], {"prefix": "a", "decision": "math"},
    {"prefix": "a/", "decision": "math", "who": ["ann"]}, {"prefix": "a/", "decision": "math", "reason": {"a": 1}},
    {"prefix": "a/\ud800/", "decision": "math"}, {"prefix": "a/", "decision": ["math"]},
])  # fmt: skip
def test_a_file_with_a_bad_line_is_refused_as_a_whole(tmp_path: Path, line: Any) -> None:
    one = Store(str(tmp_path / "a.sqlite"))
    queue, _ = add(one, tree("example"))
    with pytest.raises(ValueError, match="line 2: (expected prefix, decision|a prefix ends in /)"):
        one.import_decisions(queue, [{"prefix": "a.example/", "decision": "math"}, line], "ann")
    assert one.log(queue) == ([], 0)


def test_the_log_the_pace_and_who_serves(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    one = Store(address)
    queue, ids = add(one, [question(f"{i}.example/") for i in range(10)], max_decisions=6)
    assert one.progress(queue).seconds_left is None
    for who, wait, number in (("ann", 10, 0), ("bob", 20, 1), ("ann", 5000, 2), ("ann", 30, 3)):
        now[0] += wait
        one.decide(ids[f"{number}.example/"], who, "math", f"note {number}")
    assert one.progress(queue).seconds_left == 2 * 25, "two decisions of the budget left, 20 and 30 s apart; the pause does not count"
    one.undo(queue, "ann")
    found, num = one.log(queue, who="ann", limit=2)
    assert [(d.note, d.at, d.undone_at) for d in found] == [("note 3", 6060.0, 6060.0), ("note 2", 6030.0, None)] and num == 3
    assert [d.who for d in one.log(queue, prefix="1.example/")[0]] == ["bob"]
    one.suggest(queue, "1.example/", "model", "math", "looks like algebra")
    one.suggest(queue, "1.example/", "model", "not_math", "on reflection")
    assert [(s.source, s.verdict, s.reason) for s in one.suggestions(ids["1.example/"])] == [("model", "not_math", "on reflection")]
    assert one.server() is None
    one.seen("http://127.0.0.1:8765/")
    now[0] += 10
    assert one.server() == "http://127.0.0.1:8765/"
    now[0] += 10
    assert one.server() is None
    token = one.invite("ann")
    assert one.annotator_of(token) == "ann" and one.annotator_of(token[:-1]) is None and one.annotators() == ["ann"]
    assert one.annotator_of(one.invite("ann")) == "ann" and one.annotator_of(token) is None, "a new token ends the old one"
    with one.database.reading() as transaction:
        assert token not in str(transaction.all("SELECT * FROM annotators"))


def test_the_queue_to_decide_on_is_the_one_for_which_a_stage_waits(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    one = Store(address)
    assert one.waiting() is None
    names = ["tiny/round1", "tiny/round2", "tiny2/round1"]
    first, second, other = (one.add_queue(name, 1, PAGES, tree(f"{place}.example")) for place, name in enumerate(names))

    def found(profile: str = "") -> int | None:
        queue = one.waiting(profile)
        return queue and queue.id

    assert (found(), found("tiny"), found("tiny2"), found("ti"), found("tiny2/")) == (other, second, other, None, None)
    assert not one.queues()[0].is_waited_for
    one.stamp(first)
    assert (found(), found("tiny"), found("tiny2")) == (first, first, other) and one.waiting().is_waited_for  # type: ignore[union-attr]
    now[0] += 10
    one.stamp(other)
    assert (found(), found("tiny")) == (other, first), "the newest stamp"
    now[0] += 10
    assert (found(), found("tiny"), [queue.is_waited_for for queue in one.queues()]) == (other, second, [True, False, False])
    one.finish(other, "ann", "enough")
    assert (found(), found("tiny2")) == (second, None)


# the database


CHILD = """
import os, sys, threading
from mathpipe.corpus.annotation.store import Store

store = Store(sys.argv[1])
first = store.queues()[0].id * 10_000_000

def decide(thread):
    for place in range(thread, 2000, 4):
        row = store.decide(first + place, f"ann{thread}", "math")
        os.write(1, b"%d\\n" % row.id)

for thread in range(4):
    threading.Thread(target=decide, args=(thread,)).start()
"""


def test_kill_9_loses_no_acknowledged_decision(address: str) -> None:
    one = Store(address)
    queue, _ = add(one, [question(f"{i}.example/", num_tokens=3) for i in range(2000)])
    child = subprocess.Popen([sys.executable, "-c", CHILD, address], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    acknowledged = [int(child.stdout.readline()) for _ in range(60)]
    child.kill()
    acknowledged += [int(line) for line in child.stdout.read().splitlines()]
    child.wait()
    if one.database.is_sqlite:
        with sqlite3.connect(address) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    again = Store(address)
    decided, num = again.rows(queue, "", state="math", limit=2000)
    assert set(acknowledged) <= {row.id for row in decided} and len(acknowledged) <= num <= len(acknowledged) + 4
    progress = again.progress(queue)
    assert (progress.num_decisions, progress.left, progress.tokens_added) == (num, 2000 - num, 3 * num)
    assert again.log(queue)[1] == len(again.final(queue)) == num < 2000
    again.decide(queue * 10_000_000 + 1999, "ann", "math")


def test_many_open_a_new_database_at_once(address: str) -> None:
    errors: list[Exception] = []

    def work() -> None:
        try:
            Store(address).seen("http://x/")
        except ValueError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and Store(address).server() == "http://x/"


def test_a_schema_is_brought_up_to_date_and_a_newer_one_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    released = schema.MIGRATIONS
    monkeypatch.setattr(schema, "MIGRATIONS", released[:1])
    queue, ids = add(Store(address), tree("example"))
    Store(address).decide(ids["b.example/"], "ann", "math")
    monkeypatch.setattr(schema, "MIGRATIONS", released)
    assert Store(address).final(queue)[0]["prefix"] == "b.example/", "version 1 is brought to the newest"
    monkeypatch.setattr(schema, "MIGRATIONS", [*released, ["CREATE TABLE extra (a INTEGER)", "no statement"]])
    with pytest.raises(ValueError, match="cannot be opened as a database of annotations"):
        Store(address)
    monkeypatch.setattr(schema, "MIGRATIONS", [*released, ["CREATE TABLE extra (a INTEGER)"]])
    assert Store(address).row(ids["b.example/"], "ann").state == "math", "a migration that failed has left nothing behind"
    monkeypatch.setattr(schema, "MIGRATIONS", released)
    with pytest.raises(ValueError, match=rf"schema has version {len(released) + 1}, this mathpipe knows {len(released)}; update mathpipe"):
        Store(address)


def test_what_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no database " * 100, encoding="utf-8")
    for address in (str(tmp_path / "notes.txt"), str(tmp_path / "missing" / "a.sqlite"), "postgresql://ann:secret@127.0.0.1:1/x"):
        with pytest.raises(ValueError, match="cannot be opened as a database of annotations") as error:
            Store(address)
        assert "secret" not in str(error.value)
    for address in ("mysql://host/name", "sqlite+aiosqlite:///a"):
        with pytest.raises(ValueError, match=r"not a database that mathpipe knows; give the path of a SQLite file or postgresql://"):
            Store(address)


def test_a_path_may_hold_any_characters(tmp_path: Path) -> None:
    file = tmp_path / "a b?c#d%20.sqlite"
    Store(str(file)).seen("http://x/")
    assert file.is_file()
