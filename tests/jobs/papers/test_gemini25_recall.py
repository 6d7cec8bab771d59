"""The cells, claims and figures about recall, at reduced size."""

import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pytest

from cluster.schemas import METRICS
from jobs.claims import Results, cell, settings
from jobs.papers.gemini25 import recall as part
from tests.jobs.papers.measured import results_of


def few(trial, **more):
    smaller = {"steps": 3, "count": 16, "width": 16, "layers": 1}
    return cell(trial.dataset, trial.method, trial.seed, **{**settings(trial), **smaller, **more})


@pytest.fixture(scope="module")
def measured():
    return results_of(part.plan("small"), lambda trial: part.run(few(trial)))


def test_plans_grow_with_the_scale_and_need_nothing_heavy():
    small, full = ({t.trial_id for t in part.plan(scale)} for scale in ("small", "paper"))
    assert small < full
    kinds = {(t.method, settings(t)["taps"]) for t in part.plan("small")}
    assert kinds == {(positions, taps) for positions in ("none", "rotary", "learned") for taps in (1, 2)} - {
        ("none", 1),
        ("learned", 1),
    }
    code = (
        "import sys, jobs.papers.gemini25.recall as p; p.plan('paper');"
        "sys.exit(bool({'torch', 'numpy', 'matplotlib', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_after_three_steps_no_needle_is_found(measured):
    headline, *others = part.claims(measured, "small")
    assert headline.stated
    assert not headline.holds
    assert headline.measured < 0.3
    claims = {claim.name: claim for claim in others}
    assert not claims["needles, no or rotary positions: recall at the trained length, least"].holds
    assert not claims["needles, learned positions: recall at the trained length, least"].holds
    assert claims["needles, any positions: steps to a loss of 0.01, most"].measured == 3
    (drawn,) = part.figures(measured)
    assert len(drawn.figure.axes) == 7  # four heat maps, two empty places and a scale
    assert len(drawn.figure.axes[0].texts) == 15


def test_every_length_and_depth_is_measured(measured):
    at = {(row["step"], row["environment"]) for row in measured.rows(metric="recall", method="rotary", taps=2)}
    assert at == {(n, f"{d:.2f}") for n in (64, 128, 256) for d in part.DEPTHS}


def test_trainings_end_once_the_loss_is_low_enough(monkeypatch):
    from jobs.papers.gemini25 import recall_cells

    monkeypatch.setattr(recall_cells, "ENOUGH", 100.0)
    rows = part.run(few(part.plan("small")[0], steps=40, longest=64))
    assert next(row[4] for row in rows if row[3] == "steps") == 10  # as many as the mean takes


def test_nothing_stored_makes_no_claim_hold_and_draws_nothing():
    nothing = Results(pa.table({"trial_id": [], "status": []}), METRICS.empty_table(), [])
    made = part.claims(nothing, "small")
    assert not any(claim.holds for claim in made)
    assert len({claim.name for claim in made}) == len(made)
    assert part.figures(nothing) == []


def test_cells_repeat_exactly_and_change_with_the_seed():
    trial = few(part.plan("small")[0], longest=64, steps=2, count=200)

    assert part.run(trial) == part.run(trial)
    assert part.run(trial) != part.run(replace(trial, seed=5))
