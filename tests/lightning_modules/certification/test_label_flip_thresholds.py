import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import binom

from lightning_modules.certification.label_flips import kl_flips, kl_per_flip, np_flips, np_threshold_table
from lightning_modules.errors import InputError

LN10 = math.log(10)


@pytest.mark.parametrize(
    ("q", "classes", "exponent", "closed", "tight"),
    [
        (0.3, 2, -2, 4, 7),
        *[(0.05, 2, e, *flips) for e, flips in {-5: (1, 3), -10: (4, 7), -50: (21, 42)}.items()],
        *[(0.1, 2, e, *flips) for e, flips in {-5: (2, 4), -10: (6, 11), -50: (32, 63)}.items()],
        *[(0.3, 2, e, *flips) for e, flips in {-5: (14, 27), -10: (31, 60), -50: (167, 329)}.items()],
        *[(0.45, 2, e, *flips) for e, flips in {-5: (252, 453), -10: (539, 1008)}.items()],
        *[(0.05, 10, e, *flips) for e, flips in {-10: (2, 4), -50: (11, 23)}.items()],
        *[(0.0125, 10, e, *flips) for e, flips in {-10: (1, 3), -50: (8, 17)}.items()],
    ],
)
def test_flips_of_known_probabilities(q, classes, exponent, closed, tight):
    assert kl_flips(exponent * LN10, q, classes) == closed
    assert np_flips(exponent * LN10, q, classes) == tight


def test_closed_form_before_the_floor():
    b, q = 0.01, 0.3
    assert -math.log(4 * b * (1 - b)) / (2 * kl_per_flip(q)) == pytest.approx(4.763564, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("q", [0.0125, 0.05, 0.3, 0.45])
def test_the_tight_number_is_above_the_closed_one_and_about_twice_it_for_small_b(q, classes):
    log_b = -np.geomspace(math.log(2) + 1e-9, 300, 400)
    closed, tight = kl_flips(log_b, q, classes), np_flips(log_b, q, classes)
    assert (tight >= closed).all()
    assert (closed >= 0).all()
    assert 1.9 <= np_flips(-50 * LN10, q, classes) / kl_flips(-50 * LN10, q, classes) <= 2.15


def exact_threshold(r, q, classes):
    """B_crit(r) by convolution of exact fractions."""
    other = q / (classes - 1)
    law = {0: Fraction(1)}
    for _ in range(r):
        nxt = {}
        for t, p in law.items():
            for step, weight in ((-1, 1 - q), (0, q - other), (1, other)):
                nxt[t + step] = nxt.get(t + step, 0) + p * weight
        law = nxt
    left, total = Fraction(1, 2), Fraction(0)
    for t in sorted(law):  # law after the changes; before them a value t has the probability of -t
        if not law[t]:
            continue
        share = min(Fraction(1), left / law[t])
        total += share * law[-t]
        left -= share * law[t]
        if not left:
            return total
    raise AssertionError


@pytest.mark.parametrize(
    ("q", "classes"), [("1/20", 2), ("9/20", 2), ("1/20", 10), ("1/2", 3), ("3/5", 3), ("3/10", 4)]
)
def test_thresholds_are_those_of_exact_fractions(q, classes):
    table = np_threshold_table(float(Fraction(q)), 25, classes)
    expected = [exact_threshold(r, Fraction(q), classes) for r in range(26)]
    np.testing.assert_allclose(table, [math.log(b) for b in expected], rtol=1e-12)


@pytest.mark.parametrize("q", [0.05, 0.3])
def test_thresholds_far_in_the_tail_are_those_of_binomial_laws(q):
    r = 3000
    table = np_threshold_table(q, r)
    m = int(binom.median(r, q))
    atom = (0.5 - binom.cdf(m - 1, r, q)) / binom.pmf(m, r, q)
    below = binom.logpmf(np.arange(m), r, 1 - q)
    expected = logsumexp([*below, math.log(atom) + binom.logpmf(m, r, 1 - q)])
    assert table[r] < -900
    assert table[r] == pytest.approx(expected, rel=1e-9)
    assert (np.diff(table) < 0).all()
    assert (table <= -np.arange(r + 1) * kl_per_flip(q)).all()


def test_tiny_probabilities_stay_finite_and_half_abstains():
    log_b = np.array([[-2000.0, -700.0], [math.log(0.5), 0.0]])
    for flips in (kl_flips(log_b, 0.05), np_flips(log_b, 0.05)):
        assert flips.shape == (2, 2)
        assert flips.dtype == np.int64
        assert flips[0, 0] > flips[0, 1] > 0
        assert (flips[1] == -1).all()
    assert np_flips(-2000.0, 0.05) == 752
    assert np_flips(-2000.0, 0.05, limit=100) == 100
    assert np_flips(np.zeros(0), 0.05).shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kl_flips(-1.0, 0.5), r"q: 0.5 is outside \(0, 0.5\) for 2 classes"),
        (lambda: np_flips(-1.0, 0.0), "q: 0.0 is outside"),
        (lambda: np_flips(-1.0, 0.91, 10), r"q: 0.91 is outside \(0, 0.9\) for 10 classes"),
        (lambda: kl_per_flip(0.1, 1), "num_classes: 1 is less than 2"),
        (lambda: kl_flips(np.nan, 0.1), "log_b: nan is no finite logarithm"),
        (lambda: np_flips([-1.0, -np.inf], 0.1), "log_b: -inf"),
        (lambda: np_flips(-2000.0, 0.49999), "q: 0.49999 lets one point survive"),
        (lambda: np_threshold_table(0.1, -1), "r_max: -1"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
