"""The parts joined, and the part about slices: its cells, claims and figures."""

import subprocess
import sys

import pytest

import jobs.papers.gemini25 as paper
from jobs.claims import cell, settings
from jobs.papers.gemini25 import slices
from tests.jobs.papers.measured import results_of


def test_the_small_plan_is_part_of_the_paper_plan_and_needs_nothing_heavy():
    small, full = ({t.trial_id for t in paper.plan(scale)} for scale in ("small", "paper"))
    assert small < full
    code = (
        "import sys, jobs.papers.gemini25 as p; p.plan('paper');"
        "sys.exit(bool({'torch', 'numpy', 'matplotlib', 'ray', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_cell_belongs_to_one_part_and_every_part_says_what_the_report_states():
    names = [name for part in paper._PARTS for name in part.EXPERIMENTS]
    assert len(names) == len(set(names))
    assert {trial.dataset for trial in paper.plan("paper")} == set(names)
    nothing = results_of(slices.plan("small")[-1:], paper.run)
    for part in paper._PARTS:
        headline = part.claims(nothing, "small")[0]
        assert headline.stated
    claims = paper.claims(nothing, "small")
    assert len({claim.name for claim in claims}) == len(claims)
    assert [bool(claim.stated) for claim in claims] == [True] * 9 + [False] * (len(claims) - 9)


@pytest.fixture(scope="module")
def measured():
    return results_of(slices.plan("small"), paper.run)


def test_the_claims_about_slices_hold(measured):
    claims = slices.claims(measured, "small")
    assert [claim.name for claim in claims if not claim.holds] == []
    assert sum(bool(claim.stated) for claim in claims) == 3


def test_slices_that_are_actors_are_killed_and_the_bits_stay(ray_session):
    trial = slices.plan("small")[0]
    smaller = cell(trial.dataset, trial.method, 0, **{**settings(trial), "slices": 2, "shards": 4, "lost": 1, "steps": 8, "at": 3, "back": 6})  # fmt: skip
    rows = {(environment, metric): value for _, environment, _, metric, value in paper.run(smaller)}
    assert rows["redeal", "identical"] == 1
    assert rows["redeal", "rounds_degraded"] == 4
    assert rows["killed", "identical"] == 1
    assert rows["killed", "lost"] == 1


def test_figures_are_drawn_from_what_was_stored(measured):
    assert [figure.title for figure in slices.figures(measured)] == [
        "Slices leave and come back",
        "What silent corruption costs",
    ]
