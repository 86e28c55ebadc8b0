"""Stage evaluate: MMLU (5-shot), BBH (3-shot chain of thought) and the held-out problems, for the base, SFT and GRPO models.

    items/<model>-<suite>.parquet   one row an item: prompt, completion, what was extracted, target, reason
    metrics.jsonl                   one line a model and suite

Every finished pair of model and suite is kept; a killed run goes on with the next one. Prompts longer than the context drop
worked examples from the front, and the manifest counts the examples really used.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mathpipe.eval import bbh, mmlu
from mathpipe.eval.config import EvaluateConfig, EvaluateInputs
from mathpipe.eval.generation import LoadedModel, Tokens, VllmEngine, choice_logprobs, generate_transformers, pick_engine
from mathpipe.eval.grader import Grader
from mathpipe.pipeline import artifact, log, stage


@dataclass
class Item:
    """One question to one model."""

    suite: str
    model: str
    item: str
    group: str
    """Subject or task."""
    num_shots: int
    prompt: str
    target: str
    completion: str = ""
    extracted: str | None = None
    reason: str = ""
    """correct, wrong, no_answer, parse_error or timeout."""
    logprobs: list[float] = field(default_factory=list)
    """MMLU: log-probabilities of the letters."""


SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("suite", "model", "item", "group")] + [("num_shots", pa.int64())]
    + [(name, pa.string()) for name in ("prompt", "target", "completion", "extracted", "reason")] + [("logprobs", pa.list_(pa.float64()))]
)  # fmt: skip


class Session:
    """The model under test and who generates for it; loads each model once, starts vLLM once."""

    def __init__(self, config: EvaluateConfig) -> None:
        self.config, self.engine = config, pick_engine(config.engine)
        self.device = "cuda" if config.runtime.uses_gpu() else "cpu"
        self._vllm: VllmEngine | None = None

    def load(self, path: Path) -> None:
        """Answer with the model in `path` from now on."""
        self.loaded = LoadedModel(path, self.device)
        self.context = min(self.config.max_context, self.loaded.num_positions())

    def generate(self, prompts: list[Tokens], max_new_tokens: int, stop: tuple[str, ...] = ()) -> list[str]:
        """Greedy completions."""
        if self.engine == "transformers":
            return generate_transformers(self.loaded, prompts, max_new_tokens, stop, self.config.batch_tokens)
        if self._vllm is None or not self._vllm.fits(self.loaded, self.context):
            self._vllm = VllmEngine(self.loaded, self.context)
        self._vllm.use(self.loaded)
        return self._vllm.generate(prompts, max_new_tokens, stop)

    def fit(self, prompt_of: Callable[[int], str], num_shots: int, new_tokens: int) -> tuple[int, str, Tokens]:
        """(shots, prompt, tokens) with as many worked examples as fit; without any, the end of the prompt."""
        room = self.context - new_tokens
        for shots in range(num_shots, -1, -1):
            prompt = prompt_of(shots)
            tokens = self.loaded.encode(prompt)
            if len(tokens) <= room:
                return shots, prompt, tokens
        return 0, prompt, tokens[-room:]


def run(config: EvaluateConfig, inputs: EvaluateInputs, out: Path) -> dict[str, Any]:
    """Evaluate every model on every suite; facts: `results` and the shots used."""
    torch.set_num_threads(config.runtime.num_processes * config.runtime.num_threads)  # one process with the cores of a training stage
    benchmarks = artifact.read_manifest(inputs.benchmarks)
    session = Session(config)
    pairs = [(model, suite) for model in inputs.models() for suite in config.suites]
    (out / "metrics.jsonl").unlink(missing_ok=True)  # written again from the items, those of a killed run included
    results = []
    with log.Progress(out, total=len(pairs), unit="evaluations") as progress, Grader() as grader:
        for model, suite in pairs:
            file = out / "items" / f"{model}-{suite}.parquet"
            if not file.exists():
                started = time.monotonic()
                session.load(inputs.models()[model])
                items = EVALUATE[suite](config, inputs, model, session, grader)
                artifact.write_parquet(file, pa.Table.from_pylist([asdict(item) for item in items], schema=SCHEMA))
                log.logger().info("%s on %s: %d items in %.1f s", model, suite, len(items), time.monotonic() - started)
            stand_in = suite != "held_out" and benchmarks["suites"][suite]["stand_in"]
            result = summarise(pq.read_table(file).to_pylist(), stand_in)
            artifact.append_metrics(out, **{name: result[name] for name in ("model", "suite", "score", "stderr", "n", "stand_in")})
            results.append(result)
            progress.advance(1, f"{model} {suite} {100 * result['score']:.1f} %")
    return {
        "results": results, "engine": session.engine, "benchmarks_source": benchmarks["source"],
        "num_items": sum(result["n"] for result in results),
    }  # fmt: skip


def mmlu_items(config: EvaluateConfig, inputs: EvaluateInputs, name: str, session: Session, grader: Grader) -> list[Item]:
    """MMLU test questions, a subject at a time: its worked examples are computed once."""
    rows = pq.read_table(inputs.benchmarks / "mmlu.parquet").to_pylist()
    end = "Answer:"
    choices = [session.loaded.encode(f"{end} {letter}")[len(session.loaded.encode(end)) :] for letter in mmlu.LETTERS]
    items = []
    for subject in sorted({row["subject"] for row in rows}):
        shots = [row for row in rows if row["subject"] == subject and row["split"] == "dev"]
        questions = [row for row in rows if row["subject"] == subject and row["split"] == "test"]
        fitted: dict[int, list[tuple[Item, Tokens]]] = {}
        for row in subsample(questions, config.mmlu_limit_per_subject, f"{config.seed} {subject}"):

            def prompt_of(k: int, row: dict[str, Any] = row, shots: list[dict[str, Any]] = shots, subject: str = subject) -> str:
                return mmlu.prompt(subject, shots[config.mmlu_shots - k : config.mmlu_shots], row)

            num_shots, prompt, tokens = session.fit(prompt_of, config.mmlu_shots, max(map(len, choices)))
            item = Item("mmlu", name, f"{subject}/{row['item']}", subject, num_shots, prompt, mmlu.LETTERS[row["answer"]])
            fitted.setdefault(num_shots, []).append((item, tokens))
        for pairs in fitted.values():
            scores = choice_logprobs(session.loaded.model, [tokens for _, tokens in pairs], choices, config.batch_tokens)
            for (item, _), logprobs in zip(pairs, scores, strict=True):
                item.logprobs = logprobs
                item.extracted = mmlu.LETTERS[max(range(len(logprobs)), key=logprobs.__getitem__)]
                item.reason = "correct" if item.extracted == item.target else "wrong"
                items.append(item)
    return items


def bbh_items(config: EvaluateConfig, inputs: EvaluateInputs, name: str, session: Session, grader: Grader) -> list[Item]:
    """BBH questions with greedy chains of thought."""
    rows = pq.read_table(inputs.benchmarks / "bbh.parquet").to_pylist()
    published = {row["task"]: row["prompt"] for row in pq.read_table(inputs.benchmarks / "bbh_prompts.parquet").to_pylist()}
    items, prompts = [], []
    for task in sorted(published):
        for row in subsample([row for row in rows if row["task"] == task], config.bbh_limit_per_task, f"{config.seed} {task}"):

            def prompt_of(k: int, row: dict[str, Any] = row, task: str = task) -> str:
                return bbh.prompt(published[task], k, row["input"])

            num_shots, prompt, tokens = session.fit(prompt_of, config.bbh_shots, config.bbh_max_new_tokens)
            items.append(Item("bbh", name, f"{task}/{row['item']}", task, num_shots, prompt, row["target"]))
            prompts.append(tokens)
    for item, completion in zip(items, session.generate(prompts, config.bbh_max_new_tokens, bbh.STOP), strict=True):
        item.completion, item.extracted = completion, bbh.extract(completion)
        item.reason = "no_answer" if item.extracted is None else "correct" if bbh.is_right(item.extracted, item.target) else "wrong"
    return items


def held_out_items(config: EvaluateConfig, inputs: EvaluateInputs, name: str, session: Session, grader: Grader) -> list[Item]:
    """The problems GRPO held out, answered greedily and graded as its reward does."""
    file = inputs.grpo / "held_out.parquet"
    if not file.exists():
        raise artifact.ContractError(f"{file}: missing; run stage grpo again")
    missing = {"question", "answer", "prompt"} - set(pq.read_schema(file).names)
    if missing:
        raise artifact.ContractError(f"{file}: no column {', '.join(sorted(missing))}; run stage grpo again")
    rows = pq.read_table(file).to_pylist()[: config.held_out_limit or None]
    items = [Item("held_out", name, str(number), "", 0, row["prompt"], str(row["answer"])) for number, row in enumerate(rows)]
    prompts = [session.loaded.encode(item.prompt) for item in items]
    for item, completion in zip(items, session.generate(prompts, config.held_out_max_new_tokens), strict=True):
        verdict = grader.grade(completion, item.target)
        item.completion, item.extracted, item.reason = completion, verdict.extracted, verdict.reason
    return items


EVALUATE = {"mmlu": mmlu_items, "bbh": bbh_items, "held_out": held_out_items}


def subsample(rows: list[dict[str, Any]], limit: int, seed: str) -> list[dict[str, Any]]:
    """`limit` rows drawn without replacement, in their old order; all of them for limit 0."""
    if not limit or limit >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), limit))]


def mean_and_stderr(values: Iterable[float]) -> tuple[float, float]:
    """Mean and its standard error, sample deviation (ddof 1) over √n as lm-eval's; 0 for a single value.

    >>> mean_and_stderr([1.0, 0.0, 0.0, 0.0])
    (0.25, 0.25)
    """
    values = list(values)
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def wilson(score: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of `n` items (Wilson 1927): at a score of 0, where the standard error is 0 too, it is not empty.

    >>> [round(end, 3) for end in wilson(0.0, 54)]
    [0.0, 0.066]
    """
    z2 = 1.96**2 / n
    middle, half = score + z2 / 2, math.sqrt(z2 * score * (1 - score) + z2**2 / 4)
    return max(0.0, (middle - half) / (1 + z2)), min(1.0, (middle + half) / (1 + z2))


def summarise(items: list[dict[str, Any]], stand_in: bool) -> dict[str, Any]:
    """One result: score over items (micro), its standard error and interval, the mean over groups (macro), shots used, reasons."""
    suite = items[0]["suite"]
    score, stderr = mean_and_stderr(float(item["reason"] == "correct") for item in items)
    groups: dict[str, list[float]] = {}
    for item in items:
        groups.setdefault(item["group"], []).append(float(item["reason"] == "correct"))
    result = {
        "model": items[0]["model"], "suite": suite, "score": score, "stderr": stderr, "interval": wilson(score, len(items)),
        "n": len(items), "stand_in": stand_in,
        "macro": sum(sum(values) / len(values) for values in groups.values()) / len(groups), "groups": len(groups),
        "shots": {str(shots): count for shots, count in sorted(Counter(item["num_shots"] for item in items).items())},
        "reasons": dict(sorted(Counter(item["reason"] for item in items).items())),
    }  # fmt: skip
    if suite == "mmlu":
        result["chance"] = mmlu.CHANCE
        low, high = result["interval"]
        if low <= mmlu.CHANCE <= high:
            result["note"] = "at chance: 25 % lies in the 95 % interval"
    return result


if __name__ == "__main__":
    stage.main(run)
