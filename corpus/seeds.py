"""Round 1's positives from outside the crawl: parquet or JSONL files (`seed_path`), or a data set of the hub (`seed_dataset`).

Of files a random draw over all rows is read, of a data set a stream whose files are shuffled, and rows within a buffer: nothing
is downloaded beyond what is used. One text at a time is in memory.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mathpipe.corpus import urls
from mathpipe.corpus.round_config import ClassifierConfig

SHUFFLE_BUFFER = 10_000
"""Rows of a streamed data set among which one is drawn."""
URL_COLUMN = "url"
"""Where rows have it, their hosts can be held out."""
Row = dict[str, Any]


def read(config: ClassifierConfig) -> Iterator[tuple[str, str]]:
    """(host, text) of `num_seeds` random seed pages, or of all; host is empty where it is not known.

    Raises:
        ValueError: no such file or data set, or no such column.
    """
    if config.seed_path:
        rows = draw_from_files(config)
    elif config.seed_dataset:
        rows = stream(config)
    else:
        return
    for place, row in rows:
        text = row.get(config.seed_column)
        if not isinstance(text, str):
            raise ValueError(f"{place}: no text in column {config.seed_column!r} (classifier.seed_column); columns: {', '.join(row)}")
        yield host_of(row.get(URL_COLUMN)), text


def host_of(url: Any) -> str:
    """Host of a row's URL, empty without one."""
    try:
        return urls.host_of(url) if isinstance(url, str) else ""
    except ValueError:  # seed rows may carry anything there
        return ""


def draw_from_files(config: ClassifierConfig) -> Iterator[tuple[str, Row]]:
    """(file, row) of the drawn rows, in the order of the files."""
    system, pattern = fsspec.core.url_to_fs(config.seed_path)
    files = sorted(system.glob(pattern))
    if not files:
        raise ValueError(f"{config.seed_path}: no such file (classifier.seed_path); give parquet or JSONL files")
    total = sum(num_rows(system, file) for file in files)
    drawn = np.sort(np.random.default_rng(config.seed).permutation(total)[: config.num_seeds])
    every = ((file, row) for file in files for row in read_file(system, file, config.seed_column))
    at = 0
    for number in drawn.tolist():
        yield next(itertools.islice(every, number - at, None))
        at = number + 1


def num_rows(system: Any, file: str) -> int:
    """Rows of a parquet or JSONL file."""
    with system.open(file, "rb") as handle:
        if file.endswith(".parquet"):
            return parquet(file, handle).metadata.num_rows
        return sum(1 for _ in lines(file, handle))


def read_file(system: Any, file: str, column: str) -> Iterator[Row]:
    """Rows of a file, of parquet only text and URL."""
    with system.open(file, "rb") as handle:
        if file.endswith(".parquet"):
            table = parquet(file, handle)
            names = [name for name in (column, URL_COLUMN) if name in table.schema_arrow.names] or table.schema_arrow.names
            yield from (row for batch in table.iter_batches(1000, columns=names) for row in batch.to_pylist())
            return
        for number, line in enumerate(lines(file, handle), 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}:{number}: not JSON (classifier.seed_path): {error}") from None
            yield row if isinstance(row, dict) else {}


def parquet(file: str, handle: Any) -> pq.ParquetFile:
    """An open parquet file."""
    try:
        return pq.ParquetFile(handle)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file}: not a parquet file (classifier.seed_path): {error}") from None


def lines(file: str, handle: Any) -> Iterator[str]:
    """Lines of a JSONL file, plain or compressed (.gz, .zst, .bz2)."""
    kind = {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}.get(file.rpartition(".")[2])
    source = pa.CompressedInputStream(pa.PythonFile(handle, mode="r"), kind) if kind else handle
    try:
        yield from (line for line in io.TextIOWrapper(source, encoding="utf-8") if not line.isspace())
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{file}: cannot be read as JSONL (classifier.seed_path): {error}") from None


def stream(config: ClassifierConfig) -> Iterator[tuple[str, Row]]:
    """(name, row) of the first rows of a shuffled stream."""
    from datasets import load_dataset

    name, _, subset = config.seed_dataset.partition(":")
    try:
        rows = load_dataset(name, subset or None, split="train", streaming=True)
        yield from ((name, row) for row in rows.shuffle(config.seed, buffer_size=SHUFFLE_BUFFER).take(config.num_seeds))
    except (FileNotFoundError, ConnectionError) as error:
        wanted = "name a data set of the hub or a folder of parquet or JSONL, or set classifier.seed_path"
        raise ValueError(f"{config.seed_dataset}: cannot be read (classifier.seed_dataset): {error}; {wanted}") from None
