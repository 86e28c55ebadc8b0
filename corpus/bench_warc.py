"""Benchmark of WARC reading beside warcio, over real pages."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from mathpipe.corpus import warc
from mathpipe.pipeline.bench import Benchmark, Row, row

CRAWL = Path(os.environ.get("MATHPIPE_SHARED", "../shared")) / "data" / "crawl"


def read_mb_per_s() -> Row:
    """MB of payload per CPU second, each record checked and none lost to a neighbour's fault; medians of five turns."""
    from warcio.archiveiterator import ArchiveIterator

    archives = sorted(CRAWL.glob("*.warc.gz"))
    if not archives:
        raise FileNotFoundError(f"{CRAWL}: no WARC files (set MATHPIPE_SHARED)")

    def ours() -> int:
        return sum(len(r.payload.body) for file in archives for r in warc.responses(file.open("rb")) if r.payload)

    def peer() -> int:
        records = (record for file in archives for record in ArchiveIterator(file.open("rb")))
        return sum(len(record.content_stream().read()) for record in records if record.rec_type == "response")

    def rate(read: Callable[[], int]) -> float:
        began = time.process_time()
        return read() / 1e6 / (time.process_time() - began)

    pairs = [(rate(ours), rate(peer)) for _ in range(5)]
    ratio = statistics.median(a / b for a, b in pairs)
    mine, theirs = (statistics.median(values) for values in zip(*pairs, strict=True))
    return row("corpus.read_mb_per_s", mine, "MB/s of CPU", "at least 1x", ratio >= 1, theirs, "warcio", ratio)


BENCHMARKS: dict[str, Benchmark] = {"corpus.read_mb_per_s": read_mb_per_s}
