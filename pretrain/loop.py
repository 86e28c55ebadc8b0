"""The training loop of pre-training and SFT: micro-batches into DeepSpeed's engine, schedule, watch, metrics, checkpoints.

Nothing but the weights, the optimizer, the generators and the last losses is carried from step to step: the batch and the learning
rate are functions of the step's number. A stage that was killed therefore continues from its checkpoint as if nothing had happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from mathpipe.pipeline import artifact, log
from mathpipe.pretrain import checkpoint, model, optim
from mathpipe.pretrain.model import TokenLoss
from mathpipe.pretrain.watch import Watch, flops_per_token, peak_flops, peak_memory_gb

Arguments = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Batch:
    """One process's share of an optimizer step."""

    parts: Sequence[Arguments]
    """Micro-batches: the arguments of `TokenLoss.forward`, on the CPU."""
    sources: Sequence[np.ndarray]
    """For each micro-batch the number of each row's source."""
    counted_S: np.ndarray
    """Labelled positions by source, over all processes."""
    num_tokens: int
    """Tokens without padding, over all processes."""


@dataclass(frozen=True)
class Job:
    """What is trained on."""

    phase: str
    """`pretrain` or `sft`, for the progress line."""
    num_steps: int
    peak_lr: float
    context: int
    """Tokens of a row, for the FLOPs of attention."""
    batch: Callable[[int], Batch]
    """Of a step, 0-based."""
    sources: tuple[str, ...] = ("all",)
    """Names for the losses by source, where there are several."""
    eval_every: int = 0
    evaluate: Callable[[], dict[str, float]] | None = None
    """Held-out figures, before the first step, every `eval_every` steps and after the last."""
    describe: Callable[[int], dict[str, float]] | None = None
    """Further figures after so many steps, for metrics.jsonl."""


def make_engine(network: Any, config: Any, lr: float, micro_steps: int) -> Any:
    """DeepSpeed's engine around the `TokenLoss` of a network, on this process's device.

    Args:
        config: beta1, beta2, weight_decay, max_grad_norm, zero_stage, bf16, activation_checkpointing, compile, runtime.
    """
    if config.activation_checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    if config.compile:
        for layer in network.modules():
            if isinstance(layer, GradientCheckpointingLayer):  # what transformers' decoder layers are
                layer.compile()
    loss_of = TokenLoss(network).to(optim.device(config.runtime))
    optimizer = optim.adamw(loss_of, lr, (config.beta1, config.beta2), config.weight_decay)
    return optim.engine(loss_of, optimizer, micro_steps, config.max_grad_norm, config.zero_stage, config.bf16)


def write_model(engine: Any, network: Any, tokenizer: Any, out: Path) -> None:
    """`out/model` in the transformers layout, whole at every ZeRO stage; every process calls it."""
    weights = optim.full_weights(engine, network)
    if optim.rank() == 0:
        model.save(network, tokenizer, out, weights)


def train(engine: Any, network: Any, tokenizer: Any, job: Job, config: Any, out: Path) -> dict[str, Any]:
    """Train to the last step, from the last checkpoint where there is one, and write `out/model`; facts for the manifest.

    Args:
        engine: around a `TokenLoss` of `network`.
        tokenizer: goes with the model, here and in every checkpoint.
        config: schedule, warmup_steps, checkpoint_every, keep_checkpoints, on_bad_loss, spike_factor, bf16, runtime.
    """
    device, is_main = engine.device, optim.rank() == 0
    engine.train()
    first, state = checkpoint.load(engine, out)
    watch = Watch(config.on_bad_loss, config.spike_factor, out, state)
    if is_main:
        artifact.truncate_metrics(out, first or -1)
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    peak, flops = peak_flops(device, dtype, config.runtime.peak_tflops), flops_per_token(network, job.context)
    if is_main:
        log.logger().info("%.3g FLOPs a token, peak %.4g TFLOP/s (%s)", flops, peak / 1e12, str(dtype).removeprefix("torch."))

    def evaluate(step: int) -> None:
        if job.evaluate is not None:
            engine.eval()
            values = job.evaluate()
            engine.train()
            if is_main:
                artifact.append_metrics(out, step=step, **values)

    if first == 0:
        evaluate(0)
    progress = log.Progress(out, job.num_steps, "steps", job.phase, first)
    num_tokens, seconds = 0, 0.0
    for step in range(first, job.num_steps):
        began, done = time.perf_counter(), step + 1
        lr = job.peak_lr * optim.lr_factor(config.schedule, step, job.num_steps, config.warmup_steps)
        optim.set_lr(engine.basic_optimizer, lr)
        batch = job.batch(step)
        loss, loss_S, norm = _step(engine, batch, watch, done, device)
        num_tokens, seconds = num_tokens + batch.num_tokens, seconds + time.perf_counter() - began
        speed = num_tokens / seconds
        if is_main and (done == 1 or done % config.runtime.log_interval == 0 or done == job.num_steps):
            values = {"loss": loss, "lr": lr, "grad_norm": norm, "tokens_per_s": speed, "peak_memory_gb": peak_memory_gb(device)}
            values |= {"mfu": speed * flops / peak} if math.isfinite(peak) else {}
            values |= {"skipped": watch.num_skipped} if watch.num_skipped else {}
            if len(job.sources) > 1:
                values |= {f"loss/{name}": float(loss_S[n]) for n, name in enumerate(job.sources) if batch.counted_S[n]}
            values |= job.describe(done) if job.describe else {}
            artifact.append_metrics(out, step=done, **{name: value for name, value in values.items() if math.isfinite(value)})
            num_tokens, seconds = 0, 0.0
        progress.advance(1, f"loss {loss:.3f}  {speed:,.0f} tokens/s")
        if done == job.num_steps or (job.eval_every and done % job.eval_every == 0):
            evaluate(done)
        if done % config.checkpoint_every == 0 and done < job.num_steps:
            state = watch.state()
            checkpoint.save(engine, out, done, config.keep_checkpoints, state, lambda path: write_model(engine, network, tokenizer, path))
    write_model(engine, network, tokenizer, out)
    return {"num_steps": job.num_steps, "num_processes": optim.world_size(), "num_skipped_steps": watch.num_skipped}


def _step(engine: Any, batch: Batch, watch: Watch, number: int, device: torch.device) -> tuple[float, np.ndarray, float]:
    """(mean loss, mean loss by source, gradient norm) of one optimizer step; the weights move unless the watch objects."""
    rows: list[Tensor] = []
    counted, micro_steps = int(batch.counted_S.sum()), len(batch.parts)
    for part in batch.parts:
        if rows:
            optim.step(engine)
        loss_B = engine(*[None if value is None else value.to(device, non_blocking=True) for value in part])
        engine.backward(optim.scaled(loss_B.sum() / counted, micro_steps))
        rows.append(loss_B.detach())
    rows_of = [row.cpu().numpy() for row in rows]
    nats_S = np.bincount(np.concatenate(batch.sources), np.concatenate(rows_of), len(batch.counted_S))
    nats_S = optim.total_array(nats_S)
    loss = float(nats_S.sum() / counted)
    why = watch.bad_loss(loss)
    norm = optim.step(engine, apply=not why)
    assert norm is not None, "the engine expected more micro-batches"
    why = why or ("" if math.isfinite(norm) else f"the gradient's norm is {norm}")
    if why:
        watch.bad(number, why, batch.parts, rows_of)
    else:
        watch.good(loss)
    return loss, nats_S / np.maximum(batch.counted_S, 1), norm
