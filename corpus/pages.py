"""pages: WARC records to deduplicated text with its LaTeX.

Every archive is extracted by one job to files under `extracted/` (finished ones are kept when the stage is killed); then
repeated pages are found over all of them (`neardup`), and one job per archive divides it into `data/` and `rejects/`, each row
with its reason. Memory is bounded by one batch of an archive. Row ids are archive number × 2³² + record number, so neither
ids nor bytes depend on workers or machines.

Artifact: `data/` with id, url, host, text, num_chars, num_tokens; `rejects/` with id, url, reason, detail; `labels/` where the
crawl has them; with `keep_links` also `links/` with id, url: hyperlinks of kept pages to pages of the crawl, normalised.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mathpipe.corpus import engine, neardup, urls
from mathpipe.corpus.config import PagesConfig, PagesInputs
from mathpipe.corpus.warc import Record, addresses, read_archive
from mathpipe.pipeline import artifact, stage

PAGE_SCHEMA = pa.schema(
    {"id": pa.int64(), "url": pa.string(), "host": pa.string(), "text": pa.string(), "num_chars": pa.int64(), "num_tokens": pa.int64()}
)
REJECT_SCHEMA = pa.schema({"id": pa.int64(), "url": pa.string(), "reason": pa.string(), "detail": pa.string()})
LINK_SCHEMA = pa.schema({"id": pa.int64(), "url": pa.string()})
BYTES_PER_TOKEN = 4
"""Tokens are estimated, since the tokenizer comes later: UTF-8 bytes / 4."""
BATCH_CHARS, BATCH_PAGES = 8_000_000, 2_000
"""A row group is written when it has this much text or so many pages."""


def run(config: PagesConfig, inputs: PagesInputs, out: Path) -> dict[str, Any]:
    """Write `data/`, `rejects/` and, where asked for or known, `links/` and `labels/`; returns counts."""
    archives = addresses(inputs.crawl)
    extracted, work = out / "extracted", out / "duplicates"
    files = [extracted / f"{number:05d}.parquet" for number in range(len(archives))]
    jobs = [(config, number, archives[number], file) for number, file in enumerate(files) if not file.exists()]
    engine.run_jobs(extract_archive, jobs, config.runtime, out, done=len(files) - len(jobs))
    keys = [file.with_suffix(".keys") for file in files]
    neardup.find(config, keys, files, work, out)
    if config.keep_links:
        find_links(config, [file.with_suffix(".links") for file in files], keys, work / "links")
    divide = [(number, file, work, out) for number, file in enumerate(files) if not (out / "data" / file.name).exists()]
    engine.run_jobs(divide_archive, divide, config.runtime, out, description="writing", done=len(files) - len(divide), use_process=False)
    facts = describe(config, out) | {"num_archives": len(archives)}
    if not facts["num_pages"]:
        raise ValueError(f"{inputs.crawl}: no page left; rejected: {facts['num_rejects']}")
    if (inputs.crawl / "labels").is_dir():
        write_labels(inputs.crawl, out)
    shutil.rmtree(extracted)
    shutil.rmtree(work)
    return facts


def extract_archive(config: PagesConfig, number: int, archive: str, file: Path) -> str:
    """One archive to `file` (pages, written last) and beside it `.keys`, `.rejects` and `.links`; returns a status line."""
    num_pages = num_rejects = 0
    names = {".rejects": REJECT_SCHEMA, ".keys": neardup.key_schema(config), ".links": LINK_SCHEMA, ".parquet": PAGE_SCHEMA}
    if not config.keep_links:
        del names[".links"]
    with ExitStack() as stack:
        open_ = artifact.parquet_writer
        writers = {suffix: stack.enter_context(open_(file.with_suffix(suffix), schema)) for suffix, schema in reversed(names.items())}
        for batch in batches(read_archive(archive, config.min_chars, config.keep_links, config.max_record_bytes)):
            pages = [record for record in batch if not record.reason]
            rejects = [record for record in batch if record.reason]
            num_pages, num_rejects = num_pages + len(pages), num_rejects + len(rejects)
            writers[".parquet"].write_table(page_table(pages, number))
            writers[".keys"].write_table(
                neardup.page_keys(config, _ids(pages, number), [page.url for page in pages], [page.text for page in pages])
            )
            rows = [{"id": _id(r, number), "url": r.url, "reason": r.reason, "detail": r.detail} for r in rejects]
            writers[".rejects"].write_table(pa.Table.from_pylist(rows, schema=REJECT_SCHEMA))
            if config.keep_links:
                links = [{"id": _id(page, number), "url": target} for page in pages for target in link_targets(page)]
                writers[".links"].write_table(pa.Table.from_pylist(links, schema=LINK_SCHEMA))
    return f"{Path(archive).name}: {num_pages} pages, {num_rejects} rejected"


def batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    """Records in lists of bounded size."""
    batch: list[Record] = []
    num_chars = 0
    for record in records:
        batch.append(record)
        num_chars += len(record.text)
        if num_chars >= BATCH_CHARS or len(batch) >= BATCH_PAGES:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def _id(record: Record, number: int) -> int:
    return number * 2**32 + record.number


def _ids(records: list[Record], number: int) -> list[int]:
    return [_id(record, number) for record in records]


def page_table(pages: list[Record], number: int) -> pa.Table:
    """Rows of `data/`."""
    num_tokens = [-(-len(page.text.encode()) // BYTES_PER_TOKEN) for page in pages]
    hosts = [urls.host_of(page.url) for page in pages]
    texts = [page.text for page in pages]
    columns = [_ids(pages, number), [page.url for page in pages], hosts, texts, [len(text) for text in texts], num_tokens]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, PAGE_SCHEMA, strict=True)], schema=PAGE_SCHEMA)


def link_targets(page: Record) -> list[str]:
    """Normalised targets of a page's links, sorted, each once; what is no URL is left out."""
    targets = set()
    for link in page.links:
        try:
            targets.add(urls.normalize(link))
        except ValueError:  # of such pages there are none in the crawl
            continue
    return sorted(targets - {urls.normalize(page.url)})


