"""Stage reward_model: a language model learns to tell right steps, or right answers, from the stage labels (section 4.1.2).

    model/                 AutoModelForTokenClassification with one label
    data/examples.parquet  what it was trained on, for replay between iterations of grpo (algorithm 1)

The labels of a process model are those of Math-Shepherd at the end of each step; the last step's is the answer's, which is all an
outcome model learns. Measured on questions that were held out; `best_of` is the share of them answered rightly by the sample with the
highest score of its last token. Not stated in the paper: passes, batch, loss (binary cross-entropy here) and kind of model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mathpipe.grpo import scorer
from mathpipe.grpo.packed import micro_batches
from mathpipe.grpo.reward_config import RewardModelConfig, RewardModelInputs
from mathpipe.grpo.reward_model import COLUMNS, EXAMPLES, Labelled, LabelLoss, collate, label, so_far
from mathpipe.pipeline import artifact, log, stage
from mathpipe.pretrain import loop, model, optim
from mathpipe.pretrain import tokenizer as bpe

Row = dict[str, Any]
NUM_BINS = 10
EVAL_TOKENS = 16_384
"""Tokens of one forward pass of a measurement."""


def examples(rows: Iterable[Row], kind: str, labels: str) -> list[Labelled]:
    """Rows of the stage labels as training examples, without those that have no label."""
    found = (label(kind, row["prompt_ids"], row["ids"], row[labels], row["ends"]) for row in rows)
    return [one for one in found if one is not None]


class Passes:
    """An endless sequence of passes: solutions shuffled, whatever their question.

    With the solutions of a question side by side a batch would be a few questions of labels that are alike: what it then learns
    first is which questions are hard, and not which solution of one is right.
    """

    def __init__(self, outputs: Sequence[Labelled], seed: int) -> None:
        self.outputs, self.seed = outputs, seed

    def at(self, start: int, end: int) -> list[Labelled]:
        """The outputs at some places of the sequence."""
        places, size = np.arange(start, end), len(self.outputs)
        numbers = np.empty_like(places)
        for turn in np.unique(places // size):
            here = places // size == turn
            numbers[here] = np.random.default_rng([self.seed, int(turn)]).permutation(size)[places[here] % size]
        return [self.outputs[n] for n in numbers]


def step_batch(config: RewardModelConfig, passes: Passes, step: int, size: int) -> loop.Batch:
    """This process's outputs of an optimizer step, in micro-batches of `size`."""
    drawn = passes.at(step * config.batch_outputs, (step + 1) * config.batch_outputs)
    share = len(drawn) // optim.world_size()
    mine = drawn[optim.rank() * share : (optim.rank() + 1) * share]
    batches = [collate(mine[start : start + size]) for start in range(0, len(mine), size)]
    counted = sum(len(one.places) for one in drawn)
    num_tokens = int(optim.total(sum(len(one.packed.ids_L) for one in batches)))
    parts: list[Any] = [(one,) for one in batches]
    return loop.Batch(parts, [np.zeros(len(one.packed.lengths_N), np.int64) for one in batches], np.array([counted]), num_tokens)


class HeldOut:
    """Solutions of held-out questions; every process scores its share."""

    def __init__(self, rows: Sequence[Row], kind: str, engine: Any) -> None:
        self.rows, self.kind, self.engine = rows, kind, engine

    def scores(self) -> list[list[float]]:
        """Scores at the end of each solution's steps, or at its last token alone, the same on every process."""
        ends = [row["ends"] if self.kind == "process" else row["ends"][-1:] for row in self.rows]
        starts = np.cumsum([0, *map(len, ends)])
        found = np.zeros(int(starts[-1]))
        mine = list(range(optim.rank(), len(self.rows), optim.world_size()))
        outputs = [Labelled(self.rows[n]["prompt_ids"], self.rows[n]["ids"], ends[n], (0.0,) * len(ends[n])) for n in mine]
        for part in micro_batches(outputs, EVAL_TOKENS):
            with torch.no_grad():
                values = torch.sigmoid(self.engine(collate([outputs[i] for i in part]).to(self.engine.device), values=True)).tolist()
            places = [place for i in part for place in range(starts[mine[i]], starts[mine[i] + 1])]
            found[places] = values
        found = optim.total_array(found)
        return [found[start:end].tolist() for start, end in itertools.pairwise(starts)]

    def measure(self) -> dict[str, float]:
        """Answers: accuracy, auc over all and inside questions, calibration error; best of a group (by chance: `answer/right`).
        Steps before the last: against their labels and the exact checker.
        """
        scores = self.scores()
        answers = [(one[-1], row["hard"][-1]) for one, row in zip(scores, self.rows, strict=True)]
        found = {f"answer/{name}": value for name, value in quality(answers).items()}
        by_question: dict[str, list[tuple[float, float]]] = {}
        for row, pair in zip(self.rows, answers, strict=True):
            by_question.setdefault(row["question"], []).append(pair)
        found["best_of"] = float(np.mean([best_of(pairs) for pairs in by_question.values()]))
        found |= in_question(by_question.values())
        if self.kind == "process":
            for name in ("hard", "exact"):
                labels = [(so_far(row[name][:-1]) if name == "exact" else row[name][:-1]) for row in self.rows]
                pairs = [pair for one, own in zip(scores, labels, strict=True) for pair in zip(one[:-1], own, strict=True)]
                found |= {f"step_{name}/{key}": value for key, value in quality(pairs).items()}
        return found


