"""Held-out accuracy of a policy and whether a change of it is real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mathpipe.eval.grader import grade
from mathpipe.grpo.questions import HELD_OUT_SEED, Question
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

    @classmethod
    def make(cls, questions: Sequence[Question], tokenizer: Any, max_new_tokens: int) -> HeldOut:
        """These questions, with plain prompts whatever variants training uses."""
        return cls(questions, [encode_prompt(tokenizer, render(one.question)) for one in questions], tokenizer, max_new_tokens)

    def correct(self, sampler: Sampler, num_samples: int, temperature: float) -> np.ndarray:
        """Share of right samples per question, `[n]`, the same on every process."""
        mine = range(optim.rank(), len(self.questions), optim.world_size())
        asked = [Request(tuple(self.prompts[n]), num_samples, temperature, 1.0, HELD_OUT_SEED + n) for n in mine]
        groups = sampler.sample(asked, self.max_new_tokens, with_logp=False)
        shares = np.zeros(len(self.questions))
        for n, group in zip(mine, groups, strict=True):
            answer = self.questions[n].answer
            texts = [self.tokenizer.decode(one.ids, skip_special_tokens=True) for one in group]
            shares[n] = np.mean([grade(text, answer).correct for text in texts])
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
