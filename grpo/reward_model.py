"""The reward model at work: scores of outputs and steps, its loss, and its training that goes on between iterations (algorithm 1).

A score is the sigmoid of the value after a token: P(the step is right) at the end of a step, P(the answer is right) at the last token
of an output, where a process model has learnt the same label as an outcome model. Probabilities, not logits: they lie between 0 and 1
as the verifier's rewards do, so weights of rewards mean what they say, and one very sure value cannot carry a whole group.

Shapes: N outputs, M response tokens of all outputs, E labels of all outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mathpipe.grpo import scorer
from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.packed import Packed, Tokens, micro_batches, pack
from mathpipe.grpo.scorer import Scorer
from mathpipe.grpo.steps import score_steps, step_ends
from mathpipe.pipeline import artifact, log
from mathpipe.pretrain import model, optim
from mathpipe.pretrain.tokenizer import encode_prompt
from mathpipe.sft.prompts import render

OUTPUTS_PER_STEP = 128
"""Outputs of an optimizer step between iterations, over all processes (not stated in the paper)."""
COLUMNS = ("prompt", "ids", "places", "labels")
EXAMPLES = "data/examples.parquet"
"""In the artifact of the stage reward_model."""
ANSWER_SCORES = {"correct": 1.0, "timeout": math.nan}
"""Reason of the grader → reward of the final answer; 0 for all others."""


@dataclass(frozen=True)
class Labelled:
    """An output with labels (probabilities) at some of its tokens."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    places: tuple[int, ...]
    labels: tuple[float, ...]


@dataclass(frozen=True)
class LabelBatch:
    """Outputs packed, with E labels."""

    packed: Packed
    place_E: Tensor
    """Which of the M tokens has the label."""
    label_E: Tensor
    output_E: Tensor

    def to(self, device: Any, non_blocking: bool = False) -> LabelBatch:
        """The same on another device."""
        tensors = (value.to(device, non_blocking=non_blocking) for value in (self.place_E, self.label_E, self.output_E))
        return LabelBatch(self.packed.to(device), *tensors)


def collate(outputs: Sequence[Labelled]) -> LabelBatch:
    """Outputs as one batch; none: a token without label, for a process that has nothing to do while others compute."""
    outputs = outputs or [Labelled((0,), (0,), (), ())]
    packed = pack([one.prompt for one in outputs], [one.ids for one in outputs])
    starts = np.cumsum([0, *(len(one.ids) for one in outputs)])
    places = [int(start) + place for start, one in zip(starts, outputs, strict=False) for place in one.places]
    numbers = [n for n, one in enumerate(outputs) for _ in one.places]
    labels = [label for one in outputs for label in one.labels]
    place_E, output_E = (torch.tensor(values, dtype=torch.long) for values in (places, numbers))
    return LabelBatch(packed, place_E, torch.tensor(labels, dtype=torch.float32), output_E)


