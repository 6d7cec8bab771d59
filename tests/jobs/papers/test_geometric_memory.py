"""The paper's cells, claims and figures, at reduced size."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

import jobs.papers.geometric_memory as paper
from cluster.schemas import METRICS
from jobs.claims import Results, cell, settings
from jobs.papers.geometric_memory import cells
from jobs.papers.geometric_memory.drawings import heat_map
from jobs.papers.geometric_memory.names import FROZEN, IN_CONTEXT, IN_WEIGHTS, LARGE, NODE2VEC, TRAINED

_FEW = {"steps": 4, "arms": 8, "width": 16}


def few(trial):
    """A cell of a few steps; what is not trained stays as it is."""
    if trial.dataset == NODE2VEC:
        return trial
    smaller = {name: value for name, value in _FEW.items() if name in settings(trial)}
    if trial.dataset in TRAINED:
        smaller |= {"width": 16, "edges": 16, "paths": 4}
    if trial.dataset == IN_CONTEXT:
        smaller |= {"arms": settings(trial)["arms"], "width": 16, "batch_size": 4, "validation": 20}
    return cell(trial.dataset, trial.method, trial.seed, **{**settings(trial), **smaller})


def results_of(trials):
    rows = [(t.trial_id, *row) for t in trials for row in paper.run(few(t))]
    columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), METRICS.types, strict=True)]
    done = sorted({row[0] for row in rows})
    table = pa.table({"trial_id": done, "status": ["completed"] * len(done)})
    return Results(table, pa.Table.from_arrays(columns, schema=METRICS), trials)


@pytest.fixture(scope="module")
def measured():
    """The small plan, trained for a few steps."""
    return results_of(paper.plan("small"))


def test_plans_grow_with_the_scale_and_need_nothing_heavy():
    small, full = ({t.trial_id for t in paper.plan(scale)} for scale in ("small", "paper"))
    assert small < full
    sizes = {(settings(t)["arms"], settings(t)["length"]) for t in paper.plan("paper") if t.dataset == LARGE}
    assert sizes == {(5000, 5), (10_000, 6), (10_000, 10)}
    code = (
        "import sys, jobs.papers.geometric_memory as p; p.plan('paper');"
        "sys.exit(bool({'torch', 'numpy', 'matplotlib', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_papers_sizes_run_too_but_for_their_sizes():
    large = [t for t in paper.plan("paper") if t.dataset == LARGE and settings(t)["arms"] == 5000]
    for trial in large:
        smaller = few(trial)
        one = cell(LARGE, smaller.method, 0, **{**settings(smaller), "layers": 1, "heads": 2})
        assert {"first_token", "full_path", "edge_recall"} <= {row[3] for row in paper.run(one)}


def test_claims_and_figures_come_from_what_is_stored(measured):
    claims = {claim.name: claim for claim in paper.claims(measured, "small")}
    for name in (
        "Node2Vec: autograd's gradient less C V, largest entry",
        "cycle of 15: eigenvalues of -L less -2 + 2 cos(2 pi k / n), largest",
        "Node2Vec, cycle: |C e| of the next pair",
        "Node2Vec, star: the same after 10,000 updates",
        "associative table, four small graphs: edge recall after one update, least",
    ):
        assert claims[name].holds, name
    for name in (  # after 4 steps
        "star of 100 arms of 5, both directions: edge recall, least",
        "hardest token alone: held-out accuracy, least",
        "frozen embeddings: edge recall, least",
        "forward edges only: full paths on training arms",
        "edges alone: edge recall, least",
        "in context, 2 arms of 5, reverse: full paths",
        "small transformers, four small graphs: edge recall, least",
    ):
        assert not claims[name].holds, name
    assert not any(np.isnan(claim.measured) for claim in claims.values())
    assert not any("10000 arms" in name for name in claims)
    assert len(claims) > 45
    assert [figure.title for figure in paper.figures(measured)] == [
        "Leaf against first node",
        "Accuracies by control",
        "What is known when",
        "Node2Vec falls onto the first eigenvectors",
        "Small graphs",
    ]


def test_nothing_stored_makes_no_claim_hold_and_draws_nothing():
    nothing = Results(pa.table({"trial_id": [], "status": []}), METRICS.empty_table(), [])
    for scale in ("small", "paper"):
        made = paper.claims(nothing, scale)
        assert not any(claim.holds for claim in made)
        assert len({claim.name for claim in made}) == len(made)
    assert paper.figures(nothing) == []


def test_heat_maps_are_the_cosines_of_held_out_arms(measured):
    for experiment in (IN_WEIGHTS, FROZEN):
        table = np.array(heat_map(measured, experiment))
        assert table.shape == (2, 2)  # a quarter of 8 arms
        stored = measured.values("diagonal", experiment=experiment, environment="", seed=0)
        assert np.diag(table).mean() == pytest.approx(stored[0], abs=1e-5)


def test_cells_repeat_exactly_and_change_with_the_seed():
    trials = [next(t for t in paper.plan("small") if t.dataset == name) for name in (IN_WEIGHTS, IN_CONTEXT)]
    for trial in map(few, trials):
        assert paper.run(trial) == paper.run(trial)
        assert paper.run(trial) != paper.run(replace(trial, seed=5))


def test_controls_differ_from_the_standard_setting_in_what_they_say():
    plan = paper.plan("small")
    standard = {"arms": 100, "length": 5, "steps": 400}
    frozen = next(t for t in plan if t.dataset == FROZEN)
    expected = {**standard, "path_weight": 1.0, "freeze_embeddings": True, "embedding_std": 0.3, "steps": 800}
    assert settings(frozen) == expected
    assert cells.graph_of("irregular").n == 16
    assert len(cells.graph_of("irregular").edges) == 20
    cells.graph_of("irregular").check_connected()
