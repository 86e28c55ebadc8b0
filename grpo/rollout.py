"""One exploration: sample groups with the current policy, reward them, and keep every completion.

Which questions, which samples: functions of the step's number. Nothing is carried from step to step.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from mathpipe.eval.programs import FAILURES
from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.groups import Group, sample_groups
from mathpipe.grpo.questions import Question, Questions
from mathpipe.grpo.rewards import Rewards, Scored
from mathpipe.grpo.sampler import Response, Sampler
from mathpipe.pipeline import artifact
from mathpipe.pretrain import optim

REASONS = ("correct", "wrong", "no_answer", "parse_error", "timeout", *FAILURES)
SEED_STRIDE = 1_000_003
"""Between the sampling seeds of two training seeds; there are fewer questions than this."""


@dataclass(frozen=True)
class Rollout:
    """Groups of one process's questions: B questions, G samples each, N = B·G outputs in group order."""

    questions: Sequence[Question]
    groups: Sequence[Group]
    scored: Sequence[Sequence[Scored]]
    num_refilled: int = 0
    """Groups that were drawn in place of one with equal rewards."""
    sample_s: float = 0.0
    reward_s: float = 0.0

    @property
    def outputs(self) -> list[Response]:
        """All N responses."""
        return [one for group in self.groups for one in group.responses]

    @property
    def rewards_BG(self) -> Tensor:
        """NaN where a reward could not be computed."""
        return torch.tensor([[one.reward for one in group] for group in self.scored], dtype=torch.float64)

    def summary(self) -> dict[str, float]:
        """Sums over this process, for means over all of them."""
        outputs, rewards = self.outputs, self.rewards_BG
        reasons = Counter(one.reason for group in self.scored for one in group)
        spread = [group[~group.isnan()].std(correction=0).item() if (~group.isnan()).any() else 0.0 for group in rewards]
        sums = {
            "reward": float(rewards.nansum()), "rewarded": float((~rewards.isnan()).sum()), "samples": len(outputs),
            "groups": len(self.groups), "response_tokens": sum(len(one.ids) for one in outputs),
            "truncated": sum(not one.finished for one in outputs), "zero_std": sum(is_equal(group) for group in self.scored),
            "reward_std": sum(spread), "refilled": self.num_refilled, "duplicates": sum(group.num_duplicates for group in self.groups),
            "distinct": sum(len({one.answer for one in group}) for group in self.scored),
            "distinct_text": sum(len(set(group.texts)) for group in self.groups),
        }  # fmt: skip
        return sums | {f"reason_{reason}": float(reasons[reason]) for reason in REASONS}

    def save(self, file: Path, step: int, advantages: Sequence[Tensor]) -> None:
        """Write every completion with its rewards and advantages (one for each token, `[T_i]`) as parquet."""
        rows, flat = [], iter(advantages)
        for question, group, scored in zip(self.questions, self.groups, self.scored, strict=True):
            for one, text, score in zip(group.responses, group.texts, scored, strict=True):
                tokens = next(flat)
                rows.append({
                    "step": step, "question": question.question, "answer": question.answer, "prompt_ids": list(one.prompt),
                    "completion": text, "ids": list(one.ids), "reward": score.reward, "reason": score.reason, "found": score.answer,
                    "parts": json.dumps(score.parts), "step_rewards": list(score.steps), "step_ends": list(score.ends),
                    "advantage": float(tokens.mean()), "step_advantages": [float(tokens[end]) for end in score.ends],
                    "num_tokens": len(one.ids), "finished": one.finished, "temperature": one.temperature,
                })  # fmt: skip
        artifact.write_parquet(file, pa.Table.from_pylist(rows, schema=COMPLETIONS))


def drop_after(folder: Path, step: int) -> None:
    """Remove completions of later steps: those of a killed run, perhaps with more processes, whose files nobody would write again."""
    for file in folder.glob("step-*.parquet"):
        if int(file.stem.split("-")[1]) > step:
            file.unlink()


COMPLETIONS = pa.schema(
    {
        "step": pa.int64(), "question": pa.string(), "answer": pa.string(), "prompt_ids": pa.list_(pa.int32()), "completion": pa.string(),
        "ids": pa.list_(pa.int32()), "reward": pa.float64(), "reason": pa.string(), "found": pa.string(), "parts": pa.string(),
        "step_rewards": pa.list_(pa.float64()), "step_ends": pa.list_(pa.int64()), "advantage": pa.float64(),
        "step_advantages": pa.list_(pa.float64()), "num_tokens": pa.int64(), "finished": pa.bool_(), "temperature": pa.float64(),
    }
)  # fmt: skip


def is_equal(group: Sequence[Scored]) -> bool:
    """Whether the known rewards of a group, those of steps included, are all the same: nothing can be learnt from it.

    >>> is_equal([Scored(1.0, "correct", "7", {}, (), ()), Scored(float("nan"), "timeout", None, {}, (), ())])
    True
    """
    rewards = {one.reward for one in group if one.reward == one.reward}
    steps = {step for one in group for step in one.steps if step == step}
    return len(rewards) <= 1 and len(steps) <= 1


def explore(config: GrpoConfig, sampler: Sampler, rewards: Rewards, tokenizer: Any, questions: Questions, step: int) -> Rollout:
    """Groups for this process's questions of a step (0-based), rewarded.

    With `refill_rounds` a group with equal rewards is replaced by one of another question, at most that often; the last stays.
    All processes go through as many rounds, since rewards may come from a model that is spread over them.
    """
    slots = range(optim.rank(), config.questions_per_step, optim.world_size())
    kept: dict[int, tuple[Question, Group, list[Scored]]] = {}
    todo, num_refilled, sample_s, reward_s = list(slots), 0, 0.0, 0.0
    for attempt in range(1 + config.refill_rounds):
        began = time.perf_counter()
        asked = [questions.of_step(config, step, slot, attempt) for slot in todo]
        places = [(attempt * config.num_steps + step) * config.questions_per_step + slot for slot in todo]
        seeds = [config.seed * SEED_STRIDE + place for place in places]
        groups = sample_groups(config, sampler, tokenizer, [one.question for one in asked], seeds)
        sampled = time.perf_counter()
        scored = rewards.score(asked, groups)
        sample_s, reward_s = sample_s + sampled - began, reward_s + time.perf_counter() - sampled
        kept |= dict(zip(todo, zip(asked, groups, scored, strict=True), strict=True))
        num_refilled += len(todo) if attempt else 0
        todo = [slot for slot in slots if is_equal(kept[slot][2])] if config.refill_rounds else []
        if not optim.total(len(todo)):
            break
    asked, groups, scored = (list(column) for column in zip(*(kept[slot] for slot in slots), strict=True))
    return Rollout(asked, groups, scored, num_refilled, sample_s, reward_s)
