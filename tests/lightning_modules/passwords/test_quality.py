"""Success curves, closed forms, a person's sites, and the Lightning form."""

import itertools
import math

import numpy as np
import pytest

from lightning_modules.errors import InputError
from lightning_modules.lightning_import import pl
from lightning_modules.passwords.catalog import make_schema
from lightning_modules.passwords.challenges import SITES, RandomSource, SiteSource
from lightning_modules.passwords.direct import MentalHash, RunningSum, WordSum
from lightning_modules.passwords.linear import LinearAttack
from lightning_modules.passwords.module import SchemaModule
from lightning_modules.passwords.pairs import MemorisingAttack
from lightning_modules.passwords.quality import (
    coverage,
    coverage_model,
    expected_distinct,
    key_curve,
    quality,
    success_curve,
)
from lightning_modules.passwords.security import site_risks
from lightning_modules.passwords.solving import ConstraintAttack


def test_running_sums_fall_as_letters_are_covered():
    curve = success_curve(RunningSum(), LinearAttack, RandomSource(8, 60), 100, 20)
    assert quality(curve.pairs, curve.mean, 0.5) == pytest.approx(8, abs=1)
    assert quality(curve.pairs, curve.mean, 0.9) == pytest.approx(14, abs=1)
    exact = [coverage(8, m) for m in curve.pairs]
    # Keys are independent: four standard errors of the mean over keys.
    error = curve.success.std(0) / 10
    assert (np.abs(curve.mean - exact) <= 4 * error + 0.01).all()
    assert not curve.wrong.any()


def test_coverage_is_what_counting_all_challenges_gives():
    # Two letters of an alphabet of 26, after one leaked pair of two letters.
    letters = np.array(list(itertools.product(range(26), repeat=2)))
    seen = np.array([[len(set(asked) - set(leaked)) == 0 for asked in letters.tolist()] for leaked in letters.tolist()])
    assert coverage(2, 1) == pytest.approx(seen.mean(), abs=1e-12)
    assert coverage(8, 0) == 0
    assert coverage(8, 100_000) == pytest.approx(1)
    assert coverage_model(8, 8) == pytest.approx((1 - (25 / 26) ** 64) ** 8)
    assert coverage_model(12, 3, 9.8) == pytest.approx((1 - (25 / 26) ** 36) ** 9.8)
    assert expected_distinct(12) == pytest.approx(9.8, abs=0.05)


def test_word_sums_stay_at_chance_until_the_rank_is_there():
    curve = success_curve(
        WordSum(), lambda s: LinearAttack(s, guess=True), RandomSource(8, 40), 30, [20, 25, 26, 28, 30, 32]
    )
    assert curve.mean[0] == pytest.approx(0.1, abs=0.04)
    sure = success_curve(WordSum(), LinearAttack, RandomSource(8, 40), 30, 32)
    assert sure.mean[19] == 0
    assert quality(sure.pairs, sure.mean, 0.5) == pytest.approx(26, abs=1)
    assert 27 <= quality(sure.pairs, sure.mean, 0.9) <= 30
    assert (curve.success >= sure.success[:, curve.pairs - 1]).all()


@pytest.mark.parametrize(("length", "half", "most"), [(8, 8, 13), (12, 6, 9)])
def test_a_secret_permutation_buys_nothing(length, half, most):
    curve = success_curve(MentalHash(), LinearAttack, RandomSource(length, 40), 30, 18)
    assert quality(curve.pairs, curve.mean, 0.5) == pytest.approx(half, abs=1)
    assert quality(curve.pairs, curve.mean, 0.9) == pytest.approx(most, abs=1)
    assert not curve.wrong.any()


def test_skip_sums_fall_to_a_solver_within_a_tenth_of_a_deterministic_second():
    attacks = []

    def make(schema):
        attacks.append(ConstraintAttack(schema))
        return attacks[-1]

    curve = success_curve(make_schema("skip-sum"), make, RandomSource(8, 40), 3, [5, 10, 30])
    assert curve.success[:, 0].max() <= 0.1
    assert curve.success[:, 1].min() >= 0.5
    assert (curve.success[:, 2] == 1).all()
    work = [result.deterministic_time for attack in attacks for result in attack.history]
    assert len(work) == 9
    assert max(work) < 0.1


