"""Rep4Ex: latents in which actions act linearly, and effects of actions outside their support.

`measured.py` computes the cells, `statements.py` holds the claims, `drawings.py` the figures.
"""

from __future__ import annotations

from cluster.trial import Trial
from jobs.claims import MetricRow, Scale, cell, settings
from jobs.papers.rep4ex.drawings import figures
from jobs.papers.rep4ex.names import (
    ALPHA,
    ASSUMPTIONS,
    CONFOUNDING,
    CURVE,
    GAMMAS,
    MMR,
    MORE_STRENGTHS,
    SPRITES,
    STATISTIC,
    STRENGTHS,
    STUDY,
    TWO_STAGE,
    VARIANT_NAMES,
    VARIANTS,
)
from jobs.papers.rep4ex.statements import claims

__all__ = ["SOURCE", "TITLE", "claims", "figures", "plan", "run"]

TITLE = "Identifying Representations for Intervention Extrapolation"
SOURCE = "Saengkyongam, Rosenfeld, Ravikumar, Pfister & Peters, ICLR 2024, arXiv 2310.04295"

_CURVE = {"rows": 10000, "steps": 1200, "encoder_steps": 3600, "restarts": 2}
"""Encoders of one action train three times as long: of all single changes of the recipe that has the least loss on held-out rows."""
_WORLD = {"rows": 5000, "steps": 1200}
_PICTURES = {"rows": 3000, "steps": 1200, "batch_size": 256, "side": 20}


def plan(scale: Scale) -> list[Trial]:
    """Cells of the small scale (minutes on two cores), or those and more seeds, strengths and supports."""
    seeds = range(3 if scale == "small" else 10)
    cells = [cell(CURVE, "methods", seed, gamma=GAMMAS[-1], **_CURVE) for seed in range(2 * len(seeds))]
    few = range(1) if scale == "small" else seeds
    cells += [cell(CURVE, "methods", seed, gamma=gamma, **_CURVE) for gamma in GAMMAS[:-1] for seed in few]
    cells += [cell(ALPHA, "methods", seed, strengths=_words(STRENGTHS), **_WORLD) for seed in seeds]
    if scale == "paper":
        cells += [cell(ALPHA, "methods", seed, strengths=_words(MORE_STRENGTHS), **_WORLD) for seed in seeds]
    cells += [cell(VARIANTS, name, seed, **_WORLD) for name in VARIANT_NAMES for seed in few]
    cells += [cell(STUDY, "grid", seed, rows=5000, steps=600) for seed in few]
    cells += [cell(ASSUMPTIONS, MMR, seed, **_WORLD) for seed in few]
    cells += [cell(CONFOUNDING, "strengths", seed, **{**_CURVE, "restarts": 1}) for seed in few]
    cells += [cell(SPRITES, "digit", seed, **_PICTURES) for seed in seeds]
    return [*cells, cell(STATISTIC, "null", 0, draws=200), cell(TWO_STAGE, "linear", 0)]


def _words(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def run(trial: Trial) -> list[MetricRow]:
    """Compute one cell."""
    from jobs.papers.rep4ex import measured

    cells = {
        CURVE: measured.curve,
        ALPHA: measured.strengths,
        VARIANTS: measured.variant,
        STUDY: measured.study,
        ASSUMPTIONS: measured.assumptions,
        CONFOUNDING: measured.confounding,
        SPRITES: measured.sprites,
        STATISTIC: measured.null_statistic,
        TWO_STAGE: measured.two_stage,
    }
    return cells[trial.dataset](trial.method, trial.seed, settings(trial))
