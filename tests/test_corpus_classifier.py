"""The classifier's examples, figures and model."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fasttext
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_artifacts import finish, folder
from hypothesis import given, settings
from hypothesis import strategies as st
from round_artifacts import make_pages

from mathpipe.corpus import classifier, examples, measures, seeds
from mathpipe.corpus.round_config import ClassifierConfig, ClassifierInputs

SMALL: dict[str, Any] = {"bucket": 33_000, "epoch": 10, "lr": 0.5, "min_count": 1}


def read(**values: Any) -> list[tuple[str, str]]:
    return list(seeds.read(ClassifierConfig(**values)))


def write_seeds(base: Path) -> None:
    """Twelve rows in four files, one of each kind."""
    rows = [{"url": f"https://www.h{i}.org/p", "body": f"text {i}"} for i in range(12)]
    lines = ["".join(json.dumps(row) + "\n" for row in rows[start : start + 3]).encode() for start in (0, 3, 6)]
    (base / "a.jsonl").write_bytes(lines[0])
    (base / "b.jsonl.gz").write_bytes(gzip.compress(lines[1]))
    (base / "c.jsonl.zst").write_bytes(pa.Codec("zstd").compress(lines[2], asbytes=True))
    pq.write_table(pa.Table.from_pylist(rows[9:]), base / "d.parquet")


def test_seeds_come_from_every_kind_of_file_with_their_hosts(tmp_path: Path) -> None:
    write_seeds(tmp_path)
    found = read(seed_path=f"{tmp_path}/*", seed_column="body")
    assert found == [(f"h{i}.org", f"text {i}") for i in range(12)]
    drawn = read(seed_path=f"{tmp_path}/*", seed_column="body", num_seeds=5)
    assert len(set(drawn)) == 5 and set(drawn) < set(found) and drawn != found[:5], "a random draw, not the first"
    assert drawn == read(seed_path=f"{tmp_path}/*", seed_column="body", num_seeds=5)
    assert drawn != read(seed_path=f"{tmp_path}/*", seed_column="body", num_seeds=5, seed=1)
    assert len(read(seed_path=f"{tmp_path}/b.*", seed_column="body")) == 3


def test_a_data_set_is_streamed_from_a_folder_as_from_the_hub(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(9)]}), tmp_path / "train-0.parquet")
    found = read(seed_dataset=str(tmp_path), num_seeds=4)
    assert len(set(found)) == 4 and {host for host, _ in found} == {""}
    assert {text for _, text in found} < {f"text {i}" for i in range(9)}


@pytest.mark.parametrize(("name", "content", "words"), [
    ("x.jsonl", b'{"text": "a"}\n{"body": "b"}\n', "no text in column 'text' .* columns: body"),
    ("x.jsonl", b'{"text": "a"}\n{"text": \n', r"x\.jsonl:2: not JSON"),
    ("x.jsonl", b'{"text": "\xff"}\n', "cannot be read as JSONL"),
    ("x.jsonl.gz", b"no gzip", "cannot be read as JSONL"),
    ("x.parquet", b"no parquet", "not a parquet file"),
])  # fmt: skip
def test_bad_seed_files_are_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read(seed_path=str(tmp_path / name))


def test_missing_seeds_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read(seed_path=str(tmp_path / "*.parquet"))
    with pytest.raises(ValueError, match=r"cannot be read \(classifier.seed_dataset\)"):
        read(seed_dataset=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="not both"):
        ClassifierConfig(seed_path="a", seed_dataset="b")


def table(ids: list[int], hosts: list[str]) -> pa.Table:
    return pa.table({"id": pa.array(ids, pa.int64()), "host": pa.array(hosts, pa.string())})


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=40), st.integers(0, 20), st.integers(0, 6), st.integers(1, 7))
def test_a_draw_is_the_same_however_the_pages_are_divided(hosts: list[str], num: int, cap: int, size: int) -> None:
    whole = table(list(range(len(hosts))), hosts)
    examples.MIN_PENDING, before = 3, examples.MIN_PENDING
    try:
        drawn = examples.draw([whole.slice(i, size) for i in range(0, len(hosts), size)], num, cap, 7)
    finally:
        examples.MIN_PENDING = before
    left, wanted = {host: cap or 99 for host in "abc"}, []
    for row in np.argsort(examples.random_keys(np.arange(len(hosts)), 7)).tolist():  # one after the other, in the order of the keys
        if left[hosts[row]] and len(wanted) < num:
            left[hosts[row]] -= 1
            wanted.append(row)
    assert drawn["id"].to_pylist() == sorted(wanted)


def test_random_keys_are_uniform_and_differ_by_salt() -> None:
    ids = np.arange(5 * 2**32, 5 * 2**32 + 100_000)
    keys = examples.random_keys(ids, 1, 2)
    assert len(np.unique(keys)) == len(ids)
    shares = np.bincount((keys >> np.uint64(60)).astype(int), minlength=16) / len(ids)
    assert abs(shares - 1 / 16).max() < 0.005
    assert abs(np.corrcoef(keys.astype(float), examples.random_keys(ids, 1, 3).astype(float))[0, 1]) < 0.01


def test_text_has_no_line_break_and_no_label() -> None:
    text = "A__label__math\u2028B\x85 __LABEL__x \n\\frac12"
    for form in ("punctuation", "words"):
        found = classifier.classifier_text(text, 20, form)
        assert "__label__" not in found and len(found.splitlines()) == 1
    assert classifier.classifier_text("the_index = getValue2(x) 定理1", 20, "words") == "the index get value x 定 理"
    assert classifier.classifier_text("a b c d", 2) == "a b"


def test_measures_by_hand() -> None:
    found = measures.measure(np.array([True, True, False, False, True]), np.array([0.95, 0.85, 0.85, 0.05, 0.05]))
    assert (found["precision"], found["recall"], found["f1"]) == (2 / 3, 2 / 3, 2 / 3)
    assert found["reliability"] == [
        {"from": 0.0, "n": 2, "mean_p": pytest.approx(0.05), "positive_frac": 0.5},
        {"from": 0.8, "n": 2, "mean_p": pytest.approx(0.85), "positive_frac": 0.5},
        {"from": 0.9, "n": 1, "mean_p": pytest.approx(0.95), "positive_frac": 1.0},
    ]
    assert found["ece"] == pytest.approx((2 * 0.45 + 2 * 0.35 + 0.05) / 5)
    assert measures.measure(np.array([True]), np.array([1.0]))["reliability"][0]["from"] == 0.9


MATH, OTHER = "prove the lemma and the theorem of the integral ", "buy the cheap shoes in the new shop today "


def site_pages(base: Path) -> Path:
    """Three mathematical hosts and three shops of 20 pages; m0 and s0 twice as large."""
    files = []
    for kind, text in (("m", MATH), ("s", OTHER)):
        for number in range(3):
            size = 40 if number == 0 else 20
            files.append([{"url": f"https://{kind}{number}.org/{i}", "text": text * 8 + f" number {i}"} for i in range(size)])
    return make_pages(base, files)


def train(base: Path, previous: Path | None = None, **values: Any) -> tuple[dict[str, Any], Path]:
    out = folder(base, "train")
    values = {"seed_hosts": ("m0.org", "m1.org"), "num_seeds": 60, **SMALL, **values}
    return classifier.run(ClassifierConfig(**values), ClassifierInputs(base / "pages", previous), out), out


def test_whole_hosts_are_held_out_and_the_model_card_says_how_it_did(tmp_path: Path) -> None:
    site_pages(tmp_path)
    facts, out = train(tmp_path, held_out_frac=0.2, held_out_hosts_frac=0.4)
    assert (facts["round"], facts["num_positives"], facts["num_seeds"], facts["num_negatives"]) == (1, 60, 60, 60)
    assert facts["held_out"]["n"] == 24 and facts["held_out"]["f1"] > 0.6, "a fifth of the negatives is mathematics"
    assert facts["out_of_domain"]["num_hosts"] == 3, "one with positives, two of the four others"
    assert 20 <= facts["out_of_domain"]["n"] < 120
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"{facts['held_out']['f1']:.3f}" in card and f"{facts['out_of_domain']['f1']:.3f}" in card
    code = "\n".join(line.strip() for line in card.partition("## Use\n")[2].splitlines()).replace("model.bin", str(out / "model.bin"))
    script = f"page = {MATH * 8!r}\n" + code.replace("probabilities(model", "print(probabilities(model", 1).replace("  #", ")  #")
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert float(shown.strip().strip("[]")) > 0.5, "the card's code loads the model"
    assert not (out / "examples.txt").exists()


def test_without_a_second_host_there_is_no_out_of_domain_figure(tmp_path: Path) -> None:
    site_pages(tmp_path)
    assert train(tmp_path, seed_hosts=("m0.org",))[0]["out_of_domain"] == {"n": 0}
    assert train(tmp_path, held_out_hosts_frac=0.0)[0]["out_of_domain"] == {"n": 0}


def test_examples_of_a_host_are_limited(tmp_path: Path) -> None:
    site_pages(tmp_path)
    facts, _ = train(tmp_path, max_positives_per_host=8, max_negatives_per_host=3)
    assert facts["num_seeds"] == 60 and facts["num_positives"] == 16
    assert facts["num_negatives"] == 12, "3 of each of the four hosts without seeds"


def test_negatives_by_their_rule(tmp_path: Path) -> None:
    pages, before = site_pages(tmp_path), folder(tmp_path, "round1")
    m0, m2 = list(range(40)), list(range(2000, 2020))
    pq.write_table(pa.table({"id": m0}), before / "seeds.parquet")
    pq.write_table(pa.table({"id": [*m0, *m2, 3000]}), before / "collected.parquet")
    pq.write_table(pa.table({"host": ["m0.org", "m1.org", "m2.org"]}), before / "math_hosts.parquet")
    finish(before, {"round": 1})
    wanted = {"random": 120, "uncollected": 99, "outside_domains": 80}
    for rule, num in wanted.items():
        config = ClassifierConfig(negatives=rule)
        tables = list(classifier.candidates(config, ClassifierInputs(pages, before), np.array(m0)))
        assert sum(map(len, tables)) == num, rule
    first = ClassifierConfig(negatives="outside_domains")
    assert sum(map(len, classifier.candidates(first, ClassifierInputs(pages), np.array(m0)))) == 120, "round 1 knows no domains"
    facts, _ = train(tmp_path, before, negatives="outside_domains", negatives_per_positive=9.0)
    assert (facts["round"], facts["num_positives"], facts["num_negatives"]) == (2, 40, 80)


def test_external_seeds_join_the_crawl_s(tmp_path: Path) -> None:
    site_pages(tmp_path)
    file = tmp_path / "seeds.jsonl"
    file.write_text("".join(json.dumps({"text": MATH * 8, "url": f"https://e{i % 2}.org/"}) + "\n" for i in range(10)), encoding="utf-8")
    facts, out = train(tmp_path, seed_path=str(file))
    assert (facts["num_external"], facts["num_positives"], facts["num_seeds"]) == (10, 10, 0)
    assert facts["out_of_domain"]["num_hosts"] == 2 and facts["held_out"]["n"] == 2
    model = fasttext.load_model(str(out / "model.bin"))
    assert sorted(model.get_labels()) == ["__label__math", "__label__other"]


def test_the_same_input_gives_the_same_model_in_a_process_that_has_worked_before(tmp_path: Path) -> None:
    site_pages(tmp_path)
    first = (train(tmp_path)[1] / "model.bin").read_bytes()
    freed = [np.full(12_000, np.nan, np.float32) for _ in range(2_000)]  # too small for malloc to give back to the system
    kept = np.full(12_000, np.nan, np.float32)
    del freed
    assert (train(tmp_path)[1] / "model.bin").read_bytes() == first and np.isnan(kept).all()


def test_after_the_end_nothing_is_trained(tmp_path: Path) -> None:
    before = finish(folder(tmp_path, "round2"), {"round": 2, "stopped": 2})
    assert train(tmp_path, before)[0] == {"round": 3, "stopped": 2}
