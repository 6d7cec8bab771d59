"""The paper's cells, claims and figures, at reduced size."""

import pyarrow as pa
import pytest

import jobs.papers.ence as paper
from cluster.schemas import METRICS
from jobs.claims import Results, cell, settings
from jobs.papers.ence.names import COVARIANCE, CURVES, ENERGY, RATES, ROTATED, SEPARABLE
from tests.jobs.papers.measured import results_of

_FEW = {"steps": 700, "lrs": "0.1 1", "repeats": 50}
_FEWER = {ENERGY: {"steps": 20}, RATES: {"steps": 100}, ROTATED: {"steps": 300}}


@pytest.fixture(scope="module")
def measured():
    """One seed of every kind of the small plan; long descents, trainings and repeats are cut."""
    trials = [t for t in paper.plan("small") if t.seed == 0 and t.dataset != CURVES]
    trials = [t for t in trials if t.dataset != ENERGY or settings(t)["lr"] in (0.1, 0.03)]

    def run(trial):
        given = settings(trial)
        few = {name: value for name, value in (_FEW | _FEWER.get(trial.dataset, {})).items() if name in given}
        return paper.run(cell(trial.dataset, trial.method, trial.seed, **{**given, **few}))

    return results_of(trials, run)


def test_claims_and_figures_come_from_what_is_stored(measured):
    claims = {claim.name: claim for claim in paper.claims(measured, "small")}
    for name in (
        "NCE at one point (means 3 and -1): value, gradient and Hessian, largest error",
        "eNCE at one point (means 3 and -1): value, gradient and Hessian, largest error",
        "R = 16: condition number of NCE's Hessian at the data's parameters",
        "R = 100: log eNCE at the data's parameters",
        "NCE + GD, step 1, R = 3: updates to come within 0.1",
        "eNCE + NGD, step 0.1, R = 4: updates to come within 0.1",
        "eNCE + GD, step 1, R = 4: updates to come within 0.1",
        "means 8 and -8: updates of eNCE + NGD, of step 0.1",
        "NCE + Newton's full step, R = 16: updates",
        "R = 16: step that Newton's guarantee allows NCE, least over largest curvature on the way",
        "R = 3: trace of eNCE's asymptotic covariance; eNCE is statistically worse for far noise",
        "the same: share of seeds that are warned of",
        "digits, 16 whitened components: NLL of the noise alone",
    ):
        assert claims[name].holds, claims[name]
    # What was cut short is not made up.
    assert not claims["NCE + GD, step 1, R = 5: updates to come within 0.1"].holds
    assert not claims["eNCE + NGD at step 0.1: NLL"].holds
    assert not claims["1-d samples, R = 4, five runs: best distance after 100 updates, NCE + GD over NCE + NGD"].holds
    assert len(claims) > 70
    assert [figure.title for figure in paper.figures(measured)] == [
        "Updates against the distance of the means",
        "Flatness and conditioning",
        "How flat the losses are",
        "Energy networks against the step size",
    ]
    nothing = Results(pa.table({"trial_id": [], "status": []}), METRICS.empty_table(), [])
    assert not any(claim.holds for claim in paper.claims(nothing, "small"))
    assert paper.figures(nothing) == []


def test_cells_repeat_exactly():
    for trial in (
        cell(SEPARABLE, "ngd", 1),
        cell(COVARIANCE, "ence", 2, repeats=5, n=100),
        cell(RATES, "adam", loss="nce", lrs="0.3 1", steps=100),
        cell(ENERGY, "ngd", 0, loss="ence", lr=0.1, digits="Digits", dimension=4, steps=5),
    ):
        assert paper.run(trial) == paper.run(trial)


def test_a_training_that_diverges_says_so_and_gives_no_figure():
    trial = cell(ENERGY, "gd", 0, loss="ence", lr=1e6, digits="Digits", dimension=4, steps=30)
    rows = {name: value for _, _, _, name, value in paper.run(trial)}
    assert rows["finite"] == 0
    assert "nll" not in rows
    assert rows["noise nll"] == pytest.approx(4 * 1.42, abs=0.4)


def test_curves_fall_with_updates():
    rows = paper.run(cell(CURVES, "ngd", loss="ence", dimension=1))
    best = [value for _, _, _, name, value in rows if name == "best"]
    assert best == sorted(best, reverse=True)
    assert best[0] > 8
    assert best[-1] < 0.5
