"""Common Crawl's layout served from real archives: every byte arrives, politely, whatever the server does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commoncrawl_server import ARCHIVES, INDEX, SNAPSHOT, Server, make_server, serve
from corpus_artifacts import digests, folder, needs_shared
from hypothesis import given
from hypothesis import strategies as st

from mathpipe.corpus import commoncrawl, warc
from mathpipe.corpus.commoncrawl import Record, coalesced, drawn, sharded, surt
from mathpipe.corpus.crawl_config import CrawlConfig
from mathpipe.corpus.fetch import Client, in_threads
from mathpipe.pipeline import log
from mathpipe.pipeline.config import Runtime, to_table, write_tables

PATHS = list(ARCHIVES)
SIXTEEN, CLUEWEB = PATHS[1], PATHS[3]


@pytest.fixture
def server() -> Iterator[Server]:
    made = make_server()
    httpd = serve(made)
    yield made
    made.go_on.set()
    httpd.shutdown()
    httpd.server_close()


def client_of(server: Server, requests_per_s: float = 10.0, max_tries: int = 5) -> Client:
    return Client(requests_per_s, max_tries, server.clock.time, server.clock.sleep, lambda: 0.5)


def config_of(server: Server, **values: Any) -> CrawlConfig:
    urls = {"base_url": server.url, "index_url": server.url}
    return CrawlConfig(**{"source": "commoncrawl", "snapshots": (SNAPSHOT,), "runtime": Runtime(num_workers=1), **urls, **values})


def fetched(out: Path) -> list[bytes]:
    return [Path(address).read_bytes() for address in warc.addresses(out)]


def new(tmp_path: Path, name: str = "crawl") -> Path:
    folder(tmp_path / name, "warc")
    return tmp_path / name


@needs_shared
def test_whole_files_can_stay_where_they_are(server: Server, tmp_path: Path) -> None:
    out = new(tmp_path)
    facts = commoncrawl.fetch(config_of(server, read_from=server.url), client_of(server), out)
    assert warc.addresses(out) == [server.url + path for path in PATHS] and facts["num_shards"] == 4
    assert not list((out / "warc").iterdir())
    found = list(warc.read_archive(warc.addresses(out)[1], 1))
    assert len({record.url for record in found}) == 16
    with pytest.raises(ValueError, match="ends in '/'"):
        config_of(server, read_from="bucket")


FAULTS = {
    "503": 3, "403": 2, "500": 2, "429 Retry-After 7": 1, "cuts": 1, "says too little": 1, "says too much": 1, "ignores Range": 99,
    "begins elsewhere": 2,
}  # fmt: skip


@needs_shared
@pytest.mark.parametrize("fault", FAULTS)
def test_whole_files_arrive_byte_for_byte(server: Server, tmp_path: Path, fault: str) -> None:
    server.fault = lambda path, number: fault if number < FAULTS[fault] else ""
    out = new(tmp_path)
    facts = commoncrawl.fetch(config_of(server), client_of(server), out)
    assert fetched(out) == [file.read_bytes() for file in ARCHIVES.values()]
    assert facts["num_shards"] == facts["num_listed"] == 4 and [facts["first_file"], facts["last_file"]] == [PATHS[0], PATHS[-1]]
    assert not list((out / "warc").glob(".*"))


@needs_shared
@pytest.mark.parametrize("fault", ["cuts", "says too little"])
def test_a_broken_transfer_goes_on_where_it_broke(server: Server, tmp_path: Path, fault: str) -> None:
    server.fault = lambda path, number: fault if path == CLUEWEB and number < 4 else ""
    commoncrawl.fetch(config_of(server), client_of(server), new(tmp_path))
    requests = server.of(CLUEWEB)
    assert len(requests) == 5 and sum(entry[2] for entry in requests) == ARCHIVES[CLUEWEB].stat().st_size
    size, sent = ARCHIVES[CLUEWEB].stat().st_size, 0
    for _, wanted, num_bytes, _ in requests:
        assert wanted == f"bytes={sent}-" and num_bytes >= (size - sent) // 2
        sent += num_bytes


@needs_shared
def test_requests_keep_the_rate_and_retries_a_second(server: Server, tmp_path: Path) -> None:
    server.fault = lambda path, number: "503" if path == SIXTEEN and number < 4 else ""
    commoncrawl.fetch(config_of(server), client_of(server, requests_per_s=4.0), new(tmp_path))
    times = [entry[3] for entry in server.log]
    assert len(times) == 1 + 4 + 4 and all(b - a >= 0.25 for a, b in zip(times, times[1:], strict=False))
    waits = [b[3] - a[3] for a, b in zip(server.of(SIXTEEN), server.of(SIXTEEN)[1:], strict=False)]
    assert waits == [1.0, 2.0, 4.0, 8.0], "exponential, at least a second (jitter 0.5 gives a factor of one)"


@needs_shared
def test_retry_after_is_honoured_by_all_connections(server: Server, tmp_path: Path) -> None:
    server.fault = lambda path, number: "503 Retry-After 30" if path == SIXTEEN and not number else ""
    commoncrawl.fetch(config_of(server), client_of(server), new(tmp_path))
    times = [entry[3] for entry in server.log]
    assert max(b - a for a, b in zip(times, times[1:], strict=False)) == 30.0


def test_the_rate_holds_over_connections(tmp_path: Path) -> None:
    """Twelve turns at 40 a second take at least eleven intervals, however many threads ask."""
    client = Client(40.0, 1)
    began = time.monotonic()
    turns: list[float] = []

    def turn() -> None:
        client._wait_for_turn(is_retry=False)
        turns.append(time.monotonic())

    in_threads(client, 6, turn, [()] * 12, log.Progress(tmp_path, 12))
    assert max(turns) - began >= 11 / 40 and all(t - began >= i / 40 - 1e-3 for i, t in enumerate(sorted(turns)))


@needs_shared
def test_what_never_comes_is_named_and_the_rest_is_kept(server: Server, tmp_path: Path) -> None:
    out = new(tmp_path)
    server.fault = lambda path, number: "404" if path == SIXTEEN else ""
    with pytest.raises(ValueError, match=rf"{server.url}{SIXTEEN}: given up after 5 tries: HTTP 404 .*the same command continues"):
        commoncrawl.fetch(config_of(server), client_of(server), out)
    assert len(server.of(SIXTEEN)) == 5
    assert (out / "warc" / "00000-cc-2019-jwarc.warc.gz").read_bytes() == ARCHIVES[PATHS[0]].read_bytes()
    server.fault = lambda path, number: ""
    commoncrawl.fetch(config_of(server), client_of(server), out)
    assert fetched(out) == [file.read_bytes() for file in ARCHIVES.values()] and len(server.of(PATHS[0])) == 1


@needs_shared
def test_a_listing_that_is_none_is_named(server: Server, tmp_path: Path) -> None:
    server.files[f"crawl-data/{SNAPSHOT}/warc.paths.gz"] = b"<html>welcome</html>"
    with pytest.raises(ValueError, match=r"warc.paths.gz: not a gzip listing .* is crawl.base_url right"):
        commoncrawl.fetch(config_of(server), client_of(server), new(tmp_path))


def members(server: Server, keep: Any) -> list[bytes]:
    """The wanted records of the source archives in the order of (file, offset)."""
    rows = sorted((c["filename"], int(c["offset"]), int(c["length"])) for c in server.captures if keep(c))
    return [server.files[file][offset : offset + length] for file, offset, length in rows]


SELECTIONS: dict[str, tuple[dict[str, Any], Any]] = {
    "host": ({"hosts": ("www.uraharajuku.st",)}, lambda c: "uraharajuku" in c["url"]),
    "domain": ({"domains": ("live-radsport.ch", "jxtdw.com")}, lambda c: "radsport" in c["url"] or "jxtdw" in c["url"]),
    "prefix": ({"url_prefixes": ("uraharajuku.st/shopdetail/0010340",)}, lambda c: "/0010340" in c["url"]),
    "all three": (
        {"hosts": ("commoncrawl.org",), "domains": ("wikipedia.org",), "url_prefixes": ("01spb.ru/company",)},
        lambda c: any(part in c["url"] for part in ("//commoncrawl.org", "wikipedia.org", "01spb.ru/company")),
    ),
}


@needs_shared
@pytest.mark.parametrize("index", ["columnar", "cdx"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_single_records_are_the_source_s_bytes(server: Server, tmp_path: Path, index: str, selection: str) -> None:
    server.fault = lambda path, number: ("503", "cuts", "")[min(number, 2)]
    values, keep = SELECTIONS[selection]
    wanted = members(server, keep)
    out = new(tmp_path)
    config = config_of(server, index=index, runtime=Runtime(num_workers=4), **values)
    facts = commoncrawl.fetch(config, client_of(server), out)
    assert b"".join(fetched(out)) == b"".join(wanted) and facts["num_records"] == len(wanted) > 0
    urls = [r.url for address in warc.addresses(out) for r in warc.read_archive(address, 1)]
    assert sorted(urls) == sorted(c["url"] for c in server.captures if keep(c))
    assert not (out / "lookup").exists() and not (out / "ranges").exists()


@needs_shared
@pytest.mark.parametrize(("gap", "num_ranges"), [(10**9, 1), (0, 2)])
def test_near_records_come_with_one_request(server: Server, tmp_path: Path, gap: int, num_ranges: int) -> None:
    """The first and the last records of clueweb-quirk, a host's 29 in all; between the chosen ones lie others."""
    values = {"url_prefixes": ("uraharajuku.st/shopdetail/0010050", "uraharajuku.st/shopdetail/0010340"), "coalesce_gap_bytes": gap}
    out = new(tmp_path)
    facts = commoncrawl.fetch(config_of(server, index="columnar", **values), client_of(server), out)
    assert facts["num_records"] == 7 and len(server.of(CLUEWEB)) == facts["num_ranges"] == num_ranges
    assert b"".join(fetched(out)) == b"".join(members(server, lambda c: "/0010050" in c["url"] or "/0010340" in c["url"]))


