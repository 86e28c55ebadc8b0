"""A small queue with its pages, and a client that sends forms as the page does."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import unescape
from pathlib import Path
from typing import Any

import pyarrow as pa
from starlette.testclient import TestClient

from mathpipe.corpus.annotation.app import make_app
from mathpipe.corpus.annotation.records import Question, Sample
from mathpipe.corpus.annotation.store import Store
from mathpipe.corpus.pages import PAGE_SCHEMA
from mathpipe.pipeline import artifact

HOSTS = [f"{name}.example/" for name in ("ada", "bohr", "cantor", "dirac", "euler", "fermat", "gauss", "hilbert", "ito", "jacobi", "klein")]
"""In the order of their expected gain."""
CHILD = "ada.example/notes/"
TEXT = "Euler's identity \\(e^{i\\pi}+1=0\\).\n\n\\[\\sum_{n=1}^\\infty \\frac1{n^2}=\\frac{\\pi^2}6\\]\n\n>>> 1 + 1\n2"


def write_pages(folder: Path, pages: Sequence[tuple[str, str | bytes]]) -> Path:
    """A pages artifact of two files; ids 1, 2 … and 2³² + 1 …; text given as bytes is written as it is."""
    half = -(-len(pages) // 2)
    for number, part in enumerate((pages[:half], pages[half:])):
        texts = pa.array([text if isinstance(text, bytes) else text.encode() for _, text in part], pa.binary()).view(pa.string())
        ids = [number << 32 | place for place in range(1, len(part) + 1)]
        columns: list[Any] = [ids, [url for url, _ in part], ["h"] * len(part), texts, [1] * len(part), [1] * len(part)]
        table = pa.table([pa.array(column, field.type) for column, field in zip(columns, PAGE_SCHEMA, strict=True)], schema=PAGE_SCHEMA)
        artifact.write_parquet(folder / "data" / f"{number:05d}.parquet", table)
    return folder


def make_store(folder: Path, prefixes: Sequence[str] = HOSTS, pages: Sequence[tuple[str, str | bytes]] = (), **settings: Any) -> Store:
    """A queue over the prefixes, each with the first two pages as samples; the first has a child."""
    store = Store(str(folder / "annotations.sqlite"))
    written = write_pages(folder / "pages", pages or [("https://ada.example/a.html", TEXT), ("http://ada.example/b.html", "plain text")])
    samples = (Sample(1, 0.91, True), Sample(1 << 32 | 1, 0.42, False))
    questions = [
        Question(prefix, "", 100 - place, 50 - place, 0.5, 1000, samples, "math" if place % 2 else "")
        for place, prefix in enumerate(prefixes)
    ]
    child = Question(CHILD, prefixes[0], 40, 10, 0.3, 400, samples)
    store.add_queue("tiny/round1.annotate", 1, written, [questions[0], child, *questions[1:]], annotate="round1.annotate", **settings)
    return store


def make_client(store: Store, who: str = "ann", *, needs_login: bool | Callable[[], bool] = False, public_url: str = "") -> Client:
    return Client(make_app(store, needs_login=needs_login, who=who, hosts=["testserver"], public_url=public_url))


class Client(TestClient):
    """A browser without JavaScript: submits a form with its hidden fields."""

    def submit(self, page: str, action: str, **fields: Any) -> Any:
        """Load a page, fill the form with that action (a regular expression), send it."""
        shown = self.get(page)
        found = re.search(rf'<form[^>]*action="({action})".*?</form>', shown.text, re.DOTALL)
        assert found, f"no form {action} on {page}: {shown.status_code}"
        hidden = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', found[0])
        return self.post(unescape(found[1]), data={name: unescape(value) for name, value in hidden} | fields)

    def decide(self, question: int, verdict: str, note: str = "") -> Any:
        return self.submit(f"/p/{question}", "/p/.*?", verdict=verdict, note=note)


def number_of(store: Store, prefix: str) -> int:
    """A question's number by its prefix, in the newest queue."""
    rows, _ = store.rows(store.queues()[0].id, "nobody", search=prefix)
    return next(row.id for row in rows if row.prefix == prefix)
