"""GRPO's losses against hand-worked numbers and against autograd of their definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.loss import Tokens, kl_estimate, kl_rewards, policy_loss, sequence_log_ratio, sums, token_weights, value_loss

LN2 = math.log(2)


def tokens(logp, old=None, reference=None, sampler=None, advantage=1.0, weight=1.0, output=None):
    logp = torch.as_tensor(logp, dtype=torch.float32)

    def full(value):
        return None if value is None else torch.as_tensor(value, dtype=torch.float32).expand(logp.shape)

    output = torch.zeros(len(logp), dtype=torch.long) if output is None else torch.tensor(output)
    old = logp.detach() if old is None else full(old)
    return Tokens(logp, old, full(reference), full(sampler), full(advantage), full(weight), output)


def gradient(made, config):
    made.logp_M.requires_grad_()
    loss, _ = policy_loss(made, config)
    return float(loss.detach()), torch.autograd.grad(loss, made.logp_M)[0]


@pytest.mark.parametrize(("how", "expected"), [
    ("grpo", [1 / 8, 1 / 4]), ("gspo", [1 / 8, 1 / 4]), ("token", [1 / 6, 1 / 6]), ("dr_grpo", [1 / 40, 1 / 40]),
])  # fmt: skip
def test_weights_of_four_outputs_with_six_tokens_of_at_most_ten(how, expected):
    """Here are two of the four outputs, 2 and 1 tokens long. Dr. GRPO's denominator is a constant."""
    torch.testing.assert_close(token_weights(torch.tensor([2, 1]), how, 4, 6, 10), torch.tensor(expected))


def test_loss_by_hand_is_the_mean_over_tokens_then_over_outputs():
    """Two outputs, lengths 2 and 1; ratio 1.5 is clipped at 1.2 for a positive advantage and not for a negative one; k3 of a factor 2."""
    weight = token_weights(torch.tensor([2, 1]), "grpo", 2, 3, 10)[torch.tensor([0, 0, 1])]
    logp = [math.log(1.5), 0.0, math.log(1.5)]
    made = tokens(logp, [0.0] * 3, [logp[0], LN2, logp[2]], advantage=[1.0, 1.0, -1.0], weight=weight, output=[0, 0, 1])
    loss, figures = policy_loss(made, GrpoConfig(clip=0.2, kl_coef=0.04))
    k3 = 2 - LN2 - 1
    assert float(loss) == pytest.approx((-(1.2 + 1.0 - 0.04 * k3) / 2 + 1.5) / 2)
    expected = {"loss": float(loss), "kl": k3, "clipped": 1, "ratio_max": 1.5}
    assert figures == pytest.approx(expected)


@pytest.mark.parametrize(("ratio", "advantage", "expected"), [
    (1.1, 1.0, -1.1), (1.5, 1.0, 0.0), (0.5, 1.0, -0.5), (0.9, -1.0, 0.9), (0.5, -1.0, 0.0), (1.5, -1.0, 1.5),
])  # fmt: skip
def test_gradient_of_the_clipped_ratio_by_hand(ratio, advantage, expected):
    """d/dlog π of -min(ρÂ, clip(ρ)Â) is -ρÂ, and 0 where the clip holds; PPO's loss (eq. 1) is this without the KL."""
    _, found = gradient(tokens([math.log(ratio)], [0.0], advantage=advantage), GrpoConfig(method="ppo", kl="k1_reward", clip=0.2))
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_clip_higher_has_its_own_bound_above_one():
    """ε 0.2 below and 0.28 above: ratio 1.25 with advantage 1 still has a gradient, 1.3 has none, 0.75 with -1 has none."""
    config = GrpoConfig(clip=0.2, clip_high=0.28)
    _, found = gradient(tokens([math.log(1.25), math.log(1.3), math.log(0.75)], [0.0] * 3, advantage=[1.0, 1.0, -1.0]), config)
    torch.testing.assert_close(found, torch.tensor([-1.25, 0.0, 0.0]))


def test_one_update_at_kl_zero_has_loss_zero_and_a_gradient():
    """Advantages of a group sum to zero and ratios are 1: the loss is 0, its gradient -Â/|o_i|/N."""
    weight = token_weights(torch.tensor([2, 1]), "grpo", 2, 3, 10)[torch.tensor([0, 0, 1])]
    loss, found = gradient(tokens([-1.0, -2.0, -3.0], advantage=[1.0, 1.0, -1.0], weight=weight, output=[0, 0, 1]), GrpoConfig())
    assert loss == 0
    torch.testing.assert_close(found, torch.tensor([-0.25, -0.25, 0.5]))


