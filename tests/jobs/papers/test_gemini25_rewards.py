"""The rewards part's cells and claims, at reduced size."""

import math
from dataclasses import replace

import pyarrow as pa
import pytest

from cluster.schemas import METRICS
from jobs.claims import Results, cell, settings
from jobs.papers.gemini25 import rewards as part
from tests.jobs.papers.measured import results_of


def few(trial):
    smaller = {name: value for name, value in {"steps": 20, "updates": 3}.items() if name in settings(trial)}
    return cell(trial.dataset, trial.method, trial.seed, **{**settings(trial), **smaller})


@pytest.fixture(scope="module")
def measured():
    return results_of(part.plan("small"), lambda trial: part.run(few(trial)))


def test_plans_grow():
    small, full = ({t.trial_id for t in part.plan(scale)} for scale in ("small", "paper"))
    assert small < full
    assert {t.dataset for t in part.plan("small")} == set(part.EXPERIMENTS)


def test_claims_and_figures_come_from_what_is_stored(measured):
    claims = {claim.name: claim for claim in part.claims(measured, "small")}
    assert not any(math.isnan(claim.measured) for claim in claims.values())
    for name in (
        "one worker and more, the same seed: number of different streams of answers",
        "other seeds: different streams among those of two workers",
        "mean advantage of a group, largest",
        "groups of equal rewards: largest gradient",
        "the first pass's ratio of probabilities, new over sampled: farthest from 1",
        "gradient of the objective at ratio 1 against -mean A grad log p, largest relative difference",
    ):
        assert claims[name].holds, name
    headline = part.claims(measured, "small")[0]
    assert headline.stated
    assert not headline.holds  # after three updates
    assert [figure.title for figure in part.figures(measured)] == ["Rewards that a function checks"]


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
    plan = part.plan("small")
    moved = [replace(t, seed=t.seed + 11) for t in plan]
    found = results_of(plan, lambda trial: part.run(moved[plan.index(trial)]))
    assert [claim.name for claim in part.claims(found, "small") if not claim.holds] == []
