"""Names, settings and cells of the experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from cluster.trial import Trial
from jobs.claims import cell, settings

NAME = "label_flip_certification"
RIDGE, PARTITION, ATTACK, MONTE_CARLO, INVARIANCES, THRESHOLDS, BRUTE_FORCE = (
    f"{NAME}/{experiment}"
    for experiment in ("ridge", "partition", "attack", "monte_carlo", "invariances", "thresholds", "brute_force")
)
SMOOTHED, GREEDY = "smoothed ridge", "greedy attack"
SS_DPA, WHITE_BOX = "SS-DPA", "SS-DPA, white box"

QS = (0.05, 0.1, 0.3, 0.45)
TEN_QS = (0.0125, 0.05)
FEATURES = ("raw", "pca:10", "pca:50", "fourier:500")
FEATURE_SCALES = (0.2, 2.0, 20.0)
UNDEFENDED = 0.01
"""The penalty of the undefended classifier on two digits: as good as none."""

SPARSE, HEAVY = 100.0, 1e4
"""The two penalties of the figures on digits."""


class Setting(NamedTuple):
    """What the figures of one curve have in common.

    Args:
        experiment: RIDGE, PARTITION or ATTACK.
        method: SMOOTHED, SS_DPA, WHITE_BOX or GREEDY.
        data: a built-in of `load_examples`, or NAME.npz in a person's folder.
        features: see `FeatureMap.parse`.
        lam: ridge penalty; None where lam_scale is given.
        lam_scale: penalty in multiples of the label-free trace(F^T F)/k, of a part for ensembles.
        parts: of an ensemble.
    """

    experiment: str
    method: str
    data: str
    features: str = "pca:50"
    lam: float | None = None
    lam_scale: float | None = None
    parts: int | None = None

    def cell(self, **more: Any) -> Trial:
        """Make a cell; settings that are None are left out."""
        values: dict[str, Any] = {name: value for name, value in self._asdict().items() if value is not None}
        return cell(**values, **more)


def ridge(data: str, features: str = "pca:50", lam: float | None = None, lam_scale: float | None = None) -> Setting:
    """Name a setting of the smoothed rule."""
    return Setting(RIDGE, SMOOTHED, data, features, lam, lam_scale)


def votes(data: str, parts: int, lam: float | None = None, features: str = "pca:50", method: str = SS_DPA) -> Setting:
    """Name a setting of a partition ensemble; without lam it takes a part's trace(F^T F)/k."""
    return Setting(PARTITION, method, data, features, lam, 1.0 if lam is None else None, parts)


def greedy(lam: float) -> Setting:
    """Name a setting of the attack on ones and sevens."""
    return Setting(ATTACK, GREEDY, "MNIST17", lam=lam)


SMALL_RIDGE = {
    **{ridge("MNIST17", lam=lam): (QS, 200) for lam in (SPARSE, HEAVY)},
    **{ridge("MNIST17", f, lam_scale=c): (QS[:1], 200) for f in FEATURES for c in FEATURE_SCALES},
    **{ridge("BreastCancer", "raw", lam): (QS[:3], 114) for lam in (10.0, 1000.0)},
    **{ridge("MNIST", lam=lam): (TEN_QS, 300) for lam in (SPARSE, HEAVY)},
}
"""The small scale's settings of the smoothed rule: noise rates and number of test points."""

SMALL_PARTS = {
    **{votes("MNIST17", k, 100.0, method=m): 200 for k in (25, 100, 200, 400) for m in (SS_DPA, WHITE_BOX)},
    **{votes("BreastCancer", k, 10.0, "raw", m): 114 for k in (25, 200) for m in (SS_DPA, WHITE_BOX)},
    **{votes("MNIST", k, 100.0): 300 for k in (50, 200, 400)},
    votes("MNIST", 50, 100.0, method=WHITE_BOX): 300,
}
"""The small scale's ensembles: number of test points."""

SMALL_ATTACKS = tuple(greedy(lam) for lam in (UNDEFENDED, SPARSE))

