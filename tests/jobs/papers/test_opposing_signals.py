"""The paper's cells, claims and figures, at reduced size."""

from dataclasses import replace

import pytest

import jobs.papers.opposing_signals as paper
from jobs.claims import cell, settings
from jobs.papers.opposing_signals.names import EDGE, LINEAR, NATURAL, OPTIMIZERS, PLANTED, PRODUCTS, RESCALED, SIMULATED
from tests.jobs.papers.measured import results_of

_STEPS = {LINEAR: 25_000, EDGE: 1500, PLANTED: 131, OPTIMIZERS: 40, NATURAL: 130, RESCALED: 20}
_ROWS = {SIMULATED: 50_000, PRODUCTS: 60}

_LONG = ("|beta| = 0.5: final", "after step 250", "opposing: largest sharpness, mean", "mini-batches", "as they are")
"""Claims about runs that are too long for a test."""
_SHORT_OF = (
    "step 2 x 2 / final sharpness: share of steps",  # one of the claims that does not hold
    # The signal takes 15 steps above 2 / eta to build up, a large share of these few.
    "fall most that is planted",
    "rise most that is planted",
    "planted digits: overlap of the risers",
    "planted digits: share of steps at which the groups",
    "planted digits: share of steps after which a group",
    "rise when the mean loss does",
)


def few(trial):
    given = settings(trial)
    smaller = {"steps": _STEPS[trial.dataset]} if "steps" in given else {"rows": _ROWS[trial.dataset]}
    return cell(trial.dataset, trial.method, trial.seed, **{**given, **smaller})


@pytest.fixture(scope="module")
def measured():
    """One seed of the small plan, trained for few steps, without the larger images."""
    plan = [trial for trial in paper.plan("small") if trial.seed == 0 and trial.method != "MNIST"]
    return results_of(plan, lambda trial: paper.run(few(trial)))


def test_claims_come_from_what_is_stored(measured):
    claims = paper.claims(measured, "small")
    assert len({claim.name for claim in claims}) == len(claims)
    found = {claim for claim in claims if not any(words in claim.name for words in _LONG + _SHORT_OF)}
    assert len(found) > 40
    assert not {(claim.name, claim.measured) for claim in found if not claim.holds}
    unknown = {claim.name for claim in claims if claim.measured != claim.measured}
    assert all("after step 250" in name or "MNIST" in name for name in unknown), unknown
    by_name = {claim.name: claim.measured for claim in claims}
    moving = [value for name, value in by_name.items() if name.startswith("planted digits, steps that move")]
    assert len(moving) == 2
    assert min(moving) >= 0.9
    gains = [value for name, value in by_name.items() if "chosen by change of loss, minus" in name]
    assert len(gains) == 3
    assert min(gains) > 0.05


def test_figures_come_from_what_is_stored(measured):
    assert [figure.title for figure in paper.figures(measured)] == [
        "Two groups take turns at the edge of stability",
        "A plain image changes its class at every step",
        "Digits as they are",
        "Sharpness of the linear model",
        "Optimizers with and without opposing signals",
    ]


def test_the_controls_fail_what_opposing_signals_are_told_by(measured):
    at = {"experiment": PLANTED, "environment": ""}
    for mode in ("same", "none"):
        assert measured.mean("groups oppose", **at, method=mode) < 0.3
        assert measured.mean("precision of the fallers", **at, method=mode) < 0.3
        assert measured.mean("plain image alternates", **at, method=mode) < 0.3
    assert measured.mean("cosine of the groups", **at, method="same") > 0.9


def test_a_run_without_cells_has_claims_that_do_not_hold():
    empty = results_of([paper.plan("small")[1]], lambda trial: paper.run(few(trial)))
    claims = paper.claims(empty, "small")
    assert sum(claim.holds for claim in claims) == 1
    assert not paper.figures(empty)


def test_the_paper_scale_has_claims_of_its_sweep():
    plan = [trial for trial in paper.plan("paper") if trial.dataset == PLANTED and trial.seed == 0]
    rows = [(0, "", "test", "sharpness over 2/eta", 0.5), (10, "", "test", "sharpness over 2/eta", 1.5)]
    claims = paper.claims(results_of(plan, lambda _: rows), "paper")
    sweep = [claim for claim in claims if "over one of length 2.5" in claim.name]
    assert [claim.measured for claim in sweep] == [1.0] * 3


def test_an_optimizers_best_setting_is_best_over_all_seeds():
    from jobs.papers.opposing_signals.statements import best_setting

    finals = {"0.05": (0.3, 0.3), "0.1": (0.1, 0.4), "0.5": (0.01, None)}

    def run(trial):
        found = {setting: values[trial.seed] for setting, values in finals.items()}
        return [(0, setting, "test", "final", value) for setting, value in found.items() if value is not None]

    plan = [cell(OPTIMIZERS, "SGD", seed, mode="none", steps=1) for seed in (0, 1)]
    setting, loss = best_setting(results_of(plan, run), "SGD", "none")
    assert setting == "0.1"
    assert loss == pytest.approx(0.25)


def test_cells_repeat_exactly():
    for trial in (
        cell(SIMULATED, "sample", 0, rows=1000),
        cell(PLANTED, "opposing", 0, steps=12, m=30, magnitude=10.0),
        cell(OPTIMIZERS, "SplitSGD", 0, mode="opposing", steps=20),
    ):
        assert paper.run(trial) == paper.run(trial)
        assert paper.run(trial) != paper.run(replace(trial, seed=1))
