"""The paper's file: its plan, its cells, its claims from stored rows."""

import math

import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import InputError
from cluster.schemas import METRICS
from jobs.claims import Results, cell
from jobs.papers import risks_of_irm as paper


def stored(cells):
    rows = [(t.trial_id, *row) for t in cells for row in paper.run(t)]
    metrics = pa.table([pa.array(column) for column in zip(*rows, strict=True)], names=METRICS.names)
    trials = pa.table({"trial_id": [t.trial_id for t in cells], "status": ["completed"] * len(cells)})
    return Results(trials, metrics, cells)


def test_plans_have_distinct_cells_and_paper_scale_is_larger():
    small, large = paper.plan("small"), paper.plan("paper")
    for plan in (small, large):
        assert len({t.trial_id for t in plan}) == len(plan)
        assert {t.dataset for t in plan} == {paper.THRESHOLD, paper.SAMPLES, paper.NONLINEAR, paper.COLORED}
    assert len(large) > len(small)


@pytest.fixture(scope="module")
def results():
    chosen = [t for t in paper.plan("small") if t.dataset == paper.THRESHOLD and t.method in ("closed_form", "erm")]
    chosen += [
        cell(paper.SAMPLES, "irmv1", environments=3, n=200, draws=4, steps=20),
        cell(paper.NONLINEAR, "construction", spurious=64, environments=3, scale=0.35, eps=1.6, n=4000),
        cell(paper.COLORED, "vrex", 0, steps=3, penalty=1e4, anneal_steps=2, l2=3e-3, lr=2e-3, restart=False),
    ]
    return stored(chosen)


def test_closed_form_erm_and_construction_meet_their_claims_and_missing_cells_fail(results):
    claims = {c.name: c for c in paper.claims(results, "small")}
    for name, claim in claims.items():
        if name.startswith(("IRM's closed form", "ERM, ", "Means x 3", "E <= d_e", "E > d_e")):
            assert claim.holds, name
        if name.startswith(("IRMv1, ", "V-REx, ", "ColoredMNIST: IRMv1")):
            assert math.isnan(claim.measured), name
            assert not claim.holds
    assert claims["Non-linear, d_e=64: bound p_eps"].holds
    assert claims["Non-linear, d_e=64: accuracy on far test data"].holds


def test_figures_are_drawn_from_stored_rows_even_where_cells_are_missing(results):
    figures = paper.figures(results)
    assert len(figures) == 3
    axes = figures[0].figure.axes[0]
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    lines = {line.get_label(): line for line in axes.get_lines()}
    counts = lines["IRM, closed form"].get_xdata()
    assert list(counts) == [2, 3, 4, 5, 6, 7, 8, 9, 12]
    assert lines["IRM, closed form"].get_ydata()[-1] == pytest.approx(0.788, abs=1e-3)
    for figure in figures:
        figure.figure.canvas.draw()


def test_a_cell_gives_the_same_rows_again():
    trial = cell(paper.SAMPLES, "vrex", environments=2, n=100, draws=2, steps=20)
    assert paper.run(trial) == paper.run(trial)


def test_colored_digits_have_the_rates_of_their_environments():
    x, y = paper.colored_digits(0)
    assert x.shape == (5000, 392)
    colour = np.where(x[:, 196:].sum(1) > 0, 1, -1)
    assert ((x[:, :196].sum(1) > 0) != (x[:, 196:].sum(1) > 0)).all()
    for rows, flip in ((slice(0, 2000), 0.1), (slice(2000, 4000), 0.2), (slice(4000, 5000), 0.9)):
        assert (colour[rows] != y[rows]).mean() == pytest.approx(flip, abs=0.03)
    assert abs(y.mean()) < 0.05


def test_an_unknown_experiment_is_named():
    with pytest.raises(InputError, match="risks_of_irm/other"):
        paper.run(cell("risks_of_irm/other", "erm"))
