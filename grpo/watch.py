"""Watch over a run of reinforcement: tells early, with cause and remedy, when groups stop teaching or the policy decays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from mathpipe.grpo.config import GrpoConfig

PATIENCE_STEPS = 5
"""A sign has to show in this many steps on end: a single exploration has few questions."""
SILENCE_STEPS = 20
"""Between two warnings of the same sign."""
BASELINE_STEPS = 5
"""The first steps, to whose mean entropy and length are compared."""

MAX_ZERO_STD = 0.5
"""Share of groups with equal rewards: more than half of the samples are drawn for nothing."""
EASY, HARD = 0.8, 0.2
"""Mean rewards (of a right answer's 1) beyond which equal groups come from the questions, not from samples that are alike: the
chance of 16 equal rewards is 3 % at 0.8."""
MIN_DISTINCT_ANSWERS = 1.5
"""Answers in a group: below, the typical group has one."""
MIN_DISTINCT_TEXTS = 2.0
"""Texts in a group: below, samples repeat each other word by word and their advantages can only cancel."""
MIN_REWARD_STD = 0.02
"""Standard deviation inside a group, where not 0: dividing by less blows up what is likely noise 50-fold."""
ENTROPY_RANGE = (0.2, 3.0)
"""Times the first steps': below, exploration has stopped; above, the policy dissolves."""
LENGTH_RANGE = (0.5, 2.0)
"""Times the first steps' number of tokens: the reward is being collected by length, or by leaving out the reasoning."""
MAX_TRUNCATED = 0.2
"""Share of cut completions: their reward says more about max_new_tokens than about the answer."""
MAX_KL = 0.5
"""Nats per token to the reference: the tiny chain, which moves a lot, stays below 0.15."""
MIN_RIGHT = 0.75
"""Times the first steps' share of right answers: the questions of single steps vary, five steps in a row below it do not."""
MAX_LOGP_DIFF_MEAN = 0.05
"""Sampler against trainer: fp32 gives 1e-6, bf16 1e-2."""
MAX_LOGP_DIFF = 1.0
"""For a single token: fp32 gives 5e-6, bf16 7e-2."""


Values = Mapping[str, float]


@dataclass(frozen=True)
class Sign:
    """Which metrics to look at, when they are bad, and what to say then: what was found, its cause, its remedy."""

    needs: tuple[str, ...]
    is_bad: Callable[[Values], bool]
    found: Callable[[Values], str]
    cause: str
    remedy: str
    patience: int = PATIENCE_STEPS


class CollapseWatch:
    """Reads the metrics of every step; nothing depends on it."""

    def __init__(self, config: GrpoConfig, seen: Iterable[Values] = ()) -> None:
        """`seen`: metrics of the steps before, of a run that is resumed."""
        self.signs = signs(config)
        self.first: dict[str, list[float]] = {"entropy": [], "response_tokens": [], "right": []}
        self.bad_steps = [0] * len(self.signs)
        self.silent_steps = [SILENCE_STEPS] * len(self.signs)
        for values in seen:
            self.step(values)

    def step(self, values: Values) -> list[str]:
        """Warnings after a step with these metrics (train.py's names); what is missing or not finite is not judged."""
        known = {name: value for name, value in values.items() if math.isfinite(value)}
        if "reason_correct" in known:
            known["right"] = _right(known)
        known |= self._relative(known)
        warnings = []
        for n, sign in enumerate(self.signs):
            is_bad = all(name in known for name in sign.needs) and sign.is_bad(known)
            self.bad_steps[n] = self.bad_steps[n] + 1 if is_bad else 0
            self.silent_steps[n] += 1
            if self.bad_steps[n] >= sign.patience and self.silent_steps[n] > SILENCE_STEPS:
                self.silent_steps[n] = 0
                steps = f" for {self.bad_steps[n]} steps" if self.bad_steps[n] > 1 else ""
                warnings.append(f"{sign.found(known)}{steps}: {sign.cause} → {sign.remedy}")
        return warnings

    def _relative(self, known: Values) -> dict[str, float]:
        """Entropy, length and right answers as multiples of those of the first steps."""
        found = {}
        for name, first in self.first.items():
            if name not in known:
                continue
            if len(first) < BASELINE_STEPS:
                first.append(known[name])
            elif sum(first) > 0:
                found[f"{name}_kept"] = known[name] * len(first) / sum(first)
        return found


def signs(config: GrpoConfig) -> list[Sign]:
    """Everything that is watched."""
    size, equal = config.group_size, ("zero_std_frac", "reward")

    def equal_groups(v: Values) -> str:
        return f"{v['zero_std_frac']:.0%} of groups have equal rewards ({_right(v):.2f} right)"

    return [
        Sign(
            equal, lambda v: v["zero_std_frac"] > MAX_ZERO_STD and _right(v) > EASY, equal_groups,
            "no gradient there, the questions are too easy", "harder questions, or grpo.refill_rounds",
        ),
        Sign(
            equal, lambda v: v["zero_std_frac"] > MAX_ZERO_STD and _right(v) < HARD, equal_groups,
            "no gradient there, the questions are too hard", "easier questions, longer SFT, a larger grpo.group_size, or refill_rounds",
        ),
        Sign(
            equal, lambda v: v["zero_std_frac"] > MAX_ZERO_STD and HARD <= _right(v) <= EASY, equal_groups,
            "no gradient there, the samples of a group are alike",
            "a ladder of grpo.temperatures, grpo.top_p = 1, grpo.duplicate_jaccard, or grpo.refill_rounds",
        ),
        Sign(
            ("distinct_frac",), lambda v: v["distinct_frac"] * size < min(MIN_DISTINCT_ANSWERS, size),
            lambda v: f"{v['distinct_frac'] * size:.1f} different answers in a group of {size}",
            "the samples agree, right or wrong", "a ladder of grpo.temperatures, grpo.prompt_variants, or harder questions",
        ),
        Sign(
            ("distinct_text_frac",), lambda v: v["distinct_text_frac"] * size < min(MIN_DISTINCT_TEXTS, size),
            lambda v: f"{v['distinct_text_frac'] * size:.1f} different texts in a group of {size}",
            "samples repeat each other word by word", "higher grpo.temperatures, grpo.top_p = 1, or grpo.duplicate_jaccard",
        ),
        Sign(
            ("reward_std", "zero_std_frac"), lambda v: v["zero_std_frac"] < 1 and _spread(v) < MIN_REWARD_STD,
            lambda v: f"unequal rewards of a group spread by {_spread(v):.3f}", "dividing by that blows up noise",
            'grpo.advantage = "mean", a larger std_eps, or more weight for the rewards that differ',
        ),
        Sign(
            ("entropy_kept",), lambda v: v["entropy_kept"] < ENTROPY_RANGE[0],
            lambda v: f"entropy is {v['entropy_kept']:.0%} of the first steps'", "the policy has stopped exploring",
            "grpo.clip_high above clip, higher temperatures, larger kl_coef, or lower lr",
        ),
        Sign(
            ("entropy_kept",), lambda v: v["entropy_kept"] > ENTROPY_RANGE[1],
            lambda v: f"entropy is {v['entropy_kept']:.1f} times the first steps'", "the policy dissolves",
            "lower grpo.lr, lower temperatures, or larger kl_coef",
        ),
        Sign(
            ("response_tokens_kept",), lambda v: not LENGTH_RANGE[0] <= v["response_tokens_kept"] <= LENGTH_RANGE[1],
            lambda v: f"responses have {v['response_tokens']:.0f} tokens, {v['response_tokens_kept']:.1f} times the first steps'",
            "their length is being rewarded", 'read them (mathpipe show completions); grpo.loss = "dr_grpo", a length or format reward',
        ),
        Sign(
            ("truncated_frac",), lambda v: v["truncated_frac"] > MAX_TRUNCATED,
            lambda v: f"{v['truncated_frac']:.0%} of responses are cut at {config.max_new_tokens} tokens",
            "right reasoning counts as wrong", "larger grpo.max_new_tokens, or a length reward",
        ),
        Sign(
            ("kl",), lambda v: v["kl"] > MAX_KL, lambda v: f"KL to the reference is {v['kl']:.2f} a token",
            "the policy has left what SFT taught", "lower grpo.lr, larger kl_coef, or more iterations",
        ),
        Sign(
            ("right_kept", "zero_std_frac"), lambda v: v["right_kept"] < MIN_RIGHT and v["zero_std_frac"] <= MAX_ZERO_STD,
            lambda v: f"{v['right']:.0%} of answers are right, {v['right_kept']:.0%} of the first steps' share",
            "what is rewarded is not the right answer: a reward model that ranks a question's answers by chance, or is being fooled",
            "weight for answer in grpo.rewards, larger kl_coef, more labels (reward_model's auc_in_question), more iterations",
        ),
        Sign(
            ("logp_diff_mean", "logp_diff_max"),
            lambda v: v["logp_diff_mean"] > MAX_LOGP_DIFF_MEAN or v["logp_diff_max"] > MAX_LOGP_DIFF,
            lambda v: f"sampler and trainer differ by {v['logp_diff_mean']:.3f} a token, by {v['logp_diff_max']:.2f} at most",
            "the samples are not the policy's (old weights, or another precision)",
            "the same precision on both sides, or grpo.importance_cap = 2", patience=1,
        ),
    ]  # fmt: skip


def _spread(values: Values) -> float:
    """Mean standard deviation of the groups whose rewards differ."""
    return values["reward_std"] / (1 - values["zero_std_frac"])


def _right(values: Values) -> float:
    """Share of right answers, by the verifier where it takes part."""
    reasons = [count for name, count in values.items() if name.startswith("reason_")]
    return values["reason_correct"] / sum(reasons) if sum(reasons) else values["reward"]
