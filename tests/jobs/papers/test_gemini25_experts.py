"""The cells, claims and figures about experts, at reduced size."""

import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pytest

from cluster.schemas import METRICS
from jobs.claims import Results, cell, settings
from jobs.papers.gemini25 import experts as part
from tests.jobs.papers.measured import results_of


def few(trial):
    """A cell of a few steps; what is not trained stays as it is."""
    values = settings(trial)
    return cell(trial.dataset, trial.method, trial.seed, **{**values, "steps": 3}) if "steps" in values else trial


@pytest.fixture(scope="module")
def measured():
    return results_of(part.plan("small"), lambda trial: part.run(few(trial)))


def test_plans_grow_with_the_scale_and_need_nothing_heavy():
    small, full = ({t.trial_id for t in part.plan(scale)} for scale in ("small", "paper"))
    assert small < full
    assert {t.dataset for t in part.plan("small")} == set(part.EXPERIMENTS)
    code = (
        "import sys, jobs.papers.gemini25.experts as p; p.plan('paper');"
        "sys.exit(bool({'torch', 'numpy', 'matplotlib', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_identities_hold_and_untrained_decoders_know_nothing(measured):
    claims = {claim.name: claim for claim in part.claims(measured, "small")}
    assert [bool(claim.stated) for claim in claims.values()] == [True] + [False] * (len(claims) - 1)
    for name in (
        "equal experts: largest difference from one dense network, float32",
        "router of zeros: balance loss",
        "capacity factor experts / per token: share dropped, most",
        "capacity factor 1, 63 random tokens: share dropped, mean",
        "parameters of the mixture over those of the small dense decoder",
    ):
        assert claims[name].holds, claims[name]
    assert claims["router of zeros: balance loss"].measured == 1.0
    assert not claims["6,144 facts: share known by 16 experts, two a token, least"].holds
    assert not next(iter(claims.values())).holds
    assert [figure.title for figure in part.figures(measured)] == [
        "Capacity apart from cost",
        "Loads with and without the balance loss",
    ]


def test_loads_of_a_layer_sum_to_one(measured):
    for layer in (0, 1):
        rows = measured.rows(method="experts", environment="layer", step=layer, balance=0.0, seed=0)
        loads = [row["value"] for row in rows if row["metric"].startswith("load ")]
        assert len(loads) == 16
        assert sum(loads) == pytest.approx(1, abs=1e-6)


def test_nothing_stored_makes_no_claim_hold_and_draws_nothing():
    nothing = Results(pa.table({"trial_id": [], "status": []}), METRICS.empty_table(), [])
    made = part.claims(nothing, "small")
    assert not any(claim.holds for claim in made)
    assert len({claim.name for claim in made}) == len(made)
    assert part.figures(nothing) == []


def test_cells_repeat_exactly_and_change_with_the_seed():
    trial = few(next(t for t in part.plan("small") if t.method == "experts" and t.dataset == part.MEMORY))

    assert part.run(trial) == part.run(trial)
    assert part.run(trial) != part.run(replace(trial, seed=5))


@pytest.mark.slow
def test_a_mixture_knows_more_than_a_dense_network_of_its_cost():
    values = {"domains": 96, "steps": 400, "hidden": 64, "lr": 1e-3, "init_std": 0.1}

    def known(method, **more):
        rows = part.run(cell(part.MEMORY, method, 0, **values, **more))
        return next(row[4] for row in rows if row[3] == "accuracy")

    assert known("experts", balance=0.01) > known("dense") + 0.05
