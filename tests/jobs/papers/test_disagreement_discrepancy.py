"""The paper's cells, claims and figures, at reduced size; and the reader of published features."""

import os
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

import jobs.papers.disagreement_discrepancy as paper
from cluster.schemas import METRICS
from jobs.claims import Results, cell, settings
from jobs.papers.disagreement_discrepancy.names import BASELINES, CIRCLE, DIGITS, FLIGHTS, PUBLISHED
from jobs.papers.disagreement_discrepancy.statements import LOGITS, summary, violations
from lightning_modules.data.catalog import load_dataset
from lightning_modules.error_bounds.published import read_published
from lightning_modules.errors import InputError
from tests.jobs.papers.measured import results_of

_FEW = {"steps": 60, "restarts": 3, "rows": 1000}
_SLOW = ((DIGITS, "plain"), (DIGITS, "mlp"))


@pytest.fixture(scope="module")
def measured():
    """One seed of every kind of the small plan, trained for a few steps, with few restarts."""
    trials = [t for t in paper.plan("small") if t.seed == 0 and (t.dataset, t.method) not in _SLOW]

    def run(trial):
        few = {name: value for name, value in _FEW.items() if name in settings(trial)}
        return paper.run(cell(trial.dataset, trial.method, trial.seed, **{**settings(trial), **few}))

    return results_of(trials, run)


def test_the_bound_covers_shifted_digits_where_estimates_do_not(measured):
    at = {"experiment": DIGITS, "method": "augmented"}
    bound = summary(measured, LOGITS, **at)
    assert bound.count == 33
    assert bound.coverage >= 0.875
    for name in BASELINES:
        assert summary(measured, name, **at).coverage <= bound.coverage - 0.2
    assert violations(measured, 0.01, **at) == pytest.approx(1 - bound.coverage)
    assert violations(measured, 0.9, **at) >= violations(measured, 0.001, **at)
    losses = {name: measured.mean(f"discrepancy {name}", **at) for name in ("dis2", "neg_ce")}
    assert losses["neg_ce"] < losses["dis2"]


def test_claims_and_figures_come_from_what_is_stored(measured):
    claims = {claim.name: claim for claim in paper.claims(measured, "small")}
    assert claims["circle: largest distance of the discrepancy from the supremum 1/2 - a/pi"].holds
    assert claims["circle, assumption broken on purpose: true error above the bound, least"].holds
    assert claims["digits: coverage of the bound on logits, worst seed"].holds
    assert len(claims) > 60
    assert [figure.title for figure in paper.figures(measured)] == [
        "Shifted digits: predicted against true error",
        "Flights of other months: predicted against true error",
        "Violations against delta",
    ]
    nothing = Results(pa.table({"trial_id": [], "status": []}), METRICS.empty_table(), [])
    assert not any(claim.holds for claim in paper.claims(nothing, "small"))
    assert paper.figures(nothing) == []


def test_cells_repeat_exactly():
    for trial in (cell(CIRCLE, "sixth", 0), cell(FLIGHTS, "mlp", 0, rows=400, steps=5, restarts=2)):
        assert paper.run(trial) == paper.run(trial)
        assert paper.run(trial) != paper.run(replace(trial, seed=1))


def test_flights_are_months_of_one_year():
    months = load_dataset("Flights:rows=500")
    assert months.environment_names[0] == "January"
    assert len(months.environments) == 12
    assert months.input_shape == (29,)
    january, july = months.environments[0], months.environments[6]
    assert np.allclose(january.inputs[:, :5].mean(0), 0, atol=1e-5)
    assert july.labels.mean() > january.labels.mean()  # summer storms
    # A flight that leaves late arrives late.
    late = january.inputs[:, 0] > 1.5
    assert january.labels[late].mean() > 0.7
    with pytest.raises(InputError, match="rows is 0"):
        load_dataset("Flights:rows=0")


def test_what_is_missing_is_said(monkeypatch):
    published = next(t for t in paper.plan("paper") if t.dataset == PUBLISHED)
    assert "authors' features" in paper.missing(published, "")
    flights = next(t for t in paper.plan("small") if t.dataset == FLIGHTS)
    assert paper.missing(flights, "") is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "shiftlab[tabular]" in paper.missing(flights, "")


class Runs:
    """Unpickled, it would make a folder."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_published_features_are_read_and_nothing_else_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "visda" / "ERM-aug-imagenet_1_100.0"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    x = {side: generator.standard_normal((n, 16)).astype(np.float32) for side, n in (("source", 90), ("target", 70))}
    layer = torch.nn.Linear(16, 3)
    labels = {side: layer(torch.from_numpy(v)).argmax(1).numpy() for side, v in x.items()}
    labels["target"] = labels["target"].copy()
    labels["target"][:7] = (labels["target"][:7] + 1) % 3
    np.save(folder / "model_feats.npy", x)
    np.save(folder / "ytrue.npy", labels)
    torch.save(layer.state_dict(), folder / "linear.pth")
    evidence, true = read_published(folder)
    assert true == pytest.approx(0.1)
    assert (evidence.source_features == x["source"]).all()
    trial = next(t for t in paper.plan("paper") if t.dataset == PUBLISHED and "visda" in t.hyperparameters)
    assert paper.missing(trial, str(tmp_path)) is None
    metrics = {row[3] for row in paper.run(trial, str(tmp_path))}
    assert {"true", "Dis2 logits", "Dis2 features", "Dis2 pca:4", "COT"} <= metrics
    np.save(folder / "ytrue.npy", {"source": Runs(), "target": Runs()}, allow_pickle=True)
    with pytest.raises(InputError, match="mkdir, which is not unpickled because it may run code"):
        read_published(folder)
    assert not (tmp_path / "unpickled").exists()
    np.save(folder / "ytrue.npy", np.zeros(3))
    with pytest.raises(InputError, match="is no dict of the arrays source and target"):
        read_published(folder)
    (folder / "ytrue.npy").unlink()
    with pytest.raises(InputError, match="no such file"):
        read_published(folder)
