"""A trained reward model goes on training and scores, in one process or several.

python reward_worker.py ARTIFACT LABELLED.pt OUT.pt '{"name": {GrpoConfig fields}}'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.reward_model import RewardModel
from mathpipe.pipeline.config import Runtime
from mathpipe.pretrain import optim

if __name__ == "__main__":
    path, data, out, runs = sys.argv[1:]
    runtime = Runtime(device="cpu")
    device = optim.start_processes(runtime)
    outputs = torch.load(data, weights_only=False)
    scores = {}
    for name, settings in json.loads(runs).items():
        config = GrpoConfig(iterations=2, reward_lr=1e-3, reward_steps=3, rewards={"reward_model": 1.0}, runtime=runtime, **settings)
        model = RewardModel(config, Path(path), None, device)
        facts = model.learn(outputs, model.trained_on, iteration=0)
        mine = outputs if optim.rank() == 0 else []  # a process without outputs keeps step with the others
        scores[name] = facts, model.score(*([getattr(one, field) for one in mine] for field in ("prompt", "ids", "places")))
    if optim.rank() == 0:
        torch.save(scores, out)