@needs_shared
def test_a_server_that_ignores_ranges_costs_bytes_not_records(server: Server, tmp_path: Path) -> None:
    server.fault = lambda path, number: "ignores Range" if path in ARCHIVES else ""
    config = config_of(server, index="cdx", domains=("uraharajuku.st",), coalesce_gap_bytes=0)
    commoncrawl.fetch(config, client_of(server), out := new(tmp_path))
    assert b"".join(fetched(out)) == b"".join(members(server, lambda c: "uraharajuku" in c["url"]))


@needs_shared
def test_only_row_groups_that_may_match_are_read(server: Server, tmp_path: Path) -> None:
    config = config_of(server, index="columnar", hosts=("01spb.ru",))
    commoncrawl.fetch(config, client_of(server), new(tmp_path))
    columns = [entry for entry in server.of(INDEX) if not entry[1] or not entry[1].startswith("bytes=0-0")]
    assert len(columns) <= 2 + len(commoncrawl.COLUMNS), "the footer and one row group of six"


@needs_shared
def test_shards_are_bounded_and_nothing_found_is_an_error(server: Server, tmp_path: Path) -> None:
    config = config_of(server, index="cdx", domains=("uraharajuku.st",), shard_bytes=50_000)
    facts = commoncrawl.fetch(config, client_of(server), out := new(tmp_path))
    assert facts["num_shards"] == len(fetched(out)) > 4 and max(map(len, fetched(out))) <= 50_000
    with pytest.raises(ValueError, match="records of nowhere.example of .*: the cdx index has none"):
        commoncrawl.fetch(config_of(server, index="cdx", hosts=("nowhere.example",)), client_of(server), new(tmp_path, "none"))


