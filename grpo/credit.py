"""From rewards to an advantage for every response token, by method and supervision.

Token values are ragged: a list of N tensors `[T_i]`, one an output, in group order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mathpipe.grpo import advantages as equations
from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.loss import kl_rewards
from mathpipe.grpo.methods import METHODS, coefficients
from mathpipe.grpo.rollout import Rollout
from mathpipe.pretrain import optim

Ragged = Sequence[Tensor]


def advantages(config: GrpoConfig, rollout: Rollout, logp: Ragged | None, reference: Ragged | None) -> list[Tensor]:
    """Advantages of every method but PPO.

    Args:
        logp, reference: log-probabilities of the sampled tokens; needed with `kl = "k1_reward"`, where its weight is not 0, and
            by DPO (methods.py).
    """
    lengths = [len(one.ids) for one in rollout.outputs]
    reward_BG = rollout.rewards_BG
    if METHODS[config.method].is_likelihood:
        sums = [torch.stack([values.sum() for values in ragged]) for ragged in (logp, reference) if ragged is not None]
        coefficient_N = coefficients(config, reward_BG.float(), torch.tensor(lengths), *sums)
        return [value.expand(length) for value, length in zip(coefficient_N, lengths, strict=True)]
    if config.kl == "k1_reward" and reference is not None:
        assert logp is not None
        reward_BG = reward_BG - config.kl_coef * torch.stack(
            [(mine - other).sum() for mine, other in zip(logp, reference, strict=True)]
        ).view_as(reward_BG)
    if config.supervision == "process":
        size, found = config.group_size, []
        for number, group in enumerate(rollout.scored):
            steps, ends = [list(one.steps) for one in group], [list(one.ends) for one in group]
            part = slice(number * size, (number + 1) * size)
            found += equations.process_advantages(steps, ends, lengths[part], config.std_ddof, config.std_eps)
        return [values.float() for values in found]
    advantage_N = equations.outcome_advantages(reward_BG, config.advantage, config.std_ddof, config.std_eps).flatten().float()
    return [value.expand(length) for value, length in zip(advantage_N, lengths, strict=True)]


def generalised_advantages(
    config: GrpoConfig, rollout: Rollout, values: Ragged, logp: Ragged, reference: Ragged | None
) -> tuple[list[Tensor], list[Tensor]]:
    """PPO's advantages (eq. 1) and the returns its value model learns, from the reward of the last token and, with
    `kl = "k1_reward"`, the KL of each token (eq. 2).

    Advantages are brought to mean 0 and deviation 1 over the exploration, as is customary. An output whose reward could not be
    computed gets advantage 0 and its values as returns.
    """
    lengths = [len(one.ids) for one in rollout.outputs]
    reward_N = rollout.rewards_BG.flatten()
    output_M = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    in_reward = torch.cat(list(reference)) if reference is not None and config.kl == "k1_reward" else None
    reward_M = kl_rewards(reward_N, torch.cat(list(logp)), in_reward, output_M, config.kl_coef)
    advantage_M, return_M = equations.gae(reward_M, torch.cat(list(values)), output_M, config.gamma, config.gae_lambda)
    counted = ~reward_N.isnan()[output_M]
    count, total, square = (
        optim.total(part) for part in (counted.sum(), advantage_M[counted].double().sum(), advantage_M[counted].double().square().sum())
    )
    mean = total / max(count, 1)
    std = max(square / max(count, 1) - mean**2, 0.0) ** 0.5
    advantage_M = torch.where(counted, (advantage_M - mean) / (std or 1.0), 0.0)
    return list(advantage_M.split(lengths)), list(return_M.split(lengths))
