"""Small real corpus artifacts for tests, and ways to look into them."""

from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mathpipe.pipeline import artifact

SHARED = Path(os.environ.get("MATHPIPE_SHARED", Path(__file__).parents[2] / "shared"))
ARCHIVES = sorted((SHARED / "data" / "crawl").glob("*.warc.gz"))
needs_shared = pytest.mark.skipif(not ARCHIVES, reason=f"{SHARED}/data/crawl is absent (set MATHPIPE_SHARED)")


def finish(out: Path, facts: dict[str, Any]) -> Path:
    """What the front door does after `run`."""
    artifact.write_json(out / "manifest.json", {"stage": out.name, "hash": "00000000", **facts})
    return out


def folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir(parents=True, exist_ok=True)
    return parent / name


def digests(out: Path, *folders: str) -> dict[str, str]:
    files = itertools.chain.from_iterable(sorted((out / name).rglob("*")) for name in folders)
    return {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}


def rows(out: Path, name: str = "data") -> list[dict[str, Any]]:
    return [row for file in artifact.parquet_files(out, name) for row in pq.read_table(file).to_pylist()]
