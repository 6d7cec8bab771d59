"""Confidence bounds, the test of PREDICT, radii and summaries, against exact figures and brute force."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from lightning_modules.certification.accuracy import (
    average_certified_radius,
    certified_accuracy,
    high_probability_accuracy,
)
from lightning_modules.certification.binomial import (
    binomial_tail,
    clopper_pearson_lower,
    clopper_pearson_upper,
    largest_radius,
    radius_of,
    top_two_p_value,
)


def test_lower_bounds_have_their_exact_figures():
    assert clopper_pearson_lower(100_000, 100_000, 0.001) == pytest.approx(0.99993092, abs=5e-9)
    assert clopper_pearson_lower(99_000, 100_000, 0.001) == pytest.approx(0.98898934, abs=5e-9)
    assert clopper_pearson_lower(990, 1000, 0.001) == pytest.approx(0.97603619, abs=5e-9)
    assert radius_of(clopper_pearson_lower(99_000, 100_000, 0.001), 1.0) == pytest.approx(2.290000, abs=5e-7)
    assert clopper_pearson_lower(7, 7, 0.01) == pytest.approx(0.01 ** (1 / 7), rel=1e-12)
    assert clopper_pearson_lower(0, 50, 0.01) == 0
    assert clopper_pearson_upper(50, 50, 0.01) == 1


@pytest.mark.parametrize(("n", "least"), [(100, 66), (1000, 550), (100_000, 50_490)])
def test_the_smallest_count_with_a_radius_is_exact(n, least):
    counts = np.arange(n // 2, n + 1)
    assert counts[np.argmax(clopper_pearson_lower(counts, n, 0.001) > 0.5)] == least


def test_bounds_are_those_of_scipys_own_interval_at_twice_the_level():
    for k, n in ((3, 10), (97, 100), (512, 1000)):
        interval = stats.binomtest(k, n).proportion_ci(1 - 2 * 0.01, method="exact")
        assert clopper_pearson_lower(k, n, 0.01) == pytest.approx(interval.low, rel=1e-10)
        assert clopper_pearson_upper(k, n, 0.01) == pytest.approx(interval.high, rel=1e-10)


@pytest.mark.parametrize(("n", "p", "error"), [(100, 0.9, 0.0237), (1000, 0.9, 0.0485), (1000, 0.99, 0.0287)])
def test_the_chance_that_a_bound_is_too_high_is_exact_and_below_alpha(n, p, error):
    counts = np.arange(n + 1)
    too_high = clopper_pearson_lower(counts, n, 0.05) > p
    chance = stats.binom.pmf(counts, n, p)[too_high].sum()
    assert chance == pytest.approx(error, abs=5e-5)
    assert chance <= 0.05


def test_tails_equal_sums_of_fractions():
    p = Fraction(3, 10)
    for k in range(-1, 14):
        exact = sum(math.comb(12, i) * p**i * (1 - p) ** (12 - i) for i in range(max(k, 0), 13))
        assert float(binomial_tail(k, 12, 0.3)) == pytest.approx(float(exact), rel=1e-12, abs=0)


def test_predict_needs_the_counts_of_the_exact_test():
    first, n = np.array([66, 67, 552, 553]), np.array([100, 100, 1000, 1000])
    values = top_two_p_value(first, n - first)
    assert values == pytest.approx([0.00179, 0.00087, 0.00112, 0.00089], abs=5e-6)
    for k, total, value in zip(first, n, values, strict=True):
        assert value == pytest.approx(stats.binomtest(int(k), int(total), 0.5).pvalue, rel=1e-9)
    assert top_two_p_value(50, 50) == 1
    assert top_two_p_value(3, 0) == pytest.approx(0.25)


def test_radii_cannot_exceed_what_all_agreeing_samples_give():
    found = [largest_radius(n, 0.001, 1.0) for n in (100, 1000, 10_000, 100_000, 1_000_000)]
    assert found == pytest.approx([1.5005, 2.4633, 3.1986, 3.8115, 4.3468], abs=5e-5)
    assert radius_of(0.3, 2.0) == 0
    assert radius_of(0.9, 2.0) == pytest.approx(2 * stats.norm.ppf(0.9))


def test_accuracy_counts_only_what_is_right_and_reaches_the_radius():
    predictions, labels = np.array([1, 1, 0, -1, 2, 2]), np.array([1, 0, 0, 0, 2, 1])
    radii = np.array([0.5, 0.9, 0.2, 0.0, np.nan, np.nan])
    assert certified_accuracy(predictions, radii, labels, [0, 0.2, 0.21, 0.6]).tolist() == [2 / 6, 2 / 6, 1 / 6, 0]
    right = predictions == labels
    assert average_certified_radius(predictions[:4], radii[:4], labels[:4]) == pytest.approx(
        radii[:4][right[:4]].sum() / 4
    )


def test_the_high_probability_correction_has_its_figure():
    assert 0.75 - high_probability_accuracy(0.75, 500, 0.001, 0.001) == pytest.approx(0.00932, abs=5e-6)
    with pytest.raises(ValueError, match="alpha"):
        high_probability_accuracy(0.5, 10, 0.0)
