"""sources: text to train on beside the math corpus: code, LaTeX, general pages, files and data sets of the hub.

Artifact: `data/<source>-<number>.parquet` with id, url, host, text, num_tokens; `rejects/` of the same names with id, url, reason.
Every source is collected by one process, in an order that does not depend on the machine; finished files are kept when the stage
is killed, and what stands in them is read past. Offline stand-ins, named so in the manifest:

1. `latex` is no arXiv: docstrings with formulas, from reStructuredText to LaTeX by docutils. Objects whose documentation is a
   page of our crawl are left out, so that nothing is in two sources.
2. `python` is no GitHub: whole source files of installed packages, without tests and vendored copies.
3. `pages` is general text: what the last round did not select. In the paper's crawl that is nearly everything.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mathpipe.corpus import docstrings, render, urls
from mathpipe.corpus.crawl import url_of
from mathpipe.corpus.engine import run_jobs
from mathpipe.corpus.pages import BYTES_PER_TOKEN
from mathpipe.corpus.sources_config import SourcesConfig, SourcesInputs, TextSource
from mathpipe.pipeline import artifact, stage

SCHEMA = pa.schema({"id": pa.int64(), "url": pa.string(), "host": pa.string(), "text": pa.string(), "num_tokens": pa.int64()})
REJECT_SCHEMA = pa.schema({"id": pa.int64(), "url": pa.string(), "reason": pa.string()})
FILE_BYTES = 268_435_456
"""A file is closed when it has this much text."""
BATCH_ROWS = 1000
MAX_DOCSTRING_CHARS = 1_000_000
SHUFFLE_BUFFER = 10_000
"""Rows of a streamed data set among which one is drawn."""
STAND_INS = {
    "latex": "documentation of installed packages, written as LaTeX by docutils, for arXiv",
    "python": "source files of installed packages, for GitHub",
    "pages": "pages of the crawl that the last round did not select, for general text",
}


class Document(NamedTuple):
    url: str
    text: str
    reason: str = ""
    """Why it is dropped, where its reader knows; the text may be empty then."""


def run(config: SourcesConfig, inputs: SourcesInputs, out: Path) -> dict[str, Any]:
    """Collect every source by itself; returns documents, estimated tokens and rejects by source, and what stands in for what."""
    names = sorted(config.sources)
    missing = [name for name in names if not marker(out, name).exists()]
    jobs = [(config, name, names.index(name), inputs.pages, inputs.selected, out) for name in missing]
    run_jobs(collect, jobs, config.runtime, out, "sources", "collecting", len(names) - len(missing))
    facts = {name: describe(name, out) for name in names}
    kinds = {name: config.sources[name].kind for name in names}
    return {
        "num_pages": sum(one["num_documents"] for one in facts.values()), "num_tokens": sum(one["num_tokens"] for one in facts.values()),
        "sources": facts, "stand_ins": {name: STAND_INS[kind] for name, kind in kinds.items() if kind in STAND_INS},
        "token_estimate": f"UTF-8 bytes / {BYTES_PER_TOKEN}",
    }  # fmt: skip


def marker(out: Path, name: str) -> Path:
    """The file that says that a source is whole."""
    return out / "done" / name


def collect(config: SourcesConfig, name: str, number: int, pages: Path, selected: Path, out: Path) -> str:
    """Write the files of one source that are missing; returns a status line. Row ids are source number × 2⁴⁰ + row.

    Raises:
        ValueError: the source has no document.
    """
    source = config.sources[name]
    done = sorted((out / "data").glob(f"{name}-*.parquet"))
    num_tokens = sum(pc.sum(pq.read_table(file, columns=["num_tokens"])["num_tokens"]).as_py() or 0 for file in done)
    past = [pc.max(pq.read_table(out / folder / done[-1].name, columns=["id"])["id"]).as_py() for folder in ("data", "rejects") if done]
    first = max((row for row in past if row is not None), default=number * 2**40 - 1) + 1
    rows = zip(itertools.count(first), itertools.islice(read(config, source, pages, selected), first - number * 2**40, None), strict=False)
    for file_number in itertools.count(len(done)):
        row = None if source.max_tokens and num_tokens >= source.max_tokens else next(rows, None)
        if row is None:
            break
        left = source.max_tokens - num_tokens if source.max_tokens else None
        num_tokens += write_file(config, out, f"{name}-{file_number:05d}.parquet", itertools.chain([row], rows), left)
    if not num_tokens:
        raise ValueError(f"source {name!r} ({source.kind}): no document of {config.min_chars} to {config.max_chars} characters")
    marker(out, name).parent.mkdir(exist_ok=True)
    marker(out, name).touch()
    return f"{name}: {num_tokens:,} tokens"


def write_file(config: SourcesConfig, out: Path, file: str, rows: Iterator[tuple[int, Document]], max_tokens: int | None) -> int:
    """Write rows to one file until it is full or has `max_tokens`; returns its estimated tokens."""
    num_tokens = 0
    kept: list[dict[str, Any]] = []
    rejects = []
    with artifact.parquet_writer(out / "data" / file, SCHEMA) as writer:
        for number, (url, text, given) in rows:
            reason = given or ("too short" if len(text) < config.min_chars else "too long" if len(text) > config.max_chars else "")
            if reason:
                rejects.append({"id": number, "url": url, "reason": reason})
                continue
            tokens = -(-len(text.encode()) // BYTES_PER_TOKEN)
            kept.append({"id": number, "url": url, "host": host_of(url), "text": text, "num_tokens": tokens})
            num_tokens += tokens
            if len(kept) == BATCH_ROWS:
                writer.write_table(pa.Table.from_pylist(kept, schema=SCHEMA))
                kept.clear()
            if num_tokens * BYTES_PER_TOKEN >= FILE_BYTES or (max_tokens is not None and num_tokens >= max_tokens):
                break
        writer.write_table(pa.Table.from_pylist(kept, schema=SCHEMA))
        artifact.write_parquet(out / "rejects" / file, pa.Table.from_pylist(rejects, schema=REJECT_SCHEMA))
    return num_tokens


def host_of(url: str) -> str:
    """Host of a web address; otherwise what stands before the first slash (`code:torch`)."""
    try:
        return urls.host_of(url) or url.partition("/")[0]
    except ValueError:
        return url.partition("/")[0]


def describe(name: str, out: Path) -> dict[str, Any]:
    """Counts of one source, read back from what was written."""
    files = sorted((out / "data").glob(f"{name}-*.parquet"))
    tokens = [pq.read_table(file, columns=["num_tokens"])["num_tokens"] for file in files]
    reasons = [reason for file in files for reason in pq.read_table(out / "rejects" / file.name)["reason"].to_pylist()]
    return {
        "num_documents": sum(map(len, tokens)), "num_tokens": sum(pc.sum(column).as_py() or 0 for column in tokens),
        "num_rejects": dict(sorted(Counter(reasons).items())),
    }  # fmt: skip


def read(config: SourcesConfig, source: TextSource, pages: Path, selected: Path) -> Iterator[Document]:
    """All documents of a source, always in the same order."""
    if source.kind == "pages":
        return unselected(pages, selected)
    if source.kind == "python":
        return without_repeats(python_files(source.packages))
    if source.kind == "latex":
        return without_repeats(latex(source.packages, pages))
    return rows_of(source, config.seed)


def without_repeats(documents: Iterator[Document]) -> Iterator[Document]:
    """The documents, those whose text was there before with that as the reason to drop them."""
    seen = set()
    for document in documents:
        digest = hashlib.sha256(document.text.encode()).digest()
        yield document._replace(reason="repeated") if not document.reason and digest in seen else document
        seen.add(digest)


def unselected(pages: Path, selected: Path) -> Iterator[Document]:
    """Pages of the crawl that the selection leaves, in their order."""
    for file in artifact.parquet_files(pages):
        sidecar = selected / "data" / file.name
        chosen = pq.read_table(sidecar, columns=["id"])["id"].combine_chunks() if sidecar.exists() else pa.array([], pa.int64())
        for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=["id", "url", "text"]):
            rest = batch.filter(pc.invert(pc.is_in(batch["id"], chosen)))
            yield from map(Document, rest["url"].to_pylist(), rest["text"].to_pylist())


def source_files(package: str) -> list[Path]:
    """Python files of a package without its tests and vendored copies, in the order of a hash of their path."""
    root = docstrings.source_root(package)
    files = [file for file in root.rglob("*.py") if not docstrings.SKIPPED_FOLDERS & set(file.relative_to(root).parts)]
    return sorted(files, key=lambda file: hashlib.sha256(file.relative_to(root).as_posix().encode()).digest())


def in_turns(packages: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """(package, file), a file of each package in turn, so that a part of them has all packages."""
    turns = itertools.zip_longest(*([(package, file) for file in source_files(package)] for package in packages))
    return filter(None, itertools.chain.from_iterable(turns))


def python_files(packages: tuple[str, ...]) -> Iterator[Document]:
    """Whole source files."""
    for package, file in in_turns(packages):
        url = f"code:{package}/{file.relative_to(docstrings.source_root(package)).as_posix()}"
        try:
            yield Document(url, file.read_bytes().decode("utf-8"))
        except UnicodeDecodeError:
            yield Document(url, "", "not UTF-8")


def latex(packages: tuple[str, ...], pages: Path) -> Iterator[Document]:
    """Docstrings with formulas as LaTeX documents, but those that are pages of the crawl."""
    crawled = {urls.normalize(url) for table in artifact.read_columns(pages, ["url"]) for url in table["url"].to_pylist()}
    for package, file in in_turns(packages):
        if not render.has_math(file.read_bytes().decode("utf-8", errors="replace")):
            continue
        for found in docstrings.read_file(package, docstrings.source_root(package), file, MAX_DOCSTRING_CHARS):
            if render.has_math(found.text):
                path = (found.package, *found.module, *([found.name] if found.name else []))
                in_crawl = urls.normalize(url_of(found)) in crawled
                text = "" if in_crawl else render.render_latex(".".join(path), found.text)
                yield Document(f"latex:{'/'.join(path)}", text, "in the crawl" if in_crawl else "")


def rows_of(source: TextSource, seed: int) -> Iterator[Document]:
    """Rows of files or of a data set: files are shuffled, and rows within a buffer, so that a part is like the whole.

    Raises:
        ValueError: no such file or data set, or no such column.
    """
    import datasets

    what = source.name or source.paths[0]
    try:
        if source.kind == "files":
            files = [*map(str, source.local_files()), *(path for path in source.paths if "://" in path)]
            builder = "parquet" if files[0].endswith(".parquet") else "json"
            stream = datasets.load_dataset(builder, data_files=files, split="train", streaming=True)
        else:
            stream = datasets.load_dataset(source.name, source.subset or None, split=source.split, streaming=True)
        for number, row in enumerate(stream.shuffle(seed, buffer_size=SHUFFLE_BUFFER)):
            if not isinstance(text := row.get(source.column, 0), str | None):
                raise ValueError(f"{what}: no text in column {source.column!r} (sources.sources); columns: {', '.join(row)}")
            url = row.get("url")
            url = url if isinstance(url, str) else f"{what}/{source.subset or source.split}/{number}"
            yield Document(url, text or "", "no text" if text is None else "")
    except (FileNotFoundError, ConnectionError) as error:
        raise ValueError(f"{what}: cannot be read (sources.sources): {error}; name files, a data set of the hub or a folder") from None


if __name__ == "__main__":
    stage.main(run)
