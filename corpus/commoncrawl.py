"""Common Crawl as a source: whole WARC files, or single records found through one of its two indexes.

Single records are fetched in the order of (file, offset), neighbours with one request, and written one after another, since
each is a gzip member of its own, into WARC files of a bounded size. Everything that is finished is kept: the answers of the
index under `lookup/`, ranges under `ranges/`, archives under `warc/`; a stage that was stopped continues from there.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mathpipe.corpus import urls
from mathpipe.corpus.crawl_config import CrawlConfig
from mathpipe.corpus.fetch import Client, in_threads
from mathpipe.corpus.warc import ARCHIVES, check_archive
from mathpipe.pipeline import artifact, log

RECORD_SCHEMA = pa.schema({"url": pa.string(), "file": pa.string(), "offset": pa.int64(), "length": pa.int64()})
MAX_RANGE_BYTES = 64 * 2**20
"""One request asks for no more, so that little is lost with it."""
COLUMNS = {
    "url": "url", "file": "warc_filename", "offset": "warc_record_offset", "length": "warc_record_length",
    "surt": "url_surtkey", "status": "fetch_status", "mime": "content_mime_detected",
}  # fmt: skip


MAX_CONNECTIONS = 8


@dataclass(frozen=True)
class Record:
    """Where one record lies."""

    file: str
    offset: int
    length: int


def fetch(config: CrawlConfig, client: Client, out: Path) -> dict[str, Any]:
    """Write `warc/` (nothing with `read_from`) and `archives.json`; returns counts."""
    if config.read_from:
        names, facts = chosen_files(config, client)
        artifact.write_json(out / ARCHIVES, [config.read_from + name for name in names])
        return {"source": "commoncrawl", "snapshots": list(config.snapshots), "num_shards": len(names), **facts}
    facts = fetch_files(config, client, out) if config.index == "none" else fetch_records(config, client, out)
    archives = sorted((out / "warc").glob("*.gz"))
    artifact.write_json(out / ARCHIVES, [str(file.relative_to(out)) for file in archives])
    size_bytes = sum(file.stat().st_size for file in archives)
    return {"source": "commoncrawl", "snapshots": list(config.snapshots), "num_shards": len(archives), "size_bytes": size_bytes, **facts}


def fetch_files(config: CrawlConfig, client: Client, out: Path) -> dict[str, Any]:
    """Whole WARC files, several at a time."""
    names, facts = chosen_files(config, client)
    files = [(name, out / "warc" / f"{number:05d}-{name.rpartition('/')[2]}") for number, name in enumerate(names)]
    missing = [(config.base_url + name, file) for name, file in files if not file.exists()]
    with log.Progress(out, len(files), "files", "fetching", done=len(files) - len(missing)) as progress:
        in_threads(client, num_connections(config), client.download, missing, progress)
    for _, file in files:
        check_archive(str(file))
    return facts


def chosen_files(config: CrawlConfig, client: Client) -> tuple[list[str], dict[str, Any]]:
    """Paths of the WARC files that are wanted, relative to `base_url`, and what the manifest says of them."""
    listed = [path for snapshot in config.snapshots for path in listing(client, config, snapshot, "warc.paths.gz")]
    names = drawn(listed, config.num_files, config.draw)
    return names, {"num_listed": len(listed), "first_file": names[0], "last_file": names[-1]}


def num_connections(config: CrawlConfig) -> int:
    """At once, to a server that many use."""
    return min(config.runtime.num_workers, MAX_CONNECTIONS)


def listing(client: Client, config: CrawlConfig, snapshot: str, name: str) -> list[str]:
    """Paths of one of a snapshot's listings, relative to `base_url`.

    Raises:
        ValueError: it cannot be fetched, or is no list.
    """
    url = f"{config.base_url}crawl-data/{snapshot}/{name}"
    sink = io.BytesIO()
    client.fetch(url, sink)
    try:
        return gzip.decompress(sink.getvalue()).decode().split()
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{url}: not a gzip listing ({error}); is crawl.base_url right?") from None


def drawn(names: Sequence[str], number: int, how: str) -> list[str]:
    """`number` of the names, from the beginning or evenly spread; all for 0.

    >>> drawn("abcdefgh", 3, "even")
    ['a', 'c', 'f']

    Raises:
        ValueError: there are fewer.
    """
    if number > len(names):
        raise ValueError(f"crawl.num_files is {number:,}, but the snapshots list {len(names):,} files")
    if not number or how == "first":
        return list(names[: number or None])
    return [names[i * len(names) // number] for i in range(number)]


def fetch_records(config: CrawlConfig, client: Client, out: Path) -> dict[str, Any]:
    """Single records, looked up, then fetched shard by shard."""
    if not (out / "records.parquet").exists():
        artifact.write_parquet(out / "records.parquet", look_up(config, client, out))
    shutil.rmtree(out / "lookup", ignore_errors=True)
    table = pq.read_table(out / "records.parquet")
    records = [Record(*row) for row in zip(*(table[name].to_pylist() for name in ("file", "offset", "length")), strict=True)]
    shards = [coalesced(shard, config.coalesce_gap_bytes) for shard in sharded(records, config.shard_bytes)]
    num_ranges = sum(map(len, shards))
    with log.Progress(out, num_ranges, "ranges", "fetching") as progress:
        for number, ranges in enumerate(shards):
            archive = out / "warc" / f"records-{number:05d}.warc.gz"
            if archive.exists():
                progress.advance(len(ranges))
            else:
                fetch_shard(config, client, ranges, archive, progress)
    shutil.rmtree(out / "ranges", ignore_errors=True)
    return {"num_records": len(records), "num_ranges": num_ranges, "record_bytes": sum(record.length for record in records)}


def fetch_shard(config: CrawlConfig, client: Client, ranges: list[list[Record]], archive: Path, progress: log.Progress) -> None:
    """Fetch the ranges to files of their own, then write their records one after another."""
    folder = archive.parents[1] / "ranges"
    folder.mkdir(exist_ok=True)
    files = [folder / f"{archive.name}.{number:06d}" for number in range(len(ranges))]
    jobs = []
    for found, file in zip(ranges, files, strict=True):
        if not file.exists():
            first = found[0].offset
            jobs.append((config.base_url + found[0].file, file, first, max(r.offset + r.length for r in found) - first))
    progress.advance(len(ranges) - len(jobs))
    in_threads(client, num_connections(config), client.download, jobs, progress)
    partial = archive.with_name(f".{archive.name}.tmp")
    with partial.open("wb") as sink:
        for found, file in zip(ranges, files, strict=True):
            with file.open("rb") as source:
                for record in found:
                    source.seek(record.offset - found[0].offset)
                    sink.write(source.read(record.length))
    partial.replace(archive)
    for file in files:
        file.unlink()


def sharded(records: Sequence[Record], shard_bytes: int) -> Iterator[list[Record]]:
    """The records in order, in groups that are no larger together than `shard_bytes` (a larger record stands alone)."""
    shard: list[Record] = []
    size = 0
    for record in records:
        if shard and size + record.length > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(record)
        size += record.length
    if shard:
        yield shard


def coalesced(records: Sequence[Record], gap_bytes: int) -> list[list[Record]]:
    """Records in the order of (file, offset), grouped so that each group is fetched with one request.

    >>> [len(g) for g in coalesced([Record("a", 0, 10), Record("a", 15, 10), Record("a", 99, 1), Record("b", 100, 1)], 5)]
    [2, 1, 1]
    """
    groups: list[list[Record]] = []
    for record in records:
        end = record.offset + record.length
        if groups and (last := groups[-1][-1]).file == record.file:
            is_near = record.offset - (last.offset + last.length) <= gap_bytes
            if is_near and end - groups[-1][0].offset <= MAX_RANGE_BYTES:
                groups[-1].append(record)
                continue
        groups.append([record])
    return groups


def look_up(config: CrawlConfig, client: Client, out: Path) -> pa.Table:
    """The records asked for, in the order of (file, offset), each once.

    Raises:
        ValueError: there are none.
    """
    folder = out / "lookup"
    folder.mkdir(exist_ok=True)
    jobs = list(_columnar_jobs(config, client) if config.index == "columnar" else _cdx_jobs(config, client))
    files = [folder / f"{number:06d}.parquet" for number in range(len(jobs))]
    missing = [(file, *job) for file, job in zip(files, jobs, strict=True) if not file.exists()]

    def answer(file: Path, url: str, params: dict[str, str] | None) -> None:
        table = read_columnar(config, client, url) if params is None else read_cdx(config, client, url, params)
        artifact.write_parquet(file, table)

    with log.Progress(out, len(jobs), "index parts", "looking up", done=len(jobs) - len(missing)) as progress:
        in_threads(client, num_connections(config), answer, missing, progress)
    found = pa.concat_tables([RECORD_SCHEMA.empty_table(), *map(pq.read_table, files)])
    if not len(found):
        raise ValueError(f"{config.describe()}: the {config.index} index has none; check crawl.hosts, domains, url_prefixes, mime_types")
    once = found.group_by(["file", "offset"]).aggregate([("length", "max"), ("url", "min")])
    columns = {"url": once["url_min"], "file": once["file"], "offset": once["offset"], "length": once["length_max"]}
    return pa.table(columns, RECORD_SCHEMA).sort_by([("file", "ascending"), ("offset", "ascending")])


def surt(url_or_host: str) -> str:
    """Sort-friendly URI of a host or a prefix, as the indexes write it.

    >>> surt("https://www.MathOverflow.net/questions")
    'net,mathoverflow)/questions'
    """
    host, slash, path = url_or_host.rpartition("://")[2].partition("/")
    return ",".join(reversed(urls.host_of(f"http://{host}").split("."))) + ")" + slash + path.lower()


def surt_prefixes(config: CrawlConfig) -> list[str]:
    """What the SURT of a wanted page begins with."""
    below = [surt(domain).removesuffix(")") + "," for domain in config.domains]
    return [*map(surt, (*config.hosts, *config.domains, *config.url_prefixes)), *below]


def _columnar_jobs(config: CrawlConfig, client: Client) -> Iterator[tuple[str, None]]:
    for snapshot in config.snapshots:
        for path in listing(client, config, snapshot, "cc-index-table.paths.gz"):
            if "/subset=warc/" in path:
                yield config.base_url + path, None


def read_columnar(config: CrawlConfig, client: Client, url: str) -> pa.Table:
    """Matching rows of one parquet file of the columnar index; row groups whose key range cannot match are not fetched."""
    prefixes = surt_prefixes(config)
    with pq.ParquetFile(RemoteFile(client, url)) as file:
        wanted = [i for i in range(file.num_row_groups) if _may_hold(file.metadata.row_group(i), prefixes)]
        table = file.read_row_groups(wanted, columns=list(COLUMNS.values())) if wanted else file.schema_arrow.empty_table()
    rows = {name: table[column].combine_chunks() for name, column in COLUMNS.items()}
    matches = pc.and_(reduce(pc.or_, (pc.starts_with(rows["surt"], prefix) for prefix in prefixes)), pc.equal(rows["status"], 200))
    if config.mime_types:
        matches = pc.and_(matches, pc.is_in(rows["mime"], pa.array(config.mime_types)))
    return pa.table({name: rows[name] for name in RECORD_SCHEMA.names}).filter(matches).cast(RECORD_SCHEMA)


def _may_hold(group: Any, prefixes: Sequence[str]) -> bool:
    """Whether the smallest and the largest SURT of a row group leave room for one of the prefixes."""
    column = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == COLUMNS["surt"])
    found = column.statistics
    if found is None or not found.has_min_max:
        return True
    return any(prefix <= found.max and (found.min <= prefix or found.min.startswith(prefix)) for prefix in prefixes)


class RemoteFile(io.RawIOBase):
    """A file on a server, read by range requests."""

    def __init__(self, client: Client, url: str) -> None:
        self.client, self.url, self.place, self.size = client, url, 0, client.size(url)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        return self.place

    def read(self, size: int | None = -1) -> bytes:
        """One request."""
        length = max(0, self.size - self.place)
        length = length if size is None or size < 0 else min(size, length)
        sink = io.BytesIO()
        if length:
            self.client.fetch(self.url, sink, self.place, length)
        self.place += length
        return sink.getvalue()


def _cdx_jobs(config: CrawlConfig, client: Client) -> Iterator[tuple[str, dict[str, str]]]:
    """One job per page of every query."""
    queries = [("host", host) for host in config.hosts]
    queries += [("domain", domain) for domain in config.domains] + [("prefix", prefix) for prefix in config.url_prefixes]
    for snapshot in config.snapshots:
        url = f"{config.index_url}{snapshot}-index"
        for kind, what in queries:
            params = {"url": what, "matchType": kind, "output": "json", "filter": "=status:200"}
            found = client.get(url, params | {"showNumPages": "true"}, missing="No Captures")
            for page in range(json.loads(found)["pages"] if found else 0):
                yield url, params | {"page": str(page)}


def read_cdx(config: CrawlConfig, client: Client, url: str, params: dict[str, str]) -> pa.Table:
    """Matching rows of one page of the CDX server's answer."""
    lines = client.get(url, params, missing="No Captures").decode().split("\n")
    rows = [json.loads(line) for line in lines if line]
    kept = [row for row in rows if row.get("status") == "200" and _has_mime(row, config.mime_types)]
    return pa.Table.from_pylist(
        [{"url": row["url"], "file": row["filename"], "offset": int(row["offset"]), "length": int(row["length"])} for row in kept],
        RECORD_SCHEMA,
    )


def _has_mime(row: dict[str, str], wanted: Sequence[str]) -> bool:
    return not wanted or row.get("mime-detected", row.get("mime")) in wanted