@needs_shared
@pytest.mark.parametrize("index", ["none", "columnar"])
def test_a_killed_crawl_continues_and_ends_byte_identical(server: Server, tmp_path: Path, index: str) -> None:
    values: dict[str, Any] = {"index": index, "domains": ("uraharajuku.st", "01spb.ru"), "coalesce_gap_bytes": 10**8}
    config = config_of(server, **values)
    commoncrawl.fetch(config, client_of(server), undisturbed := new(tmp_path, "undisturbed"))
    tables = {"crawl": to_table(config), "runtime": {"num_workers": 1, "requests_per_s": 100.0}}
    write_tables(tmp_path / "c.toml", tables)

    def start() -> subprocess.Popen:
        command = [sys.executable, "-m", "mathpipe.corpus.crawl", "--config", str(tmp_path / "c.toml"), "--out", str(tmp_path / "out")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)

    server.log.clear()
    server.fault = lambda path, number: "stalls" if path == CLUEWEB and not number else ""
    process, out = start(), tmp_path / "out"
    assert server.stalled.wait(30)
    deadline = time.monotonic() + 30
    while not (parts := [f for f in out.rglob("*.part") if f.stat().st_size]) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    have = parts[0].stat().st_size
    again = start()
    assert again.wait(60) == 0, again.stdout and again.stdout.read()
    assert digests(out, "warc") == digests(undisturbed, "warc")
    assert (out / "archives.json").read_bytes() == (undisturbed / "archives.json").read_bytes()
    begin, resumed = (int(entry[1].removeprefix("bytes=").split("-")[0]) for entry in server.of(CLUEWEB) if entry[1])
    assert resumed == begin + have, "it goes on after the last byte on disk"
    others = [path for path in PATHS if path != CLUEWEB]
    assert all(len(server.of(path)) <= 1 for path in others), "what was complete is not fetched again"