def test_gradient_with_kl_by_hand():
    """-Â + β (1 - π_ref/π) at ratio 1: table 10's coefficient of GRPO with the sign turned."""
    _, found = gradient(tokens([-1.0, -2.0], reference=[-1.5, -2.0], advantage=0.7), GrpoConfig(kl_coef=0.1))
    torch.testing.assert_close(found, torch.tensor([-0.7 + 0.1 * (1 - math.exp(-0.5)), -0.7]))


def test_equal_rewards_still_give_a_kl_gradient_and_no_other():
    _, found = gradient(tokens([-1.0], reference=[-2.0], advantage=0.0), GrpoConfig(kl_coef=0.04))
    assert float(found) == pytest.approx(0.04 * (1 - math.exp(-1)))
    for config in (GrpoConfig(kl_coef=0.0), GrpoConfig(kl="k1_reward")):
        assert gradient(tokens([-1.0], reference=[-2.0], advantage=0.0), config)[1].tolist() == [0]


def test_gspo_clips_the_ratio_of_whole_outputs():
    """Output 0 has token ratios 1.5 and 0.9: s = √1.35 = 1.1619 < 1.2, not clipped, though a token's own is; output 1 has s = 1.5."""
    logp = [math.log(1.5), math.log(0.9), math.log(1.5)]
    weight = token_weights(torch.tensor([2, 1]), "gspo", 2, 3, 10)[torch.tensor([0, 0, 1])]
    made = tokens(logp, [0.0] * 3, advantage=[2.0, 2.0, 1.0], weight=weight, output=[0, 0, 1])
    loss, found = gradient(made, GrpoConfig(loss="gspo", clip=0.2))
    s = math.sqrt(1.35)
    assert loss == pytest.approx(-(2 * s + 1.2) / 2)
    torch.testing.assert_close(found, torch.tensor([-s / 2, -s / 2, 0.0]))  # -Â s / |o| / N, Â = 2, |o| = 2, N = 2
    torch.testing.assert_close(sequence_log_ratio(torch.tensor(logp), made.output_M), torch.tensor([math.log(s)] * 2 + [math.log(1.5)]))


def test_truncated_importance_weight_multiplies_the_policy_term_alone():
    """Trainer over sampler: e^1 is cut at 2, e^-0.5 is not; the KL term is left alone and no gradient goes through the weight."""
    made = tokens([-1.0, -1.0], sampler=[-2.0, -0.5], reference=[-1.0 + LN2, -1.0], advantage=1.0)
    loss, found = gradient(made, GrpoConfig(importance_cap=2.0, kl_coef=0.5))
    assert loss == pytest.approx(-(2 + math.exp(-0.5)) + 0.5 * (1 - LN2))
    torch.testing.assert_close(found, torch.tensor([-2.0 + 0.5 * (1 - 2), -math.exp(-0.5)]))
    figures = policy_loss(made, GrpoConfig(importance_cap=2.0))[1]
    assert (figures["capped"], figures["logp_diff"], figures["logp_diff_max"]) == (1, 1.5, 1)
    assert "capped" not in policy_loss(made, GrpoConfig())[1]


SOFTMAX = torch.Generator().manual_seed(0)
LOGITS, REFERENCE = torch.randn(4, generator=SOFTMAX), torch.randn(4, generator=SOFTMAX).log_softmax(0)


def softmax_gradients():
    """Exact gradients of both divergences of a 4-way softmax with respect to its logits."""
    logits = LOGITS.double().requires_grad_()
    logp, reference = logits.log_softmax(0), REFERENCE.double()
    forward, reverse = (logp.exp() * (logp - reference)).sum(), (reference.exp() * (reference - logp)).sum()
    gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0].float() for value in (forward, reverse)]
    return float(forward.detach()), dict(zip(("KL(π‖ref)", "KL(ref‖π)"), gradients, strict=True))


