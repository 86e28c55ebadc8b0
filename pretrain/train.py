"""Stage pretrain: a causal language model on the corpus, through DeepSpeed.

Documents stand one after another with EOS between them; a window is `context` consecutive tokens, attention crosses
documents (as then customary). Windows are shuffled per epoch by the seed alone, so any number of processes sees the same
batches. Result: `model/` in the transformers layout.
"""

from __future__ import annotations

import functools
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mathpipe.pipeline import artifact, log, stage
from mathpipe.pretrain import checkpoint, model, optim, tokens
from mathpipe.pretrain import tokenizer as bpe
from mathpipe.pretrain.config import PretrainConfig, PretrainInputs

MAX_HELD_OUT_TOKENS = 50_000
"""Tokens of the held-out split that the loss is measured on."""


@functools.lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Order of the windows in an epoch; a step needs at most the end of one and the beginning of the next."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def windows(data: np.ndarray, context: int, seed: int, step: int, per_step: int) -> Tensor:
    """The `[per_step, context]` windows of one optimizer step: consecutive places in an endless sequence of shuffled epochs."""
    count = len(data) // context
    places = np.arange(step * per_step, (step + 1) * per_step)
    rows = np.empty(per_step, np.int64)
    for epoch in np.unique(places // count):
        here = places // count == epoch
        rows[here] = epoch_order(count, seed, int(epoch))[places[here] % count]
    return torch.from_numpy(np.stack([data[r * context : (r + 1) * context] for r in rows]).astype(np.int64))


@torch.no_grad()
def held_out_nats(loss: model.TokenLoss, data: np.ndarray, context: int, batch: int, device: torch.device) -> tuple[float, int]:
    """(summed -log p, predicted tokens) on the held-out split; processes share the windows."""
    width = min(context, len(data))
    count = min(len(data), MAX_HELD_OUT_TOKENS) // width
    rows = torch.from_numpy(data[: count * width].astype(np.int64)).view(count, width)
    nats = sum(float(loss(part.to(device), part.to(device)).sum()) for part in rows[optim.rank() :: optim.world_size()].split(batch))
    return optim.total(nats), rows.numel() - len(rows)


def run(config: PretrainConfig, inputs: PretrainInputs, out: Path) -> dict[str, Any]:
    """Train for `total_tokens`; facts: parameters, tokens, steps, first and last held-out loss, bits per byte."""
    facts = artifact.read_manifest(inputs.tokens)
    train_data, held_out = tokens.read(inputs.tokens, "train"), tokens.read(inputs.tokens, "held_out")
    per_step = config.batch_tokens // config.context
    if len(train_data) < config.context:
        raise ValueError(f"{inputs.tokens}: {len(train_data)} training tokens, fewer than a window of {config.context}; enlarge the corpus")
    device = optim.start_processes(config.runtime)
    processes = optim.world_size()
    if per_step % processes:
        raise ValueError(f"batch_tokens holds {per_step} windows, not a multiple of {processes} processes")
    vocabulary = bpe.load(inputs.tokenizer / "tokenizer")
    if config.start:
        network = model.load(config.start)
    else:
        network = model.build(config, len(vocabulary), vocabulary.eos_token_id, vocabulary.pad_token_id)
    loss_of = model.TokenLoss(network).to(device)
    micro = max(1, config.micro_batch_tokens // config.context)
    micro_steps = math.ceil(per_step / processes / micro)
    optimizer = optim.adamw(loss_of, config.peak_lr, (config.beta1, config.beta2), config.weight_decay)
    engine = optim.engine(loss_of, optimizer, micro_steps, config.max_grad_norm, config.zero_stage, config.bf16)
    first = checkpoint.load(engine, out)
    is_main = optim.rank() == 0
    if is_main:
        artifact.truncate_metrics(out, first)
        log.logger().info("%d steps of %d tokens, %d parameters", config.num_steps, config.batch_tokens, network.num_parameters())
    bytes_per_token = facts["held_out"]["num_bytes"] / facts["held_out"]["num_tokens"]

    def evaluate(step: int) -> None:
        nats, count = held_out_nats(loss_of, held_out, config.context, micro, device)
        if is_main:
            values = {"held_out_loss": nats / count, "bits_per_byte": nats / count / math.log(2) / bytes_per_token}
            artifact.append_metrics(out, step=step, tokens=step * config.batch_tokens, **values)

    if first == 0:
        evaluate(0)
    progress = log.Progress(out, config.num_steps, "steps", "pretrain", first) if is_main else None
    for step in range(first, config.num_steps):
        began = time.perf_counter()
        lr = config.peak_lr * optim.lr_factor(config.schedule, step, config.num_steps, config.warmup_steps)
        optim.set_lr(optimizer, lr)
        batch = windows(train_data, config.context, config.seed, step, per_step)[optim.rank() :: processes].to(device)
        predicted = per_step * (config.context - 1)
        nats = 0.0
        for part in batch.chunk(micro_steps):
            loss = engine(part, part).sum()
            engine.backward(optim.scaled(loss / predicted, micro_steps))
            norm = optim.step(engine)
            nats += float(loss.detach())
        mean = optim.total(nats) / predicted
        if not math.isfinite(mean):
            raise ValueError(f"loss is {mean} at step {step + 1}; lower pretrain.peak_lr (now {config.peak_lr}) or lengthen the warm-up")
        done = step + 1
        if progress and (done % config.runtime.log_interval == 0 or done == config.num_steps):
            speed = config.batch_tokens / (time.perf_counter() - began)
            values = {"loss": mean, "lr": lr, "grad_norm": norm, "tokens_per_s": speed}
            artifact.append_metrics(out, step=done, tokens=done * config.batch_tokens, **values)
        if progress:
            progress.advance(1, f"loss {mean:.3f}")
        if done % config.eval_every == 0 or done == config.num_steps:
            evaluate(done)
        if done % config.checkpoint_every == 0 and done < config.num_steps:
            checkpoint.save(engine, out, done)
    if is_main:
        model.save(network, vocabulary, out)
    checkpoint.clear(out)
    measured = [row for row in artifact.read_metrics(out) if "held_out_loss" in row] if is_main else []
    return {
        "num_parameters": network.num_parameters(), "num_steps": config.num_steps, "num_tokens": config.num_steps * config.batch_tokens,
        "num_corpus_tokens": len(train_data), "num_processes": processes,
        "held_out": {"before": measured[0], "after": measured[-1]} if measured else None,
    }  # fmt: skip


if __name__ == "__main__":
    stage.main(run)
