"""The collapse watch: what it warns of, when, how often, with which cause and remedy."""

import math
import re

import pytest

from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.watch import BASELINE_STEPS, PATIENCE_STEPS, SILENCE_STEPS, CollapseWatch

HEALTHY = {
    "reward": 0.5, "zero_std_frac": 0.1, "distinct_frac": 0.1, "distinct_text_frac": 0.2, "entropy": 0.4, "response_tokens": 22.0,
    "truncated_frac": 0.0, "reward_std": 0.3, "kl": 0.02, "logp_diff_mean": 1e-6, "logp_diff_max": 5e-6, "reason_correct": 256.0,
    "reason_wrong": 256.0,
}  # fmt: skip


def warnings(changes, steps=PATIENCE_STEPS):
    """Of the last of `steps` steps with these metrics, after healthy ones."""
    watch = CollapseWatch(GrpoConfig(group_size=64))
    for _ in range(BASELINE_STEPS):
        assert watch.step(HEALTHY) == []
    return [watch.step(HEALTHY | changes) for _ in range(steps)]


def test_a_healthy_run_is_left_alone():
    assert not any(warnings({}, steps=100))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"zero_std_frac": 0.72, "reason_correct": 500.0, "reason_wrong": 12.0},
            "72% of groups have equal rewards .0.98 right. for 5 steps: .*too easy",
        ),
        ({"zero_std_frac": 0.72, "reason_correct": 3.0, "reason_wrong": 509.0}, "0.01 right.*too hard.*easier questions"),
        ({"zero_std_frac": 0.72}, "0.50 right.*samples of a group are alike.*grpo.temperatures"),
        ({"distinct_frac": 1.2 / 64}, "1.2 different answers in a group of 64"),
        ({"distinct_text_frac": 1.5 / 64}, "1.5 different texts.*grpo.duplicate_jaccard"),
        ({"entropy": 0.07}, "entropy is 18% of the first steps'.*grpo.clip_high"),
        ({"entropy": 1.4}, "entropy is 3.5 times.*lower grpo.lr"),
        ({"response_tokens": 50.0}, "50 tokens, 2.3 times"),
        ({"response_tokens": 8.0}, "8 tokens, 0.4 times"),
        ({"truncated_frac": 0.3}, "30% of responses are cut at 48 tokens.*max_new_tokens"),
        ({"reward_std": 0.009}, "spread by 0.010 for 5 steps"),
        ({"reason_correct": 128.0, "reason_wrong": 384.0}, "25% of answers are right, 50% of the first.*auc_in_question"),
        ({"kl": 0.8}, "KL to the reference is 0.80.*kl_coef"),
    ],
)
def test_each_sign_tells_cause_and_remedy_after_some_steps(changes, says):
    *early, (last,) = warnings(changes)
    assert not any(early)
    assert re.search(says, last)


def test_samples_that_are_not_the_policys_are_told_at_once():
    assert "old weights" in warnings({"logp_diff_max": 1.5}, steps=1)[0][0]


def test_a_sign_is_told_once_in_a_while_and_only_while_it_shows():
    told = [n for n, found in enumerate(warnings({"kl": 0.8}, steps=60)) if found]
    assert told == [PATIENCE_STEPS - 1, PATIENCE_STEPS + SILENCE_STEPS, PATIENCE_STEPS + 2 * SILENCE_STEPS + 1]
    watch = CollapseWatch(GrpoConfig())
    assert not any(watch.step(HEALTHY | {"kl": 0.8 if n % PATIENCE_STEPS else 0.1}) for n in range(50))


def test_what_is_missing_or_not_finite_is_not_judged():
    watch = CollapseWatch(GrpoConfig())
    for _ in range(20):
        assert watch.step({"reward": math.nan, "zero_std_frac": 1.0, "kl": math.inf, "entropy": math.nan}) == []


def test_a_resumed_run_compares_with_the_first_steps_of_the_whole():
    """Entropy that fell before the run was killed is still low after, and a sign's patience goes on."""
    metrics = [HEALTHY] * BASELINE_STEPS + [HEALTHY | {"entropy": 0.07}] * 30
    watch = CollapseWatch(GrpoConfig(group_size=64))
    expected = [watch.step(values) for values in metrics]
    for done in (BASELINE_STEPS + 2, BASELINE_STEPS + 10):
        resumed = CollapseWatch(GrpoConfig(group_size=64), metrics[:done])
        assert [resumed.step(values) for values in metrics[done:]] == expected[done:]
    assert sum(map(len, expected)) == 2
