"""Strategic classification: the collapse under a small error about the cost, the minimax classifier, and the solvers' rates.

`statements.py` holds the claims, `drawings.py` the figures.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from cluster.trial import Trial
from jobs.claims import MetricRow, Scale, cell, scalar_rows, settings
from jobs.papers.strategic_classification.drawings import figures
from jobs.papers.strategic_classification.names import (
    ADVERSARY,
    CANCER,
    CONVEXITY,
    ERRORS,
    GAUSSIAN,
    METHODS,
    POINTS,
    RATE,
    TIMES,
    TWO_POINT,
    WRONG,
)
from jobs.papers.strategic_classification.statements import claims

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SOURCE", "TITLE", "claims", "figures", "plan", "run"]

TITLE = "One-Shot Strategic Classification Under Unknown Costs"
SOURCE = "Rosenfeld & Rosenfeld, ICML 2024, arXiv 2311.02761"


def plan(scale: Scale) -> list[Trial]:
    """Cells of the small scale (a minute on two cores), or those and more seeds."""
    seeds = range(5 if scale == "small" else 20)
    cells = [cell(TWO_POINT, "exact", epsilon=e, gap=g) for e, g in POINTS]
    cells += [cell(GAUSSIAN, "sample", 0, epsilon=e) for e in ERRORS]
    cells += [cell(CANCER, "methods", seed, factor=f) for f in WRONG for seed in seeds]
    cells += [cell(RATE, solver, seed) for solver in ("full_batch", "stochastic") for seed in range(3)]
    cells += [cell(CONVEXITY, "midpoints", 0, share=share) for share in (0.5, 0.8)]
    cells += [cell(ADVERSARY, "random", 0)]
    return cells


def run(trial: Trial) -> list[MetricRow]:
    """Compute one cell."""
    values = settings(trial)
    if trial.dataset == TWO_POINT:
        from lightning_modules.strategic.misestimation import two_point_minimax

        return scalar_rows({"error": two_point_minimax(values["epsilon"], values["gap"])})
    if trial.dataset == GAUSSIAN:
        return scalar_rows(_gaussian(values["epsilon"]))
    if trial.dataset == CANCER:
        return _cancer(trial.seed, values["factor"])
    if trial.dataset == RATE:
        return _rate(trial.method, trial.seed)
    return scalar_rows(_convexity(values["share"]) if trial.dataset == CONVEXITY else _adversary())


def _gaussian(epsilon: float) -> dict[str, float]:
    import numpy as np

    from lightning_modules.strategic.costs import MahalanobisCost
    from lightning_modules.strategic.misestimation import gaussian_error, gaussian_sample
    from lightning_modules.strategic.responses import strategic_error

    x, y = gaussian_sample(400_000, 0.5, 0)
    w = np.array([1.0, 0.0])
    shift = float(MahalanobisCost((1 - epsilon) * np.eye(2)).shift(w))
    return {"error": float(strategic_error(x @ w - 1, y, shift).mean()), "closed": gaussian_error(epsilon)}


def breast_cancer(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Balanced, split 70 to 30 and standardised by the training part: (x, y, test x, test y); +1 is benign."""
    import numpy as np

    from lightning_modules.data.examples import load_examples

    examples = load_examples("BreastCancer", "all")
    y = np.where(examples.labels == 1, 1.0, -1.0)
    generator = np.random.default_rng([seed, 61])
    positive, negative = np.flatnonzero(y > 0), np.flatnonzero(y < 0)
    chosen = generator.permutation(np.concatenate([generator.permutation(positive)[: len(negative)], negative]))
    border = int(0.7 * len(chosen))
    x = examples.inputs.astype(np.float64)
    train, test = chosen[:border], chosen[border:]
    centre, spread = x[train].mean(0), x[train].std(0)
    return (x[train] - centre) / spread, y[train], (x[test] - centre) / spread, y[test]


def _cancer(seed: int, factor: float) -> list[MetricRow]:
    """Worst-case, nominal and clean test accuracy of every method, people moving 1/factor to factor times as far as believed."""
    import numpy as np

    from lightning_modules.strategic.baselines import arms, problems
    from lightning_modules.strategic.cost_sets import EigenvalueBox
    from lightning_modules.strategic.costs import MahalanobisCost
    from lightning_modules.strategic.solvers import Problems, full_batch, stochastic
    from lightning_modules.strategic.worst_case import worst_case_error, zero_one_risks

    x, y, test_x, test_y = breast_cancer(seed)
    eye = np.eye(x.shape[1])
    box = EigenvalueBox(eye, np.full(len(eye), 1 / factor**2), np.full(len(eye), factor**2))
    costly, cheap, nominal = MahalanobisCost(eye * factor**2), MahalanobisCost(eye / factor**2), MahalanobisCost(eye)
    chosen = {name: arm for name, arm in arms(box, nominal).items() if name in METHODS}
    solved = full_batch(problems(x, y, chosen), 600)
    drawn = stochastic(Problems(x, y, [[costly, cheap]], np.array([0.05])), 3000, seeds=[seed])
    found = {name: (solved.weights[i], solved.biases[i]) for i, name in enumerate(chosen)}
    found["stochastic"] = drawn.weights[0], drawn.biases[0]
    rows: list[MetricRow] = []
    for name, (w, b) in found.items():
        scores = test_x @ w + b
        risks = zero_one_risks(scores, test_y, np.array([0.0, float(nominal.shift(w))]))
        worst = 1 - worst_case_error(test_x, test_y, w, float(b), box)[1]
        gap = _hinge(x, y, w, b, float(costly.shift(w))) - _hinge(x, y, w, b, float(cheap.shift(w)))
        accuracies = {"worst": worst, "clean": 1 - risks[0], "nominal": 1 - risks[1], "hinge gap": gap}
        rows += scalar_rows(accuracies, environment=name)
    return rows


