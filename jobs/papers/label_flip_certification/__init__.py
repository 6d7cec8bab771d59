"""Label flips: predictions that survive any r changed training labels, on real digits and against brute force."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.errors import InputError
from cluster.trial import Trial
from jobs.claims import Claim, MetricRow, NamedFigure, Results, Scale, settings
from jobs.papers.label_flip_certification.drawings import draw
from jobs.papers.label_flip_certification.plans import (
    ATTACK,
    BRUTE_FORCE,
    INVARIANCES,
    MONTE_CARLO,
    NAME,
    PARTITION,
    RIDGE,
    THRESHOLDS,
    paper_plan,
    small_plan,
    wanted_files,
)
from jobs.papers.label_flip_certification.statements import paper_claims, small_claims

if TYPE_CHECKING:
    from collections.abc import Callable

TITLE = "Certified Robustness to Label-Flipping Attacks via Randomized Smoothing"
SOURCE = "E. Rosenfeld, E. Winston, P. Ravikumar, J. Z. Kolter; ICML 2020; arXiv 2002.03018"


def plan(scale: Scale) -> list[Trial]:
    """List the cells: one data set with one ridge penalty or one ensemble each, or one search over all label vectors."""
    return small_plan() if scale == "small" else paper_plan()


def missing(trial: Trial, data: str) -> str | None:
    """Say which file of the folder `data` a cell lacks; None for nothing."""
    files = wanted_files(settings(trial).get("data", ""), data)
    return next((file.name for file in files if not data or not file.is_file()), None)


def run(trial: Trial, data: str = "") -> list[MetricRow]:
    """Compute one cell.

    Raises:
        InputError: for a trial of another experiment, or naming the file that does not fit the cell.
    """
    from jobs.papers.label_flip_certification import brute_force, cells

    work: dict[str, Callable[..., list[MetricRow]]] = {
        RIDGE: cells.run_ridge,
        PARTITION: cells.run_partition,
        ATTACK: cells.run_attack,
        MONTE_CARLO: cells.run_monte_carlo,
        INVARIANCES: cells.run_invariances,
        THRESHOLDS: cells.run_thresholds,
        BRUTE_FORCE: brute_force.run_brute_force,
    }
    if trial.dataset not in work:
        raise InputError(f"experiment: unknown {trial.dataset!r}; plan() lists those of {NAME}")
    return work[trial.dataset](trial, data, **settings(trial))


def claims(results: Results, scale: Scale) -> list[Claim]:
    """Compare what the paper, its quoters and the analysis say with what was measured."""
    return small_claims(results) if scale == "small" else paper_claims(results)


def figures(results: Results) -> list[NamedFigure]:
    """Draw certified accuracy against the number of flipped labels, for whatever data the results hold."""
    return draw(results)
