"""Sampling that stops early: its thresholds, its error rate, what it saves and what it loses."""

import numpy as np
import pytest
from scipy import integrate, special, stats

from lightning_modules.certification.binomial import clopper_pearson_lower, radius_of
from lightning_modules.certification.sequential import LookSchedule, SequentialRule, log_e_value
from lightning_modules.errors import InputError


def paths(p: np.ndarray, looks: np.ndarray, seed: int = 0) -> np.ndarray:
    """Counts at the looks, [len(p), J], of classifiers whose probability is p."""
    steps = np.diff(np.concatenate([[0], looks]))
    return np.cumsum(np.random.default_rng(seed).binomial(steps, p[:, None]), 1)


def test_looks_begin_at_the_start_grow_by_the_ratio_and_end_at_the_most():
    looks = LookSchedule(100_000, 100, 1.1, 100).looks
    assert len(looks) == 55
    assert looks[0] == 100
    assert looks[-1] == 100_000
    assert (np.diff(looks) >= 100).all()
    assert LookSchedule(100_000).looks[-1] == 100_000
    assert (LookSchedule(99_999).looks[:-1] % 16 == 0).all()
    assert LookSchedule(50).looks.tolist() == [50]


def test_thresholds_are_the_smallest_counts_with_a_high_enough_bound():
    rule = SequentialRule(0.5, (0.0, 0.25, 0.5, 1.0), LookSchedule(2000, 50, 1.3, 50), 0.01)
    levels = np.full(len(rule.looks), 0.005 / (len(rule.looks) - 1))
    levels[-1] = 0.005
    for t, target in enumerate(rule.targets):
        for j, n in enumerate(rule.looks):
            counts = np.arange(n + 1)
            enough = clopper_pearson_lower(counts, n, levels[j]) >= target
            expected = counts[np.argmax(enough)] if enough.any() else n + 1
            assert rule.thresholds[t, j] == expected


def test_the_e_process_equals_its_integral_and_its_mean_does_not_grow():
    s, f, p0 = 30, 4, 0.7
    prior = stats.beta(0.5, 0.5)
    ratio = lambda theta: (theta / p0) ** s * ((1 - theta) / (1 - p0)) ** f * prior.pdf(theta)  # noqa: E731
    expected = integrate.quad(ratio, p0, 1, limit=200)[0] / prior.sf(p0)
    assert log_e_value(s, f, p0) == pytest.approx(np.log(expected), rel=1e-6)
    for p in (0.7, 0.5):  # one step's expectation, at the boundary and inside the null
        for s, f in ((0, 0), (12, 3), (40, 1)):
            now = np.exp(log_e_value(s, f, p0))
            after = p * np.exp(log_e_value(s + 1, f, p0)) + (1 - p) * np.exp(log_e_value(s, f + 1, p0))
            assert after <= now * (1 + 1e-9)


@pytest.mark.parametrize("kind", ["cp", "eprocess"])
@pytest.mark.parametrize("p0", [0.6, 0.8413, 0.9772, 0.99865])
def test_a_certificate_at_the_true_boundary_is_given_with_at_most_its_level(kind, p0):
    schedule = LookSchedule(5000, 50, 1.1, 50)
    # The second target lies at the true probability: crossing it is the error that alpha bounds.
    rule = SequentialRule(1.0, (0.0, float(special.ndtri(p0)) + 1e-9), schedule, 0.05, kind=kind)
    counts = paths(np.full(40_000, p0), rule.looks, seed=1)
    crossed, _ = rule.replay(counts[:15_000])
    assert (crossed == 2).mean() <= 0.05
    # Looking as often at a fixed-n bound errs more: the looks are what has to be paid for.
    every = [np.arange(n + 1) for n in rule.looks]
    least = [np.argmax(clopper_pearson_lower(k, n, 0.05) > p0) or n + 1 for k, n in zip(every, rule.looks, strict=True)]
    assert (counts >= np.array(least)).any(1).mean() >= 0.08


