"""Stage report: one self-contained HTML file, `report.html`, made from the artifacts' manifests, metrics and samples alone.

The same module makes `report` (the whole chain) and `corpus.report` (the corpus alone): which of the two is said by the inputs
it is given, the page names what is not in it, and a part of the models' stages is refused. The volume sweep
and the ablations are shown where they have been run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from mathpipe.eval import report_ablations, report_corpus, report_evaluation, report_models, report_rl
from mathpipe.eval.config import ReportConfig, ReportInputs
from mathpipe.eval.markup import cards, duration, folded, number, page, percent, size, table
from mathpipe.eval.report_source import Source, require
from mathpipe.pipeline import log, stage

HIDDEN_COUNTS = ("num_processes", "num_workers")


def run(config: ReportConfig, inputs: ReportInputs, out: Path) -> dict[str, Any]:
    """Write `report.html`; facts: its size."""
    source = Source({f.name: path for f in fields(inputs) if (path := getattr(inputs, f.name)) is not None})
    makers: dict[str, Callable[[], str]] = {
        "Pages": lambda: report_corpus.pages(source),
        "Rounds": lambda: report_corpus.rounds(source),
        "Domains": lambda: report_corpus.domains(source),
        "Classifier": lambda: report_corpus.classifier(source),
        "Decontamination": lambda: report_corpus.decontamination(source),
        "Volume": lambda: report_corpus.volume(source),
        "Sample pages": lambda: report_corpus.samples(source, config),
    }
    if "pretrain" in source:
        makers |= {
            "Pre-training": lambda: report_models.pretraining(source),
            "Ablations": lambda: report_ablations.ablations(source),
            "SFT": lambda: report_models.sft(source),
            "GRPO": lambda: report_models.grpo(source, config),
            "Methods": lambda: report_rl.methods(source),
            "Evaluation": lambda: report_evaluation.evaluation(source, config),
        }
    makers |= {"Time and memory": lambda: costs(source), "Settings": lambda: settings(source)}
    sections = {}
    with log.Progress(out, total=len(makers), unit="sections") as progress:
        for name, make in makers.items():
            sections[name] = make()
            progress.advance(1, name)
    file = out / "report.html"
    partial = out / ".report.html.tmp"
    partial.write_text(page(config.title, lead(source), sections), encoding="utf-8")
    partial.replace(file)
    return {"file": "report.html", "size_bytes": file.stat().st_size, "num_sections": len(sections)}


def lead(source: Source) -> str:
    """The headline figures and what is a stand-in."""
    corpus, last = source["corpus"].manifest, report_corpus.round_lines(source)[-1]
    headline = {
        "pages in the math corpus": number(corpus.get("num_pages", 0)),
        "tokens in the math corpus": number(corpus.get("num_tokens", 0)),
        f"of round {last['round']}’s pages known from the round before": percent(last.get("overlap"), 0) or "–",
    }
    if last.get("recall") is not None:
        headline["of the labelled math pages found"] = percent(last["recall"], 0) or "–"
    if "grpo" in source:
        for kind in ("sampled", "greedy"):
            measured = require(source["grpo"], "held_out", kind)
            headline[f"held-out, {kind}: SFT → GRPO"] = f"{100 * measured['before']:.0f} → {percent(measured['after'], 0)}"
    headline["stage time, all stages"] = duration(sum(entry.manifest.get("wall_s", 0) for entry in source.history()))
    stand_ins = [name.upper() for name, suite in require(source["benchmarks"], "suites").items() if suite["stand_in"]]
    note = ""
    if "pretrain" not in source:
        note = '<p class="note"><b>The corpus alone</b>: no pre-training, SFT, GRPO and evaluation in this report.</p>'
    if stand_ins:
        note += (
            f'<p class="note"><b>Stand-ins for {" and ".join(stand_ins)}</b>: questions this project generated, because the benchmarks '
            "themselves were not there. Their scores compare with nothing published.</p>"
        )
    intro = "Every figure below is read from the artifacts of one run of the chain; the paper is DeepSeekMath, arXiv 2402.03300."
    return f'<p class="soft">{intro}</p>{cards(headline)}{note}'


def costs(source: Source) -> str:
    """Wall time, CPU time, peak memory and counts of every stage."""
    rows = [
        [entry.name, duration(m.get("wall_s", 0)), duration(m.get("cpu_s", 0)), size(m.get("peak_memory_bytes", 0)), counts(m), m["hash"]]
        for entry in source.history()
        for m in [entry.manifest]
    ]
    total = duration(sum(entry.manifest.get("wall_s", 0) for entry in source.history()))
    head = ["stage", "wall", "CPU", "peak memory", "counts", "hash"]
    return f"<p>Wall time {total}, one stage after another.</p>{table(head, rows, wide=[4])}"


def counts(manifest: dict[str, Any]) -> str:
    """The manifest's `num_…` values in words."""
    shown = [key for key, value in manifest.items() if key.startswith("num_") and key not in HIDDEN_COUNTS and isinstance(value, int)]
    return ", ".join(f"{number(manifest[key])} {key.removeprefix('num_').replace('_', ' ')}" for key in shown[:5])


def settings(source: Source) -> str:
    """The resolved settings of every stage, and the versions of the engines."""
    files = {entry.name: entry.file("config.toml") for entry in source.history()}
    parts = [folded(name, file.read_text(encoding="utf-8")) for name, file in files.items() if file.exists()]
    packages: dict[str, str] = {}
    commits = sorted({str(entry.manifest.get("git_commit")) for entry in source.history()})
    for entry in source.history():
        packages |= entry.manifest.get("packages", {})
    versions = ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))
    return f'<p class="soft">{versions}. Commit: {", ".join(commits)}.</p>{"".join(parts)}'


if __name__ == "__main__":
    stage.main(run)
