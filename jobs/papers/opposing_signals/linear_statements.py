"""The claims about the linear model, and about what is exact."""

from __future__ import annotations

from jobs.claims import Claim, Results, most
from jobs.papers.opposing_signals.names import BETAS, EDGE, FACTORS, LINEAR, PRODUCTS, RESCALED, SIMULATED

_PROTOTYPE = "ours, reference prototype"


def exact(results: Results) -> list[Claim]:
    """State them."""
    return [*_flow(results), *_edge(results), *_equalities(results)]


def _flow(results: Results) -> list[Claim]:
    at = {"experiment": LINEAR, "alpha": 20.0}
    made = []
    for size, reference in zip(BETAS, (1.058, 1.028, 1.014, 1.007, 1.004), strict=True):
        value = results.mean("final over alpha |beta|", **at, environment=f"beta={size:g}")
        name = f"linear model, |beta| = {size:g}: final sharpness over alpha |beta|"
        made.append(Claim(name, reference, value, 1e-3, _PROTOTYPE))
    off = [abs(value - 1) for value in results.values("final over the closed form", experiment=LINEAR)]
    drift = results.values("drift", **at)
    least = results.values("least over the start", **at)
    first = results.mean("least over the start", **at, environment="beta=0.5")
    population = results.mean("loss over the sample's", experiment=SIMULATED)
    return [
        *made,
        _at_most("linear model: final sharpness against the closed form, largest relative error", 1e-3, most(off)),
        _at_most("linear model: what gradient flow conserves, largest drift", 2e-3, most(drift)),
        Claim(
            "linear model: sharpness falls before it grows: least over the first value, largest over |beta|",
            0.999,
            most(least),
            0.0,
            "paper, from memory (its theorem); threshold ours",
            "at most",
        ),
        Claim("linear model: least sharpness over the first, |beta| = 0.5", 0.609, first, 0.15, _PROTOTYPE),
        Claim("linear model: population loss over that of 400,000 simulated rows", 1.0, population, 0.03, "derived"),
    ]


def _edge(results: Results) -> list[Claim]:
    made = []
    for factor in FACTORS:
        at = {"experiment": EDGE, "environment": f"factor={factor:g}"}
        what = f"linear model, step {factor:g} x 2 / final sharpness"
        largest, final = (results.mean(f"{name} sharpness over 2/eta", **at) for name in ("largest", "final"))
        if factor < 1:
            flow = results.mean("final sharpness over the flow's", **at)
            made += [
                _at_most(f"{what}: largest sharpness over 2 / eta", 1.0, largest, _PROTOTYPE),
                Claim(f"{what}: final sharpness over the flow's", 1.0, flow, 0.01, _PROTOTYPE),
            ]
            continue
        flips, excess = (results.mean(name, **at) for name in ("sign flips above", "final excess loss"))
        words = "share of steps above 2 / eta at which the use of the signal changes sign"
        made += [
            Claim(f"{what}: largest sharpness over 2 / eta", 1.0, largest, 0.0, _PROTOTYPE, "at least"),
            _at_most(f"{what}: final sharpness over 2 / eta", 1.0, final, _PROTOTYPE),
            Claim(f"{what}: {words}", 0.97, flips, 0.0, _PROTOTYPE, "at least"),
            _at_most(f"{what}: final excess loss", 1e-20, excess, _PROTOTYPE),
        ]
    name = "linear model: share of steps at which the two groups' losses move in opposite directions, least"
    oppose = least_of(results.values("groups oppose", experiment=EDGE))
    return [*made, Claim(name, 1.0, oppose, 0.0, "derived", "at least")]


def _equalities(results: Results) -> list[Claim]:
    def value(metric: str, experiment: str = PRODUCTS) -> float:
        return results.mean(metric, experiment=experiment)

    return [
        _at_most("products with the Hessian of 1,066 parameters: largest difference", 1e-12, value("difference")),
        _at_most("sharpness by power iteration: relative error", 1e-6, value("power, relative error")),
        _at_most("sharpness by Lanczos iterations: relative error", 1e-6, value("lanczos, relative error")),
        _at_most(
            "heavy ball, step size 0.1, and 1.0 with dampening 0.9: largest difference after 50 steps",
            1e-5,
            value("difference", RESCALED),
        ),
    ]


def _at_most(name: str, reference: float, measured: float, source: str = "derived") -> Claim:
    return Claim(name, reference, measured, 0.0, source, "at most")


def least_of(values: list[float]) -> float:
    """The least; NaN of none."""
    return min(values, default=float("nan"))
