"""Stage benchmarks: the suites to evaluate on, and every benchmark text to decontaminate against.

    data/<benchmark>.parquet   url, text, benchmark, split, item, whole: texts to decontaminate against
    mmlu.parquet               subject, split, item, question, choices, answer (index of the right choice)
    bbh.parquet                task, item, input, target
    bbh_prompts.parquet        task, prompt (description and three worked examples)
    <suite>.parquet            item, group, question, choices, answer: gsm8k, math, cmath, mgsm_zh, ocw, sat, mmlu_stem

The training splits of GSM8K and MATH are among the texts: a page that carries one is as much a benchmark page as another.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from mathpipe.eval import sources, standins
from mathpipe.eval.config import BENCHMARKS_VARIABLE, BenchmarksConfig
from mathpipe.eval.suites import DECONTAMINATED, TEXT_COLUMNS, Suites, bbh_texts, digest, mmlu_texts
from mathpipe.pipeline import artifact, log, stage


@dataclass(frozen=True)
class BenchmarksInputs:
    """None: this stage starts the chain."""


def run(config: BenchmarksConfig, inputs: BenchmarksInputs, out: Path) -> dict[str, Any]:
    """Read the suites from their source, check them and write them as parquet."""
    suites = choose(config)
    texts = mmlu_texts(suites.mmlu) + bbh_texts(suites.bbh) + suites.texts
    by_benchmark: dict[str, list[dict[str, Any]]] = {}
    for row in texts:
        by_benchmark.setdefault(row["benchmark"], []).append(row)
    missing = [name for name in DECONTAMINATED if name not in by_benchmark]
    if missing:
        log.logger().warning("benchmarks: no texts of %s: the corpus will not be cleaned of them", ", ".join(missing))
    with log.Progress(out, total=len(texts), unit="texts") as progress:
        for name, rows in by_benchmark.items():
            artifact.write_parquet(out / "data" / f"{name}.parquet", columns(rows, TEXT_COLUMNS))
            progress.advance(len(rows), name)
    tables = suites.tables()
    for name, (names, rows) in tables.items():
        artifact.write_parquet(out / f"{name}.parquet", columns(rows, names))
    further = {
        "mmlu": {"subjects": len({r["subject"] for r in suites.mmlu}), "splits": dict(Counter(row["split"] for row in suites.mmlu))},
        "bbh": {"tasks": len(suites.bbh_prompts), "prompts_sha256": digest(*tables.pop("bbh_prompts"))},
    }
    return {
        "source": suites.source,
        "origin": suites.origin,
        "suites": {
            name: {"rows": len(rows), "sha256": digest(names, rows), "stand_in": suites.source == "stand-in", **further.get(name, {})}
            for name, (names, rows) in tables.items()
        },
        "texts": {name: len(rows) for name, rows in by_benchmark.items()},
        "num_rows": len(texts),
    }  # fmt: skip


def choose(config: BenchmarksConfig) -> Suites:
    """The suites from the configured source; says in the log which one it is and why.

    Raises:
        ValueError: the source cannot be had, or what it delivers is not the published benchmark.
    """
    logger, folder = log.logger(), config.local_folder()
    if config.source == "local" and folder is None:
        raise ValueError(f'benchmarks.source is "local": set {BENCHMARKS_VARIABLE} to the folder with mmlu, bbh, gsm8k and math')
    if folder is not None:
        logger.info("benchmarks: files of %s (%s)", folder, BENCHMARKS_VARIABLE)
        return sources.read_local(folder)
    if config.source == "stand-in":
        logger.info("benchmarks: STAND-INS, as the config says")
        return standins.make(config.seed, config.stand_in_per_task)
    problem = sources.hub_problem(config.hub_timeout_s)
    if problem is None:
        logger.info("benchmarks: the hub (%s is not set)", BENCHMARKS_VARIABLE)
        return sources.read_hub(config.hub_timeout_s)
    if config.source == "hub":
        raise ValueError(f'benchmarks.source is "hub", but {problem}; set {BENCHMARKS_VARIABLE} to a folder with the files')
    logger.info("benchmarks: STAND-INS, because %s is not set and the hub cannot be used (%s)", BENCHMARKS_VARIABLE, problem)
    return standins.make(config.seed, config.stand_in_per_task)


def columns(rows: list[dict[str, Any]], names: tuple[str, ...]) -> pa.Table:
    """Rows as a table with these columns in this order."""
    values = {name: [row[name] for row in rows] for name in names}
    return pa.table({name: pa.array(cells, pa.list_(pa.string())) if name == "choices" else cells for name, cells in values.items()})


if __name__ == "__main__":
    stage.main(run)