def find_links(config: PagesConfig, links: list[Path], keys: list[Path], folder: Path) -> None:
    """Links whose target is a page of the crawl, by archive."""
    daft = engine.start(config.runtime)
    from daft import DataType, col

    @daft.func.batch(return_dtype=DataType.string())
    def key(targets: Any) -> list[str]:
        return [neardup.digest(target) for target in targets.to_pylist()]

    pages = daft.read_parquet([str(file) for file in keys]).select("url_key").distinct()
    found = daft.read_parquet([str(file) for file in links]).with_column("url_key", key(col("url"))).join(pages, on="url_key", how="semi")
    neardup.write_by_archive(found.select("id", "url"), folder, config)


def divide_archive(number: int, file: Path, work: Path, out: Path) -> str:
    """What is left of an archive to `data/` (written last), what is dropped to `rejects/`; returns a status line."""
    dropped = rows_of(work / "dropped", number, pa.schema([*REJECT_SCHEMA.remove(1), ("similarity", pa.float64())]))
    details = {
        row["id"]: (row["reason"], f"{row['detail']} {row['similarity']:.3f}" if row["reason"] == "near duplicate" else row["detail"])
        for row in dropped.to_pylist()
    }
    rejects = [pq.read_table(file.with_suffix(".rejects"))]
    num_pages = 0
    with artifact.parquet_writer(out / "data" / file.name, PAGE_SCHEMA) as writer:
        for batch in pq.ParquetFile(file).iter_batches(BATCH_PAGES):
            is_dropped = pc.is_in(batch["id"], dropped["id"].combine_chunks())
            gone = batch.filter(is_dropped)
            rows = [(row, url, *details[row]) for row, url in zip(gone["id"].to_pylist(), gone["url"].to_pylist(), strict=True)]
            rejects.append(pa.table([[row[i] for row in rows] for i in range(4)], schema=REJECT_SCHEMA))
            writer.write_batch(batch.filter(pc.invert(is_dropped)))
            num_pages += len(batch) - len(gone)
        artifact.write_parquet(out / "rejects" / file.name, pa.concat_tables(rejects).sort_by("id"))
        if file.with_suffix(".links").exists():
            links = rows_of(work / "links", number, LINK_SCHEMA)
            links = links.filter(pc.invert(pc.is_in(links["id"], dropped["id"].combine_chunks())))
            artifact.write_parquet(out / "links" / file.name, links.sort_by([("id", "ascending"), ("url", "ascending")]))
    return f"{file.name}: {num_pages} pages"


def rows_of(folder: Path, number: int, schema: pa.Schema) -> pa.Table:
    """What daft wrote for one archive, in any order; no rows where it wrote nothing."""
    tables = [pq.ParquetFile(part).read(schema.names).cast(schema) for part in sorted((folder / f"archive={number}").glob("*.parquet"))]
    return pa.concat_tables([schema.empty_table(), *tables])


def write_labels(crawl: Path, out: Path) -> None:
    """The truth by row id, joined by URL: `labels/labels.parquet`, for metrics only."""
    known = pa.concat_tables(artifact.read_columns(crawl, ["url", "label"], "labels"))
    truth = dict(zip(known["url"].to_pylist(), known["label"].to_pylist(), strict=True))
    rows = [
        (row, truth[url])
        for table in artifact.read_columns(out, ["id", "url"])
        for row, url in zip(table["id"].to_pylist(), table["url"].to_pylist(), strict=True)
        if url in truth
    ]
    schema = pa.schema([("id", pa.int64()), ("label", pa.string())])
    artifact.write_parquet(out / "labels" / "labels.parquet", pa.table([[row[i] for row in rows] for i in range(2)], schema=schema))


def describe(config: PagesConfig, out: Path) -> dict[str, Any]:
    """Counts for the manifest, read back from what was written."""
    daft = engine.start(config.runtime)
    from daft import col

    data = daft.read_parquet(str(out / "data" / "*.parquet"))
    counts = data.agg(
        col("id").count().alias("num_pages"), col("host").count_distinct().alias("num_hosts"),
        col("num_chars").sum(), col("num_tokens").sum(),
    ).to_pylist()[0]  # fmt: skip
    rejects = daft.read_parquet(str(out / "rejects" / "*.parquet")).groupby("reason").agg(col("id").count().alias("num")).to_pylist()
    return {
        **{name: count or 0 for name, count in counts.items()},
        "num_rejects": dict(sorted((row["reason"], row["num"]) for row in rejects)), "token_estimate": f"UTF-8 bytes / {BYTES_PER_TOKEN}",
    }  # fmt: skip


if __name__ == "__main__":
    stage.main(run)
