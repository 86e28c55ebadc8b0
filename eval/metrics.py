"""Figures of an evaluation: shares with their errors, majority and pass at K, and two models on the same items."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any


def mean_and_stderr(values: Iterable[float]) -> tuple[float, float]:
    """Mean and its standard error, sample deviation (ddof 1) over √n as lm-eval's; 0 for a single value.

    >>> mean_and_stderr([1.0, 0.0, 0.0, 0.0])
    (0.25, 0.25)
    """
    values = list(values)
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def wilson(score: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of `n` items (Wilson 1927): at a score of 0, where the standard error is 0 too, it is not empty.

    >>> [round(end, 3) for end in wilson(0.0, 54)]
    [0.0, 0.066]
    """
    z2 = 1.96**2 / n
    middle, half = score + z2 / 2, math.sqrt(z2 * score * (1 - score) + z2**2 / 4)
    return max(0.0, (middle - half) / (1 + z2)), min(1.0, (middle + half) / (1 + z2))


def pass_at(k: int, n: int, num_correct: int) -> float:
    """Chance that `k` of `n` samples, drawn without replacement, hold a right one: 1 − C(n−c, k) / C(n, k) (Chen et al. 2021).

    >>> pass_at(1, 4, 1), pass_at(2, 4, 1), pass_at(2, 4, 3)
    (0.25, 0.5, 1.0)
    """
    return 1.0 - math.comb(n - num_correct, k) / math.comb(n, k)


def majority(answers: Sequence[Hashable | None]) -> int | None:
    """The first place of the most frequent answer, the earliest of equally frequent ones; None where nothing was answered.

    >>> majority(["7", None, "8", "8"]), majority(["7", "8"]), majority([None])
    (2, 0, None)
    """
    counts = Counter(answer for answer in answers if answer is not None)
    return answers.index(max(counts, key=counts.__getitem__)) if counts else None  # a Counter keeps the order of first sight


def majority_at(k: int, answers: Sequence[Hashable | None], is_right: Sequence[bool]) -> float:
    """Share of right majorities over the ⌊n / k⌋ consecutive runs of `k` samples.

    >>> majority_at(2, ["7", "8", "8", "8"], [False, True, True, True])
    0.5
    """
    votes = [majority(answers[start : start + k]) for start in range(0, len(answers) - k + 1, k)]
    right = [vote is not None and is_right[number * k + vote] for number, vote in enumerate(votes)]
    return sum(right) / len(right)


def powers_to(n: int) -> list[int]:
    """1, 2, 4, … up to `n`, which is among them.

    >>> powers_to(6)
    [1, 2, 4, 6]
    """
    return sorted({2**i for i in range(n.bit_length())} | {n})


def paired(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """The mean difference of two models' scores on the same items, its standard error, and how likely so much is by chance.

    For scores of 0 and 1 the exact McNemar test: of the items that only one model has right, are half the other's? Else a normal test.

    >>> found = paired([0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1])
    >>> found["gained"], found["lost"], found["p_value"]
    (5, 0, 0.0625)
    """
    differences = [b - a for a, b in zip(before, after, strict=True)]
    mean, stderr = mean_and_stderr(differences)
    gained, lost = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    if set(before) | set(after) <= {0, 1}:
        tail = sum(math.comb(gained + lost, i) for i in range(min(gained, lost) + 1))
        p_value = float(min(1.0, tail / 2 ** (gained + lost - 1))) if gained + lost else 1.0
    else:
        p_value = math.erfc(abs(mean) / stderr / math.sqrt(2)) if stderr else float(mean == 0)
    return {"difference": mean, "stderr": stderr, "p_value": p_value, "gained": gained, "lost": lost, "n": len(differences)}
