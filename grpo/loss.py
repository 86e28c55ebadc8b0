"""The losses as pure functions: GRPO, PPO and what goes by other names, each a SUM over tokens of weight · loss of the token.

The weights know the whole optimizer step on all processes, so that loss and gradient do not depend on micro-batches, packing,
order or ranks: sums of parts add up to the sum of the whole.

Shapes: N outputs, M their response tokens one after another. Deviations from the paper: none; the clip range is not stated there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mathpipe.grpo.config import GrpoConfig

MAX_LOG_RATIO = 20.0
"""Upper bound of a log-ratio before the exponential: e^20 = 5e8 is finite in sums of fp32. A token beyond it gives no gradient."""


def token_weights(lengths_N: Tensor, how: str, num_outputs: int, num_tokens: int, max_new_tokens: int) -> Tensor:
    """Weight of every token of each output, `[N]`.

    `grpo`, `gspo`: 1 / (|o_i| · outputs), eq. 3: the mean over an output's tokens, then over outputs. `token`: 1 / tokens
    (DAPO, arXiv 2503.14476 eq. 8). `dr_grpo`: 1 / (max_new_tokens · outputs), whatever the length (arXiv 2503.20783).

    Args:
        num_outputs: of the whole optimizer step on all processes; equal groups, so 1/G in each question is 1/outputs of all.
        num_tokens: likewise.
    """
    if how == "token":
        return torch.full(lengths_N.shape, 1 / num_tokens, device=lengths_N.device)
    if how == "dr_grpo":
        return torch.full(lengths_N.shape, 1 / (max_new_tokens * num_outputs), device=lengths_N.device)
    return 1 / (lengths_N.clamp(min=1).float() * num_outputs)


@dataclass(frozen=True)
class Tokens:
    """What the loss reads of each response token, `[M]`; only `logp_M` carries a gradient."""

    logp_M: Tensor
    """log π_θ, at the trajectory's temperature like the other three."""
    old_M: Tensor
    """log π_θ_old, of the weights that sampled, as the trainer computes it."""
    reference_M: Tensor | None
    """log π_ref; None leaves the KL out."""
    sampler_M: Tensor | None
    """log-probability that the sampler gave."""
    advantage_M: Tensor
    weight_M: Tensor
    output_M: Tensor
    """Number of each token's output; an output is never split over two of these."""


def policy_loss(tokens: Tokens, config: GrpoConfig) -> tuple[Tensor, dict[str, float]]:
    """Loss to descend (eq. 3 with the sign turned; eq. 1 where the KL is in the reward), and figures for the log.

    Σ weight · (-min(ρ Â, clip(ρ, 1 - ε, 1 + ε_high) Â) + β KL) with ρ = π_θ / π_old of a token, in `gspo` of its output.
    Truncated importance weights multiply the first term (arXiv 2508.03680, TIS).

    Returns:
        The scalar, and sums over tokens: `loss`, `kl` (eq. 4, whatever is in the loss), `clipped`, `capped`, `logp_diff`
        (|trainer - sampler|); names that end in `_max` are maxima.
    """
    token_ratio = exp(tokens.logp_M - tokens.old_M)
    ratio = exp(sequence_log_ratio(tokens.logp_M - tokens.old_M, tokens.output_M)) if config.loss == "gspo" else token_ratio
    clipped = ratio.clamp(1 - config.clip, 1 + (config.clip_high or config.clip))
    objective = torch.minimum(ratio * tokens.advantage_M, clipped * tokens.advantage_M)
    figures = {"clipped": (ratio * tokens.advantage_M > clipped * tokens.advantage_M).sum(), "ratio_max": ratio.max()}
    if tokens.sampler_M is not None:
        difference = (tokens.old_M - tokens.sampler_M).abs()
        figures |= {"logp_diff": difference.sum(), "logp_diff_max": difference.max()}
        if config.importance_cap:
            importance = exp(tokens.old_M - tokens.sampler_M)
            objective = objective * importance.clamp(max=config.importance_cap)
            figures["capped"] = (importance > config.importance_cap).sum()
    loss_M = -objective
    if tokens.reference_M is not None:
        if config.kl != "k1_reward":
            kl_M = kl_estimate(config.kl.removeprefix("ratio_"), tokens.logp_M, tokens.reference_M)
            loss_M = loss_M + config.kl_coef * (token_ratio * kl_M if config.kl == "ratio_k3" else kl_M)
        figures["kl"] = kl_estimate("k3", tokens.logp_M.detach(), tokens.reference_M).sum()
    loss = (tokens.weight_M * loss_M).sum()
    values = torch.stack([loss.detach(), *(value.detach().float() for value in figures.values())]).tolist()
    return loss, dict(zip(("loss", *figures), values, strict=True))


