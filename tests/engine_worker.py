"""Trains a toy model with the project's loop in groups of forked processes, which share one import of torch and DeepSpeed.

    python engine_worker.py '[{"processes": 2, "runs": [{"out": DIR, "zero_stage": 2, …}]}, …]'

A group is one process group that makes its runs one after another. Fields of a run are those of PretrainConfig and `out`, `steps`,
`data` (whose step's data each step gets), `noise` (steps with random labels), `poison` (steps whose loss is nan in the last process),
`die_at` (a step at which every process kills itself). With `kill_when` (a path) and `kill_after_s` the group is killed so long after
that path appears. A run leaves metrics.jsonl, weights.pt and facts.json, or error.txt.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed.comm.torch import build_shm_op

from mathpipe.pipeline.config import Runtime
from mathpipe.pretrain import loop, model, optim
from mathpipe.pretrain.config import PretrainConfig

VOCABULARY, WIDTH, ROWS = 64, 24, 8
TOY: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_layers": 2, "num_heads": 2, "initializer_range": 0.2, "context": WIDTH,
    "batch_tokens": ROWS * WIDTH, "micro_batch_tokens": 2 * WIDTH, "peak_lr": 1e-2, "warmup_steps": 3, "max_grad_norm": 0.5,
    "runtime": Runtime(device="cpu", log_interval=1),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Events:
    """What happens to a run."""

    steps: int = 20
    data: tuple[int, ...] = tuple(range(100))
    noise: tuple[int, ...] = ()
    poison: tuple[int, ...] = ()
    die_at: int = -1


def rows_of(step: int, noise: bool = False) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """(ids, labels, sources) of a step: counting sequences of two sources, by ones and by threes."""
    rng = np.random.default_rng(step)
    source_B = rng.integers(0, 2, ROWS)
    ids_BT = torch.from_numpy((rng.integers(0, VOCABULARY, (ROWS, 1)) + np.arange(WIDTH) * (1 + 2 * source_B[:, None])) % VOCABULARY)
    return ids_BT, torch.from_numpy(rng.integers(0, VOCABULARY, (ROWS, WIDTH))) if noise else ids_BT, source_B


def batch_of(step: int, size: int, noise: bool) -> loop.Batch:
    """This process's share of a step."""
    ids_BT, labels_BT, source_B = rows_of(step, noise)
    mine = slice(optim.rank(), None, optim.world_size())
    parts = [(i, n, None, None) for i, n in zip(ids_BT[mine].split(size), labels_BT[mine].split(size), strict=True)]
    sources = [source_B[mine][start : start + size] for start in range(0, ROWS // optim.world_size(), size)]
    return loop.Batch(parts, sources, np.bincount(source_B, minlength=2) * (WIDTH - 1.0), ids_BT.numel())


NO_TOKENIZER = types.SimpleNamespace(save_pretrained=lambda path: None)


def train(run: dict[str, Any]) -> None:
    """One run to its end."""
    out = Path(run.pop("out"))
    out.mkdir(parents=True, exist_ok=True)
    events = Events(**{name: run.pop(name) for name in [f.name for f in dataclasses.fields(Events)] if name in run})
    config = PretrainConfig(**TOY | run)
    size, micro_steps = optim.micro_batches(ROWS, config.micro_batch_tokens // WIDTH, "batch_tokens")
    network = model.build(config, VOCABULARY, 0, 1)
    engine = loop.make_engine(network, config, config.peak_lr, micro_steps)

    def batch(step: int) -> loop.Batch:
        if step == events.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        engine.module.factor = float("nan") if step in events.poison and optim.rank() == optim.world_size() - 1 else 1.0
        return batch_of(events.data[step], size, step in events.noise)

    engine.module.register_forward_hook(lambda module, inputs, loss_B: loss_B * module.factor)
    job = loop.Job("toy", events.steps, config.peak_lr, WIDTH, batch, ("ones", "threes"))
    try:
        facts = loop.train(engine, network, NO_TOKENIZER, job, config, out)
    except ValueError as error:
        (out / "error.txt").write_text(str(error))
        return
    weights = optim.full_weights(engine, network)
    dtypes = [str(p.dtype) for group in engine.basic_optimizer.param_groups for p in group["params"]]
    if optim.rank() == 0:
        torch.save(weights, out / "weights.pt")
        (out / "facts.json").write_text(json.dumps({**facts, "optimizer_dtypes": dtypes}))
    engine.destroy()


def child(rank: int, group: dict[str, Any], port: int) -> None:
    """One process of a group; leaves without teardown."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(group["processes"]), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}  # fmt: skip
    code = 1
    try:
        optim.start_processes(Runtime(device="cpu"))
        for run in group["runs"]:
            train(run)
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_group(group: dict[str, Any]) -> str:
    """How the processes of a group ended: `done` or `killed`.

    Raises:
        SystemExit: one failed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(group["processes"]):
        pid = os.fork()
        if pid == 0:
            child(rank, group, port)
        pids.append(pid)
    if "kill_when" in group:
        deadline = time.monotonic() + 60
        while not Path(group["kill_when"]).exists() and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(group["kill_after_s"])
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    if any(code not in (0, -signal.SIGKILL) for code in codes):
        sys.exit(f"{group}: exit codes {codes}")
    return "killed" if any(codes) else "done"


if __name__ == "__main__":
    build_shm_op()  # once, before the forks
    print(json.dumps([run_group(group) for group in json.loads(sys.argv[1])]))
