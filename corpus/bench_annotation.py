"""Benchmark of the annotation page: 20 people at once over a queue of 100,000 prefixes, and a server killed under them.

The server is a process of its own (`serve.serve` on SQLite). Each annotator is a thread here with a connection of its own: it looks at
the list (in different orders and parts), opens a question, reads a sample's text, thinks and decides, again and again; what comes
after a decision is opened by redirection, as in a browser.
"""

from __future__ import annotations

import http.client
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from mathpipe.corpus.annotation.store import Question, Sample, Store
from mathpipe.corpus.pages import PAGE_SCHEMA
from mathpipe.pipeline import artifact
from mathpipe.pipeline.bench import Benchmark, Row, row

NUM_ANNOTATORS, NUM_HOSTS, NUM_FOLDERS, NUM_PAGES = 20, 20_000, 4, 2_000
SECONDS, THINK_S = 20.0, (0.0, 0.5)
KINDS = ("list", "open", "text", "decide")
GOAL_MS = 150
PLACES = (r'action="/p/(\d+)"', r'name="version" value="(\d+)"', r'src="(/text/[^"]*)"')
"""Of the question, the version and the text on a question's page."""
SERVER = """
import sys
from pathlib import Path
from mathpipe.corpus.annotation import serve
from mathpipe.corpus.annotation.store import Store
from mathpipe.corpus.round_config import AnnotateConfig
serve.serve(Store(sys.argv[1]), AnnotateConfig(), "", "127.0.0.1", int(sys.argv[2]), "ann")
"""