RECORDS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 500), st.integers(1, 40)), max_size=30, unique_by=lambda r: r[:2])


@given(RECORDS, st.integers(0, 100), st.integers(1, 200))
def test_coalescing_and_sharding_lose_nothing(rows: list[tuple[str, int, int]], gap: int, size: int) -> None:
    records = [Record(*row) for row in sorted(rows)]
    shards = list(sharded(records, size))
    assert [r for shard in shards for r in shard] == records
    assert all(len(shard) == 1 or sum(r.length for r in shard) <= size for shard in shards)
    groups = coalesced(records, gap)
    assert [r for group in groups for r in group] == records
    for group in groups:
        assert len({r.file for r in group}) == 1
        assert all(b.offset - (a.offset + a.length) <= gap for a, b in zip(group, group[1:], strict=False))
    for a, b in zip(groups, groups[1:], strict=False):
        assert a[-1].file != b[0].file or b[0].offset - (a[-1].offset + a[-1].length) > gap


def test_drawing_and_keys() -> None:
    assert drawn("abcdefgh", 3, "even") == ["a", "c", "f"]
    assert drawn("abc", 2, "first") == ["a", "b"] and drawn("abc", 0, "even") == ["a", "b", "c"]
    with pytest.raises(ValueError, match="num_files is 4, but the snapshots list 3"):
        drawn("abc", 4, "even")
    assert surt("https://www.MathOverflow.net/questions") == "net,mathoverflow)/questions"


@pytest.mark.parametrize(("values", "words"), [
    ({}, "needs snapshots"),
    ({"snapshots": ("x",), "index": "cdx"}, "needs hosts, domains or url_prefixes"),
    ({"snapshots": ("x",), "index": "none", "num_files": -1}, "must not be negative"),
    ({"snapshots": ("x",), "base_url": "https://a.org"}, "ends in '/'"),
    ({"snapshots": ("x",), "draw": "odd"}, "draw must be one of even, first"),
])  # fmt: skip
def test_bad_values_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CrawlConfig(source="commoncrawl", **values)
