"""Self-reflective variational autoencoder: exact gaps on linear-Gaussian hierarchies, digits against other posteriors, flows.

`cells.py` computes cells, `statements.py` holds the claims, `drawings.py` the figures, `names.py` what they share.
"""

from __future__ import annotations

from pathlib import Path

from cluster.trial import Trial
from jobs.claims import MetricRow, Scale, cell, settings
from jobs.papers.self_reflective_vae.drawings import figures
from jobs.papers.self_reflective_vae.names import (
    BITS,
    CHAIN,
    DEPTH,
    DIGIT_ARMS,
    FLOW,
    FULL,
    FULL_ARMS,
    MNIST,
    MNIST_ARMS,
    MNIST_DEEP,
    MORE_ARMS,
    RESTRICTED,
    SMALL_DIGITS,
    SPLIT,
    SPLITS,
    SWEEP,
    TRAINED,
    VIEWS,
)
from jobs.papers.self_reflective_vae.statements import claims

__all__ = ["SOURCE", "TITLE", "claims", "figures", "missing", "plan", "run"]

TITLE = "Self-Reflective Variational Autoencoder"
SOURCE = "Apostolopoulou, Rosenfeld & Dubrawski, 2020, arXiv 2007.05166"


def plan(scale: Scale) -> list[Trial]:
    """Cells of the small scale (minutes on a core); or more arms and seeds, a sweep, and the paper's sizes on all of MNIST."""
    cells = [cell(CHAIN, chain) for chain in ("scalar", "vector")]
    cells += [cell(SPLIT, "exact", shift=c) for c in SPLITS]
    cells += [cell(RESTRICTED, family, evidence=evidence) for family, evidence in VIEWS]
    for chain in ("scalar", "vector"):
        cells += [
            cell(TRAINED, family, chain=chain, evidence="all", net="linear", steps=1500) for family, _ in VIEWS[-2:]
        ]
    cells += [
        cell(TRAINED, "self_reflective", chain="scalar", evidence=evidence, net="linear", steps=1500)
        for _, evidence in VIEWS[2:5]
    ]
    cells += [cell(TRAINED, "self_reflective", chain="scalar", evidence="all", net="tanh", steps=1500)]
    cells += [cell(BITS, posterior) for posterior in ("self_reflective", "independent")]
    cells += [cell(MNIST, arm, **_MNIST) for arm in MNIST_ARMS]
    cells += [cell(SMALL_DIGITS, arm, **_DIGITS) for arm in DIGIT_ARMS]
    cells += [cell(FLOW, model, steps=1500) for model in ("latent", "plain")]
    if scale == "paper":
        cells += [cell(MNIST, arm, **_MNIST) for arm in MORE_ARMS]
        cells += [cell(MNIST, arm, 1, **_MNIST) for arm in MNIST_ARMS]
        cells += [
            cell(SWEEP, "self_reflective", **{**_MNIST, "blocks": blocks, "latents": latents})
            for blocks in (1, 2, 4, 7, 10)
            for latents in (4, 8, 16)
        ]
        cells += [
            cell(DEPTH, family, seed, **_DEPTH, correction=correction)
            for correction in (0, 1, 2)
            for family in ("self_reflective", "independent")
            for seed in (0, 1)
        ]
        cells += [
            cell(MNIST_DEEP, family, seed, **_MNIST, correction=2)
            for family in ("self_reflective", "independent")
            for seed in (0, 1)
        ]
        cells += [cell(FLOW, model, 1, steps=1500) for model in ("latent", "plain")]
        cells += [cell(FULL, arm, **_FULL) for arm in FULL_ARMS]
    return cells


_MNIST = {"pixels": 784, "blocks": 4, "latents": 8, "width": 64, "steps": 4000, "rows": 300, "k": 200}
_DEPTH = {"pixels": 784, "blocks": 4, "latents": 8, "width": 64, "steps": 2000, "rows": 600}
_DIGITS = {"pixels": 64, "blocks": 4, "latents": 4, "width": 64, "steps": 700, "rows": 300, "k": 100}
_FULL = {"pixels": 784, "blocks": 10, "latents": 10, "width": 512, "steps": 300_000, "rows": 10_000, "k": 1000}
"""Blocks, latents and k are the paper's; widths and steps are ours, since its appendix was not at hand."""


def missing(trial: Trial, data: str) -> str | None:
    """Say what a cell lacks in the folder `data`, or of what is installed; None: nothing."""
    import importlib.util

    if trial.dataset == FULL and not (data and Path(data, "mnist.npz").is_file()):
        return "mnist.npz with x_train and x_test, as Keras publishes it"
    if (trial.dataset == FLOW or trial.method == "iaf") and importlib.util.find_spec("zuko") is None:
        return "zuko: pip install 'shiftlab[flows]'"
    return None


def run(trial: Trial, data: str = "") -> list[MetricRow]:
    """Compute one cell."""
    from jobs.papers.self_reflective_vae import cells

    values = settings(trial)
    if trial.dataset == CHAIN:
        return cells.chain(trial.method)
    if trial.dataset == SPLIT:
        return cells.split(values["shift"])
    if trial.dataset == RESTRICTED:
        return cells.restricted(trial.method, values["evidence"])
    if trial.dataset == TRAINED:
        return cells.trained(trial.method, trial.seed, **values)
    if trial.dataset == BITS:
        return cells.bits(trial.method)
    if trial.dataset == DEPTH:
        return cells.depth(trial.method, trial.seed, **values)
    if trial.dataset == FLOW:
        return cells.flow(trial.method, trial.seed, values["steps"])
    return cells.digits(trial.method, trial.seed, data if trial.dataset == FULL else "", **values)
