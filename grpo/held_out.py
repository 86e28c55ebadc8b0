"""Held-out accuracy of a policy and whether a change of it is real."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.questions import HELD_OUT_SEED, Question
from mathpipe.grpo.rewards import Rewards
from mathpipe.grpo.sampler import Request, Sampler
from mathpipe.pretrain import optim
from mathpipe.pretrain.tokenizer import encode_prompt
from mathpipe.sft.prompts import render


@dataclass(frozen=True)
class HeldOut:
    """Held-out questions with their prompts; every process measures its share."""

    questions: Sequence[Question]
    prompts: Sequence[Sequence[int]]
    tokenizer: Any
    max_new_tokens: int
    judge: Callable[[Sequence[str], Sequence[str]], Sequence[tuple[str, str | None]]]
    """(completions, right answers) → reason and answer of each, as rewards.py judges them."""

    @classmethod
    def make(cls, config: GrpoConfig, questions: Sequence[Question], tokenizer: Any, rewards: Rewards) -> HeldOut:
        """These questions, with plain prompts whatever variants training uses."""
        prompts = [encode_prompt(tokenizer, render(one.question, config.prompt)) for one in questions]
        return cls(questions, prompts, tokenizer, config.max_new_tokens, rewards.judge)

    def correct(self, sampler: Sampler, num_samples: int, temperature: float) -> np.ndarray:
        """Share of right samples per question, `[n]`, the same on every process."""
        mine = range(optim.rank(), len(self.questions), optim.world_size())
        asked = [Request(tuple(self.prompts[n]), num_samples, temperature, 1.0, HELD_OUT_SEED + n) for n in mine]
        groups = sampler.sample(asked, self.max_new_tokens, with_logp=False)
        texts = [self.tokenizer.decode(one.ids, skip_special_tokens=True) for group in groups for one in group]
        judged = self.judge(texts, [self.questions[n].answer for n in mine for _ in range(num_samples)])
        shares = np.zeros(len(self.questions))
        shares[mine] = np.reshape([reason == "correct" for reason, _ in judged], (len(mine), num_samples)).mean(1)
        return optim.total_array(shares)


def paired_bootstrap(before: np.ndarray, after: np.ndarray, num_resamples: int = 10_000, seed: int = 0) -> float:
    """One-sided p-value of "after is better": share of resampled problem sets whose mean difference is not above zero.

    Both arrays hold one score per problem, `[n]`; problems are resampled in pairs. (hits + 1) / (resamples + 1), never 0.

    >>> paired_bootstrap(np.zeros(50), np.ones(50)) < 0.001
    True
    """
    difference = np.asarray(after, float) - np.asarray(before, float)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(difference), np.full(len(difference), 1 / len(difference)), size=num_resamples)
    return float((np.sum(counts @ difference <= 0) + 1) / (num_resamples + 1))
