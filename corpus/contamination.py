"""Stage contamination: how many items of each suite share text with what models were trained on.

Looked for are the grams of decontamination (decontaminate.py: runs of 10 words, whole questions of 3 to 9 words) of every test item, its
choices and solution included, in the files that training reads. An item counts as soon as one of its texts is hit; decontamination
should have left none. Training splits do not count: SFT may learn from them.

Artifact: `hits/<what>.parquet` with url of the page, benchmark, item and gram; `suites` in the manifest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mathpipe.corpus.config import ContaminationConfig, ContaminationInputs
from mathpipe.corpus.ngrams import BenchmarkText, Index
from mathpipe.corpus.words import words
from mathpipe.pipeline import artifact, log, stage

ITEM = re.compile(r"(.*?/(?:test|val|dev)/[0-9]+)")
"""What the texts of one item begin with in their `url`: benchmark, subject, split, number."""
SCHEMA = pa.schema([(name, pa.string()) for name in ("url", "benchmark", "item", "gram")])
BATCH_ROWS = 1000


def run(config: ContaminationConfig, inputs: ContaminationInputs, out: Path) -> dict[str, Any]:
    """Count the items; facts: `suites`, name → items and hits by where."""
    texts = list(test_texts(inputs.benchmarks))
    index = Index([text for _, text in texts], config.ngram_words, config.min_ngram_words, config.gram, config.min_spelled_words)
    item_of = {(text.benchmark, text.item): key for key, text in texts}
    items: dict[str, set[str]] = {}
    for key, text in texts:
        items.setdefault(text.benchmark, set()).add(key)
    suites: dict[str, Any] = {name: {"items": len(keys), "hits": {}} for name, keys in sorted(items.items())}
    trained_on = inputs.trained_on()
    with log.Progress(out, total=len(trained_on), unit="folders") as progress:
        for where, folder in trained_on.items():
            file = out / "hits" / f"{where}.parquet"
            if not file.exists():
                artifact.write_parquet(file, pa.Table.from_pylist(list(hits(index, folder)), schema=SCHEMA))
            grams = set(pq.read_table(file)["gram"].to_pylist())
            found = {item_of[key] for key in further(grams, [text for _, text in texts], config)}
            for name, keys in items.items():
                suites[name]["hits"][where] = len(found & keys)
            progress.advance(1, f"{where}: {len(found)} items")
            if found:
                log.logger().warning("contamination: %d items share text with %s; see %s", len(found), where, file)
    return {"suites": suites, "num_items": sum(map(len, items.values())), "num_hits": sum(sum(s["hits"].values()) for s in suites.values())}


def test_texts(benchmarks: Path) -> Iterator[tuple[str, BenchmarkText]]:
    """(item, text) of every test item."""
    for table in artifact.read_columns(benchmarks, ["url", "benchmark", "item", "text", "whole", "split"]):
        for row in table.to_pylist():
            if row["split"] == "test":
                match = ITEM.match(row["url"])
                assert match, row["url"]
                yield match[1], BenchmarkText(row["benchmark"], row["item"], row["text"], row["whole"])


def hits(index: Index, folder: Path) -> Iterator[dict[str, str]]:
    """Every gram of a benchmark that stands in a text of an artifact's `data/`, once for each page and benchmark."""
    for file in artifact.parquet_files(folder):
        for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=["url", "text"]):
            urls, texts = batch.to_pydict().values()
            for url, matches in zip(urls, index.matches(texts), strict=True):
                for match in matches:
                    yield {"url": url, "benchmark": match.benchmark, "item": match.item, "gram": match.gram}


def further(grams: set[str], texts: Iterable[BenchmarkText], config: ContaminationConfig) -> Iterator[tuple[str, str]]:
    """(benchmark, item) of every text that holds one of these grams: of several with the same gram a match names one alone."""
    if not grams:
        return
    texts = list(texts)
    index = Index([BenchmarkText("", gram, gram) for gram in sorted(grams)], config.ngram_words, config.min_ngram_words, config.gram)
    for text, matches in zip(texts, index.matches([text.text for text in texts]), strict=True):
        length = len(words(text.text, config.gram)) if matches else 0
        if any(match.num_words == config.ngram_words or (text.is_question and match.num_words == length) for match in matches):
            yield text.benchmark, text.item


if __name__ == "__main__":
    stage.main(run)
