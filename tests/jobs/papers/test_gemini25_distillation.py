"""The distillation part's cells and claims, at reduced size."""

import math
import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pytest

from cluster.schemas import METRICS
from jobs.claims import Results, cell, settings
from jobs.papers.gemini25 import distillation as part
from tests.jobs.papers.measured import results_of


def few(trial):
    smaller = {name: value for name, value in {"steps": 3}.items() if name in settings(trial)}
    return cell(trial.dataset, trial.method, trial.seed, **{**settings(trial), **smaller})


@pytest.fixture(scope="module")
def measured():
    plan = [t for t in part.plan("small") if t.seed == 0]
    return results_of(plan, lambda trial: part.run(few(trial)))


def test_plans_grow_and_need_nothing_heavy():
    small, full = ({t.trial_id for t in part.plan(scale)} for scale in ("small", "paper"))
    assert small < full
    assert {t.dataset for t in part.plan("small")} == set(part.EXPERIMENTS)
    code = (
        "import sys; from jobs.papers.gemini25 import distillation, rewards, thinking;"
        "[p.plan('paper') for p in (distillation, rewards, thinking)];"
        "sys.exit(bool({'torch', 'numpy', 'matplotlib', 'ray', 'lightning'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_claims_come_from_what_is_stored(measured):
    claims = {claim.name: claim for claim in part.claims(measured, "small")}
    assert not any(math.isnan(claim.measured) for claim in claims.values())
    for name in (
        "KL(renormalised, teacher) + log m: largest over tokens and k, float64",
        "all of V kept against a student of all probabilities: difference in KL, largest (nats)",
        "the source: probability kept by k = 1",
        "the source: probability kept by k = 4",
        "the source: probability kept by k = 16",
        "stored in 16 bits: probability moved a token, most",
        "k = 64 of V = 32,768, 16-bit: bytes a token in the file over k",
        "the same: bytes of all probabilities in 32 bits over the file's",
    ):
        assert claims[name].holds, name
    # After three steps no student differs from another.
    compared = [claim for name, claim in claims.items() if "hard labels" in name]
    assert len(compared) == 5
    assert not any(claim.holds for claim in compared)
    assert part.claims(measured, "small")[0].stated
    assert [figure.title for figure in part.figures(measured)] == ["What a k-sparse teacher teaches"]


def test_nothing_stored_makes_no_claim_hold_and_draws_nothing():
    nothing = Results(pa.table({"trial_id": [], "status": []}), METRICS.empty_table(), [])
    claims = part.claims(nothing, "paper")
    assert not any(claim.holds for claim in claims)
    assert len({claim.name for claim in claims}) == len(claims)
    assert part.figures(nothing) == []


def test_cells_repeat_exactly_and_change_with_the_seed():
    trial = few(next(t for t in part.plan("small") if t.method == "uniform"))
    assert part.run(trial) == part.run(trial) != part.run(replace(trial, seed=5))


@pytest.mark.slow
def test_every_claim_holds_at_another_seed():
    plan = [replace(t, seed=11) for t in part.plan("small") if t.seed == 0]
    claims = part.claims(results_of(plan, part.run), "small")
    assert [claim.name for claim in claims if not claim.holds] == []
