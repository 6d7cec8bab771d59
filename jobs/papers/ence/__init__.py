"""NCE and eNCE: how flat the loss is where the noise is far, and which descent gets across.

`names.py` holds what cells, claims and figures share, `statements.py` the claims, `drawings.py` the figures.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

from cluster.trial import Trial
from jobs.claims import MetricRow, Scale, cell, scalar_rows, settings
from jobs.papers.ence.drawings import figures
from jobs.papers.ence.names import (
    CENTRED,
    COVARIANCE,
    CURVES,
    DESCENT,
    DISTANCES,
    ENERGY,
    FLATNESS,
    GRID,
    LONG_RUNS,
    METHODS,
    RATES,
    ROTATED,
    RUNS,
    SEPARABLE,
    SWEPT,
    TIMES,
    TRAINED,
    VALUES,
)
from jobs.papers.ence.statements import claims

if TYPE_CHECKING:
    from lightning_modules.density.gaussian_means import GaussianMeanProblem

__all__ = ["SOURCE", "TITLE", "claims", "figures", "plan", "run"]

TITLE = "Analyzing and Improving the Optimization Landscape of Noise-Contrastive Estimation"
SOURCE = "Liu, Rosenfeld, Ravikumar, Risteski, ICLR 2022, arXiv 2110.11271"


def plan(scale: Scale) -> list[Trial]:
    """Cells of the small scale (minutes on a core), or those and longer runs, more repeats, seeds and MNIST."""
    paper = scale == "paper"
    cells = [cell(VALUES, loss) for loss in ("nce", "ence")]
    cells += [
        cell(DESCENT, optimizer, loss=loss, lr=lr, distances=distances, steps=steps)
        for loss, optimizer, lr, distances, steps in (*RUNS, *(LONG_RUNS if paper else ()))
    ]
    cells += [cell(kind, loss) for kind in (FLATNESS, GRID, CENTRED) for loss in ("nce", "ence")]
    cells += [
        cell(ROTATED, "ngd", seed, loss=loss, steps=8000)
        for loss in ("nce", "ence")
        for seed in range(5 if paper else 3)
    ]
    cells += [
        cell(RATES, optimizer, loss=loss, lrs=lrs, steps=5000)
        for optimizer, lrs in SWEPT.items()
        for loss in ("nce", "ence")
    ]
    cells += [cell(COVARIANCE, loss, repeats=400) for loss in ("nce", "ence")]
    cells += [cell(COVARIANCE, loss, 1, repeats=4000) for loss in ("nce", "ence") if paper]
    cells += [cell(COVARIANCE, loss, 2, repeats=400, n=n) for loss in ("nce", "ence") for n in (100, 500)]
    cells += [cell(SEPARABLE, "ngd", seed) for seed in range(10 if paper else 3)]
    cells += [
        cell(CURVES, optimizer, loss=loss, dimension=dimension) for dimension in (1, 16) for loss, optimizer in METHODS
    ]
    for digits, dimension, seeds in (("Digits", 16, 3), ("MNIST", 32, 3), ("MNIST", 64, 1)):
        for seed in range(seeds if paper else 1 if digits == "Digits" else 0):
            cells += [
                cell(ENERGY, optimizer, seed, loss=loss, lr=lr, digits=digits, dimension=dimension, steps=1500)
                for loss, optimizer, lr in TRAINED
            ]
    return cells


def run(trial: Trial) -> list[MetricRow]:
    """Compute one cell."""
    kinds = {
        VALUES: _values,
        DESCENT: _descent,
        FLATNESS: _flatness,
        GRID: _grid,
        ROTATED: _rotated,
        CENTRED: _centred,
        RATES: _rates,
        COVARIANCE: _covariance,
        SEPARABLE: _separable,
        CURVES: _curves,
        ENERGY: _energy,
    }
    return kinds[trial.dataset](trial, settings(trial))


def apart(*distances: float) -> GaussianMeanProblem:
    """One-dimensional problems with the noise's mean at 0."""
    import numpy as np

    from lightning_modules.density.gaussian_means import GaussianMeanProblem

    means = np.array(distances, float)[:, None]
    return GaussianMeanProblem(means, np.zeros_like(means))


def _numbers(words: str) -> list[float]:
    return [float(word) for word in words.split()]


