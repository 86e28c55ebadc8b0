"""Benchmarks of training: speed of a step beside transformers' Trainer, share of the machine's matrix product, memory of the loss.

A competitor is a process of its own that is told when to do a step, so that both are measured in turns on the same machine.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from mathpipe.pipeline.bench import Benchmark, Racer, Row, done, race, row, wait
from mathpipe.pipeline.config import Runtime, num_gpus
from mathpipe.pretrain import model, optim
from mathpipe.pretrain.config import PretrainConfig

SIZES = {"5M": (256, 688, 6, 4), "20M": (512, 1376, 6, 8)}
"""Parameters without embeddings → hidden size, intermediate size, layers, heads."""
VOCABULARY, CONTEXT, ROWS = 2048, 256, 8
STEPS = 12
HERE = "mathpipe.pretrain.bench"


def build(size: str, **changes: Any) -> Any:
    """The model of a size."""
    hidden, intermediate, layers, heads = SIZES[size]
    config = PretrainConfig(hidden_size=hidden, intermediate_size=intermediate, num_layers=layers, num_heads=heads, **changes)
    return model.build(config, VOCABULARY, 0, 1)


def batch(step: int) -> torch.Tensor:
    """Token ids of a step, all processes' rows."""
    return torch.randint(2, VOCABULARY, (ROWS, CONTEXT), generator=torch.Generator().manual_seed(step))


def our_steps(size: str) -> Iterator[float]:
    """Training steps as the stage pretrain does them, through DeepSpeed's engine; yields the loss."""
    optim.start_processes(Runtime(device="cpu", num_threads=torch.get_num_threads()))
    loss_of = model.TokenLoss(build(size))
    engine = optim.engine(loss_of, optim.adamw(loss_of, 1e-4, (0.9, 0.95), 0.1), 1, 1.0)
    step = 0
    while True:
        ids = batch(step)[optim.rank() :: optim.world_size()]
        nats = engine(ids, ids).sum() / (ROWS * (CONTEXT - 1))
        engine.backward(optim.scaled(nats, 1))
        optim.step(engine)
        yield optim.total(nats.detach())
        step += 1


def trainer_steps(size: str) -> None:
    """The same steps by transformers' Trainer, each when told."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Turns(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            done(ROWS * CONTEXT)

    rows = [{"input_ids": ids, "labels": ids} for step in range(STEPS + 2) for ids in batch(step)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=ROWS, num_train_epochs=1, report_to=[], save_strategy="no", use_cpu=True,
            disable_tqdm=True, logging_steps=10**6, learning_rate=1e-4, weight_decay=0.1, adam_beta2=0.95, lr_scheduler_type="constant",
        )  # fmt: skip
        Trainer(model=build(size), args=arguments, train_dataset=rows, callbacks=[Turns()]).train()  # type: ignore[arg-type]


def train_tokens_per_s() -> list[Row]:
    """Tokens per second of whole training steps (forward, loss, backward, clipping, AdamW), ours beside the Trainer.

    Both on two cores, each as it does best on them: two processes with a thread each against one process with two; then both as
    one process with one thread.
    """
    found = []
    for size in SIZES:
        for layout, num_cores in (("", 2), (".one_core", 1)):
            ours, peer = Racer(HERE, "ours", size, num_processes=num_cores), Racer(HERE, "trainer", size, num_threads=num_cores)
            (rate, peer_rate), (_, ratio) = race([ours, peer])
            name = f"pretrain.train_tokens_per_s.{size}{layout}"
            found.append(row(name, rate, "tokens/s", "at least 1.2x", ratio >= 1.2, peer_rate, "transformers Trainer", ratio))
    return found


def flops_per_step(size: str) -> float:
    """Floating-point operations of a training step: 6 a parameter (head included) and token, and causal attention's."""
    hidden, intermediate, layers, _ = SIZES[size]
    parameters = layers * (4 * hidden**2 + 3 * hidden * intermediate) + VOCABULARY * hidden
    return ROWS * CONTEXT * (6 * parameters + 6 * layers * hidden * CONTEXT)


def peak_flops_per_s(dtype: torch.dtype, size: int = 1536) -> float:
    """The fastest of some square matrix products on this process's threads."""
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    return max(2 * size**3 / _seconds(lambda: a @ b) for _ in range(5))


