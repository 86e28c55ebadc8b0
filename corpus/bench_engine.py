"""Benchmarks of the corpus engine on the shared crawl: a bare process pool, datatrove, datasketch, memory by size of the input.

Every stage is a process of its own (`python -m mathpipe.corpus.bench_engine WHICH STEP CRAWL OUT`), timed from start to end,
with two workers. `ours` and `pool` turn WARC files into deduplicated pages with scores by the same code; `pool` calls the jobs in a
forked ProcessPoolExecutor. `datatrove` runs the head of its Common Crawl example, WarcReader, Trafilatura and a writer, so less:
no filters, no deduplication, no scores; its libmagic is answered "text/html".

A larger crawl is made of copies of the shared one: other hosts, and the letters of the texts rotated, so that no copy repeats
another and each is deduplicated like the first.
"""

from __future__ import annotations

import importlib.machinery
import io
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import Any

import psutil
import pyarrow.parquet as pq

from mathpipe.corpus import engine, neardup, pages, score
from mathpipe.corpus.config import PagesConfig, PagesInputs
from mathpipe.corpus.round_config import ScoreConfig, ScoreInputs
from mathpipe.corpus.warc import addresses
from mathpipe.pipeline import artifact
from mathpipe.pipeline.bench import Benchmark, Row, row
from mathpipe.pipeline.config import Runtime

CRAWL = Path(os.environ.get("MATHPIPE_SHARED", "../shared")) / "data" / "crawl"
TEXT = re.compile(rb">[^<&]+")
RUNTIME = Runtime(num_workers=2)


