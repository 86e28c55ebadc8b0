"""Benchmark of decontamination beside plain Python sets: the same rule, the same real pages, all benchmarks loaded."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from mathpipe.corpus.config import CorpusConfig
from mathpipe.corpus.decontaminate import read_benchmarks, read_index
from mathpipe.corpus.ngrams import BenchmarkText
from mathpipe.pipeline.bench import Benchmark, Row, row

DATA = Path(os.environ.get("MATHPIPE_SHARED", "../shared")) / "data"
WORD = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")
TURNS = 5


def whole_pages() -> list[str]:
    """All text of the shared crawl's pages."""
    from fastwarc.warc import ArchiveIterator
    from resiliparse.extract.html2text import extract_plain_text

    archives = sorted((DATA / "crawl").glob("*.warc.gz"))
    if not archives:
        raise FileNotFoundError(f"{DATA / 'crawl'}: no WARC files (set MATHPIPE_SHARED)")
    return [extract_plain_text(r.reader.read().decode("utf-8", "replace")) for file in archives for r in ArchiveIterator(file.open("rb"))]


class Sets:
    """Grams as tuples in sets, one for each length."""

    def __init__(self, texts: Sequence[BenchmarkText], n: int, shortest: int) -> None:
        self.grams: dict[int, set[tuple[str, ...]]] = {length: set() for length in range(shortest, n + 1)}
        for text in texts:
            found = self.words(text.text)
            if len(found) >= n:
                self.grams[n].update(self.runs(found, n))
            elif text.is_question and len(found) >= shortest:
                self.grams[len(found)].add(tuple(found))

    @staticmethod
    def words(text: str) -> list[str]:
        return WORD.findall(unicodedata.normalize("NFKC", text).lower())

    @staticmethod
    def runs(found: Sequence[str], length: int) -> zip[tuple[str, ...]]:
        return zip(*(found[start:] for start in range(length)), strict=False)

    def carry(self, texts: Sequence[str]) -> list[bool]:
        """Whether each page carries a gram."""
        pages = map(self.words, texts)
        return [any(not grams.isdisjoint(self.runs(page, length)) for length, grams in self.grams.items()) for page in pages]


def mb_per_s() -> Row:
    """MB of text per CPU second in one thread, from Python strings to decisions; medians of turns after one to warm up."""
    config = CorpusConfig()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.toml").touch()
        command = [sys.executable, "-m", "mathpipe.eval.benchmarks", "--config", f"{folder}/config.toml", "--out", folder]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"MATHPIPE_BENCHMARKS": str(DATA / "benchmarks")})
        began = time.process_time()
        index = read_index(config, Path(folder))
        loaded_s = time.process_time() - began
        sets = Sets(read_benchmarks(Path(folder)), config.ngram_words, config.min_ngram_words)
    texts = whole_pages()
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(index.sources):,} benchmark texts indexed in {loaded_s:.1f} s of CPU; {len(texts):,} pages, {size:.1f} MB")

    def rate(decide: Callable[[Sequence[str]], Sequence[object]]) -> float:
        began = time.process_time()
        decisions = decide(texts)
        seconds = time.process_time() - began
        print(f"{sum(map(bool, decisions))} pages carry a benchmark text: {size / seconds:.1f} MB/s")
        return size / seconds

    pairs = [(rate(index.matches), rate(sets.carry)) for _ in range(TURNS + 1)][1:]
    ours, peer, ratio = (statistics.median(values) for values in zip(*((a, b, a / b) for a, b in pairs), strict=True))
    return row("corpus.decontaminate_mb_per_s", ours, "MB/s of CPU", "at least 50", ours >= 50, peer, "Python sets", ratio)


BENCHMARKS: dict[str, Benchmark] = {"corpus.decontaminate_mb_per_s": mb_per_s}