def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def matmul_share() -> list[Row]:
    """Share of the matrix product's peak that a training step reaches on one core, in fp32, the type that trains fastest on CPUs
    without bf16 units; the peak is taken between the steps. The bf16 peak stands beside it."""
    torch.set_num_threads(1)
    bf16 = peak_flops_per_s(torch.bfloat16, 256)
    found = []
    for size in SIZES:
        steps = our_steps(size)
        next(steps)
        pairs = [(peak_flops_per_s(torch.float32), _seconds(lambda: next(steps))) for _ in range(STEPS)]  # noqa: B023
        share = statistics.median(flops_per_step(size) / seconds / peak for peak, seconds in pairs)
        peaks = statistics.median(peak for peak, _ in pairs)
        note = f"of {peaks / 1e9:.0f} GFLOP/s fp32 (bf16: {bf16 / 1e9:.0f})"
        found.append(row(f"pretrain.matmul_share.{size}", share, note, "at least 0.55", share >= 0.55))
    return found


MEMORY = """
import resource, sys, torch
from mathpipe.pretrain import loss
torch.manual_seed(0)
torch.set_num_threads(1)
head, hidden = torch.nn.Linear(128, 102_400, bias=False), torch.randn(4096, 128, requires_grad=True)
rows, targets = torch.arange(4096), torch.randint(0, 102_400, (4096,))
def run(n):
    if sys.argv[1] == "ours":
        loss.nll(head, hidden, rows[:n], targets[:n]).sum().backward()
    else:
        torch.nn.functional.cross_entropy(head(hidden[:n]).float(), targets[:n], reduction="sum").backward()
run(8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(4096)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def loss_memory() -> Row:
    """Peak memory (MB) of the loss of 4,096 tokens at a vocabulary of 102,400 (DeepSeek's) and width 128, forward and backward."""

    def peak(kind: str) -> float:
        return float(subprocess.run([sys.executable, "-c", MEMORY, kind], check=True, capture_output=True, text=True).stdout)

    ours, plain = peak("ours"), peak("plain")
    ratio = plain / ours
    return row("pretrain.loss_memory", ours, "MB", "at most a fifth", ratio >= 5, plain, "cross_entropy of all logits", ratio)


def gpu_step() -> list[Row]:
    """0.5B parameters at a context of 4,096 on one GPU in bf16: tokens/s, MFU (of an H100's 989 TFLOP/s) and peak memory."""
    if not num_gpus():
        raise RuntimeError("needs a GPU")
    device = optim.start_processes(Runtime(device="cuda"))
    config = PretrainConfig(hidden_size=1280, intermediate_size=3520, num_layers=24, num_heads=10)
    network, rows, context, vocabulary = model.build(config, 102_400, 0, 1), 4, 4096, 102_400
    loss_of = model.TokenLoss(network).to(device)
    engine = optim.engine(loss_of, optim.adamw(loss_of, 1e-4, (0.9, 0.95), 0.1), 1, 1.0, bf16=True)
    seconds = []
    for step in range(STEPS):
        ids = torch.randint(2, vocabulary, (rows, context), generator=torch.Generator().manual_seed(step)).to(device)
        torch.cuda.synchronize()
        began = time.perf_counter()
        engine.backward(engine(ids, ids).sum() / ids.numel())
        optim.step(engine)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    rate = rows * context / statistics.median(seconds[2:])
    parameters = config.num_parameters + vocabulary * config.hidden_size
    share = rate * (6 * parameters + 6 * config.num_layers * config.hidden_size * context) / 989e12
    memory = torch.cuda.max_memory_allocated() / 2**30
    return [
        row("pretrain.gpu_step.tokens_per_s", rate, "tokens/s", "a figure", True),
        row("pretrain.gpu_step.mfu", share, "of 989 TFLOP/s", "at least 0.45", share >= 0.45),
        row("pretrain.gpu_step.memory", memory, "GiB", "a figure", True),
    ]


BENCHMARKS: dict[str, Benchmark] = {
    "pretrain.train_tokens_per_s": train_tokens_per_s,
    "pretrain.matmul_share": matmul_share,
    "pretrain.loss_memory": loss_memory,
    "pretrain.gpu_step": gpu_step,
}

if __name__ == "__main__":
    kind, size = sys.argv[1:]
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if kind == "trainer":
        trainer_steps(size)
    else:
        steps = our_steps(size)
        while True:
            wait()
            next(steps)
            done(ROWS * CONTEXT / optim.world_size())