def _values(trial: Trial, values: dict[str, Any]) -> list[MetricRow]:
    import numpy as np

    from lightning_modules.density.gaussian_means import GaussianMeanProblem

    loss = trial.method
    problem = GaussianMeanProblem([3.0], [-1.0])
    tau = np.array([0.7, 2.1])
    value, gradient, hessian = getattr(problem, loss)(tau)
    found = {"loss": value, "gradient 0": gradient[0], "gradient 1": gradient[1]}
    found |= {"hessian 00": hessian[0, 0], "hessian 01": hessian[0, 1], "hessian 11": hessian[1, 1]}
    found["at noise"] = getattr(problem, loss)(problem.tau_noise)[0]
    rows = scalar_rows(found)
    for r in (4.0, 8.0):
        least, slope, _ = getattr(apart(r), loss)(apart(r).tau_star)
        rows += scalar_rows({"least": least[0], "slope": np.abs(slope).max() / least[0]}, environment=f"{r:g}")
    far = GaussianMeanProblem(np.array([100.0], np.float32), np.array([0.0], np.float32))
    log_value, slope = getattr(far, f"log_{loss}")(far.tau_star)
    same = getattr(problem, loss)(tau)[1], getattr(problem, f"log_{loss}")(tau)[1]
    cosine = float(same[0] @ same[1] / np.linalg.norm(same[0]) / np.linalg.norm(same[1]))
    return rows + scalar_rows({"far log": log_value, "far slope": np.abs(slope).max(), "1 - cosine": 1 - cosine})


def _descent(trial: Trial, values: dict[str, Any]) -> list[MetricRow]:
    from lightning_modules.density.descent import descend

    distances = _numbers(values["distances"])
    found = descend(apart(*distances), values["loss"], trial.method, values["lr"], max_steps=values["steps"])
    rows: list[MetricRow] = []
    for distance, steps, best, final in zip(distances, found.steps, found.best, found.final, strict=True):
        figures = {"best": best, "final": final} | ({"steps": steps} if steps >= 0 else {})
        rows += _finite(figures, environment=f"{distance:g}")
    return rows


def _finite(figures: dict[str, float], environment: str = "", step: int = 0) -> list[MetricRow]:
    """Rows of what is finite, and of whether all is."""
    kept = {name: float(value) for name, value in figures.items() if math.isfinite(value)}
    return scalar_rows(kept | {"finite": float(len(kept) == len(figures))}, step, environment)


def _flatness(trial: Trial, values: dict[str, Any]) -> list[MetricRow]:
    from lightning_modules.density.descent import guarantee_step

    distances = _numbers(DISTANCES)
    problem = apart(*distances)
    columns = {
        "condition": problem.condition_number(trial.method),
        "smallest": problem.smallest_eigenvalue(trial.method),
        "guarantee": guarantee_step(problem, trial.method),
    }
    return [
        row
        for number, distance in enumerate(distances)
        for row in scalar_rows({name: column[number] for name, column in columns.items()}, environment=f"{distance:g}")
    ]


def _grid(trial: Trial, values: dict[str, Any]) -> list[MetricRow]:
    """log10 of L and of its gradient's norm at R = 8 on a grid around noise and data."""
    import numpy as np

    from lightning_modules.density.descent import landscape_grid
    from lightning_modules.density.gaussian_means import GaussianMeanProblem

    table = landscape_grid(
        GaussianMeanProblem([8.0], [0.0]), trial.method, np.linspace(-2, 12, 36), np.linspace(-8, 48, 36)
    )
    rows: list[MetricRow] = []
    for number, row in enumerate(table.to_pylist()):
        figures = {"theta": row["theta"], "alpha": row["alpha"], "log10 loss": row["log_loss"] / math.log(10)}
        figures["log10 slope"] = max(row["log_gradient_norm"] / math.log(10), -300.0)
        rows += scalar_rows(figures, step=number)
    return rows


def _rotated(trial: Trial, values: dict[str, Any]) -> list[MetricRow]:
    import numpy as np

    from lightning_modules.density.descent import descend
    from lightning_modules.density.gaussian_means import GaussianMeanProblem

    axis = np.zeros((1, 16))
    axis[0, 0] = 8.0
    drawn = np.random.default_rng([trial.seed, 71]).standard_normal((1, 16))
    turned = 8 * drawn / np.linalg.norm(drawn)
    steps = {}
    for name, mean in (("axis", axis), ("turned", turned), ("line", np.array([[8.0]]))):
        found = descend(GaussianMeanProblem(mean, 0 * mean), values["loss"], "ngd", 0.1, max_steps=values["steps"])
        steps[name] = float(found.steps[0])
    return scalar_rows(steps)


def _centred(trial: Trial, values: dict[str, Any]) -> list[MetricRow]:
    from lightning_modules.density.descent import descend
    from lightning_modules.density.gaussian_means import GaussianMeanProblem

    pair = GaussianMeanProblem([[8.0]], [[-8.0]])
    slow = descend(pair, trial.method, "gd", 1.0, max_steps=5000)
    fast = descend(pair, trial.method, "ngd", 0.1, max_steps=5000)
    figures = {"condition": pair.condition_number(trial.method)[0], "gd best": slow.best[0], "ngd best": fast.best[0]}
    return scalar_rows(figures | ({"ngd steps": float(fast.steps[0])} if fast.steps[0] >= 0 else {}))


