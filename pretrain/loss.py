"""Cross-entropy of a linear head that never holds the logits `[N, V]`: they exist for one chunk of positions at a time.

As in liger-kernel's fused linear cross-entropy, the gradients of hidden states and head are computed in the forward pass, chunk
by chunk, while the logits are there; the backward pass only scales them. Where the positions turn out to have unlike weights
(GRPO: each token its advantage) it computes the logits of each chunk again. The same code serves CPU and GPU: it is nothing but
matrix products and a few passes over a chunk, and gives per-position values, which liger's kernel cannot differentiate.

Shapes: M positions of which N count, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mathpipe.pretrain import fast_cpu

CHUNK_LOGITS = {"cpu": 1 << 19, "cuda": 1 << 28}
"""Logits that exist at the same time: 2 MB stay in a core's cache, 1 GB keeps a GPU busy."""


class LinearCrossEntropy(torch.autograd.Function):
    """-log p(target) of N positions, `[N]` in fp32, differentiable in hidden states and weight."""

    @staticmethod
    def forward(
        ctx: Any, hidden_MH: Tensor, weight_VH: Tensor, rows_N: Tensor, targets_N: Tensor, temperature_N: Tensor | None, in_forward: bool,
        entropy_N: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Args:
        rows_N: the positions that count, each at most once.
        temperature_N: divides the logits of each position; None is 1.
        in_forward: compute gradients now, in the expectation that the backward pass weighs all positions alike.
        entropy_N: takes the entropy of each position, in nats.
        """
        ones = torch.ones(len(rows_N), device=hidden_MH.device) if in_forward else None
        nll_N, *ctx.gradients = chunked(hidden_MH, weight_VH, rows_N, targets_N, temperature_N, ones, entropy_N)
        ctx.save_for_backward(hidden_MH, weight_VH, rows_N, targets_N, temperature_N)
        return nll_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden_gradient, weight_gradient = ctx.gradients
        ctx.gradients = None
        if hidden_gradient is not None and len(grad_N) and bool((grad_N == grad_N[0]).all()):
            hidden_gradient.mul_(grad_N[0])
            weight_gradient.mul_(grad_N[0])
        else:
            hidden_MH, weight_VH, rows_N, targets_N, temperature_N = ctx.saved_tensors
            _, hidden_gradient, weight_gradient = chunked(hidden_MH, weight_VH, rows_N, targets_N, temperature_N, grad_N)
        return hidden_gradient, weight_gradient, None, None, None, None, None


def chunked(
    hidden_MH: Tensor, weight_VH: Tensor, rows_N: Tensor, targets_N: Tensor, temperature_N: Tensor | None, grad_N: Tensor | None,
    entropy_N: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """-log p(target) `[N]`, and, where `grad_N` is given, the gradients of Σ grad · nll with respect to hidden states and weight."""
    size = max(1, CHUNK_LOGITS[hidden_MH.device.type] // len(weight_VH))
    nll_N = torch.empty(len(rows_N), device=hidden_MH.device)
    hidden_gradient = weight_gradient = None
    if grad_N is not None:
        hidden_gradient = torch.zeros_like(hidden_MH)
        weight_gradient = torch.zeros(weight_VH.shape, device=weight_VH.device)
    for start in range(0, len(rows_N), size):
        part = slice(start, start + size)
        hidden = hidden_MH.index_select(0, rows_N[part])
        logits = fast_cpu.matmul(hidden, weight_VH.T).float()
        scale = None if grad_N is None else grad_N[part].contiguous()
        if temperature_N is not None:
            logits /= temperature_N[part, None]
            scale = None if scale is None else scale / temperature_N[part]
        nll_N[part] = cross_entropy_(logits, targets_N[part], scale, None if entropy_N is None else entropy_N[part])
        if hidden_gradient is None or weight_gradient is None:
            continue
        probs = logits.to(hidden.dtype)
        hidden_gradient.index_copy_(0, rows_N[part], fast_cpu.matmul(probs, weight_VH))
        if probs.dtype == torch.float32:
            weight_gradient.addmm_(probs.T, hidden)
        else:
            weight_gradient += probs.T @ hidden
    return nll_N, hidden_gradient, None if weight_gradient is None else weight_gradient.to(weight_VH.dtype)


def cross_entropy_(logits_NV: Tensor, targets_N: Tensor, scale_N: Tensor | None, entropy_N: Tensor | None = None) -> Tensor:
    """-log p(target) `[N]`; where `scale_N` is given, the logits become the gradient of Σ scale · nll with respect to them.

    `entropy_N` takes the entropy of each row.
    """
    if fast_cpu.usable(logits_NV):
        nll_N = torch.empty(len(logits_NV))
        fast_cpu.call("cross_entropy", logits_NV, targets_N, scale_N, nll_N, entropy_N, *logits_NV.shape)
        return nll_N
    target = targets_N[:, None]
    log_z = torch.logsumexp(logits_NV, 1, keepdim=True)
    nll_N = (log_z - logits_NV.gather(1, target)).squeeze(1)
    if entropy_N is not None:
        torch.sub(log_z.squeeze(1), (torch.softmax(logits_NV, 1) * logits_NV).sum(1), out=entropy_N)
    if scale_N is not None:
        logits_NV.sub_(log_z).exp_().scatter_add_(1, target, logits_NV.new_full(target.shape, -1.0)).mul_(scale_N[:, None])
    return nll_N


class LossHead(nn.Linear):
    """A causal LM's head that also gives the loss. A method of the module, so that DeepSpeed gathers its weight (ZeRO 3)."""

    def forward(self, input: Tensor, *target: Any) -> Tensor:
        """Logits; with the further arguments of LinearCrossEntropy, -log p(target)."""
        return LinearCrossEntropy.apply(input, self.weight, *target) if target else super().forward(input)  # type: ignore[no-any-return]


def nll(
    head: nn.Module, hidden_MH: Tensor, rows_N: Tensor, targets_N: Tensor, temperature_N: Tensor | None = None, in_forward: bool = True,
    entropy_N: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """LinearCrossEntropy through the module `head`, which becomes a LossHead: same parameters, same names."""
    if getattr(head, "bias", None) is not None:
        raise ValueError(f"the model's head {head} has a bias, which the chunked loss does not know")
    head.__class__ = LossHead
    return head(hidden_MH, rows_N, targets_N, temperature_N, in_forward and torch.is_grad_enabled(), entropy_N)
