"""The claims."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

from jobs.claims import Claim, Results, Scale
from jobs.papers.opposing_signals.names import (
    BETAS,
    EDGE,
    FACTORS,
    LATE,
    LINEAR,
    NATURAL,
    OPTIMIZERS,
    PLANTED,
    SETTLED,
    SIMULATED,
)

_PROTOTYPE = "ours, reference prototype"
_MEMORY = "paper, from memory; threshold ours"
_DERIVED = "derived"
_SIGNAL = {"experiment": PLANTED, "m": 30, "magnitude": 10.0}


def claims(results: Results, scale: Scale) -> list[Claim]:
    """State the claims; measured over whatever seeds the scale has."""
    return [
        *_flow(results),
        *_edge(results),
        *_sharpness(results),
        *_groups(results),
        *_selectors(results),
        *_optimizers(results),
    ]


def _flow(results: Results) -> list[Claim]:
    at = {"experiment": LINEAR, "alpha": 20.0}
    made = []
    for size, reference in zip(BETAS, (1.058, 1.028, 1.014, 1.007, 1.004), strict=True):
        place = f"beta={size:g}"
        value = results.mean("final over alpha |beta|", **at, environment=place)
        name = f"linear model, |beta| = {size:g}: final sharpness over alpha |beta|"
        made.append(Claim(name, reference, value, 0.001, _PROTOTYPE))
    exact = [abs(value - 1) for value in results.values("final over the closed form", **at)]
    least = results.values("least over the start", **at)
    made += [
        Claim(
            "linear model: final sharpness against the closed form, largest relative error",
            1e-3,
            _most(exact),
            0.0,
            _DERIVED,
            "at most",
        ),
        Claim(
            "linear model: what gradient flow conserves, largest drift",
            2e-3,
            _most(results.values("drift", **at)),
            0.0,
            _DERIVED,
            "at most",
        ),
        Claim(
            "linear model: sharpness falls before it grows: least over the first value, largest over |beta|",
            1.0,
            _most(least),
            -1e-3,
            "paper (its theorem)",
            "at most",
        ),
        Claim(
            "linear model: least sharpness at |beta| = 0.5 over the first",
            0.61,
            results.mean("least over the start", **at, environment="beta=0.5"),
            0.15,
            _PROTOTYPE,
        ),
        Claim(
            "linear model: population loss over that of 400,000 simulated rows",
            1.0,
            results.mean("loss over the sample's", experiment=SIMULATED),
            0.03,
            _DERIVED,
        ),
    ]
    return made


def _edge(results: Results) -> list[Claim]:
    made = []
    for factor in FACTORS:
        at = {"experiment": EDGE, "environment": f"factor={factor:g}"}
        what = f"linear model, step {factor:g} x 2 / final sharpness"
        largest, final = (results.mean(f"{name} sharpness over 2/eta", **at) for name in ("largest", "final"))
        if factor < 1:
            flow = results.mean("final sharpness over the flow's", **at)
            made += [
                Claim(f"{what}: largest sharpness over 2 / eta", 1.0, largest, 0.0, _DERIVED, "at most"),
                Claim(f"{what}: final sharpness over the flow's", 1.0, flow, 0.01, _PROTOTYPE),
            ]
        else:
            made += [
                Claim(f"{what}: largest sharpness over 2 / eta", 1.0, largest, 0.0, _DERIVED, "at least"),
                Claim(f"{what}: final sharpness over 2 / eta", 1.0, final, 0.0, _DERIVED, "at most"),
                Claim(
                    f"{what}: share of steps above 2 / eta at which the signal's use changes sign",
                    0.97,
                    results.mean("sign flips above", **at),
                    0.0,
                    _PROTOTYPE,
                    "at least",
                ),
                Claim(
                    f"{what}: final excess loss",
                    1e-20,
                    results.mean("final excess loss", **at),
                    0.0,
                    _PROTOTYPE,
                    "at most",
                ),
            ]
    oppose = results.values("groups oppose", experiment=EDGE)
    made.append(
        Claim(
            "linear model: share of steps at which the two groups' losses move in opposite directions, least",
            1.0,
            _least(oppose),
            0.0,
            _DERIVED,
            "at least",
        )
    )
    return made


def _sharpness(results: Results) -> list[Claim]:
    largest, late = {}, {}
    for mode in ("opposing", "same", "none"):
        by_seed: dict[int, list[tuple[int, float]]] = {}
        for row in results.rows(metric="sharpness over 2/eta", **_SIGNAL, method=mode):
            by_seed.setdefault(row["seed"], []).append((row["step"], row["value"]))
        largest[mode] = [10 * max(value for _, value in curve) for curve in by_seed.values()]
        late[mode] = [_median([value for step, value in curve if step >= SETTLED]) for curve in by_seed.values()]
    ratios = [one / other for one, other in zip(largest["opposing"], largest["same"], strict=False)]
    return [
        Claim("planted digits, opposing: largest sharpness, mean", 11.8, _mean(largest["opposing"]), 1.5, _PROTOTYPE),
        Claim(
            "planted digits, opposing: median sharpness over 2 / eta after step 250, least",
            0.85,
            _least(late["opposing"]),
            0.0,
            _PROTOTYPE,
            "at least",
        ),
        Claim(
            "planted digits, opposing: median sharpness over 2 / eta after step 250, largest",
            1.1,
            _most(late["opposing"]),
            0.0,
            _PROTOTYPE,
            "at most",
        ),
        Claim("planted digits, one class: largest sharpness, mean", 3.5, _mean(largest["same"]), 1.2, _PROTOTYPE),
        Claim("planted digits, no signal: largest sharpness, mean", 2.55, _mean(largest["none"]), 0.4, _PROTOTYPE),
        Claim(
            "planted digits, controls: median sharpness over 2 / eta after step 250, largest",
            0.25,
            _most([*late["same"], *late["none"]]),
            0.0,
            _PROTOTYPE,
            "at most",
        ),
        Claim(
            "planted digits: largest sharpness of opposing signals over that of one class, least",
            2.4,
            _least(ratios),
            0.0,
            _PROTOTYPE,
            "at least",
        ),
    ]


def _groups(results: Results) -> list[Claim]:
    def values(metric: str, mode: str = "opposing") -> list[float]:
        return results.values(metric, **_SIGNAL, method=mode, environment="")

    natural = {"experiment": NATURAL, "environment": ""}
    return [
        Claim(
            "planted digits, the 20 that rise most: share that is planted, least",
            0.9,
            _least(values("precision of the risers")),
            0.0,
            _PROTOTYPE,
            "at least",
        ),
        Claim(
            "planted digits, the 20 that fall most: share that is planted, least",
            0.9,
            _least(values("precision of the fallers")),
            0.0,
            _PROTOTYPE,
            "at least",
        ),
        Claim(
            "planted digits: share of steps at which the groups' losses move in opposite directions, least",
            0.95,
            _least(values("groups oppose")),
            0.0,
            _MEMORY,
            "at least",
        ),
        Claim(
            "planted digits: share of steps after which a group's loss turns round, least",
            0.95,
            _least(values("groups alternate")),
            0.0,
            _MEMORY,
            "at least",
        ),
        Claim(
            "planted digits: overlap of the risers with the next step's fallers, least",
            0.9,
            _least(values("overlap")),
            0.0,
            _MEMORY,
            "at least",
        ),
        Claim(
            "planted digits: cosine of the groups' gradients, largest",
            -0.9,
            _most(values("cosine of the groups")),
            0.0,
            _PROTOTYPE,
            "at most",
        ),
        Claim(
            "planted digits, one class: cosine of the groups' gradients, least",
            0.9,
            _least(values("cosine of the groups", "same")),
            0.0,
            _PROTOTYPE,
            "at least",
        ),
        Claim(
            "planted digits: alignment of a group's gradient with the sharpest direction, least",
            0.9,
            _least(values("alignment with the sharpest direction")),
            0.0,
            _PROTOTYPE,
            "at least",
        ),
        Claim(
            "planted digits, one class: that alignment, largest",
            0.35,
            _most(values("alignment with the sharpest direction", "same")),
            0.0,
            _PROTOTYPE,
            "at most",
        ),
        Claim(
            "planted digits: share of all examples that rise when the mean loss does",
            0.475,
            _mean(values("fraction up when the loss rises")),
            0.125,
            "paper, from memory: about half",
        ),
        Claim(
            "planted digits: share of the sharpest direction in the first layer, mean",
            0.5,
            _mean(values("mass of the first layer")),
            0.0,
            _MEMORY,
            "at least",
        ),
        Claim(
            "digits as they are, squared loss: share of steps at which the groups found move in opposite directions",
            0.9,
            results.mean("groups oppose", **natural, method="Digits"),
            0.0,
            "ours",
            "at least",
        ),
    ]


def _selectors(results: Results) -> list[Claim]:
    made = []
    lists = [
        results.mean(f"precision of the {name}", **_SIGNAL, method="opposing", environment="")
        for name in ("risers", "fallers")
    ]
    change = _mean(lists)
    for name in ("loss", "gradient norm", "sharpest direction"):
        other = results.mean("precision", **_SIGNAL, method="opposing", environment=name)
        made.append(
            Claim(
                f"planted digits: precision of 40 by change of loss minus 40 by {name} (step {2 * LATE})",
                0.0,
                change - other,
                0.0,
                "ours: reviewers' question",
                "at least",
            )
        )
    return made


def _optimizers(results: Results) -> list[Claim]:
    def best(name: str, mode: str) -> float:
        return results.mean("best", experiment=OPTIMIZERS, method=name, mode=mode)

    figures = {"SGD": (0.024, 0.0004), "Adam": (0.014, 0.0004), "SplitSGD": (0.022, 0.002)}
    made = []
    for name, references in figures.items():
        for mode, reference in zip(("opposing", "none"), references, strict=True):
            words = "with the signal" if mode == "opposing" else "without it"
            made.append(
                Claim(
                    f"mini-batches of 128, {words}: training loss, best {name}",
                    reference,
                    best(name, mode),
                    0.01 if mode == "opposing" else 0.002,
                    _PROTOTYPE,
                )
            )
    made += [
        Claim(
            "mini-batches of 128, with the signal: Adam's loss over SGD's",
            0.8,
            best("Adam", "opposing") / best("SGD", "opposing"),
            0.0,
            _PROTOTYPE,
            "at most",
        ),
        Claim(
            "mini-batches of 128, without it: Adam's loss minus SGD's",
            0.0,
            best("Adam", "none") - best("SGD", "none"),
            0.002,
            _PROTOTYPE,
        ),
        Claim(
            "mini-batches of 128, with the signal: SplitSGD's loss over Adam's",
            1.25,
            best("SplitSGD", "opposing") / best("Adam", "opposing"),
            0.0,
            "paper, from memory: close; threshold ours",
            "at most",
        ),
    ]
    return made


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found) if found else math.nan


def _least(values: Iterable[float]) -> float:
    return min(values, default=math.nan)


def _most(values: Iterable[float]) -> float:
    return max(values, default=math.nan)


def _median(values: list[float]) -> float:
    return median(values) if values else math.nan
