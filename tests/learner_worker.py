"""One update of a toy policy on made-up outputs, by as many processes as torchrun starts; plain gradient descent with learning rate 1,
so that the weights move by the gradient.

    python learner_worker.py OUT '{"name": {"method": "ppo", …}, …}'

A run leaves OUT/NAME.pt: gradients of the policy (and of the value model), the figures summed over processes.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch

from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.groups import Group
from mathpipe.grpo.learner import Learner
from mathpipe.grpo.policy import Policy
from mathpipe.grpo.questions import Question
from mathpipe.grpo.rewards import Scored
from mathpipe.grpo.rollout import Rollout
from mathpipe.grpo.sampler import Response
from mathpipe.grpo.scorer import Scorer
from mathpipe.pipeline.config import Runtime
from mathpipe.pretrain import model, optim
from mathpipe.pretrain.config import PretrainConfig

QUESTIONS, SAMPLES, VOCABULARY = 4, 4, 40
FIGURES = ("loss", "kl", "value_loss", "entropy", "tokens")
TOY = PretrainConfig(hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, initializer_range=0.3)


class Descent(torch.optim.SGD):
    """weights -= gradient."""

    skip = False


def network(seed: int) -> Any:
    torch.manual_seed(seed)
    config = PretrainConfig(**TOY.__dict__ | {"seed": seed})
    return model.build(config, VOCABULARY, 0, 1)


def groups_of(question: int) -> tuple[Group, list[Scored]]:
    """Samples of unequal length with rewards, one of them unknown, and steps."""
    rng = random.Random(question)
    prompt = tuple(rng.randrange(VOCABULARY) for _ in range(3 + question))
    responses, scored = [], []
    for n in range(SAMPLES):
        length = rng.randint(1, 9)
        ids = tuple(rng.randrange(VOCABULARY) for _ in range(length))
        logp = tuple(-rng.random() for _ in range(length))
        responses.append(Response(ids, logp, True, rng.choice([0.7, 1.0]), prompt))
        reward = float("nan") if (question, n) == (1, 2) else rng.random()
        ends = tuple(sorted({rng.randrange(length), length - 1}))
        scored.append(Scored(reward, "wrong", None, {}, tuple(rng.random() for _ in ends), ends))
    return Group(responses, [""] * SAMPLES, 0), scored


def run(settings: dict[str, Any]) -> dict[str, Any]:
    config = GrpoConfig(
        group_size=SAMPLES, questions_per_step=QUESTIONS, max_grad_norm=0.0, value_warmup_steps=0, runtime=Runtime(device="cpu"), **settings
    )
    made: dict[str, Any] = {"policy": Policy(network(0))}
    if config.method == "ppo":
        torch.manual_seed(3)
        from transformers import LlamaConfig, LlamaForTokenClassification

        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        made["value"] = Scorer(LlamaForTokenClassification(LlamaConfig(vocab_size=VOCABULARY, num_labels=1, **sizes)))
    before = {name: {key: value.clone() for key, value in module.state_dict().items()} for name, module in made.items()}
    engines = {
        name: optim.engine(module, Descent(module.parameters(), lr=1.0), 1, 0.0, config.zero_stage) for name, module in made.items()
    }  # fmt: skip
    learner = Learner(config, engines["policy"], Policy(network(1)).eval().requires_grad_(False), engines.get("value"))
    mine = range(optim.rank(), QUESTIONS, optim.world_size())
    groups, scored = zip(*[groups_of(n) for n in mine], strict=True)
    sums, _ = learner.learn(Rollout([Question("", "")] * len(mine), groups, scored), step=0)
    after = {name: optim.full_weights(engine, made[name]) for name, engine in engines.items()}
    gradients = {f"{name}.{key}": before[name][key] - after[name][key] for name in after for key in after[name]}
    figures = {name: optim.total(sums[name]) for name in FIGURES if name in sums}
    for engine in engines.values():
        engine.destroy()
    return {"gradients": gradients, "figures": figures}


if __name__ == "__main__":
    optim.start_processes(Runtime(device="cpu"))
    for name, settings in json.loads(sys.argv[2]).items():
        found = run(settings)
        if optim.rank() == 0:
            torch.save(found, Path(sys.argv[1]) / f"{name}.pt")
