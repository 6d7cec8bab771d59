"""The claims."""

from __future__ import annotations

import math
from typing import Any

from jobs.claims import Claim, Relation, Results, Scale
from jobs.papers.ence.names import (
    CENTRED,
    COVARIANCE,
    CURVES,
    DESCENT,
    ENERGY,
    FLATNESS,
    RATES,
    ROTATED,
    SEPARABLE,
    VALUES,
)

_PROTOTYPE = "ours, reference prototype"
_NAMES = {"nce": "NCE", "ence": "eNCE"}


def claims(results: Results, scale: Scale) -> list[Claim]:
    """State the claims; measured over whatever seeds and runs the scale has."""
    return [
        *_values(results),
        *_flatness(results),
        *_steps(results),
        *_geometry(results),
        *_newton(results),
        *_samples(results),
        *_energy(results),
    ]


def _values(results: Results) -> list[Claim]:
    known = {
        "ence": (0.262500965, -0.14438099, -0.00655706, 0.21049924, -0.06185493, 0.06562524),
        "nce": (0.1016911147, -0.05808341, -0.00597454, 0.14612144, -0.05479193, 0.05978335),
    }
    parts = ("loss", "gradient 0", "gradient 1", "hessian 00", "hessian 01", "hessian 11")
    made = []
    for loss, figures in known.items():
        at: dict[str, Any] = {"experiment": VALUES, "method": loss, "environment": ""}
        gaps = [abs(results.mean(part, **at) - figure) for part, figure in zip(parts, figures, strict=True)]
        words = f"{_NAMES[loss]} at one point (means 3 and -1): value, gradient and Hessian, largest error"
        made.append(Claim(words, 0.0, _largest(gaps), 1e-6, _PROTOTYPE))
        start = math.log(2) if loss == "nce" else 1.0
        made.append(
            Claim(f"{_NAMES[loss]} at the noise's parameters", start, results.mean("at noise", **at), 1e-12, "derived")
        )
        words = f"{_NAMES[loss]}: 1 - cosine of the gradients of L and log L"
        made.append(Claim(words, 0.0, results.mean("1 - cosine", **at), 1e-12, "derived"))
    for loss, distance, least in (
        ("nce", "4", 6.0427e-2),
        ("ence", "4", math.exp(-2)),
        ("nce", "8", 9.3535e-5),
        ("ence", "8", math.exp(-8)),
    ):
        at = {"experiment": VALUES, "method": loss, "environment": distance}
        source = "derived: the Bhattacharyya coefficient" if loss == "ence" else _PROTOTYPE
        made.append(
            Claim(f"R = {distance}: least {_NAMES[loss]}", least, results.mean("least", **at), 1e-4 * least, source)
        )
        words = f"R = {distance}: {_NAMES[loss]}'s gradient at the data's parameters, over L"
        made.append(Claim(words, 0.0, results.mean("slope", **at), 1e-10, "derived"))
    at = {"experiment": VALUES, "method": "ence", "environment": ""}
    made += [
        Claim("R = 100: log eNCE at the data's parameters", -1250.0, results.mean("far log", **at), 1e-9, "derived"),
        Claim("R = 100: its gradient there", 0.0, results.mean("far slope", **at), 1e-12, "derived"),
    ]
    return made


def _flatness(results: Results) -> list[Claim]:
    made = []
    for loss, source, figures in (
        ("ence", "derived", (33.97056, 321.99689, 4353.99977)),
        ("nce", _PROTOTYPE, (87.5, 2424.6, 117880.0)),
    ):
        for distance, figure in zip(("4", "8", "16"), figures, strict=True):
            at = {"experiment": FLATNESS, "method": loss, "environment": distance}
            words = f"R = {distance}: condition number of {_NAMES[loss]}'s Hessian at the data's parameters"
            made.append(Claim(words, figure, results.mean("condition", **at), 1e-3 * figure, source))
    for distance, figure in (("4", 1.03e-3), ("8", 1.73e-7), ("16", 2.69e-19)):
        at = {"experiment": FLATNESS, "method": "nce", "environment": distance}
        words = f"R = {distance}: smallest eigenvalue of NCE's Hessian there"
        made.append(Claim(words, figure, results.mean("smallest", **at), 5e-3 * figure, _PROTOTYPE))
    return made


