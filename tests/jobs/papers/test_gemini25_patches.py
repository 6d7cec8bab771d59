"""The cells, claims and figures about images and text, at reduced size."""

import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pytest

from cluster.schemas import METRICS
from jobs.claims import Results, cell, settings
from jobs.papers.gemini25 import patches as part
from tests.jobs.papers.measured import results_of


def few(trial):
    return cell(trial.dataset, trial.method, trial.seed, **{**settings(trial), "steps": 5})


@pytest.fixture(scope="module")
def measured():
    return results_of(part.plan("small"), lambda trial: part.run(few(trial)))


def test_plans_grow_with_the_scale_and_need_nothing_heavy():
    small, full = ({t.trial_id for t in part.plan(scale)} for scale in ("small", "paper"))
    assert small < full
    assert {t.dataset for t in part.plan("small")} == set(part.EXPERIMENTS)
    code = (
        "import sys, jobs.papers.gemini25.patches as p; p.plan('paper');"
        "sys.exit(bool({'torch', 'numpy', 'matplotlib', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_after_five_steps_nothing_is_known_with_or_without_images(measured):
    headline, *others = part.claims(measured, "small")
    assert headline.stated
    assert not headline.holds
    assert headline.measured < 0.3
    assert not any(claim.stated for claim in others)
    assert others[-1].holds  # the best constant answer needs no training
    (drawn,) = part.figures(measured)
    assert len(drawn.figure.axes[0].patches) == 5


def test_nothing_stored_makes_no_claim_hold_and_draws_nothing():
    nothing = Results(pa.table({"trial_id": [], "status": []}), METRICS.empty_table(), [])
    made = part.claims(nothing, "small")
    assert not any(claim.holds for claim in made)
    assert len({claim.name for claim in made}) == len(made)
    assert part.figures(nothing) == []


def test_cells_repeat_exactly_and_change_with_the_seed():
    trial = few(part.plan("small")[0])

    assert part.run(trial) == part.run(trial)
    assert part.run(trial) != part.run(replace(trial, seed=5))


@pytest.mark.slow
def test_every_claim_holds_for_one_more_seed():
    trial = replace(part.plan("small")[0], seed=11)
    made = part.claims(results_of([trial], part.run), "small")
    assert all(claim.holds for claim in made), made
