"""The pages stage on a slice of the shared crawl."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from corpus_artifacts import digests, needs_shared, rows

from mathpipe.corpus import warc
from mathpipe.corpus.config import PagesConfig
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
