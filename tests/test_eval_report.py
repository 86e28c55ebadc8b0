"""Stage report: a synthetic chain in, one self-contained page out."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mathpipe.eval import report
from mathpipe.eval.config import ReportConfig
from mathpipe.eval.markup import table
from mathpipe.pipeline.artifact import ContractError, append_metrics, read_manifest, write_json, write_parquet

PAGES = pa.schema({"url": pa.string(), "text": pa.string(), "score": pa.float32()})
PAGE_TEXT = "Let $G$ be a finite group & $H < G$ a subgroup. " * 40


def make(root: Path, name: str, config: str = "seed = 0\n", inputs: dict[str, Path] | None = None, **facts: Any) -> Path:
    """A finished artifact with a manifest."""
    path = root / name
    path.mkdir(parents=True)
    (path / "config.toml").write_text(f"[{name.split('.')[0].rstrip('1234')}]\n{config}")
    made_from = {key: {"path": str(value), "hash": "00000000"} for key, value in (inputs or {}).items()}
    manifest = {"stage": name, "hash": f"{abs(hash(name)) % 16**8:08x}", "inputs": made_from, **facts, "wall_s": 12.5, "cpu_s": 20.25}
    write_json(path / "manifest.json", manifest | {"peak_memory_bytes": 812_000_000, "packages": {"torch": "2.13.0"}, "git_commit": "abc"})
    return path


@pytest.fixture
def chain(tmp_path: Path) -> report.ReportInputs:
    """A whole run's artifacts with plausible figures."""
    root, rng = tmp_path / "runs", random.Random(0)
    suites = {"mmlu": {"rows": 400, "stand_in": True}, "bbh": {"rows": 6511, "stand_in": False}}
    paths = {"benchmarks": make(root, "benchmarks", source="local", suites=suites, num_rows=73489)}
    paths["crawl"] = make(root, "crawl", source="docs", num_pages=12000, num_hosts=42)
    rejected = {"near duplicate": 640, "too short": 160}
    paths["pages"] = make(root, "pages", inputs={"crawl": paths["crawl"]}, num_pages=11200, num_hosts=42, num_rejects=rejected)
    hosts = [
        {
            "host": f"pkg{i}.docs.example",
            "num_pages": 400,
            "num_collected": 380 - 20 * i,
            "collected_frac": 0.95 - i / 20,
            "mean_score": 0.4321,
            "is_math": i < 17,
        }
        for i in range(19)
    ]
    for n in range(1, 5):
        domains = make(root, f"round{n}.domains", inputs={"pages": paths["pages"]}, num_domains=42, num_math_domains=17)
        write_parquet(domains / "domains.parquet", pa.Table.from_pylist(hosts))
        histogram = {"edges": [0.0, 0.5, 1.0], "counts": [9000, 2200]}
        selected = make(root, f"round{n}.select", score_histogram=histogram)
        annotations = make(root, f"round{n}.annotate")
        decision = {"prefix": "pkg0.docs.example/<m>/", "decision": "math", "reason": "9 of 9 pages collected", "who": "policy"}
        lines = [decision, *({**decision, "prefix": f"pkg0.docs.example/{i}/", "decision": "not_math"} for i in range(6))]
        (annotations / "decisions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        made_from = {"pages": paths["pages"], "domains": domains, "selected": selected, "annotations": annotations}
        bins = [{"mean_p": 0.1, "positive_frac": 0.05}, {"mean_p": 0.9, "positive_frac": 0.97}]
        made_from["classifier"] = make(root, f"round{n}.train", held_out={"f1": 0.9, "reliability": bins})
        paths[f"round{n}"] = make(root, f"round{n}", inputs=made_from)
        append_metrics(
            paths[f"round{n}"], round=n, pages=2000 + 900 * n, tokens=900_000 * n, recall=1 - 0.6**n, precision=0.9 - 0.02 * n,
            overlap=None if n == 1 else 1 - 0.4**n, seeds=300 * n, math_domains=5 * n,
        )  # fmt: skip
    paths["corpus"] = make(
        root, "corpus", inputs={"pages": paths["pages"]}, num_pages=5563, num_tokens=3_560_000, num_removed=37,
        removed_by_benchmark={"gsm8k": 35, "mmlu": 2}, benchmark_texts={"gsm8k": 17584, "mmlu": 31755, "bbh": 6511},
    )  # fmt: skip
    rows = [{"url": f"https://pkg{i}.docs.example/a.html", "text": PAGE_TEXT, "score": 0.5 + i / 40} for i in range(20)]
    for number in range(4):
        write_parquet(
            paths["corpus"] / "data" / f"docs-{number}.parquet", pa.Table.from_pylist(rows[number:20:4] if number else rows[:0], PAGES)
        )
    reject = {"url": "https://x.example/<b>", "reason": "benchmark text", "benchmark": "gsm8k", "item": "3", "gram": "janet s ducks lay 16"}
    write_parquet(paths["corpus"] / "rejects" / "docs-0.parquet", pa.Table.from_pylist([reject]))
    paths["tokenizer"] = make(root, "tokenizer", inputs={"corpus": paths["corpus"]}, num_tokens=1024)
    paths["tokens"] = make(root, "tokens", inputs={"corpus": paths["corpus"]}, num_tokens=4_200_000, num_documents=5563)
    epochs, before = {"math": 0.4, "code": 0.2}, {"bits_per_byte/math": 7.25, "bits_per_byte/code": 8.5}
    held_out = {"before": before, "after": {"bits_per_byte/math": 3.125, "bits_per_byte/code": 4.5}}
    facts = {"num_parameters": 1_066_112, "epochs": epochs, "held_out": held_out}
    paths["pretrain"] = make(root, "pretrain", inputs={"tokens": paths["tokens"]}, **facts)
    for step in range(5, 305, 5):
        loss = 2.4 + 4.5 * math.exp(-step / 60) + rng.gauss(0, 0.04)
        held_out = {"held_out_loss": loss + 0.05, "bits_per_byte": loss / 2} if step % 50 == 0 else {}
        values = {"loss": loss, "loss/math": loss - 0.1, "loss/code": loss + 0.3, "lr": 1e-3 * min(1, step / 30)}
        values |= {"tokens_per_s": 21000 + rng.gauss(0, 400), **held_out}
        append_metrics(paths["pretrain"], step=step, **values)
    counts = [{"source": "metamath", "format": "cot", "language": "en", "count": 19_800}]
    refused = [{"source": "metamath", "reason": "no_answer", "count": 7}]
    examples = make(root, "examples", examples=counts, rejects=refused)
    clean = make(root, "examples.clean", inputs={"pages": examples}, num_removed=13)
    packings = {"shuffle": {"num_rows": 400, "padding_frac": 0.067, "too_long_frac": 0.0, "lost_tokens_frac": 0.0}}
    made_from = {"pretrain": paths["pretrain"], "examples": examples, "clean": clean}
    paths["sft"] = make(root, "sft", inputs=made_from, num_examples=19_787, packing=packings)
    for step in range(5, 205, 5):
        append_metrics(
            paths["sft"], step=step, loss=0.2 + 2 * math.exp(-step / 40) + rng.gauss(0, 0.01), grad_norm=0.5 + 0.1 * rng.random()
        )
    greedy = {"before": 0.55, "after": 0.634, "p_value": 0.0004}
    measured = {"n": 500, "sampled": {"before": 0.412, "after": 0.583}, "greedy": greedy}
    paths["grpo"] = make(root, "grpo", inputs={"sft": paths["sft"]}, held_out=measured, num_steps=80)
    for step in range(81):
        accuracy = {"sampled_accuracy": 0.41 + 0.17 * step / 80, "greedy_accuracy": 0.55 + 0.08 * step / 80} if step % 10 == 0 else {}
        values = {"reward": 0.42 + 0.2 * step / 80 + rng.gauss(0, 0.03), "kl": 0.0005 * step, "zero_std_frac": 0.1, "loss": 1e-5}
        append_metrics(paths["grpo"], step=step, **values, **accuracy)
    completion = {
        "question": "Ann has 3 <apples> and buys 4. How many has she?",
        "completion": "3 + 4 = \\boxed{7}",
        "reward": 1.0,
        "advantage": 0.7,
    }
    for step in (1, 80):
        write_parquet(paths["grpo"] / "completions" / f"step-{step:05d}-0.parquet", pa.Table.from_pylist([completion] * 9))
    scores: dict[str, tuple[float, ...]] = {"base": (0.251, 0.012, 0.0), "sft": (0.243, 0.0, 0.552), "grpo": (0.262, 0.013, 0.634)}
    results: list[dict[str, Any]] = [
        {"model": model, "task": task, "suite": task, "score": score, "stderr": 0.021, "interval": [max(0.0, score - 0.04), score + 0.05]}
        | {"n": 320, "stand_in": task == "mmlu", "chat": model != "base" and task == "held_out", "shots": {"5": 300, "4": 20}}
        | ({"note": "at chance: 25 % lies in the 95 % interval", "chance": 0.25, "macro": 0.2468, "categories": {"STEM": 0.2357}}
           if task == "mmlu" else {})
        for model, values in scores.items()
        for task, score in zip(("mmlu", "bbh", "held_out"), values, strict=True)
    ]  # fmt: skip
    sampled = {"model": "grpo", "task": "held_out@4", "suite": "held_out", "score": 0.5, "stderr": 0.02, "interval": [0.45, 0.55], "n": 320}
    ks = {"1": [0.5, 0.02], "2": [0.625, 0.02], "4": [0.75, 0.0213]}
    results.append(sampled | {"stand_in": False, "num_samples": 4, "maj": ks, "pass": ks})
    paired = [{"task": "held_out", "before": "sft", "after": "grpo", "difference": 0.082, "stderr": 0.0123, "p_value": 0.00047,
               "gained": 31, "lost": 5, "n": 320}]  # fmt: skip
    made_from = {name: paths[name] for name in ("benchmarks", "pretrain", "sft", "grpo")}
    told = {"results": results, "paired": paired, "benchmarks_source": "local", "engine": "own", "num_items": 2880}
    paths["evaluate"] = make(root, "evaluate", inputs=made_from, **told)
    suites = {"gsm8k": {"items": 1319, "hits": {"corpus": 0, "examples": 2}}}
    paths["contamination"] = make(root, "contamination", inputs={"corpus": paths["corpus"]}, suites=suites)
    item = {
        "item": "navigate/3",
        "reason": "wrong",
        "target": "Yes",
        "extracted": "No",
        "prompt": "Q: a?\n\nQ: b?\nA:",
        "completion": "No.",
    }
    write_parquet(paths["evaluate"] / "items" / "grpo-bbh.parquet", pa.Table.from_pylist([item] * 3))
    return report.ReportInputs(**paths)


class Links(HTMLParser):
    """Collects what a page would fetch, its anchors and its headings."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.anchors: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "src" or (name == "href" and tag in ("link", "image")):
                self.fetched.append(str(value))
            if name == "href" and tag == "a":
                self.anchors.append(str(value).removeprefix("#"))
            if name == "id" and tag == "h2":
                self.ids.append(str(value))


def test_the_page_stands_alone_and_says_what_the_artifacts_say(chain: report.ReportInputs, tmp_path: Path) -> None:
    facts = report.run(ReportConfig(), chain, tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    assert links.fetched == [] and "<script" not in text and "@import" not in text
    assert links.anchors == links.ids and len(links.ids) == facts["num_sections"] == 15
    assert text.count("<svg") >= 14
    told = ("41.2 %", "58.3 %", "+17.1", "4.0e-04", "5,563", "Stand-ins for MMLU", "59.5", "5-shot, 20 fewer", "round1.domains")
    told += ("0.0 – 5.0", "+8.2 ± 1.2", "0.00047", "−58.3", "75.0 ± 2.1", "0.15 %", "23.6", "24.7")
    told += (
        "near duplicate",
        "5.3 %",
        "math: /&lt;m&gt;/; not math: /0/, /1/, /2/ and 3 more",
        "sweep has not been run",
        "mathpipe ablate arxiv",
        "metamath: no_answer 7; 13 share text with a benchmark’s test problem",
        "19,800",
        "6.7 %",
        "Training loss by source",
        "7.25",
    )
    for wanted in told:
        assert wanted in text, wanted
    assert text.count("· P(math) 0.") == 6, "2 of each file that has pages: one of the four has none"
    assert "54.9" not in text, "the paper's MMLU must not stand beside a stand-in"
    assert "<apples>" not in text and "&lt;apples&gt;" in text and "https://x.example/<b>" not in text
    assert "At chance on MMLU" in text


def test_the_page_is_the_same_twice(chain: report.ReportInputs, tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        report.run(ReportConfig(), chain, tmp_path / name)
        pages.append((tmp_path / name / "report.html").read_bytes())
    assert pages[0] == pages[1]


MODELS = ("tokenizer", "tokens", "pretrain", "sft", "grpo", "evaluate")


def test_a_report_on_the_corpus_alone_says_so(chain: report.ReportInputs, tmp_path: Path) -> None:
    inputs = dataclasses.replace(chain, **dict.fromkeys((*MODELS, "contamination")))
    facts = report.run(ReportConfig(), inputs, tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert facts["num_sections"] == 9 and "<b>The corpus alone</b>: no pre-training" in text
    assert '<h2 id="rounds"' in text and "5,563" in text and '<h2 id="grpo"' not in text


@pytest.mark.parametrize("name", MODELS)
def test_a_report_on_a_part_of_the_models_is_refused(chain: report.ReportInputs, name: str) -> None:
    with pytest.raises(ValueError, match=f"give --in {name}=DIR, or none of"):
        dataclasses.replace(chain, **{name: None})


def test_the_volumes_stand_in_the_report_when_they_were_measured(chain: report.ReportInputs, tmp_path: Path) -> None:
    volumes = make(tmp_path, "volumes", best=2, judged_on="problems", texts={"problems": 2000, "core pages": 1})
    for n in range(1, 5):
        figures = {"bits_per_byte": 1.5 + n / 100, "difference": n / 100 - 0.01, "stderr": 0.0012}
        row = {f"problems {key}": value for key, value in figures.items()} | {f"core pages {key}": value for key, value in figures.items()}
        row |= {"core pages stderr": None, "volume": n, "pages": 100 * n, "tokens": 1000 * n, "lowest_score": 1 / n, "epochs": 4 / n}
        append_metrics(volumes, **row)
    report.run(ReportConfig(), dataclasses.replace(chain, volumes=volumes), tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    for wanted in ('2× <span class="tag">best</span>', "1.5400 (+0.0300 ± 0.0012)", "1.5400 (+0.0300)", "over 2000 problems, 1 core pages"):
        assert wanted in text, wanted
    assert "has not been run" not in text


@pytest.mark.parametrize(
    ("stage", "key"), [("evaluate", "results"), ("grpo", "held_out"), ("corpus", "num_removed"), ("benchmarks", "suites")]
)
def test_a_manifest_without_what_the_report_needs_is_named(chain: report.ReportInputs, tmp_path: Path, stage: str, key: str) -> None:
    path = getattr(chain, stage)
    write_json(path / "manifest.json", {k: v for k, v in read_manifest(path).items() if k != key})
    with pytest.raises(ContractError, match=key) as error:
        report.run(ReportConfig(), chain, tmp_path)
    assert str(path) in str(error.value)


def test_curves_that_are_not_there_are_left_out(chain: report.ReportInputs, tmp_path: Path) -> None:
    (chain.sft / "metrics.jsonl").unlink()
    report.run(ReportConfig(), chain, tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Loss on answers" not in text and "Bits per byte" in text and "Entropy" not in text


def test_cells_are_escaped_and_numbers_set_right() -> None:
    html = table(["name", "n"], [["<i>", 1234567], ["b", None]])
    assert "&lt;i&gt;" in html and re.search(r'<td class="n">1,234,567</td>', html) and '<td class="n">–</td>' in html
