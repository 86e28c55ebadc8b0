"""The answers of one model to the items of one task, each with what was read from it and a reason."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from mathpipe.eval import mmlu, tir
from mathpipe.eval.config import EvaluateConfig
from mathpipe.eval.generation import Generator, LoadedModel, Tokens, choice_logprobs, open_generator
from mathpipe.eval.grader import Grader
from mathpipe.eval.programs import run_programs
from mathpipe.eval.reference import open_reference, run_reference
from mathpipe.eval.sandbox import Sandbox
from mathpipe.eval.suites import LETTERS
from mathpipe.eval.task import Row, Task


@dataclass
class Item:
    """One answer of one model to one question."""

    model: str
    task: str
    suite: str
    item: str
    group: str
    """Subject, task or grade."""
    num_shots: int
    prompt: str
    target: str
    sample: int = 0
    """Number of the answer, where the same question was asked several times."""
    completion: str = ""
    extracted: str | None = None
    reason: str = ""
    """correct, wrong, no_answer, parse_error or timeout; of a program no_program, or how it ended: program_error, program_timeout, …"""
    logprobs: list[float] = field(default_factory=list)
    """Of the letters, where one is chosen."""


SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("model", "task", "suite", "item", "group")] + [("num_shots", pa.int64()), ("prompt", pa.string())]
    + [("target", pa.string()), ("sample", pa.int64())] + [(name, pa.string()) for name in ("completion", "extracted", "reason")]
    + [("logprobs", pa.list_(pa.float64()))]
)  # fmt: skip


def table(items: Sequence[Item]) -> pa.Table:
    """Items as rows."""
    return pa.Table.from_pylist([asdict(item) for item in items], schema=SCHEMA)


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn; the default is one greedy answer."""

    num_samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0


GREEDY = Sampling()