@pytest.mark.parametrize(("kl", "descends"), [("k2", "KL(π‖ref)"), ("k3", "KL(ref‖π)"), ("ratio_k3", "KL(π‖ref)")])
def test_which_divergence_a_kl_in_the_loss_descends(kl, descends):
    """All four tokens, each weighed with its probability, give the exact expectation of the loss's gradient."""
    logits = LOGITS.clone().requires_grad_()
    logp = logits.log_softmax(0)
    made = tokens(logp, reference=REFERENCE, advantage=0.0, weight=logp.detach().exp())
    (found,) = torch.autograd.grad(policy_loss(made, GrpoConfig(kl=kl, kl_coef=1.0))[0], logits)
    torch.testing.assert_close(found, softmax_gradients()[1][descends], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("name", "unbiased"), [("k1", True), ("k2", False), ("k3", True)])
def test_expectations_of_the_estimators(name, unbiased):
    logp = LOGITS.log_softmax(0)
    value = float((logp.exp() * kl_estimate(name, logp, REFERENCE)).sum())
    assert (value == pytest.approx(softmax_gradients()[0], rel=1e-5)) == unbiased


def test_k1_teaches_nothing_in_the_loss_and_the_kl_in_the_reward():
    logits = LOGITS.clone().requires_grad_()
    logp = logits.log_softmax(0)
    (found,) = torch.autograd.grad((logp.detach().exp() * kl_estimate("k1", logp, REFERENCE)).sum(), logits, retain_graph=True)
    torch.testing.assert_close(found, torch.zeros(4), atol=1e-7, rtol=0)
    reward = kl_rewards(torch.zeros(4), logp.detach(), REFERENCE, torch.arange(4), 1.0)
    made = tokens(logp, reference=REFERENCE, advantage=reward, weight=logp.detach().exp())
    (found,) = torch.autograd.grad(policy_loss(made, GrpoConfig(kl="k1_reward"))[0], logits)
    torch.testing.assert_close(found, softmax_gradients()[1]["KL(π‖ref)"], atol=1e-6, rtol=1e-5)


def test_reward_with_its_kl_by_hand():
    """Eq. 2: -β log(π/π_ref) on every token, the reward on the last."""
    found = kl_rewards(
        torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -1.0, -2.0]), torch.tensor([-2.0, -1.0, -1.0]), torch.tensor([0, 0, 1]), 0.1
    )
    torch.testing.assert_close(found, torch.tensor([-0.1, 1.0, 3.1]))
    assert kl_rewards(torch.tensor([1.0]), torch.zeros(2), None, torch.tensor([0, 0]), 0.1).tolist() == [0, 1]


@pytest.mark.parametrize("kl", ["k2", "k3", "ratio_k3"])
@pytest.mark.parametrize("loss", ["grpo", "gspo"])
def test_far_apart_models_give_finite_losses_and_gradients(kl, loss):
    made = tokens([-1e4, 0.0, -1e4, 0.0], [0.0, -1e4, 0.0, -1e4], [0.0, -1e4, -1e4, 0.0], [-1e4, 0.0, 0.0, -1e4], [1.0, -1.0, -1.0, 1.0])
    value, found = gradient(made, GrpoConfig(kl=kl, loss=loss, importance_cap=2.0))
    assert math.isfinite(value) and bool(found.isfinite().all())
    _, pulled = gradient(tokens([0.0], reference=[-1e4], advantage=0.0), GrpoConfig(kl="k3", kl_coef=1.0))
    assert float(pulled) == 1, "what the reference holds impossible is pushed down with all of β"


def test_value_loss_by_hand():
    """Return 1, old value 0, clip 0.2. V = 0.5 is held at 0.2: ½·0.8²; V = -0.5 has the larger error itself; V = 0.1 is inside."""
    value = torch.tensor([0.5, -0.5, 0.1], requires_grad=True)
    loss, figures = value_loss(value, torch.zeros(3), torch.ones(3), torch.full((3,), 1 / 3), 0.2)
    assert float(loss) == pytest.approx((0.8**2 + 1.5**2 + 0.9**2) / 6)
    torch.testing.assert_close(torch.autograd.grad(loss, value)[0], torch.tensor([0.0, -0.5, -0.3]))
    assert figures == pytest.approx({"value_loss": float(loss), "value_error": 0.25 + 2.25 + 0.81, "value_clipped": 1})
    loss, figures = value_loss(value, torch.zeros(3), torch.ones(3), torch.full((3,), 1 / 3), 0.0)
    torch.testing.assert_close(torch.autograd.grad(loss, value)[0], torch.tensor([-0.5 / 3, -0.5, -0.3]))
    assert float(loss) == pytest.approx((0.25 + 2.25 + 0.81) / 6) and "value_clipped" not in figures


