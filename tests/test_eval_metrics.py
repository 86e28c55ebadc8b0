"""Figures of the evaluation: pass@K, majorities, intervals, differences; hand-worked and against enumeration."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathpipe.eval import metrics


def test_pass_at_k_by_hand() -> None:
    """5 samples, 2 right: of the 10 pairs 3 have no right one; of the 10 triples 1; every four have one."""
    assert [metrics.pass_at(k, 5, 2) for k in (1, 2, 3, 4, 5)] == [pytest.approx(x) for x in (0.4, 0.7, 0.9, 1.0, 1.0)]
    assert metrics.pass_at(64, 64, 0) == 0.0 and metrics.pass_at(1, 64, 64) == 1.0
    assert metrics.pass_at(32, 64, 1) == 0.5, "half of all draws of 32 among 64 hold the one right sample"


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_share_of_all_draws(right: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(right)))
    draws = [any(draw) for draw in itertools.combinations(right, k)]
    assert metrics.pass_at(k, len(right), sum(right)) == pytest.approx(sum(draws) / len(draws))


@given(st.integers(1, 64), st.data())
def test_pass_at_k_never_falls_with_k(n: int, data: st.DataObject) -> None:
    num_right = data.draw(st.integers(0, n))
    values = [metrics.pass_at(k, n, num_right) for k in range(1, n + 1)]
    assert values == sorted(values) and values[0] == pytest.approx(num_right / n) and values[-1] == float(num_right > 0)


def test_majorities_by_hand() -> None:
    assert metrics.majority(["7", "8", None, "8", None, None]) == 1, "no answer is no vote"
    assert metrics.majority(["8", "7", "7", "8"]) == 0, "of a tie the first"
    assert metrics.majority([None, None]) is None, "two missing answers are not equal"
    answers, right = ["7", "8", "8", None, None, None], [False, True, True, False, False, False]
    assert metrics.majority_at(1, answers, right) == pytest.approx(2 / 6)
    assert metrics.majority_at(2, answers, right) == pytest.approx(1 / 3), "7 wins the tie with 8; 8 alone; nothing"
    assert metrics.majority_at(3, answers, right) == pytest.approx(1 / 2) and metrics.majority_at(6, answers, right) == 1.0


@given(st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=12))
def test_the_majority_has_the_most_votes(answers: list[str | None]) -> None:
    place, counts = metrics.majority(answers), Counter(answer for answer in answers if answer is not None)
    assert (place is None) == (not counts)
    if place is not None:
        assert counts[answers[place]] == max(counts.values()) and answers.index(answers[place]) == place


def test_mcnemar_by_hand() -> None:
    """9 items gained, 1 lost: 2 · (1 + 10) / 2¹⁰; as many gained as lost: 1."""
    found = metrics.paired([0.0] * 9 + [1.0] * 11, [1.0] * 9 + [0.0] + [1.0] * 10)
    assert found["p_value"] == pytest.approx(22 / 1024) and found["difference"] == pytest.approx(8 / 20)
    assert (found["gained"], found["lost"], found["n"]) == (9, 1, 20)
    assert found["stderr"] == pytest.approx(math.sqrt((9 * 0.6**2 + 1.4**2 + 10 * 0.4**2) / 19 / 20))
    assert metrics.paired([0.0, 1.0], [1.0, 0.0])["p_value"] == 1.0 == metrics.paired([1.0], [1.0])["p_value"]


def test_a_difference_of_shares_is_tested_by_its_error() -> None:
    found = metrics.paired([0.25, 0.5, 0.75], [0.5, 0.75, 0.75])
    assert found["difference"] == pytest.approx(1 / 6) and found["stderr"] == pytest.approx(1 / 12)
    assert found["p_value"] == pytest.approx(0.0455, abs=1e-4), "two errors from nothing"


def test_a_score_of_zero_has_an_interval() -> None:
    """By hand, 0 of 10: z² / (10 + z²) with z = 1.96; 5 of 10 is symmetric about one half."""
    assert metrics.wilson(0.0, 10) == (0.0, pytest.approx(3.8416 / 13.8416))
    low, high = metrics.wilson(0.5, 10)
    assert low == pytest.approx(1 - high) and low == pytest.approx(0.2366, abs=1e-4)
    assert metrics.wilson(1.0, 10)[1] == 1.0