class LabelLoss(nn.Module):
    """A scorer as DeepSpeed trains it: binary cross-entropy at the labelled tokens, hard or soft labels alike."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, batch: LabelBatch, values: bool = False) -> Tensor:
        """Sum of the losses of each output, `[N]`; with `values` the value at each labelled token, `[E]`."""
        value_E = self.scorer(batch.packed)[batch.place_E]
        if values:
            return value_E
        loss_E = F.binary_cross_entropy_with_logits(value_E, batch.label_E, reduction="none")
        return torch.zeros(len(batch.packed.lengths_N), device=loss_E.device).index_add(0, batch.output_E, loss_E)


def label(kind: str, prompt: Sequence[int], ids: Sequence[int], steps: Sequence[float], ends: Sequence[int]) -> Labelled | None:
    """An output with the labels of its steps (`process`) or of the last one alone, that is of its answer (`outcome`).

    NaN is no label; None where none is left.
    """
    found = [(place, value) for place, value in zip(ends, steps, strict=True) if value == value]
    if kind == "outcome":
        found = [pair for pair in found if pair[0] == ends[-1]]
    return Labelled(tuple(prompt), tuple(ids), *zip(*found, strict=True)) if found else None


def read_completions(files: Iterable[Path], kind: str, tokenizer: Any) -> list[Labelled]:
    """Completions of grpo after the plain prompt, labelled by the grader and, for a process model, the exact step checker.

    As in roll-outs, where no way leads back from an error, a step is right when all before it are.
    """
    found = []
    for file in files:
        for row in pq.read_table(file, columns=["question", "ids", "completion", "reason"]).to_pylist():
            answer = ANSWER_SCORES.get(row["reason"], 0.0)
            steps = [*so_far(score_steps(row["completion"], answer)[:-1]), answer]
            one = label(kind, encode_prompt(tokenizer, render(row["question"])), row["ids"], steps, step_ends(tokenizer, row["ids"]))
            found += [one] if one else []
    return found


def so_far(steps: Iterable[float]) -> list[float]:
    """Whether each step and all before it are right; NaN, nothing to check, stays and does not count.

    >>> so_far([1.0, math.nan, 0.0, 1.0])
    [1.0, nan, 0.0, 0.0]
    """
    worst, found = 1.0, []
    for step in steps:
        worst = min(worst, step) if step == step else worst
        found.append(step if step != step else worst)
    return found


def read_examples(file: Path) -> list[Labelled]:
    """What the stage reward_model trained on."""
    return [Labelled(*(tuple(row[name]) for name in COLUMNS)) for row in pq.read_table(file, columns=list(COLUMNS)).to_pylist()]


class RewardModel:
    """A trained reward model of a GRPO stage; with several iterations it is an engine that goes on training."""

    def __init__(self, config: GrpoConfig, path: Path, tokenizer: Any, device: torch.device) -> None:
        """`path` is the artifact of the stage reward_model."""
        self.config, self.tokenizer, self.device = config, tokenizer, device
        self.kind: str = artifact.read_manifest(path)["kind"]
        trains = config.iterations > 1
        module = LabelLoss(scorer.load(path / model.MODEL, torch.bfloat16 if config.bf16 else torch.float32)).to(device)
        self.engine: Any = _engine(module, config) if trains else None
        self.module: Any = self.engine if trains else module.requires_grad_(False)
        self.trained_on = read_examples(path / EXAMPLES) if trains else []

    @torch.no_grad()
    def score(self, prompts: Tokens, responses: Tokens, places: Tokens) -> list[list[float]]:
        """The scores after some tokens of each output. Every process calls it equally often."""
        asked = zip(prompts, responses, places, strict=True)
        outputs = [Labelled(tuple(prompt), tuple(ids), tuple(at), (0.0,) * len(at)) for prompt, ids, at in asked]
        found: list[list[float]] = [[]] * len(outputs)
        self.module.eval()
        parts = micro_batches(outputs, self.config.micro_batch_tokens)
        for part in parts:
            batch = collate([outputs[n] for n in part]).to(self.device)
            scores = iter(torch.sigmoid(self.module(batch, values=True)).tolist())
            for n in part:
                found[n] = [next(scores) for _ in outputs[n].places]
        return found

    def learn(self, outputs: Sequence[Labelled], history: Sequence[Labelled], iteration: int) -> dict[str, float]:
        """Train on after an iteration (0-based); see `continue_training`."""
        return continue_training(self.engine, outputs, history, self.config, iteration)


def _engine(module: LabelLoss, config: GrpoConfig) -> Any:
    optimizer = optim.adamw(module, config.reward_lr, (config.beta1, config.beta2), config.weight_decay)
    return optim.engine(module, optimizer, 1, config.max_grad_norm, config.zero_stage, config.bf16)


def continue_training(
    engine: Any, outputs: Sequence[Labelled], history: Sequence[Labelled], config: GrpoConfig, iteration: int
) -> dict[str, float]:
    """Optimizer steps of the reward model after an iteration: `reward_steps` at `reward_lr`, `replay_frac` of each step from history.

    All processes give the same outputs; what is drawn follows from the config's seed, the iteration and the step.

    Returns:
        mean loss of the first and the last step, before the step.
    """
    losses = []
    engine.train()
    optim.set_lr(engine.basic_optimizer, config.reward_lr)
    for step in range(config.reward_steps):
        drawn = draw(outputs, history, config.replay_frac, np.random.default_rng([config.seed, iteration, step]))
        mine = drawn[optim.rank() :: optim.world_size()]
        count, total = sum(len(one.places) for one in drawn), 0.0
        parts = micro_batches(mine, config.micro_batch_tokens)
        for number, part in enumerate(parts):
            engine.set_gradient_accumulation_boundary(number == len(parts) - 1)
            loss = engine(collate([mine[n] for n in part]).to(engine.device)).sum() / count
            engine.backward(optim.scaled(loss, 1))
            optim.step(engine)
            total += float(loss.detach())
        losses.append(optim.total(total))
    if optim.rank() == 0:
        log.logger().info("reward model after iteration %d: loss %.4f → %.4f", iteration + 1, losses[0], losses[-1])
    return {"reward_loss_before": losses[0], "reward_loss_after": losses[-1]}


def draw(outputs: Sequence[Labelled], history: Sequence[Labelled], replay_frac: float, rng: np.random.Generator) -> list[Labelled]:
    """OUTPUTS_PER_STEP outputs, `replay_frac` of them from history where there is one, in random order."""
    num_old = round(replay_frac * OUTPUTS_PER_STEP) if history else 0
    new = rng.choice(len(outputs), OUTPUTS_PER_STEP - num_old, replace=len(outputs) < OUTPUTS_PER_STEP)
    old = rng.choice(max(len(history), 1), num_old, replace=len(history) < num_old)
    drawn = [*(outputs[n] for n in new), *(history[n] for n in old)]
    return [drawn[n] for n in rng.permutation(len(drawn))]