def _steps(results: Results) -> list[Claim]:
    made = []
    expected = (
        ("nce", "gd", 1.0, {"2": 88, "3": 479, "4": 3022, "5": 22112}, 0.02, 0.0),
        ("ence", "gd", 1.0, {"2": 53, "3": 176, "4": 670, "5": 3029}, 0.02, 0.0),
        ("ence", "ngd", 0.1, {"2": 29, "4": 92, "8": 973, "16": 14826}, 0.01, 2.0),
        ("nce", "ngd", 0.1, {"2": 29, "4": 152, "8": 4861}, 0.05, 0.0),
    )
    for loss, optimizer, lr, figures, relative, least in expected:
        for distance, figure in figures.items():
            words = f"{_NAMES[loss]} + {optimizer.upper()}, step {lr:g}, R = {distance}: updates to come within 0.1"
            tolerance = max(least, relative * figure) if distance == "16" or not least else least
            made.append(Claim(words, figure, steps(results, loss, optimizer, lr, distance), tolerance, _PROTOTYPE))
    nce = [steps(results, "nce", "gd", 1.0, r) for r in "2345"]
    ratios = [after / before for before, after in zip(nce, nce[1:], strict=False)]
    growth = min((after - before for before, after in zip(ratios, ratios[1:], strict=False)), default=math.nan)
    far = {"experiment": DESCENT, "method": "gd", "loss": "nce", "environment": "16"}
    slope = math.log(steps(results, "ence", "ngd", 0.1, "16") / steps(results, "ence", "ngd", 0.1, "4")) / math.log(4)
    coarse = {"experiment": DESCENT, "method": "ngd", "loss": "ence", "lr": 0.3, "environment": "6"}
    made += [
        Claim(
            "NCE + GD is worse than exponential in R: ratio of neighbours' updates grows, least growth",
            0.0,
            growth,
            0.0,
            "paper, from memory: exponential in R^2",
            "at least",
        ),
        Claim(
            "NCE + GD, R = 16: distance after 5,000 updates, of 129.0",
            120.6,
            results.mean("final", **far),
            0.05,
            _PROTOTYPE,
        ),
        Claim(
            "eNCE + NGD: updates grow as R to the power, from 4 to 16",
            3.67,
            slope,
            0.5,
            f"paper, from memory: polynomial; {_PROTOTYPE}",
        ),
        Claim(
            "eNCE + NGD with step 0.3 at R = 6 stops at a distance of the step's order: least",
            0.1,
            results.mean("best", **coarse),
            0.0,
            _PROTOTYPE,
            "at least",
        ),
    ]
    for distance, factor in (("4", 1.6), ("8", 5.0)):
        ratio = steps(results, "nce", "ngd", 0.1, distance) / steps(results, "ence", "ngd", 0.1, distance)
        made.append(
            Claim(
                f"R = {distance}: NCE + NGD takes so many times as long as eNCE + NGD", factor, ratio, 0.15, _PROTOTYPE
            )
        )
    tuned = {
        name: results.mean("tuned", experiment=RATES, method=name[1], loss=name[0], environment="8")
        for name in (("nce", "gd"), ("ence", "ngd"), ("nce", "ngd"))
    }
    at = {"experiment": RATES, "method": "gd", "loss": "nce", "environment": "8"}
    made += [
        Claim(
            "R = 8, the best of ten step sizes from 0.1 to 100,000: NCE + GD arrives within 5,000 updates",
            0.0,
            results.mean("arrived", **at),
            0.0,
            "paper, from memory: GD stalls",
        ),
        Claim(
            "R = 8, the best of five step sizes: updates of eNCE + NGD",
            5000,
            tuned["ence", "ngd"],
            0.0,
            "ours",
            "at most",
        ),
    ]
    ours = "ours: what a baseline does"
    adam = steps(results, "ence", "adam", 0.1, "16") / steps(results, "ence", "ngd", 0.1, "16")
    log = results.mean("tuned", experiment=RATES, method="gd_log", loss="nce", environment="8")
    made += [
        Claim(
            "R = 16: updates of Adam on log eNCE over eNCE + NGD's, both of step 0.1", 1.0, adam, 0.0, ours, "at most"
        ),
        Claim(
            "R = 8, the best of six step sizes: updates of plain descent on log NCE", 5000, log, 0.0, ours, "at most"
        ),
    ]
    for dimension in (1, 16):
        best = {
            (loss, optimizer): results.mean(
                "best", experiment=CURVES, loss=loss, method=optimizer, dimension=dimension, step=100
            )
            for loss in ("nce", "ence")
            for optimizer in ("gd", "ngd")
        }
        words = f"{dimension}-d samples, R = 4, five runs: best distance after 100 updates"
        source = "paper, from memory: the order"
        made += [
            Claim(
                f"{words}, NCE + GD over NCE + NGD",
                1.0,
                best["nce", "gd"] / best["nce", "ngd"],
                0.0,
                source,
                "at least",
            ),
            Claim(
                f"{words}, NCE + NGD over eNCE + NGD",
                1.0,
                best["nce", "ngd"] / best["ence", "ngd"],
                0.0,
                source,
                "at least",
            ),
        ]
    return made


