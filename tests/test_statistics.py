import itertools
import math

import numpy as np
import pytest
from scipy import stats

from grpo_jax import statistics


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([i < c for i in range(n)], k))
        expected = sum(map(any, subsets)) / len(subsets)
        assert statistics.pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_takes_arrays_and_large_n():
    np.testing.assert_allclose(statistics.pass_at_k([4, 4], [0, 4], 2), [0, 1])
    exact = 1 - math.comb(990, 100) / math.comb(1000, 100)
    assert statistics.pass_at_k(1000, 10, 100) == pytest.approx(exact, rel=1e-12)
    for n, c, k in ((4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1)):
        with pytest.raises(ValueError, match="pass@k needs"):
            statistics.pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("answers", "right", "k", "expected"),
    [
        (["a", "b", "a"], "a", 3, 1.0),
        (["a", "b", "b"], "a", 3, 0.0),
        (["a", "b"], "a", 2, 1 / 2),  # a tie is drawn by lot
        (["a", "b", "c"], "c", 3, 1 / 3),
        ([None, None, "a"], "a", 3, 1.0),  # silence has no vote
        ([None, None], "a", 2, 0.0),
        (["a", "b", "a", "a", "b"], "a", 2, 3 / 4),  # blocks ab, aa; the last b is unused
        (["a", "b", "a"], "a", 1, 2 / 3),
    ],
)
def test_maj_at_k(answers, right, k, expected):
    correct = [answer == right for answer in answers]
    assert statistics.maj_at_k(answers, correct, k) == pytest.approx(expected)


def test_maj_at_k_is_unbiased_over_orders():
    answers = ["a", "a", "b", "c"]
    orders = list(itertools.permutations(answers))
    got = np.mean([statistics.maj_at_k(o, [x == "a" for x in o], 3) for o in orders])
    # Subsets of three: aab, aac (a wins), abc twice (a wins by lot, 1 in 3).
    assert got == pytest.approx((1 + 1 + 1 / 3 + 1 / 3) / 4)


def test_maj_at_k_refuses_nonsense():
    with pytest.raises(ValueError, match="k = 3, 2 answers"):
        statistics.maj_at_k(["a", "b"], [True, False], 3)
    with pytest.raises(ValueError, match="'a' is marked both"):
        statistics.maj_at_k(["a", "a"], [True, False], 2)


def test_wilson_interval_against_published_values():
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
    low, high = statistics.wilson_interval([81, 15, 0, 1], [263, 148, 20, 29])
    np.testing.assert_allclose(low, [0.2553, 0.0624, 0.0, 0.0061], atol=5e-5)
    np.testing.assert_allclose(high, [0.3662, 0.1605, 0.1611, 0.1718], atol=5e-5)
    assert statistics.wilson_interval(20, 20)[1] == 1
    assert statistics.wilson_interval(0, 0) == (0, 1)


def test_mean_interval_is_students_t_over_problems():
    # t(0.975, 4 degrees of freedom) = 2.776; sd of 1..5 = sqrt(2.5)
    mean, low, high = statistics.mean_interval([1, 2, 3, 4, 5])
    half = 2.7764451 * math.sqrt(2.5 / 5)
    assert (mean, low, high) == pytest.approx((3, 3 - half, 3 + half))
    assert statistics.seed_interval([1, 2, 3, 4, 5]) == (mean, low, high)
    wider = statistics.mean_interval([1, 2, 3, 4, 5], level=0.99)
    assert wider[2] == pytest.approx(3 + 4.6040949 * math.sqrt(0.5))


def test_more_samples_of_the_same_problems_do_not_narrow_the_interval():
    once = np.array([[0.0], [1.0], [1.0], [0.0]])
    many = np.repeat(once, 100, axis=1)
    assert statistics.mean_interval(many) == statistics.mean_interval(once[:, 0])


def test_the_interval_covers_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(2.0, 3.0, (2000, 6))
    ends = np.array([statistics.seed_interval(d) for d in draws])
    covered = np.mean((ends[:, 1] <= 2) & (ends[:, 2] >= 2))
    assert covered == pytest.approx(0.95, abs=0.015)


def test_one_value_has_no_interval_and_none_is_refused():
    mean, low, high = statistics.mean_interval([0.5])
    assert mean == 0.5 and math.isnan(low) and math.isnan(high)
    with pytest.raises(ValueError, match="expected values"):
        statistics.mean_interval([])
    with pytest.raises(ValueError, match="one value a seed"):
        statistics.seed_interval([[1.0, 2.0]])


@pytest.mark.parametrize(("mine", "theirs", "both"), [(0, 0, 5), (1, 0, 3), (6, 1, 2), (4, 4, 0)])
def test_paired_is_mcnemars_exact_test(mine, theirs, both):
    a = [True] * mine + [False] * theirs + [True] * both + [False] * 3
    b = [False] * mine + [True] * theirs + [True] * both + [False] * 3
    found = statistics.paired(a, b)
    # Every way that the problems which only one got right could have fallen.
    n, far = mine + theirs, abs(mine - theirs)
    ways = [abs(2 * sum(way) - n) >= far for way in itertools.product((0, 1), repeat=n)]
    assert found["p"] == pytest.approx(np.mean(ways))
    gaps = np.array(a, float) - np.array(b, float)
    assert found["difference"] == pytest.approx(gaps.mean())
    low, high = stats.ttest_1samp(gaps, 0).confidence_interval() if n else (0, 0)
    assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))


def test_paired_of_shares_is_students_test():
    a, b = np.array([[0.25, 1.0, 0.5, 0.75], [0.0, 0.75, 0.5, 0.25]])
    found, expected = statistics.paired(a, b), stats.ttest_rel(a, b)
    assert found["p"] == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval()
    ends = (pytest.approx(interval.low), pytest.approx(interval.high))
    assert (found["low"], found["high"]) == ends
    assert statistics.paired(a, a)["p"] == 1


@pytest.mark.parametrize("n", [1, 2, 3, 8, 59, 333, 1319])
def test_p_values_are_those_of_scipys_tests(n):
    rng = np.random.default_rng(n)
    for wins in {0, 1, n // 3, n // 2, n - 1, n}:
        a = np.arange(n) < wins
        exact = stats.binomtest(wins, n).pvalue
        assert statistics.paired(a, ~a)["p"] == pytest.approx(exact, rel=1e-12, abs=0)
    for shift in (0.0, 0.3, -2.0) if n > 1 else ():
        values = rng.normal(shift, size=n)
        exact = stats.ttest_1samp(values, 0).pvalue
        found = statistics.paired(values, np.zeros(n))["p"]
        assert found == pytest.approx(exact, rel=1e-12, abs=0)
    quarters = np.full(n, 0.25)  # all differ by as much
    p = statistics.paired(quarters, 0 * quarters)["p"]
    assert p == 0 if n > 1 else np.isnan(p)


def test_paired_needs_the_same_problems():
    with pytest.raises(ValueError, match=r"expected marks \[problems\] twice"):
        statistics.paired([True], [True, False])
