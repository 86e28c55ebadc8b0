"""Stage contamination: how many items of each suite share text with what models were trained on.

Looked for are the grams of decontamination (decontaminate.py: runs of 10 words, whole questions of 3 to 9 words) of every test item, its
choices and solution included, in the files that training reads. An item counts as soon as one of its texts is hit; decontamination
should have left none. Training splits do not count: SFT may learn from them.

Artifact: `hits/<corpus, sources or examples>/` with url of the page, benchmark, item and gram; `suites` in the manifest.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mathpipe.corpus.config import ContaminationConfig, ContaminationInputs
from mathpipe.corpus.engine import run_jobs
from mathpipe.corpus.ngrams import BenchmarkText, Index
from mathpipe.corpus.words import words
from mathpipe.pipeline import artifact, log, stage

ITEM = re.compile(r"(.*?/(?:test|val|dev)/[0-9]+)")
"""What the texts of one item begin with in their `url`: benchmark, subject, split, number."""
SCHEMA = pa.schema([(name, pa.string()) for name in ("url", "benchmark", "item", "gram")])
BATCH_ROWS = 1000


def run(config: ContaminationConfig, inputs: ContaminationInputs, out: Path) -> dict[str, Any]:
    """Look through every file that training reads; those with results are kept. Facts: `suites`, name → items and hits by where."""
    files = [(where, file) for where, folder in inputs.trained_on().items() for file in artifact.parquet_files(folder)]
    missing = [(where, file) for where, file in files if not (out / "hits" / where / file.name).exists()]
    texts, _ = read_index(config, inputs.benchmarks)
    jobs = [(config, file, where, inputs.benchmarks, out) for where, file in missing]
    run_jobs(find_hits, jobs, config.runtime, out, "files", "looking for test items", len(files) - len(missing), use_process=False)
    items: dict[str, set[str]] = {}
    for key, text in texts:
        items.setdefault(text.benchmark, set()).add(key)
    suites: dict[str, Any] = {name: {"items": len(keys), "hits": {}} for name, keys in sorted(items.items())}
    for where in inputs.trained_on():
        grams = {gram for table in artifact.read_columns(out / "hits", ["gram"], where) for gram in table["gram"].to_pylist()}
        found = set(further(grams, texts, config))
        for name, keys in items.items():
            suites[name]["hits"][where] = len(found & keys)
        if found:
            log.logger().warning("contamination: %d items share text with %s; see %s", len(found), where, out / "hits" / where)
    return {"suites": suites, "num_items": sum(map(len, items.values())), "num_hits": sum(sum(s["hits"].values()) for s in suites.values())}


@functools.lru_cache(maxsize=1)
def read_index(config: ContaminationConfig, benchmarks: Path) -> tuple[list[tuple[str, BenchmarkText]], Index]:
    """(item, text) of every test item, and their index, made once in a process."""
    texts = list(test_texts(benchmarks))
    return texts, Index([text for _, text in texts], config.ngram_words, config.min_ngram_words, config.gram, config.min_spelled_words)


def test_texts(benchmarks: Path) -> Iterator[tuple[str, BenchmarkText]]:
    """(item, text) of every test item."""
    for table in artifact.read_columns(benchmarks, ["url", "benchmark", "item", "text", "whole", "split"]):
        for row in table.to_pylist():
            if row["split"] == "test":
                match = ITEM.match(row["url"])
                assert match, row["url"]
                yield match[1], BenchmarkText(row["benchmark"], row["item"], row["text"], row["whole"])


def find_hits(config: ContaminationConfig, file: Path, where: str, benchmarks: Path, out: Path) -> str:
    """Write every gram of a benchmark that stands in a text of one file; returns a status line."""
    _, index = read_index(config, benchmarks)
    with artifact.parquet_writer(out / "hits" / where / file.name, SCHEMA) as writer:
        for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=["url", "text"]):
            urls, texts = batch.to_pydict().values()
            rows = [
                {"url": url, "benchmark": match.benchmark, "item": match.item, "gram": match.gram}
                for url, matches in zip(urls, index.matches(texts), strict=True)
                for match in matches
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
    return f"{where}/{file.name}"


def further(grams: set[str], texts: list[tuple[str, BenchmarkText]], config: ContaminationConfig) -> Iterator[str]:
    """Every item with a text that holds one of these grams: of several with the same gram a match names one alone."""
    if not grams:
        return
    index = Index([BenchmarkText("", gram, gram) for gram in sorted(grams)], config.ngram_words, config.min_ngram_words, config.gram)
    for (item, text), matches in zip(texts, index.matches([text.text for _, text in texts]), strict=True):
        length = len(words(text.text, config.gram)) if matches else 0
        if any(match.num_words == config.ngram_words or (text.is_question and match.num_words == length) for match in matches):
            yield item


if __name__ == "__main__":
    stage.main(run)
