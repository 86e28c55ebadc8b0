"""Held-out problems and the paired bootstrap."""

import itertools

import numpy as np
import pytest

from mathpipe.grpo.held_out import paired_bootstrap
from mathpipe.grpo.questions import held_out_problems
from mathpipe.sft.problems import generate


def test_held_out_problems_are_distinct_and_never_trained_on():
    held_out = {p.question for p in held_out_problems(500, 10, 100)}
    assert len(held_out) == 500
    for seed in (0, 1, 10_000):  # SFT's and GRPO's streams
        assert not held_out & {p.question for p in itertools.islice(generate(seed, 10, 100, held_out=False), 20_000)}


def test_too_small_a_family_is_refused():
    with pytest.raises(ValueError, match="distinct held-out problems"):
        held_out_problems(5_000, 3, 10)


def test_bootstrap_tells_a_real_gain_from_none():
    rng = np.random.default_rng(0)
    before = (rng.random(500) < 0.6).astype(float)
    better = np.maximum(before, rng.random(500) < 0.2)
    assert paired_bootstrap(before, better) < 0.001
    assert paired_bootstrap(before, before) == 1.0
    assert paired_bootstrap(better, before) > 0.99


def test_bootstrap_agrees_with_the_normal_approximation():
    """40 problems gained, 20 lost of 500: z = 20/sqrt(60) = 2.58, one-sided p = 0.005."""
    before, after = np.zeros(500), np.zeros(500)
    after[:40], before[40:60] = 1, 1
    assert 0.002 < paired_bootstrap(before, after) < 0.009