def exp(log_ratio: Tensor) -> Tensor:
    """e^x that stays finite; in fp32."""
    return torch.exp(log_ratio.float().clamp(max=MAX_LOG_RATIO))


def sums(value_M: Tensor, output_M: Tensor, num_outputs: int | None = None) -> Tensor:
    """Sum over the tokens of each output, `[N]`, differentiable."""
    size = int(output_M.max()) + 1 if num_outputs is None else num_outputs
    return torch.zeros(size, dtype=value_M.dtype, device=value_M.device).index_add(0, output_M, value_M)


def sequence_log_ratio(log_ratio_M: Tensor, output_M: Tensor) -> Tensor:
    """GSPO's log s_i = (1/|o_i|) Σ_t log π_θ/π_old, on every token of its output, `[M]` (arXiv 2507.18071 eq. 7)."""
    return (sums(log_ratio_M, output_M) / torch.bincount(output_M).clamp(min=1))[output_M]


def kl_estimate(name: str, logp: Tensor, reference: Tensor) -> Tensor:
    """Estimate of KL(π ‖ π_ref) per token from a sample of π, with d = log π_ref - log π.

    `k1`: -d; `k2`: d² / 2; `k3` (eq. 4): e^d - d - 1, never negative. As values k1 and k3 are unbiased. As losses on samples of π
    they descend something else: k1 nothing (its expected gradient is 0), k2 KL(π ‖ π_ref), k3 KL(π_ref ‖ π); π/π_old · k3
    descends KL(π ‖ π_ref) again.

    >>> float(kl_estimate("k3", torch.tensor(0.0), torch.tensor(0.6931472)))  # 2 - ln 2 - 1
    0.3068528175354004
    """
    difference = (reference - logp).float()
    if name == "k3":
        bounded = difference.clamp(max=MAX_LOG_RATIO)
        return torch.expm1(bounded) - bounded
    return {"k1": -difference, "k2": difference.square() / 2}[name]


def kl_rewards(reward_N: Tensor, old_M: Tensor, reference_M: Tensor | None, output_M: Tensor, kl_coef: float) -> Tensor:
    """Reward of every token, `[M]`: an output's on its last one, minus β log(π_old / π_ref) on each (eq. 2).

    Args:
        output_M: ascending.
    """
    last_M = torch.cat([output_M[1:] != output_M[:-1], output_M.new_ones(1, dtype=torch.bool)])
    reward_M = torch.where(last_M, reward_N.float()[output_M], 0.0)
    return reward_M if reference_M is None else reward_M - kl_coef * kl_estimate("k1", old_M, reference_M)


def value_loss(value_M: Tensor, old_value_M: Tensor, return_M: Tensor, weight_M: Tensor, clip: float) -> tuple[Tensor, dict[str, float]]:
    """PPO's loss of the value model: Σ weight · ½ max((V - R)², (clip(V, V_old ± clip) - R)²); 0 as `clip` leaves the second out.

    A value that has moved `clip` towards its return gets no further gradient in this exploration.
    """
    error_M = (value_M - return_M).square()
    figures = {"value_error": error_M.detach().sum()}
    if clip:
        near_M = (old_value_M + (value_M - old_value_M).clamp(-clip, clip) - return_M).square()
        figures["value_clipped"] = (near_M > error_M).sum()
        error_M = torch.maximum(error_M, near_M)
    loss = (weight_M * error_M).sum() / 2
    values = torch.stack([loss.detach(), *(value.float() for value in figures.values())]).tolist()
    return loss, dict(zip(("value_loss", *figures), values, strict=True))
