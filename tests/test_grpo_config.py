"""Settings of grpo that cannot be meant are refused with one line, before anything runs."""

import importlib.util
import math

import pytest

from mathpipe.grpo import reward_file
from mathpipe.grpo.arms_config import ARMS, ArmConfig
from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.reward_config import LabelsConfig
from mathpipe.pipeline.config import Runtime


@pytest.mark.parametrize(("settings", "message"), [
    ({"kl": "k4"}, "kl must be one of k3, .*found 'k4'"),
    ({"kl_coef": math.nan}, "kl_coef must be 0 or more, found nan"),
    ({"lr": -1e-6}, "lr must be 0 or more"),
    ({"clip": 1.0}, "clip must lie between 0 and 1"),
    ({"temperatures": (1.0, math.nan)}, "temperatures must be positive"),
    ({"group_size": 4, "temperatures": (0.7, 0.8, 0.9), "prompt_variants": ("", "Think.")}, "too small for 6 pairs"),
    ({"rewards": {"answers": 1.0}}, "did you mean 'answer'"),
    ({"rewards": {"answer": math.nan}}, "weight of 'answer' must be a finite number"),
    ({"reward_steps": 0}, "reward_steps must be at least 1"),
    ({"sampler": "transformers", "zero_stage": 3}, "needs whole weights, zero_stage 3 spreads them"),
    ({"iterations": 3, "num_steps": 2}, "iterations 3 exceeds num_steps 2"),
    ({"supervision": "process", "method": "ppo"}, 'supervision = "process" is for method = "grpo"'),
    ({"supervision": "process", "kl": "k1_reward"}, "goes into the reward of whole outputs"),
    ({"prompt": "pot"}, "rewards.answer reads a box, .* take rewards.program"),
    ({"supervision": "process", "advantage": "mean"}, "is for whole outputs"),
])  # fmt: skip
def test_refused(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        GrpoConfig(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_can_be_run(arm):
    assert ArmConfig(arm=arm).settled().conditional_inputs() in ((), ("reward_model",))


def test_a_missing_reward_file_or_sampler_is_told_before_the_stages_above_run(tmp_path, monkeypatch):
    runtime = Runtime(device="cpu")
    file = tmp_path / "mine.py"
    mine = GrpoConfig(sampler="transformers", rewards={f"{file}:reward": 1.0})
    with pytest.raises(ValueError, match=f"no file {file}; write PATH.py:FUNCTION"):
        mine.require(runtime)
    file.write_text("def reward(question, answer, completion):\n    return 1.0\n", encoding="utf-8")
    mine.require(runtime)
    assert reward_file.load(f"{file}:reward")("", "", "") == 1.0
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for config in (GrpoConfig(), ArmConfig(sampler="vllm-engine"), LabelsConfig()):
        with pytest.raises(ValueError, match='needs vllm .* or take sampler = "transformers"'):
            config.require(runtime)
    LabelsConfig(sampler="transformers").require(runtime)
