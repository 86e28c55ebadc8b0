"""Pages, scores and selections made by hand, for tests of the rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from corpus_artifacts import finish, folder

from mathpipe.corpus import urls
from mathpipe.pipeline import artifact


def make_pages(base: Path, files: list[list[dict[str, Any]]]) -> Path:
    """A pages artifact; a row needs url, and may have text and num_tokens. Ids are file × 1000 + row."""
    out = folder(base, "pages")
    for number, rows in enumerate(files):
        texts = [row.get("text", "t") for row in rows]
        columns: dict[str, Any] = {
            "id": pa.array([number * 1000 + i for i in range(len(rows))], pa.int64()),
            "url": pa.array([row["url"] for row in rows], pa.string()),
            "host": pa.array([urls.host_of(row["url"]) for row in rows], pa.string()),
            "text": pa.array(texts, pa.string()),
            "num_tokens": pa.array([row.get("num_tokens", 10) for row in rows], pa.int64()),
        }
        artifact.write_parquet(out / "data" / f"{number:05d}.parquet", pa.table(columns))
    return finish(out, {})


def make_scores(base: Path, files: list[list[float]], **facts: Any) -> Path:
    """Scores of such pages."""
    out = folder(base, "score")
    for number, scores in enumerate(files):
        ids = pa.array([number * 1000 + i for i in range(len(scores))], pa.int64())
        artifact.write_parquet(out / "data" / f"{number:05d}.parquet", pa.table({"id": ids, "score": pa.array(scores, pa.float32())}))
    return finish(out, {"round": 1, **facts})
