"""`mathpipe annotate`: import, export, finish, and who may come to the server."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from annotation_stage import Running, ids, make_inputs, out_of, wait_for, waiting_store

from mathpipe.corpus import annotate
from mathpipe.corpus.annotation import serve as serve_module
from mathpipe.corpus.annotation.schema import DatabaseError
from mathpipe.corpus.annotation.store import Store
from mathpipe.corpus.round_config import (
    AnnotateConfig,
)
from mathpipe.pipeline import cli, stage
from mathpipe.pipeline.config import annotate_command


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Store]:
    """A queue that waits in the profile `tiny` below tmp_path."""
    with pytest.raises(stage.Waiting):
        annotate.run(AnnotateConfig(source="human"), make_inputs(tmp_path / "in"), out_of(tmp_path / "tiny"))
    yield Store(str(tmp_path / "tiny" / "annotations.sqlite"))


def mathpipe(tmp_path: Path, *words: str) -> None:
    cli.main(["annotate", "--runs", str(tmp_path), "--who", "ann", *words])


def test_export_import_and_finish_from_the_command_line(queue: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = {"prefix": "b.org/", "decision": "not_math", "reason": "a shop", "who": "bob"}
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n")
    mathpipe(tmp_path, "--import", str(tmp_path / "in.jsonl"))
    queue.decide(ids(queue)["a.org/"], "ann", "math")
    mathpipe(tmp_path, "--export", str(tmp_path / "out.jsonl"))
    mathpipe(tmp_path, "--finish")
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"round1.annotate: 1 decision imported from {tmp_path}/in.jsonl; 2 of 3 hosts open",
        f"{tmp_path}/out.jsonl: 2 decisions",
        "round1.annotate: finished with 2 decisions; 1 of 3 hosts open; run the same command again: no run waits now",
    ]
    exported = [json.loads(text) for text in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert exported == queue.final(1) and {**exported[1], "at": 0} == {**line, "reason": "a shop (bob)", "who": "ann", "at": 0}
    refusals = {("--finish",): "no queue waits; that of round1.annotate is finished", ("--import", "nowhere"): "no queue waits"}
    for words, wrong in refusals.items():
        with pytest.raises(SystemExit, match="2"):
            mathpipe(tmp_path, *words)
        assert wrong in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        mathpipe(tmp_path, "--profile", "small", "--export", "x")
    assert "no queue of small is there yet; start `mathpipe run --profile small` with annotate.source" in capsys.readouterr().err


def test_finish_and_import_act_on_the_queue_that_is_waited_for(
    queue: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    (tmp_path / "in.jsonl").write_text('{"prefix": "b.org/", "decision": "not_math"}\n')
    newer = queue.add_queue("tiny/round1.annotate-4567abcd", 1, tmp_path, [], annotate="round1.annotate")
    other = queue.add_queue("small/round1.annotate-0123abcd", 1, tmp_path, [], annotate="round1.annotate")
    for words in (["--finish"], ["--import", str(tmp_path / "in.jsonl")]):
        with pytest.raises(SystemExit, match="2"):
            mathpipe(tmp_path, *words)
        names = "tiny/round1.annotate-4567abcd (/q/2), tiny/round1.annotate-0123abcd (/q/1)"
        assert f"several queues are open: {names};" in capsys.readouterr().err
    queue.stamp(other)
    queue.stamp(1)
    mathpipe(tmp_path, "--import", str(tmp_path / "in.jsonl"))
    assert [(line["prefix"], line["who"], line["reason"]) for line in queue.final(1)] == [("b.org/", "ann", "")], "it named nobody"
    mathpipe(tmp_path, "--finish")
    assert capsys.readouterr().out.endswith("finished with 1 decision; 2 of 3 hosts open; the run goes on\n")
    assert {one.id: one.is_finished for one in queue.queues()} == {1: True, newer: False, other: False}


def test_an_export_that_fails_is_one_line_and_leaves_nothing(
    queue: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    for place, wrong in (("folder", "Is a directory"), ("nowhere/x.jsonl", "No such file or directory")):
        with pytest.raises(SystemExit, match="2"):
            mathpipe(tmp_path, "--export", str(tmp_path / place))
        assert capsys.readouterr().err == f"error: {tmp_path / place}: {wrong}; give a file that can be written\n"
    assert sorted(tmp_path.iterdir()) == before


def test_a_server_without_its_database_is_one_line(
    queue: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    def gone(*_: Any) -> None:
        raise DatabaseError("annotations.sqlite: server closed the connection")

    monkeypatch.setattr(Store, "queues", gone)
    monkeypatch.setattr(Store, "annotators", gone)
    for words in (["--finish"], ["--export", "x"], ["--port", "0"]):
        with pytest.raises(SystemExit, match="2"):
            mathpipe(tmp_path, *words)
        assert capsys.readouterr().err.count("\n") == 1


def test_the_server_says_whether_a_run_waits(queue: Store) -> None:
    assert serve_module.state_of(queue, queue.waiting("tiny")) == (
        "round1.annotate: 3 of 3 hosts open; no run waits for it now: decide, then run it again"
    )
    queue.stamp(1)
    assert serve_module.state_of(queue, queue.waiting("tiny")) == "round1.annotate waits: 3 of 3 hosts open"
    assert serve_module.state_of(queue, queue.waiting("small")) == "no queue waits now; the next one appears by itself"


def test_under_a_budget_its_decisions_are_the_steps(tmp_path: Path) -> None:
    with pytest.raises(stage.Waiting, match="^3 hosts wait for people$"):
        annotate.run(AnnotateConfig(source="human", max_decisions=2), make_inputs(tmp_path / "in"), out_of(tmp_path / "toy"))
    store = waiting_store(tmp_path / "toy")
    assert annotate.steps(store.progress(1)) == (2, "decisions", 0)
    store.decide(ids(store)["a.org/q/"], "ann", "math")
    assert annotate.steps(store.progress(1)) == (2, "decisions", 1) and annotate.hosts_left(store, 1) == 3


def test_how_to_revise_a_decision_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["annotate", "--help"])
    assert "mathpipe rerun roundN.annotate" in capsys.readouterr().out


def test_the_command_that_serves_the_page_works_from_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert annotate_command("small", ["--set", "a.b=c d"]) == "mathpipe annotate --profile small --set 'a.b=c d'"
    (tmp_path / "Makefile").touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "mathpipe").touch()
    assert annotate_command("small") == "make annotate PROFILE=small"
    words = ["--set", "runtime.database=teams.sqlite"]
    assert annotate_command("small", words) == "make annotate PROFILE=small 'ARGS=--set runtime.database=teams.sqlite'"
    assert annotate_command("", ["--config", "my.toml"]) == ".venv/bin/mathpipe annotate --config my.toml"


def test_every_address_of_this_machine_is_a_name_of_a_server_that_others_reach() -> None:
    cards = psutil.net_if_addrs().values()
    own = {one.address.partition("%")[0] for card in cards for one in card if one.family in serve_module.IP_FAMILIES}
    assert "127.0.0.1" in own and own <= set(serve_module.names("0.0.0.0")) and own <= set(serve_module.names("192.0.2.7"))
    assert set(serve_module.names("127.0.0.1")) == {"localhost", "127.0.0.1", "::1"}


def test_a_taken_port_and_an_open_host_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit, match="2"):
            mathpipe(tmp_path, "--port", port)
        assert f"cannot serve on port {port} of 127.0.0.1" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        mathpipe(tmp_path, "--host", "0.0.0.0")
    assert "invite each annotator first, with `mathpipe annotate --invite NAME`" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        mathpipe(tmp_path, "--url", "https://annotate.example.org/")
    assert "others can reach https://annotate.example.org/: invite" in capsys.readouterr().err
    mathpipe(tmp_path, "--invite", "bob", "--host", "0.0.0.0")
    said = capsys.readouterr().out
    token = said.partition(" token ")[2].partition(" ")[0]
    assert said.startswith(f"bob: log in on http://{socket.gethostname()}:8765/ with the token ")
    assert Store(str(tmp_path / "tiny" / "annotations.sqlite")).annotator_of(token) == "bob"


def serve(tmp_path: Path, *words: str) -> tuple[subprocess.Popen[str], str]:
    """`mathpipe annotate` as a process of its own, and its link."""
    arguments = [sys.executable, "-m", "mathpipe.pipeline.cli", "annotate", "--runs", str(tmp_path), "--port", "0", *words]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().split()[2]


def test_the_server_may_come_first_and_picks_up_each_queue(tmp_path: Path) -> None:
    process, url = serve(tmp_path)
    try:
        store = Store(str(tmp_path / "tiny" / "annotations.sqlite"))
        assert store.server() == url and process.stdout is not None
        assert process.stdout.readline() == "no queue waits now; the next one appears by itself\n"
        assert requests.get(url, timeout=10).status_code == 200
        assert requests.get(url, headers={"Host": "evil.example"}, timeout=10).status_code == 400
        running = Running(AnnotateConfig(source="human"), make_inputs(tmp_path / "in"), out_of(tmp_path / "tiny"))
        assert process.stdout.readline() == "round1.annotate waits: 3 of 3 hosts open\n"
        assert "a.org/" in requests.get(url, timeout=10).text and running.is_alive()
        store.finish(1, "ann", "enough")
        assert running.result()["num_decisions"] == 0
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()


def test_a_server_asks_for_a_token_as_soon_as_somebody_was_invited(queue: Store, tmp_path: Path) -> None:
    process, url = serve(tmp_path)
    try:
        assert "a.org" in requests.get(url, timeout=10).text
        queue.invite("bob")
        wait_for(lambda: "a.org" not in requests.get(url, timeout=10).text)
        assert requests.get(url, timeout=10).url.startswith(f"{url}login")
    finally:
        process.kill()
        process.wait()


def test_beyond_this_machine_only_who_was_invited_gets_in(queue: Store, tmp_path: Path) -> None:
    token = queue.invite("bob")
    process, url = serve(tmp_path, "--host", "0.0.0.0")
    try:
        assert process.stdout is not None and "log in with your token" in process.stdout.readline()
        local = f"http://127.0.0.1:{url.rpartition(':')[2]}"
        assert "a.org" not in requests.get(local, timeout=10).text
        with requests.Session() as browser:
            form = browser.get(f"{local}login", timeout=10)
            csrf = browser.cookies["mathpipe_csrf"]
            assert form.status_code == 200
            assert browser.post(f"{local}login", {"token": token, "csrf": csrf}, timeout=10).status_code == 200
            assert "a.org" in browser.get(local, timeout=10).text
    finally:
        process.kill()
        process.wait()
