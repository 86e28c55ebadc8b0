"""Words, n-gram matches and decontamination: the fast search against a naive one, and real pages."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_artifacts import ARCHIVES, SHARED, digests, finish, folder, needs_shared, rows
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mathpipe.corpus import decontaminate
from mathpipe.corpus.config import CleanExamplesConfig, CorpusConfig, CorpusInputs
from mathpipe.corpus.ngrams import BenchmarkText, Index, Match
from mathpipe.corpus.words import Words, words
from mathpipe.eval.sources import read_local
from mathpipe.eval.suites import bbh_texts, mmlu_texts
from mathpipe.pipeline import artifact
from mathpipe.pipeline.config import ConfigError, Runtime, build

LONG = "one two three four five six seven eight nine ten eleven"
ODD = "aZ9 .\n_'éÉe\u0301ßﬁ½²①İıſΣςK\u00a0，１明の가\u00ad\u200b𝑥𠀀😀\ud800\udc00"
PARTS = st.text(st.sampled_from(ODD), max_size=12) | st.text(max_size=8)


@pytest.mark.parametrize(("page", "benchmark"), [
    ("Natalia   SOLD 1,000\nclips!", "natalia sold (1 000) clips"), ("naïve café", "NAI\u0308VE CAFE"),
    ("ﬁve ﬂat Straße", "five flat STRASSE"), ("İstanbul ΣΟΦΟΣ", "istanbul σοφος"), ("ＧＳＭ８Ｋ", "gsm8k"),
    ("co\u00adop\u200beration", "cooperation"), ("𝑥² + ½", "x2 1 2"), ("e‘s’ “t”", "e's' \"t\""),
])  # fmt: skip
def test_words_are_the_same_for_pages_and_benchmarks(page: str, benchmark: str) -> None:
    assert words(page) == words(benchmark) != []


def test_a_chinese_character_is_a_word_and_grams_may_be_characters() -> None:
    assert words("小明有3个苹果，") == ["小", "明", "有", "3", "个", "苹", "果"]
    assert words("小明 has 10", "characters") == list("小明has10")


@settings(deadline=None)  # the table is built once
@example(["\ud800 a \udc00", "\ud800"], "words")  # halves of no pair
@given(st.lists(PARTS, max_size=6), st.sampled_from(["words", "characters"]))
def test_words_of_many_texts_at_a_time_are_those_of_each(texts: list[str], gram: str) -> None:
    found = Words(texts, gram)
    each = [words(text, gram) for text in texts]
    assert [word for number in range(len(found)) for word in found.run(number, 1)] == [word for part in each for word in part]
    assert [found.text_of(number) for number in range(len(found))] == [i for i, part in enumerate(each) for _ in part]


TEXTS = st.lists(st.sampled_from(["a", "b", "calculating", "calculation", "明", "ﬁ", "É"]), max_size=30).map(" ".join)


LENGTHS = st.sampled_from([(1, 1), (4, 2), (5, 5), (7, 3), (10, 3)])


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=4), st.lists(st.tuples(TEXTS, st.booleans()), max_size=4), LENGTHS)
def test_matches_are_those_of_a_naive_search(pages: list[str], texts: list[tuple[str, bool]], lengths: tuple[int, int]) -> None:
    n, shortest = lengths
    expected = []
    for page in map(words, pages):
        found = set()
        for number, (text, is_question) in enumerate(texts):
            benchmark = words(text)
            length = n if len(benchmark) >= n else len(benchmark)
            if length == n or is_question and length >= shortest:
                grams = {tuple(benchmark[i : i + length]) for i in range(len(benchmark) - length + 1)}
                found |= {(str(number), i, length) for i in range(len(page) - length + 1) if tuple(page[i : i + length]) in grams}
        expected.append(found)
    index = Index([BenchmarkText(str(number), "0", *text) for number, text in enumerate(texts)], n, shortest)
    assert [{(m.benchmark, m.word, m.num_words) for m in found} for found in index.matches(pages)] == expected


def test_ten_gram_rule_short_questions_and_answers() -> None:
    short = [("q2", "Short whole text", True), ("q3", "two words", True), ("q4/A", "all of the above", False)]
    index = Index([BenchmarkText("gsm8k", "q1", LONG), *(BenchmarkText("mmlu", *text) for text in short)], 10, 3)
    pages = [
        "... Two, THREE four five six seven eight nine ten eleven!", "one two three four five six seven eight nine x ten eleven",
        "a short whole text here", "a short whole", "two words", "all of the above",
        "one two three four five six", "seven eight nine ten eleven",
    ]  # fmt: skip
    gram = "two three four five six seven eight nine ten eleven"
    found = [[Match("gsm8k", "q1", gram, 0, 10)], [], [Match("mmlu", "q2", "short whole text", 1, 3)], [], [], [], [], []]
    assert index.matches(pages) == found, "nine words in a row, or ten over two pages, are no match"


def test_grams_of_bare_numbers_may_be_let_pass() -> None:
    texts = [BenchmarkText("math", "0", "What follows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10?")]
    page = ["page 1 2 3 4 5 6 7 8 9 10 next"]
    assert [match.gram for match in Index(texts, 10, 3).matches(page)[0]] == ["1 2 3 4 5 6 7 8 9 10"]
    assert Index(texts, 10, 3, min_spelled=1).matches(page) == [[]]
    assert len(Index(texts, 10, 3, min_spelled=1).matches(["it follows 1 2 3 4 5 6 7 8 9"])[0]) == 1


def test_configs_refuse_what_they_do_not_know() -> None:
    for table in ({"unit": "line"}, {"gram": "bytes"}, {"min_ngram_words": 11}, {"min_spelled_words": 11}):
        with pytest.raises(ConfigError, match=next(iter(table))):
            build(CorpusConfig, table, "[corpus]")


@pytest.fixture
def inputs(tmp_path: Path) -> CorpusInputs:
    """Six pages in two files (two carry a benchmark text, one is not selected), their selection, one benchmark."""
    texts = ["Sums.\n\nAdd one two three four five six seven eight nine ten.\n \nBye", "plain", LONG, "not selected", "数学", "also plain"]
    made = [{"id": (i // 3 << 32) + i, "url": f"u{i}", "host": "h", "text": text, "num_tokens": 9} for i, text in enumerate(texts)]
    scores = [{"id": row["id"], "score": 0.5} for row in made]
    parts = {
        "pages": {"00000": made[:3], "00001": made[3:], "00002": made[:0]},
        "selected": {"00000": scores[:3], "00001": [scores[i] for i in (4, 5)], "00002": []},
        "benchmarks": {"gsm8k": [{"benchmark": "gsm8k", "item": "7", "text": LONG, "whole": True, "split": "test"}]},
    }
    for name, files in parts.items():
        for file, found in files.items():
            table = pa.Table.from_pylist(found or (scores if name == "selected" else made))[: len(found)]
            artifact.write_parquet(folder(tmp_path, name) / "data" / f"{file}.parquet", table)
        finish(tmp_path / name, {})
    return CorpusInputs(**{name: tmp_path / name for name in parts})


def test_pages_go_whole_and_a_killed_stage_continues(inputs: CorpusInputs, tmp_path: Path) -> None:
    out, again = folder(tmp_path, "out"), folder(tmp_path, "again")
    facts = decontaminate.run(CorpusConfig(), inputs, out)
    assert [(row["url"], row["score"], row["num_tokens"]) for row in rows(out)] == [("u1", 0.5, 9), ("u4", 0.5, 9), ("u5", 0.5, 9)]
    gram = "one two three four five six seven eight nine ten"
    what: dict[str, object] = {"reason": "benchmark text", "benchmark": "gsm8k", "item": "7", "gram": gram, "segment": None}
    assert rows(out, "rejects") == [{"id": i, "url": f"u{i}", **what} for i in (0, 2)]
    assert [facts[key] for key in ("num_pages", "num_removed", "num_cut", "removed_by_benchmark")] == [3, 2, 0, {"gsm8k": 2}]
    assert facts["most_frequent_grams"] == {gram: 2} and facts["benchmark_texts"] == {"gsm8k": 1}

    calls: list[Path] = []
    decontaminate.clean_file(CorpusConfig(), inputs.pages / "data" / "00001.parquet", inputs.selected, inputs.benchmarks, again)
    (again / "data" / ".00000.parquet.tmp").write_bytes(b"half")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decontaminate, "run_jobs", partial(_in_turn, calls))
        assert decontaminate.run(CorpusConfig(runtime=Runtime(num_workers=1)), inputs, again) == facts
    assert [file.name for file in calls] == ["00000.parquet", "00002.parquet"], "the finished file is kept"
    assert digests(again, "data", "rejects") == digests(out, "data", "rejects")


def _in_turn(calls: list[Path], function, jobs, *_) -> None:  # type: ignore[no-untyped-def]
    for job in jobs:
        calls.append(job[1])
        function(*job)


def test_without_a_selection_all_pages_are_cleaned_and_training_splits_can_be_left_out(inputs: CorpusInputs, tmp_path: Path) -> None:
    """What SFT learns from may be a benchmark's training split; a test problem goes as everywhere."""
    train = {"benchmark": "math", "item": "3", "text": "not selected", "whole": True, "split": "train"}
    artifact.write_parquet(inputs.benchmarks / "data" / "math.parquet", pa.Table.from_pylist([train | {"text": "a plain one"}, train]))
    whole = CorpusInputs(inputs.pages, inputs.benchmarks)
    kept = {}
    for number, config in enumerate((CorpusConfig(min_ngram_words=2), CleanExamplesConfig(min_ngram_words=2))):
        out = folder(tmp_path, f"whole{number}")
        facts = decontaminate.run(config, whole, out)
        kept[number] = [row["url"] for row in rows(out)]
        assert facts["num_benchmark_texts"] == (3, 1)[number]
    assert kept == {0: ["u1", "u4", "u5"], 1: ["u1", "u3", "u4", "u5"]}
    assert {row["score"] for row in rows(tmp_path / "whole1")} == {None}


