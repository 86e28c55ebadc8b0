"""pages: WARC records to deduplicated text with its LaTeX.

Every archive becomes one parquet file under `extracted/` in a worker process (a finished file is kept when the stage is
killed); then URL and near-duplicates are found over all of them, and `data/` is written. What is dropped stands under
`rejects/` with its reason. Row ids are archive number × 2³² + record number, so they do not depend on the workers.
"""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mathpipe.corpus import neardup, urls
from mathpipe.corpus.config import PagesConfig, PagesInputs
from mathpipe.corpus.warc import addresses, read_archive
from mathpipe.pipeline import artifact, log, stage

PAGE_SCHEMA = pa.schema(
    {"id": pa.int64(), "url": pa.string(), "host": pa.string(), "text": pa.string(), "num_chars": pa.int64(), "num_tokens": pa.int64()}
)
REJECT_SCHEMA = pa.schema({"id": pa.int64(), "url": pa.string(), "reason": pa.string(), "detail": pa.string()})
BYTES_PER_TOKEN = 4
"""Tokens are estimated, since the tokenizer comes later: UTF-8 bytes / 4."""


def run(config: PagesConfig, inputs: PagesInputs, out: Path) -> dict[str, Any]:
    """Write `data/`, `rejects/` and, where the crawl has them, `labels/`; returns counts."""
    archives = addresses(inputs.crawl)
    files = [out / "extracted" / f"{number:05d}.parquet" for number in range(len(archives))]
    (out / "extracted").mkdir(exist_ok=True)
    extract_all(config, archives, files, out)
    duplicate = url_duplicates(files)
    duplicate |= near_duplicates(config, files, set(duplicate), out)
    num_pages = write_pages(files, duplicate, out)
    write_rejects(files, duplicate, out)
    facts = describe(archives, out) | {"num_pages": num_pages}
    if not num_pages:
        raise ValueError(f"{inputs.crawl}: no page left; rejected: {facts['num_rejects']}")
    if (inputs.crawl / "labels").is_dir():
        write_labels(inputs.crawl, out)
    shutil.rmtree(out / "extracted")
    return facts


def extract_all(config: PagesConfig, archives: list[str], files: list[Path], out: Path) -> None:
    """Extract the archives that have no file yet, one worker process each."""
    missing = [(number, archive, file) for number, (archive, file) in enumerate(zip(archives, files, strict=True)) if not file.exists()]
    with (
        log.Progress(out, len(archives), "archives", "extracting", done=len(archives) - len(missing)) as progress,
        ProcessPoolExecutor(config.runtime.num_workers) as pool,
    ):
        jobs = [pool.submit(extract_archive, number, archive, file, config.min_chars) for number, archive, file in missing]
        for job in jobs:
            progress.advance(1, job.result())


