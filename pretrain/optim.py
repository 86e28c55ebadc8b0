"""Learning-rate schedules, AdamW and the DeepSpeed engine that every training stage uses."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from mathpipe.pipeline.config import Runtime


def lr_factor(schedule: str, step: int, num_steps: int, warmup_steps: int) -> float:
    """Share of the peak learning rate at `step` (0-based) of `num_steps`, the warm-up among them.

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


class AdamW(torch.optim.AdamW):
    """torch's AdamW that leaves weights and moments where they are while `skip` is set, at every ZeRO stage."""

    skip = False

    def step(self, closure: Any = None) -> Any:
        """One update, or none."""
        return None if self.skip else super().step(closure)


def adamw(model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> AdamW:
    """AdamW with weight decay on matrices only, embeddings included: norms and biases (one dimension) are left alone.

    The fused kernel: on CPU a step of a million parameters takes 2 ms instead of 6.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=True)


def set_lr(optimizer: Any, lr: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def engine(
    model: nn.Module, optimizer: AdamW, micro_steps: int, max_grad_norm: float, zero_stage: int = 0, bf16: bool = False
) -> Any:
    """DeepSpeed engine around `model`; one optimizer step every `micro_steps` backward passes.

    With `bf16`, weights and activations are bf16, master weights, moments and the sum of gradients over micro-batches fp32.
    DeepSpeed sums in fp32 from stage 1 on, so stage 0 then runs as stage 1: the same numbers, in less memory.

    The engine divides each loss by `micro_steps` and averages gradients over processes; `scaled` undoes both, so that a loss
    summed over tokens and divided by a global count gives the same gradient for any split of the batch.
    """
    import deepspeed

    clips_itself = zero_stage > 0 or bf16  # else `step` clips: torch's clipping is several times faster and tells the norm
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro_steps,
        "gradient_clipping": max_grad_norm if clips_itself else 0.0,
        "zero_optimization": {"stage": max(zero_stage, int(bf16))},
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    made = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)[0]
    made.max_grad_norm = max_grad_norm
    if world_size() == 1 and not made.zero_optimization():
        made.enable_backward_allreduce = False  # DeepSpeed would copy all gradients for nobody: 3 % of a step
    return made


def micro_batches(num_rows: int, max_rows: int, what: str) -> tuple[int, int]:
    """(rows of a micro-batch, micro-batches a step) of one process, for `num_rows` rows a step over all processes.

    A micro-batch has `max_rows` rows, or all of a process's share where that is less.

    Raises:
        ValueError: the rows cannot be shared out evenly; `what` names the setting.
    """
    share, left = divmod(num_rows, world_size())
    if left or share == 0:
        raise ValueError(f"{what} holds {num_rows} rows, not a multiple of {world_size()} processes; change one of them")
    rows = min(share, max_rows)
    if share % rows:
        fitting = ", ".join(str(n) for n in range(1, max_rows + 1) if share % n == 0)
        raise ValueError(
            f"{what}: each of {world_size()} processes has {share} rows a step, which do not divide into micro-batches of {rows}; "
            f"take {fitting} rows a micro-batch"
        )
    return rows, share // rows


def scaled(loss: torch.Tensor, micro_steps: int) -> torch.Tensor:
    """The loss with DeepSpeed's two averages (accumulation, processes) undone."""
    return loss * (micro_steps * world_size())


def start_processes(runtime: Runtime) -> torch.device:
    """Join the process group torchrun described (a group of one without torchrun), set threads, return the device."""
    import deepspeed

    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        os.environ.setdefault(name, value)
    torch.set_num_threads(runtime.num_threads)
    if not dist.is_initialized():
        deepspeed.init_distributed(dist_backend="nccl" if runtime.uses_gpu() else "gloo", verbose=False)
    return device(runtime)


def device(runtime: Runtime) -> torch.device:
    """The device of this process: on each node one GPU a process, or the CPU."""
    if not runtime.uses_gpu():
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cuda", torch.cuda.current_device())


def rank() -> int:
    """This process's number, 0 outside a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 outside a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def total_array(values: np.ndarray) -> np.ndarray:
    """Element-wise sum over all processes, in float64."""
    tensor = torch.from_numpy(values.astype(np.float64))
    if world_size() > 1:
        tensor = tensor.cuda() if dist.get_backend() == "nccl" else tensor
        dist.all_reduce(tensor)
    return tensor.cpu().numpy()


def total(value: float | torch.Tensor) -> float:
    """Sum of a number over all processes."""
    return float(total_array(np.array([float(value)]))[0])


def highest(value: float) -> float:
    """Largest of a number over all processes."""
    values = np.zeros(world_size())
    values[rank()] = value
    return float(total_array(values).max())


def step(engine: Any, apply: bool = True) -> float | None:
    """One micro-step; at the last of a step the optimizer moves. Returns the gradient norm before clipping, None before the last.

    Where the norm is not finite (inf or nan is returned), or without `apply`, weights and moments stay as they are and the
    gradient is dropped.
    """
    if not engine.is_gradient_accumulation_boundary():
        engine.step()
        return None
    inner = engine.basic_optimizer
    norm = None
    if not engine.zero_optimization():
        parameters = [p for p in engine.module.parameters() if p.grad is not None]
        norm = float(nn.utils.get_total_norm([p.grad for p in parameters]))
        apply = apply and math.isfinite(norm)
        if apply and engine.max_grad_norm:
            nn.utils.clip_grads_with_norm_(parameters, engine.max_grad_norm, torch.tensor(norm))
    inner.skip = not apply
    engine.step()
    inner.skip = False
    return norm if norm is not None else float(engine.get_global_grad_norm())


def named_weights(engine: Any, network: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """(name, weight) of a part of what the engine wraps, whole on every process: its own tensors, or copies where ZeRO 3 spreads them."""
    if not engine.zero_optimization_partition_weights():
        return [(name, parameter.detach()) for name, parameter in network.named_parameters()]
    from deepspeed.runtime.zero import GatheredParameters

    weights = []
    for name, parameter in network.named_parameters():
        with GatheredParameters([parameter]):
            weights.append((name, parameter.detach().clone()))
    return weights


def full_weights(engine: Any, network: nn.Module) -> dict[str, torch.Tensor]:
    """Every weight of `network`, a part of what the engine wraps, by name, on the CPU; whole at every ZeRO stage.

    All processes call it; only the first gets them, the others an empty dict. fp32, with bf16 the bf16 weights it computes with.
    """
    from deepspeed.runtime.zero import GatheredParameters

    weights = {}
    for name, parameter in network.named_parameters():
        with GatheredParameters([parameter], enabled=engine.zero_optimization_partition_weights()):
            if rank() == 0:
                weights[name] = parameter.detach().cpu().clone()
    return weights
