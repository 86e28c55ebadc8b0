"""The six steps of a round, and decontamination after them, on a slice of the shared crawl."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_artifacts import finish, folder, needs_shared, rows

from mathpipe.corpus import annotate, classifier, decontaminate, domains, grow, score, selection
from mathpipe.corpus.config import CorpusConfig, CorpusInputs
from mathpipe.corpus.round_config import (
    AnnotateConfig,
    AnnotateInputs,
    ClassifierConfig,
    ClassifierInputs,
    DomainsConfig,
    DomainsInputs,
    GrowConfig,
    GrowInputs,
    ScoreConfig,
    ScoreInputs,
    SelectConfig,
    SelectInputs,
)
from mathpipe.pipeline import artifact


def run_round(base: Path, source: Path, previous: Path | None, seed_hosts: tuple[str, ...], tokens: int) -> Path:
    out = {name: folder(base, name) for name in ("train", "score", "select", "domains", "annotate", "grow")}
    config = ClassifierConfig(seed_hosts=seed_hosts, num_seeds=40, bucket=33_000, epoch=10, lr=0.5, negatives="uncollected")
    finish(out["train"], classifier.run(config, ClassifierInputs(source, previous), out["train"]))
    finish(out["score"], score.run(ScoreConfig(), ScoreInputs(source, out["train"]), out["score"]))
    finish(out["select"], selection.run(SelectConfig(top_tokens=(tokens, 2 * tokens)), SelectInputs(source, out["score"]), out["select"]))
    finish(out["domains"], domains.run(DomainsConfig(), DomainsInputs(source, out["score"], out["select"]), out["domains"]))
    inputs = AnnotateInputs(source, out["select"], out["domains"], out["score"])
    finish(out["annotate"], annotate.run(AnnotateConfig(), inputs, out["annotate"]))
    grown = GrowInputs(source, out["train"], out["select"], out["domains"], out["annotate"], previous)
    return finish(out["grow"], grow.run(GrowConfig(), grown, out["grow"]))


@needs_shared
def test_two_rounds_then_decontamination(small_pages: Path, tmp_path: Path) -> None:
    seeds = ("docs.python-sympy.example", "docs.maxima.example")
    first = run_round(tmp_path / "1", small_pages, None, seeds, 60_000)
    second = run_round(tmp_path / "2", small_pages, first, seeds, 60_000)
    figures = [artifact.read_metrics(out)[0] for out in (first, second)]
    assert [f["round"] for f in figures] == [1, 2]
    assert figures[0]["overlap"] is None and figures[0]["num_positives"] == 40
    assert figures[0]["tokens"] <= 60_000 < figures[1]["tokens"] <= 120_000
    assert figures[1]["num_positives"] == figures[0]["seeds"] > 40, "seeds grow"
    collected = [set(pq.read_table(out / "collected.parquet")["id"].to_pylist()) for out in (first, second)]
    assert figures[1]["overlap"] == len(collected[0] & collected[1]) / len(collected[1])
    label = {row["id"]: row["label"] for row in rows(small_pages, "labels")}
    num_math = sum(label.get(row) == "math" for row in collected[0])
    assert figures[0]["precision"] == num_math / len(collected[0]) > 0.6, "better than the crawl's share of math"
    scored = rows(tmp_path / "2" / "score")
    assert [row["id"] for row in scored] == [row["id"] for row in rows(small_pages)]
    assert all(0 <= row["score"] <= 1 for row in scored)

    chosen = rows(tmp_path / "2" / "select")
    text = next(row["text"] for row in rows(small_pages) if row["id"] == chosen[0]["id"])
    gram = " ".join(text.split()[5:40])
    bench = folder(tmp_path, "benchmarks")
    text = {"benchmark": ["math"], "item": ["7"], "url": ["x"], "text": [gram], "whole": [True], "split": ["test"]}
    artifact.write_parquet(bench / "data" / "b.parquet", pa.table(text))
    out = folder(tmp_path, "corpus")
    facts = decontaminate.run(CorpusConfig(), CorpusInputs(small_pages, finish(bench, {}), tmp_path / "2" / "select"), out)
    removed = rows(out, "rejects")
    assert chosen[0]["id"] in {row["id"] for row in removed} and {row["item"] for row in removed} == {"7"}
    assert facts["num_pages"] + facts["num_removed"] == len(chosen)


def test_the_policy_descends_where_a_prefix_is_mixed() -> None:
    math, code = [f"https://a.org/m/{i}.html" for i in range(10)], [f"https://a.org/c/{i}.html" for i in range(10)]
    counts = annotate.count_prefixes(math + code, math[:8])
    decisions = {d["prefix"]: d["decision"] for d in annotate.judge("a.org/", counts, AnnotateConfig(accept_frac=0.5, reject_frac=0.1))}
    assert decisions == {"a.org/": "not_math", "a.org/c/": "not_math", "a.org/m/": "math"}
    verdicts = {prefix: decision == "math" for prefix, decision in decisions.items()}
    assert grow.verdict(math[9], verdicts) and not grow.verdict(code[0], verdicts) and not grow.verdict("https://b.org/m/", verdicts)


def test_decisions_from_a_file_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    line = {"prefix": "a.org/x/", "decision": "math", "reason": "questions", "who": "ann"}
    file.write_text(json.dumps(line) + "\n" + json.dumps(line | {"prefix": "other.org/"}) + "\n")
    assert annotate.read_decisions(file, pa.array(["a.org"])) == [line]
    wrong = [line | {"decision": "maybe"}, line | {"prefix": "a.org"}, line | {"who": 7}, line | {"reason": "\ud800"}, [line], "math"]
    for value in wrong:
        file.write_text(json.dumps(line) + "\n" + json.dumps(value) + "\n")
        with pytest.raises(ValueError, match=r"d\.jsonl: line 2: (expected|a prefix ends in /)"):
            annotate.read_decisions(file, pa.array(["a.org"]))


def test_a_decision_without_a_name_gets_one(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"prefix": "a.org/", "decision": "math"}\n{"prefix": "b.org/", "decision": "math", "who": null, "reason": null}\n')
    assert [(d["who"], d["reason"]) for d in annotate.parse_decisions(file, "ann")] == [("ann", "")] * 2
    assert annotate.read_decisions(file, pa.array(["a.org"]))[0]["who"] == "d.jsonl"


@pytest.mark.parametrize(("content", "wrong"), [
    (b'{"prefix": "\xff/"}\n', "can't decode byte 0xff"),
    (b"[" * 100_000, "line 1: (nested too deep|not JSON)"), (b"{\n", "line 1: not JSON"),
    (None, "Is a directory; give a JSONL of decisions"),
])  # fmt: skip
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes | None, wrong: str) -> None:
    file = tmp_path / "d.jsonl"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=wrong) as error:
        list(annotate.parse_decisions(file, "ann"))
    assert str(error.value).startswith(f"{file}: ") and type(error.value) is ValueError


def test_fasttext_matrices_below_a_safe_size_are_refused() -> None:
    with pytest.raises(ValueError, match="raise bucket"):  # fastText leaves small matrices uninitialised
        ClassifierConfig(dim=16, bucket=1000)
    with pytest.raises(ValueError, match="makes no buckets"):
        ClassifierConfig(word_ngrams=1)