def extract_archive(number: int, archive: str, file: Path, min_chars: int) -> str:
    """Pages of one archive to `file`, what it drops to `file` with `.rejects` (written first); returns a status line."""
    pages: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    for record in read_archive(archive, min_chars):
        row = {"id": number * 2**32 + record.number, "url": record.url}
        if record.reason:
            rejects.append(row | {"reason": record.reason, "detail": record.detail})
        else:
            text, num_tokens = record.text, -(-len(record.text.encode()) // BYTES_PER_TOKEN)
            pages.append(row | {"host": urls.host_of(record.url), "text": text, "num_chars": len(text), "num_tokens": num_tokens})
    artifact.write_parquet(file.with_suffix(".rejects"), pa.Table.from_pylist(rejects, schema=REJECT_SCHEMA))
    artifact.write_parquet(file, pa.Table.from_pylist(pages, schema=PAGE_SCHEMA))
    return f"{Path(archive).name}: {len(pages)} pages, {len(rejects)} rejected"


def url_duplicates(files: list[Path]) -> dict[int, tuple[str, str]]:
    """Row id → (reason, detail) of every page whose URL, normalised, came before."""
    first: dict[str, str] = {}
    found = {}
    for file in files:
        table = pq.read_table(file, columns=["id", "url"])
        for row, url in zip(table["id"].to_pylist(), table["url"].to_pylist(), strict=True):
            key = urls.normalize(url)
            if key in first:
                found[row] = ("url duplicate", first[key])
            else:
                first[key] = url
    return found


def near_duplicates(config: PagesConfig, files: list[Path], dropped: set[int], out: Path) -> dict[int, tuple[str, str]]:
    """Row id → (reason, detail) of every page that nearly repeats an earlier one; `dropped` ids are left out on both sides."""
    with log.Progress(out, 2, "steps", "near-duplicates") as progress:
        id_N, signature_NH = neardup.signatures(files, config.num_hashes, config.ngram_words)
        left = ~np.isin(id_N, list(dropped))
        id_N, signature_NH = id_N[left], signature_NH[left]
        progress.advance(1, f"{len(id_N)} signatures")
        found = neardup.duplicates(signature_NH, config.num_bands, config.min_similarity)
        progress.advance(1, f"{len(found)} near-duplicates")
    url_of = dict(itertools.chain.from_iterable(_pairs(file) for file in files))
    return {
        int(id_N[row]): ("near duplicate", f"{url_of[int(id_N[other])]} {similarity:.3f}")
        for row, (other, similarity) in found.items()
    }  # fmt: skip


def _pairs(file: Path) -> Iterator[tuple[int, str]]:
    table = pq.read_table(file, columns=["id", "url"])
    return zip(table["id"].to_pylist(), table["url"].to_pylist(), strict=True)


def write_pages(files: list[Path], duplicate: dict[int, tuple[str, str]], out: Path) -> int:
    """`data/`: what is left, one file per archive; returns the number of pages."""
    dropped = pa.array(sorted(duplicate), pa.int64())
    num_pages = 0
    for file in files:
        table = pq.read_table(file)
        table = table.filter(pc.invert(pc.is_in(table["id"], dropped)))
        artifact.write_parquet(out / "data" / file.name, table)
        num_pages += len(table)
    return num_pages


def write_rejects(files: list[Path], duplicate: dict[int, tuple[str, str]], out: Path) -> None:
    """`rejects/`: one file per archive, each row with its reason."""
    for file in files:
        rows = [
            {"id": row, "url": url, "reason": duplicate[row][0], "detail": duplicate[row][1]}
            for row, url in _pairs(file)
            if row in duplicate
        ]
        table = pa.concat_tables([pq.read_table(file.with_suffix(".rejects")), pa.Table.from_pylist(rows, schema=REJECT_SCHEMA)])
        artifact.write_parquet(out / "rejects" / file.name, table.sort_by("id"))


def write_labels(crawl: Path, out: Path) -> None:
    """The truth by row id, joined by URL: `labels/labels.parquet`, for metrics only."""
    known = pa.concat_tables(artifact.read_columns(crawl, ["url", "label"], "labels"))
    truth = dict(zip(known["url"].to_pylist(), known["label"].to_pylist(), strict=True))
    rows = [pair for file in artifact.parquet_files(out) for pair in _pairs(file) if pair[1] in truth]
    schema = pa.schema([("id", pa.int64()), ("label", pa.string())])
    table = pa.table({"id": [row for row, _ in rows], "label": [truth[url] for _, url in rows]}, schema)
    artifact.write_parquet(out / "labels" / "labels.parquet", table)


def describe(archives: list[str], out: Path) -> dict[str, Any]:
    """Counts for the manifest, read back from what was written."""
    columns = list(artifact.read_columns(out, ["host", "num_chars", "num_tokens"]))
    table = pa.concat_tables(columns)
    reasons: Counter[str] = Counter()
    for rejects in artifact.read_columns(out, ["reason"], "rejects"):
        reasons.update(rejects["reason"].to_pylist())
    return {
        "num_archives": len(archives), "num_hosts": pc.count_distinct(table["host"]).as_py(),
        "num_chars": pc.sum(table["num_chars"]).as_py() or 0, "num_tokens": pc.sum(table["num_tokens"]).as_py() or 0,
        "num_rejects": dict(sorted(reasons.items())), "token_estimate": f"UTF-8 bytes / {BYTES_PER_TOKEN}",
    }  # fmt: skip


if __name__ == "__main__":
    stage.main(run)
