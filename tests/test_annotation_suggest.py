"""Suggestions of a model behind an endpoint that misbehaves in every way: they come or they do not, and never decide."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from round_artifacts import make_pages

from mathpipe.corpus.annotation import suggest
from mathpipe.corpus.annotation.records import Sample
from mathpipe.corpus.annotation.store import Question, Store
from mathpipe.corpus.round_config import AnnotateConfig
from mathpipe.pipeline.config import Runtime, to_table

GOOD = {"verdict": "math", "reason": "worked exercises"}


class Model(ThreadingHTTPServer):
    """Answers from `behaviours`, the last one for ever; `asked` are the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviours: list[str] = ["good"]
        self.asked: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is expected."""


class Handler(BaseHTTPRequestHandler):
    server: Model

    def do_GET(self) -> None:
        self.server.asked.append({"path": self.path})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
        behaviour = self.server.behaviours.pop(0) if len(self.server.behaviours) > 1 else self.server.behaviours[0]
        if behaviour.isdecimal():
            self.send_response(int(behaviour))
            self.send_header("Location", "/elsewhere")
            self.send_header("Retry-After", "0")
            self.end_headers()
        elif behaviour == "hangs up":
            self.connection.close()
        elif behaviour == "silent":
            time.sleep(3)
        elif behaviour == "trickle":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            for _ in range(30):
                self.wfile.write(b" ")
                time.sleep(0.1)
        elif behaviour == "endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b" " * (1 << 16))
        else:
            words = {"good": json.dumps(GOOD), "fenced": f"Sure!\n```json\n{json.dumps(GOOD)}\n```"}.get(behaviour, behaviour)
            whole = json.dumps({"choices": [{"message": {"role": "assistant", "content": words}}]})
            text = (behaviour.removeprefix("raw ") if behaviour.startswith("raw ") else whole).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    for name, value in {"FIRST_PAUSE_S": 0.01, "IDLE_S": 0.02, "MAX_PAUSE_S": 0.05, "ANSWER_S": 0.4}.items():
        monkeypatch.setattr(suggest, name, value)
    server = Model()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(model: Model, *behaviours: str) -> tuple[str, str]:
    model.behaviours = list(behaviours)
    return suggest.Endpoint(model.url, "small-model", "secret").ask("Prefix: a.org/", threading.Event())


@pytest.mark.parametrize("behaviours", [
    ("good",), ("fenced",), ("429", "503", "good"), ("hangs up", "good"), ("silent", "good"), ("500", "500", "500", "500", "good"),
])  # fmt: skip
def test_an_answer_is_had_in_the_end(model: Model, behaviours: tuple[str, ...]) -> None:
    assert ask(model, *behaviours) == ("math", "worked exercises")
    assert len(model.asked) == len(behaviours)
    request = model.asked[-1]
    assert (request["path"], request["key"], request["model"]) == ("/v1/chat/completions", "Bearer secret", "small-model")


@pytest.mark.parametrize(("behaviour", "why", "num_requests"), [
    ("500", "HTTP status 500", 5), ("429", "HTTP status 429", 5), ("401", "HTTP status 401", 1), ("404", "HTTP status 404", 1),
    ("302", "HTTP status 302", 1), ("hangs up", "RemoteDisconnected", 5), ("endless", "more than 1,048,576 bytes", 1),
    ("trickle", "or 0.4 s", 1), ("raw <html>", "not a chat completion", 1), ("raw []", "not a chat completion", 1),
    ('raw {"choices": []}', "not a chat completion", 1), ('raw {"choices": [{"message": {"content": null}}]}', "without text", 1),
    ("It is about maths.", "no verdict in", 1), ('{"verdict": "skip"}', "no verdict in", 1), ("{" * 100_000 + "}", "no verdict in", 1),
    ('{"verdict": ["math"]}', "no verdict in", 1),
])  # fmt: skip
def test_no_answer_says_why(model: Model, behaviour: str, why: str, num_requests: int) -> None:
    with pytest.raises(suggest.NoAnswer, match=why):
        ask(model, behaviour)
    assert len(model.asked) == num_requests and {request["path"] for request in model.asked} == {"/v1/chat/completions"}


def test_a_reason_is_text_that_can_be_stored() -> None:
    verdict, reason = suggest.parse(json.dumps({"verdict": "not_math", "reason": "a\0b\ud800" + "x" * 1_000}))
    assert verdict == "not_math" and reason == "ab?" + "x" * 497
    assert suggest.parse('{"verdict": "math", "reason": 7}') == ("math", "")


def test_the_most_valuable_open_questions_get_suggestions_that_decide_nothing(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [{"url": f"https://{host}.org/{i}", "text": f"Theorem {i} of {host}. " + "x" * 5_000} for host in "abcd" for i in range(4)]
    pages = make_pages(tmp_path, [lines])
    questions = [
        Question(f"{host}.org/", "", 10 * (4 - number), 5, 0.5, 100, tuple(Sample(4 * number + i, 0.5, i < 2) for i in range(2)))
        for number, host in enumerate("abcd")
    ]
    questions[3] = Question("d.org/", "", 6, 5, 0.5, 100, (Sample(999, 0.5, True),))
    store = Store(str(tmp_path / "annotations.sqlite"))
    queue = store.add_queue("tiny/round1", 1, pages, questions)
    rows = {row.prefix: row.id for row in store.rows(queue, "ann")[0]}
    store.decide(rows["c.org/"], "ann", "not_math")
    model.behaviours = ["nonsense", "good"]
    stop, endpoint = threading.Event(), suggest.Endpoint(model.url, "small-model")
    with caplog.at_level(logging.WARNING):
        thread = threading.Thread(target=suggest.keep_suggesting, args=(store, endpoint, stop), daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and len(caplog.records) < 2:
            time.sleep(0.02)
        time.sleep(0.2)
        stop.set()
        thread.join(5)
    assert not thread.is_alive()
    by_prefix = {prefix: [(s.source, s.verdict, s.reason) for s in store.suggestions(row)] for prefix, row in rows.items()}
    assert by_prefix == {"a.org/": [], "b.org/": [("small-model", "math", "worked exercises")], "c.org/": [], "d.org/": []}
    assert ["a.org/" in caplog.records[0].message, "d.org/" in caplog.records[1].message] == [True, True]
    assert store.progress(queue).num_decisions == 1 and len(store.final(queue)) == 1
    prompts = [request["messages"][1]["content"] for request in model.asked]
    assert [prompt.split()[1] for prompt in prompts] == ["a.org/", "b.org/"], "highest gain first, each once, none that was decided"
    assert "Pages under it: 30; a classifier collected 5 of them" in prompts[1]
    assert "Theorem 0 of b." in prompts[1] and "Theorem 1 of b." in prompts[1] and len(prompts[1]) < 2 * (suggest.EXCERPT_CHARS + 200)
    assert all(request["key"] is None for request in model.asked), "no key, no header"

    before = len(model.asked)
    again = suggest.next_question(store, "small-model", set())
    assert again is not None and again[1].prefix == "a.org/"
    assert suggest.next_question(store, "small-model", {rows["a.org/"], rows["d.org/"]}) is None and len(model.asked) == before
    store.add_queue("small/round1", 1, pages, questions)
    found = {profile: suggest.next_question(store, "small-model", set(), profile) for profile in ("tiny", "small", "paper")}
    assert {profile: one[0].name if one else "" for profile, one in found.items()} == {
        "tiny": "tiny/round1", "small": "small/round1", "paper": "",
    }, "each profile's server works on its own queue"  # fmt: skip


def test_an_endpoint_needs_a_model() -> None:
    with pytest.raises(ValueError, match=r"needs runtime\.suggest_model"):
        Runtime(suggest_url="https://models.example/v1")
    with pytest.raises(ValueError, match=r"http\(s\)"):
        Runtime(suggest_url="models.example", suggest_model="m")


def test_who_suggests_changes_no_hash() -> None:
    asked = Runtime(suggest_url="https://models.example/v1", suggest_model="m")
    assert to_table(AnnotateConfig(runtime=asked)) == to_table(AnnotateConfig())
    assert not any("suggest" in name or "samples" in name for name in to_table(AnnotateConfig()))
