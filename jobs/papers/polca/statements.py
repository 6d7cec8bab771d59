"""The claims."""

from __future__ import annotations

import math

from jobs.claims import Claim, Relation, Results, Scale, mean
from jobs.papers.polca.names import ADDITION, FULL, FULL_TABLE, IDENTITIES, INTERVALS, PLANTED, TEXT

_PROTOTYPE = "ours, reference prototype"


def claims(results: Results, scale: Scale) -> list[Claim]:
    """State the claims; those about the paper's own sizes only where these have been run."""
    made = [*_identities(results), *_planted(results), *_intervals(results), *_training(results), *_captured(results)]
    made += _carries(results)
    if results.rows(experiment=FULL):
        made += _full(results)
    return made + _text(results) if results.rows(experiment=TEXT) else made


def _identities(results: Results) -> list[Claim]:
    statements: list[tuple[str, str, str, float, Relation]] = [
        (
            "quadratic",
            "ratio",
            "quadratic loss, all eigenvectors: ratio form against each row's true change",
            1e-10,
            "at most",
        ),
        ("quadratic", "ratio against trapezoid", "the same: ratio against trapezoid", 1e-10, "at most"),
        ("quadratic", "own curvature, mean", "the same: each row's own curvature, error of the mean", 1e-10, "at most"),
        (
            "quadratic",
            "own curvature, rows",
            "the same: each row's own curvature, largest error of a row",
            1.0,
            "at least",
        ),
        (
            "complete",
            "first order",
            "complete basis: first order against gradient times movement, a token",
            1e-8,
            "at most",
        ),
        ("complete", "mean of curves", "mean of tokens' curves against the curve of the mean loss", 1e-10, "at most"),
        ("gradients", "relative", "forward mode against explicit gradients, float32, relative", 1e-5, "at most"),
        ("eigenvectors", "1 - cosine", "Lanczos against dense eigenvectors of P H P: 1 - cosine", 1e-10, "at most"),
        ("eigenvectors", "eigenvalue", "the same: eigenvalue", 1e-12, "at most"),
        ("eigenvectors", "orthonormal", "the same: largest entry of B B^T - I", 1e-4, "at most"),
    ]
    made = []
    for method, metric, words, bar, relation in statements:
        value = results.mean(metric, experiment=IDENTITIES, method=method)
        source = _PROTOTYPE + ": 26" if relation == "at least" else "derived"
        made.append(Claim(words, bar, value, 0.0, source, relation))
    return made


