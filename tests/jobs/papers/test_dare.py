"""The paper's file on domain-adjusted regression: its plan, its cheap cells, and claims that can fail."""

import math

import pyarrow as pa
import pytest
import torch

from cluster.schemas import METRICS
from jobs.claims import Results
from jobs.papers import dare


@pytest.fixture(scope="module")
def simulated():
    """Rows of the simulation's and the regression's cells, two seeds each."""
    torch.set_num_threads(1)
    wanted = ("dare/simulation", "dare/regression")
    cells = [c for c in dare.plan("small") if c.dataset in wanted and c.seed < 2]
    return cells, [(c.trial_id, *row) for c in cells for row in dare.run(c)]


def results(cells, rows):
    metrics = pa.table({f.name: pa.array([row[i] for row in rows], f.type) for i, f in enumerate(METRICS)})
    trials = pa.table({"trial_id": [c.trial_id for c in cells], "status": ["completed"] * len(cells)})
    return Results(trials, metrics, cells)


def test_plans_have_no_cell_twice_and_the_paper_scale_contains_the_small_one():
    small, paper = dare.plan("small"), dare.plan("paper")
    assert len(set(small)) == len(small)
    assert len(set(paper)) == len(paper)
    assert set(small) < set(paper)


def test_every_claim_on_the_simulation_holds_and_the_others_wait_for_their_cells(simulated):
    claims = dare.claims(results(*simulated), "small")
    assert len({c.name for c in claims}) == len(claims)
    about_digits = [c for c in claims if any(w in c.name for w in ("cheating", "contrast", "rotated"))]
    assert [c.name for c in claims if c not in about_digits and not c.holds] == []
    assert all(math.isnan(c.measured) and not c.holds for c in about_digits)
    assert len(claims) - len(about_digits) == 12


def test_claims_fail_when_the_method_is_not_better(simulated):
    cells, rows = simulated
    spoilt = [(*row[:-1], row[-1] - 0.1 if row[4] == "jit" else row[-1]) for row in rows]
    failed = {c.name for c in dare.claims(results(cells, spoilt), "small") if not c.holds}
    assert "DARE adapted just in time above ERM, mean over seeds" in failed


def test_a_cell_gives_the_same_rows_again(simulated):
    cells, rows = simulated
    assert [(cells[3].trial_id, *row) for row in dare.run(cells[3])] == [r for r in rows if r[0] == cells[3].trial_id]


def test_domains_of_digits_share_no_digit_and_the_contrast_law_is_as_stated():
    data = dare.contrast_digits(0)
    assert [len(e) for e in data.environments] == [1000] * 5
    darkest = {e.name: float(e.inputs.min()) for e in data.environments}
    assert darkest["s0"] == 0
    assert float(data.environments[0].inputs.max()) == 1
    noise = data.environments[4].inputs[:, :2, :].ravel()  # the border of a digit is black
    assert noise.mean() == pytest.approx(0.5, abs=0.01)
    assert noise.std() == pytest.approx(0.1, abs=0.01)
    again, other = dare.contrast_digits(0), dare.contrast_digits(1)
    assert (again.environments[2].inputs == data.environments[2].inputs).all()
    assert not (other.environments[2].labels == data.environments[2].labels).all()
    assert dare.rotated_digits(0).environment_names == ("0", "15", "30", "45", "75")


def test_figures_are_drawn_from_stored_rows(simulated, tmp_path):
    cells, rows = simulated
    digits = [c for c in dare.plan("small") if c.dataset in ("dare/cheating", "dare/contrast")]
    for c in digits:
        names = ("head", "source_refit", "dare", "cheat_random_features", "cheat_head", "cheat_all")
        rows = rows + [(c.trial_id, 0, "75", "out", name, 0.5) for name in names]
        rows = rows + [(c.trial_id, n, "target", "out", "centred_jit", 0.7) for n in dare.ADAPTATION_SIZES]
    figures = dare.figures(results(cells + digits, rows))
    assert [len(f.figure.axes[0].lines) for f in figures[::2]] == [4, 3]
    assert len(figures[1].figure.axes[0].patches) == 6
    for number, figure in enumerate(figures):
        figure.figure.savefig(tmp_path / f"{number}.png")
        assert figure.caption
        assert figure.figure.axes[0].get_ylabel() == "accuracy on the new domain"