def write_pages(folder: Path) -> None:
    """Pages of about 500 words with 12 different formulas each."""
    words = "let the sum of all terms converge then by lemma every bounded sequence has a limit point in this space"
    rng = random.Random(0)
    rows = []
    for page in range(NUM_PAGES):
        formulas = [rf"\(x_{{{page}}}^{{{number}}} = \frac{{{number}}}{{{page + 1}}}\sqrt{{y}}\)" for number in range(12)]
        text = "\n\n".join(f"{' '.join(rng.choices(words.split(), k=40))} {formula}." for formula in formulas)
        rows.append((page, f"https://host{page}.example/", f"host{page}.example", text, len(text), len(text) // 4))
    table = pa.Table.from_pylist([dict(zip(PAGE_SCHEMA.names, values, strict=True)) for values in rows], schema=PAGE_SCHEMA)
    artifact.write_parquet(folder / "data" / "00000.parquet", table)


def questions() -> Iterator[Question]:
    """100,000 prefixes: hosts, each with folders."""
    rng = random.Random(0)
    for number in range(NUM_HOSTS):
        host, num = f"host{number:05d}.example/", rng.randint(10, 5000)
        samples = tuple(Sample(rng.randrange(NUM_PAGES), rng.random(), place < 3) for place in range(6))
        yield Question(host, "", num, rng.randint(1, num), rng.random(), 1000 * num, samples, "math")
        for folder in range(NUM_FOLDERS):
            yield Question(f"{host}folder{folder}/", host, num // 5, rng.randint(0, num // 5), rng.random(), 200 * num, samples)


@dataclass
class Annotator:
    """One person at work; times of requests in seconds by kind."""

    port: int
    name: str
    think_s: float
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    acknowledged: list[int] = field(default_factory=list)
    """Questions whose verdict the server has confirmed."""
    cookies: dict[str, str] = field(default_factory=dict)

    def work(self, ends_at: float) -> None:
        """Until then, or until the server is gone."""
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        self.cookies["mathpipe_who"] = self.name
        rng = random.Random(self.name)
        try:
            _, page = self.follow("/q/1/next")
            while time.perf_counter() < ends_at:
                order = rng.choice(("gain", "gain", "pages", "tokens"))
                self.timed("list", f"/q/1?order={order}&offset={50 * rng.randrange(3)}")
                question, version, text = (re.findall(pattern, page)[0] for pattern in PLACES)
                self.timed("open", f"/p/{question}")
                self.timed("text", text)
                time.sleep(self.think_s * rng.uniform(0.5, 1.5))
                page = self.decide(int(question), version, rng.choice(("math", "not_math", "skip")))
        except (OSError, http.client.HTTPException):
            return  # killed

    def decide(self, question: int, version: str, verdict: str) -> str:
        """Send a verdict; returns the next question's page."""
        began = time.perf_counter()
        form = f"csrf={self.cookies['mathpipe_csrf']}&version={version}&verdict={verdict}"
        status, target = self.request("POST", f"/p/{question}", form)
        if status != 303:
            raise RuntimeError(f"POST /p/{question}: {status}")
        self.times["decide"].append(time.perf_counter() - began)
        self.acknowledged.append(question)
        page = self.timed("open", target)
        self.times["decide and open"].append(time.perf_counter() - began)
        return page

    def timed(self, kind: str, path: str) -> str:
        """Get a page."""
        began = time.perf_counter()
        status, page = self.request("GET", path)
        if status != 200:
            raise RuntimeError(f"GET {path}: {status}")
        self.times[kind].append(time.perf_counter() - began)
        return page

    def follow(self, path: str) -> tuple[int, str]:
        """Go where redirections lead."""
        status, page = self.request("GET", path)
        return self.follow(page) if status == 303 else (status, page)

    def request(self, method: str, path: str, form: str = "") -> tuple[int, str]:
        """(status, page or where a redirection leads)."""
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        if method == "POST":
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        self.connection.request(method, path, form or None, headers)
        answer = self.connection.getresponse()
        body = answer.read().decode()
        for cookie in answer.headers.get_all("Set-Cookie", []):
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        return answer.status, answer.headers["Location"] if answer.status == 303 else body


def load(database: Path, think_s: float, seconds: float, kill_after_s: float | None = None) -> list[Annotator]:
    """Annotators at work on a new server, which may be killed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(database), str(port)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        if not server.stdout.readline():
            raise RuntimeError("the server did not start; its error stands above")
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.05)
        people = [Annotator(port, f"annotator {number}", think_s) for number in range(NUM_ANNOTATORS)]
        threads = [threading.Thread(target=one.work, args=(time.perf_counter() + seconds,)) for one in people]
        for thread in threads:
            thread.start()
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            server.kill()
        for thread in threads:
            thread.join()
    finally:
        server.kill()
        server.wait()
    return people


def annotation_ms() -> list[Row]:
    """Milliseconds by kind of request, and what a kill -9 loses."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        pages, database = Path(name) / "pages", Path(name) / "annotations.sqlite"
        write_pages(pages)
        store = Store(str(database))
        store.add_queue("bench", 1, pages, questions())
        for think_s in THINK_S:
            people = load(database, think_s, SECONDS)
            for kind in ("all", *KINDS):
                median, p95, rate = figures(people, kind)
                unit = f"ms, 95 % below {p95:.0f}; {rate:.0f} a second"
                if kind == "decide":
                    unit += f"; median with the next question {figures(people, 'decide and open')[0]:.0f} ms"
                wanted = f"median below {GOAL_MS}"
                rows.append(row(f"corpus.annotation_ms.{kind}.think_{think_s:g}s", median, unit, wanted, median < GOAL_MS))
        before = store.log(1)[1]
        people = load(database, 0, SECONDS, SECONDS / 2)
        decided = {(line.prefix, line.who) for line in Store(str(database)).log(1, limit=10**6)[0]}
        prefixes = {one.id: one.prefix for one in store.rows(1, "", limit=NUM_HOSTS)[0]}
        acknowledged = [(prefixes[question], one.name) for one in people for question in one.acknowledged]
        lost = len(set(acknowledged) - decided)
        unit = f"of {len(acknowledged)} acknowledged decisions lost by kill -9 ({len(decided) - before} written)"
        rows.append(row("corpus.annotation_lost", lost, unit, "0", lost == 0 < len(acknowledged)))
    return rows


def figures(people: list[Annotator], kind: str) -> tuple[float, float, float]:
    """(median, 95th percentile in milliseconds, number a second) of a kind of request, or of all."""
    times = [1000 * seconds for one in people for name in (KINDS if kind == "all" else (kind,)) for seconds in one.times[name]]
    return statistics.median(times), statistics.quantiles(times, n=20)[-1], len(times) / SECONDS


BENCHMARKS: dict[str, Benchmark] = {"corpus.annotation_ms": annotation_ms}
