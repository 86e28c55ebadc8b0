"""The report's section on the evaluation: scores beside the paper's, models on the same items, samples, contamination."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq

from mathpipe.eval.config import TASKS, ReportConfig
from mathpipe.eval.markup import Raw, folded, percent, table, tag
from mathpipe.eval.published import MODELS
from mathpipe.eval.report_corpus import excerpt
from mathpipe.eval.report_source import Source, require, sample
from mathpipe.eval.show import question
from mathpipe.pipeline.artifact import ContractError

NAMES = {
    "mmlu": "MMLU", "bbh": "BBH", "gsm8k": "GSM8K", "math": "MATH", "ocw": "OCW", "sat": "SAT", "mmlu_stem": "MMLU-STEM", "cmath": "CMATH",
    "mgsm_zh": "MGSM-zh", "held_out": "held-out problems",
}  # fmt: skip


def evaluation(source: Source, config: ReportConfig) -> str:
    """Ours beside the paper's, two models on the same items, samples, contamination, and items."""
    entry = source["evaluate"]
    results = require(entry, "results")
    for result in results:
        missing = {"model", "task", "score", "stderr", "interval", "n", "stand_in"} - set(result)
        if missing:
            raise ContractError(f"{entry.path / 'manifest.json'}: a result without {', '.join(sorted(missing))}; run stage evaluate again")
    ordered = sorted(results, key=lambda result: TASKS.index(result["task"].partition("@")[0]))
    head = ["task", "model", "asked", "ours ± stderr", "95 % interval", "items", "paper", "difference"]
    body = [_result_row(result) for result in ordered if "maj" not in result]
    chance = [f"{result['model']} {percent(result['score'])}" for result in results if "at chance" in result.get("note", "")]
    at_chance = f"<p><b>At chance on MMLU</b> (25 % lies in the interval): {', '.join(chance)}.</p>" if chance else ""
    how = (
        f"Benchmarks: {entry.manifest.get('benchmarks_source', '?')}. Answers: {entry.manifest.get('engine', '?')}, greedy. Per cent of "
        f"items; the interval is Wilson’s, over items; where fewer worked examples fit, the number of such items. "
        f"Paper: {', '.join(name for name, _ in MODELS.values())}."
    )
    return (
        f'<p class="soft">{how}</p>' + table(head, body) + at_chance + _categories(results) + _samples(ordered)
        + _paired(entry.manifest.get("paired", [])) + _contamination(source) + _items(source, config)
    )  # fmt: skip


def points(value: float) -> str:
    """Points with their sign.

    >>> points(-3.14159)
    '−3.1'
    """
    return f"{value:+.1f}".replace("-", "−")


def _result_row(result: dict[str, Any]) -> list[Any]:
    task, model, score = result["task"], result["model"], 100 * result["score"]
    published = None if result["stand_in"] else MODELS.get(model, ("", {}))[1].get(task)
    name: Any = Raw(f"{task_name(task)} {tag('stand-in')}") if result["stand_in"] else task_name(task)
    shots = {int(count): num_items for count, num_items in result.get("shots", {}).items()}
    asked = f"{max(shots, default=0)}-shot" + (f", {result['n'] - shots[max(shots)]} fewer" if len(shots) > 1 else "")
    low, high = result["interval"]
    paper = (None, None) if published is None else (f"{published:.1f}", points(score - published))
    ours = f"{score:.1f} ± {100 * result['stderr']:.1f}", f"{100 * low:.1f} – {100 * high:.1f}"
    return [name, model, "chat" if result.get("chat") else asked, *ours, result["n"], *paper]


def task_name(task: str) -> str:
    """For people.

    >>> task_name("gsm8k-pot"), task_name("mmlu")
    ('GSM8K, programs', 'MMLU')
    """
    suite, _, style = task.partition("-")
    return NAMES[suite] + {"": "", "pot": ", programs", "tir": ", text and programs"}[style]


def _categories(results: list[dict[str, Any]]) -> str:
    """MMLU by category, and the mean over subjects."""
    found = [result for result in results if "categories" in result]
    if not found:
        return ""
    names = list(found[0]["categories"])
    rows = [
        [result["model"], *(f"{100 * result['categories'][name]:.1f}" for name in names if name in result["categories"]),
         f"{100 * result['macro']:.1f}"]
        for result in found
    ]  # fmt: skip
    return "<h3>MMLU by category</h3>" + table(["model", *names, "mean of subjects"], rows)


def _samples(results: list[dict[str, Any]]) -> str:
    """maj@K and pass@K of each model."""
    parts = []
    for task in dict.fromkeys(result["task"] for result in results if "maj" in result):
        found = [result for result in results if result["task"] == task]
        ks = list(found[0]["maj"])
        rows = [
            [result["model"], kind, *(f"{100 * mean:.1f} ± {100 * error:.1f}" for mean, error in (result[kind][k] for k in ks))]
            for kind in ("maj", "pass")
            for result in found
        ]
        title = f"{task_name(task.partition('@')[0])}: majority of K samples, and any of K samples"
        parts.append(f"<h3>{title}</h3>" + table(["model", "", *(f"K = {k}" for k in ks)], rows))
    return "".join(parts)


def _paired(differences: list[dict[str, Any]]) -> str:
    """Two models on the same items."""
    rows = [
        [task_name(d["task"].partition("@")[0]) + (", sampled" if "@" in d["task"] else ""), f"{d['before']} → {d['after']}",
         f"{points(100 * d['difference'])} ± {100 * d['stderr']:.1f}", d["gained"], d["lost"], d["n"], f"{d['p_value']:.3g}"]
        for d in differences
    ]  # fmt: skip
    head = ["task", "models", "points ± stderr", "items gained", "items lost", "items", "p"]
    words = "<p class=\"soft\">p: the exact McNemar test of greedy answers, a normal test of the shares of sampled ones.</p>"
    return f"<h3>The same items, model after model</h3>{words}{table(head, rows)}" if rows else ""


def _contamination(source: Source) -> str:
    """Shares of items that share text with the corpus or with SFT's examples."""
    if "contamination" not in source:
        return ""
    shares = require(source["contamination"], "suites")
    where = list(dict.fromkeys(name for found in shares.values() for name in found["hits"]))
    rows = [
        [name, found["items"], *(percent(found["hits"].get(one, 0) / found["items"], 2) for one in where)] for name, found in shares.items()
    ]
    words = "Share of each suite’s test items with a 10-gram (a short question: all of it) in what was trained on; it must be 0."
    return f"<h3>Contamination</h3><p>{words}</p>" + table(["suite", "items", *where], rows)


def _items(source: Source, config: ReportConfig) -> str:
    parts = []
    for task in TASKS:
        file = source["evaluate"].file(f"items/grpo-{task}.parquet")
        rows = pq.read_table(file).to_pylist() if file.exists() else []
        for row in sample(rows, max(1, config.num_samples // 6), f"{config.seed} {task}"):
            answer = row["completion"] or f"(letter of highest probability: {row['extracted']})"
            title = f"{task} · {row['item']} · {row['reason']} · wanted {row['target']}, found {row['extracted']}"
            parts.append(folded(title, excerpt(f"{question(row['prompt'])}\n\n{answer}")))
    return f"<h3>Items of the GRPO model, drawn at random</h3>{''.join(parts)}" if parts else ""
