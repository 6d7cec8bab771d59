"""Interventional causal representation learning: latents and their graph from unknown single-node interventions.

`measured.py` computes the cells, and `sampling.py` what chance does to weights; `statements.py`, `rivals.py` and `limits.py` hold the
claims, `drawings.py` the figures.
"""

from __future__ import annotations

from cluster.trial import Trial
from jobs.claims import MetricRow, Scale, cell, settings
from jobs.papers.interventional_crl.drawings import figures
from jobs.papers.interventional_crl.names import (
    BALLS,
    BROKEN,
    CLOSED,
    CODE,
    CONTRASTIVE,
    COVARIANCES,
    EXACT,
    FREE_HEAD,
    GRAPH_VAE,
    HARDER,
    LBFGS,
    LEARNING,
    LINEAR,
    LINEAR_ENCODER,
    NETWORK,
    NO_INTERVENTION,
    NOISE,
    NOISES,
    ORIGINAL,
    OVERFIT,
    PACK,
    PCA,
    REORDERED,
    SETTINGS,
    SHIFTS,
    SHUFFLED,
    SIZES,
    VAE,
    ZERO_SHIFT,
)
from jobs.papers.interventional_crl.statements import claims

__all__ = ["SOURCE", "TITLE", "claims", "figures", "plan", "run"]

TITLE = "Learning Linear Causal Representations from Interventions under General Nonlinear Mixing"
SOURCE = "Buchholz, Rajendran, Rosenfeld, Aragam, Schölkopf & Ravikumar, NeurIPS 2023, arXiv 2306.02235"

_RIVALS = (FREE_HEAD, VAE, GRAPH_VAE, COVARIANCES, SHIFTS, PCA)
_SMALL = {"rows": 5000, "steps": 1500}


def plan(scale: Scale) -> list[Trial]:
    """Cells of the small scale (minutes on two cores), or those and the paper's sizes."""
    paper = scale == "paper"
    cells = [cell(EXACT, "identities", 0)]
    cells += [cell(CLOSED, "exact moments", 0)]
    for seed in range(10 if paper else 3):
        cells += [cell(LINEAR, LBFGS, seed, rows=10000, chance=True)]
        cells += [cell(LINEAR, method, seed, rows=10000) for method in (COVARIANCES, SHIFTS)]
    cells += [cell(LINEAR, LBFGS, 1, rows=60000)]
    cells += [cell(LINEAR, COVARIANCES, seed, rows=1_000_000) for seed in range(3)]
    packs = range(0, 4 * PACK if paper else 2 * PACK, PACK)
    for method in (CONTRASTIVE, LINEAR_ENCODER):
        cells += [cell(NETWORK, method, first, count=PACK, restarts=2, **_SMALL) for first in packs]
    cells += [cell(HARDER, method, 0, count=PACK, **_SMALL) for method in (CONTRASTIVE, LINEAR_ENCODER)]
    count = PACK if paper else 2
    cells += [cell(NETWORK, method, 0, count=count, **_SMALL) for method in _RIVALS]
    for seed in range(PACK if paper else 1):
        cells += [cell(OVERFIT, "L-BFGS", seed, iterations=100, **_SMALL)]
        cells += [cell(BROKEN, NO_INTERVENTION, seed, rows=5000, steps=600)]
        cells += [cell(BROKEN, how, seed, **_SMALL) for how in (SHUFFLED, REORDERED)]
    cells += [cell(BROKEN, ZERO_SHIFT, 0, count=PACK, **_SMALL)]
    for method in (CONTRASTIVE, CODE):
        cells += [cell(BALLS, method, seed, d=4, side=32, rows=5000, steps=400, batch=64) for seed in range(2)]
    cells += [cell(SIZES, CONTRASTIVE, 0, count=3, d=3, degree=2.0, dx=20, rows=3000, steps=800)]
    cells += [cell(SIZES, CONTRASTIVE, 0, count=1, d=10, degree=4.0, dx=100, **_SMALL)]
    cells += [cell(NOISE, CONTRASTIVE, 0, count=1, noise=noise, **_SMALL) for noise in NOISES]
    cells += [cell(LEARNING, "one rate", 0, count=2, lr=5e-4, lr_head=5e-4, **_SMALL)]
    cells += [cell(LEARNING, "two rates", 0, count=2, lr=5e-4, lr_head=5e-3, **_SMALL)]
    return [*cells, *(_paper_sizes() if paper else [])]


def _paper_sizes() -> list[Trial]:
    size = {"count": PACK, "rows": 10000, "steps": 6000}
    cells = [cell(SIZES, CONTRASTIVE, 0, d=d, degree=degree, dx=dx, **size) for d, degree, dx in SETTINGS]
    cells += [cell(NOISE, CONTRASTIVE, 0, noise=noise, **size) for noise in NOISES]
    cells += [cell(ORIGINAL, CONTRASTIVE, seed, rows=10000, steps=9400) for seed in range(PACK)]
    balls = {"side": 64, "rows": 25000, "steps": 6000, "batch": 128}
    return cells + [cell(BALLS, CONTRASTIVE, seed, d=d, **balls) for d in (4, 6) for seed in range(PACK)]


def run(trial: Trial) -> list[MetricRow]:
    """Compute one cell."""
    from jobs.papers.interventional_crl import measured

    cells = {
        EXACT: measured.identities,
        CLOSED: measured.closed_forms,
        LINEAR: measured.linear_mixing,
        NETWORK: measured.network_mixing,
        HARDER: measured.narrow_network_mixing,
        OVERFIT: measured.overfitting,
        BROKEN: measured.broken,
        BALLS: measured.balls,
        SIZES: measured.sizes,
        NOISE: measured.noise,
        ORIGINAL: measured.original_protocol,
        LEARNING: measured.learning_rates,
    }
    return cells[trial.dataset](trial.method, trial.seed, settings(trial))