def test_the_asked_have_not_leaked_and_streams_are_apart():
    curve = key_curve(RunningSum(), LinearAttack, SiteSource(), 0, 30)
    assert set(curve.leaked) <= set(SITES)
    assert len(curve.leaked) == 30
    for row, m in enumerate(curve.pairs):
        asked = {site for site, is_asked in zip(curve.tests, curve.asked[row], strict=True) if is_asked}
        assert asked == set(SITES) - set(curve.leaked[:m])
    longer = key_curve(RunningSum(), LinearAttack, RandomSource(8, 10), 0, [1, 5, 9])
    shorter = key_curve(RunningSum(), LinearAttack, RandomSource(8, 10), 0, 5)
    assert longer.tests == shorter.tests  # more leaks ask the same
    assert longer.leaked[:5] == shorter.leaked
    assert key_curve(RunningSum(), LinearAttack, RandomSource(8, 10), 1, 5).leaked != shorter.leaked
    few = RandomSource(1, 20).draw(RunningSum(), np.random.default_rng(0), np.random.default_rng(1), 5)
    assert not set(few[0]) & set(few[1])


def test_who_only_remembers_knows_nothing_fresh():
    for source in (RandomSource(8, 10), SiteSource()):
        assert not success_curve(RunningSum(), lambda _: MemorisingAttack(), source, 3, 20).success.any()


def test_curves_become_arrow_tables():
    curve = success_curve(RunningSum(), LinearAttack, RandomSource(8, 10), 2, [2, 30])
    rows = curve.table().to_pylist()
    assert [(row["key"], row["pairs"]) for row in rows] == [(0, 2), (0, 30), (1, 2), (1, 30)]
    assert [row["success"] for row in rows] == curve.success.ravel().tolist()


def test_quality_is_the_first_number_of_pairs_that_reaches_a_share():
    assert quality([1, 2, 3], [0.2, 0.6, 0.55], 0.5) == 2
    assert quality([1, 2, 3], [0.2, 0.5, 0.55], 0.5) == 2
    assert quality([1, 2, 3], [0.2, 0.6, 0.55], 0.9) == math.inf
    for p in (0, -1, 1.5):
        with pytest.raises(InputError, match="is no share"):
            quality([1], [1.0], p)


@pytest.mark.parametrize(
    ("keys", "pairs", "reason"), [(0, 3, "keys: 0"), (1, 0, "pairs: 0"), (1, [], "has none"), (1, [0, 2], "below 1")]
)
def test_wrong_counts_are_refused(keys, pairs, reason):
    with pytest.raises(InputError, match=reason):
        success_curve(RunningSum(), LinearAttack, RandomSource(), keys, pairs)


def test_site_risks_count_the_leaks_before_a_site_leaks_itself():
    sites = ["a", "ab", "b", "zz"]
    curves = [key_curve(RunningSum(), LinearAttack, SiteSource(sites), key, 3) for key in range(40)]
    risks = {risk.site: risk for risk in site_risks(curves)}
    assert risks["zz"].known == 0
    assert math.isnan(risks["zz"].leaks)
    # "ab" gives a and b away; "a" is known as soon as "ab" leaked before it: in half of all orders.
    orders = [curve.leaked for curve in curves]
    expected = np.mean(
        [o.index("ab") < (o.index("a") if "a" in o else 9) for o in orders if "ab" in o]
        + [False for o in orders if "ab" not in o]
    )
    assert risks["a"].known == pytest.approx(expected)
    assert risks["a"].leaks in (1.0, 2.0, 3.0)


def fitted(steps, **settings):
    module = SchemaModule(**settings)
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, val_check_interval=1,
    )  # fmt: skip
    trainer.fit(module)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_a_training_step_leaks_a_pair_and_validation_asks():
    found = fitted(20, kind="mental-hash", keys=10, tests=20)
    assert found["quality"] == pytest.approx(8, abs=2)
    assert found["success"] >= 0.9
    assert (found["human_cost"], found["unsolved"]) == (25, 0)
    assert fitted(4, kind="mental-hash", keys=4)["quality"] == 4  # not broken so far
    pointer = fitted(3, kind="pointer-sum", k1=1, k2=2, n=15, keys=1, limit=100)
    assert pointer["human_cost"] == 7
    for settings, reason in (({"p": 0.0}, "p: 0.0"), ({"keys": 0}, "keys, limit"), ({"kind": "x"}, "no schema 'x'")):
        with pytest.raises(InputError, match=reason):
            SchemaModule(**settings)
