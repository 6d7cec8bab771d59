"""The paper's cells, claims and figures, at reduced size."""

import math
from dataclasses import replace

import pyarrow as pa
import pytest

import jobs.papers.online_domain_generalization as paper
from cluster.schemas import METRICS
from jobs.claims import Results, cell, settings
from lightning_modules.online.game import group_game


@pytest.fixture(scope="module")
def small_results():
    """The first batch of every cell of the small plan, with fewer games and starts."""
    planned, metrics = [trial for trial in paper.plan("small") if trial.seed == 0], []
    for trial in planned:
        chosen = settings(trial)
        for name, most in (("games", 20), ("starts", 100), ("graphs", 3)):
            if name in chosen:
                chosen[name] = min(chosen[name], most)
        if chosen.get("data") and chosen["alpha"] > 0:
            continue  # the slow half of these
        shrunk = cell(trial.dataset, trial.method, trial.seed, **chosen)
        for step, environment, split, metric, value in paper.run(shrunk):
            metrics.append((trial.trial_id, step, environment, split, metric, value))
    columns = [pa.array(column, kind) for column, kind in zip(zip(*metrics, strict=True), METRICS.types, strict=True)]
    done = sorted({row[0] for row in metrics})
    trials = pa.table({"trial_id": done, "status": ["completed"] * len(done)})
    return Results(trials, pa.Table.from_arrays(columns, schema=METRICS), planned)


def test_plan_has_no_cell_twice_and_paper_scale_contains_the_small_one():
    small, full = ([t.trial_id for t in paper.plan(scale)] for scale in ("small", "paper"))
    assert len(set(full)) == len(full)
    assert set(small) < set(full)


def test_cells_repeat_exactly():
    for trial in (
        cell(paper.EXTRAPOLATION, "ftpl", adversary="iid_signs", rounds=30, games=5),
        cell(
            paper.HARDNESS, "projected_gradient", graph="random", nodes=8, density=0.5, radius=1.0, starts=20, graphs=2
        ),
    ):
        assert paper.run(trial) == paper.run(trial)
        assert paper.run(trial) != paper.run(replace(trial, seed=1))


def test_players_of_a_batch_meet_the_same_sequences():
    batch = {"adversary": "hidden_bias", "rounds": 20, "games": 6}
    ftl, ogd = ({r[:4]: r[4] for r in paper.run(cell(paper.INTERPOLATION, m, **batch))} for m in ("ftl", "ogd"))
    assert ftl.keys() == ogd.keys()
    assert all(abs(ftl[key] - ogd[key]) <= 1e-9 for key in ftl)


def test_claims_of_deterministic_figures_hold_and_none_lacks_its_cells(small_results):
    claims = {claim.name: claim for claim in paper.claims(small_results, "small")}
    needs_alpha = {"diabetes: smallest curvature, alpha=0.1"}
    assert {name for name, claim in claims.items() if math.isnan(claim.measured)} == needs_alpha
    assert len(claims) >= 50
    for name in (
        "OGD with step 1/t is ERM: difference in regret",
        "ERM's regret over 2(1 + ln T), worst game and T",
        "alternating: ERM's regret at T=1600 is linear",
        "alternating: OGD's regret at T=400",
        "Petersen: minimum of the extrapolated risk",
        "interpolations of the same groups: largest final gradient norm",
        "diabetes: regret per decade, T=300 to 3000",
        "diabetes: worst group risk of ERM over the game",
        "diabetes: worst group risk of balanced ERM",
        "RotatedMNIST: ERM over the game solves group DRO, excess risk",
    ):
        assert claims[name].holds, claims[name]
    assert all("paper" not in claim.source or "shape of the claim" in claim.source for claim in claims.values())


def test_age_quartiles_are_concave_in_some_direction_once_weights_fall_below_zero():
    curvature = group_game(paper.diabetes_groups(), 0.1, 2, radius=3.0).smallest_curvature
    assert curvature == pytest.approx(-0.336, abs=1e-3)


def test_missing_cells_give_claims_that_do_not_hold_and_figures_that_still_draw():
    nothing = Results(pa.table({"trial_id": [], "status": []}), pa.Table.from_pylist([], schema=METRICS), [])
    assert not any(claim.holds for claim in paper.claims(nothing, "small"))
    assert len(paper.figures(nothing)) == 3


def test_figures_show_what_was_measured(small_results, tmp_path):
    first, second, third = paper.figures(small_results)
    for named in (first, second, third):
        named.figure.savefig(tmp_path / "figure.png", dpi=30)
        assert all(axes.get_xlabel() and axes.lines for axes in named.figure.axes)
    ftl = next(line for line in second.figure.axes[0].lines if list(line.get_xdata()) == [100, 400, 1600])
    assert list(ftl.get_ydata()) == [99.5, 399.5, 1599.5]
    assert first.figure.axes[0].get_xscale() == "log"


def test_exact_formulas_give_the_known_figures():
    assert [round(paper.exact_interpolation_regret("ftl", "fair_coin", t), 4) for t in (10, 1000)] == [1.9145, 4.2422]
    assert round(paper.exact_interpolation_regret("bayes", "hidden_bias", 100), 4) == 1.7324
    assert paper.exact_walk(2) == pytest.approx(1.0)
    assert paper.exact_walk(3) == pytest.approx(1.5)
    assert paper.exact_walk(10_000) == pytest.approx(math.sqrt(20_000 / math.pi), rel=1e-4)
