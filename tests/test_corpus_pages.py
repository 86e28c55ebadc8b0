"""The pages stage on a slice of the shared crawl."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corpus_artifacts import digests, folder, needs_shared, rows

from mathpipe.corpus import pages, warc
from mathpipe.corpus.config import PagesConfig, PagesInputs
from mathpipe.corpus.warc import Record
from mathpipe.pipeline import artifact


@needs_shared
def test_every_record_is_a_page_or_a_reject_with_a_reason(small_crawl: Path, small_pages: Path) -> None:
    from warcio.archiveiterator import ArchiveIterator

    urls = []
    for archive in warc.addresses(small_crawl):
        with Path(archive).open("rb") as stream:
            urls += [r.rec_headers.get_header("WARC-Target-URI") for r in ArchiveIterator(stream) if r.rec_type == "response"]
    kept, dropped = rows(small_pages), rows(small_pages, "rejects")
    assert sorted(urls) == sorted(row["url"] for row in kept + dropped)
    assert all(row["reason"] and row["detail"] for row in dropped)
    assert all(len(row["text"]) == row["num_chars"] >= PagesConfig().min_chars for row in kept)
    assert len({row["id"] for row in kept + dropped}) == len(urls)


@needs_shared
def test_a_killed_pages_stage_ends_byte_identical(small_crawl: Path, small_pages: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[runtime]\nnum_workers = 1\n[pages]\n")
    out = tmp_path / "out"
    inputs = ["--in", f"crawl={small_crawl}", "--out", str(out)]
    command = [sys.executable, "-m", "mathpipe.corpus.pages", "--config", str(tmp_path / "c.toml"), *inputs]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (first := out / "extracted" / "00000.parquet").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert first.exists() and not artifact.is_complete(out)
    again = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    output = again.communicate(timeout=120)[0]
    assert again.returncode == 0 and artifact.is_complete(out), output
    assert "extracting  0/3 archives" not in output, "the finished archive is not read again"
    assert digests(out, "data", "rejects", "labels") == digests(small_pages, "data", "rejects", "labels")


def test_links_name_the_pages_of_the_crawl_that_kept_pages_point_to(tmp_path: Path) -> None:
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    html = {
        "http://a.org/1": "<a href='2#top'>two</a> <a href='http://www.b.org/?utm_source=x'>b</a> <a href='/1'>here</a>",
        "http://a.org/2": "<a href='http://far.org/'>far</a> <a href='mailto:x@a.org'>mail</a>",
        "http://b.org/": "<a href='http://a.org/1'>one</a> <a href='http://a.org/1?'>one</a>",
        "http://b.org/index.html": "<a href='http://a.org/1'>one</a>",  # the URL of b.org/: its links go with it
    }
    crawl, out = folder(tmp_path, "crawl"), folder(tmp_path, "out")
    with (crawl / "a.warc.gz").open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for number, (url, links) in enumerate(html.items()):
            words = " ".join(f"word{number}of{i}" for i in range(60))
            body = io.BytesIO(f"<html><body><p>{words}</p><p>{links}</p></body></html>".encode())
            status = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1")
            writer.write_record(writer.create_warc_record(url, "response", body, http_headers=status))
    artifact.write_json(crawl / "archives.json", [str(crawl / "a.warc.gz")])
    facts = pages.run(PagesConfig(keep_links=True), PagesInputs(crawl), out)
    assert facts["num_pages"] == 3 and facts["num_rejects"] == {"url duplicate": 1}
    url_of = {row["id"]: row["url"] for row in rows(out)}
    found = [(url_of[row["id"]], row["url"]) for row in rows(out, "links")]
    assert found == [("http://a.org/1", "a.org/2"), ("http://a.org/1", "b.org/"), ("http://b.org/", "a.org/1")]


def test_a_long_archive_is_written_in_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [Record(i, f"http://a.org/{i}", "x" * 30, "", "") for i in range(10)]
    monkeypatch.setattr(pages, "BATCH_CHARS", 100)
    assert [len(batch) for batch in pages.batches(iter(records))] == [4, 4, 2]