def test_the_error_rate_holds_when_futility_does_not_stop_either():
    rule = SequentialRule(1.0, (0.0, float(special.ndtri(0.9)) + 1e-9), LookSchedule(3000, 50, 1.1, 50), 0.05)
    counts = paths(np.full(15_000, 0.9), rule.looks, seed=2)
    ever = (counts >= rule.thresholds[1]).any(1)
    assert 0.005 < ever.mean() <= 0.05


@pytest.mark.parametrize(("kind", "most"), [("cp", 10_000), ("eprocess", 10_500)])
def test_it_spends_a_tenth_and_loses_next_to_nothing_against_fixed_n(kind, most):
    z = special.ndtri((np.arange(1, 2001) - 0.5) / 2000)
    p, n = special.ndtr(0.9 + 1.2 * z), 100_000
    rule = SequentialRule(0.5, tuple(np.arange(7) * 0.25), LookSchedule(n), 0.001, kind=kind)
    counts = paths(p, rule.looks)
    crossed, used = rule.replay(counts)
    lower = clopper_pearson_lower(counts[:, -1], n, 0.001)
    fixed = np.where(lower >= 0.5, radius_of(lower, 0.5), -1.0)
    columns = np.array([(fixed >= r).mean() for r in rule.radii])
    assert columns == pytest.approx([0.770, 0.626, 0.461, 0.303, 0.174, 0.085, 0.034], abs=0.003)
    adaptive = np.array([(crossed > t).mean() for t in range(7)])
    assert used.mean() <= most
    assert (columns - adaptive <= 0.005).all()
    if kind == "cp":  # on one path it never certifies more than all samples together do
        certified = np.array([rule.radii[c - 1] if c else -1.0 for c in crossed])
        assert (certified <= fixed + 1e-12).all()


@pytest.mark.parametrize(("p", "floor"), [(0.99, 52), (0.95, 120), (0.90, 476), (0.87, 2131)])
@pytest.mark.parametrize("kind", ["cp", "eprocess"])
def test_a_single_target_costs_at_most_twice_the_information_it_takes(p, floor, kind):
    target = stats.norm.cdf(1)
    information = p * np.log(p / target) + (1 - p) * np.log((1 - p) / (1 - target))
    assert np.log(1000) / information == pytest.approx(floor, rel=0.01)
    rule = SequentialRule(1.0, (0.0, 1.0), LookSchedule(100_000, 50, 1.1, 10), 0.001, kind=kind)
    crossed, used = rule.replay(paths(np.full(4000, p), rule.looks, seed=3))
    certified = crossed == 2
    assert certified.mean() >= 0.98  # the futility rule gives up on a few
    assert used[certified].mean() <= 2 * floor


def test_what_cannot_be_certified_any_more_stops():
    rule = SequentialRule(0.5, (0.0, 0.5), LookSchedule(100_000), 0.001)
    _, used = rule.replay(paths(np.array([0.2] * 50 + [0.7] * 50), rule.looks))
    assert (used[:50] < 500).all()
    assert (used[50:] < 20_000).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 0.0}, "sigma: 0.0 is not positive"),
        ({"sigma": float("nan")}, "sigma: nan"),
        ({"alpha": 1.0}, "alpha: 1.0 is not between"),
        ({"radii": (0.25, 0.5)}, "must increase from 0"),
        ({"radii": (0.0, 0.5, 0.5)}, "must increase from 0"),
        ({"split": 0.0}, "split: 0.0"),
        ({"kind": "guess"}, "kind: unknown 'guess'"),
    ],
)
def test_bad_rules_are_one_line(change, message):
    values = {"sigma": 0.5, "radii": (0.0, 0.5), "schedule": LookSchedule(100), "alpha": 0.001, **change}
    with pytest.raises(InputError, match=message) as error:
        SequentialRule(**values)
    assert "\n" not in str(error.value)


def test_bad_schedules_are_one_line():
    with pytest.raises(InputError, match="ratio"):
        LookSchedule(100, ratio=1.0)
    with pytest.raises(InputError, match="n_max"):
        LookSchedule(0)
