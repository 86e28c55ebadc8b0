"""What the classifier learns from: pages drawn without their texts, and examples as lines in one file.

A draw gives every page a random number made from its id and takes the smallest, so that it is the same in any order and
holds no more pages than it draws: of a crawl of any size neither texts nor ids are in memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LABELS = {True: "__label__math", False: "__label__other"}
ID_AND_HOST = pa.schema([("id", pa.int64()), ("host", pa.string())])
MIN_PENDING = 100_000
ALL = 2**62


def random_keys(id_N: np.ndarray, *salt: int) -> np.ndarray:
    """A random number for every id, different for different ids (splitmix64); `salt` makes another draw."""
    key_N = id_N.astype(np.uint64)
    for start in (0, *salt):
        key_N = key_N + np.uint64((start * 0xD1B54A32D192ED03 + 0x9E3779B97F4A7C15) % 2**64)
        key_N = (key_N ^ (key_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key_N = (key_N ^ (key_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        key_N = key_N ^ (key_N >> np.uint64(31))
    return key_N


def is_member(id_N: np.ndarray, sorted_ids: np.ndarray) -> np.ndarray:
    """Which ids stand in `sorted_ids`, without sorting these again for every file.

    >>> is_member(np.array([3, 4, 9]), np.array([1, 3, 9])).tolist()
    [True, False, True]
    """
    place_N = np.searchsorted(sorted_ids, id_N)
    return np.append(sorted_ids, -1)[place_N] == id_N


def draw(tables: Iterable[pa.Table], num: int, max_per_host: int, *salt: int) -> pa.Table:
    """`num` random rows of id and host, or all, at most `max_per_host` of a host (0: no limit); sorted by id.

    A row beyond the `num` best so far cannot come back: later rows only add better ones.
    """
    best, pending, limit = pa.table({"id": [], "host": [], "key": []}, schema=ID_AND_HOST.append(pa.field("key", pa.uint64()))), [], None
    for table in tables:
        key_N = random_keys(table["id"].to_numpy(), *salt)
        table = table.select(ID_AND_HOST.names).append_column("key", pa.array(key_N, pa.uint64()))
        pending.append(table if limit is None else table.filter(pa.array(key_N < limit)))
        if sum(map(len, pending)) > max(num, MIN_PENDING):
            best, pending = smallest(pa.concat_tables([best, *pending]), num, max_per_host), []
            limit = best["key"][-1].as_py() if len(best) == num > 0 else None
    return smallest(pa.concat_tables([best, *pending]), num, max_per_host).select(ID_AND_HOST.names).sort_by("id")


def smallest(table: pa.Table, num: int, max_per_host: int) -> pa.Table:
    """The `num` rows with the smallest keys among the `max_per_host` smallest of every host, by key."""
    if max_per_host and len(table):
        table = table.sort_by([("host", "ascending"), ("key", "ascending")])
        table = table.filter(pa.array(rank_in_run(table["host"]) < max_per_host))
    return table.sort_by("key").slice(0, num)


def rank_in_run(column: pa.ChunkedArray) -> np.ndarray:
    """Place of each row among the equal values that stand together, from 0.

    >>> rank_in_run(pa.chunked_array([["a", "a", "b"]])).tolist()
    [0, 1, 0]
    """
    code_N = column.combine_chunks().dictionary_encode().indices.to_numpy()
    first_N = np.flatnonzero(np.diff(code_N, prepend=-1))
    return np.arange(len(code_N)) - np.repeat(first_N, np.diff(first_N, append=len(code_N)))


class Examples:
    """Labelled lines in fastText's form, in a file, with label and host of each."""

    def __init__(self, file: Path) -> None:
        self.file, self.is_math, self.hosts, self.offsets = file, [], [], [0]  # type: ignore[var-annotated]
        file.write_bytes(b"")

    def write(self, examples: Iterable[tuple[bool, str, str]]) -> None:
        """Add (is it math, host, prepared text)."""
        with self.file.open("ab") as target:
            for is_math, host, text in examples:
                size = target.write(f"{LABELS[is_math]} {text}\n".encode())
                self.is_math.append(is_math)
                self.hosts.append(host)
                self.offsets.append(self.offsets[-1] + size)

    def __len__(self) -> int:
        return len(self.is_math)

    def lines(self, numbers: Sequence[int]) -> Iterator[bytes]:
        """The lines with these numbers, in this order."""
        with self.file.open("rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for number in numbers:
                yield content[self.offsets[number] : self.offsets[number + 1]]

    def texts(self, numbers: Sequence[int]) -> Iterator[str]:
        """The same without labels and line ends."""
        return (line.decode().partition(" ")[2].rstrip("\n") for line in self.lines(numbers))

    def held_out_hosts(self, frac: float, seed: int) -> set[str]:
        """A random share of the hosts with positives and of the others, at least one of each; none where only one has positives."""
        positive = sorted({host for host, is_math in zip(self.hosts, self.is_math, strict=True) if is_math and host})
        negative = sorted({host for host in self.hosts if host} - set(positive))
        if frac == 0 or len(positive) < 2 or len(negative) < 2:
            return set()
        rng = np.random.default_rng(seed)
        return {host for hosts in (positive, negative) for host in rng.permutation(hosts)[: max(1, round(frac * len(hosts)))].tolist()}


def members(tables: Iterable[pa.Table], ids: np.ndarray) -> Iterator[pa.Table]:
    """The rows of the tables with these sorted ids."""
    return (table.filter(pa.array(is_member(table["id"].to_numpy(), ids))) for table in tables)


def without(tables: Iterable[pa.Table], ids: np.ndarray) -> Iterator[pa.Table]:
    """The rows of the tables but those with these sorted ids."""
    return (table.filter(pa.array(~is_member(table["id"].to_numpy(), ids))) for table in tables)


def on_hosts(tables: Iterable[pa.Table], hosts: pa.Array, inside: bool) -> Iterator[pa.Table]:
    """The rows of the tables on these hosts, or on others."""
    for table in tables:
        is_there = pc.is_in(table["host"], hosts)
        yield table.filter(is_there if inside else pc.invert(is_there))
