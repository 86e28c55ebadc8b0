"""Learning-rate schedules, AdamW and the DeepSpeed engine that every training stage uses."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from mathpipe.pipeline.config import Runtime


def lr_factor(schedule: str, step: int, num_steps: int, warmup_steps: int) -> float:
    """Share of the peak learning rate at `step` (0-based) of `num_steps`.

    `paper` (section 2.3, DeepSeek LLM's multi-step schedule): linear warm-up, 1 until 80 % of the steps, then 31.6 %, from
    90 % on 10 %. `note`: 1 until 90 %, then 10 %. `constant`: 1 after the warm-up.

    >>> [lr_factor("paper", s, 100, 10) for s in (0, 9, 79, 80, 90)]
    [0.1, 1.0, 1.0, 0.316, 0.1]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = step / num_steps
    if schedule == "paper" and done >= 0.8:
        return 0.316 if done < 0.9 else 0.1
    return 0.1 if schedule == "note" and done >= 0.9 else 1.0


def adamw(model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only: norms and biases (one dimension) are left alone.

    The fused kernel: on CPU a step of a million parameters takes 2 ms instead of 6.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=True)


def set_lr(optimizer: Any, lr: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def engine(
    model: nn.Module, optimizer: torch.optim.Optimizer, micro_steps: int, max_grad_norm: float, zero_stage: int = 0, bf16: bool = False
) -> Any:
    """DeepSpeed engine around `model`; one optimizer step every `micro_steps` backward passes.

    The engine divides each loss by `micro_steps` and averages gradients over processes; `scaled` undoes both, so that a loss
    summed over tokens and divided by a global count gives the same gradient for any split of the batch.
    """
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro_steps,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": {"stage": zero_stage},
        "bf16": {"enabled": bf16},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)[0]


def scaled(loss: torch.Tensor, micro_steps: int) -> torch.Tensor:
    """The loss with DeepSpeed's two averages (accumulation, processes) undone."""
    return loss * (micro_steps * world_size())


def start_processes(runtime: Runtime) -> torch.device:
    """Join the process group torchrun described (a group of one without torchrun), set threads, return the device."""
    import deepspeed

    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        os.environ.setdefault(name, value)
    torch.set_num_threads(runtime.num_threads)
    cuda = runtime.uses_gpu()
    if not dist.is_initialized():
        deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False)
    if not cuda:
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device("cuda", torch.cuda.current_device())


def rank() -> int:
    """This process's number, 0 outside a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 outside a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def total(value: float | torch.Tensor) -> float:
    """Sum of a number over all processes."""
    tensor = torch.as_tensor(value, dtype=torch.float64).detach().clone()
    if world_size() > 1:
        dist.all_reduce(tensor)
    return float(tensor)


def total_array(values: Any) -> Any:
    """Element-wise sum of a numpy array over all processes."""
    tensor = torch.from_numpy(values.copy())
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor.numpy()


def step(engine: Any) -> float | None:
    """One micro-step; at the last of a step the optimizer moves. Returns the gradient norm before clipping, where known."""
    last = engine.is_gradient_accumulation_boundary()
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None] if last else []
    norm = torch.nn.utils.get_total_norm(gradients) if gradients else None
    engine.step()
    known = engine.get_global_grad_norm() if last else None
    return float(known) if known is not None else float(norm) if norm is not None else None