def definition(logps, olds, references, advantages, config):
    """Eq. 3 as it is written, output by output, in float64 (GSPO and Dr. GRPO as in their papers)."""
    outputs, num_tokens = [], sum(map(len, logps))
    for logp, old, reference, advantage in zip(logps, olds, references, advantages, strict=True):
        ratio = torch.exp(logp - old)
        used = ratio.log().mean().exp().expand_as(ratio) if config.loss == "gspo" else ratio
        bounds = 1 - config.clip, 1 + (config.clip_high or config.clip)
        objective = torch.minimum(used * advantage, used.clamp(*bounds) * advantage)
        kl = {"k3": torch.exp(reference - logp) - (reference - logp) - 1, "k2": (reference - logp) ** 2 / 2}
        kl["ratio_k3"] = ratio * kl["k3"]
        total = (objective - config.kl_coef * kl[config.kl]).sum()
        count = {"token": num_tokens / len(logps), "dr_grpo": config.max_new_tokens}.get(config.loss, len(logp))
        outputs.append(total / count)
    return -sum(outputs) / len(outputs)


def drawn(seed, lengths):
    generator = torch.Generator().manual_seed(seed)
    old = [-3 * torch.rand(n, generator=generator) for n in lengths]
    return [
        [values + 0.3 * torch.randn(len(values), generator=generator) for values in old], old,
        [values + 0.3 * torch.randn(len(values), generator=generator) for values in old],
        torch.randn(len(lengths), generator=generator).tolist(),
    ]  # fmt: skip


def in_parts(columns, order, num_parts, config):
    """Loss and gradient of each output, its tokens computed in `num_parts` micro-batches in this order."""
    lengths = torch.tensor([len(values) for values in columns[0]])
    weights = token_weights(lengths, config.loss, len(lengths), int(lengths.sum()), config.max_new_tokens)
    total = 0.0
    gradients: dict[int, torch.Tensor] = {}
    for part in (order[n::num_parts] for n in range(num_parts)):
        if not part:
            continue
        logps = [columns[0][n].clone().requires_grad_() for n in part]
        old, reference = (torch.cat([column[n] for n in part]) for column in columns[1:3])
        output = torch.repeat_interleave(torch.arange(len(part)), lengths[part])
        advantage = torch.tensor([columns[3][n] for n in part])[output]
        made = Tokens(torch.cat(logps), old, reference, None, advantage, weights[part][output], output)
        loss, _ = policy_loss(made, config)
        gradients |= dict(zip(part, torch.autograd.grad(loss, logps), strict=True))
        total += float(loss.detach())
    return total, torch.cat([gradients[n] for n in range(len(lengths))])


@given(
    st.integers(0, 10**6), st.lists(st.integers(1, 9), min_size=2, max_size=8), st.randoms(), st.integers(1, 4),
    st.sampled_from(["grpo", "token", "dr_grpo", "gspo"]), st.sampled_from(["k3", "k2", "ratio_k3"]), st.sampled_from([0.0, 0.28]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_micro_batches_in_any_order_give_loss_and_gradient_of_the_definition(seed, lengths, shuffle, num_parts, loss, kl, clip_high):
    """Micro-batches and ranks alike: both are parts of a step whose sums are added."""
    config = GrpoConfig(loss=loss, kl=kl, clip_high=clip_high, kl_coef=0.3)
    columns, order = drawn(seed, lengths), list(range(len(lengths)))
    shuffle.shuffle(order)
    total, found = in_parts(columns, order, num_parts, config)
    logps = [values.double().requires_grad_() for values in columns[0]]
    olds, references = ([values.double() for values in column] for column in columns[1:3])
    expected = definition(logps, olds, references, columns[3], config)
    assert total == pytest.approx(float(expected.detach()), abs=1e-6)
    torch.testing.assert_close(found, torch.cat(torch.autograd.grad(expected, logps)).float(), atol=1e-6, rtol=1e-5)


def test_sums_are_differentiable_and_keep_empty_outputs():
    value = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    found = sums(value, torch.tensor([0, 0, 2]), 4)
    assert found.tolist() == [3, 0, 4, 0]
    assert torch.autograd.grad(found[0], value)[0].tolist() == [1, 1, 0]
