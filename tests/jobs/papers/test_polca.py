"""The paper's cells, claims and figures, at reduced size."""

import subprocess
import sys

import pyarrow as pa
import pytest

import jobs.papers.polca as paper
from cluster.schemas import METRICS
from jobs.claims import Results, cell, settings
from jobs.papers.polca.names import ADDITION, FULL, FULL_TABLE, IDENTITIES, INTERVALS, PLANTED, TEXT

_FEW = {"steps": 60, "every": 20, "basis_every": 20, "directions": 3, "problems": 20, "batch": 16, "lr": 1e-3}
_MAIN_ORDERS = ("trapezoid", "none")


def results_of(trials, run):
    rows = [(t.trial_id, *row) for t in trials for row in run(t)]
    columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), METRICS.types, strict=True)]
    done = sorted({row[0] for row in rows})
    table = pa.table({"trial_id": done, "status": ["completed"] * len(done)})
    return Results(table, pa.Table.from_arrays(columns, schema=METRICS), trials)


def figures_of(rows, environment=""):
    return {metric: value for _, where, _, metric, value in rows if where == environment}


@pytest.fixture(scope="module")
def added():
    """Addition, its training cut to a few steps."""
    return paper.run(cell(ADDITION, "small", 0, **_FEW))


@pytest.fixture(scope="module")
def measured(added):
    """Identities, the planted skill's main cells and addition of the small plan's seed 0."""
    trials = [t for t in paper.plan("small") if t.seed == 0 and t.dataset in (IDENTITIES, PLANTED, ADDITION)]
    main = {"hessian", "random", "exact loss", "loss change"}
    kept = [t for t in trials if t.dataset != PLANTED or (t.method in main and settings(t)["order"] in _MAIN_ORDERS)]
    return results_of(kept, lambda trial: added if trial.dataset == ADDITION else paper.run(trial))


def test_plans_grow_with_the_scale_and_need_nothing_heavy():
    small, full = ({t.trial_id for t in paper.plan(scale)} for scale in ("small", "paper"))
    assert small < full
    assert len(paper.plan("small")) == len(small)
    code = "import sys, jobs.papers.polca as p; p.plan('paper');sys.exit(bool({'torch', 'numpy', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_claims_and_figures_come_from_what_is_stored(measured):
    claims = {claim.name: claim for claim in paper.claims(measured, "small")}
    assert len(claims) == len(paper.claims(measured, "small"))
    for name in (
        "quadratic loss, all eigenvectors: ratio form against each row's true change",
        "the same: each row's own curvature, largest error of a row",
        "complete basis: first order against gradient times movement, a token",
        "forward mode against explicit gradients, float32, relative",
        "Lanczos against dense eigenvectors of P H P: 1 - cosine",
        "planted skill, every seed: F1 of the best cluster, Hessian basis, least",
        "planted skill, every seed: F1 of clusters of exact losses, most",
        "planted skill, every seed: F1, random basis, most",
        "planted skill, every seed: share of the loss change captured, hessian basis, least",
        "planted skill, every seed: the best cluster breaks after the mean loss, steps, least",
    ):
        assert claims[name].holds, claims[name]
    # What was cut short is not made up: 60 steps teach no addition.
    assert not claims["addition, seed 0: loss of the worst place after 1,000 steps"].holds
    assert not claims["complete basis, recorded every 1 steps: share captured"].holds
    assert not claims["missing share grows as the interval squared: from 1 to 2 steps"].holds
    assert not claims["addition, seed 1: the same along 10 Hessian directions"].holds
    assert not any("paper's size" in name or name.startswith("text") for name in claims)
    assert [f.title for f in paper.figures(measured)] == [
        "Addition is learned place by place",
        "Captured loss change by basis and order",
        "A cluster that breaks when the mean loss is nearly flat",
    ]
    nothing = Results(pa.table({"trial_id": [], "status": []}), METRICS.empty_table(), [])
    assert not any(claim.holds for claim in paper.claims(nothing, "small"))
    assert paper.figures(nothing) == []


def test_addition_is_taken_apart_along_every_basis_and_repeats_exactly(added):
    rows = added
    assert paper.run(cell(ADDITION, "small", 0, **_FEW)) == rows
    for basis in ("hessian", "pca", "random", "axis"):
        found = figures_of(rows, basis)
        assert found["total"] < -0.3
        assert found["orthonormal"] < 1e-4
        assert {"captured", "captured, order 1", "clusters"} <= set(found)
    assert figures_of(rows, "pca")["captured"] < -0.3
    assert abs(figures_of(rows, "random")["captured"]) < 0.05
    assert {"exact", "ratio", "trapezoid"} == set(figures_of(rows, "second order"))
    steps = sorted({step for step, where, *_ in rows if where == "place"})
    assert steps == [0, 20, 40, 60]
    other = {where for _, where, *_ in paper.run(cell(ADDITION, "small", 1, **_FEW))}
    assert "random" not in other
    assert "pca" in other


def test_a_cell_of_the_interval_study_draws_its_figure():
    rows = [(spacing, "", "test", "share", 1 - 0.0006 * spacing**2) for spacing in (1, 2, 5, 10, 20, 40)]
    found = results_of([cell(INTERVALS, "complete", 0)], lambda _: rows)
    assert [f.title for f in paper.figures(found)] == ["Records must be dense"]
    claims = {claim.name: claim for claim in paper.claims(found, "small")}
    assert claims["missing share grows as the interval squared: from 1 to 2 steps"].holds


def test_ones_own_text_is_a_cell_of_the_paper_scale(tmp_path):
    trial = next(t for t in paper.plan("paper") if t.dataset == TEXT)
    assert "UTF-8" in paper.missing(trial, "")
    assert "UTF-8" in paper.missing(trial, str(tmp_path))
    assert paper.missing(cell(PLANTED, "hessian"), "") is None
    (tmp_path / "book.txt").write_text("the cat sat on the mat and the dog sat on the cat . " * 100)
    assert paper.missing(trial, str(tmp_path)) is None
    few = {"steps": 20, "every": 5, "basis_every": 10, "directions": 2, "tokens": 126, "lr": 1e-3, "batch": 4}
    small = cell(TEXT, "words", 0, **{**settings(trial), **few, "width": 16, "layers": 1, "size": 20})
    found = figures_of(paper.run(small, str(tmp_path)))
    assert found["directions"] == 2
    assert found["total"] < 0
    claims = {claim.name for claim in paper.claims(results_of([small], lambda t: paper.run(t, str(tmp_path))), "paper")}
    assert "text: share of directions along which the loss falls" in claims


def test_the_papers_table_is_compared_once_its_own_size_has_run():
    trial = next(t for t in paper.plan("paper") if t.dataset == FULL)
    rows = [
        (0, name, "test", metric, value)
        for name, values in FULL_TABLE.items()
        for metric, value in zip(("carry homogeneity", "hidden"), values, strict=True)
    ]
    claims = [c for c in paper.claims(results_of([trial], lambda _: rows), "paper") if "paper's size" in c.name]
    assert len(claims) == 2 * len(FULL_TABLE) + 2
    assert sum(claim.holds for claim in claims) == 2 * len(FULL_TABLE)


def test_cells_repeat_exactly():
    for trial in (cell(IDENTITIES, "complete"), cell(PLANTED, "random", 2, order="trapezoid")):
        assert paper.run(trial) == paper.run(trial)
