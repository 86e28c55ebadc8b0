"""Databases of the annotation queue for tests, and questions to put into them."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mathpipe.corpus.annotation.store import Question, Sample, Store

NUMBERS = itertools.count()
PAGES = Path("/artifacts/pages")
PEOPLE = ("ann", "bob", "eve")


def own_postgres() -> Iterator[str]:
    """URL of a PostgreSQL server of our own, without a database's name, while it runs."""
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
