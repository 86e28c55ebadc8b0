"""N-gram matches and decontamination."""

from __future__ import annotations

import json

import numpy as np
from corpus_artifacts import ARCHIVES, SHARED, needs_shared
from hypothesis import given
from hypothesis import strategies as st

from mathpipe.corpus import decontaminate
from mathpipe.corpus.extract import html_to_text
from mathpipe.corpus.ngrams import Index, Match, gram_hashes, words


def test_words_are_the_same_for_pages_and_benchmarks() -> None:
    assert words("Natalia   SOLD 1,000\nclips!") == words("natalia sold (1 000) clips")
    assert words("小明有3个苹果") == ["小", "明", "有", "3", "个", "苹", "果"]


def test_ten_gram_rule_and_short_texts() -> None:
    long = "one two three four five six seven eight nine ten eleven"
    index = Index([("gsm8k", "q1", long), ("mmlu", "q2", "Short whole text"), ("mmlu", "q3", "two words")], n=10, shortest=3)
    assert index.matches("... Two, THREE four five six seven eight nine ten eleven!") == [
        Match("gsm8k", "q1", "two three four five six seven eight nine ten eleven")
    ]
    assert index.matches("one two three four five six seven eight nine x ten eleven") == [], "nine words in a row are no match"
    assert index.matches("a short whole text here") == [Match("mmlu", "q2", "short whole text")]
    assert index.matches("a short whole") == [] and index.matches("two words") == []


@given(st.lists(st.sampled_from("abc"), max_size=40), st.lists(st.sampled_from("abc"), max_size=40))
def test_matches_are_those_of_a_naive_search(page: list[str], benchmark: list[str]) -> None:
    index = Index([("b", "0", " ".join(benchmark))], n=4, shortest=2)
    length = 4 if len(benchmark) >= 4 else len(benchmark)
    grams = {tuple(benchmark[i : i + length]) for i in range(len(benchmark) - length + 1)} if length >= 2 else set()
    expected = any(tuple(page[i : i + length]) in grams for i in range(len(page) - length + 1)) if grams else False
    assert bool(index.matches(" ".join(page))) == expected


def test_gram_hash_depends_on_order() -> None:
    a, b = (np.array(x, np.uint64) for x in ([1, 2, 3], [3, 2, 1]))
    assert gram_hashes(a, 3)[0] != gram_hashes(b, 3)[0] and len(gram_hashes(a, 4)) == 0


@needs_shared
def test_planted_gsm8k_questions_are_found() -> None:
    from fastwarc.warc import ArchiveIterator
    from resiliparse.extract.html2text import extract_plain_text

    questions = SHARED / "data" / "benchmarks" / "gsm8k" / "test.jsonl"
    texts = [("gsm8k", str(i), json.loads(line)["question"]) for i, line in enumerate(questions.read_text().splitlines())]
    index = decontaminate.Index(texts, 10, 3)
    plain = [" ".join(words(text)) for _, _, text in texts]
    lines = [line.split("\t") for line in (SHARED / "data" / "crawl" / "labels.tsv").read_text().splitlines()]
    planted = {fields[0] for fields in lines if fields[3].startswith("contains-gsm8k")}
    num_extracted = 0
    for archive in ARCHIVES:
        for record in ArchiveIterator(archive.open("rb")):
            if record.headers.get("WARC-Target-URI") not in planted:
                continue
            html = record.reader.read().decode("utf-8", "replace")
            assert index.matches(extract_plain_text(html)), "the whole page carries the question, outside its main content in some"
            main = html_to_text(html)
            carries = any(question in " ".join(words(main)) for question in plain)
            assert bool(index.matches(main)) >= carries
            num_extracted += carries
    assert len(planted) == 40 and num_extracted >= 25
