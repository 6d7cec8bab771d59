"""The paper's cells, claims and figures, at reduced size."""

import math
import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pytest

import jobs.papers.interventional_crl as paper
from cluster.schemas import METRICS
from jobs.claims import Results, cell, settings
from jobs.papers.interventional_crl.names import (
    BALLS,
    BROKEN,
    EXACT,
    LINEAR,
    NETWORK,
    NO_INTERVENTION,
    ORIGINAL,
    OVERFIT,
    PACK,
    REORDERED,
)

_FEW = {"steps": 60, "count": 1, "rows": 600, "iterations": 20}


def few(trial):
    """The cell with few rows and steps; linear fits and exact identities are quick as they are."""
    values = settings(trial)
    if trial.dataset in (EXACT, LINEAR):
        return trial
    return cell(trial.dataset, trial.method, trial.seed, **{**values, **{k: v for k, v in _FEW.items() if k in values}})


def results_of(trials, run):
    rows = [(t.trial_id, *row) for t in trials for row in run(t)]
    columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), METRICS.types, strict=True)]
    done = sorted({row[0] for row in rows})
    table = pa.table({"trial_id": done, "status": ["completed"] * len(done)})
    return Results(table, pa.Table.from_arrays(columns, schema=METRICS), trials)


@pytest.fixture(scope="module")
def measured():
    """One cell of every kind of the small plan."""
    kinds = {}
    for trial in paper.plan("small"):
        if settings(trial).get("dx") != 100 and settings(trial).get("rows") != 60000:
            kinds.setdefault((trial.dataset, trial.method, settings(trial).get("noise")), trial)
    return results_of(list(kinds.values()), lambda trial: paper.run(few(trial)))


def test_plans_grow_with_the_scale_and_need_nothing_heavy():
    small, full = ([t.trial_id for t in paper.plan(scale)] for scale in ("small", "paper"))
    assert len(set(small)) == len(small)
    assert len(set(full)) == len(full)
    code = (
        "import sys, jobs.papers.interventional_crl as p; p.plan('paper');"
        "sys.exit(bool({'torch', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    kept = [t for t in paper.plan("small") if settings(t).get("count", PACK) == PACK]
    assert {t.trial_id for t in kept} < set(full)


def test_claims_and_figures_come_from_what_is_stored(measured):
    claims = {claim.name: claim for claim in paper.claims(measured, "small")}
    assert claims["log-odds against Gaussian log-densities, largest error"].holds
    assert claims["its rank is 1 without parents, else 2: exceptions"].holds
    assert claims["linear mixing, linear encoder by L-BFGS: least MCC"].holds
    assert claims["linear mixing, linear encoder by L-BFGS: SHD by scores that know no scale, largest"].holds
    unmeasured = {name for name, claim in claims.items() if math.isnan(claim.measured)}
    assert unmeasured <= {
        "linear mixing, linear encoder by L-BFGS: the same from 60,000 rows",
        "10 latents, degree 4, 100 features: MCC",
        "10 latents, degree 4, 100 features: SHD",
    }
    assert [figure.title for figure in paper.figures(measured)] == [
        "MCC against R2",
        "Held-out cross-entropy",
        "What costs the latents",
    ]
    nothing = Results(pa.table({"trial_id": [], "status": []}), METRICS.empty_table(), [])
    assert not any(claim.holds for claim in paper.claims(nothing, "paper"))
    assert paper.figures(nothing) == []


def test_what_is_measured_is_in_range(measured):
    for row in measured.rows():
        if row["metric"] in ("MCC", "MCC held-out", "AUROC"):
            assert 0 <= row["value"] <= 1
        if row["metric"] == "SHD":
            assert row["value"] >= 0
            assert row["value"] % 2 == 0  # as many edges as the truth: errors come in pairs
    ce = measured.mean("train CE", experiment=BROKEN, method=NO_INTERVENTION)
    assert ce == pytest.approx(2 * math.log(2), abs=0.03)
    at = {"experiment": OVERFIT}
    kept, after = (measured.mean("held-out CE", **at, environment=place) for place in ("kept", "after"))
    assert kept <= after
    assert measured.mean("MCC", experiment=BALLS) > 0.4
    assert measured.values("SHD not re-indexed", experiment=BROKEN, method=REORDERED)


def test_the_authors_settings_train():
    trial = cell(ORIGINAL, "contrastive", 0, rows=1000, steps=400)
    rows = {row[3]: row[4] for row in paper.run(trial)}
    assert rows["held-out CE"] < 2 * math.log(2) - 0.1
    assert rows["MCC"] > 0.7


def test_cells_repeat_exactly():
    trial = few(next(t for t in paper.plan("small") if t.dataset == NETWORK))
    assert paper.run(trial) == paper.run(trial)
    assert paper.run(trial) != paper.run(replace(trial, seed=1))
