"""Stage benchmarks: the published counts, every missing file named, stand-ins that call themselves so."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mathpipe.eval import benchmarks, problems, sources, standins
from mathpipe.eval.config import BENCHMARKS_VARIABLE, BenchmarksConfig
from mathpipe.eval.suites import MMLU_SUBJECTS, Suites, mmlu_category, mmlu_texts
from mathpipe.pipeline.artifact import read_columns

SHARED = Path(os.environ.get("MATHPIPE_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "benchmarks"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent (set MATHPIPE_SHARED)")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The real benchmark folder as links, so that a test can take files away."""
    copy = tmp_path / "benchmarks"
    for path in SHARED.rglob("*"):
        if path.is_file():
            link = copy / path.relative_to(SHARED)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return copy


@needs_shared
def test_real_folder_has_the_published_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BENCHMARKS_VARIABLE, str(SHARED))
    facts = benchmarks.run(BenchmarksConfig(), benchmarks.BenchmarksInputs(), tmp_path)
    assert facts["source"] == "local"
    assert facts["suites"]["mmlu"] == {
        "rows": 15858, "sha256": sources.DIGESTS["mmlu"], "subjects": 57, "stand_in": False,
        "splits": {"dev": 285, "val": 1531, "test": 14042},
    }  # fmt: skip
    assert (facts["suites"]["bbh"]["rows"], facts["suites"]["bbh"]["tasks"]) == (6511, 27)
    assert {name: suite["rows"] for name, suite in facts["suites"].items() if name not in ("mmlu", "bbh")} == {
        "gsm8k": 1319, "math": 5000, "cmath": 1098, "ocw": 272, "sat": 32, "mgsm_zh": 250, "mmlu_stem": 3018,
    }  # fmt: skip
    for name in problems.READERS:
        for row in pq.read_table(tmp_path / f"{name}.parquet").to_pylist():
            assert row["question"] and row["answer"], (name, row)
            assert len(row["choices"]) in (0, 4) and (not row["choices"] or row["answer"] in "ABCD"), (name, row)
    assert facts["texts"]["gsm8k"] == 2 * (7473 + 1319) and facts["texts"]["math"] == 12500 and facts["texts"]["cmath"] == 1098
    urls = [url for table in read_columns(tmp_path, ["url", "text"]) for url in table["url"].to_pylist()]
    assert len(urls) == len(set(urls)) == facts["num_rows"]
    assert "mmlu/abstract_algebra/test/0" in urls
    first = pq.read_table(tmp_path / "mmlu.parquet").slice(0, 1).to_pylist()[0]
    assert first == {
        "subject": "abstract_algebra", "split": "dev", "item": 0, "choices": ["0", "1", "2", "3"], "answer": 1,
        "question": "Find all c in Z_3 such that Z_3[x]/(x^2 + c) is a field.",
    }  # fmt: skip
    for row in pq.read_table(tmp_path / "bbh_prompts.parquet").to_pylist():
        assert row["prompt"].count("\n\nQ: ") == 3 and "canary" not in row["prompt"]
    assert not any("<<" in text for text in pq.read_table(tmp_path / "data" / "gsm8k.parquet")["text"].to_pylist())


@needs_shared
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("mmlu/dev/anatomy_dev.csv", "5 rows"), ("mmlu/test/virology_test.csv", "166 rows"), ("bbh/bbh/snarks.json", "178 rows"),
        ("bbh/cot-prompts/snarks.txt", ""), ("gsm8k/train.jsonl", "7473 rows"), ("math/validation.jsonl", "5000 rows"),
        ("dsm/sat/test.jsonl", "32 rows"),
    ],
)  # fmt: skip
def test_missing_file_is_named(folder: Path, name: str, wanted: str) -> None:
    (folder / name).unlink()
    told = f"missing ({wanted} expected); fetch" if wanted else "missing; fetch"
    with pytest.raises(ValueError, match=re.escape(f"{folder / name}: {told}")):
        sources.read_local(folder)


