"""The update of policy and value model: the same loss and gradient for any micro-batches, number of processes and ZeRO stage."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
BASE = {
    "grpo": {},
    "process": {"supervision": "process"},
    "token": {"loss": "token", "kl": "k2", "importance_cap": 2.0},
    "gspo": {"loss": "gspo", "updates_per_exploration": 2},
    "ppo": {"method": "ppo", "kl": "k1_reward"},
    "dpo": {"method": "dpo"},
    "k1": {"kl": "k1_reward"},
}
SMALL = {name: {**settings, "micro_batch_tokens": 20} for name, settings in BASE.items()}


def work(out: Path, runs: dict, processes: int = 1) -> dict:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, str(HERE / "learner_worker.py"), str(out), json.dumps(runs)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: torch.load(out / f"{name}.pt") for name in runs}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    base = tmp_path_factory.mktemp("learner")
    one = work(base, BASE | {f"{name} small": settings for name, settings in SMALL.items()})
    sharded = {f"grpo zero {stage}": {**SMALL["grpo"], "zero_stage": stage} for stage in (1, 2, 3)}
    sharded["ppo zero 3"] = {**SMALL["ppo"], "zero_stage": 3}
    return one | work(base, {f"{name} two": settings for name, settings in SMALL.items()} | sharded, processes=2)


def assert_same(one, other, tolerance=1e-6):
    assert one["figures"].keys() == other["figures"].keys()
    for name, value in one["figures"].items():
        assert other["figures"][name] == pytest.approx(value, rel=1e-5, abs=tolerance), name
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(other["gradients"][name], gradient, atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize("name", BASE)
def test_micro_batches_do_not_matter(made, name):
    assert max(float(gradient.abs().max()) for gradient in made[name]["gradients"].values()) > 1e-3, "nothing was learnt"
    assert_same(made[name], made[f"{name} small"])


@pytest.mark.parametrize("name", BASE)
def test_processes_do_not_matter(made, name):
    assert_same(made[name], made[f"{name} two"])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_stages_do_not_matter(made, stage):
    assert_same(made["grpo"], made[f"grpo zero {stage}"])


def test_policy_and_value_model_train_under_zero_3(made):
    assert_same(made["ppo"], made["ppo zero 3"])


def test_methods_differ(made):
    """What the tests above compare is not one and the same update."""
    gradients = [torch.cat([g.flatten() for key, g in made[name]["gradients"].items() if key.startswith("policy")]) for name in BASE]
    for n, one in enumerate(gradients):
        assert all(float((one - other).abs().max()) > 1e-4 for other in gradients[:n])
