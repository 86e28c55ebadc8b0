"""Advantages against hand-worked numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mathpipe.grpo.advantages import gae, outcome_advantages, process_advantages

STEPS, ENDS, LENGTHS = [[0.9, 0.2, 0.8], [0.6, 0.4], [0.1]], [[1, 3, 4], [0, 2], [2]], [6, 3, 3]


@pytest.mark.parametrize(("how", "ddof", "expected"), [
    ("group", 0, [1.7321, -0.5774, -0.5774, -0.5774]), ("group", 1, [1.5, -0.5, -0.5, -0.5]),
    ("mean", 1, [0.75, -0.25, -0.25, -0.25]), ("leave_one_out", 1, [1, -1 / 3, -1 / 3, -1 / 3]),
])  # fmt: skip
def test_advantages_of_one_right_answer_in_four(how, ddof, expected):
    found = outcome_advantages(torch.tensor([[1.0, 0, 0, 0]]), how, ddof)
    torch.testing.assert_close(found, torch.tensor([expected]), atol=1e-4, rtol=0)


def test_eps_is_added_to_the_standard_deviation():
    found = outcome_advantages(torch.tensor([[1.0, 0, 0, 0]]), ddof=1, eps=0.5)
    torch.testing.assert_close(found, torch.tensor([[0.75, -0.25, -0.25, -0.25]]))


@pytest.mark.parametrize("how", ["group", "mean", "leave_one_out"])
@pytest.mark.parametrize("reward", [[1.0] * 4, [0.0] * 4, [0.1] * 64, [1.0], [0.1 + 0.2, 0.3], [-5.0, -5.0]])
@pytest.mark.parametrize("ddof", [0, 1])
def test_equal_rewards_and_single_samples_give_exactly_zero(how, reward, ddof):
    """0.1 + 0.2 and 0.3 are different floats and the same reward."""
    assert outcome_advantages(torch.tensor([reward], dtype=torch.float64), how, ddof).abs().max() == 0


def test_small_spreads_are_still_spread():
    torch.testing.assert_close(outcome_advantages(torch.tensor([[1e-9, 3e-9]]), ddof=0), torch.tensor([[-1.0, 1.0]]))


@pytest.mark.parametrize(("how", "expected"), [
    ("group", [math.sqrt(0.5), 0, -math.sqrt(0.5)]), ("mean", [0.5, 0, -0.5]), ("leave_one_out", [1.0, 0, -1]),
])  # fmt: skip
def test_unknown_reward_leaves_mean_and_std_and_gets_zero(how, expected):
    found = outcome_advantages(torch.tensor([[1.0, math.nan, 0.0]]), how)
    torch.testing.assert_close(found, torch.tensor([expected]))
    for unknown in ([1.0, math.nan, math.nan], [math.nan, math.nan, math.nan], [1.0, math.inf, math.nan]):
        assert outcome_advantages(torch.tensor([unknown]), how).tolist() == [[0, 0, 0]]


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=64), st.sampled_from([0, 1]))
@settings(max_examples=50, deadline=None)
def test_advantages_sum_to_zero_and_have_unit_spread(rewards, ddof):
    found = outcome_advantages(torch.tensor([rewards], dtype=torch.float64), "group", ddof)[0]
    assert abs(float(found.sum())) < 1e-9
    if len(set(rewards)) > 1:
        assert float(found.std(correction=ddof)) == pytest.approx(1)


@pytest.mark.parametrize(("ddof", "expected"), [
    (0, [[1.358732, 0, 1.019049], [0, -0.339683], [-1.358732]]), (1, [[1.240347, 0, 0.930261], [0, -0.310087], [-1.240347]]),
])  # fmt: skip
def test_process_supervision_by_hand(ddof, expected):
    """Section 4.1.3: a token gets the normalised rewards of the steps that end at it or later; after the last step nothing."""
    first, second, third = process_advantages(STEPS, ENDS, LENGTHS, ddof)
    a, b, c = expected
    for found, wanted in ((first, [a[0], a[0], a[1], a[1], a[2], 0.0]), (second, [b[0], b[1], b[1]]), (third, c * 3)):
        torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-6, rtol=0)


def test_unknown_steps_and_outputs_without_steps_stay_out():
    """A step without arithmetic (NaN) changes nothing: the others' mean, std and sums are as if it were not there."""
    first, second, third = process_advantages([[math.nan, 1.0], [], [0.0]], [[0, 2], [], [1]], [3, 2, 2], ddof=0)
    assert (first.tolist(), second.tolist(), third.tolist()) == ([1, 1, 1], [0, 0], [-1, -1])