def test_segments_go_alone(inputs: CorpusInputs, tmp_path: Path) -> None:
    out = folder(tmp_path, "out")
    for file in artifact.parquet_files(inputs.pages):
        decontaminate.clean_file(CorpusConfig(unit="segment"), file, inputs.selected, inputs.benchmarks, out)
    facts = decontaminate.describe(CorpusConfig(unit="segment"), inputs, out)
    assert [(row["url"], row["text"], row["num_tokens"]) for row in rows(out)][:2] == [("u0", "Sums.\n\nBye", 3), ("u1", "plain", 9)]
    assert [(row["url"], row["segment"]) for row in rows(out, "rejects")] == [
        ("u0", "Add one two three four five six seven eight nine ten."), ("u2", LONG),
    ]  # fmt: skip
    assert facts["num_pages"] == 4 and facts["num_removed"] == 1 and facts["num_cut"] == 1, "a page of one paragraph goes whole"


def test_a_gram_over_two_paragraphs_takes_both() -> None:
    index = Index([BenchmarkText("gsm8k", "7", LONG)], 10, 3)
    page = "Intro\n\nOne two three\nfour five\n\n***\n\nsix seven eight nine ten\n\nsix"
    rest, gone = decontaminate.cut_segments(page, index.matches([page])[0], "words")
    assert rest == "Intro\n\nsix" and list(gone) == ["One two three\nfour five", "***", "six seven eight nine ten"]