@needs_shared
@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gsm8k/test.jsonl", '{"question": "1?", "answer": "1"}\n', "1 rows, expected 1319"),
        ("gsm8k/test.jsonl", '{"question": "1?"}\n' * 1319, "KeyError: 'answer'.; 1319 rows expected"),
        ("gsm8k/train.jsonl", "[]\n" * 7473, "TypeError: .*; 7473 rows expected"),
        ("gsm8k/test.jsonl", "<html>", "JSONDecodeError: .*; 1319 rows expected"),
        ("mmlu/test/anatomy_test.csv", "question only\n", "row 1 is not question.*; 135 rows expected"),
        ("mmlu/dev/anatomy_dev.csv", None, "IsADirectoryError: .*; 5 rows expected"),
        ("mmlu/val/anatomy_val.csv", "1?,1,2,3,4,A\n", "1 rows, expected 14"),
        ("bbh/bbh/navigate.json", "{", "JSONDecodeError: .*; 250 rows expected"),
        ("bbh/bbh/navigate.json", "{}", "KeyError: 'examples'.; 250 rows expected"),
        ("bbh/bbh/navigate.json", '{"examples": []}', "0 rows, expected 250"),
        ("dsm/ocw/test.jsonl", "{}\n", "1 rows, expected 272"),
        ("dsm/ocw/test.jsonl", "{}\n" * 272, "KeyError: 'problem'.; 272 rows expected"),
        ("dsm/sat/test.jsonl", '{"question": "1?", "options": "A) 1", "Answer": "A"}\n' * 32, "not four choices.*32 rows expected"),
    ],
)  # fmt: skip
def test_changed_file_is_named(folder: Path, name: str, text: str | None, message: str) -> None:
    (folder / name).unlink()
    _ = (folder / name).mkdir() if text is None else (folder / name).write_text(text)
    with pytest.raises(ValueError, match=f"^{re.escape(str(folder / name))}: .*{message}"):
        sources.read_local(folder)


@needs_shared
@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("gsm8k/train.jsonl", "her friends in April", "her friends in March", "gsm8k texts: 17,584 rows"),
        ("dsm/ocw/test.jsonl", '"solution": "', '"solution": "So ', "ocw texts: 544 rows"),
        ("dsm/agieval/gaokao-mathcloze.jsonl", "已知", "设", "agieval-gaokao-cloze texts: 118 rows"),
        ("mmlu/dev/anatomy_dev.csv", "the", "a", "mmlu: 15,858 rows"),
    ],
)
def test_another_wording_is_not_the_published_suite(folder: Path, name: str, old: str, new: str, message: str) -> None:
    file = folder / name
    text = file.read_text()
    changed = text.replace(old, new, 1)
    assert changed != text
    file.unlink()
    file.write_text(changed)
    with pytest.raises(ValueError, match=rf"{message} as expected, but not the published ones \(sha256 "):
        sources.read_local(folder)


@needs_shared
def test_the_suites_of_deepseekmath_come_from_its_repository(folder: Path) -> None:
    suites = Suites("hub", "")
    sources.download_dsm(suites, (folder / "dsm").as_uri(), 1.0)
    assert set(suites.problems) == set(problems.READERS) - {"gsm8k", "math"}
    changed = folder / "dsm" / "sat" / "test.jsonl"
    text = changed.read_text().replace('"Answer": "A"', '"Answer": "B"', 1)
    changed.unlink()
    changed.write_text(text)
    with pytest.raises(ValueError, match=r"dsm: sat: 32 rows as expected, but not the published ones"):
        sources.download_dsm(Suites("hub", ""), (folder / "dsm").as_uri(), 1.0)
    changed.unlink()
    with pytest.raises(ValueError, match=r"sat/test.jsonl: .*set MATHPIPE_BENCHMARKS"):
        sources.download_dsm(Suites("hub", ""), (folder / "dsm").as_uri(), 1.0)


@needs_shared
def test_categories_and_subjects_of_mmlu() -> None:
    counts = Counter(mmlu_category(subject) for subject in MMLU_SUBJECTS)
    assert counts == {"STEM": 19, "humanities": 13, "social sciences": 12, "other": 13}
    rows = sources.read_local(SHARED).problems["mmlu_stem"]
    assert {row["group"] for row in rows} == {subject for subject in MMLU_SUBJECTS if mmlu_category(subject) == "STEM"} - {"anatomy"}


