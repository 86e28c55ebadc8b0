"""Held-out problems and the paired bootstrap."""

import contextlib
import itertools

import numpy as np
import pytest
import torch

from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.held_out import HeldOut, paired_bootstrap
from mathpipe.grpo.questions import Question, held_out_problems
from mathpipe.grpo.rewards import Rewards
from mathpipe.grpo.sampler import Response
from mathpipe.pretrain import tokenizer as bpe
from mathpipe.sft.problems import generate
from mathpipe.sft.prompts import render


def test_held_out_problems_are_distinct_and_never_trained_on():
    held_out = {p.question for p in held_out_problems(500, 10, 100)}
    assert len(held_out) == 500
    for seed in (0, 1, 10_000):  # SFT's and GRPO's streams
        assert not held_out & {p.question for p in itertools.islice(generate(seed, 10, 100, held_out=False), 20_000)}


def test_a_policy_that_is_asked_for_programs_is_measured_by_them():
    right, unclosed, other = "```python\nprint(3 + 4)\n```", "```python\nprint(9.0)", "```\nprint(1)"
    texts = [[right, "\\boxed{7}"], ["```python\nprint(9)\n```", unclosed], ["9", other]]
    questions = [Question("3 + 4?", "7"), Question("3 * 3?", "9"), Question("3 - 2?", "1")]
    tokenizer = bpe.train(["1+2=3 print"] * 20, 300)
    asked = []

    class Sampler:
        def sample(self, requests, max_new_tokens, with_logp):
            asked.extend(tokenizer.decode(one.prompt) for one in requests)
            return [[Response(tuple(bpe.encode(tokenizer, text)), (), True, 1.0, ()) for text in group] for group in texts]

    for prompt, rewards, wanted in (("pot", "program", [0.5, 1.0, 0.5]), ("cot", "answer", [0.5, 0.0, 0.0])):
        config = GrpoConfig(prompt=prompt, rewards={rewards: 1.0})
        with contextlib.closing(Rewards(config, None, tokenizer, torch.device("cpu"))) as judging:
            assert HeldOut.make(config, questions, tokenizer, judging).correct(Sampler(), 2, 1.0).tolist() == wanted
    assert asked[0] == render("3 + 4?", "pot") and asked[3] == render("3 + 4?")


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
