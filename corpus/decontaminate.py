"""corpus: the last round's pages without those that share text with a benchmark (section 2.1).

A run of 10 words that stands in a benchmark text, or the whole of a benchmark question of 3 to 9 words, removes the page or,
with `unit = "segment"`, the paragraphs that hold it. Words are described in `words.py`. Notes:

1. Section 2.1 removes "segments" without saying what they are; the default here is the page. A paragraph is what stands
   between blank lines; a page without a word left goes.
2. Short answers and choices are no texts to look for: "all of the above" names no item.

Artifact: `data/` with id, url, host, text, score, num_tokens; `rejects/` with id, url, reason, benchmark, item, gram, segment: one
row for each benchmark that a page (or a paragraph, then in `segment`) shares a gram with, and the first such gram.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mathpipe.corpus.config import CorpusConfig, CorpusInputs
from mathpipe.corpus.engine import run_jobs
from mathpipe.corpus.ngrams import BenchmarkText, Index, Match
from mathpipe.corpus.pages import BYTES_PER_TOKEN
from mathpipe.corpus.words import words
from mathpipe.pipeline import artifact, stage

REASON = "benchmark text"
PAGE_SCHEMA = pa.schema(
    {"id": pa.int64(), "url": pa.string(), "host": pa.string(), "text": pa.string(), "score": pa.float64(), "num_tokens": pa.int64()}
)
REJECT_COLUMNS = ("url", "reason", "benchmark", "item", "gram", "segment")
REJECT_SCHEMA = pa.schema([("id", pa.int64()), *((name, pa.string()) for name in REJECT_COLUMNS)])
BLANK_LINES = re.compile(r"(\n[^\S\n]*\n\s*)")
BATCH_ROWS = 1000
NUM_TOP_GRAMS = 10


def run(config: CorpusConfig, inputs: CorpusInputs, out: Path) -> dict[str, Any]:
    """Clean the files of pages, each by itself; files that exist are kept. Returns counts, by benchmark for what was removed."""
    files = artifact.parquet_files(inputs.pages)
    missing = [file for file in files if not (out / "data" / file.name).exists()]
    jobs = [(config, file, inputs.selected, inputs.benchmarks, out) for file in missing]
    run_jobs(clean_file, jobs, config.runtime, out, "files", "decontaminating", len(files) - len(missing))
    return describe(config, inputs, out)


@functools.lru_cache(maxsize=1)
def read_index(config: CorpusConfig, benchmarks: Path) -> Index:
    """The index of all benchmark texts, made once in a process."""
    texts = read_benchmarks(benchmarks, config.train_splits)
    return Index(texts, config.ngram_words, config.min_ngram_words, config.gram, config.min_spelled_words)


def read_benchmarks(benchmarks: Path, train_splits: bool = True) -> list[BenchmarkText]:
    """The texts of a benchmarks artifact, with or without those of training splits."""
    tables = artifact.read_columns(benchmarks, ["benchmark", "item", "text", "whole", "split"])
    wanted = [table if train_splits else table.filter(pc.not_equal(table["split"], "train")) for table in tables]
    return [BenchmarkText(*row) for table in wanted for row in zip(*table.drop_columns("split").to_pydict().values(), strict=True)]


def clean_file(config: CorpusConfig, file: Path, selected: Path | None, benchmarks: Path, out: Path) -> str:
    """Selected pages of one file of pages, divided into `rejects/` (complete first) and `data/`; returns a status line."""
    index = read_index(config, benchmarks)
    with (
        artifact.parquet_writer(out / "data" / file.name, PAGE_SCHEMA) as data,
        artifact.parquet_writer(out / "rejects" / file.name, REJECT_SCHEMA) as dropped,
    ):
        for pages in selected_pages(file, selected):
            kept, rejects = clean(config, pages, index.matches(pages["text"].to_pylist()))
            data.write_table(kept)
            dropped.write_table(rejects)
    return file.name


def selected_pages(file: Path, selected: Path | None) -> Iterator[pa.Table]:
    """Rows of PAGE_SCHEMA of the selected pages of one file (None: of all, without a score), a batch at a time.

    Raises:
        ContractError: the selection has no file of that name.
    """
    chosen = None
    if selected:
        sidecar = selected / "data" / file.name
        if not sidecar.exists():
            raise artifact.ContractError(f"{sidecar}: missing; run the select step on {file.parents[1]} again")
        chosen = pq.read_table(sidecar, columns=["id", "score"])
    columns = [name for name in PAGE_SCHEMA.names if name != "score"]
    for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=columns):
        table = pa.Table.from_batches([batch])
        if chosen is None:
            table = table.append_column("score", pa.nulls(len(table), pa.float64()))
        else:
            place = pc.index_in(table["id"], chosen["id"])
            table = table.append_column("score", chosen["score"].take(place)).filter(place.is_valid())
        yield table.select(PAGE_SCHEMA.names).cast(PAGE_SCHEMA)


def clean(config: CorpusConfig, pages: pa.Table, matches: Sequence[list[Match]]) -> tuple[pa.Table, pa.Table]:
    """(pages without their matches, rejects)."""
    has_match = pa.array([bool(found) for found in matches], pa.bool_())
    left, rejects = [], []
    for row, found in zip(pages.filter(has_match).to_pylist(), filter(None, matches), strict=True):
        rest, gone = cut_segments(row["text"], found, config.gram) if config.unit == "segment" else ("", {None: found})
        if words(rest):
            left.append(row | {"text": rest, "num_tokens": -(-len(rest.encode()) // BYTES_PER_TOKEN)})
        rejects += [{"id": row["id"], "url": row["url"], **reject} for reject in describe_gone(gone)]
    kept = pa.concat_tables([pages.filter(pc.invert(has_match)), pa.Table.from_pylist(left, schema=PAGE_SCHEMA)]).sort_by("id")
    return kept, pa.Table.from_pylist(rejects, schema=REJECT_SCHEMA)


def cut_segments(text: str, matches: Sequence[Match], gram: str) -> tuple[str, dict[str, list[Match]]]:
    """The text without the paragraphs that hold words of a match, and these with what they hold.

    >>> match = Match("math", "7", "find x", 1, 2)
    >>> cut_segments("Good. \\n\\nFind x!\\n\\nBye", [match], "words")[0]
    'Good. \\n\\nBye'
    """
    pieces = [*BLANK_LINES.split(text), ""]  # paragraph, blank lines, paragraph, …
    ends = list(itertools.accumulate(len(words(paragraph, gram)) for paragraph in pieces[::2]))
    gone: dict[int, list[Match]] = {}
    for match in matches:
        first, last = (bisect.bisect_right(ends, word) for word in (match.word, match.word + match.num_words - 1))
        for number in range(first, last + 1):
            gone.setdefault(number, []).append(match)
    rest = "".join(pieces[2 * number] + pieces[2 * number + 1] for number in range(len(ends)) if number not in gone)
    return rest.rstrip(), {pieces[2 * number]: found for number, found in sorted(gone.items())}


def describe_gone(gone: Mapping[Any, Sequence[Match]]) -> list[dict[str, Any]]:
    """Rejects for what is removed (segment → matches): the first match of each segment with each benchmark."""
    first: dict[tuple[Any, str], Match] = {}
    for segment, matches in gone.items():
        for match in matches:
            first.setdefault((segment, match.benchmark), match)
    return [
        {"reason": REASON, "benchmark": benchmark, "item": match.item, "gram": match.gram, "segment": segment}
        for (segment, benchmark), match in first.items()
    ]


def describe(config: CorpusConfig, inputs: CorpusInputs, out: Path) -> dict[str, Any]:
    """Counts for the manifest."""
    kept = pa.concat_tables(artifact.read_columns(out, ["id", "num_tokens"]))
    if not len(kept):
        raise ValueError(f"{out}: decontamination left no page; look at the grams in {out / 'rejects'}")
    rejects = pa.concat_tables(artifact.read_columns(out, ["id", "benchmark", "gram"], "rejects"))
    touched = pc.unique(rejects["id"])
    num_cut = pc.sum(pc.is_in(touched, kept["id"])).as_py() or 0
    texts = [text.benchmark for text in read_benchmarks(inputs.benchmarks, config.train_splits)]
    return {
        "num_pages": len(kept), "num_tokens": pc.sum(kept["num_tokens"]).as_py(), "num_removed": len(touched) - num_cut, "num_cut": num_cut,
        "removed_by_benchmark": dict(sorted(Counter(rejects["benchmark"].to_pylist()).items())),
        "most_frequent_grams": dict(Counter(rejects["gram"].to_pylist()).most_common(NUM_TOP_GRAMS)),
        "num_benchmark_texts": len(texts), "benchmark_texts": dict(sorted(Counter(texts).items())),
    }  # fmt: skip


if __name__ == "__main__":
    stage.main(run)
