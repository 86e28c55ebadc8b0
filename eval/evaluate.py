"""Stage evaluate: every model of the chain on MMLU, BBH, the mathematics suites and the held-out problems.

    items/<model>-<task>.parquet      one row an answer: prompt, completion, what was extracted, target, reason
    items/<model>-<task>@<K>.parquet  the same for K samples of each problem
    metrics.jsonl                     one line a model and task

Every finished file is kept here and, for later runs, beside the artifacts (cache.py); a killed run goes on with the next one. Prompts
longer than the context lose their last worked examples, as in MMLU's own script; the manifest counts the examples really used.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from mathpipe.eval import cache, metrics, mmlu, models
from mathpipe.eval.answers import GREEDY, Sampling, Session, table
from mathpipe.eval.config import EvaluateConfig, EvaluateInputs
from mathpipe.eval.generation import pick_engine
from mathpipe.eval.grader import Grader, as_number, normalise, without_unit
from mathpipe.eval.models import Model
from mathpipe.eval.sandbox import Sandbox
from mathpipe.eval.suites import mmlu_category
from mathpipe.eval.task import Row, Task
from mathpipe.eval.tasks import TASKS
from mathpipe.pipeline import artifact, log, stage
from mathpipe.pipeline.artifact import ContractError


@dataclass(frozen=True)
class Evaluation:
    """A model, a task, and how it answers."""

    model: Model
    task: Task
    sampling: Sampling

    @property
    def name(self) -> str:
        """Of its task; the samples have a name of their own."""
        return self.task.name if self.sampling == GREEDY else f"{self.task.name}@{self.sampling.num_samples}"


def run(config: EvaluateConfig, inputs: EvaluateInputs, out: Path) -> dict[str, Any]:
    """Evaluate every model on every task; facts: `results`, `paired` differences, and where the answers are from."""
    torch.set_num_threads(config.runtime.num_processes * config.runtime.num_threads)  # one process with the cores of a training stage
    benchmarks = artifact.read_manifest(inputs.benchmarks)
    engine = pick_engine(config.engine, "cuda" if config.runtime.uses_gpu() else "cpu")
    found_models = models.chain(inputs)
    wanted = list(evaluations(config, found_models))
    (out / "metrics.jsonl").unlink(missing_ok=True)  # written again from the items, those of a killed run included
    results, answered = [], Answered(config, inputs, benchmarks, engine, out)
    scored: dict[tuple[str, str], dict[str, float]] = {}
    for one in wanted:
        answered.rows(one.task)  # what is missing is said now and not after hours
    with log.Progress(out, total=len(wanted), unit="evaluations") as progress, Grader() as grader, Sandbox(
        config.runtime.sandbox, config.runtime.num_workers
    ) as sandbox:  # fmt: skip
        if any(one.task.style in ("pot", "tir") for one in wanted):
            sandbox.run([""])  # where no sandbox works the stage ends here and not after hours
        session = Session(config, engine, grader, sandbox)
        for one in wanted:
            rows = answered.of(one, session)
            scored[one.model.name, one.name] = scores(rows)
            stand_in = benchmarks["suites"].get(one.task.suite, {}).get("stand_in", False)
            chat = one.model.chat and one.task.chat and not engine.startswith("lm-eval")
            result = {"model": one.model.name, "task": one.name, "suite": one.task.suite, "style": one.task.style, "chat": chat,
                      "stand_in": stand_in, **summarise(rows)}  # fmt: skip
            artifact.append_metrics(out, **{name: result[name] for name in ("model", "task", "score", "stderr", "n", "stand_in")})
            results.append(result)
            progress.advance(1, f"{one.model.name} {one.name} {100 * result['score']:.1f} %")
    return {
        "results": results, "paired": list(differences(found_models, scored)), "engine": engine,
        "benchmarks_source": benchmarks["source"], "num_items": sum(result["n"] for result in results), "num_cached": answered.num_cached,
    }  # fmt: skip


def evaluations(config: EvaluateConfig, found: Iterable[Model]) -> Iterator[Evaluation]:
    """What is to be answered, model by model."""
    samples = Sampling(config.num_samples, config.temperature, config.top_p)
    for model in found:
        for name in config.tasks:
            if model.chat or TASKS[name].base:
                yield Evaluation(model, TASKS[name], GREEDY)
                if config.num_samples and name in config.sampled:
                    yield Evaluation(model, TASKS[name], samples)


class Answered:
    """Answers: those of this artifact, those kept from former runs, and new ones."""

    def __init__(self, config: EvaluateConfig, inputs: EvaluateInputs, benchmarks: dict[str, Any], engine: str, out: Path) -> None:
        self.config, self.inputs, self.benchmarks, self.engine, self.out = config, inputs, benchmarks, engine, out
        self.num_cached = 0
        self._rows: dict[str, list[Row]] = {}

    def of(self, one: Evaluation, session: Session) -> list[Row]:
        """The rows of one evaluation's file."""
        file = self.out / "items" / f"{one.model.name}-{one.name}.parquet"
        if not cache.is_whole(file):
            name = self.key(one, session.device)
            if cache.take(self.out, name, file):
                self.num_cached += 1
                log.logger().info("%s on %s: as before", one.model.name, one.name)
            else:
                self.make(one, session, file)
                cache.keep(self.out, name, file)
        return pq.read_table(file).to_pylist()

    def make(self, one: Evaluation, session: Session, file: Path) -> None:
        """Have the model answer."""
        started = time.monotonic()
        session.load(one.model.path)
        items = session.answer(one.task, self.rows(one.task), one.model.name, one.model.chat, one.sampling)
        artifact.write_parquet(file, table(items))
        log.logger().info("%s on %s: %d answers in %.1f s", one.model.name, one.name, len(items), time.monotonic() - started)

    def rows(self, task: Task) -> list[Row]:
        """The items that are asked, the same of every model."""
        if task.name not in self._rows:
            folder = self.inputs.grpo if task.suite == "held_out" else self.inputs.benchmarks
            found = task.rows(folder)
            if not found:
                raise ContractError(f"{folder / task.suite}.parquet: no items for task {task.name!r}; leave it out of evaluate.tasks")
            self._rows[task.name] = subsample(found, self.config.limit_of(task.name), f"{self.config.seed} {task.suite}")
        return self._rows[task.name]

    def key(self, one: Evaluation, device: str) -> str:
        """What the answers depend on."""
        config, suite = self.config, one.task.suite
        if suite == "held_out":
            file = self.inputs.grpo / "held_out.parquet"
            items: Any = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None
        else:
            items = self.benchmarks["suites"].get(suite)
        return cache.key(
            model=one.model.identity(), chat=one.model.chat, name=one.model.name, task=one.task.name, items=items,
            sampling=asdict(one.sampling), shots=config.shots.get(one.task.name), limit=config.limit_of(one.task.name), seed=config.seed,
            max_new_tokens=min(config.max_new_tokens, one.task.max_new_tokens), max_context=config.max_context, engine=self.engine,
            device=device,
        )  # fmt: skip


