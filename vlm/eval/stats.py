"""How sure a figure is: bootstrap intervals and paired tests over marks.

What is drawn anew is the picture with all its questions, because answers about one picture stand or fall together.
Sources: Efron, Bootstrap Methods, 1979; McNemar, Note on the Sampling Error of the Difference Between Correlated
Proportions, 1947; Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
FLIPS = 10_000
AT_ONCE = 1 << 22  # numbers that are drawn at once
Z = 1.959964  # half-width of a 95 % interval, in standard deviations

Interval = tuple[float, float]


def intervals(columns: Sequence[Sequence[float]], groups: Sequence[Hashable], seed: int) -> list[Interval]:
    """Return the 95 % interval of each column's mean, from the same resamples of its rows, group by group.

    A column holds n values, `groups` says for each row which picture it is about. Where there is but one group the
    rows are drawn singly.
    """
    values = np.array(columns, float).T  # (n, columns)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    which = np.array([numbers[group] for group in groups]) if len(numbers) > 1 else np.arange(len(values))
    sizes = np.bincount(which).astype(float)
    sums = np.stack([np.bincount(which, column) for column in values.T], axis=1)  # (groups, columns)
    random = np.random.default_rng(seed)
    means = np.empty((RESAMPLES, values.shape[1]))
    step = max(1, AT_ONCE // len(sizes))
    for start in range(0, RESAMPLES, step):
        drawn = random.integers(0, len(sizes), (min(step, RESAMPLES - start), len(sizes)))
        means[start : start + step] = sums[drawn].sum(1) / sizes[drawn].sum(1)[:, None]
    low, high = np.percentile(means, (2.5, 97.5), axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def share_interval(marks: Sequence[float], groups: Sequence[Hashable], seed: int) -> Interval:
    """Return the 95 % interval of the mean of marks from 0 to 1.

    Where all are 0 or all are 1, resamples show no spread, and Wilson's interval stands in.
    """
    share = sum(marks) / len(marks)
    return wilson(share, len(marks)) if share in (0, 1) else intervals([marks], groups, seed)[0]


def wilson(share: float, n: int) -> Interval:
    """Return Wilson's 95 % interval of a share of n."""
    spread = Z**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_test(before: Sequence[float], after: Sequence[float], seed: int) -> tuple[float, str]:
    """Return the probability that chance alone makes two lists of marks differ so much, and the name of the test.

    Right or wrong: McNemar's test, exact. Right in part: the signs of the differences are flipped at random.
    """
    difference = np.array(after, float) - np.array(before, float)
    if {*before, *after} <= {0.0, 1.0}:
        return _sign_test(int((difference < 0).sum()), int((difference > 0).sum())), "exact McNemar"
    changed = difference[difference != 0]
    return _flip_test(changed, seed), "paired sign-flip permutation"


def _sign_test(fewer: int, more: int) -> float:
    """Return the two-sided binomial probability at one half."""
    n, k = fewer + more, min(fewer, more)
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def _flip_test(changed: NDArray[np.float64], seed: int) -> float:
    if not len(changed):
        return 1.0
    random, seen, extreme = np.random.default_rng(seed), abs(changed.sum()), 0
    step = max(1, AT_ONCE // len(changed))
    for start in range(0, FLIPS, step):
        signs = random.integers(0, 2, (min(step, FLIPS - start), len(changed)), dtype=np.int8) * 2 - 1
        extreme += int((abs(signs @ changed) >= seen - 1e-9).sum())
    return (extreme + 1) / (FLIPS + 1)
