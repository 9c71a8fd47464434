"""Estimates and their intervals: pass@k, maj@k, a proportion, a mean over problems or seeds."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special


class Interval(NamedTuple):
    """A mean, and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> np.ndarray:
    """Return 1 - C(n - c, k) / C(n, k): the chance that k of n samples hold a correct one.

    n  samples of each problem
    c  how many of them are correct; both of any one shape, the result's

    Unbiased (Chen et al. 2021, arXiv 2107.03374). Raises ValueError unless 1 <= k <= n and
    0 <= c <= n.
    """
    n, c = np.broadcast_arrays(np.asarray(n), np.asarray(c))
    if k < 1 or np.any(k > n):
        raise ValueError(f"pass@k needs 1 <= k <= n samples, got k = {k} and n = {n.min()}")
    if np.any((c < 0) | (c > n)):
        raise ValueError("pass@k needs 0 <= c <= n: no more correct samples than samples")
    # C(n - c, k) / C(n, k) = prod_{i < k} (n - c - i) / (n - i); a factor is 0 once c > n - k.
    i = np.arange(k)
    factors = np.maximum(n[..., None] - c[..., None] - i, 0) / (n[..., None] - i)
    return 1.0 - factors.prod(-1)


def maj_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool], k: int) -> float:
    """Return the chance that the commonest answer of k samples of one problem is correct.

    answers  the answer of each of n samples; None = no answer, which has no vote
    correct  whether each is correct; samples of one answer must agree

    The samples are cut into n // k blocks of k, in order, and the blocks averaged (what is left
    over is unused). A tie is drawn by lot: it counts the share of the tied answers that are
    correct. A block without any answer counts 0. Raises ValueError unless 1 <= k <= n.
    """
    if len(answers) != len(correct) or not 1 <= k <= len(answers):
        raise ValueError(
            f"maj@k needs 1 <= k <= n, got k = {k}, {len(answers)} answers, {len(correct)} marks"
        )
    right: dict[Hashable, bool] = {}
    for answer, mark in zip(answers, correct, strict=True):
        if answer is not None and right.setdefault(answer, bool(mark)) != bool(mark):
            raise ValueError(f"maj@k: the answer {answer!r} is marked both correct and wrong")
    starts = range(0, len(answers) - k + 1, k)
    return float(np.mean([_majority(answers[s : s + k], right) for s in starts]))


def _majority(answers: Sequence[Hashable | None], right: dict[Hashable, bool]) -> float:
    votes = Counter(answer for answer in answers if answer is not None)
    winners = [answer for answer, n in votes.items() if n == max(votes.values())]
    return sum(right[answer] for answer in winners) / len(winners) if winners else 0.0


def wilson_interval(
    successes: ArrayLike, n: ArrayLike, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Return (low, high) of Wilson's score interval for a proportion; n = 0 gives (0, 1).

    successes, n  arrays of one shape, the results'

    Wilson 1927. Unlike mean +- z s.e. it stays inside [0, 1] and does not vanish at 0 of n.
    """
    n = np.asarray(n, float)
    p = np.asarray(successes, float) / np.maximum(n, 1)
    z = special.ndtri((1 + level) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    # The ends are exact at 0 of n and n of n; rounding would leave 1e-17 there.
    low = np.where((n == 0) | (p == 0), 0.0, centre - half)
    high = np.where((n == 0) | (p == 1), 1.0, centre + half)
    return low, high


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Return the mean, with the ends of Student's t interval for a mean over problems.

    values  [problems] or [problems, samples]; the samples of a problem are not independent, so
            each problem counts once, by its mean (a cluster; Miller 2024, arXiv 2411.00640)

    One problem says nothing of the spread: the ends are NaN. Raises ValueError for no values.
    """
    values = np.asarray(values, float)
    if values.ndim not in (1, 2) or values.size == 0:
        raise ValueError(f"expected values [problems] or [problems, samples], got {values.shape}")
    means = values.reshape(len(values), -1).mean(1)
    mean, n = float(means.mean()), len(means)
    if n == 1:
        return Interval(mean, np.nan, np.nan)
    half = special.stdtrit(n - 1, (1 + level) / 2) * means.std(ddof=1) / np.sqrt(n)
    return Interval(mean, float(mean - half), float(mean + half))


def paired(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> dict[str, float]:
    """How much better a does than b on the same problems.

    a, b  bool[problems], whether right; or f[problems], the share of samples that are

    difference, low, high  mean of a - b, and Student's t interval over problems
    p  two-sided; 1 where no problem differs. Marks: McNemar's exact test (1947), how likely a
       difference as large is where each problem that only one got right had been either's with
       equal chance. Shares: Student's paired t test; NaN for one problem.

    Raises ValueError unless both have one value a problem.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"expected marks [problems] twice, got {a.shape} and {b.shape}")
    gaps = a.astype(float) - b
    mean, low, high = mean_interval(gaps, level)
    if not gaps.any():
        p = 1.0
    elif a.dtype == b.dtype == bool:
        p = _sign_test(int((gaps > 0).sum()), int((gaps < 0).sum()))
    else:
        p = _t_test(gaps)
    return {"difference": mean, "low": low, "high": high, "p": p}


# scipy.special has the two distributions; scipy.stats takes half a second to import.
def _sign_test(wins: int, losses: int) -> float:
    """Two-sided p of so many wins and losses, where each is as likely."""
    fewer, n = min(wins, losses), wins + losses
    if 2 * fewer == n:
        return 1.0
    # P(X <= k) of the binomial distribution is the regularized incomplete beta function.
    return float(2 * special.betainc(n - fewer, fewer + 1, 0.5))


def _t_test(values: np.ndarray) -> float:
    """Two-sided p of Student's t test that the mean is 0; NaN of one value."""
    n = len(values)
    if n == 1:
        return np.nan
    with np.errstate(divide="ignore"):  # where all differ by as much, t is infinite
        t = np.abs(values.mean()) / (values.std(ddof=1) / np.sqrt(n))
    return float(2 * special.stdtr(n - 1, -t))


def seed_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Return the mean, with the ends of Student's t interval over one value a seed, [seeds]."""
    if np.ndim(values) != 1:
        raise ValueError(f"expected one value a seed, [seeds], got {np.shape(values)}")
    return mean_interval(values, level)
