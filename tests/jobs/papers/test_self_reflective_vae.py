"""The paper's cells, claims and figures, at reduced size."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

import jobs.papers.self_reflective_vae as paper
from cluster.schemas import METRICS
from jobs.claims import Results, cell, settings
from jobs.papers.self_reflective_vae import cells
from jobs.papers.self_reflective_vae.names import DEPTH, FLOW, FULL, MNIST, MNIST_DEEP, SMALL_DIGITS, TRAINED
from lightning_modules.generative.data import load_images
from tests.jobs.papers.measured import results_of

_FEW = {"steps": 8, "rows": 20, "k": 5}


def few(trial):
    smaller = {name: value for name, value in _FEW.items() if name in settings(trial)}
    return cell(trial.dataset, trial.method, trial.seed, **{**settings(trial), **smaller})


@pytest.fixture(scope="module")
def measured():
    """The small plan but for the trained chains and flows, trained for a few steps."""
    wanted = [t for t in paper.plan("small") if t.dataset not in (TRAINED, FLOW)]
    wanted += [t for t in paper.plan("small") if t.dataset == TRAINED][:1]
    return results_of(wanted, lambda trial: paper.run(few(trial)))


def test_claims_and_figures_come_from_what_is_stored(measured):
    claims = {claim.name: claim for claim in paper.claims(measured, "small")}
    assert claims["scalar chain: mean-field gap"].holds
    assert claims["exact posterior: every log weight is log p(x), largest difference"].holds
    assert claims["best posterior that sees x_l and z_{l-1}: gap"].holds
    assert claims["random models of 6 bits: sum over x of the mean weight, standard errors from 1"].holds
    assert not claims["5,000 MNIST digits, self-reflective: ELBO"].holds  # after 8 steps
    assert len(claims) > 50
    assert not any("all of MNIST," in name for name in claims)
    assert [figure.title for figure in paper.figures(measured)] == [
        "Distance of the best ELBO from log p(x)",
        "Importance bounds against the number of samples",
        "5,000 MNIST digits: bounds and layers",
        "5,000 MNIST digits: samples",
    ]
    nothing = Results(pa.table({"trial_id": [], "status": []}), METRICS.empty_table(), [])
    assert not any(claim.holds for claim in paper.claims(nothing, "small"))
    assert paper.figures(nothing) == []


def test_stored_bits_are_the_images(measured):
    from jobs.papers.self_reflective_vae.drawings import _images

    drawn = np.array(_images(measured, MNIST, "self_reflective", "data"))
    assert drawn.shape == (12, 784)
    assert (drawn == load_images(784)[1][:12].numpy()).all()
    samples = np.array(_images(measured, MNIST, "self_reflective", "samples"))
    assert samples.shape == (12, 784)
    assert set(np.unique(samples)) == {0, 1}


def test_cells_repeat_exactly():
    trials = [t for t in paper.plan("small") if t.dataset == SMALL_DIGITS][:1]
    trials += [t for t in paper.plan("small") if t.dataset == TRAINED][:1]
    for trial in map(few, trials):
        assert paper.run(trial) == paper.run(trial)
        assert paper.run(trial) != paper.run(replace(trial, seed=1))


def test_depths_are_compared_on_training_digits_that_were_held_out(monkeypatch):
    trials = [t for t in paper.plan("paper") if t.dataset == DEPTH]
    assert {settings(t)["correction"] for t in trials} == {0, 1, 2}
    assert {t.method for t in trials} == {"self_reflective", "independent"}
    seen = {}
    monkeypatch.setattr(cells, "fit", lambda model, train, *_, **__: seen.update(train=train))
    monkeypatch.setattr(cells, "_bounds", lambda model, x, *_: (seen.update(x=x), ({}, 0.0, [], []))[1])
    paper.run(trials[0])
    images, _ = load_images(784)
    assert torch.equal(seen["train"], images[:-600])
    assert torch.equal((seen["x"].sum(0) > 0) & (images[-600:].sum(0) == 0), torch.zeros(784, dtype=torch.bool))
    assert seen["x"].shape == (600, 784)


def test_claims_about_depth_wait_for_their_cells_and_can_fail():
    trials = [t for t in paper.plan("paper") if t.dataset in (DEPTH, MNIST_DEEP)]
    best = {0: -100.0, 1: -103.0, 2: -110.0}

    def rows(trial, worse):
        value = best[settings(trial)["correction"]] - worse * (trial.method == "independent")
        metrics = ("elbo", "bound 50", "bound 200")
        return [(trial.trial_id, 0, "", "test", metric, value) for metric in metrics]

    def holding(worse):
        columns = zip(*(row for t in trials for row in rows(t, worse)), strict=True)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, METRICS.types, strict=True)]
        done = pa.table({"trial_id": [t.trial_id for t in trials], "status": ["completed"] * len(trials)})
        found = paper.claims(Results(done, pa.Table.from_arrays(arrays, schema=METRICS), trials), "paper")
        return {claim.name: claim.holds for claim in found if "correction" in claim.name}

    assert len(holding(3.0)) == 7
    margin = "5,000 MNIST digits, corrections of two hidden layers: self-reflective above independent posterior"
    assert holding(3.0)[margin]
    assert not holding(1.0)[margin]
    linear = (
        "held-out training digits, self-reflective: linear correction above deeper ones, nats of the importance bound"
    )
    assert holding(3.0)[linear]
    best[1] = -99.0
    assert not holding(3.0)[linear]


def test_flows_are_compared_on_a_mixture_whose_likelihood_is_known():
    pytest.importorskip("zuko")
    for model in ("latent", "plain"):
        found = {row[3]: row[4] for row in cells.flow(model, 0, 3)}
        assert found["elbo"] < found["truth"]
    x = cells.mixture(50_000, cells._generator(0))
    for dims in (1, 2):  # a projection's second moment: (0.25 + 6.25) / 2
        assert x[:, :dims].square().mean().item() == pytest.approx(3.25, rel=0.05)
    # E log p = -entropy; entropies of the two components, and log 2 nats since 16 dimensions tell them apart
    expected = -(np.log(2) + 8 * (1 + np.log(2 * np.pi)) + 8 * np.log(0.5 * 2.5))
    assert cells.mixture_log_prob(x).mean().item() == pytest.approx(expected, abs=0.1)


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    full = next(t for t in paper.plan("paper") if t.dataset == FULL and t.method == "self_reflective")
    assert "mnist.npz" in paper.missing(full, "")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 28, 28)).astype(np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=pixels, x_test=pixels[:10])
    assert paper.missing(full, str(tmp_path)) is None
    smaller = {**settings(full), "steps": 2, "rows": 5, "k": 3, "width": 8}
    rows = paper.run(cell(FULL, "self_reflective", **smaller), str(tmp_path))
    assert {"elbo", "bound 3", "kl", "active units"} <= {row[3] for row in rows}
    np.savez(tmp_path / "mnist.npz", x_train=pixels)
    with pytest.raises(ValueError, match="x_test"):
        paper.run(cell(FULL, "self_reflective", **smaller), str(tmp_path))
    flow = next(t for t in paper.plan("small") if t.dataset == FLOW)
    assert paper.missing(full.__class__.create("ERM", MNIST, (), {}, 0), "") is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "shiftlab[flows]" in paper.missing(flow, "")
