"""The paper's unified view of training methods (section 5.2.1, appendix A.1): data source, reward function, gradient coefficient.

Every method ascends

    E[(q, o) ~ source] (1/|o|) Σ_t GC(q, o, t) ∇ log π_θ(o_t | q, o_<t)

All do it through `loss.policy_loss`, whose gradient at ratio 1 is -Σ weight · Â · ∇ log π. For RFT, Online RFT and DPO the
coefficient of an output is a number, known from a first pass without gradient where it depends on the policy: it takes the place
of Â, and there is no KL in the loss.

Deviation from the paper: DPO's coefficient keeps the factor β that the gradient of its objective has; table 10 leaves it out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mathpipe.grpo.config import GrpoConfig


@dataclass(frozen=True)
class Method:
    """A row of the paper's table of methods."""

    source: str
    """Outputs come from the `policy` as it is, or from the `sft` model it began as (with iterations: the policy as its iteration began)."""
    reward: str
    """`rule` or `model` in figure 5."""
    coefficient: str
    """GC of token t, in words."""
    is_likelihood: bool = False
    """Whether it runs as weighted log-likelihood with `coefficients`."""


METHODS = {
    "rft": Method("sft", "rule", "1 where the output is right, else 0", True),
    "online_rft": Method("policy", "rule", "1 where the output is right, else 0", True),
    "dpo": Method("sft", "rule", "± β σ(-margin), summed over the pairs of right and wrong", True),
    "ppo": Method("policy", "model", "GAE of the reward with its KL"),
    "grpo": Method("policy", "model", "normalised reward of the output, or of its steps that follow, + β (π_ref/π - 1)"),
}
"""Method of `grpo.method` → its row."""


def coefficients(
    config: GrpoConfig, reward_BG: Tensor, lengths_N: Tensor, logp_N: Tensor | None = None, reference_N: Tensor | None = None
) -> Tensor:
    """Gradient coefficient of each output, `[N]`, of a method that runs as likelihood; an unknown reward (NaN) gives 0.

    `rft`, `online_rft`: the reward, that is 1 where the rule says right. `dpo`: with x_i = (1/|o_i|) log π/π_ref (o_i), each pair of a
    better and a worse output of a question has the loss -log σ(β (x_better - x_worse)); the coefficients are those of the mean
    over a question's pairs, then over questions, under weights 1 / (|o_i| · outputs).

    Args:
        lengths_N: tokens of each output, in group order.
        logp_N: log π summed over each output, without gradient; for `dpo`.
        reference_N: likewise log π_ref.
    """
    if config.method != "dpo":
        return reward_BG.nan_to_num(0.0).flatten()
    assert logp_N is not None and reference_N is not None, "dpo needs both log-probabilities"
    x_BG = ((logp_N - reference_N) / lengths_N.clamp(min=1)).view(reward_BG.shape)
    better_BGG = reward_BG[:, :, None] > reward_BG[:, None, :]  # NaN is neither better nor worse
    margin_BGG = config.dpo_beta * (x_BG[:, :, None] - x_BG[:, None, :])
    pull_BGG = torch.where(better_BGG, config.dpo_beta * torch.sigmoid(-margin_BGG), 0.0)
    scale_B = reward_BG.shape[1] / better_BGG.sum((1, 2)).clamp(min=1)
    return ((pull_BGG.sum(2) - pull_BGG.sum(1)) * scale_B[:, None]).flatten()
