"""Rounds made by hand whose decisions people are asked for, and the stage in a thread."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from corpus_artifacts import finish, folder
from round_artifacts import make_pages, make_scores

from mathpipe.corpus import annotate, domains, selection
from mathpipe.corpus.annotation.store import Store
from mathpipe.corpus.round_config import (
    AnnotateConfig,
    AnnotateInputs,
    DomainsConfig,
    DomainsInputs,
    SelectConfig,
    SelectInputs,
)
from mathpipe.pipeline import stage
from mathpipe.pipeline.config import Runtime

PATIENT = Runtime(wait=True)
HOSTS = {"a.org": {"q": 8, "blog": 6}, "b.org": {"": 6}, "c.org": {"x": 5, "y": 5}}
"""Host → folder → pages; the first half of each folder is collected."""


def make_inputs(base: Path, number: int = 1, hosts: dict[str, dict[str, int]] = HOSTS) -> AnnotateInputs:
    """Artifacts of a round over pages made by hand."""
    lines = [
        (f"https://{host}/{name}/{i}.html".replace("//", "/").replace(":/", "://"), 0.9 if i < count // 2 else 0.1)
        for host, folders in hosts.items() for name, count in folders.items() for i in range(count)
    ]  # fmt: skip
    base.mkdir(exist_ok=True)
    pages, scores = make_pages(base, [[{"url": url} for url, _ in lines]]), make_scores(base, [[p for _, p in lines]], round=number)
    out = folder(base, "select")
    limit = SelectConfig(top_tokens=(10_000,), min_score=0.5)
    selected = finish(out, selection.run(limit, SelectInputs(pages, scores), out))
    out = folder(base, "domains")
    judged = finish(out, domains.run(DomainsConfig(), DomainsInputs(pages, scores, selected), out))
    return AnnotateInputs(pages, selected, judged, scores)


def out_of(runs: Path, name: str = "round1.annotate-0123abcd") -> Path:
    return folder(runs, name)


def decisions_in(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "decisions.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


def ids(store: Store, queue: int = 1) -> dict[str, int]:
    """Prefix → question."""
    return {row.prefix: row.id for row in store.rows(queue, "", state="open", limit=1_000)[0]}


def wait_for(condition: Callable[[], Any], timeout_s: float = 60) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("waited in vain")


class Running(threading.Thread):
    """The stage in a thread: `facts` or `error` when it has ended."""

    def __init__(self, config: AnnotateConfig, inputs: AnnotateInputs, out: Path) -> None:
        super().__init__(daemon=True)
        self.arguments, self.facts, self.error = (config, inputs, out), dict[str, Any](), ""
        self.start()

    def run(self) -> None:
        try:
            self.facts = annotate.run(*self.arguments)
        except stage.Waiting as error:
            self.error = str(error)

    def result(self) -> dict[str, Any]:
        self.join(30)
        assert not self.is_alive() and not self.error, self.error
        return self.facts


def waiting_store(runs: Path, queue: int = 1) -> Store:
    """The store of a run, once its queue is there."""
    store = Store(str(runs / "annotations.sqlite"))
    wait_for(lambda: any(found.id == queue for found in store.queues()))
    return store
