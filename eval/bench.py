"""Benchmarks of the evaluation: questions per second of our engine beside lm-evaluation-harness's transformers back end and vLLM.

Every competitor is a process of its own that answers the same questions when told, from rows to verdicts, with one thread, fp32 and the
same random model; they take turns. The harness has the batch size that is its fastest here. MMLU with five worked questions, BBH with the
three published ones and 64 new tokens (a random model hardly ever stops before). Whether the answers are the same is checked too.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from mathpipe.eval import benchmarks
from mathpipe.eval.answers import Session
from mathpipe.eval.config import BenchmarksConfig, EvaluateConfig
from mathpipe.eval.generation import LoadedModel
from mathpipe.eval.grader import Grader
from mathpipe.eval.sandbox import Sandbox
from mathpipe.eval.task import Row, Task
from mathpipe.eval.tasks import TASKS
from mathpipe.pipeline.artifact import write_json
from mathpipe.pipeline.bench import Benchmark, Racer, done, race, row, wait
from mathpipe.pipeline.bench import Row as Result
from mathpipe.pretrain import model
from mathpipe.pretrain.tokenizer import train

HERE = "mathpipe.eval.bench"
SIZES = {"1.3M": (128, 352, 4, 4), "21M": (512, 1376, 6, 8)}
"""Parameters → hidden size, intermediate size, layers, heads; the first is profile tiny's."""
VOCABULARY, CONTEXT, NEW_TOKENS, BATCH_TOKENS = 2048, 2048, 64, 16384
GROUPS = {"mmlu": 3, "bbh": 3}
"""Subjects and tasks that are asked,"""
PER_GROUP = {"mmlu": 24, "bbh": 16}
"""and how many questions of each."""
GOALS = {"mmlu": 3.0, "bbh": 2.0}
STEPS = 4
STOP = ("</s>", "Q", "\n\n")
"""The harness's stop strings of BBH, so that all have as much to do."""
BATCH_SIZES = (4, 1, 4, 16)
"""Of the harness; the first is tried twice, to warm up."""
TOLERANCE = 1e-3
"""Of log-probabilities."""
SAME_FRAC = 0.95
"""Completions that must be the same to the letter; floating point may tip a tie between two tokens."""


def start(folder: Path, size: str) -> None:
    """Benchmarks, and a random model with a tokenizer of their words."""
    benchmarks.run(BenchmarksConfig(), benchmarks.BenchmarksInputs(), folder)
    texts = [TASKS[suite].prompt(asked, TASKS[suite].num_shots, False) for suite in GOALS for asked in TASKS[suite].rows(folder)[::40]]
    tokenizer = train(texts, VOCABULARY)
    hidden, intermediate, layers, heads = SIZES[size]
    config = model.PretrainConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_layers=layers, num_heads=heads, max_position=CONTEXT, initializer_range=0.08
    )
    model.save(model.build(config, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id), tokenizer, folder)


def questions(suite: str, folder: Path, loaded: LoadedModel) -> list[Row]:
    """The first questions whose prompts fit, of the first groups that have enough of them."""
    groups: dict[str, list[Row]] = {}
    for asked in TASKS[suite].rows(folder):
        few = groups.setdefault(asked["group"], [])
        if len(few) < PER_GROUP[suite]:
            tokens = loaded.encode(TASKS[suite].prompt(asked, TASKS[suite].num_shots, False))
            few += [asked] if len(tokens) + NEW_TOKENS <= CONTEXT else []
        elif sum(len(few) == PER_GROUP[suite] for few in groups.values()) == GROUPS[suite]:
            break
    return [asked for few in groups.values() if len(few) == PER_GROUP[suite] for asked in few]


def compete(engine: str, suite: str, folder: Path) -> None:
    """Answer the questions whenever told; the answers are left in a file."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    task = dataclasses.replace(TASKS[suite], stop=STOP)
    config = EvaluateConfig(tasks=(suite,), engine=engine, max_context=CONTEXT, max_new_tokens=NEW_TOKENS, batch_tokens=BATCH_TOKENS)
    with Grader() as grader, Sandbox() as sandbox:
        session = Session(config, engine, grader, sandbox)
        session.load(folder / model.MODEL)
        asked = questions(suite, folder, session.loaded)
        if engine == "lm-eval":
            session.reference.batch_size_per_gpu = min(BATCH_SIZES, key=lambda size: seconds(session, task, asked, size))
        while True:
            wait()
            answers = session.answer(task, asked, "", False)
            write_json(folder / f"{engine}.json", [one.logprobs or one.completion for one in answers])
            done(len(asked))


def seconds(session: Session, task: Task, asked: list[Row], batch_size: int) -> float:
    """What the harness takes for a quarter of the questions in such batches."""
    session.reference.batch_size_per_gpu = batch_size
    began = time.perf_counter()
    session.answer(task, asked[::4], "", False)
    return time.perf_counter() - began


def same(suite: str, ours: list[Any], theirs: list[Any]) -> bool:
    """Whether two engines gave the same answers."""
    if suite == "mmlu":
        return bool(torch.allclose(torch.tensor(ours), torch.tensor(theirs), atol=TOLERANCE, rtol=0)) and all(
            mine.index(max(mine)) == other.index(max(other)) for mine, other in zip(ours, theirs, strict=True)
        )
    return sum(mine == other for mine, other in zip(ours, theirs, strict=True)) >= SAME_FRAC * len(ours)


def questions_per_s(suite: str) -> list[Result]:
    """Questions per second of ours, beside the harness (goal) and vLLM where it is installed (the engine `auto` takes is the faster)."""
    engines = ["own", "lm-eval", *(["vllm"] if importlib.util.find_spec("vllm") else [])]
    found = []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            start(folder, size)
            rates, ratios = race([Racer(HERE, engine, suite, name) for engine in engines], STEPS)
            answers = [json.loads((folder / f"{engine}.json").read_text(encoding="utf-8")) for engine in engines]
        for number, engine in enumerate(engines[1:], 1):
            goal = GOALS[suite] if engine == "lm-eval" else 1.0
            agreed = same(suite, answers[0], answers[number])
            met = ratios[number] >= goal and agreed
            text = f"at least {goal:g}x, same answers{'' if agreed else ': THEY DIFFER'}"
            title = f"eval.{suite}_questions_per_s.{size}.{engine}"
            found.append(row(title, rates[0], "questions/s", text, met, rates[number], engine, ratios[number]))
    return found


def mmlu_questions_per_s() -> list[Result]:
    """Log-probabilities of four letters."""
    return questions_per_s("mmlu")


def bbh_questions_per_s() -> list[Result]:
    """Greedy chains of thought."""
    return questions_per_s("bbh")


BENCHMARKS: dict[str, Benchmark] = {"eval.mmlu_questions_per_s": mmlu_questions_per_s, "eval.bbh_questions_per_s": bbh_questions_per_s}

if __name__ == "__main__":
    compete(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
