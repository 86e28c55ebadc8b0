"""People as a source of decisions: what the stage asks, how it waits, ends, survives a kill, and what the rounds make of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from annotation_stage import HOSTS, PATIENT, Running, decisions_in, ids, make_inputs, out_of, wait_for, waiting_store
from corpus_artifacts import finish, folder, needs_shared

from mathpipe.corpus import annotate, classifier, domains, grow, score, selection, urls
from mathpipe.corpus.annotation.schema import DatabaseError
from mathpipe.corpus.annotation.store import Store
from mathpipe.corpus.round_config import (
    AnnotateConfig,
    AnnotateInputs,
    ClassifierConfig,
    ClassifierInputs,
    DomainsConfig,
    DomainsInputs,
    GrowConfig,
    GrowInputs,
    ScoreConfig,
    ScoreInputs,
    SelectConfig,
    SelectInputs,
)
from mathpipe.pipeline import artifact, stage
from mathpipe.pipeline.config import annotate_command


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotate, "POLL_S", 0.02)
    monkeypatch.setattr(annotate, "GRACE_S", 0.2)


def test_it_ends_when_no_host_is_left_and_gives_exactly_the_final_verdicts(quick: None, tmp_path: Path) -> None:
    config = AnnotateConfig(source="human", overlap_frac=0.0, runtime=PATIENT)
    out, inputs = out_of(tmp_path / "toy"), make_inputs(tmp_path / "in")
    running = Running(config, inputs, out)
    store = waiting_store(tmp_path / "toy")
    asked = ids(store)
    assert sorted(asked) == ["a.org/", "a.org/blog/", "a.org/q/", "b.org/", "c.org/", "c.org/x/", "c.org/y/"]
    store.decide(asked["a.org/"], "ann", "math", "exercises")
    store.decide(asked["a.org/blog/"], "ann", "not_math")
    store.decide(asked["b.org/"], "bob", "skip")
    store.decide(asked["c.org/x/"], "bob", "math")
    wait_for(lambda: store.progress(1).left == 1)
    time.sleep(0.5)
    assert running.is_alive(), "one half of c.org is open"
    store.decide(asked["c.org/y/"], "ann", "not_math")
    time.sleep(0.05)
    assert store.undo(1, "ann") is not None
    time.sleep(0.5)
    assert running.is_alive(), "the last decision was taken back in time"
    store.decide(asked["c.org/y/"], "ann", "math", "problems\u2028and proofs")
    facts = running.result()
    found = decisions_in(out)
    assert {decision["prefix"]: (decision["decision"], decision["who"], decision["reason"]) for decision in found} == {
        "a.org/": ("math", "ann", "exercises"), "a.org/blog/": ("not_math", "ann", ""), "c.org/x/": ("math", "bob", ""),
        "c.org/y/": ("math", "ann", "problems\u2028and proofs"),
    }  # fmt: skip
    assert facts == {
        "round": 1, "annotation_source": "human", "num_decisions": 4, "num_math": 3, "decided_before": 0, "num_left": 0,
        "num_unsettled": 0, "annotators": ["ann", "bob"], "kappa": None,
    }  # fmt: skip
    assert store.queues()[0].is_finished

    export = tmp_path / "export.jsonl"
    artifact.write_lines(export, store.final(1))
    again = folder(tmp_path, "file")
    annotate.run(AnnotateConfig(source="file", file=str(export)), inputs, again)
    assert (again / "decisions.jsonl").read_bytes() == (out / "decisions.jsonl").read_bytes()


@pytest.mark.parametrize("ending", ["budget", "finished"])
def test_it_ends_with_a_budget_or_when_somebody_finishes(quick: None, tmp_path: Path, ending: str) -> None:
    config = AnnotateConfig(source="human", max_decisions=2 if ending == "budget" else 0, runtime=PATIENT)
    out = out_of(tmp_path / "toy")
    running = Running(config, make_inputs(tmp_path / "in"), out)
    store = waiting_store(tmp_path / "toy")
    asked = ids(store)
    store.decide(asked["a.org/q/"], "ann", "math")
    store.decide(asked["b.org/"], "ann", "flag")
    if ending == "finished":
        store.finish(1, "ann", "enough")
    facts = running.result()
    assert [decision["prefix"] for decision in decisions_in(out)] == ["a.org/q/"]
    assert (facts["num_decisions"], facts["num_left"], facts["num_unsettled"]) == (1, 3, 1)


def test_kappa_and_unsettled_prefixes_are_facts(quick: None, tmp_path: Path) -> None:
    out = out_of(tmp_path / "toy")
    running = Running(AnnotateConfig(source="human", overlap_frac=1.0, runtime=PATIENT), make_inputs(tmp_path / "in"), out)
    store = waiting_store(tmp_path / "toy")
    asked = ids(store)
    for who, verdicts in {"ann": ("math", "not_math", "math"), "bob": ("math", "not_math", "not_math")}.items():
        for host, verdict in zip(("a.org/", "b.org/", "c.org/"), verdicts, strict=True):
            store.decide(asked[host], who, verdict)
    store.finish(1, "ann", "enough")
    facts = running.result()
    assert [decision["prefix"] for decision in decisions_in(out)] == ["a.org/", "b.org/"]
    assert facts["num_unsettled"] == 1
    assert facts["kappa"] == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9)), "observed 2/3; by chance 2/3·1/3 + 1/3·2/3"


def progress_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "progress.json").read_text()) if (out / "progress.json").exists() else {"message": "", "done": -1}


def test_it_waits_while_a_page_is_served_and_says_where(quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out, runs = out_of(tmp_path / "toy"), tmp_path / "toy"
    config, inputs = AnnotateConfig(source="human"), make_inputs(tmp_path / "in")
    with pytest.raises(stage.Waiting, match="^3 hosts wait for people$"):
        annotate.run(config, inputs, out)
    store = Store(str(runs / "annotations.sqlite"))
    assert not store.queues()[0].is_waited_for, "nobody listens"
    store.seen("http://127.0.0.1:9999/")
    running = Running(config, inputs, out)
    store.decide(ids(store)["a.org/"], "ann", "math")
    wait_for(lambda: progress_of(out)["done"] == 1 and progress_of(out)["url"])
    found = progress_of(out)
    assert (found["total"], found["unit"], found["url"], found["message"]) == (3, "hosts", "http://127.0.0.1:9999/q/1", "1 decision")
    assert store.queues()[0].is_waited_for
    assert len(store.queues()) == 1, "the queue of the first attempt"
    monkeypatch.setattr(Store, "server", lambda self: None)
    running.join(30)
    assert running.error == "2 hosts wait for people"
    patient = Running(AnnotateConfig(source="human", runtime=PATIENT), inputs, out)
    wait_for(lambda: f"nobody serves the page: run `{annotate_command('toy')}`" in progress_of(out)["message"])
    assert progress_of(out)["url"] == "http://127.0.0.1:8765/q/1"
    store.finish(1, "ann", "enough")
    assert patient.result()["num_decisions"] == 1


def test_what_is_to_be_settled_keeps_a_queue_open(quick: None, tmp_path: Path) -> None:
    out, inputs = out_of(tmp_path / "toy"), make_inputs(tmp_path / "in")
    running = Running(AnnotateConfig(source="human", runtime=PATIENT), inputs, out)
    store = waiting_store(tmp_path / "toy")
    asked = ids(store)
    for host in ("a.org/", "b.org/", "c.org/"):
        store.decide(asked[host], "ann", "math")
    store.decide(asked["a.org/blog/"], "ann", "flag")
    wait_for(lambda: "4 decisions; 1 to settle" in progress_of(out)["message"])
    time.sleep(0.5)
    assert running.is_alive() and progress_of(out)["done"] == 3, "no host is left, a flag is"
    store.decide(asked["a.org/blog/"], "bob", "not_math", kind="settle")
    facts = running.result()
    assert (facts["num_left"], facts["num_unsettled"], facts["num_decisions"]) == (0, 0, 4)

    again = out_of(tmp_path / "toy", "round1.annotate-4567abcd")
    store.reopen(1)
    store.decide(asked["a.org/q/"], "ann", "flag")
    with pytest.raises(stage.Waiting, match="^1 prefix is to be settled$"):
        annotate.run(AnnotateConfig(source="human"), inputs, again)


def test_the_end_waits_for_the_last_decision_and_the_last_undo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(annotate, "POLL_S", 0.02)
    assert annotate.GRACE_S == 15
    out = out_of(tmp_path / "toy")
    running = Running(AnnotateConfig(source="human", runtime=PATIENT), make_inputs(tmp_path / "in", hosts={"b.org": {"": 6}}), out)
    store = waiting_store(tmp_path / "toy")
    question = ids(store)["b.org/"]
    store.decide(question, "ann", "math")
    wait_for(lambda: "all decided, goes on in 1" in progress_of(out)["message"])
    assert progress_of(out)["message"] in ("all decided, goes on in 15 s", "all decided, goes on in 14 s") and running.is_alive()
    store.finish(1, "ann", "go on now")
    assert running.result()["num_decisions"] == 1


def test_the_age_of_the_last_event_survives_clocks_that_differ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(stage.Waiting):
        annotate.run(AnnotateConfig(source="human"), make_inputs(tmp_path / "in"), out_of(tmp_path / "toy"))
    store, now = waiting_store(tmp_path / "toy"), time.time()
    assert annotate.Events().age_s(store, 1) > 1e9, "there was none"
    store.decide(ids(store)["b.org/"], "ann", "math")
    monkeypatch.setattr(annotate.time, "time", lambda: now + 60)
    assert 59 < annotate.Events().age_s(store, 1) < 61
    store.undo(1, "ann")
    assert 0 <= annotate.Events().age_s(store, 1) < 1, "an undo is an event"
    monkeypatch.setattr(annotate.time, "time", lambda: now - 3600)
    events = annotate.Events()
    assert 0 <= events.age_s(store, 1) < 1
    time.sleep(0.05)
    assert 0.05 <= events.age_s(store, 1) < 1, "the people's clock is an hour ahead: we count from when we saw it"


def test_where_all_was_decided_before_the_log_says_so(quick: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inputs, config = make_inputs(tmp_path / "in"), AnnotateConfig(source="human")
    with pytest.raises(stage.Waiting):
        annotate.run(config, inputs, out_of(tmp_path / "toy"))
    store = waiting_store(tmp_path / "toy")
    for host in ("a.org/", "b.org/", "c.org/"):
        store.decide(ids(store)[host], "ann", "math")
    with caplog.at_level("INFO"):
        annotate.run(config, inputs, out_of(tmp_path / "toy"))
        assert "earlier rounds" not in caplog.text
        annotate.run(config, inputs, out_of(tmp_path / "toy", "round2.annotate-0123abcd"))
    assert "nothing to ask: all 3 hosts were decided in earlier rounds" in caplog.text


def test_a_database_that_goes_away_is_one_line(quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise DatabaseError("annotations.sqlite: server closed the connection")

    inputs = make_inputs(tmp_path / "in")
    running = Running(AnnotateConfig(source="human", runtime=PATIENT), inputs, out_of(tmp_path / "toy"))
    waiting_store(tmp_path / "toy").finish(1, "ann", "enough")
    running.result()
    for name in ("queues", "add_queue", "progress", "final", "agreement"):
        with monkeypatch.context() as patch:
            patch.setattr(Store, name, gone)
            with pytest.raises(ValueError, match=r"annotations\.sqlite: server closed the connection; run the same command again"):
                annotate.run(AnnotateConfig(source="human"), inputs, out_of(tmp_path / "toy"))


def test_who_waits_asks_a_silent_database_again(quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out, progress, silent = out_of(tmp_path / "toy"), Store.progress, threading.Event()

    def sometimes(self: Store, queue: int) -> Any:
        if silent.is_set():
            raise DatabaseError("annotations.sqlite: server closed the connection")
        return progress(self, queue)

    monkeypatch.setattr(Store, "progress", sometimes)
    running = Running(AnnotateConfig(source="human", runtime=PATIENT), make_inputs(tmp_path / "in"), out)
    store = waiting_store(tmp_path / "toy")
    wait_for(lambda: progress_of(out)["message"])
    silent.set()
    wait_for(lambda: "the database does not answer" in progress_of(out)["message"])
    assert "server closed the connection" in progress_of(out)["message"] and running.is_alive()
    silent.clear()
    wait_for(lambda: "0 decisions" in progress_of(out)["message"])
    store.finish(1, "ann", "enough")
    assert running.result()["num_decisions"] == 0


def test_what_was_decided_holds_in_the_next_round(quick: None, tmp_path: Path) -> None:
    config = AnnotateConfig(source="human", runtime=PATIENT)
    first = Running(config, make_inputs(tmp_path / "1"), out_of(tmp_path / "toy"))
    store = waiting_store(tmp_path / "toy")
    asked = ids(store)
    for prefix, verdict in {"a.org/": "math", "a.org/q/": "not_math", "b.org/": "skip", "c.org/": "not_math"}.items():
        store.decide(asked[prefix], "ann", verdict)
    assert first.result()["num_decisions"] == 3
    out = out_of(tmp_path / "toy", "round2.annotate-4567abcd")
    second = Running(config, make_inputs(tmp_path / "2", 2, {**HOSTS, "d.org": {"": 5}}), out)
    waiting_store(tmp_path / "toy", 2)
    assert [row.prefix for row in store.rows(2, "bob", state="left")[0]] == ["d.org/"], "only what is new is open"
    store.decide(ids(store, 2)["d.org/"], "bob", "math")
    facts = second.result()
    assert (facts["round"], facts["num_decisions"], facts["decided_before"], facts["annotators"]) == (2, 4, 3, ["bob"])
    assert [decision["prefix"] for decision in decisions_in(out)] == ["a.org/", "a.org/q/", "c.org/", "d.org/"]
    again = out_of(tmp_path / "toy", "round2.annotate-89ababcd")
    assert annotate.run(AnnotateConfig(source="human"), make_inputs(tmp_path / "2", 2), again)["num_decisions"] == 3, "nothing to ask"


def command(tmp_path: Path, inputs: AnnotateInputs, out: Path, *words: str) -> list[str]:
    (tmp_path / "c.toml").write_text('[annotate]\nsource = "human"\n')
    pairs = [f"{name}={getattr(inputs, name)}" for name in ("pages", "selected", "domains", "scores")]
    given = [word for pair in pairs for word in ("--in", pair)]
    stage_words = ["-m", "mathpipe.corpus.annotate", "--stage", "round1.annotate", "--config", str(tmp_path / "c.toml")]
    return [sys.executable, *stage_words, *given, "--out", str(out), *words]


def interrupted(process: subprocess.Popen[bytes]) -> int:
    """Exit code after Ctrl-C, pressed again where Python drops it (in a destructor it is only printed)."""
    for _ in range(10):
        process.send_signal(signal.SIGINT)
        try:
            return process.wait(5)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError("Ctrl-C does not end it")


def test_kill_9_while_people_decide_loses_nothing_and_the_same_command_continues(tmp_path: Path) -> None:
    inputs, out = make_inputs(tmp_path / "in"), out_of(tmp_path / "toy")
    nobody = subprocess.run(command(tmp_path, inputs, out), capture_output=True, text=True)
    assert (nobody.returncode, nobody.stderr) == (75, "waiting: 3 hosts wait for people\n")
    store = waiting_store(tmp_path / "toy")
    asked, words = ids(store), command(tmp_path, inputs, out, "--set", "runtime.wait=true")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    wait_for(lambda: stage.is_running(out) and (out / "progress.json").exists())
    store.decide(asked["a.org/"], "ann", "math")
    process.kill()
    process.wait()
    store.decide(asked["b.org/"], "ann", "not_math")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    wait_for(lambda: json.loads((out / "progress.json").read_text())["done"] == 2)
    assert interrupted(process) == 130, "Ctrl-C continues later"
    store.decide(asked["c.org/"], "bob", "math")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    wait_for(lambda: "all decided, goes on" in progress_of(out)["message"])
    store.finish(1, "bob", "go on now")
    assert process.wait(60) == 0
    assert [(d["prefix"], d["decision"], d["who"]) for d in decisions_in(out)] == [
        ("a.org/", "math", "ann"), ("b.org/", "not_math", "ann"), ("c.org/", "math", "bob"),
    ]  # fmt: skip
    assert artifact.read_manifest(out)["annotators"] == ["ann", "bob"] and len(store.queues()) == 1


def annotate_questions(inputs: AnnotateInputs) -> list[Any]:
    from mathpipe.corpus.annotation.questions import questions

    return questions(inputs.pages, inputs.scores, inputs.selected, inputs.domains, AnnotateConfig(source="human"), annotate.NUM_SAMPLES)


def pages_below(source: Path, prefix: str) -> set[int]:
    """Ids of the pages under a prefix, by its text."""
    rows = [row for table in artifact.read_columns(source, ["id", "url"]) for row in table.to_pylist()]
    return {row["id"] for row in rows if urls.normalize(row["url"]).startswith(prefix)}


@needs_shared
def test_decisions_of_people_make_the_next_rounds_seeds(quick: None, small_pages: Path, tmp_path: Path) -> None:
    out = {name: folder(tmp_path, name) for name in ("train", "score", "select", "domains")}
    few = {"num_seeds": 40, "bucket": 33_000, "epoch": 10, "lr": 0.5}
    config = ClassifierConfig(seed_hosts=("docs.python-sympy.example",), negatives="uncollected", **few)
    finish(out["train"], classifier.run(config, ClassifierInputs(small_pages), out["train"]))
    finish(out["score"], score.run(ScoreConfig(), ScoreInputs(small_pages, out["train"]), out["score"]))
    finish(out["select"], selection.run(SelectConfig(top_tokens=(60_000,)), SelectInputs(small_pages, out["score"]), out["select"]))
    finish(out["domains"], domains.run(DomainsConfig(), DomainsInputs(small_pages, out["score"], out["select"]), out["domains"]))
    inputs = AnnotateInputs(small_pages, out["select"], out["domains"], out["score"])
    collected = {row for table in artifact.read_columns(out["select"], ["id"]) for row in table["id"].to_pylist()}
    first_seeds = set(pq.read_table(out["train"] / "seeds.parquet")["id"].to_pylist())

    def seeds_after(name: str, verdicts: dict[str, str]) -> tuple[set[int], Path]:
        decided, running = out_of(tmp_path / name), None
        running = Running(AnnotateConfig(source="human", runtime=PATIENT), inputs, decided)
        store = waiting_store(tmp_path / name)
        asked = ids(store)
        for prefix, verdict in verdicts.items():
            store.decide(asked[prefix], "ann", verdict)
        store.finish(1, "ann", "enough")
        finish(decided, running.result())
        grown = folder(tmp_path / name, "round1")
        read = GrowInputs(small_pages, out["train"], out["select"], out["domains"], decided)
        finish(grown, grow.run(GrowConfig(), read, grown))
        return set(pq.read_table(grown / "seeds.parquet")["id"].to_pylist()), grown

    asked = annotate_questions(inputs)
    roots = sorted((q for q in asked if not q.parent), key=lambda q: -q.gain)
    (parent, child) = next((q.parent, q) for q in sorted(asked, key=lambda q: -q.gain) if q.parent)
    other = next(q.prefix for q in roots if q.prefix != parent and q.num_pages > q.num_collected)
    seeds, grown = seeds_after("a", {parent: "math", child.prefix: "not_math", other: "math"})
    wanted = (pages_below(small_pages, parent) - pages_below(small_pages, child.prefix)) | pages_below(small_pages, other)
    assert seeds == first_seeds | (wanted - collected)
    fewer, _ = seeds_after("b", {parent: "math", child.prefix: "not_math", other: "not_math"})
    assert seeds - fewer == pages_below(small_pages, other) - collected - first_seeds != set()
    after = classifier.run(config, ClassifierInputs(small_pages, grown), folder(tmp_path, "train2"))
    assert after["num_positives"] == len(seeds) > len(fewer)
