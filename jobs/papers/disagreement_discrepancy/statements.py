"""The claims."""

from __future__ import annotations

import math
from typing import Any

from jobs.claims import Claim, Results, Scale, mean
from jobs.papers.disagreement_discrepancy.measured import MEASURED
from jobs.papers.disagreement_discrepancy.names import BASELINES, CIRCLE, DELTA, DIGITS, FLIGHTS, LOSSES, PUBLISHED

LOGITS, FEATURES = "Dis2 logits", "Dis2 features"
WITHOUT = f"{LOGITS} w/o delta"
_PROTOTYPE = "ours, reference prototype"
_EARLIER = "ours, measured when this was written"
_FIGURE = "the paper's official result tables, as recomputed by a later paper (ODD, UAI 2025)"


def pairs(results: Results, estimator: str, **conditions: Any) -> tuple[list[float], list[float]]:
    """Predicted and true errors of a method, a pair a shift."""
    true = {
        (row["seed"], row["method"], *_place(row)): row["value"] for row in results.rows(metric="true", **conditions)
    }
    found = [
        (row["value"], true[row["seed"], row["method"], *_place(row)])
        for row in results.rows(metric=estimator, **conditions)
        if (row["seed"], row["method"], *_place(row)) in true
    ]
    return [p for p, _ in found], [t for _, t in found]


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["experiment"], row["environment"]


def summary(results: Results, estimator: str, **conditions: Any) -> Any:
    """`summarise_estimates` of a method; figures are NaN where nothing was measured."""
    from lightning_modules.error_bounds.summary import Summary, summarise_estimates

    predicted, true = pairs(results, estimator, **conditions)
    return summarise_estimates(predicted, true) if predicted else Summary(math.nan, math.nan, math.nan, 0)


def violations(results: Results, delta: float, estimator: str = LOGITS, **conditions: Any) -> float:
    """Share of shifts whose true error is above the bound at another delta, from what is stored."""
    from lightning_modules.error_bounds.concentration import concentration_term

    sizes = {}
    for name in ("n_source", "n_target"):
        for row in results.rows(metric=name, **conditions):
            sizes[name, row["seed"], row["method"], row["environment"]] = int(row["value"])
    predicted = results.rows(metric=f"{estimator} w/o delta", **conditions)
    true = {(r["seed"], r["method"], r["environment"]): r["value"] for r in results.rows(metric="true", **conditions)}
    above = []
    for row in predicted:
        key = row["seed"], row["method"], row["environment"]
        epsilon = concentration_term(sizes["n_source", *key], sizes["n_target", *key], delta)
        above.append(true[key] > row["value"] + epsilon)
    return sum(above) / len(above) if above else math.nan


def claims(results: Results, scale: Scale) -> list[Claim]:
    """State the claims; measured over whatever seeds the scale has."""
    return [
        *_circle_claims(results),
        *_digit_claims(results),
        *_loss_claims(results),
        *_flight_claims(results),
        *(_published_claims(results) if scale == "paper" else []),
    ]


def _circle_claims(results: Results) -> list[Claim]:
    sixth = {"experiment": CIRCLE, "method": "sixth"}
    gaps = [abs(value - (1 / 2 - 1 / 6)) for value in results.values("discrepancy", **sixth)]
    margin = [b - t for b, t in zip(results.values("bound", **sixth), results.values("true", **sixth), strict=True)]
    broken = {"experiment": CIRCLE, "method": "broken"}
    missed = [t - b for b, t in zip(results.values("bound", **broken), results.values("true", **broken), strict=True)]
    return [
        Claim(
            "circle: largest distance of the discrepancy from the supremum 1/2 - a/pi",
            0.04,
            max(gaps, default=math.nan),
            0.0,
            "derived; tolerance ours",
            "at most",
        ),
        Claim(
            "circle: the worst labelling by a linear critic is covered, least margin",
            0.0,
            min(margin, default=math.nan),
            0.0,
            "paper: the bound under its assumption",
            "at least",
        ),
        Claim(
            "circle, assumption broken on purpose: true error above the bound, least",
            0.0,
            min(missed, default=math.nan),
            0.0,
            _PROTOTYPE,
            "at least",
        ),
    ]


