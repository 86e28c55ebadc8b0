"""The update of policy and value model: the same loss and gradient for any micro-batches, number of processes and ZeRO stage."""

import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

import learner_worker as worker
import pytest
import torch

from mathpipe.grpo.config import GrpoConfig

HERE = Path(__file__).parent
BASE = {
    "grpo": {},
    "process": {"supervision": "process"},
    "token": {"loss": "token", "kl": "k2", "importance_cap": 2.0},
    "gspo": {"loss": "gspo", "updates_per_exploration": 2},
    "ppo": {"method": "ppo", "kl": "k1_reward"},
    "dpo": {"method": "dpo"},
    "k1": {"kl": "k1_reward"},
    "k1 of no weight": {"kl": "k1_reward", "kl_coef": 0.0},
    "two updates": {"updates_per_exploration": 2},
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


def defined(settings):
    """How far the equations move the policy's weights: eq. 3 with plain models in float64, sample by sample."""
    config = GrpoConfig(**settings)
    policy, reference = worker.network(0).double(), worker.network(1).double()
    groups = [worker.groups_of(n) for n in range(worker.QUESTIONS)]
    samples = [(*pair, n) for n, (group, scored) in enumerate(groups) for pair in zip(group.responses, scored, strict=True)]

    def logps(network):
        for response, *_ in samples:
            logits = network(torch.tensor([[*response.prompt, *response.ids]])).logits[0, len(response.prompt) - 1 : -1]
            yield (logits / response.temperature).log_softmax(-1).gather(1, torch.tensor(response.ids)[:, None])[:, 0]

    def advantage(scored, question, length):
        group = [other for _, other, n in samples if n == question]
        if config.supervision == "outcome":
            known = [one.reward for one in group if not math.isnan(one.reward)]
            return 0.0 if math.isnan(scored.reward) else (scored.reward - statistics.mean(known)) / statistics.stdev(known)
        steps = [step for one in group for step in one.steps]
        scores = [(step - statistics.mean(steps)) / statistics.stdev(steps) for step in scored.steps]
        return torch.tensor([sum(score for score, end in zip(scores, scored.ends, strict=True) if end >= t) for t in range(length)])

    before = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    with torch.no_grad():
        olds, references = list(logps(policy)), list(logps(reference))
    for _ in range(config.updates_per_exploration):
        loss = 0.0
        for (_, scored, question), logp, old, ref in zip(samples, logps(policy), olds, references, strict=True):
            ratio, gain = (logp - old).exp(), advantage(scored, question, len(logp))
            if config.loss == "gspo":
                ratio = (logp - old).mean().exp().expand(len(logp))
            objective = torch.minimum(ratio * gain, ratio.clamp(1 - config.clip, 1 + config.clip) * gain)
            loss = loss - (objective - config.kl_coef * ((ref - logp).exp() - (ref - logp) - 1)).mean() / len(samples)
        gradients = torch.autograd.grad(loss, list(policy.parameters()))
        with torch.no_grad():
            for weight, gradient in zip(policy.parameters(), gradients, strict=True):
                weight -= gradient
    return {f"policy.model.{name}": before[name] - weight.detach() for name, weight in policy.named_parameters()}


@pytest.mark.parametrize("name", ["grpo", "process", "gspo", "two updates"])
def test_an_update_is_the_equations(made, name):
    """Each sample at its own temperature, the old policy that of before the first update, an unknown reward outside its group."""
    expected = defined(BASE[name])
    assert expected.keys() == made[name]["gradients"].keys()
    for key, moved in expected.items():
        torch.testing.assert_close(made[name]["gradients"][key], moved.float(), atol=2e-6, rtol=1e-4)