def steps(results: Results, loss: str, optimizer: str, lr: float, distance: str) -> float:
    """Updates that a run from the plan took; NaN if it never arrived."""
    return results.mean("steps", experiment=DESCENT, method=optimizer, loss=loss, lr=lr, environment=distance)


def _geometry(results: Results) -> list[Claim]:
    made = []
    for loss in ("ence", "nce"):
        at: dict[str, Any] = {"experiment": ROTATED, "loss": loss}
        line = results.mean("line", **at)
        turned = _largest([abs(value - line) for value in results.values("turned", **at)])
        words = f"{_NAMES[loss]} + NGD, |mean| = 8 in 16 dimensions: updates against one dimension"
        made += [
            Claim(f"{words}, along an axis: difference", 0.0, results.mean("axis", **at) - line, 0.0, "derived"),
            Claim(f"{words}, in a random direction: largest difference", 0.0, turned, 5.0, "derived but for rounding"),
        ]
    at = {"experiment": CENTRED, "method": "ence"}
    slow = {"experiment": CENTRED, "method": "nce"}
    made += [
        Claim("means 8 and -8: condition number of eNCE", 1.0, results.mean("condition", **at), 1e-9, "derived"),
        Claim(
            "means 8 and -8: updates of eNCE + NGD, of step 0.1", 160, results.mean("ngd steps", **at), 2, _PROTOTYPE
        ),
        Claim(
            "means 8 and -8: distance NCE + GD still has after 5,000",
            12.0,
            results.mean("gd best", **slow),
            0.05,
            _PROTOTYPE,
        ),
    ]
    return made


def _newton(results: Results) -> list[Claim]:
    made = []
    for loss, counts in (("nce", (7, 43)), ("ence", (5, 37))):
        for distance, count in zip(("4", "16"), counts, strict=True):
            words = f"{_NAMES[loss]} + Newton's full step, R = {distance}: updates"
            made.append(Claim(words, count, steps(results, loss, "newton", 1.0, distance), 1.0, _PROTOTYPE))
    for distance, figure in (("4", 4.3e-4), ("16", 8.3e-21)):
        at = {"experiment": FLATNESS, "method": "nce", "environment": distance}
        words = f"R = {distance}: step that Newton's guarantee allows NCE, least over largest curvature on the way"
        source = f"{_PROTOTYPE} (the step: paper, from memory)"
        made.append(Claim(words, figure, results.mean("guarantee", **at), 0.02 * figure, source))
    return made