def _digit_claims(results: Results) -> list[Claim]:
    augmented = {"experiment": DIGITS, "method": "augmented"}
    found = {m: summary(results, m, **augmented) for m in (LOGITS, WITHOUT, FEATURES, *BASELINES)}
    best = max((found[m].coverage for m in BASELINES), default=math.nan)
    seeds = sorted({row["seed"] for row in results.rows(metric="true", **augmented)})
    least = min((summary(results, LOGITS, **augmented, seed=s).coverage for s in seeds), default=math.nan)
    plain = {"experiment": DIGITS, "method": "plain"}
    raw = {"experiment": DIGITS, "method": "mlp"}
    baseline = max((summary(results, m, **plain).coverage for m in BASELINES), default=math.nan)
    made = [
        Claim("digits: coverage of the bound on logits, worst seed", 0.875, least, 0.0, _PROTOTYPE, "at least"),
        Claim(
            "digits: coverage of the bound on logits above every baseline's",
            0.3,
            found[LOGITS].coverage - best,
            0.0,
            _PROTOTYPE,
            "at least",
        ),
        Claim("digits: MAE of the bound on logits", 0.26, found[LOGITS].mae, 0.06, _PROTOTYPE),
        Claim("digits: MAE without concentration, on logits", 0.14, found[WITHOUT].mae, 0.05, _PROTOTYPE),
        Claim(
            "digits: coverage without concentration above every baseline's",
            0.2,
            found[WITHOUT].coverage - best,
            0.0,
            _PROTOTYPE,
            "at least",
        ),
        Claim(
            "digits: mean bound on features above that on logits",
            0.0,
            mean(pairs(results, FEATURES, **augmented)[0]) - mean(pairs(results, LOGITS, **augmented)[0]),
            0.0,
            "paper: smaller spaces are tighter and less safe",
            "at least",
        ),
        Claim(
            "digits: violations stay below delta in (0.2, 0.1, 0.05, 0.01, 0.005), largest excess",
            0.0,
            max((violations(results, d, **augmented) - d for d in (0.2, 0.1, 0.05, 0.01, 0.005)), default=math.nan),
            0.0,
            "paper, read off its figure",
            "at most",
        ),
        Claim(
            "digits, no augmentation: coverage of the bound on logits",
            0.926,
            summary(results, LOGITS, **plain).coverage,
            0.08,
            _PROTOTYPE,
        ),
        Claim(
            "digits, no augmentation: coverage without concentration above every baseline's",
            0.2,
            summary(results, WITHOUT, **plain).coverage - baseline,
            0.0,
            _PROTOTYPE,
            "at least",
        ),
        Claim(
            "digits, an MLP on raw pixels: coverage of the bound on logits falls below 1",
            0.99,
            summary(results, LOGITS, **raw).coverage,
            0.0,
            _PROTOTYPE,
            "at most",
        ),
    ]
    return made + _table_claims(results, "digits", augmented)


def _table_claims(results: Results, suite: str, conditions: dict[str, Any]) -> list[Claim]:
    """Each method's coverage, MAE and overestimation over a suite, beside what it measured when this was written."""
    made = []
    for name, reference in MEASURED[suite].items():
        s = summary(results, name, **conditions)
        found = zip(("coverage", "MAE", "overestimation"), (s.coverage, s.mae, s.overestimation), strict=True)
        for (what, value), figure, tolerance in zip(found, reference, (0.06, 0.03, 0.04), strict=True):
            made.append(Claim(f"{suite}: {what} of {name}", figure, value, tolerance, _EARLIER))
    return made


def _loss_claims(results: Results) -> list[Claim]:
    found = {loss: results.mean(f"discrepancy {loss}", experiment=DIGITS, method="augmented") for loss in LOSSES}
    return [
        Claim(
            "critics' losses: dis2 finds more discrepancy than minus the cross-entropy",
            0.0,
            found["dis2"] - found["neg_ce"],
            0.0,
            "paper; " + _PROTOTYPE,
            "at least",
        ),
        Claim(
            "critics' losses: -log(1 - p) finds more than dis2 with ten classes",
            0.0,
            found["one_minus_p"] - found["dis2"],
            0.0,
            _PROTOTYPE + " (the paper reports dis2 doing better)",
            "at least",
        ),
    ]


def _flight_claims(results: Results) -> list[Claim]:
    flights = {"experiment": FLIGHTS}
    if not results.rows(metric="true", **flights):
        return []
    bound = summary(results, LOGITS, **flights)
    nominal = Claim(
        "flights: coverage of the bound on logits over months",
        1 - DELTA,
        bound.coverage,
        0.0,
        "paper, of its shifts",
        "at least",
    )
    return [nominal, *_table_claims(results, "flights", flights)]


def _published_claims(results: Results) -> list[Claim]:
    ordinary = {"experiment": PUBLISHED, "method": ("ERM-aug-imagenet", "ERM-aug-rand", "BN_adapt", "FixMatch")}
    if not results.rows(metric="true", **ordinary):
        return []
    reference = {
        LOGITS: (0.153, 0.989),
        WITHOUT: (0.081, 0.733),
        FEATURES: (0.285, 1.0),
        "Dis2 pca:4": (0.256, 1.0),
        "Dis2 pca:16": (0.206, 1.0),
        "Dis2 pca:32": (0.166, 0.94),
        "Dis2 pca:64": (0.134, 0.83),
        "Dis2 pca:128": (0.110, 0.62),
        "AC": (0.109, 0.1),
        "DoC": (0.106, 0.167),
        "ATC-NE": (0.066, 0.289),
        "COT": (0.070, 0.256),
    }
    made = []
    for method, (mae, coverage) in reference.items():
        s = summary(results, method, **ordinary)
        made.append(Claim(f"published features: MAE of {method}", mae, s.mae, 0.01, _FIGURE))
        made.append(Claim(f"published features: coverage of {method}", coverage, s.coverage, 0.03, _FIGURE))
    return made
