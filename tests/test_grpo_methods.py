"""The unified view of section 5.2.1: each method's gradient is Σ (1/|o|) Σ_t GC · ∇ log π, with the coefficients of the paper's table."""

import math

import pytest
import torch

from mathpipe.grpo.advantages import gae, outcome_advantages, process_advantages
from mathpipe.grpo.config import METHODS as NAMES
from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.loss import Tokens, kl_rewards, policy_loss, sums, token_weights
from mathpipe.grpo.methods import METHODS, coefficients

LENGTHS = torch.tensor([2, 1, 3, 2, 1, 2])
"""Two questions with three samples each."""
OUTPUT = torch.repeat_interleave(torch.arange(6), LENGTHS)
WEIGHT = token_weights(LENGTHS, "grpo", 6, int(LENGTHS.sum()), 8)[OUTPUT]
REWARD = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])


def features(seed=0):
    """Parameters [5] and a model of the tokens: log π_t = log softmax over 4 of a linear map of them; `[M]` of the sampled ones."""
    generator = torch.Generator().manual_seed(seed)
    maps, chosen = torch.randn(len(OUTPUT), 4, 5, generator=generator), torch.randint(0, 4, (len(OUTPUT), 1), generator=generator)
    theta, start = torch.randn(5, generator=generator), torch.randn(5, generator=generator)

    def logp(parameters):
        return (maps @ parameters).log_softmax(1).gather(1, chosen)[:, 0]

    return theta.requires_grad_(), logp, logp(start)


def unified(theta, logp, coefficient_M):
    """-(1/N) Σ_i (1/|o_i|) Σ_t GC ∇ log π, token by token."""
    total = torch.zeros(5)
    for place, n in enumerate(OUTPUT.tolist()):
        (gradient,) = torch.autograd.grad(logp(theta)[place], theta)
        total -= coefficient_M[place] * gradient / (6 * LENGTHS[n])
    return total


def weighted_likelihood(logp_M, coefficient_N):
    """The loss of a method without advantages: each output's coefficient in their place."""
    return policy_loss(Tokens(logp_M, logp_M.detach(), None, None, coefficient_N[OUTPUT], WEIGHT, OUTPUT), GrpoConfig())[0]


def test_the_table_is_the_papers():
    """Table of appendix A.1: sources and rewards of figure 5 (the caption's GRPO and PPO use a model, the others a rule)."""
    assert set(METHODS) == set(NAMES)
    assert {name: (method.source, method.reward) for name, method in METHODS.items()} == {
        "rft": ("sft", "rule"), "online_rft": ("policy", "rule"), "dpo": ("sft", "rule"),
        "ppo": ("policy", "model"), "grpo": ("policy", "model"),
    }  # fmt: skip


@pytest.mark.parametrize("method", ["rft", "online_rft"])
def test_rejection_sampling_pulls_the_right_outputs_with_coefficient_one(method):
    theta, logp, _ = features()
    coefficient = coefficients(GrpoConfig(method=method), REWARD, LENGTHS)
    assert coefficient.tolist() == [1, 0, 0, 1, 1, 0]
    (found,) = torch.autograd.grad(weighted_likelihood(logp(theta), coefficient), theta)
    torch.testing.assert_close(found, unified(theta, logp, coefficient[OUTPUT]))
    assert coefficients(GrpoConfig(method=method), torch.tensor([[1.0, math.nan]]), LENGTHS[:2]).tolist() == [1, 0]


def test_dpo_is_the_gradient_of_its_objective():
    """Mean over questions of the mean over pairs of -log σ(β (x_right - x_wrong)), x the mean log-ratio of an output's tokens."""
    theta, logp, reference = features()
    config = GrpoConfig(method="dpo", dpo_beta=0.5)

    def objective():
        x = (sums(logp(theta) - reference, OUTPUT) / LENGTHS).view(2, 3)
        first = [x[0, 0] - x[0, 1], x[0, 0] - x[0, 2]]
        second = [x[1, 0] - x[1, 2], x[1, 1] - x[1, 2]]
        return -torch.stack([torch.stack(pairs).mul(0.5).sigmoid().log().mean() for pairs in (first, second)]).mean()

    (expected,) = torch.autograd.grad(objective(), theta)
    logp_N, reference_N = sums(logp(theta).detach(), OUTPUT), sums(reference, OUTPUT)
    coefficient = coefficients(config, REWARD, LENGTHS, logp_N, reference_N)
    (found,) = torch.autograd.grad(weighted_likelihood(logp(theta), coefficient), theta)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found, unified(theta, logp, coefficient[OUTPUT]))


def test_dpo_coefficients_by_hand():
    """One pair in a group of two with margin 0: ± β/2, times G/pairs = 2. No pairs, or an unknown reward: nothing."""
    config, lengths, zero = GrpoConfig(method="dpo", dpo_beta=0.1), torch.tensor([2, 4]), torch.zeros(2)
    torch.testing.assert_close(coefficients(config, torch.tensor([[0.0, 1.0]]), lengths, zero, zero), torch.tensor([-0.1, 0.1]))
    sure = coefficients(config, torch.tensor([[0.0, 1.0]]), lengths, torch.tensor([-200.0, 400.0]), zero)  # x = -100 and 100: margin 20
    torch.testing.assert_close(sure, torch.tensor([-0.2, 0.2]) / (1 + math.exp(20)))
    for reward in ([1.0, 1.0], [math.nan, 1.0]):
        assert coefficients(config, torch.tensor([reward]), lengths, zero, zero).tolist() == [0, 0]


@pytest.mark.parametrize("supervision", ["outcome", "process"])
def test_grpo_has_the_papers_coefficient(supervision):
    """Eq. 20 of appendix A.1.6: GC = Â_{i,t} + β (π_ref/π_θ - 1)."""
    theta, logp, reference = features()
    advantage = outcome_advantages(REWARD).flatten()[OUTPUT]
    if supervision == "process":
        steps, ends = [[1.0, 0.0], [0.0], [1.0, 1.0]], [[0, 1], [0], [0, 2]]
        other = [[1.0], [1.0], [0.0, 1.0]], [[1], [0], [0, 1]]
        advantage = torch.cat(process_advantages(steps, ends, [2, 1, 3]) + process_advantages(*other, [2, 1, 2]))
    made = Tokens(logp(theta), logp(theta).detach(), reference, None, advantage, WEIGHT, OUTPUT)
    (found,) = torch.autograd.grad(policy_loss(made, GrpoConfig(kl_coef=0.04))[0], theta)
    coefficient = advantage + 0.04 * (torch.exp(reference - logp(theta).detach()) - 1)
    torch.testing.assert_close(found, unified(theta, logp, coefficient))


def test_ppo_has_the_papers_coefficient():
    """Eq. 18 of appendix A.1.5: GC = A_t, of GAE on the reward with its KL (eq. 2), in one update per exploration."""
    theta, logp, reference = features()
    old = logp(theta).detach()
    value = torch.linspace(-1, 1, len(OUTPUT))
    advantage, _ = gae(kl_rewards(REWARD.flatten(), old, reference, OUTPUT, 0.04), value, OUTPUT, 1.0, 0.95)
    made = Tokens(logp(theta), old, reference, None, advantage, WEIGHT, OUTPUT)
    (found,) = torch.autograd.grad(policy_loss(made, GrpoConfig(method="ppo", kl="k1_reward"))[0], theta)
    torch.testing.assert_close(found, unified(theta, logp, advantage))
