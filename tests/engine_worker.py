"""Trains a toy model with the project's loop, several runs one after another in one process group; started by tests, also by torchrun.

python engine_worker.py '[{"out": DIR, "zero_stage": 2, …}, …]'. Fields of a run: those of PretrainConfig, `out`, `steps`, `poison`
(steps whose loss is made nan in the last process) and `spike` (steps on which the first process's rows have random labels).
Writes out/losses.json (what metrics.jsonl holds, loss in full) and out/weights.pt, the final weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mathpipe.pretrain import loop, model, optim
from mathpipe.pretrain.config import PretrainConfig

VOCABULARY, WIDTH, ROWS = 64, 24, 8
TOY: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_layers": 2, "num_heads": 2, "initializer_range": 0.2, "context": WIDTH,
    "batch_tokens": ROWS * WIDTH, "micro_batch_tokens": 2 * WIDTH, "peak_lr": 1e-2, "warmup_steps": 3, "max_grad_norm": 1.0,
}  # fmt: skip


def toy_batch(step: int, rows: int, spike: bool = False) -> loop.Batch:
    """8 windows of counting sequences from two sources (steps of 1, steps of 3) for the toy model."""
    rng = np.random.default_rng(step)
    source_B = rng.integers(0, 2, ROWS)
    ids_BT = (rng.integers(0, VOCABULARY, (ROWS, 1)) + np.arange(WIDTH) * (1 + 2 * source_B[:, None])) % VOCABULARY
    ids = torch.from_numpy(ids_BT)
    labels = torch.from_numpy(rng.integers(0, VOCABULARY, ids_BT.shape)) if spike else ids
    mine = slice(optim.rank(), None, optim.world_size())
    counted_S = np.bincount(source_B, minlength=2) * (WIDTH - 1.0)
    parts = [(i, n, None, None) for i, n in zip(ids[mine].split(rows), labels[mine].split(rows), strict=True)]
    sources = [source_B[mine][start : start + rows] for start in range(0, ROWS // optim.world_size(), rows)]
    return loop.Batch(parts, sources, counted_S, ids_BT.size)


def train(run: dict[str, Any]) -> None:
    """One run to its end."""
    out, poison, spike = Path(run.pop("out")), run.pop("poison", []), run.pop("spike", [])
    out.mkdir(parents=True, exist_ok=True)
    num_steps = run.pop("steps", 20)
    config = PretrainConfig(**TOY | run)
    rows, micro_steps = optim.micro_batches(ROWS, config.micro_batch_tokens // WIDTH, "batch_tokens")
    network = model.build(config, VOCABULARY, 0, 1)
    engine = loop.make_engine(network, config, config.peak_lr, micro_steps)

    def batch(step: int) -> loop.Batch:
        engine.module.nan = step in poison and optim.rank() == optim.world_size() - 1
        return toy_batch(step, rows, spike=step in spike)

    engine.module.register_forward_hook(lambda module, inputs, loss_B: loss_B * (float("nan") if module.nan else 1.0))
    job = loop.Job("toy", num_steps, config.peak_lr, WIDTH, batch, ("ones", "threes"))
    facts = loop.train(engine, network, job, config, out)
    weights = optim.full_weights(engine, network)
    if optim.rank() == 0:
        torch.save(weights, out / "weights.pt")
        (out / "facts.json").write_text(json.dumps(facts))
    engine.destroy()


if __name__ == "__main__":
    from mathpipe.pipeline.config import Runtime

    optim.start_processes(Runtime(device="cpu"))
    for description in json.loads(sys.argv[1]):
        train({"runtime": Runtime(device="cpu", log_interval=1), **description})
