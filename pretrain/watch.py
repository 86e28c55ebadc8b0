"""What a training loop keeps an eye on: speed, MFU, memory, and losses that must not reach the weights.

Model FLOPs utilisation = tokens/s · FLOPs per token / peak. FLOPs per token (forward and backward, PaLM appendix B) =
6·N + 12·L·H·T: N parameters without the input embedding (the output head counts), L layers, H width, T context. Causal masking
and recomputation by activation checkpointing are not subtracted or added. Peak = `runtime.peak_tflops`, or that of a known GPU
(dense bf16), or on CPU that of a matmul in the compute dtype on all processes at once.
"""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mathpipe.pipeline import log
from mathpipe.pretrain.optim import rank, total, world_size

GPU_PEAK_TFLOPS = {"H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "H200": 989.0, "A100": 312.0, "B200": 2250.0, "L40S": 362.0}
"""Dense bf16 without sparsity, as NVIDIA's data sheets state it; the first name that the device's contains."""
NUM_LOSSES = 50
MIN_LOSSES = 10
"""A spike is told from the median of the last NUM_LOSSES losses, once there are MIN_LOSSES."""
MAX_SKIPS = 5
"""Steps skipped in a row after which training stops all the same."""
MATMUL = 512


def flops_per_token(network: Any, context: int) -> float:
    """Of forward and backward, as the module's docstring says.

    >>> flops_per_token(network, context=4096)   # doctest: +SKIP
    """
    sizes = network.config
    counted = sum(getattr(p, "ds_numel", p.numel()) for p in network.parameters())
    embedding, head = network.get_input_embeddings().weight, network.get_output_embeddings()
    tied = head is not None and embedding is head.weight  # a reward model has no head over the vocabulary
    counted -= 0 if tied else getattr(embedding, "ds_numel", embedding.numel())
    return 6.0 * counted + 12.0 * sizes.num_hidden_layers * sizes.hidden_size * context


def peak_flops(device: torch.device, dtype: torch.dtype, peak_tflops: float) -> float:
    """Peak FLOP/s of all processes together; nan for a GPU that is not known. Every process calls it.

    Args:
        peak_tflops: of one device, where given.
    """
    if peak_tflops:
        return peak_tflops * 1e12 * world_size()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((peak for known, peak in GPU_PEAK_TFLOPS.items() if known in name), math.nan) * 1e12 * world_size()
    matrix = torch.ones(MATMUL, MATMUL, dtype=dtype)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - began)
    return total(2.0 * MATMUL**3 / min(seconds))


def peak_memory_gb(device: torch.device) -> float:
    """Most memory this process has held: on its GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Watch:
    """Refuses steps whose loss or gradient is not finite, or whose loss leaps; remembers the last losses."""

    def __init__(self, on_bad_loss: str, spike_factor: float, out: Path, state: dict[str, Any] | None) -> None:
        """`state` is what `state()` gave at the checkpoint that training continues from, or None."""
        self.on_bad_loss, self.spike_factor, self.out = on_bad_loss, spike_factor, out
        self.losses: deque[float] = deque(state["losses"] if state else [], NUM_LOSSES)
        self.num_skipped: int = state["num_skipped"] if state else 0
        self.in_a_row: int = state["in_a_row"] if state else 0

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"losses": list(self.losses), "num_skipped": self.num_skipped, "in_a_row": self.in_a_row}

    def bad_loss(self, loss: float) -> str:
        """Why a step with this loss must not move the weights; empty when it may."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not self.spike_factor or len(self.losses) < MIN_LOSSES:
            return ""
        usual = statistics.median(self.losses)
        return f"the loss is {loss:.4g}, {loss / usual:.3g} times the usual {usual:.4g}" if loss > self.spike_factor * usual else ""

    def good(self, loss: float) -> None:
        """Note a step that moved the weights."""
        self.losses.append(loss)
        self.in_a_row = 0

    def bad(self, step: int, why: str, parts: Any, rows: list[np.ndarray]) -> None:
        """Save this process's share of the batch of a step that did not move the weights, then go on or stop.

        Raises:
            ValueError: `on_bad_loss` is `stop`, or it was the fifth step in a row.
        """
        file = self.out / "bad_batches" / f"step-{step:06d}-{rank()}.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"parts": parts, "losses": rows, "why": why}, file)
        self.num_skipped, self.in_a_row = self.num_skipped + 1, self.in_a_row + 1
        found = f"step {step}: {why}; its batch is in {file}"
        if self.on_bad_loss == "stop":
            raise ValueError(f'{found}; lower the learning rate, lengthen the warm-up, or set on_bad_loss = "skip" (each makes a new run)')
        if self.in_a_row == MAX_SKIPS:
            raise ValueError(f"{found}; it is the {MAX_SKIPS}th step in a row without an update: lower the learning rate")
        if rank() == 0:
            log.logger().warning("%s; skipped", found)
