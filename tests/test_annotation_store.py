"""The store of the annotation queue, on SQLite and on PostgreSQL: what it says of its questions, decisions against a naive model."""

from __future__ import annotations

from typing import Any

import pytest
from annotation_database import NUMBERS, PEOPLE, add, question, tree
from hypothesis import given, settings
from hypothesis import strategies as st

from mathpipe.corpus.annotation import store
from mathpipe.corpus.annotation.store import Conflict, Finished, Question, Row, Sample, Store

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