def test_only_a_question_that_names_its_item_counts_as_a_whole() -> None:
    rows = [
        sources.mmlu_row("anatomy", "test", 7, "Which bone?", ["the null hypothesis", "x"], 0),
        sources.mmlu_row("anatomy", "test", 8, "Which of these is true?", ["a b", "c d"], 0),
        sources.mmlu_row("virology", "test", 0, "Which of these is true?", ["e f", "g h"], 0),
    ]
    assert [(row["url"], row["item"], row["text"], row["whole"]) for row in mmlu_texts(rows)][:4] == [
        ("mmlu/anatomy/test/7", "anatomy/7", "Which bone?", True),
        ("mmlu/anatomy/test/7/A", "anatomy/7/A", "the null hypothesis", False),
        ("mmlu/anatomy/test/7/B", "anatomy/7/B", "x", False),
        ("mmlu/anatomy/test/8", "anatomy/8", "Which of these is true?", False),
    ]
    row = {"question": "Is it?", "options": ["(A) yes", "(B) no"], "problem": "Find x.", "solution": "x = 1"}
    found = sources.dsm_texts([row], "q", "question", "options") + sources.dsm_texts([row], "o", "problem", "solution")
    assert [(row["url"], row["whole"]) for row in found] == [
        ("q/test/0", True), ("q/test/0/A", False), ("q/test/0/B", False), ("o/test/0", True), ("o/test/0/solution", False),
    ]  # fmt: skip
    assert [row["whole"] for row in sources.gsm8k_texts("test", [{"question": "1?", "answer": "one\n#### 1"}])] == [True, False]


def test_stand_ins_are_right_and_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BENCHMARKS_VARIABLE, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    facts = benchmarks.run(BenchmarksConfig(), benchmarks.BenchmarksInputs(), tmp_path)
    assert facts["source"] == "stand-in" and facts["suites"]["mmlu"]["stand_in"] and facts["suites"]["bbh"]["stand_in"]
    suites = standins.make(0, 40)
    assert suites.mmlu == standins.make(0, 40).mmlu != standins.make(1, 40).mmlu
    assert set(suites.problems) == set(problems.READERS) and all(len(rows) == 40 for rows in suites.problems.values())
    for row in suites.problems["cmath"]:
        a, b = map(int, re.findall("[0-9]+", row["question"]))
        assert row["answer"] == str(a + b if "加" in row["question"] else a * b)
    for row in suites.mmlu:
        assert len(set(row["choices"])) == 4
        if row["subject"] == "addition":
            a, b = (int(word.strip("?")) for word in row["question"].split() if word.strip("?").isdigit())
            assert row["choices"][row["answer"]] == str(a + b)
    for row in suites.bbh:
        if row["task"] == "boolean_expressions":
            assert str(eval(row["input"].removesuffix(" is"))) == row["target"]
        if row["task"] == "multistep_arithmetic":
            assert str(eval(row["input"].removesuffix(" ="))) == row["target"]
    assert not set(MMLU_SUBJECTS) & {row["subject"] for row in suites.mmlu}, "a stand-in must not carry a published subject's name"


def test_an_unreachable_hub_costs_no_more_than_its_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://192.0.2.1")  # a documentation address: packets are lost
    started = time.monotonic()
    assert "192.0.2.1" in (sources.hub_problem(0.5) or "")
    assert time.monotonic() - started < 2


def test_sources_that_cannot_be_had_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(BENCHMARKS_VARIABLE, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=BENCHMARKS_VARIABLE):
        benchmarks.choose(BenchmarksConfig(source="local"))
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE"):
        benchmarks.choose(BenchmarksConfig(source="hub"))
    monkeypatch.setenv(BENCHMARKS_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        benchmarks.choose(BenchmarksConfig())
    with pytest.raises(ValueError, match="source must be"):
        BenchmarksConfig(source="hug")


def test_fingerprint_follows_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BENCHMARKS_VARIABLE, str(tmp_path))
    (tmp_path / "a.csv").write_text("1")
    before = BenchmarksConfig().fingerprint()
    assert BenchmarksConfig(source="stand-in").fingerprint() is None
    (tmp_path / "a.csv").write_text("22")
    assert BenchmarksConfig().fingerprint() != before