@needs_shared
def test_planted_questions_are_found_and_every_match_is_a_true_one() -> None:
    from fastwarc.warc import ArchiveIterator
    from resiliparse.extract.html2text import extract_plain_text

    suites = read_local(SHARED / "data" / "benchmarks")
    texts = mmlu_texts(suites.mmlu) + bbh_texts(suites.bbh) + suites.texts
    text_of = {(row["benchmark"], row["item"], row["split"]): row["text"] for row in texts}
    index = Index([BenchmarkText(row["benchmark"], f"{row['split']} {row['item']}", row["text"], row["whole"]) for row in texts], 10, 3)
    labels = [line.split("\t") for line in (SHARED / "data" / "crawl" / "labels.tsv").read_text().splitlines()]
    planted = {fields[0] for fields in labels if fields[3] == "contains-gsm8k-test-question"}
    pages = {}
    for archive in ARCHIVES:
        for number, record in enumerate(ArchiveIterator(archive.open("rb"))):
            url = record.headers.get("WARC-Target-URI")
            if url in planted or url and number % 4 == 0:
                pages[url] = extract_plain_text(record.reader.read().decode("utf-8", "replace"))
    found = dict(zip(pages, index.matches(list(pages.values())), strict=True))
    assert len(planted) == 40 and all("gsm8k" in {match.benchmark for match in found[url]} for url in planted)
    assert len(set(pages) - planted) > 500
    num_checked = 0
    for url, matches in found.items():
        page = words(pages[url]) if matches else []
        for match in matches:
            split, item = match.item.split(" ", 1)
            gram = match.gram.split(" ")
            assert page[match.word : match.word + match.num_words] == gram and match.num_words in range(3, 11)
            assert f" {match.gram} " in f" {' '.join(words(text_of[match.benchmark, item, split]))} "
            num_checked += 1
    assert num_checked > 40


@needs_shared
def test_rejects_name_an_item_that_exists() -> None:
    line = json.loads((SHARED / "data" / "benchmarks" / "dsm" / "cmath" / "test.jsonl").read_text().splitlines()[3])
    index = Index([BenchmarkText("cmath", "3", line["question"])], 10, 3)
    assert {(match.benchmark, match.item) for match in index.matches([f"题目：{line['question']}答案"])[0]} == {("cmath", "3")}


def test_a_selection_of_other_pages_is_named(inputs: CorpusInputs, tmp_path: Path) -> None:
    (inputs.selected / "data" / "00001.parquet").unlink()
    with pytest.raises(artifact.ContractError, match=r"selected/data/00001\.parquet: missing; run the select step"):
        decontaminate.clean_file(CorpusConfig(), inputs.pages / "data" / "00001.parquet", inputs.selected, inputs.benchmarks, tmp_path)


def test_finished_file_has_the_schema_of_the_corpus(inputs: CorpusInputs, tmp_path: Path) -> None:
    decontaminate.clean_file(CorpusConfig(), inputs.pages / "data" / "00002.parquet", inputs.selected, inputs.benchmarks, tmp_path)
    assert pq.read_schema(tmp_path / "data" / "00002.parquet").names == ["id", "url", "host", "text", "score", "num_tokens"]