def _planted(results: Results) -> list[Claim]:
    def values(metric: str, method: str, order: str = "trapezoid") -> list[float]:
        return results.values(metric, experiment=PLANTED, method=method, order=order)

    def least(metric: str, method: str) -> float:
        return min(values(metric, method), default=math.nan)

    def most(metric: str, method: str, order: str = "trapezoid") -> float:
        return max(values(metric, method, order), default=math.nan)

    clusters = results.values("clusters", experiment=PLANTED, method="loss change")
    words = "planted skill, every seed"
    best = _PROTOTYPE + ": 0.954, 1.000, 0.997"
    made = [
        Claim(
            f"{words}: F1 of the best cluster, Hessian basis, least", 0.9, least("f1", "hessian"), 0.0, best, "at least"
        ),
        Claim(
            f"{words}: homogeneity, Hessian basis, least",
            1.0,
            least("homogeneity", "hessian"),
            0.02,
            _PROTOTYPE,
        ),
        Claim(
            f"{words}: F1 of clusters of exact losses, most",
            0.4,
            most("f1", "exact loss", "none"),
            0.0,
            _PROTOTYPE + ": 0.10, 0.11, 0.34",
            "at most",
        ),
        Claim(f"{words}: clusters of loss changes, most", 0.0, max(clusters, default=math.nan), 0.0, _PROTOTYPE),
        Claim(
            f"{words}: F1, random basis, most",
            0.65,
            most("f1", "random"),
            0.0,
            _PROTOTYPE + ": 0.48, 0.57, 0.57",
            "at most",
        ),
        Claim(
            f"{words}: F1, Hessian basis above shuffled checkpoints, mean",
            0.0,
            mean(values("f1", "hessian")) - mean(values("f1", "shuffled")),
            0.0,
            "paper's order in addition: 0.973 and 0.856",
            "at least",
        ),
        Claim(
            f"{words}: F1, Hessian basis above Fisher, mean",
            0.0,
            mean(values("f1", "hessian")) - mean(results.values("f1", experiment=PLANTED, method="fisher")),
            0.0,
            "paper's order in addition: 0.973 and 0.664",
            "at least",
        ),
        Claim(
            f"{words}: F1, trapezoid above first order, mean",
            0.0,
            mean(values("f1", "hessian")) - mean(values("f1", "hessian", "1")),
            0.0,
            "paper's order in addition: 0.973 and 0.948",
            "at least",
        ),
    ]
    ends = [results.values(f"{name} end", experiment=PLANTED, environment="break") for name in ("cluster", "loss")]
    later = min((a - b for a, b in zip(*ends, strict=True)), default=math.nan)
    source = "derived: the hidden feature is learned last"
    name = f"{words}: the best cluster breaks after the mean loss, steps, least"
    made.append(Claim(name, 1.0, later, 0.0, source, "at least"))
    for method, low, high, proto in (
        ("hessian", 0.75, 0.9, "0.82, 0.79, 0.83"),
        ("random", 0.15, 0.35, "K / D = 0.31"),
    ):
        for side, bar, value in (("at least", low, least("share", method)), ("at most", high, most("share", method))):
            name = f"{words}: share of the loss change captured, {method} basis, {'least' if bar == low else 'most'}"
            made.append(Claim(name, bar, value, 0.0, f"{_PROTOTYPE}: {proto}", side))  # type: ignore[arg-type]
    return made


def _intervals(results: Results) -> list[Claim]:
    share = {step: results.mean("share", experiment=INTERVALS, step=step) for step in (1, 2, 5, 10, 20, 40)}
    reference = {1: 0.9994, 2: 0.9977, 5: 0.9856, 10: 0.945, 20: 0.835, 40: 0.533}
    words = "complete basis, recorded every"
    made = [
        Claim(f"{words} {step} steps: share captured", value, share[step], 0.02 if step > 5 else 0.001, _PROTOTYPE)
        for step, value in reference.items()
    ]
    ratio = (1 - share[2]) / (1 - share[1]) if share[1] != 1 else math.nan
    return [
        *made,
        Claim(f"{words} 1 step: share captured, least", 0.999, share[1], 0.0, _PROTOTYPE, "at least"),
        Claim("missing share grows as the interval squared: from 1 to 2 steps", 4.0, ratio, 0.5, "derived"),
    ]


def _small(results: Results, metric: str, environment: str, seed: int) -> float:
    at = {"experiment": ADDITION, "steps": 1000, "lr": 1e-3, "seed": seed}
    return results.mean(metric, environment=environment, **at)


def _training(results: Results) -> list[Claim]:
    ordered = [_small(results, "in order", "training", seed) for seed in range(3)]
    made = [
        Claim(
            "addition, seeds 0 to 2: digits are learned in the order 1000s, 100s, then 10s and 1s: share of seeds",
            1.0,
            mean(ordered),
            0.0,
            _PROTOTYPE,
        )
    ]
    for seed in range(3):
        value = _small(results, "largest at the end", "training", seed)
        name = f"addition, seed {seed}: loss of the worst place after 1,000 steps"
        made.append(Claim(name, 0.1, value, 0.0, _PROTOTYPE + ": 0.065, of one seed", "at most"))
    for seed in range(3):
        value = _small(results, "largest carry share", "exact loss", seed)
        name = f"addition, seed {seed}: largest carry share of a cluster of exact losses (60 tokens or more)"
        source = _PROTOTYPE + ": 0.49; paper 0.514"
        made.append(Claim(name, 0.6, value, 0.0, source, "at most"))
    return made


