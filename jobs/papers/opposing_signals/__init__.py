"""Opposing signals: the few examples that a step moves most, the edge of stability, and what optimizers make of them.

`exact.py`, `measured.py` and `comparison.py` compute the cells, `statements.py` and `linear_statements.py` hold the
claims, `drawings.py` the figures.
"""

from __future__ import annotations

from cluster.trial import Trial
from jobs.claims import MetricRow, Scale, cell, settings
from jobs.papers.opposing_signals.drawings import figures
from jobs.papers.opposing_signals.names import (
    EDGE,
    LINEAR,
    MODES,
    NATURAL,
    OPTIMIZERS,
    PLANTED,
    PRODUCTS,
    RATES,
    RESCALED,
    SIMULATED,
)
from jobs.papers.opposing_signals.statements import claims

__all__ = ["SOURCE", "TITLE", "claims", "figures", "plan", "run"]

TITLE = "Outliers with Opposing Signals Have an Outsized Effect on Neural Network Optimization"
SOURCE = "Rosenfeld & Risteski, ICLR 2024, arXiv 2311.04163"

_SIGNAL = {"steps": 500, "m": 30, "magnitude": 10.0}
_PATH = {"alpha": 20.0, "steps": 40_000}


def plan(scale: Scale) -> list[Trial]:
    """Cells of the small scale (minutes on two cores), or those and more seeds, strengths of the signal and images."""
    seeds = range(3 if scale == "small" else 10)
    cells = [
        cell(LINEAR, "flow", 0, **_PATH),
        cell(SIMULATED, "sample", rows=400_000),
        cell(EDGE, "descent", steps=4000),
        cell(PRODUCTS, "hessian", rows=300, width=12),
        cell(RESCALED, "heavy ball", steps=50),
        cell(NATURAL, "Digits", steps=400, lr=1.0),
        cell(NATURAL, "MNIST", steps=300, lr=0.6),
    ]
    cells += [cell(PLANTED, mode, seed, **_SIGNAL) for mode in MODES for seed in seeds]
    cells += [
        cell(OPTIMIZERS, name, seed, mode=mode, steps=400)
        for name in RATES
        for mode in ("opposing", "none")
        for seed in seeds
    ]
    if scale == "paper":
        cells += [cell(LINEAR, "flow", 0, **{**_PATH, "alpha": alpha}) for alpha in (5.0, 10.0, 40.0)]
        cells += [
            cell(PLANTED, "opposing", seed, **{**_SIGNAL, "m": m, "magnitude": magnitude})
            for m in (10, 30, 60)
            for magnitude in (2.5, 5.0, 20.0)
            for seed in range(3)
        ]
        cells += [cell(NATURAL, "Digits", seed, steps=400, lr=1.0) for seed in (1, 2)]
        cells += [cell(NATURAL, "MNIST", seed, steps=300, lr=0.6) for seed in (1, 2)]
    return cells


def run(trial: Trial) -> list[MetricRow]:
    """Compute a cell."""
    from jobs.papers.opposing_signals import comparison, exact, measured

    kinds = {
        LINEAR: exact.flow,
        SIMULATED: exact.simulated,
        EDGE: exact.edge,
        PRODUCTS: exact.products,
        RESCALED: exact.rescaled,
        PLANTED: measured.planted,
        NATURAL: measured.natural,
        OPTIMIZERS: comparison.optimizers,
    }
    return kinds[trial.dataset](trial.method, trial.seed, settings(trial))
