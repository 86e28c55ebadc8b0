"""Stage labels: which steps of sampled solutions can still lead to the right answer (Math-Shepherd, arXiv 2312.08935).

The SFT model solves each question several times. From every step on, each solution is completed several times again by the same
model: the step's hard label is whether any completion is right, its soft label the share of them. The last step's label is the
answer's own. Equal beginnings of one question are completed once.

    data/00000.parquet   a row for each solution: question, answer, prompt_ids, ids, completion, reason, steps, ends, hard, soft, exact,
                         held_out

`exact` is what the exact step checker says (steps.py), which costs nothing but knows no more than arithmetic.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mathpipe.eval.grader import grade
from mathpipe.grpo import groups
from mathpipe.grpo.questions import Question, collect
from mathpipe.grpo.reward_config import LabelsConfig, LabelsInputs
from mathpipe.grpo.reward_model import ANSWER_SCORES, so_far
from mathpipe.grpo.rollout import SEED_STRIDE
from mathpipe.grpo.sampler import Request, Sampler, make_sampler
from mathpipe.grpo.steps import check_steps, split_steps, step_ends
from mathpipe.pipeline import artifact, log, stage
from mathpipe.pretrain import model, optim
from mathpipe.pretrain import tokenizer as bpe

Row = dict[str, Any]
NUMBERS = pa.list_(pa.float64())
SCHEMA = pa.schema(
    {
        "question": pa.string(), "answer": pa.string(), "prompt_ids": pa.list_(pa.int64()), "ids": pa.list_(pa.int64()),
        "completion": pa.string(), "reason": pa.string(), "steps": pa.list_(pa.string()), "ends": pa.list_(pa.int64()), "hard": NUMBERS,
        "soft": NUMBERS, "exact": NUMBERS, "held_out": pa.bool_(),
    }
)  # fmt: skip


class Labeller:
    """Solves questions and labels the steps."""

    def __init__(self, config: LabelsConfig, sampler: Sampler, tokenizer: Any) -> None:
        self.config, self.sampler, self.tokenizer = config, sampler, tokenizer

    def label(self, questions: Sequence[Question], seeds: Sequence[int], held_out: Sequence[bool]) -> list[Row]:
        """A row for each solution."""
        sampled = groups.sample_groups(self.config.sampling(), self.sampler, self.tokenizer, [one.question for one in questions], seeds)
        rows = []
        for question, group, is_held_out in zip(questions, sampled, held_out, strict=True):
            for one, text in zip(group.responses, group.texts, strict=True):
                rows.append({
                    "question": question.question, "answer": question.answer, "prompt_ids": one.prompt, "ids": one.ids, "completion": text,
                    "reason": grade(text, question.answer).reason, "steps": split_steps(text), "ends": step_ends(self.tokenizer, one.ids),
                    "exact": check_steps(text), "held_out": is_held_out,
                })  # fmt: skip
        shares = self._shares(rows)
        for row in rows:
            own = ANSWER_SCORES.get(row["reason"], 0.0)
            row["soft"] = [*(shares[row["answer"], one] for one in beginnings(row)), own]
            row["hard"] = [float(value > 0) if value == value else value for value in row["soft"]]
        return rows

    def _shares(self, rows: Sequence[Row]) -> dict[tuple[str, tuple[int, ...]], float]:
        """(answer, prompt and steps so far) → share of right completions; NaN where the grader ran out of time for all of them."""
        wanted: dict[tuple[str, tuple[int, ...]], int] = {}
        for row in rows:
            wanted |= {(row["answer"], one): len(row["prompt_ids"]) for one in beginnings(row)}
        config = self.config
        seeds = [random.Random(f"{config.seed}-{beginning}").getrandbits(62) for _, beginning in wanted]
        requests = [
            Request(beginning, config.rollouts, config.temperature, 1.0, seed) for (_, beginning), seed in zip(wanted, seeds, strict=True)
        ]
        sampled = self.sampler.sample(requests, config.max_new_tokens, with_logp=False) if requests else []
        shares = {}
        for ((answer, beginning), start), responses in zip(wanted.items(), sampled, strict=True):
            texts = [self.tokenizer.decode([*beginning[start:], *one.ids], skip_special_tokens=True) for one in responses]
            shares[answer, beginning] = _mean(ANSWER_SCORES.get(grade(text, answer).reason, 0.0) for text in texts)
        return shares


def beginnings(row: Row) -> list[tuple[int, ...]]:
    """Prompt and solution up to the end of each step but the last."""
    return [(*row["prompt_ids"], *row["ids"][: end + 1]) for end in row["ends"][:-1]]


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else math.nan


def agreement(rows: Iterable[Row]) -> dict[str, float]:
    """How the labels of steps before the last compare with the exact step checker's view of the step and all before it.

    Returns:
        num_steps: steps that both know; hard, soft: share of them on which they agree (soft: on which side of one half);
        hard_of_exact: mean hard label of steps that the checker calls right, hard_of_inexact: of those it calls wrong.
    """
    pairs = [
        (exact, hard, soft)
        for row in rows
        for exact, hard, soft in zip(so_far(row["exact"][:-1]), row["hard"][:-1], row["soft"][:-1], strict=True)
        if not (math.isnan(exact) or math.isnan(hard))
    ]
    found = {"num_steps": len(pairs), "hard": _mean(e == h for e, h, _ in pairs), "soft": _mean(e == (s >= 0.5) for e, _, s in pairs)}
    found |= {"hard_of_exact": _mean(h for e, h, _ in pairs if e), "hard_of_inexact": _mean(h for e, h, _ in pairs if not e)}
    return {name: value for name, value in found.items() if not math.isnan(value)}


def run(config: LabelsConfig, inputs: LabelsInputs, out: Path) -> dict[str, Any]:
    """Sample, complete and label; facts: counts, share of right answers and steps, agreement with the exact checker."""
    family = artifact.read_manifest(inputs.sft)
    optim.start_processes(config.runtime)
    start, sampling = inputs.sft / model.MODEL, config.sampling()
    tokenizer = bpe.load(start)
    bounds = (family["max_number"], family["max_result"])
    found = collect(sampling, bounds, inputs.examples, inputs.clean, partial(groups.fits, sampling, tokenizer))
    questions = [*(found.at(n) for n in range(config.num_problems)), *found.held_out]
    starts = list(range(0, len(questions), config.questions_per_shard))
    files = [out / "data" / f"{number:05d}.parquet" for number in range(len(starts))]
    mine = [n for n in range(len(files))[optim.rank() :: optim.world_size()] if not files[n].exists()]
    if mine:
        longest = replace(sampling, max_prompt_tokens=config.max_prompt_tokens + config.max_new_tokens)
        sampler = make_sampler(longest, start, model.load(start), tokenizer)
        labeller = Labeller(config, sampler, tokenizer)
        with log.Progress(out, len(mine), "files", "labels") as progress:
            for n in mine:
                numbers = range(starts[n], min(starts[n] + config.questions_per_shard, len(questions)))
                rows = labeller.label([questions[i] for i in numbers], [sampling.seed * SEED_STRIDE + i for i in numbers],
                                      [i >= config.num_problems for i in numbers])  # fmt: skip
                artifact.write_parquet(files[n], pa.Table.from_pylist(rows, schema=SCHEMA))
                progress.advance(1)
        sampler.close()
    if optim.rank() != 0:
        return {}
    while not all(file.exists() for file in files):  # a collective operation would give up waiting for the slowest process
        time.sleep(0.2)
    return facts(config, out)


def facts(config: LabelsConfig, out: Path) -> dict[str, Any]:
    """What the manifest says."""
    rows = [row for file in artifact.parquet_files(out) for row in pq.read_table(file).to_pylist()]
    completed = {one for row in rows for one in beginnings(row)}
    steps = [(hard, soft) for row in rows for hard, soft in zip(row["hard"], row["soft"], strict=True) if hard == hard]
    return {
        "num_questions": len({row["question"] for row in rows}), "num_solutions": len(rows), "num_steps": len(steps),
        "num_rollouts": len(completed) * config.rollouts, "right_answers": _mean(row["reason"] == "correct" for row in rows),
        "hard": _mean(hard for hard, _ in steps), "soft": _mean(soft for _, soft in steps), "agreement": agreement(rows),
        "reasons": dict(sorted(Counter(row["reason"] for row in rows).items())),
    }  # fmt: skip


if __name__ == "__main__":
    stage.main(run)
