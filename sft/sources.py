"""Records of a public set: from local JSONL, JSON or parquet files, compressed or not, or streamed from the hub."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mathpipe.sft.config import ExampleSource
from mathpipe.sft.readers import READERS

SHUFFLE_BUFFER = 10_000
"""Rows of a streamed set among which one is drawn, where `limit` takes a part of it."""


def records(source: ExampleSource, seed: int) -> Iterator[Any]:
    """Records of a source in a fixed order, at most `limit`; one that is no JSON comes as None.

    Raises:
        ValueError: no such file or data set, or the first record of a file lacks the fields of the set.
    """
    places = local(source) if source.path else hub(source, seed)
    return itertools.islice(places, source.limit or None)


def local(source: ExampleSource) -> Iterator[Any]:
    """Records of all files that the pattern names, in the order of their names."""
    files = source.files()
    if not files:
        raise ValueError(f"{source.path}: no such file (path of the {source.reader} source); give .jsonl, .json or .parquet files")
    for file in files:
        yield from checked(source, str(file), read_file(file))


def hub(source: ExampleSource, seed: int) -> Iterator[Any]:
    """Records of a data set of the hub, its subsets one after the other."""
    from datasets import load_dataset

    for subset in source.subsets or (None,):
        place = f"{source.dataset}{f':{subset}' if subset else ''}, split {source.split}"
        try:
            rows = load_dataset(source.dataset, subset, split=source.split, streaming=True, revision=source.revision or None)
            if source.limit:
                rows = rows.shuffle(seed, buffer_size=SHUFFLE_BUFFER)
            yield from checked(source, place, rows)
        except OSError as error:  # no such set, no connection, an answer of the hub that is an error
            raise ValueError(f"{place}: cannot be read: {error}; check the name, or give local files by path") from None


def checked(source: ExampleSource, place: str, rows: Iterator[Any]) -> Iterator[Any]:
    """The rows, the first of which must have the fields of the set."""
    wanted = READERS[source.reader].fields
    for number, row in enumerate(rows):
        if number == 0 and not (isinstance(row, dict) and set(wanted) <= set(row)):
            found = ", ".join(row) if isinstance(row, dict) else "no JSON object"
            raise ValueError(f"{place}: not the set {source.reader}: fields {found}; wanted {', '.join(wanted)}")
        yield row


def read_file(file: Path) -> Iterator[Any]:
    """Records of one file by its ending (.gz, .bz2, .zst, .lz4 after it)."""
    name = file.name
    for ending in (".gz", ".bz2", ".zst", ".lz4"):
        name = name.removesuffix(ending)
    try:
        if name.endswith(".parquet"):
            yield from (row for batch in pq.ParquetFile(file).iter_batches(1000) for row in batch.to_pylist())
            return
        with io.TextIOWrapper(pa.input_stream(str(file), compression="detect"), encoding="utf-8") as text:
            if name.endswith(".json"):
                yield from json.load(text)
                return
            for line in text:
                if not line.isspace():
                    yield parse(line)
    except (json.JSONDecodeError, UnicodeDecodeError, OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{file}: cannot be read as .jsonl, .json or .parquet: {error}; fetch it again") from None


def parse(line: str) -> Any:
    """A line of JSONL, or None where it is no JSON."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
