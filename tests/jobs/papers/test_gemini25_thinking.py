"""The thinking part's cells and claims, at reduced size."""

import math
from dataclasses import replace

import pyarrow as pa
import pytest

from cluster.schemas import METRICS
from jobs.claims import Results, cell, settings
from jobs.papers.gemini25 import thinking as part
from tests.jobs.papers.measured import results_of


def few(trial):
    return cell(trial.dataset, trial.method, trial.seed, **{**settings(trial), "steps": 10, "judged": 200})


@pytest.fixture(scope="module")
def measured():
    plan = [t for t in part.plan("small") if t.seed < 2]
    return results_of(plan, lambda trial: part.run(few(trial)))


def test_plans_grow():
    small, full = ({t.trial_id for t in part.plan(scale)} for scale in ("small", "paper"))
    assert small < full


def test_claims_and_figures_come_from_what_is_stored(measured):
    claims = part.claims(measured, "small")
    assert not any(math.isnan(claim.measured) for claim in claims)
    assert claims[0].stated
    # A model of ten steps guesses, whatever its budget.
    assert not claims[0].holds
    assert not next(claim for claim in claims if claim.name == "budget 8: accuracy, least").holds
    assert [figure.title for figure in part.figures(measured)] == ["Accuracy against the thinking budget"]
    budgets, used = measured.curve("used", "step", method="budget")
    assert budgets == list(range(9))
    assert all(value <= budget for budget, value in zip(budgets, used, strict=True))


def test_nothing_stored_makes_no_claim_hold_and_draws_nothing():
    nothing = Results(pa.table({"trial_id": [], "status": []}), METRICS.empty_table(), [])
    claims = part.claims(nothing, "paper")
    assert not any(claim.holds for claim in claims)
    assert len({claim.name for claim in claims}) == len(claims)
    assert part.figures(nothing) == []


def test_cells_repeat_exactly_and_change_with_the_seed():
    trial = few(part.plan("small")[0])
    assert part.run(trial) == part.run(trial) != part.run(replace(trial, seed=5))


@pytest.mark.slow
def test_every_claim_holds_at_another_seed():
    plan = [replace(t, seed=11) for t in part.plan("small") if t.seed == 0]
    claims = part.claims(results_of(plan, part.run), "small")
    assert [claim.name for claim in claims if not claim.holds] == []
