"""Benchmarks of extraction: MB of HTML per second (CPU time, one core) and formulas kept, beside resiliparse alone and trafilatura."""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resiliparse.extract.html2text import extract_plain_text

from mathpipe.corpus import warc
from mathpipe.corpus.extract import html_to_text
from mathpipe.corpus.payload import decode
from mathpipe.pipeline.bench import Benchmark, Row, row

SHARED = Path(os.environ.get("MATHPIPE_SHARED", "../shared"))
REPEATS = 5
EVERY = 4
"""Which share of the crawl's pages is used: enough of every manual."""
SLOW_EVERY = 60
"""The same for trafilatura."""
PAGES, EXPECTED = "data/html_math/defuddle/html", "data/html_math/defuddle/expected"


def resiliparse_alone(html: str) -> str:
    """Text as resiliparse writes it, formulas not looked at, boilerplate in."""
    return extract_plain_text(html, preserve_formatting=True, main_content=False, alt_texts=False)


def trafilatura(html: str) -> str:
    """Text as trafilatura extracts it."""
    from trafilatura import extract

    return extract(html, output_format="markdown", include_formatting=True) or ""


def crawl_pages(every: int) -> list[str]:
    """HTML of every n-th response of the shared crawl.

    Raises:
        FileNotFoundError: the shared data is absent.
    """
    pages = []
    for archive in sorted((SHARED / "data" / "crawl").glob("*.warc.gz")):
        with warc.open_archive(str(archive)) as stream:
            pages += [decode(each.payload.body, each.payload.charset) for each in warc.responses(stream) if each.payload is not None]
    if not pages:
        raise FileNotFoundError(f"{SHARED / 'data' / 'crawl'}: no WARC files (set MATHPIPE_SHARED)")
    return pages[::every]


def rates(pages: list[str], extractors: list[Callable[[str], str]], repeats: int) -> list[list[float]]:
    """MB of UTF-8 per second of CPU time of each extractor, measured in turns."""
    size_mb = sum(len(page.encode("utf-8", "replace")) for page in pages) / 1e6
    found: list[list[float]] = [[] for _ in extractors]
    for _ in range(repeats):
        for extract, times in zip(extractors, found, strict=True):
            began = time.process_time()
            for page in pages:
                extract(page)
            times.append(size_mb / (time.process_time() - began))
    return found


def mb_per_s() -> list[Row]:
    """Parsing and extraction of decoded pages, gates included."""
    ours, alone = rates(crawl_pages(EVERY), [html_to_text, resiliparse_alone], REPEATS)
    slow_ours, slow = rates(crawl_pages(SLOW_EVERY), [html_to_text, trafilatura], 2)
    rate, peer = statistics.median(ours), slow[-1]
    ratio = statistics.median(a / b for a, b in zip(ours, alone, strict=True))
    return [
        row("corpus.extract_mb_per_s", rate, "MB/s", "at least 35", rate >= 35, statistics.median(alone), "resiliparse alone", ratio),
        row("corpus.extract_mb_per_s.trafilatura", slow_ours[-1], "MB/s", "at least 3x", slow_ours[-1] >= 3 * peer, peer, "trafilatura"),
    ]


def formulas_kept() -> list[Row]:
    """Share of the formulas of the 14 shared pages that stand alone in math delimiters."""
    scorer = _scorer()
    ours, alone, peer = (_share(scorer, extract) for extract in (html_to_text, resiliparse_alone, trafilatura))
    return [
        row("corpus.formulas_kept", ours, "share", "at least 0.90", ours >= 0.9, alone, "resiliparse alone"),
        row("corpus.formulas_kept.trafilatura", ours, "share", "at least 0.90", ours >= 0.9, peer, "trafilatura"),
    ]


def _scorer() -> Any:
    spec = importlib.util.spec_from_file_location("score_formulas", SHARED / "tools" / "score_formulas.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _share(scorer: Any, extract: Callable[[str], str]) -> float:
    kept = total = 0
    for page in sorted((SHARED / PAGES).glob("*.html")):
        found = scorer.spans(extract(page.read_text(encoding="utf-8")))
        for pair in scorer.EXPECTED.findall((SHARED / EXPECTED / f"{page.stem}.md").read_text(encoding="utf-8")):
            wanted = scorer.normalise(pair[0] or pair[1])
            total += 1
            if wanted in found:
                found.remove(wanted)
                kept += 1
    return kept / total


BENCHMARKS: dict[str, Benchmark] = {"corpus.extract_mb_per_s": mb_per_s, "corpus.formulas_kept": formulas_kept}