def _hinge(x: np.ndarray, y: np.ndarray, w: np.ndarray, b: float, shift: float) -> float:
    from lightning_modules.strategic.responses import strategic_hinge

    return float(strategic_hinge(x @ w + b, y, shift).mean())


def rate_problem() -> tuple[np.ndarray, np.ndarray, list[Any], float]:
    """240 rows of six features of breast cancer under three costs: inputs, labels, costs, share of positives."""
    import numpy as np

    from lightning_modules.data.examples import load_examples
    from lightning_modules.strategic.costs import LpCost

    examples = load_examples("BreastCancer", "all")
    rows = np.random.default_rng([0, 62]).permutation(len(examples.labels))[:240]
    x = examples.inputs[rows, :6].astype(np.float64)
    y = np.where(examples.labels[rows] == 1, 1.0, -1.0)
    costs = [LpCost(1, 1.0), LpCost(math.inf, 0.25), LpCost(1, 0.5)]
    return (x - x.mean(0)) / x.std(0), y, costs, float((y > 0).mean())


def _rate(solver: str, seed: int) -> list[MetricRow]:
    """How far averaged and best iterates are above the linear program's optimum, after T steps."""
    import numpy as np

    from lightning_modules.strategic.linear_program import lp_minimax
    from lightning_modules.strategic.solvers import Problems, full_batch, stochastic

    x, y, costs, lam = rate_problem()
    _, _, optimum = lp_minimax(x, y, costs, lam)
    problems = Problems(x, y, [costs], np.array([lam]))
    start = 0.01 * np.random.default_rng([seed, 63]).standard_normal((1, x.shape[1]))
    rows: list[MetricRow] = []
    for steps in TIMES:
        if solver == "full_batch":
            found = full_batch(problems, steps, (start, np.zeros(1)))
        else:
            found = stochastic(problems, steps, 16, [seed])
        gaps = {"average": found.average_objective[0] - optimum, "best": found.objective[0] - optimum}
        rows += scalar_rows(gaps, step=steps)
    return rows


def _convexity(share: float) -> dict[str, float]:
    """Share of 4,000 random midpoints above the chord, at lam = 0, half the share of positives, and that share.

    How many there are depends on how far the random points lie from w = 0, where the kink is.
    """
    import numpy as np

    from lightning_modules.strategic.costs import MahalanobisCost
    from lightning_modules.strategic.responses import strategic_hinge

    generator = np.random.default_rng([64, int(10 * share)])
    n, d, count = 200, 5, 4000
    y = np.where(np.arange(n) < share * n, 1.0, -1.0)
    x = generator.standard_normal((n, d)) + 0.5 * y[:, None] * np.eye(d)[0]
    cost = MahalanobisCost(np.eye(d))

    def risk(w: np.ndarray, b: np.ndarray, lam: float) -> np.ndarray:
        shift = cost.shift(w)
        found: np.ndarray = strategic_hinge(w @ x.T + b[:, None], y, shift[:, None]).mean(1) + lam * shift
        return found

    ends = [(0.5 * generator.standard_normal((count, d)), 2 * generator.standard_normal(count)) for _ in range(2)]
    middle = (ends[0][0] + ends[1][0]) / 2, (ends[0][1] + ends[1][1]) / 2
    found = {}
    for name, lam in (("none", 0.0), ("half", share / 2), ("tau", share)):
        chord = (risk(*ends[0], lam) + risk(*ends[1], lam)) / 2
        found[name] = float((risk(*middle, lam) > chord + 1e-12).mean())
    return found


def _adversary() -> dict[str, float]:
    """How often the largest shift is the worst cost of 2,000 random classifiers; what minimax adds to the cheapest cost."""
    import numpy as np

    from lightning_modules.strategic.costs import MahalanobisCost
    from lightning_modules.strategic.solvers import Problems, full_batch
    from lightning_modules.strategic.worst_case import worst_case_shift

    x, y, _, _ = breast_cancer(0)
    tau = float((y > 0).mean())
    generator = np.random.default_rng([65])
    largest = {0.0: 0, tau: 0}
    for _ in range(2000):
        w, b = 0.1 * generator.standard_normal(x.shape[1]), generator.standard_normal()
        low, high = 0.5 * float(np.linalg.norm(w)), 2 * float(np.linalg.norm(w))
        for lam in largest:
            worst = worst_case_shift(x @ w + b, y, low, high, "hinge", lam)[1]
            at_largest = worst_case_shift(x @ w + b, y, high, high, "hinge", lam)[1]
            largest[lam] += worst <= at_largest + 1e-12  # as large as any, to rounding
    eye = np.eye(x.shape[1])
    costly, cheap = MahalanobisCost(4 * eye), MahalanobisCost(eye / 4)
    solved = full_batch(Problems(x, y, [[costly, cheap], [cheap, cheap]], np.array([tau, tau])), 600)
    return {
        "largest": largest[tau] / 2000,
        "largest without": largest[0.0] / 2000,
        "difference": float(abs(solved.objective[0] - solved.objective[1])),
    }
