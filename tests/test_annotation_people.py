"""Several people on one annotation queue: conflicts, blind seconds, turns, agreement."""

from __future__ import annotations

import threading
import time

import pytest
from annotation_database import add, question, tree
from hypothesis import given
from hypothesis import strategies as st

from mathpipe.corpus.annotation import store
from mathpipe.corpus.annotation.agreement import agree, kappa
from mathpipe.corpus.annotation.records import num_wanted
from mathpipe.corpus.annotation.store import Conflict, Store


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