@contextmanager
def crawl_of(copies: int) -> Iterator[Path]:
    """A crawl artifact of `copies` × the shared crawl (0: the shared files as they are) with a small classifier."""
    archives = sorted(CRAWL.resolve().glob("*.warc.gz"))
    if not archives:
        raise FileNotFoundError(f"{CRAWL}: no WARC files (set MATHPIPE_SHARED)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = [copied(archive, folder / f"{copy:02d}-{archive.name}", copy) for copy in range(copies) for archive in archives]
        artifact.write_json(folder / "archives.json", [str(file) for file in made or archives])
        write_classifier(folder / "classifier")
        yield folder


def copied(archive: Path, target: Path, copy: int) -> Path:
    """Copy number `copy` of an archive."""
    from warcio.archiveiterator import ArchiveIterator
    from warcio.warcwriter import WARCWriter

    rotated = "".join(letters[copy:] + letters[:copy] for letters in (ascii_lowercase, ascii_uppercase))
    table = bytes.maketrans((ascii_lowercase + ascii_uppercase).encode(), rotated.encode())
    with archive.open("rb") as source, target.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for record in ArchiveIterator(source):
            if record.rec_type == "response":
                url = record.rec_headers.get_header("WARC-Target-URI").replace(".example", f".copy{copy}")
                html = TEXT.sub(lambda text: text.group().translate(table), record.content_stream().read())
                record.http_headers.replace_header("Content-Length", str(len(html)))
                writer.write_record(writer.create_warc_record(url, "response", io.BytesIO(html), http_headers=record.http_headers))
    return target


def write_classifier(out: Path) -> None:
    """A small fastText model; what it learns does not matter, what it costs does."""
    import fasttext

    out.mkdir()
    lines = [f"__label__{'math' if i % 2 else 'other'} {' '.join(f'w{(i * j) % 997}' for j in range(200))}\n" for i in range(1000)]
    (out / "train.txt").write_text("".join(lines), encoding="utf-8")
    model = fasttext.train_supervised(str(out / "train.txt"), dim=64, wordNgrams=3, bucket=200_000, epoch=1, thread=1, verbose=0)
    model.save_model(str(out / "model.bin"))
    artifact.write_json(out / "manifest.json", {"stage": "round1.train", "hash": "0", "round": 1, "max_words": 1000, "text": "punctuation"})


def run_ours(step: str, crawl: Path, out: Path) -> None:
    """One of the two stages."""
    (out / step).mkdir(parents=True)
    if step == "pages":
        facts = pages.run(PagesConfig(runtime=RUNTIME), PagesInputs(crawl), out / step)
        artifact.write_json(out / step / "manifest.json", {"stage": step, "hash": "0", **facts})
    else:
        score.run(ScoreConfig(runtime=RUNTIME), ScoreInputs(out / "pages", crawl / "classifier"), out / step)


def run_pool(step: str, crawl: Path, out: Path) -> None:
    """The same with the bare pool instead of daft's workers."""
    with ProcessPoolExecutor(RUNTIME.num_workers) as pool:
        list(pool.map(abs, range(8)))  # its processes start before daft's threads

        def run_jobs(function: Any, jobs: Any, *_: Any, **__: Any) -> None:
            for job in [pool.submit(function, *job) for job in jobs]:
                job.result()

        engine.run_jobs = run_jobs
        run_ours(step, crawl, out)


def run_datatrove(_: str, crawl: Path, out: Path) -> None:
    """Read, extract, write."""
    magic: Any = types.ModuleType("magic")
    magic.__spec__ = importlib.machinery.ModuleSpec("magic", None)
    magic.from_buffer = lambda content, mime: "text/html"
    sys.modules["magic"] = magic
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.readers import WarcReader
    from datatrove.pipeline.writers import ParquetWriter

    files = addresses(crawl)
    steps = [WarcReader(str(Path(files[0]).parent), glob_pattern="*.warc.gz"), Trafilatura(favour_precision=True), ParquetWriter(str(out))]
    LocalPipelineExecutor(
        steps, tasks=len(files), workers=RUNTIME.num_workers, logging_dir=str(out / "logs"), start_method="fork"
    ).run()  # fmt: skip


RUNS = {"ours": run_ours, "pool": run_pool, "datatrove": run_datatrove}


def measure(which: str, crawl: Path) -> dict[str, float]:
    """Wall seconds, CPU seconds and peak memory (bytes, proportional set size of all its processes) of one run."""
    out = crawl / "out"
    shutil.rmtree(out, ignore_errors=True)
    began, cpu, peak = time.perf_counter(), psutil.Process().cpu_times(), 0
    for step in ("pages", "scores")[: 1 if which == "datatrove" else 2]:
        command = [sys.executable, "-m", "mathpipe.corpus.bench_engine", which, step, str(crawl), str(out)]
        with (crawl / "log.txt").open("wb") as log:
            process = psutil.Popen(command, stdout=log, stderr=log)
            while process.poll() is None:
                peak = max(peak, sum(map(_memory, [process, *_children(process)])))
                time.sleep(0.2)
        if process.returncode:
            raise RuntimeError(f"{which}: {(crawl / 'log.txt').read_text(encoding='utf-8', errors='replace')[-2000:]}")
    spent = psutil.Process().cpu_times()
    cpu_s = spent.children_user + spent.children_system - cpu.children_user - cpu.children_system
    return {"wall_s": time.perf_counter() - began, "cpu_s": cpu_s, "peak": peak}


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _memory(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return 0


def pool_ratio() -> list[Row]:
    """Seconds from WARC to pages with scores beside the pool, 16 archives; medians of three turns."""
    with crawl_of(4) as crawl:
        turns = [(measure("ours", crawl), measure("pool", crawl)) for _ in range(3)]
    rows = []
    for key, name in (("wall_s", "corpus.engine_s"), ("cpu_s", "corpus.engine_cpu_s")):
        ours, pool = (statistics.median(values) for values in zip(*((a[key], b[key]) for a, b in turns), strict=True))
        times = statistics.median(b[key] / a[key] for a, b in turns)
        rows.append(row(name, ours, "s", "at most 1.15x the time", times >= 1 / 1.15, pool, "bare process pool", times))
    return rows


def datatrove_ratio() -> Row:
    """Seconds from WARC to pages with scores on the four shared archives beside datatrove's reading and extraction alone."""
    with crawl_of(0) as crawl:
        ours, peer = statistics.median(measure("ours", crawl)["wall_s"] for _ in range(3)), measure("datatrove", crawl)["wall_s"]
    return row("corpus.engine_datatrove_s", ours, "s", "at least 3x", peer / ours >= 3, peer, "datatrove", peer / ours)


def memory() -> Row:
    """Peak memory at 64 archives beside that at 4 (and at 16, in between)."""
    peaks = []
    for copies in (1, 4, 16):
        with crawl_of(copies) as crawl:
            peaks.append(measure("ours", crawl)["peak"] / 2**20)
    growth = peaks[2] / peaks[0]
    name = f"itself at 4 archives (16: {peaks[1]:.0f})"
    return row("corpus.engine_memory_mb", peaks[2], "MiB at 64 archives", "at most 1.1x", growth <= 1.1, peaks[0], name, 1 / growth)


def neardup_rate() -> Row:
    """Pages per CPU second, MinHash and banded join, beside datasketch's MinHash and MinHashLSH with as many hashes."""
    from datasketch import MinHash, MinHashLSH

    config = PagesConfig(runtime=RUNTIME)
    rows_per_band = config.num_hashes // config.num_bands
    with crawl_of(0) as crawl:
        out, files = crawl / "neardup", [crawl / f"{number}.parquet" for number in range(4)]
        for number, (address, file) in enumerate(zip(addresses(crawl), files, strict=True)):
            pages.extract_archive(config, number, address, file)
        tables = [pq.read_table(file) for file in files]
        out.mkdir()
        began = time.process_time()
        for table, file in zip(tables, files, strict=True):
            keys = neardup.page_keys(config, *(table[name].to_pylist() for name in ("id", "url", "text")))
            artifact.write_parquet(file.with_suffix(".keys"), keys)
        neardup.find(config, [file.with_suffix(".keys") for file in files], files, out / "work", out)
        ours = sum(map(len, tables)) / (time.process_time() - began)
    texts = [text for table in tables for text in table["text"].to_pylist()]
    began = time.process_time()
    index = MinHashLSH(num_perm=config.num_hashes, params=(config.num_bands, rows_per_band))
    for number, text in enumerate(texts):
        minhash = MinHash(config.num_hashes)
        minhash.update_batch([" ".join(gram).encode() for gram in shingles(text, config.ngram_words)])
        index.query(minhash)
        index.insert(number, minhash)
    peer = len(texts) / (time.process_time() - began)
    return row("corpus.neardup_pages_per_s", ours, "pages/s of CPU", "at least 1x", ours >= peer, peer, "datasketch")


def planted() -> list[Row]:
    """Planted duplicates found, and the share of near-duplicates that are similar by exact Jaccard."""
    config = PagesConfig(runtime=RUNTIME)
    labels = [line.split("\t") for line in (CRAWL / "labels.tsv").read_text(encoding="utf-8").splitlines()]
    with crawl_of(0) as crawl:
        out = crawl / "pages"
        out.mkdir()
        pages.run(config, PagesInputs(crawl), out)
        left = {url for table in artifact.read_columns(out, ["url"]) for url in table["url"].to_pylist()}
        rejects = [reject for table in artifact.read_columns(out, ["url", "reason", "detail"], "rejects") for reject in table.to_pylist()]
        texts = {page.url: page.text for address in addresses(crawl) for page in pages.read_archive(address, config.min_chars)}
    rows = []
    for kind, goal in (("duplicate-of", 1.0), ("near-duplicate-of", 0.95)):
        pairs = [(line[0], line[3].split()[1]) for line in labels if line[3].startswith(kind)]
        found = sum(not set(pair) <= left for pair in pairs) / len(pairs)
        rows.append(row(f"corpus.duplicates.{kind}", found, f"of {len(pairs)} planted", f"at least {goal}", found >= goal))
    similarity = []
    for reject in rejects:
        if reject["reason"] == "near duplicate":
            one, other = (shingles(texts[url], config.ngram_words) for url in (reject["url"], reject["detail"].rpartition(" ")[0]))
            similarity.append(len(one & other) / len(one | other))
    for least in (config.min_similarity, config.min_similarity - 0.1):
        share = sum(value >= least for value in similarity) / len(similarity)
        unit = f"of {len(similarity)} found have exact Jaccard >= {least:.2f}"
        rows.append(row(f"corpus.duplicates.precision_{least:.2f}", share, unit, "at least 0.9", share >= 0.9))
    return [{**found, "command": "make bench ONLY=corpus.duplicates"} for found in rows]


def shingles(text: str, n: int) -> set[tuple[str, ...]]:
    """Runs of `n` words."""
    words = re.sub(r"[^\w\s]", "", text.lower()).split()
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


BENCHMARKS: dict[str, Benchmark] = {
    "corpus.engine_s": pool_ratio, "corpus.engine_datatrove_s": datatrove_ratio, "corpus.engine_memory_mb": memory,
    "corpus.neardup_pages_per_s": neardup_rate, "corpus.duplicates": planted,
}  # fmt: skip

if __name__ == "__main__":
    RUNS[sys.argv[1]](sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    os._exit(0)