class Session:
    """The model under test and who answers for it; a model is loaded once, an engine takes over the weights of the next one."""

    def __init__(self, config: EvaluateConfig, engine: str, grader: Grader, sandbox: Sandbox) -> None:
        self.config, self.engine, self.grader, self.sandbox = config, engine, grader, sandbox
        self.device = "cuda" if config.runtime.uses_gpu() else "cpu"
        self._generator: Generator | None = None
        self._path: Path | None = None
        self.reference: Any = None

    def load(self, path: Path) -> None:
        """Answer with the model in `path` from now on."""
        if path != self._path:
            self.loaded, self._path = LoadedModel(path, self.device), path
            self.context = min(self.config.max_context, self.loaded.num_positions())
            if self.engine == "lm-eval":
                self.reference = open_reference(self.loaded, self.context)
                return
            engine = "own" if self.engine == "lm-eval-own" else self.engine
            self._generator = open_generator(engine, self.loaded, self.context, self.config.batch_tokens, self._generator)
            if self.engine == "lm-eval-own":
                self.reference = open_reference(self.loaded, self.context, self._generator)

    @property
    def generator(self) -> Generator:
        """The engine of the model that was loaded."""
        assert self._generator is not None
        return self._generator

    def answer(self, task: Task, rows: Sequence[Row], model: str, chat: bool, sampling: Sampling = GREEDY) -> list[Item]:
        """Items in the order of rows, the samples of a row one after the other."""
        chat = chat and task.chat
        shots_wanted = min(task.num_shots, self.config.shots.get(task.name, task.num_shots))
        num_shots = 0 if chat else shots_wanted
        new_tokens = min(task.max_new_tokens, self.config.max_new_tokens, self.context // 2)
        if self.reference is not None:
            found = run_reference(task.name, rows, self.reference, shots_wanted, new_tokens)
            asked = zip(rows, found, strict=True)
            return [Item(model, task.name, task.suite, group=row["group"], target=row["target"], **answer) for row, answer in asked]
        items, prompts = [], []
        choices = self.letters() if task.kind == "choice" else []
        longest = max([new_tokens, *map(len, choices)])
        for row in rows:
            shots, prompt, tokens = self.fit(lambda k, row=row: task.prompt(row, k, chat), num_shots, longest)  # type: ignore[misc]
            items.append(Item(model, task.name, task.suite, row["item"], row["group"], shots, prompt, row["target"]))
            prompts.append(tokens)
        if task.kind == "choice":
            return self._choose(task, rows, items, prompts, choices)
        stop = () if chat else task.stop
        seeds = [seed_of(self.config.seed, task.name, row["item"]) for row in rows]
        samples = [Item(**{**asdict(item), "sample": n}) for item in items for n in range(sampling.num_samples)]
        if task.style == "tir":
            self._reason_with_tools(samples, new_tokens, sampling)
        else:
            drawn = self.generator.generate(prompts, new_tokens, stop, sampling.num_samples, sampling.temperature, sampling.top_p, seeds)
            for item, completion in zip(samples, itertools.chain.from_iterable(drawn), strict=True):
                item.completion = completion
        endings = [""] * len(samples)
        if task.style == "pot":
            for n, (completion, ending) in enumerate(run_programs([item.completion for item in samples], self.sandbox)):
                samples[n].completion, endings[n] = completion, ending
        row_of = (row for row in rows for _ in range(sampling.num_samples))
        for item, row, ending in zip(samples, row_of, endings, strict=True):
            item.extracted = None if ending else task.extract(item.completion, row)
            item.reason = ending or task.grade(item.extracted, row, self.grader)
        return samples

    def fit(self, prompt_of: Callable[[int], str], num_shots: int, new_tokens: int) -> tuple[int, str, Tokens]:
        """(shots, prompt, tokens) with as many worked examples as fit; without any, the end of the prompt."""
        room = self.context - new_tokens
        for shots in range(num_shots, -1, -1):
            prompt = prompt_of(shots)
            tokens = self.loaded.encode(prompt)
            if len(tokens) <= room:
                return shots, prompt, tokens
        return 0, prompt, tokens[-room:]

    def letters(self) -> list[Tokens]:
        """What a prompt that ends in "Answer:" is followed by."""
        end = "Answer:"
        return [self.loaded.encode(f"{end} {letter}")[len(self.loaded.encode(end)) :] for letter in LETTERS]

    def _choose(self, task: Task, rows: Sequence[Row], items: list[Item], prompts: list[Tokens], choices: list[Tokens]) -> list[Item]:
        """The likeliest letter after each prompt."""
        for item, row, logprobs in zip(items, rows, choice_logprobs(self.generator, prompts, choices), strict=True):
            item.logprobs = logprobs
            item.extracted = mmlu.likeliest(logprobs)
            item.reason = task.grade(item.extracted, row, self.grader)
        return items

    def _reason_with_tools(self, items: list[Item], new_tokens: int, sampling: Sampling) -> None:
        """Text and programs by turns, all items in step."""

        def generate(prompts: list[str], stop: tuple[str, ...]) -> list[str]:
            seen: dict[str, int] = {}
            tokens, seeds = [], []
            for prompt in prompts:  # samples of one question begin alike: how often a text was seen tells them apart
                seen[prompt] = seen.get(prompt, 0) + 1
                seeds.append(seed_of(self.config.seed, prompt, str(seen[prompt])))
                tokens.append(self.loaded.encode(prompt)[-(self.context - new_tokens) :])
            drawn = self.generator.generate(tokens, new_tokens, stop, 1, sampling.temperature, sampling.top_p, seeds)
            return [text for (text,) in drawn]

        for item, transcript in zip(items, tir.solve(generate, self.sandbox, [item.prompt for item in items]), strict=True):
            item.completion = transcript.text


def seed_of(seed: int, *names: Any) -> int:
    """A seed for an item that depends on its name and not on its place, so that a limit does not change its samples."""
    return zlib.crc32("\n".join(map(str, (seed, *names))).encode()) & 0x7FFFFFFF
