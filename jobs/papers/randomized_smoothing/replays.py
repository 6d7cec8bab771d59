"""Experiments whose truth is known: a half-space, and replayed counts of a classifier with given probabilities."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from cluster.trial import Trial
from jobs.claims import MetricRow, scalar_rows
from jobs.papers.randomized_smoothing.names import ALPHA, example_seeds

if TYPE_CHECKING:
    import numpy as np


def run_linear(trial: Trial, points: int, dimensions: int, sigma: float, n: int) -> list[MetricRow]:
    """Certify a half-space, whose true radius is the distance to its plane."""
    import numpy as np
    import torch
    from torch import nn

    from lightning_modules.certification.smoothing import SmoothedClassifier

    generator = torch.Generator().manual_seed(trial.stream("data"))
    plane = nn.Linear(dimensions, 2)
    w, x = torch.randn(dimensions, generator=generator), torch.randn(points, dimensions, generator=generator)
    with torch.no_grad():
        plane.weight.copy_(torch.stack([-w, w]) / 2)
        plane.bias.copy_(torch.tensor([-0.15, 0.15]))
    distance = ((x @ w + 0.3).abs() / w.norm()).double().numpy()
    seeds = example_seeds(trial, "certify", points)
    found = SmoothedClassifier(plane.eval(), 2, sigma).certify_many(x, seeds, 100, n, ALPHA, batch_size=4000)
    radii = np.array([c.radius for c in found])
    middling = (distance > 0.1) & (distance < 1.5)
    figures = {
        "above": float((radii > distance).sum()),
        "median_gap": float(np.median((distance - radii)[middling])),
        "largest": float(radii.max()),
    }
    return scalar_rows(figures)


def _paths(trial: Trial, p: np.ndarray, looks: np.ndarray) -> np.ndarray:
    """Counts of successes at the looks, [len(p), J]."""
    import numpy as np

    steps = np.diff(np.concatenate([[0], looks]))
    return np.cumsum(np.random.default_rng(trial.stream("paths")).binomial(steps, p[:, None]), 1)


def run_replay(trial: Trial, sigma: float, n: int, images: int) -> list[MetricRow]:
    """Replay both ways of sampling on the same paths, for a stylised law of p_A over images."""
    import numpy as np
    from scipy import special

    from lightning_modules.certification.binomial import clopper_pearson_lower, radius_of
    from lightning_modules.certification.sequential import LookSchedule, SequentialRule

    z = special.ndtri((np.arange(1, images + 1) - 0.5) / images)
    stages = trial.method == "stages"  # three looks, each ten times as late, as in Horvath et al., ICLR 2022
    schedule = LookSchedule(n, 1000, 10, 1000) if stages else LookSchedule(n)
    kind: Any = "cp" if stages else trial.method
    rule = SequentialRule(sigma, tuple(0.25 * i for i in range(7)), schedule, ALPHA, kind=kind)
    counts = _paths(trial, special.ndtr(0.9 + 1.2 * z), rule.looks)
    crossed, used = rule.replay(counts)
    lower = clopper_pearson_lower(counts[:, -1], n, ALPHA)
    fixed = np.where(lower >= 0.5, radius_of(lower, sigma), -1.0)
    certified = np.array([rule.radii[c - 1] if c else -1.0 for c in crossed])
    rows = scalar_rows({"samples": used.mean(), "above_fixed": float((certified > fixed + 1e-12).sum())})
    for i, r in enumerate(rule.radii):
        figures = {"fixed": (fixed >= r).mean(), "adaptive": (crossed > i).mean()}
        rows += scalar_rows(figures, step=round(100 * r))
    return rows


def run_level(trial: Trial, p: float, alpha: float, n: int, paths: int) -> list[MetricRow]:
    """How often a target at the true boundary is certified, and how often peeking at a fixed-n bound would."""
    import numpy as np
    from scipy import special

    from lightning_modules.certification.binomial import clopper_pearson_lower
    from lightning_modules.certification.sequential import LookSchedule, SequentialRule

    kind: Any = trial.method
    target = float(special.ndtri(p)) + 1e-9
    rule = SequentialRule(1.0, (0.0, target), LookSchedule(n, 50, 1.1, 50), alpha, kind=kind)
    counts = _paths(trial, np.full(paths, p), rule.looks)
    crossed, _ = rule.replay(counts)
    peeking = (clopper_pearson_lower(counts, rule.looks, alpha) > p).any(1).mean()
    return scalar_rows({"false": (crossed == 2).mean(), "false_when_peeking": peeking})


def run_target(trial: Trial, p: float, n: int, paths: int) -> list[MetricRow]:
    """Mean samples to certify the radius sigma, against ln(1/alpha) over the information a sample carries."""
    import numpy as np
    from scipy import stats

    from lightning_modules.certification.sequential import LookSchedule, SequentialRule

    kind: Any = trial.method
    target = stats.norm.cdf(1)
    floor = -math.log(ALPHA) / (p * math.log(p / target) + (1 - p) * math.log((1 - p) / (1 - target)))
    rule = SequentialRule(1.0, (0.0, 1.0), LookSchedule(n, 50, 1.1, 10), ALPHA, kind=kind)
    crossed, used = rule.replay(_paths(trial, np.full(paths, p), rule.looks))
    certified = crossed == 2
    return scalar_rows({"over_floor": used[certified].mean() / floor, "certified": certified.mean()})