def _captured(results: Results) -> list[Claim]:
    made = []
    for seed in range(3):
        words = f"addition, seed {seed}"
        pca = _small(results, "captured", "pca", seed)
        hessian = _small(results, "captured", "hessian", seed)
        first = _small(results, "captured, order 1", "hessian", seed)
        made += [
            Claim(
                f"{words}: loss change along 10 principal components, trapezoid",
                -1.5,
                pca,
                0.0,
                _PROTOTYPE + ": -2.11 of -2.95",
                "at most",
            ),
            Claim(f"{words}: the same along 10 Hessian directions", 0.0, hessian, 0.3, _PROTOTYPE + ": +0.05"),
            Claim(
                f"{words}: first order's claim along them, below the trapezoid's",
                -0.3,
                first - hessian,
                0.0,
                _PROTOTYPE + ": -0.67",
                "at most",
            ),
        ]
    worst = max((_small(results, "orthonormal", "hessian", seed) for seed in range(3)), default=math.nan)
    made.append(
        Claim(
            "addition: largest entry of B B^T - I, 10 directions of 101,632 weights",
            1e-4,
            worst,
            0.0,
            "derived",
            "at most",
        )
    )
    errors = [
        [_small(results, name, "second order", seed) for seed in range(3)] for name in ("ratio", "trapezoid", "exact")
    ]
    words = "addition, every seed: root mean square error of the second-order term"
    made += [
        Claim(
            f"{words}, ratio form, most", 0.145, max(errors[0]), 0.0, "paper, with its model and step size", "at most"
        ),
        Claim(
            f"{words}, trapezoid's over the ratio's, most",
            1.0,
            _most_ratio(errors[1], errors[0]),
            0.0,
            "ours",
            "at most",
        ),
        Claim(
            f"{words}, ratio's over the term itself, most",
            1.0,
            _most_ratio(errors[0], errors[2]),
            0.0,
            "ours",
            "at most",
        ),
    ]
    return made


def _most_ratio(above: list[float], below: list[float]) -> float:
    return max(a / b if b else math.nan for a, b in zip(above, below, strict=True))


def _carries(results: Results) -> list[Claim]:
    found = [_small(results, "carry homogeneity", name, seed) for name in ("hessian", "pca") for seed in range(3)]
    ran = any(not math.isnan(_small(results, "clusters", "hessian", seed)) for seed in range(3))
    largest = max((value for value in found if not math.isnan(value)), default=0.0 if ran else math.nan)
    source = "paper, 9.5 M parameters, learning rate 1e-5"
    name = "addition: largest carry homogeneity of an eligible cluster, Hessian and trajectory bases"
    return [Claim(name, 0.973, largest, 0.05, source)]


def _full(results: Results) -> list[Claim]:
    made = []
    for name, (homogeneity, hidden) in FULL_TABLE.items():
        at = {"experiment": FULL, "environment": name}
        words = f"addition at the paper's size, {name}"
        value = results.mean("carry homogeneity", **at)
        made.append(Claim(f"{words}: largest carry homogeneity", homogeneity, value, 0.05, "paper, tables 1 and 2"))
        value = results.mean("hidden", **at)
        made.append(Claim(f"{words}: share of clusters that break late", hidden, value, 0.1, "paper, tables 1 and 2"))
    at = {"experiment": FULL, "environment": "hessian"}
    for metric, reference in (("carry recall", 0.736), ("carry f1", 0.838)):
        value = results.mean(metric, **at)
        made.append(Claim(f"addition at the paper's size, POLCA: {metric}", reference, value, 0.1, "paper"))
    return made


def _text(results: Results) -> list[Claim]:
    kept = results.mean("directions kept", experiment=TEXT) / results.mean("directions", experiment=TEXT)
    clustered = results.mean("directions with clusters", experiment=TEXT) / results.mean(
        "directions kept", experiment=TEXT
    )
    return [
        Claim("text: share of directions along which the loss falls", 26 / 30, kept, 0.15, "paper: 26 of 30"),
        Claim("text: share of these that have a cluster", 22 / 26, clustered, 0.15, "paper: 22 of 26, describable"),
    ]
