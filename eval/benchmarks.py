"""Stage benchmarks: MMLU and BBH to evaluate on, and every benchmark text to decontaminate against.

    data/<benchmark>.parquet   url, text, benchmark, split, item, whole: texts to decontaminate against
    mmlu.parquet               subject, split, item, question, choices, answer (index of the right choice)
    bbh.parquet                task, item, input, target
    bbh_prompts.parquet        task, prompt (description and three worked examples)

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
from mathpipe.eval.suites import BBH_COLUMNS, DECONTAMINATED, MMLU_COLUMNS, TEXT_COLUMNS, Suites, bbh_texts, mmlu_texts
from mathpipe.pipeline import artifact, log, stage


@dataclass(frozen=True)
class BenchmarksInputs:
    """None: this stage starts the chain."""


def run(config: BenchmarksConfig, inputs: BenchmarksInputs, out: Path) -> dict[str, Any]:
    """Read the suites from their source, check them and write them as parquet."""
    suites = choose(config)
    stand_in = suites.source == "stand-in"
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
    artifact.write_parquet(out / "mmlu.parquet", columns(suites.mmlu, MMLU_COLUMNS))
    artifact.write_parquet(out / "bbh.parquet", columns(suites.bbh, BBH_COLUMNS))
    prompts = [{"task": task, "prompt": prompt} for task, prompt in suites.bbh_prompts.items()]
    artifact.write_parquet(out / "bbh_prompts.parquet", columns(prompts, ("task", "prompt")))
    return {
        "source": suites.source,
        "origin": suites.origin,
        "suites": {
            "mmlu": {"rows": len(suites.mmlu), "subjects": len({r["subject"] for r in suites.mmlu}), "stand_in": stand_in,
                     "splits": dict(Counter(row["split"] for row in suites.mmlu))},
            "bbh": {"rows": len(suites.bbh), "tasks": len(suites.bbh_prompts), "stand_in": stand_in},
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
        return sources.read_hub()
    if config.source == "hub":
        raise ValueError(f'benchmarks.source is "hub", but {problem}; set {BENCHMARKS_VARIABLE} to a folder with the files')
    logger.info("benchmarks: STAND-INS, because %s is not set and the hub cannot be used (%s)", BENCHMARKS_VARIABLE, problem)
    return standins.make(config.seed, config.stand_in_per_task)


def columns(rows: list[dict[str, Any]], names: tuple[str, ...]) -> pa.Table:
    """Rows as a table with these columns in this order."""
    return pa.table({name: [row[name] for row in rows] for name in names})


if __name__ == "__main__":
    stage.main(run)