def best_of(pairs: Sequence[tuple[float, float]]) -> float:
    """Share of right outputs (label 1) among those with the highest score.

    >>> best_of([(0.5, 1.0), (0.5, 0.0), (0.1, 1.0)])
    0.5
    """
    highest = max(score for score, _ in pairs)
    return float(np.mean([right == 1.0 for score, right in pairs if score == highest]))


def in_question(groups: Iterable[Sequence[tuple[float, float]]]) -> dict[str, float]:
    """Share of the pairs of a right and a wrong answer to the same question that their scores put in order; a tie is one half.

    It is what a group's normalised rewards can teach: a model that only tells easy questions from hard ones has a high `auc` and 0.5 here.

    >>> in_question([[(0.9, 1.0), (0.8, 0.0)], [(0.3, 1.0), (0.3, 0.0), (0.1, 0.0)], [(0.2, 1.0)]])
    {'answer/auc_in_question': 0.833333}
    """
    pairs = [(a > b) + (a == b) / 2 for group in groups for a, right in group for b, other in group if right == 1 and other == 0]
    return {"answer/auc_in_question": round(float(np.mean(pairs)), 6)} if pairs else {}


def quality(pairs: Iterable[tuple[float, float]]) -> dict[str, float]:
    """Of (score, label 0, 1 or NaN): share of labels 1, accuracy at one half, area under the ROC curve, expected calibration error.

    >>> quality([(0.9, 1.0), (0.8, 1.0), (0.7, 0.0), (0.2, 0.0)])
    {'right': 0.5, 'accuracy': 0.75, 'calibration_error': 0.3, 'auc': 1.0}
    """
    known = np.array([pair for pair in pairs if not math.isnan(pair[1])]).reshape(-1, 2)
    if not len(known):
        return {}
    score, right = known.T
    bins = np.minimum((score * NUM_BINS).astype(int), NUM_BINS - 1)
    gaps = [abs(np.sum(score[bins == b] - right[bins == b])) for b in range(NUM_BINS)]
    found = {"right": right.mean(), "accuracy": np.mean((score > 0.5) == (right == 1)), "calibration_error": sum(gaps) / len(known)}
    positive, negative = np.sort(score[right == 1]), np.sort(score[right == 0])
    if len(positive) and len(negative):
        below, up_to = np.searchsorted(negative, positive, "left"), np.searchsorted(negative, positive, "right")
        found["auc"] = (below + up_to).sum() / (2 * len(positive) * len(negative))
    return {name: round(float(value), 6) for name, value in found.items()}


def run(config: RewardModelConfig, inputs: RewardModelInputs, out: Path) -> dict[str, Any]:
    """Train; facts: kind, counts, held-out figures before and after."""
    optim.start_processes(config.runtime)
    size, micro_steps = optim.micro_batches(
        config.batch_outputs, config.micro_batch_outputs, f"reward_model.batch_outputs {config.batch_outputs}"
    )
    start = (inputs.pretrain if config.start == "pretrain" else inputs.sft) / model.MODEL
    rows = [row for file in artifact.parquet_files(inputs.labels) for row in pq.read_table(file).to_pylist()]
    outputs = examples((row for row in rows if not row["held_out"]), config.kind, config.labels)
    if not outputs:
        raise ValueError(f"{inputs.labels}: no solution with a label; raise labels.num_problems or labels.solutions")
    passes = Passes(outputs, config.seed)
    network = scorer.from_language_model(start, torch.bfloat16 if config.bf16 else torch.float32).network
    if config.activation_checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    module = LabelLoss(scorer.Scorer(network)).to(optim.device(config.runtime))
    optimizer = optim.adamw(module, config.lr, (config.beta1, config.beta2), config.weight_decay)
    engine = optim.engine(module, optimizer, micro_steps, config.max_grad_norm, config.zero_stage, config.bf16)
    held_out = HeldOut([row for row in rows if row["held_out"]], config.kind, engine)
    job = loop.Job(
        phase="reward model", num_steps=max(1, round(config.epochs * len(outputs) / config.batch_outputs)), peak_lr=config.lr,
        context=max(len(one.prompt) + len(one.ids) for one in outputs), batch=lambda step: step_batch(config, passes, step, size),
        eval_every=config.eval_every, evaluate=held_out.measure,
    )  # fmt: skip
    facts = loop.train(engine, network, bpe.load(start), job, config, out)
    if optim.rank() != 0:
        return {}
    table = {name: [list(getattr(one, name)) for one in outputs] for name in COLUMNS}
    artifact.write_parquet(out / EXAMPLES, pa.table(table))
    measured = [row for row in artifact.read_metrics(out) if "best_of" in row]
    log.logger().info("held out: %s", measured[-1])
    return {
        "kind": config.kind, "labels": config.labels, "num_outputs": len(outputs), "num_labels": sum(len(one.places) for one in outputs),
        **facts, "held_out": {"num_outputs": len(held_out.rows), "before": measured[0], "after": measured[-1]},
    }  # fmt: skip


if __name__ == "__main__":
    stage.main(run)
