"""Advantages as pure functions: of outputs, of steps (section 4.1), and PPO's.

Shapes: B questions, G samples of a question, N = B·G outputs, T_i response tokens of output i, M all of them one after another.
Deviations from the paper: none; ddof and eps of the standard deviation are not stated there and are arguments here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

EQUAL = 1e-6
"""Rewards that differ by less than this share of the largest are equal: weighted sums in another order differ in the last bit."""


def outcome_advantages(reward_BG: Tensor, how: str = "group", ddof: int = 1, eps: float = 0.0) -> Tensor:
    """Advantage of each output, `[B, G]`, for all of its tokens (section 4.1.2).

    `group`: (r - mean) / (std + eps); `mean`: r - mean (Dr. GRPO); `leave_one_out`: r - mean of the others (RLOO).
    A reward that is not finite could not be computed: it stays out of mean and std and gets 0. Where fewer than two are
    known or all are equal, the advantages are exactly 0.

    >>> outcome_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    tensor([[ 1.5000, -0.5000, -0.5000, -0.5000]])
    >>> outcome_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), "leave_one_out")
    tensor([[ 1.0000, -0.3333, -0.3333, -0.3333]])
    """
    known = reward_BG.isfinite()
    reward = torch.where(known, reward_BG, 0.0).double()
    count = known.sum(1, keepdim=True)
    centred = torch.where(known, reward - reward.sum(1, keepdim=True) / count.clamp(min=1), 0.0)
    std = (centred.square().sum(1, keepdim=True) / (count - ddof).clamp(min=1)).sqrt()
    scale = {"group": 1 / (std + eps), "mean": torch.ones_like(std), "leave_one_out": count / (count - 1)}[how]
    return torch.where(_has_spread(reward, known), centred * scale, 0.0).to(reward_BG.dtype)


def _has_spread(reward_BG: Tensor, known_BG: Tensor) -> Tensor:
    """Whether the known rewards of a group differ, `[B, 1]`."""
    highest = torch.where(known_BG, reward_BG, -torch.inf).amax(1, keepdim=True)
    lowest = torch.where(known_BG, reward_BG, torch.inf).amin(1, keepdim=True)
    return highest - lowest > EQUAL * reward_BG.abs().amax(1, keepdim=True)  # -inf where none is known


def process_advantages(
    step_rewards: Sequence[Sequence[float]], ends: Sequence[Sequence[int]], lengths: Sequence[int], ddof: int = 1, eps: float = 0.0
) -> list[Tensor]:
    """Advantages of the tokens of each output of one group, `[T_i]` each (section 4.1.3).

    The rewards of all steps of all G outputs are normalised together, as outcome_advantages normalises a group; a token's
    advantage is the sum over the steps that end at it or later. A step without a finite reward stays out.

    Args:
        ends: for each step the place of its last token among the output's.
        lengths: T_i.

    >>> [values.tolist() for values in process_advantages([[1.0, 0.0], [0.0, 1.0]], [[0, 2], [0, 1]], [3, 3], ddof=0)]
    [[0.0, -1.0, -1.0], [0.0, 1.0, 0.0]]
    """
    flat = torch.tensor([[value for rewards in step_rewards for value in rewards]], dtype=torch.float64)
    if flat.numel():
        flat = outcome_advantages(flat, "group", ddof, eps)
    normalised = iter(flat[0].tolist())
    found = []
    for rewards, places, length in zip(step_rewards, ends, lengths, strict=True):
        at_end = torch.zeros(length, dtype=torch.float64)
        for _, place in zip(rewards, places, strict=True):
            at_end[place] += next(normalised)
        found.append(at_end.flip(0).cumsum(0).flip(0).float())
    return found


def gae(reward_M: Tensor, value_M: Tensor, output_M: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns of every token, `[M]` each (arXiv 1506.02438, PPO's Â of eq. 1).

    δ_t = r_t + γ V_{t+1} - V_t with V = 0 after the last token; Â_t = δ_t + γλ Â_{t+1}; return = Â + V. An output with a
    reward that is not finite gets advantage 0, and its values as returns: it teaches neither policy nor critic.

    Args:
        value_M: V of the state before each token.
        output_M: number of each token's output, ascending.
    """
    lengths_N = torch.bincount(output_M)
    mask_NT = torch.arange(int(lengths_N.max()), device=output_M.device) < lengths_N[:, None]
    reward_NT, value_NT = (torch.zeros(mask_NT.shape, device=of.device).masked_scatter(mask_NT, of.float()) for of in (reward_M, value_M))
    known_N1 = reward_NT.isfinite().all(1, keepdim=True)
    next_NT = torch.cat([value_NT[:, 1:], torch.zeros_like(value_NT[:, :1])], 1)
    delta_NT = torch.where(known_N1 & mask_NT, reward_NT + gamma * next_NT - value_NT, 0.0)
    advantage_NT, after_N = torch.zeros_like(delta_NT), torch.zeros_like(delta_NT[:, 0])
    for t in reversed(range(delta_NT.shape[1])):
        after_N = delta_NT[:, t] + gamma * lam * after_N
        advantage_NT[:, t] = after_N
    advantage_M = advantage_NT[mask_NT]
    return advantage_M, advantage_M + value_M.float()