def _rates(trial: Trial, values: dict[str, Any]) -> list[MetricRow]:
    """Every step size on R = 4 and R = 8, at most `steps` updates: what a method needs once its step size is tuned."""
    import numpy as np

    from lightning_modules.density.descent import descend

    rows: list[MetricRow] = []
    lrs = _numbers(values["lrs"])
    for distance in (4.0, 8.0):
        found = descend(
            apart(*[distance] * len(lrs)), values["loss"], trial.method, np.array(lrs), max_steps=values["steps"]
        )
        for lr, steps, best in zip(lrs, found.steps, found.best, strict=True):
            rows += _finite({"best": best} | ({"steps": steps} if steps >= 0 else {}), f"{distance:g} lr={lr:g}")
        arrived = found.steps[found.steps >= 0]
        if len(arrived):
            rows += scalar_rows({"tuned": float(arrived.min())}, environment=f"{distance:g}")
        rows += scalar_rows({"arrived": float(len(arrived) > 0)}, environment=f"{distance:g}")
    return rows


def _covariance(trial: Trial, values: dict[str, Any]) -> list[MetricRow]:
    """n Cov of the empirical minimiser at R = 1 against the theory; the trace of the theory at R = 3."""
    import numpy as np

    from lightning_modules.density.gaussian_means import GaussianMeanProblem
    from lightning_modules.density.samples import SampleProblem, maximum_likelihood, minimise

    repeats, n = values["repeats"], values.get("n", 2000)
    problem = GaussianMeanProblem([1.0], [0.0])
    many = GaussianMeanProblem(np.ones((repeats, 1)), np.zeros((repeats, 1)))
    data, noise = many.sample(n, trial.seed)
    tau, sure = minimise(SampleProblem(problem, data, noise), trial.method)
    covariance, theory = n * np.cov(tau[sure].T), problem.asymptotic_covariance(trial.method)
    figures = {
        "minimised": float(sure.mean()),
        "error": float(np.linalg.norm(tau[sure] - problem.tau_star, axis=1).mean()),
    }
    for i, j in ((0, 0), (0, 1), (1, 1)):
        figures |= {f"theory {i}{j}": theory[i, j], f"ratio {i}{j}": covariance[i, j] / theory[i, j]}
    figures["far trace"] = float(np.trace(GaussianMeanProblem([3.0], [0.0]).asymptotic_covariance(trial.method)))
    likely = maximum_likelihood(data)
    figures["likelihood error"] = float(np.linalg.norm(likely - problem.tau_star, axis=1).mean())
    return scalar_rows(figures, step=n)


def _separable(trial: Trial, values: dict[str, Any]) -> list[MetricRow]:
    from lightning_modules.density.descent import descend
    from lightning_modules.density.gaussian_means import GaussianMeanProblem
    from lightning_modules.density.samples import SampleProblem, warn_separated

    problem = GaussianMeanProblem([16.0], [0.0])
    data, noise = problem.sample(1000, trial.seed)
    sample = SampleProblem(problem, data[None], noise[None])
    found = descend(sample, "ence", "ngd", 0.1, max_steps=3000, stop_within=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = warn_separated(sample, found.tau)
    figures = {"best": found.best[0], "final": found.final[0], "separated": float(count), "warnings": float(len(said))}
    return scalar_rows(figures)


def _curves(trial: Trial, values: dict[str, Any]) -> list[MetricRow]:
    """Best distance so far of five samples of 10,000 at R = 4, in one or sixteen dimensions."""
    import numpy as np

    from lightning_modules.density.descent import descend
    from lightning_modules.density.gaussian_means import GaussianMeanProblem
    from lightning_modules.density.samples import SampleProblem

    d, n = values["dimension"], 10_000 if values["dimension"] == 1 else 3000
    mean = np.full(d, 4 / math.sqrt(d))
    many = GaussianMeanProblem(np.tile(mean, (5, 1)), np.zeros((5, d)))
    sample = SampleProblem(GaussianMeanProblem(mean, np.zeros(d)), *many.sample(n, trial.seed))
    lr = 1.0 if trial.method == "gd" else 0.1
    rows: list[MetricRow] = []
    found = descend(sample, values["loss"], trial.method, lr, max_steps=TIMES[-1], stop_within=False, marks=TIMES)
    for mark, best in zip(TIMES, found.marks, strict=False):
        rows += scalar_rows({"best": best.mean(), "worst run": best.max()}, step=mark)
    return rows


def _energy(trial: Trial, values: dict[str, Any]) -> list[MetricRow]:
    from lightning_modules.density.data import DigitVectors
    from lightning_modules.density.estimator import ContrastiveEstimator
    from lightning_modules.density.fits import fit

    d, seed = values["dimension"], trial.seed
    data = DigitVectors(digits=values["digits"], dimension=d, seed=seed)
    module = ContrastiveEstimator(values["loss"], trial.method, values["lr"], dimension=d, seed=seed)
    figures = fit(module, data, values["steps"])
    data.setup()
    validation = next(iter(data.val_dataloader()))
    names = ("val_log_loss", "val_nll", "val_accuracy", "val_log_partition", "val_effective_samples")
    alone = {"noise nll": -float(validation[2].mean()), "condition": data.condition}
    return _finite({name.removeprefix("val_"): figures[name] for name in names}) + scalar_rows(alone)