SEARCHES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Chernoff bound", {"classes": 2, "n": 10, "q": 0.3, "points": 200}),
    ("Chernoff bound", {"classes": 3, "n": 7, "q": 0.2, "points": 100}),
    ("certificates", {"classes": 2, "n": 10, "q": 0.05, "points": 200}),
    ("certificates", {"classes": 2, "n": 10, "q": 0.2, "points": 200}),
    ("certificates", {"classes": 3, "n": 7, "q": 0.05, "points": 100}),
    ("exact", {"classes": 2, "n": 10, "points": 200}),
    ("exact", {"classes": 3, "n": 7, "points": 200}),
    ("ensembles", {"classes": 2, "n": 10, "parts": 3, "points": 50}),
    ("ensembles", {"classes": 3, "n": 6, "parts": 3, "points": 50}),
)
"""Problems so small that every label vector can be tried."""


def small_plan() -> list[Trial]:
    """List the cells of the small scale, those of a data set and feature map in a row."""
    cells = [cell(THRESHOLDS, "known probabilities")]
    cells += [cell(BRUTE_FORCE, method, **values) for method, values in SEARCHES]
    cells += [s.cell(q=join(qs), first=0, points=points) for s, (qs, points) in SMALL_RIDGE.items()]
    cells += [s.cell(first=0, points=points) for s, points in SMALL_PARTS.items()]
    cells += [s.cell(largest=64) for s in SMALL_ATTACKS]
    digits: dict[str, Any] = {"data": "MNIST17", "features": "pca:50", "lam": SPARSE}
    cells += [cell(MONTE_CARLO, "label noise", q=0.3, draws=20_000, points=20, **digits)]
    cells += [cell(INVARIANCES, "other names, units and neighbours", q=0.1, **digits)]
    return sorted(cells, key=lambda t: [str(settings(t).get(name, "")) for name in ("data", "features")])


# The paper's tasks, from a person's folder


class Task(NamedTuple):
    """One of the paper's tasks: its sizes, and what is certified of it.

    Args:
        title: in words.
        classes: K.
        train: examples that the paper trains on.
        test: examples that it tests.
        chunk: test points of a cell.
        features: of the file's inputs; "raw" where the file holds an encoder's features.
        qs: noise rates.
        parts: of SS-DPA, as Levine & Feizi have them.
    """

    title: str
    classes: int
    train: int
    test: int
    chunk: int
    features: str
    qs: tuple[float, ...]
    parts: tuple[int, ...] = ()


TASKS = {
    "mnist17.npz": Task("MNIST 1/7", 2, 13_007, 2163, 2163, "pca:50", QS, (13_007,)),
    "dogfish.npz": Task("Dogfish", 2, 900, 300, 300, "raw", QS),
    "imdb.npz": Task("IMDB", 2, 25_000, 25_000, 5000, "raw", QS),
    "mnist.npz": Task("MNIST", 10, 60_000, 10_000, 2500, "pca:50", (0.0125, 0.025, 0.05), (1200, 3000)),
    "cifar10.npz": Task("CIFAR-10", 10, 50_000, 10_000, 2500, "raw", (0.0125, 0.025, 0.05), (50, 250, 1000)),
}
"""By file of the training part."""

SCALES = (0.2, 2.0, 20.0)
NO_DEFENCE = 1e-4
"""lam_scale of the undefended classifier."""


def paper_plan() -> list[Trial]:
    """List the cells of the paper's sizes; a cell takes seconds to minutes."""
    cells = []
    for data, task in TASKS.items():
        for first in range(0, task.test, task.chunk):
            chunk = {"first": first, "points": task.chunk}
            cells.append(ridge(data, task.features, lam_scale=NO_DEFENCE).cell(q=join(task.qs[:1]), **chunk))
            for scale in SCALES:
                cells.append(ridge(data, task.features, lam_scale=scale).cell(q=join(task.qs), **chunk))
            cells += [votes(data, parts, features=task.features).cell(**chunk) for parts in task.parts]
    return cells


def wanted_files(data: str, folder: str) -> list[Path]:
    """Name the files of a task's training and test part; none for built-in data."""
    return [Path(folder, data), Path(folder, data.replace(".npz", "_test.npz"))] if data in TASKS else []


def join(qs: tuple[float, ...]) -> str:
    """Write noise rates as one setting."""
    return " ".join(f"{q:g}" for q in qs)
