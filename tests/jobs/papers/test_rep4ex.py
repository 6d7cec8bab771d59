"""The paper's cells, claims and figures, at reduced size."""

from dataclasses import replace

import pyarrow as pa
import pytest

import jobs.papers.rep4ex as paper
from cluster.schemas import METRICS
from jobs.claims import Results, cell, settings
from jobs.papers.rep4ex.names import ALPHA, CONFOUNDING, CURVE, MLP, MMR, NO_CONTROL, OLS, ORACLE, STATISTIC, TWO_STAGE
from tests.jobs.papers.measured import results_of

_FEW = {"rows": 3000, "steps": 15, "encoder_steps": 15, "restarts": 1, "strengths": "0 2"}
_ONE_OF = ("wide kernel", "u-statistic")


def shortened(trial):
    few = {name: value for name, value in _FEW.items() if name in settings(trial)}
    if trial.dataset == CONFOUNDING:
        few["encoder_steps"] = 200  # its encoder must be right
    return cell(trial.dataset, trial.method, trial.seed, **{**settings(trial), **few})


@pytest.fixture(scope="module")
def measured():
    """One seed of every kind of the small plan, trained for a few steps."""
    trials = [t for t in paper.plan("small") if t.seed == 0 and t.method not in _ONE_OF]
    return results_of(trials, lambda trial: paper.run(shortened(trial)))


def test_what_needs_no_encoder_holds_already(measured):
    claims = {claim.name: claim for claim in paper.claims(measured, "small")}
    for start in (
        "V-statistic of latents independent of actions",
        "linear second stage",
        "one action: variance of the true curve",
        "one action, gamma 1.2, true Z: squared error inside",
        "one action, true Z: squared error of E[Y | X, do(A = 2)]",
        "two actions, alpha 2, fresh rows: linearity ratio of the true Z",
    ):
        (found,) = [claim for name, claim in claims.items() if name.startswith(start) and "networks" not in name]
        assert found.holds, found
    assert len(claims) > 55
    assert len({claim.source for claim in claims.values()}) > 5


def test_figures_come_from_what_is_stored(measured):
    assert [figure.title for figure in paper.figures(measured)] == [
        "E[Y | do(A = a)], actions seen in (-0.2, 0.2)",
        "E[Y | do(A = a)], actions seen in (-0.7, 0.7)",
        "E[Y | do(A = a)], actions seen in (-1.2, 1.2)",
        "Error outside the support against its width",
        "R^2 against the strength of actions",
        "Error against confounding",
    ]
    nothing = Results(pa.table({"trial_id": [], "status": []}), METRICS.empty_table(), [])
    assert not any(claim.holds for claim in paper.claims(nothing, "small"))
    assert paper.figures(nothing) == []


def test_latents_extrapolate_where_actions_do_not(measured):
    at = {"experiment": CURVE, "gamma": 1.2}
    errors = {name: measured.mean("outside", **at, environment=name) for name in (ORACLE, MLP, OLS, NO_CONTROL)}
    assert errors[ORACLE] < 0.1 < min(errors[name] for name in (MLP, OLS, NO_CONTROL))
    places = [f"confounding={strength:g}" for strength in (0, 0.5, 1, 2)]
    without, control = (
        [measured.mean(f"outside {name}", experiment=CONFOUNDING, environment=place) for place in places]
        for name in (NO_CONTROL, MMR)
    )
    assert without == sorted(without)
    assert without[-1] > 10 * max(without[0], control[-1])
    r2 = [measured.mean(f"R2 {MMR}", experiment=ALPHA, environment=f"alpha={alpha}") for alpha in (0, 2)]
    assert all(0 < value <= 1 for value in r2)


def test_cells_repeat_exactly():
    for trial in (cell(STATISTIC, "null", 0, draws=5), cell(TWO_STAGE, "linear", 0)):
        assert paper.run(trial) == paper.run(trial)
        assert paper.run(trial) != paper.run(replace(trial, seed=1))
    trial = shortened(cell(CURVE, "methods", 0, gamma=0.7, rows=400, steps=5, encoder_steps=5, restarts=1))
    assert paper.run(trial) == paper.run(trial)