def subsample(rows: list[Row], limit: int, seed: str) -> list[Row]:
    """`limit` rows drawn without replacement, as many of each group as can be, in their old order; all of them for limit 0."""
    if not limit or limit >= len(rows):
        return rows
    rng = random.Random(seed)
    groups: dict[str, list[int]] = {}
    for i in rng.sample(range(len(rows)), len(rows)):
        groups.setdefault(rows[i]["group"], []).append(i)
    ranked = sorted((place, i) for places in groups.values() for place, i in enumerate(places))
    last = ranked[limit - 1][0]  # groups that give one more than others are drawn, too
    tied = rng.sample([i for place, i in ranked if place == last], limit - sum(place < last for place, _ in ranked))
    return [rows[i] for i in sorted([i for place, i in ranked if place < last] + tied)]


def by_item(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Item → its answers."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["item"], []).append(row)
    return found


def scores(rows: Iterable[Row]) -> dict[str, float]:
    """Item → share of right answers."""
    return {item: sum(row["reason"] == "correct" for row in answers) / len(answers) for item, answers in by_item(rows).items()}


def answer_of(row: Row) -> str | None:
    """What two answers must share to be one vote: their value, or their text."""
    if row["extracted"] is None:
        return None
    text = normalise(without_unit(row["extracted"]))
    value = as_number(text)
    return text if value is None else str(value)


def summarise(rows: list[Row]) -> dict[str, Any]:
    """Score over items (micro), its standard error and interval, mean over groups (macro), shots, reasons; of samples maj@K, pass@K."""
    answers = by_item(rows)
    score_of = scores(rows)
    score, stderr = metrics.mean_and_stderr(score_of.values())
    groups: dict[str, list[float]] = {}
    for item, answer in answers.items():
        groups.setdefault(answer[0]["group"], []).append(score_of[item])
    means = {group: sum(values) / len(values) for group, values in groups.items()}
    result = {
        "score": score, "stderr": stderr, "interval": metrics.wilson(score, len(answers)), "n": len(answers),
        "macro": sum(means.values()) / len(means), "groups": means if len(means) > 1 else {},
        "shots": {str(shots): count for shots, count in sorted(Counter(row["num_shots"] for row in rows).items())},
        "reasons": dict(sorted(Counter(row["reason"] for row in rows).items())),
    }  # fmt: skip
    if rows[0]["suite"] == "mmlu":
        result |= of_mmlu(groups, result["interval"])
    num_samples = len(rows) // len(answers)
    if num_samples > 1:
        result["num_samples"] = num_samples
        result |= of_samples([[(answer_of(row), row["reason"] == "correct") for row in found] for found in answers.values()], num_samples)
    return result


def of_mmlu(groups: dict[str, list[float]], interval: tuple[float, float]) -> dict[str, Any]:
    """Categories (means over their items), and whether the score is chance."""
    categories: dict[str, list[float]] = {}
    for subject, values in groups.items():
        categories.setdefault(mmlu_category(subject), []).extend(values)
    means = {name: sum(values) / len(values) for name, values in sorted(categories.items())}
    note = {"note": "at chance: 25 % lies in the 95 % interval"} if interval[0] <= mmlu.CHANCE <= interval[1] else {}
    return {"categories": means, "chance": mmlu.CHANCE, **note}


def of_samples(answers: list[list[tuple[str | None, bool]]], n: int) -> dict[str, Any]:
    """K → (share, standard error) of right majorities, and of items with a right one among K samples."""
    split = [([text for text, _ in found], [right for _, right in found]) for found in answers]
    ks = metrics.powers_to(n)
    return {
        "maj": {str(k): metrics.mean_and_stderr(metrics.majority_at(k, texts, right) for texts, right in split) for k in ks},
        "pass": {str(k): metrics.mean_and_stderr(metrics.pass_at(k, n, sum(right)) for _, right in split) for k in ks},
    }


def differences(found: list[Model], scored: Mapping[tuple[str, str], dict[str, float]]) -> Iterator[dict[str, Any]]:
    """The models' scores on the same items, pair by pair.

    Args:
        scored: (model, evaluation) → scores of its items.
    """
    for before, after in models.comparisons(found):
        for model, name in scored:
            if model == after and (before, name) in scored:
                old, new = scored[before, name], scored[after, name]
                yield {"task": name, "before": before, "after": after, **metrics.paired([old[item] for item in new], list(new.values()))}


if __name__ == "__main__":
    stage.main(run)
