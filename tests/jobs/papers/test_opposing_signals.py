"""The paper's cells, claims and figures, at reduced size."""

import math
from dataclasses import replace

import pytest

import jobs.papers.opposing_signals as paper
from jobs.claims import cell, settings
from jobs.papers.opposing_signals.names import EDGE, LINEAR, NATURAL, OPTIMIZERS, PLANTED, SIMULATED
from tests.jobs.papers.measured import results_of

_FEW = {"rows": 50_000}
_STEPS = {LINEAR: 40_000, EDGE: 1500, PLANTED: 110, OPTIMIZERS: 21, NATURAL: 101}


def few(trial):
    given = settings(trial)
    smaller = {name: value for name, value in _FEW.items() if name in given}
    if "steps" in given:
        smaller["steps"] = _STEPS[trial.dataset]
    return cell(trial.dataset, trial.method, trial.seed, **{**given, **smaller})


@pytest.fixture(scope="module")
def measured():
    """One seed of the small plan, trained for few steps."""
    return results_of([t for t in paper.plan("small") if t.seed == 0], lambda trial: paper.run(few(trial)))


def test_claims_and_figures_come_from_what_is_stored(measured):
    claims = {claim.name: claim for claim in paper.claims(measured, "small")}
    for name, claim in claims.items():
        if name.startswith(("linear model, |beta|", "linear model: ")):
            assert claim.holds, name
    for name in (
        "planted digits: cosine of the groups' gradients, largest",
        "planted digits, one class: cosine of the groups' gradients, least",
        "planted digits: alignment of a group's gradient with the sharpest direction, least",
        "planted digits, one class: that alignment, largest",
        "planted digits: largest sharpness of opposing signals over that of one class, least",
        "linear model, step 1.6 x 2 / final sharpness: share of steps above 2 / eta at which the signal's use changes sign",
        "linear model, step 0.9 x 2 / final sharpness: largest sharpness over 2 / eta",
    ):
        assert claims[name].holds, (name, claims[name].measured)
    assert claims["planted digits, the 20 that rise most: share that is planted, least"].measured > 0.8  # early steps
    missing = [name for name, claim in claims.items() if math.isnan(claim.measured)]
    assert all("after step 250" in name or "by " in name or "rise when" in name for name in missing), missing
    assert [figure.title for figure in paper.figures(measured)] == [
        "Two groups take turns at the edge of stability",
        "Sharpness of the linear model",
        "Optimizers with and without opposing signals",
    ]


def test_a_run_without_cells_has_claims_that_do_not_hold():
    empty = results_of([paper.plan("small")[1]], paper.run)
    claims = paper.claims(empty, "small")
    assert sum(claim.holds for claim in claims) == 1
    assert not paper.figures(empty)


def test_cells_repeat_exactly():
    for trial in (
        cell(SIMULATED, "sample", 0, rows=1000),
        cell(PLANTED, "opposing", 0, steps=12, m=30, magnitude=10.0),
        few(cell(OPTIMIZERS, "SplitSGD", 0, mode="opposing", steps=5)),
    ):
        assert paper.run(trial) == paper.run(trial)
        assert paper.run(trial) != paper.run(replace(trial, seed=1))