def _samples(results: Results) -> list[Claim]:
    made = []
    known = {"nce": (3.045, 1.523, 1.274), "ence": (3.210, 1.605, 1.371)}
    for loss, theory in known.items():
        at: dict[str, Any] = {"experiment": COVARIANCE, "method": loss, "seed": 0}
        parts = ("00", "01", "11")
        gap = _largest([abs(results.mean(f"theory {p}", **at) - t) for p, t in zip(parts, theory, strict=True)])
        ratio = _largest([abs(results.mean(f"ratio {p}", **at) - 1) for p in parts])
        made += [
            Claim(f"R = 1: {_NAMES[loss]}'s asymptotic covariance, largest error", 0.0, gap, 1e-3, _PROTOTYPE),
            Claim("the same: of 400 samples of 2,000, over it, largest deviation from 1", 0.0, ratio, 0.2, "derived"),
        ]
    for loss, trace in (("nce", 85.4), ("ence", 217.0)):
        at = {"experiment": COVARIANCE, "method": loss, "seed": 0}
        words = f"R = 3: trace of {_NAMES[loss]}'s asymptotic covariance; eNCE is statistically worse for far noise"
        made.append(Claim(words, trace, results.mean("far trace", **at), 0.005 * trace, _PROTOTYPE))
    at = {"experiment": SEPARABLE}
    made += [
        Claim("R = 16, 1,000 examples, separable: least distance on the way", 1.2, _largest(results.values("best", **at)), 1.5, _PROTOTYPE, "at most"),
        Claim("the same, after 3,000 updates: distance, least of the seeds", 50.0, min(results.values("final", **at), default=math.nan), 0.0, f"{_PROTOTYPE}: 102", "at least"),
        Claim("the same: share of seeds that are warned of", 1.0, results.mean("separated", **at), 0.0, "derived"),
    ]  # fmt: skip
    return made


def _energy(results: Results) -> list[Claim]:
    def nll(loss: str, optimizer: str, lr: float) -> float:
        at: dict[str, Any] = {"experiment": ENERGY, "digits": "Digits", "method": optimizer, "loss": loss, "lr": lr}
        return results.mean("nll", **at)

    at: dict[str, Any] = {"experiment": ENERGY, "digits": "Digits"}
    alone = results.mean("noise nll", **at)
    broken = results.mean("finite", **at, method="gd", loss="ence", lr=0.6)
    gains = [alone - nll("ence", "gd", lr) for lr in (0.1, 0.3)]
    small = results.mean("finite", **at, method="ngd", loss="ence")
    made = [
        Claim("digits, 16 whitened components: NLL of the noise alone", 22.59, alone, 0.4, _PROTOTYPE),
        Claim(
            "eNCE + GD is stuck at steps 0.1 and 0.3: largest gain in NLL",
            0.25,
            _largest(gains),
            0.0,
            _PROTOTYPE,
            "at most",
        ),
        Claim("eNCE + GD at step 0.6: all figures finite", 0.0, broken, 0.0, _PROTOTYPE),
        Claim("eNCE + NGD at steps 0.01 to 0.1: all figures finite", 1.0, small, 0.0, _PROTOTYPE),
    ]
    few = results.mean("effective_samples", **at, method="ngd", loss="ence", lr=0.1)
    words = "eNCE + NGD at step 0.1: effective samples, of 20,000, that its NLL rests on"
    made.append(Claim(words, 100.0, few, 0.0, f"{_PROTOTYPE}: tens", "at most"))
    rows: list[tuple[str, float, float, Relation]] = [("0.03", 0.03, 20.8, "at most"), ("0.1", 0.1, 20.1, "at most")]
    made += [
        Claim(
            f"eNCE + NGD at step {words}: NLL", 21.8, nll("ence", "ngd", lr), 0.0, f"{_PROTOTYPE}: {figure}", relation
        )
        for words, lr, figure, relation in rows
    ]
    return made


def _largest(values: list[float]) -> float:
    """The largest; NaN where one is, or there is none."""
    return max(values) if values and not any(math.isnan(value) for value in values) else math.nan
