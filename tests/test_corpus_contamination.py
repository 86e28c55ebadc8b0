"""Stage contamination: which items share text with what was trained on, against sets of grams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mathpipe.corpus import contamination
from mathpipe.corpus.config import ContaminationConfig, ContaminationInputs
from mathpipe.corpus.words import words
from mathpipe.eval.suites import text_row
from mathpipe.pipeline.artifact import write_parquet

SHARED = "a train leaves the station at noon and another one follows it after two hours"
TEXTS = [
    text_row("gsm8k", "test", "0", f"{SHARED}; when do they meet?"),
    text_row("gsm8k", "test", "1", f"If {SHARED}, how far is it?"),  # another item with the same grams
    text_row("gsm8k", "test", "2", "How many apples has Ann?"),
    text_row("gsm8k", "test", "2/answer", "Ann has three apples and four more apples, which makes seven apples in all", whole=False),
    text_row("gsm8k", "test", "3", "What is the sum of the first hundred whole numbers that are not divisible by seven?"),
    text_row("gsm8k", "train", "0", "A training problem that the examples of fine-tuning may hold word for word, of course"),
    text_row("mmlu/anatomy", "test", "7", "Which bone is longest?"),
    text_row("mmlu/anatomy", "test", "7/A", "How many apples has", whole=False),
    text_row("mmlu/virology", "test", "7", "The longest text of all that asks which bone is longest? No, another question."),
]
PAGES = {
    "corpus": ["Nothing of the kind. " * 5, "apples and more apples"],
    "sources": [f"# {SHARED}\nprint(1)", "def f(): pass"],
    "examples": [
        "It says: Which bone is longest? The femur.",
        TEXTS[5]["text"],
        "Ann has THREE apples, and four more apples -- which makes seven!",
    ],
}


@pytest.fixture
def inputs(tmp_path: Path) -> ContaminationInputs:
    """Benchmarks and three artifacts with a few pages."""
    columns: dict[str, list[Any]] = {name: [row[name] for row in TEXTS] for name in TEXTS[0]}
    write_parquet(tmp_path / "benchmarks" / "data" / "all.parquet", pa.table(columns))
    for name, texts in PAGES.items():
        urls = [f"{name}/{i}" for i in range(len(texts))]
        write_parquet(tmp_path / name / "data" / "0.parquet", pa.table({"url": urls, "text": texts}))
    return ContaminationInputs(*(tmp_path / name for name in ("benchmarks", "corpus", "sources", "examples")))


def grams(text: str) -> set[tuple[str, ...]]:
    """Its runs of ten words."""
    found = words(text)
    return {tuple(found[i : i + 10]) for i in range(len(found) - 9)}


def test_items_that_share_text_are_counted(inputs: ContaminationInputs, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    facts = contamination.run(ContaminationConfig(), inputs, tmp_path / "out")
    assert facts["suites"] == {
        "gsm8k": {"items": 4, "hits": {"corpus": 0, "sources": 2, "examples": 1}},
        "mmlu": {"items": 2, "hits": {"corpus": 0, "sources": 0, "examples": 1}},
    }  # fmt: skip
    assert (facts["num_items"], facts["num_hits"]) == (6, 4)
    pages = set().union(*(grams(text) for text in PAGES["sources"]))
    assert [row["url"] for row in TEXTS if row["split"] == "test" and grams(row["text"]) & pages] == ["gsm8k/test/0", "gsm8k/test/1"]
    found = pq.read_table(tmp_path / "out" / "hits" / "examples" / "0.parquet").to_pylist()
    assert {(row["url"], row["benchmark"]) for row in found} == {("examples/0", "mmlu"), ("examples/2", "gsm8k")}
    again = contamination.run(ContaminationConfig(), inputs, tmp_path / "out")
    assert again == facts, "what was found is kept"


def test_what_counts_as_a_gram_is_checked() -> None:
    with pytest.raises(ValueError, match="min_ngram_words"):
        ContaminationConfig(ngram_words=2)
    with pytest.raises(ValueError, match="gram must be"):
        ContaminationConfig(gram="letters")
