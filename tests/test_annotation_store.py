"""The store of the annotation queue, on SQLite and on PostgreSQL: against a naive model, under conflicts and under kill -9."""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathpipe.corpus.annotation import schema, store
from mathpipe.corpus.annotation.agreement import agree, kappa
from mathpipe.corpus.annotation.records import num_wanted
from mathpipe.corpus.annotation.store import Conflict, Finished, Question, Row, Sample, Store

NUMBERS = itertools.count()
PAGES = Path("/artifacts/pages")
PEOPLE = ("ann", "bob", "eve")


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL server of our own, without a database's name."""
    pytest.importorskip("psycopg", reason="psycopg is absent")
    found = [*sorted(Path("/usr/lib/postgresql").glob("*/bin")), Path(shutil.which("initdb") or "").parent]
    bin_ = next((path for path in found if (path / "initdb").is_file()), None)
    if bin_ is None:
        pytest.skip("PostgreSQL is absent (no initdb)")
    folder = Path(tempfile.mkdtemp(prefix="mathpipe-pg-"))
    owner: dict[str, Any] = {}
    if os.geteuid() == 0:  # the server refuses to be root
        owner = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(folder, "nobody", "nogroup")
    data, log = folder / "data", folder / "log"
    initdb = [f"{bin_}/initdb", "-D", f"{data}", "-U", "mathpipe", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **owner)
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c max_connections=200"
    pg_ctl = [f"{bin_}/pg_ctl", "-D", f"{data}", "-w", "-l", f"{log}"]
    subprocess.run([*pg_ctl, "-o", options, "start"], check=True, stdout=subprocess.DEVNULL, cwd=folder, **owner)
    yield f"postgresql://mathpipe@/{{}}?host={folder}"
    subprocess.run([*pg_ctl, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL, cwd=folder, **owner)
    shutil.rmtree(folder)


def new_database(request: pytest.FixtureRequest, kind: str, folder: Path) -> str:
    if kind == "sqlite":
        return str(folder / f"{next(NUMBERS)}.sqlite")
    import psycopg

    server, name = request.getfixturevalue("postgres"), f"test{next(NUMBERS)}"
    with psycopg.connect(server.format("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())
    return server.format(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind."""
    return new_database(request, request.param, tmp_path)


@pytest.fixture(params=["sqlite", "postgresql"], scope="module")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One store for many examples."""
    return Store(new_database(request, request.param, tmp_path_factory.mktemp("shared")))


def question(prefix: str, parent: str = "", num_pages: int = 10, num_collected: int = 4, num_tokens: int = 100, **more: Any) -> Question:
    return Question(prefix, parent, num_pages, num_collected, 0.5, num_tokens, (Sample(7, 0.9, True), Sample(2**40, 0.25, False)), **more)


def tree(host: str) -> list[Question]:
    """Two hosts: one of four prefixes below each other and apart, whose pages x/ and y/ cover, but p/ not those of x/; one alone."""
    a, b = f"a.{host}/", f"b.{host}/"
    return [
        question(a, "", 40, 20, 1000, suggestion="math"), question(f"{a}x/", a, 20, 5, 400), question(f"{a}x/p/", f"{a}x/", 6, 3, 50),
        question(f"{a}y/", a, 20, 15, 0), question(b, "", 8, 2, 70),
    ]  # fmt: skip


def add(to: Store, questions: list[Question], round_number: int = 1, **more: Any) -> tuple[int, dict[str, int]]:
    """A queue and the numbers of its questions."""
    queue = to.add_queue(f"queue{next(NUMBERS)}", round_number, PAGES, questions, **more)
    return queue, {asked.prefix: queue * 10_000_000 + place for place, asked in enumerate(questions)}


# what a store says of its questions


def test_lists_rows_with_their_figures_and_orders(address: str) -> None:
    one = Store(address)
    queue, ids = add(one, tree("example"))
    roots, num = one.rows(queue, "ann")
    assert [row.prefix for row in roots] == ["a.example/", "b.example/"] and num == 2
    assert roots[0].samples == (Sample(7, 0.9, True), Sample(2**40, 0.25, False))
    assert roots[0] == Row(
        id=ids["a.example/"], queue=queue, prefix="a.example/", parent_id=None, num_pages=40, num_collected=20, mean_score=0.5,
        num_tokens=1000, gain=10.0, saved_samples=roots[0].saved_samples, num_children=2, state="open", verdict="",
        inherited_from="", version=0, is_done=False, num_wanted=1,
    )  # fmt: skip
    assert roots[1].gain == 6 * 2 / 8
    below, num = one.rows(queue, "ann", parent=ids["a.example/"], order="prefix")
    assert [row.prefix for row in below] == ["a.example/x/", "a.example/y/"] and num == 2
    assert [row.prefix for row in one.path(ids["a.example/x/p/"])] == ["a.example/", "a.example/x/"]
    assert [row.prefix for row in one.rows(queue, "ann", order="prefix", offset=1, limit=1)[0]] == ["b.example/"]
    assert one.rows(queue, "ann", limit=1)[1] == 2 and one.rows(queue, "ann", offset=7) == ([], 2)
    assert {row.prefix for row in one.rows(queue, "ann", search="EXAMPLE/X")[0]} == {"a.example/x/", "a.example/x/p/"}
    assert one.rows(queue, "ann", search="a_example") == ([], 0), "no wildcards"
    for order, first in (("gain", "a.example/"), ("pages", "a.example/"), ("tokens", "a.example/"), ("prefix", "a.example/")):
        found, num = one.rows(queue, "ann", state="open", order=order)
        assert found[0].prefix == first and num == len(found) == 5
    with pytest.raises(ValueError, match="order must be one of gain, .*; found 'size'"):
        one.rows(queue, "ann", order="size")
    for missing in (lambda: one.row(5, "ann"), lambda: one.decide(5, "ann", "math"), lambda: one.progress(99)):
        with pytest.raises(LookupError, match="no (question 5|queue 99)"):
            missing()


def test_children_inherit_the_nearest_decided_ancestor_and_exceptions_count(address: str) -> None:
    one = Store(address)
    queue, ids = add(one, tree("example"))
    one.decide(ids["a.example/"], "ann", "math", "a manual")
    leaf = one.row(ids["a.example/x/p/"], "ann")
    assert (leaf.state, leaf.verdict, leaf.inherited_from, leaf.is_done) == ("open", "math", "a.example/", False)
    assert one.progress(queue).tokens_added == 1000 and one.progress(queue).left == 1
    one.decide(ids["a.example/x/"], "ann", "not_math")
    leaf = one.row(ids["a.example/x/p/"], "ann")
    assert (leaf.verdict, leaf.inherited_from) == ("not_math", "a.example/x/")
    assert one.progress(queue).tokens_added == 600
    one.decide(ids["a.example/x/p/"], "ann", "math")
    assert one.progress(queue).tokens_added == 650
    assert [(line["prefix"], line["decision"], line["reason"], line["who"]) for line in one.final(queue)] == [
        ("a.example/", "math", "a manual", "ann"), ("a.example/x/", "not_math", "", "ann"), ("a.example/x/p/", "math", "", "ann"),
    ]  # fmt: skip
    assert [found.verdict for found in one.suggestions(ids["a.example/"])] == ["math"], "the suggestion is kept apart"
    assert one.suggestions(ids["b.example/"]) == [] and one.row(ids["b.example/"], "ann").state == "open"


def test_a_host_is_done_when_all_below_it_is_and_covers_it(address: str) -> None:
    one = Store(address)
    queue, ids = add(one, tree("example"))
    one.decide(ids["a.example/x/p/"], "ann", "math")
    assert not one.row(ids["a.example/x/"], "ann").is_done, "14 of its 20 pages lie beside p/"
    one.decide(ids["a.example/x/"], "ann", "not_math")
    assert one.progress(queue).left == 2
    one.decide(ids["a.example/y/"], "ann", "skip")
    assert one.row(ids["a.example/"], "ann").is_done and one.progress(queue).left == 1
    one.undo(queue, "ann")
    assert not one.row(ids["a.example/"], "ann").is_done and one.progress(queue).left == 2


def test_what_is_not_settled_adds_nothing_to_the_seeds(address: str) -> None:
    one = Store(address)
    queue, ids = add(one, tree("example"))
    one.decide(ids["a.example/"], "ann", "math")
    one.decide(ids["a.example/x/"], "ann", "flag", "a forum?")
    one.decide(ids["a.example/x/p/"], "bob", "flag")
    for who, verdict in (("ann", "math"), ("bob", "not_math")):
        one.decide(ids["a.example/y/"], who, verdict)
    one.decide(ids["b.example/"], "bob", "flag")
    assert [(line["prefix"], line["decision"], line["reason"], line["who"]) for line in one.final(queue)] == [
        ("a.example/", "math", "", "ann"), ("a.example/x/", "not_math", "not settled: flag", "ann"),
        ("a.example/y/", "not_math", "not settled: disagreement", "ann, bob"),
    ], "below x/ nothing is math, nor on b.example/"  # fmt: skip
    one.decide(ids["a.example/x/"], "eve", "math", kind="settle")
    assert [line["prefix"] for line in one.final(queue) if line["decision"] == "not_math"] == ["a.example/x/p/", "a.example/y/"]


def test_a_verdict_below_a_host_that_needs_two_people_counts_at_once(address: str) -> None:
    one = Store(address)
    queue, ids = add(one, tree("example"), overlap_frac=1.0)
    assert one.decide(ids["a.example/x/"], "ann", "not_math").is_done and one.row(ids["a.example/x/"], "bob").num_wanted == 1
    for who in ("ann", "bob"):
        one.decide(ids["a.example/"], who, "math")
    assert [(line["prefix"], line["decision"]) for line in one.final(queue)] == [("a.example/", "math"), ("a.example/x/", "not_math")]


# decisions against a naive model


class Model:
    """All that follows from a list of events, worked out anew each time."""

    def __init__(self, questions: list[Question], wanted: dict[str, int]) -> None:
        self.questions, self.wanted = questions, wanted
        self.events: list[dict[str, Any]] = []
        self.actors: dict[str, list[str]] = {asked.prefix: [] for asked in questions}

    def is_blind(self, prefix: str) -> bool:
        opinions, is_settled = self.said(prefix)
        return self.wanted[prefix] > 1 and not is_settled and sum(said != "flag" for said in opinions.values()) < self.wanted[prefix]

    def said(self, prefix: str) -> tuple[dict[str, str], bool]:
        opinions: dict[str, str] = {}
        is_settled = False
        for event in self.events:
            if event["prefix"] == prefix and not event["undone"]:
                if event["kind"] == "settle":
                    opinions, is_settled = {}, True
                opinions[event["who"]] = event["verdict"]
        return opinions, is_settled

    def state(self, prefix: str) -> str:
        opinions, is_settled = self.said(prefix)
        found = set(opinions.values())
        if "flag" in found:
            return "flag"
        if "math" in found and "not_math" in found:
            return "disagreement"
        if not opinions or (len(opinions) < self.wanted[prefix] and not is_settled):
            return "open"
        return (found - {"skip"} or found).pop()

    def is_done(self, prefix: str) -> bool:
        below = [asked for asked in self.questions if asked.parent == prefix]
        is_covered = sum(asked.num_pages for asked in below) == next(q.num_pages for q in self.questions if q.prefix == prefix)
        is_closed = bool(below) and is_covered and all(self.is_done(asked.prefix) for asked in below)
        return self.state(prefix) in ("math", "not_math", "skip") or is_closed

    def holds(self, prefix: str) -> tuple[str, str]:
        """(verdict, where from)."""
        chain = [asked.prefix for asked in self.questions if prefix.startswith(asked.prefix)]
        return next(((self.state(p), p) for p in sorted(chain, key=len, reverse=True) if self.state(p) in ("math", "not_math")), ("", ""))

    def tokens_added(self) -> int:
        """Every prefix's own tokens (without those of its children), where math holds."""
        return sum(
            asked.num_tokens - sum(below.num_tokens for below in self.questions if below.parent == asked.prefix)
            for asked in self.questions if self.holds(asked.prefix)[0] == "math"
        )  # fmt: skip

    def conflicts(self, prefix: str, who: str, version: int) -> bool:
        return any(actor == who or not self.is_blind(prefix) for actor in self.actors[prefix][version:])

    def final(self) -> dict[str, tuple[str, str]]:
        """Prefix → (decision, who)."""
        found = {}
        for asked in self.questions:
            state, opinions = self.state(asked.prefix), self.said(asked.prefix)[0]
            if state in ("math", "not_math"):
                found[asked.prefix] = (state, ", ".join(who for who, said in opinions.items() if said == state))
            elif state in ("flag", "disagreement") and self.holds(asked.prefix)[0] == "math":
                found[asked.prefix] = ("not_math", ", ".join(opinions))
        return found

    def decide(self, prefix: str, who: str, verdict: str, kind: str) -> None:
        self.events.append({"prefix": prefix, "who": who, "verdict": verdict, "kind": kind, "undone": False})
        self.actors[prefix].append(who)

    def undo(self, who: str) -> str | None:
        for event in reversed(self.events):
            if event["who"] == who and not event["undone"]:
                event["undone"] = True
                self.actors[event["prefix"]].append(who)
                return event["prefix"]
        return None


ACTIONS = st.one_of(
    st.tuples(st.just("decide"), st.sampled_from(PEOPLE), st.integers(0, 4), st.sampled_from(store.VERDICTS), st.integers(0, 2)),
    st.tuples(st.just("settle"), st.sampled_from(PEOPLE), st.integers(0, 4), st.sampled_from(store.HANDLED), st.integers(0, 1)),
    st.tuples(st.just("import"), st.sampled_from(PEOPLE), st.integers(0, 4), st.sampled_from(("math", "not_math")), st.just(0)),
    st.tuples(st.just("undo"), st.sampled_from(PEOPLE), st.just(0), st.just(""), st.just(0)),
)


@settings(max_examples=15, deadline=None)
@given(actions=st.lists(ACTIONS, min_size=5, max_size=25))
def test_any_sequence_of_decisions_gives_what_a_naive_model_gives(shared: Store, actions: list[tuple[str, str, int, str, int]]) -> None:
    questions = tree(f"{next(NUMBERS)}.example")
    queue, ids = add(shared, questions, overlap_frac=0.5)
    wanted = {prefix: shared.row(number, "").num_wanted for prefix, number in ids.items()}
    assert {wanted[asked.prefix] for asked in questions if asked.parent} == {1}, "only hosts are decided twice"
    model = Model(questions, wanted)
    first = [shared.row(number, "zoe") for number in ids.values()]
    for action, who, place, verdict, lag in actions:
        prefix = questions[place].prefix
        if action == "undo":
            undone = shared.undo(queue, who)
            assert (undone.prefix if undone else None) == model.undo(who)
        elif action == "import":
            is_new = model.said(prefix)[0].get(who) != verdict
            assert shared.import_decisions(queue, [{"prefix": prefix, "decision": verdict, "who": "zoe"}], who) == is_new
            if is_new:
                model.decide(prefix, who, verdict, action)
        else:
            seen = max(0, len(model.actors[prefix]) - lag)
            try:
                shared.decide(ids[prefix], who, verdict, version=seen, kind=action)
            except Conflict as conflict:
                assert model.conflicts(prefix, who, seen)
                assert conflict.version == len(model.actors[prefix])
                assert {decision.who for decision in conflict.decisions} <= ({who} if model.is_blind(prefix) else set(PEOPLE))
            except ValueError as error:
                assert "nothing to settle" in str(error) and action == "settle" and not model.conflicts(prefix, who, seen)
                assert model.state(prefix) not in ("flag", "disagreement")
            else:
                assert not model.conflicts(prefix, who, seen)
                assert action == "decide" or model.state(prefix) in ("flag", "disagreement")
                model.decide(prefix, who, verdict, action)
        progress = shared.progress(queue)
        assert progress.left == sum(not model.is_done(asked.prefix) for asked in questions if not asked.parent)
        assert progress.num_decisions == sum(not event["undone"] and event["kind"] != "import" for event in model.events)
        assert progress.tokens_added == model.tokens_added()
    compare(shared, queue, ids, model)
    while any(shared.undo(queue, who) for who in PEOPLE):
        pass
    assert [Row(**{**shared.row(number, "zoe").__dict__, "version": 0}) for number in ids.values()] == first
    assert shared.progress(queue).tokens_added == shared.progress(queue).num_decisions == 0 and shared.final(queue) == []


def compare(one: Store, queue: int, ids: dict[str, int], model: Model) -> None:
    """Every row as a stranger and as each person sees it, the counts, and the final decisions."""
    states = {prefix: model.state(prefix) for prefix in ids}
    for prefix, number in ids.items():
        row = one.row(number, "zoe")
        verdict, source = model.holds(prefix)
        assert (row.state, row.version, row.is_done) == (states[prefix], len(model.actors[prefix]), model.is_done(prefix))
        assert (row.verdict, row.inherited_from) == (verdict, source if source != prefix else "")
        opinions, _ = model.said(prefix)
        for who in PEOPLE:
            visible = {decision.who for decision in one.decisions_on(number, who) if decision.verdict != "flag"}
            assert not model.is_blind(prefix) or visible <= {who}
            own = states[prefix] if states[prefix] != "open" else opinions.get(who, "open")
            assert one.row(number, who).state == own
    progress = one.progress(queue)
    assert progress.num_flagged == sum(state == "flag" for state in states.values())
    assert progress.num_disagreements == sum(state == "disagreement" for state in states.values())
    assert one.disagreements(queue)[1] == progress.num_flagged + progress.num_disagreements
    assert {line["prefix"]: (line["decision"], line["who"]) for line in one.final(queue)} == model.final()
    for state in set(states.values()):
        assert one.rows(queue, "zoe", state=state)[1] == sum(found == state for found in states.values())


def test_what_cannot_be_decided_is_refused(address: str) -> None:
    one = Store(address)
    queue, ids = add(one, tree("example"))
    for who, verdict, kind in (("ann", "perhaps", "decide"), ("ann", "flag", "settle"), ("", "math", "decide"), ("ann", "math", "import")):
        with pytest.raises(ValueError, match="expected who, and one of math, not_math, skip"):
            one.decide(ids["b.example/"], who, verdict, kind=kind)
    assert one.rows(queue, "ann", search="\0%\\'\"") == ([], 0)
    one.decide(ids["a.example/y/"], "ann\0", "math", "odd\0 \u202e';--%(x)s :queue")
    assert one.log(queue)[0][0].note.endswith("';--%(x)s :queue") and one.undo(queue, "ann\0")
    one.finish(queue, "ann", "enough")
    one.finish(queue, "bob", "too late")
    assert one.queues()[0].finished_by == "ann" and one.progress(queue).is_finished
    for refused in (lambda: one.decide(ids["b.example/"], "ann", "math"), lambda: one.undo(queue, "ann")):
        with pytest.raises(Finished, match="round 1 was finished by ann; open it again to decide"):
            refused()
    one.reopen(queue)
    assert one.decide(ids["b.example/"], "ann", "math").state == "math" and one.queues()[0].finished_by == ""
    with pytest.raises(ValueError, match="b.example/: nothing to settle; it is math"):
        one.decide(ids["b.example/"], "bob", "not_math", kind="settle")
    one.finish(queue, "", "no host is left")
    with pytest.raises(Finished, match="round 1 was finished by itself: no host is left; open it again to decide"):
        one.undo(queue, "ann")


def test_a_budget_that_is_spent_takes_no_more_decisions(address: str) -> None:
    one = Store(address)
    queue, ids = add(one, [question(f"{i}.example/") for i in range(5)], max_decisions=2)
    assert (one.progress(queue).left, one.progress(queue).total) == (2, 5)
    one.decide(ids["0.example/"], "ann", "math")
    one.decide(ids["1.example/"], "bob", "flag")
    assert one.progress(queue).left == 0 and one.next_open(queue, "ann") is None
    for number, kind in ((2, "decide"), (1, "settle")):
        with pytest.raises(Finished, match="the budget of 2 decisions of round 1 is spent"):
            one.decide(ids[f"{number}.example/"], "ann", "math", kind=kind)
    assert one.import_decisions(queue, [{"prefix": "2.example/", "decision": "math"}], "ann") == 1, "imports cost nothing"
    assert one.undo(queue, "ann") and one.undo(queue, "ann") and one.progress(queue).left == 1
    assert one.decide(ids["2.example/"], "ann", "math").state == "math"


# several people


def test_of_two_who_decide_on_one_prefix_at_once_exactly_one_gets_a_conflict(address: str) -> None:
    stores = [Store(address), Store(address)]
    queue, ids = add(stores[0], [question(f"{i}.example/") for i in range(8)])
    conflicts: list[tuple[int, str]] = []

    def work(one: Store, who: str, verdict: str) -> None:
        for number in ids.values():
            barrier.wait()
            try:
                one.decide(number, who, verdict, version=0)
            except Conflict as conflict:
                assert [decision.who for decision in conflict.decisions] == [{"ann": "bob", "bob": "ann"}[who]] and conflict.version == 1
                conflicts.append((number, who))

    barrier = threading.Barrier(2, timeout=20)
    threads = [threading.Thread(target=work, args=args) for args in zip(stores, ("ann", "bob"), ("math", "not_math"), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in conflicts) == sorted(ids.values())
    number, who = conflicts[0]
    assert stores[0].decide(number, who, "math" if who == "ann" else "not_math", version=1).state == "disagreement", "both stand"
    settled = stores[1].decide(number, "eve", "math", "asked the authors", version=2, kind="settle")
    assert settled.state == "math" and stores[0].disagreements(queue) == ([], 0)
    assert [line["who"] for line in stores[0].final(queue) if line["prefix"] == settled.prefix] == ["eve"]


def test_a_stale_version_is_a_conflict_under_the_same_name_too(address: str) -> None:
    one = Store(address)
    queue, ids = add(one, tree("example"), overlap_frac=0.5)
    for number in ids.values():  # of hosts that need two people and others
        one.decide(number, "ann", "math", "in one window", version=0)
        with pytest.raises(Conflict) as conflict:
            one.decide(number, "ann", "not_math", "in another", version=0)
        assert [d.note for d in conflict.value.decisions] == ["in one window"] and conflict.value.version == 1
        assert one.row(number, "ann").state == "math"
        one.undo(queue, "ann")
        with pytest.raises(Conflict):
            one.decide(number, "ann", "not_math", version=1)
        assert one.decide(number, "ann", "not_math", version=2).state == "not_math"
        assert one.decide(number, "ann", "math").state == "math", "without a version as before"


def test_a_flag_shows_nobody_what_others_said(address: str) -> None:
    one = Store(address)
    queue, ids = add(one, [question("a.example/"), question("b.example/")], overlap_frac=1.0)
    number = ids["a.example/"]
    one.decide(number, "ann", "math", "all proofs")
    assert one.decide(number, "bob", "flag", "what is it?", version=0).state == "flag"
    for who, seen in (("ann", {"math", "flag"}), ("bob", {"flag"}), ("eve", {"flag"})):
        assert {d.verdict for d in one.decisions_on(number, who)} == seen
        assert {d.verdict for d in one.log(queue, viewer=who)[0]} == (seen if who == "ann" else {"flag", "hidden"})
    assert one.decide(number, "bob", "not_math", version=2).state == "disagreement"
    assert {d.verdict for d in one.decisions_on(number, "eve")} == {"math", "not_math", "flag"}, "two have decided"
    one.decide(ids["b.example/"], "ann", "flag")
    one.decide(ids["b.example/"], "eve", "not_math", kind="settle")
    assert {d.verdict for d in one.decisions_on(ids["b.example/"], "bob")} == {"flag", "not_math"}, "settled"


def test_with_overlap_the_second_annotator_is_blind(address: str) -> None:
    one = Store(address)
    queue, ids = add(one, tree("example"), overlap_frac=1.0)
    number = ids["b.example/"]
    assert one.decide(number, "ann", "math", "looks good").state == "math", "to herself"
    seen = one.row(number, "bob")
    assert (seen.state, seen.verdict, seen.is_done, seen.num_wanted) == ("open", "", False, 2)
    assert one.decisions_on(number, "bob") == [] and [d.who for d in one.decisions_on(number, "ann")] == ["ann"]
    assert [(d.who, d.verdict, d.note) for d in one.log(queue, viewer="bob")[0]] == [("ann", "hidden", "")]
    assert [d.note for d in one.log(queue, viewer="ann")[0]] == ["looks good"]
    assert one.final(queue) == [] and one.progress(queue).left == 2
    assert one.decide(number, "bob", "not_math", version=0).state == "disagreement", "no conflict, which would tell him"
    assert {d.who for d in one.decisions_on(number, "bob")} == {"ann", "bob"}
    given = [one.next_open(queue, who) for who in ("ann", "bob", "eve")]
    assert [row and row.prefix for row in given] == ["a.example/", "a.example/", None], "to two people and no more"


def test_the_share_that_needs_two_people_follows_from_the_hosts_names() -> None:
    chosen = [num_wanted(f"host{i}.example/", 0.25) for i in range(2000)]
    assert set(chosen) == {1, 2} and abs(chosen.count(2) / 2000 - 0.25) < 0.03
    assert chosen == [num_wanted(f"host{i}.example/", 0.25) for i in range(2000)]
    assert num_wanted("a/", 0) == 1 and num_wanted("a/", 1) == 2


def test_the_next_question_is_the_best_that_nobody_else_was_given(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Store(address)
    queue, ids = add(one, tree("example"))

    def next_prefix(who: str, after: str = "") -> str | None:
        row = one.next_open(queue, who, ids[after] if after else None)
        return row and row.prefix

    assert next_prefix("ann") == "a.example/" and next_prefix("ann") == "a.example/" and next_prefix("bob") == "b.example/"
    assert next_prefix("eve") is None
    later = time.time() + store.CLAIM_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert next_prefix("eve") == "a.example/", "ann has gone away"
    one.decide(ids["a.example/x/p/"], "eve", "math")
    assert next_prefix("eve", after="a.example/x/p/") == "a.example/x/", "above it"
    one.decide(ids["a.example/x/"], "eve", "math")
    assert next_prefix("eve", after="a.example/x/p/") == "a.example/y/", "x/ is done: beside it"
    one.decide(ids["a.example/y/"], "eve", "not_math")
    assert next_prefix("eve", after="a.example/y/") == "b.example/", "then a root"
    one.decide(ids["b.example/"], "eve", "flag")
    assert next_prefix("eve") is None and next_prefix("bob") == "b.example/", "a flag stays open for others"


def test_kappa_by_hand() -> None:
    """20 agree on math, 15 on not, 5 + 10 differ: observed 0.7, by chance (25 · 30 + 25 · 20) / 50² = 0.5."""
    said = [("math", "math")] * 20 + [("math", "not_math")] * 5 + [("not_math", "math")] * 10 + [("not_math", "not_math")] * 15
    assert kappa(said) == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    assert kappa([("math", "math")] * 3) is None and kappa([]) is None, "undefined where chance alone agrees"
    assert kappa([("math", "not_math")] * 3) == 0 and kappa([("math", "not_math"), ("not_math", "math")]) == -1


@given(st.lists(st.tuples(st.sampled_from("mns"), st.sampled_from("mns")), min_size=1, max_size=40))
def test_kappa_is_what_the_weighted_confusion_matrix_gives(said: list[tuple[str, str]]) -> None:
    """The formula of scikit-learn's cohen_kappa_score: 1 − Σ w·confusion / Σ w·expected, w = 1 off the diagonal."""
    import numpy as np

    confusion = np.array([[said.count((a, b)) for b in "mns"] for a in "mns"], float)
    expected = np.outer(confusion.sum(1), confusion.sum(0)) / confusion.sum()
    off = 1 - np.eye(3)
    if (off * expected).sum() == 0:
        assert kappa(said) is None
    else:
        assert kappa(said) == pytest.approx(1 - (off * confusion).sum() / (off * expected).sum())


def test_agreement_counts_what_was_said_before_people_saw_each_other(address: str) -> None:
    one = Store(address)
    queue, ids = add(one, [question(f"{i}.example/") for i in range(6)], overlap_frac=1.0)
    said = [("math", "math"), ("math", "not_math"), ("not_math", "not_math"), ("skip", "math")]
    for number, (ann, bob) in zip(ids.values(), said, strict=False):
        one.decide(number, "ann", ann)
        one.decide(number, "bob", bob)
    one.decide(ids["1.example/"], "bob", "math", "now I see")
    one.decide(ids["4.example/"], "ann", "math")
    one.decide(ids["5.example/"], "eve", "math")
    found = one.agreement(queue)
    (pair,) = found.pairs
    assert (pair.a, pair.b, pair.n, pair.agreed) == ("ann", "bob", 3, 2 / 3)
    assert pair.kappa == pytest.approx(found.kappa) == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))
    assert (found.n, found.agreed) == (3, 2 / 3)
    assert one.people(queue) == {"ann": 5, "bob": 5, "eve": 1}
    one.undo(queue, "bob")
    one.undo(queue, "bob")
    one.decide(ids["3.example/"], "bob", "math")
    assert one.agreement(queue).pairs == found.pairs, "taken back and decided again after he saw hers"
    one.undo(queue, "ann")
    one.decide(ids["4.example/"], "bob", "flag")
    one.decide(ids["4.example/"], "ann", "not_math")
    one.decide(ids["4.example/"], "bob", "not_math")
    one.decide(ids["5.example/"], "ann", "flag")
    one.decide(ids["5.example/"], "ann", "math", kind="settle")
    one.decide(ids["5.example/"], "bob", "math")
    later, _ = add(one, [question(f"{i}.example/") for i in range(6)], 2, overlap_frac=1.0)
    for asked in (queue, later):
        pairs = one.agreement(asked).pairs
        assert [(pair.a, pair.b, pair.n) for pair in pairs] == [("ann", "bob", 4)], "in any round; not after a settlement"
        assert pairs[0].agreed == 3 / 4
    once, _ = add(one, [question(f"{i}.example/") for i in range(6)], 3)
    assert one.agreement(once).pairs == [], "nobody had to decide twice"
    empty = agree([])
    assert (empty.pairs, empty.n, empty.agreed, empty.kappa) == ([], 0, None, None)


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
