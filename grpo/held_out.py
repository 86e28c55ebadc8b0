"""Held-out accuracy of a policy and whether a change of it is real."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mathpipe.eval.grader import grade
from mathpipe.grpo.sampler import Sampler
from mathpipe.pretrain import optim
from mathpipe.pretrain.tokenizer import encode_prompt
from mathpipe.sft.problems import Problem, generate
from mathpipe.sft.prompts import render

HELD_OUT_SEED = 1_000_003
"""Held-out problems are the same for every training seed."""


def problems(num_problems: int, max_number: int, max_result: int) -> list[Problem]:
    """Distinct held-out problems."""
    distinct = {p.question: p for p in itertools.islice(generate(HELD_OUT_SEED, max_number, max_result, held_out=True), 20 * num_problems)}
    if len(distinct) < num_problems:
        raise ValueError(f"only {len(distinct)} distinct held-out problems with numbers up to {max_number}, {num_problems} asked for")
    return list(distinct.values())[:num_problems]


@dataclass(frozen=True)
class HeldOut:
    """Held-out problems with their prompts; every process measures its share."""

    problems: Sequence[Problem]
    prompts: Sequence[Sequence[int]]
    tokenizer: Any
    max_new_tokens: int

    @classmethod
    def make(cls, num_problems: int, max_number: int, max_result: int, tokenizer: Any, max_new_tokens: int) -> HeldOut:
        """The first `num_problems` held-out problems, tokenised."""
        chosen = problems(num_problems, max_number, max_result)
        return cls(chosen, [encode_prompt(tokenizer, render(p.question)) for p in chosen], tokenizer, max_new_tokens)

    def correct(self, sampler: Sampler, num_samples: int, temperature: float) -> np.ndarray:
        """Share of right samples per problem, `[n]`, the same on every process."""
        mine = range(optim.rank(), len(self.problems), optim.world_size())
        prompts, seeds = [self.prompts[n] for n in mine], [HELD_OUT_SEED + n for n in mine]
        groups = sampler.sample(prompts, num_samples, temperature, self.max_new_tokens, seeds, with_logp=False)
        shares = np.zeros(len(self.problems))
        for n, group in zip(mine, groups, strict=True):
            answer = str(self.problems[n].answer)
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