@pytest.mark.parametrize("steps", [[[1.0, 1.0], [1.0]], [[0.5], []], [[], []], [[math.nan, math.nan], [0.0]]])
def test_equal_steps_give_exactly_zero(steps):
    found = process_advantages(steps, [list(range(len(rewards))) for rewards in steps], [2, 2])
    assert [values.tolist() for values in found] == [[0, 0], [0, 0]]


def test_one_step_an_output_is_outcome_supervision():
    """Each output one step, over all of its tokens: section 4.1.3 becomes 4.1.2."""
    found = process_advantages([[1.0], [0.0], [0.0]], [[2], [1], [0]], [3, 2, 1])
    expected = outcome_advantages(torch.tensor([[1.0, 0.0, 0.0]]))[0]
    for values, advantage in zip(found, expected, strict=True):
        torch.testing.assert_close(values, advantage.expand(len(values)))


def test_gae_by_hand():
    """γ 0.5, λ 0.5; two outputs, 3 and 1 tokens: δ = [0 + .5·.4 - .2, 0 + .5·.6 - .4, 1 - .6] = [0, -.1, .4] and [2 - .5]."""
    reward, value = torch.tensor([0.0, 0.0, 1.0, 2.0]), torch.tensor([0.2, 0.4, 0.6, 0.5])
    advantage, returns = gae(reward, value, torch.tensor([0, 0, 0, 1]), 0.5, 0.5)
    torch.testing.assert_close(advantage, torch.tensor([0.25 * 0.0, 0.0, 0.4, 1.5]), atol=1e-7, rtol=0)
    torch.testing.assert_close(returns, torch.tensor([0.2, 0.4, 1.0, 2.0]))


@given(st.lists(st.lists(st.floats(-2, 2), min_size=1, max_size=6), min_size=1, max_size=5), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_gae_is_the_recursion_of_its_definition(rewards, gamma, lam):
    """With λ = 1 the returns are the discounted sums of rewards, whatever the values."""
    generator = torch.Generator().manual_seed(len(rewards))
    values = [torch.rand(len(row), generator=generator) for row in rewards]
    output = torch.repeat_interleave(torch.arange(len(rewards)), torch.tensor([len(row) for row in rewards]))
    advantage, _ = gae(torch.tensor([r for row in rewards for r in row]), torch.cat(values), output, gamma, lam)
    _, returns = gae(torch.tensor([r for row in rewards for r in row]), torch.cat(values), output, gamma, 1.0)
    expected, sums = [], []
    for row, value in zip(rewards, values, strict=True):
        after, total, next_value = 0.0, 0.0, 0.0
        column = []
        for r, v in zip(reversed(row), reversed(value.tolist()), strict=True):
            after, total, next_value = r + gamma * next_value - v + gamma * lam * after, r + gamma * total, v
            column.append((after, total))
        expected += [a for a, _ in reversed(column)]
        sums += [t for _, t in reversed(column)]
    torch.testing.assert_close(advantage, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(returns, torch.tensor(sums), atol=1e-5, rtol=1e-5)


def test_an_output_without_a_reward_teaches_neither_policy_nor_critic():
    advantage, returns = gae(torch.tensor([0.0, math.nan, 1.0]), torch.tensor([0.3, 0.4, 0.5]), torch.tensor([0, 0, 1]), 1.0, 0.95)
    torch.testing.assert_close(advantage, torch.tensor([0.0, 0.0, 0.5]))
    torch.testing.assert_close(returns, torch.tensor([0.3, 0.4, 1.0]))
