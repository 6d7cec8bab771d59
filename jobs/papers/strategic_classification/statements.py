"""The claims."""

from __future__ import annotations

import math
from typing import Any

from jobs.claims import Claim, Results, Scale
from jobs.papers.strategic_classification.names import (
    ADVERSARY,
    CANCER,
    CONVEXITY,
    ERRORS,
    GAUSSIAN,
    POINTS,
    RATE,
    TWO_POINT,
)

_PROTOTYPE = "ours, reference prototype"
_WIDE = 2.0
"""The factor at which the prototype's figures are: eigenvalues in [1/4, 4]."""


def claims(results: Results, scale: Scale) -> list[Claim]:
    """State the claims; measured over whatever seeds the scale has."""
    return [*_collapse(results), *_minimax(results), *_rates(results), *_structure(results)]


def _collapse(results: Results) -> list[Claim]:
    made = []
    for (epsilon, gap), reference in zip(POINTS, (0.5, 0.0, 0.5), strict=True):
        name = f"two points {gap:g} from the boundary, budget wrong by {epsilon:g}: smallest worst-case error"
        value = results.mean("error", experiment=TWO_POINT, epsilon=epsilon, gap=gap)
        source = "derived (paper, for general costs, from memory)"
        made.append(Claim(name, reference, value, 1e-12, source))
    for epsilon, reference in zip(ERRORS, (0.30854, 0.31063, 0.32306, 0.37913, 0.47783), strict=True):
        value = results.mean("error", experiment=GAUSSIAN, epsilon=epsilon)
        made.append(
            Claim(
                f"Gaussian, cost (1 - {epsilon:g}) I: error of the classifier exact for I",
                reference,
                value,
                0.002,
                "derived",
            )
        )
    return made


def _minimax(results: Results) -> list[Claim]:
    wide: dict[str, Any] = {"experiment": CANCER, "factor": _WIDE}

    def worst(name: str, **more: Any) -> float:
        return results.mean("worst", **{**wide, **more}, environment=name)

    figures = {
        "naive": 0.775,
        "costliest": 0.822,
        "nominal": 0.867,
        "cheapest": 0.883,
        "minimax": 0.905,
        "minimax_0.05": 0.908,
        "minimax_tau": 0.894,
        "stochastic": 0.905,
    }
    made = [
        Claim(
            f"breast cancer, eigenvalues in [1/4, 4]: worst-case accuracy, {name}",
            figure,
            worst(name),
            0.03,
            _PROTOTYPE,
        )
        for name, figure in figures.items()
    ]
    made += [
        Claim(
            "the same: minimax above nominal", 0.01, worst("minimax") - worst("nominal"), 0.0, _PROTOTYPE, "at least"
        ),
        Claim("the same: minimax above naive", 0.08, worst("minimax") - worst("naive"), 0.0, _PROTOTYPE, "at least"),
        Claim(
            "the same: minimax against nominal under the believed cost",
            0.0,
            results.mean("nominal", **wide, environment="minimax")
            - results.mean("nominal", **wide, environment="nominal"),
            0.02,
            _PROTOTYPE,
        ),
        Claim(
            "the same: what minimax loses to naive if nobody moves",
            0.066,
            results.mean("clean", **wide, environment="naive") - results.mean("clean", **wide, environment="minimax"),
            0.04,
            _PROTOTYPE,
        ),
        Claim(
            "the same: minimax makes the risks at both extremes equal, largest difference",
            0.005,
            max(map(abs, results.values("hinge gap", **wide, environment="minimax")), default=math.nan),
            0.0,
            "derived",
            "at most",
        ),
        Claim(
            "the same: difference of these risks, nominal",
            -0.138,
            results.mean("hinge gap", **wide, environment="nominal"),
            0.05,
            _PROTOTYPE,
        ),
        Claim(
            "the same: difference of these risks, cheapest",
            0.169,
            results.mean("hinge gap", **wide, environment="cheapest"),
            0.08,
            _PROTOTYPE,
        ),
        Claim(
            "the gain over nominal where the set is small, eigenvalues in [1/2, 2]: little",
            0.03,
            worst("minimax", factor=2**0.5) - worst("nominal", factor=2**0.5),
            0.0,
            _PROTOTYPE + ": 0.011",
            "at most",
        ),
    ]
    return made


def _rates(results: Results) -> list[Claim]:
    made = []
    for solver, most in (("full_batch", -0.45), ("stochastic", -0.35)):
        steps, gaps = results.curve("average", "step", experiment=RATE, method=solver)
        slope = math.log(gaps[-1] / gaps[0]) / math.log(steps[-1] / steps[0]) if len(gaps) > 1 else math.nan
        words = f"{solver.replace('_', ' ')}: gap of the averaged iterate falls as T to the power"
        made.append(
            Claim(words, most, slope, 0.0, "paper's abstract: T^-1/2 but for logarithms; threshold ours", "at most")
        )
    best = results.mean("best", experiment=RATE, method="full_batch", step=1600)
    last = results.mean("average", experiment=RATE, method="stochastic", step=6400)
    low = min(results.values("best", experiment=RATE), default=math.nan)
    made += [
        Claim("full batch: gap of the best iterate at T = 1600", 1e-4, best, 0.0, _PROTOTYPE, "at most"),
        Claim("stochastic: gap at T = 6400", 0.01, last, 0.0, _PROTOTYPE, "at most"),
        Claim("no iterate is below the linear program's optimum: least gap", 0.0, low, 1e-6, "derived", "at least"),
    ]
    return made


def _structure(results: Results) -> list[Claim]:
    made = []
    for share, none, half in ((0.5, 0.035, 0.025), (0.8, 0.175, 0.10)):
        at = {"experiment": CONVEXITY, "share": share}
        words = f"{share:g} positives: share of midpoints above the chord"
        made += [
            Claim(f"{words}, lam = share of positives", 0.0, results.mean("tau", **at), 0.0, "derived: convex"),
            Claim(f"{words}, lam = 0", none, results.mean("none", **at), 0.6 * none, _PROTOTYPE),
            Claim(f"{words}, half of it", half, results.mean("half", **at), 0.8 * half, _PROTOTYPE),
        ]
    at = {"experiment": ADVERSARY}
    made += [
        Claim(
            "lam = share of positives: the cheapest cost is the worst, share of random classifiers",
            1.0,
            results.mean("largest", **at),
            0.0,
            "derived",
        ),
        Claim(
            "the same, minimax training equals training for the cheapest cost",
            0.0,
            results.mean("difference", **at),
            1e-9,
            "derived",
        ),
        Claim(
            "lam = 0: the cheapest cost is the worst, share of random classifiers",
            0.55,
            results.mean("largest without", **at),
            0.25,
            _PROTOTYPE,
        ),
    ]
    return made
