"""Domain-adjusted regression: the paper's domain model in simulation, and frozen features of shifted digits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cluster.trial import Trial
from jobs.claims import Claim, MetricRow, NamedFigure, Results, Scale, cell, scalar_rows, settings

if TYPE_CHECKING:
    import numpy as np
    import torch
    from matplotlib.figure import Figure

    from lightning_modules.data.environments import Dataset
    from lightning_modules.networks import Network

TITLE = (
    "Domain-Adjusted Regression or: ERM May Already Learn Features Sufficient for Out-of-Distribution Generalization"
)
SOURCE = "Rosenfeld, Ravikumar & Risteski, arXiv 2202.06856"

SPREADS = (0.0, 0.5, 1.0, 2.0)
SHIFTS = (0.5, 3.0, 6.0)
TEST_DOMAINS = 8
ANGLES = (0, 15, 30, 45, 75)
"""Sources, then the target, degrees."""
CONTRASTS = {
    "s0": (1.0, 0.0, 0.0),
    "s1": (0.8, 0.1, 0.05),
    "s2": (0.6, 0.2, 0.1),
    "s3": (0.9, 0.0, 0.1),
    "target": (0.25, 0.5, 0.1),
}
"""Environments of the contrast shift: (a, b, s), pixels in [0, 1] become a x + b + s N(0, 1)."""
ADAPTATION_SIZES = (50, 200, 800)
EPOCHS = 20
RIDGES = (1e-2, 1e-3, 1e-4)


def plan(scale: Scale) -> list[Trial]:
    """Cells of the small scale (minutes on two cores), or those and more seeds and sizes."""
    few = 4 if scale == "small" else 20
    pairs = dict.fromkeys([(s, 3.0) for s in SPREADS] + [(0.5, s) for s in SHIFTS])
    sizes = (1_000, 10_000, 100_000) if scale == "small" else (1_000, 3_000, 10_000, 30_000, 100_000, 1_000_000)
    cells = [cell("dare/simulation", "heads", seed, spread=a, shift=b) for a, b in pairs for seed in range(few)]
    cells += [cell("dare/regression", "symmetric", seed, n=n) for n in sizes for seed in range(few)]
    cells += [
        cell("dare/regression", root, seed, n=20_000) for root in ("symmetric", "cholesky") for seed in range(few)
    ]
    cells += [cell("dare/cheating", "arms", seed) for seed in range(2 if scale == "small" else 10)]
    cells += [cell("dare/contrast", "heads", seed) for seed in range(3 if scale == "small" else 10)]
    return cells


def run(trial: Trial) -> list[MetricRow]:
    """Compute one cell."""
    values = settings(trial)
    if trial.dataset == "dare/simulation":
        return scalar_rows(_simulation(trial.seed, **values))
    if trial.dataset == "dare/regression":
        return scalar_rows(_regression(trial.seed, trial.method, **values))
    return _cheating(trial.seed) if trial.dataset == "dare/cheating" else _contrast(trial.seed)


def _simulation(seed: int, spread: float, shift: float) -> dict[str, float]:
    """Accuracy of ERM, DARE, DARE with each test domain's covariance and the ideal Pi beta*, mean over test domains."""
    import numpy as np

    from lightning_modules.data.simulated.domain_adjusted_sem import domain_model
    from lightning_modules.domain_generalization.domain_adjusted import DomainAdjustedRegression, LogisticHead

    model = domain_model(5, 20, spread, shift, TEST_DOMAINS, seed)
    generator = np.random.default_rng([seed, 1])
    drawn = [model.sample(e, 2000, generator) for e in range(5 + TEST_DOMAINS)]
    x = np.concatenate([d[0] for d in drawn[:5]])
    y = np.concatenate([d[1] > 0 for d in drawn[:5]]).astype(np.int64)
    domain = np.repeat(np.arange(5), 2000)
    erm = LogisticHead().fit(x, y, domain)
    dare = DomainAdjustedRegression(shrinkage=0.0).fit(x, y, domain)
    scores = []
    for new, response, signal in drawn[5:]:
        truth = (response > 0).astype(np.int64)
        ideal = ((signal @ model.projected_beta > 0) == truth).mean()
        scores.append((erm.score(new, truth), dare.score(new, truth), dare.adapt(new).score(new, truth), ideal))
    direction = dare.beta_[:, 1] - dare.beta_[:, 0]
    cosine = direction @ model.projected_beta / np.linalg.norm(direction) / np.linalg.norm(model.projected_beta)
    means = dict(zip(("erm", "dare", "jit", "ideal"), np.mean(scores, 0).tolist(), strict=True))
    gap = float(np.abs(np.subtract(*np.array(scores)[:, 2:].mean(0))))
    return {**means, "jit_gap": gap, "cosine": float(cosine), "violation": dare.constraint_violation_}


def _regression(seed: int, root: str, n: int) -> dict[str, float]:
    """Distance of DARE's beta from Pi beta*, with the symmetric inverse root or with a Cholesky factor in its place."""
    import numpy as np
    import torch

    from lightning_modules.data.simulated.domain_adjusted_sem import domain_model
    from lightning_modules.domain_generalization.domain_adjusted import DomainAdjustedRegression, DomainStats

    class CholeskyStats(DomainStats):
        """The mistake to avoid: a root that whitens, but turns every domain its own way."""

        @property
        def inv_sqrt(self) -> torch.Tensor:
            root: torch.Tensor = torch.linalg.inv(torch.linalg.cholesky(self.covariance))
            return root

    model = domain_model(4, 12, 1.0, 3.0, 0, seed)
    generator = np.random.default_rng([seed, 2])
    drawn = [model.sample(e, n, generator) for e in range(4)]
    x, y = np.concatenate([d[0] for d in drawn]), np.concatenate([d[1] for d in drawn])
    domain = np.repeat(np.arange(4), n)
    stats = (CholeskyStats if root == "cholesky" else DomainStats).fit(x, domain)
    dare = DomainAdjustedRegression("regression", shrinkage=0.0, l2=0.0).fit(x, y, domain, stats=stats)
    error = np.linalg.norm(dare.beta_[:, 0] - model.projected_beta)
    return {
        "error": float(error),
        "length": float(np.linalg.norm(model.projected_beta)),
        "violation": dare.constraint_violation_,
    }


def _digits(seed: int, names: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray, np.random.Generator]]:
    """Deal the digits to environments: images [n, 28, 28] in [0, 1], labels, and a generator each."""
    import numpy as np

    from lightning_modules.data.digits import load_digits

    images, labels = load_digits()
    order = np.random.default_rng([seed, 3]).permutation(len(labels))
    return [
        (images[rows].astype(np.float32) / 255, labels[rows], np.random.default_rng([seed, 4, e]))
        for e, rows in enumerate(order[e :: len(names)] for e in range(len(names)))
    ]


def rotated_digits(seed: int) -> Dataset:
    """Digits turned by 0, 15, 30, 45 (sources) and 75 degrees (target), 1,000 each."""
    from lightning_modules.data.digits import rotate
    from lightning_modules.data.environments import Dataset, Environment

    names = [str(angle) for angle in ANGLES]
    dealt = zip(ANGLES, names, _digits(seed, names), strict=True)
    parts = tuple(Environment(name, rotate(images, angle), labels) for angle, name, (images, labels, _) in dealt)
    return Dataset(f"DareRotated(seed={seed})", parts, tuple(map(str, range(10))), "mlp")


def contrast_digits(seed: int) -> Dataset:
    """Digits under the contrast, brightness and noise of `CONTRASTS`, 1,000 each."""
    import numpy as np

    from lightning_modules.data.environments import Dataset, Environment

    parts = []
    for (name, (a, b, s)), (images, labels, generator) in zip(
        CONTRASTS.items(), _digits(seed, list(CONTRASTS)), strict=True
    ):
        noise = s * generator.standard_normal(images.shape, dtype=np.float32)
        parts.append(Environment(name, (a * images + b + noise).astype(np.float32), labels))
    return Dataset(f"DareContrast(seed={seed})", tuple(parts), tuple(map(str, range(10))), "mlp")


def backbone(generator: torch.Generator) -> Network:
    """A network 784-256-64-10 of ReLU units; its features are the last 64."""
    import torch
    from torch import nn

    from lightning_modules.networks import Network

    featurizer = nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU())
    network = Network(featurizer, nn.Linear(64, 10))
    with torch.no_grad():
        for layer in (module for module in network.modules() if isinstance(module, nn.Linear)):
            bound = 1 / math.sqrt(layer.in_features)
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)
    return network


def _cheating(seed: int) -> list[MetricRow]:
    from lightning_modules.domain_generalization.domain_adjusted import CheatingExperiment, DomainAdjustedRegression

    target = str(ANGLES[-1])
    experiment = CheatingExperiment(backbone, rotated_digits(seed), target, seed, epochs=EPOCHS, l2=1e-4)
    network = experiment.train(experiment.sources)
    values = experiment.arms(network)
    dare = DomainAdjustedRegression().fit(*experiment.features(network, experiment.sources))
    new, truth, _ = experiment.features(network, [target], "out")
    values["dare"] = dare.score(new, truth)
    values["dare_jit"] = dare.adapt(experiment.features(network, [target])[0]).score(new, truth)
    return scalar_rows(values, environment=target, split="out")


def _contrast(seed: int) -> list[MetricRow]:
    import numpy as np

    from lightning_modules.domain_generalization.domain_adjusted import (
        CheatingExperiment,
        DomainAdjustedRegression,
        DomainStats,
        LogisticHead,
        OracleHead,
    )

    experiment = CheatingExperiment(backbone, contrast_digits(seed), "target", seed, epochs=EPOCHS)
    network = experiment.train(experiment.sources)
    x, y, domain = experiment.features(network, experiment.sources)
    kept = {e: experiment.features(network, [e], "out")[:2] for e in experiment.sources}
    labelled = experiment.features(network, ["target"])
    new, truth, _ = experiment.features(network, ["target"], "out")
    everything = [np.concatenate(pair) for pair in zip((x, y, domain), labelled, strict=True)]
    stats = DomainStats.fit(x, domain)

    def choose(fit: Callable[[float], Any], adapts: bool = False) -> Any:
        """Take the ridge that does best on examples kept out of the sources; the target has no say."""
        heads = [fit(l2) for l2 in RIDGES]
        scores = [
            np.mean([(h.adapt_to(stats, e) if adapts else h).score(*examples) for e, examples in kept.items()])
            for h in heads
        ]
        return heads[int(np.argmax(scores))]

    def centred(l2: float) -> DomainAdjustedRegression:
        return DomainAdjustedRegression(center="subtract", l2=l2).fit(x, y, domain, stats=stats)

    def constrained(l2: float) -> DomainAdjustedRegression:
        return DomainAdjustedRegression(l2=l2).fit(x, y, domain, stats=stats)

    adapting = choose(centred, adapts=True)
    values = {
        "head": choose(lambda l2: LogisticHead(l2).fit(x, y, domain)).score(new, truth),
        "cheat_head": choose(lambda l2: OracleHead(l2).fit(*everything)).score(new, truth),
        "centred_without_target": choose(centred).score(new, truth),
        "constraint_jit": choose(constrained, adapts=True).adapt(labelled[0]).score(new, truth),
        "constraint": choose(constrained).score(new, truth),
    }
    rows = scalar_rows(values, environment="target", split="out")
    for size in ADAPTATION_SIZES:
        value = adapting.adapt(labelled[0][:size]).score(new, truth)
        rows += scalar_rows({"centred_jit": value}, step=size, environment="target", split="out")
    return rows


def claims(results: Results, scale: Scale) -> list[Claim]:
    """State the claims; measured over whatever seeds the scale has."""
    sim: dict[str, Any] = {"experiment": "dare/simulation"}
    standard = {**sim, "spread": 1.0, "shift": 3.0}
    regression: dict[str, Any] = {"experiment": "dare/regression"}
    largest = {**regression, "n": 20_000}
    small_shift = {**sim, "spread": 0.5, "shift": 0.5}
    flat = [results.mean("jit", **sim, spread=s, shift=3.0) for s in SPREADS]
    decay = [results.mean("dare", **sim, spread=s, shift=3.0) for s in SPREADS]
    sizes, errors = results.curve("error", "n", **regression, method="symmetric")
    at = dict(zip(sizes, errors, strict=True))
    slope = math.log10(at[100_000] / at[1_000]) / 2 if {1_000, 100_000} <= set(at) else math.nan
    chance = {"experiment": "dare/cheating"}
    shifted = {"experiment": "dare/contrast"}
    centred_jit = results.mean("centred_jit", **shifted, step=ADAPTATION_SIZES[-1])
    arms = {name: results.mean(name, **chance) for name in ("head", "cheat_head", "cheat_all", "dare")}
    gained = (arms["cheat_head"] - arms["head"]) / (arms["cheat_all"] - arms["head"])
    prototype = "ours, reference prototype"
    return [
        Claim("constraint holds at every training mean", 0.0, _worst(results, "violation"), 1e-10, "paper, constraint"),
        Claim(
            "regression: error of beta at n = 10,000, worst seed",
            0.04,
            max(results.values("error", **regression, n=10_000), default=math.nan),
            0.0,
            prototype,
            "at most",
        ),
        Claim("regression: error falls as n to the power", -0.5, slope, 0.1, "derived: 1/sqrt n"),
        Claim(
            "symmetric root: error at n = 20,000, worst seed",
            0.022,
            max(results.values("error", **largest, method="symmetric"), default=math.nan),
            0.01,
            prototype,
            "at most",
        ),
        Claim(
            "Cholesky root: error at n = 20,000, best seed",
            0.10,
            min(results.values("error", **largest, method="cholesky"), default=math.nan),
            0.0,
            prototype,
            "at least",
        ),
        Claim(
            "adapted just in time, DARE reaches the ideal: largest gap",
            0.015,
            max(results.values("jit_gap", **standard), default=math.nan),
            0.0,
            prototype,
            "at most",
        ),
        Claim(
            "DARE finds the direction of the projected beta*: least cosine",
            0.99,
            min(results.values("cosine", **standard), default=math.nan),
            0.0,
            "derived",
            "at least",
        ),
        Claim(
            "DARE without target data above ERM, mean over seeds",
            0.0,
            results.mean("dare", **standard) - results.mean("erm", **standard),
            0.0,
            "paper, from memory: minimax under its domain model; sizes ours",
            "at least",
        ),
        Claim(
            "DARE adapted just in time above ERM, mean over seeds",
            0.03,
            results.mean("jit", **standard) - results.mean("erm", **standard),
            0.0,
            prototype,
            "at least",
        ),
        Claim(
            "spread of covariances does not hurt adapted DARE: range of accuracy",
            0.0,
            max(flat) - min(flat),
            0.01,
            prototype,
        ),
        Claim("the average adjustment decays with spread 0 to 2", 0.083, decay[0] - decay[-1], 0.03, prototype),
        Claim(
            "ERM wins under a small mean shift (0.5)",
            0.0,
            results.mean("erm", **small_shift) - results.mean("jit", **small_shift),
            0.0,
            prototype,
            "at least",
        ),
        Claim(
            "cheating, rotated digits: last layer above ERM's head, worst seed",
            0.12,
            _least_gap(results, "cheat_head", "head", **chance),
            0.0,
            prototype,
            "at least",
        ),
        Claim(
            "cheating, rotated digits: above random features, worst seed",
            0.08,
            _least_gap(results, "cheat_head", "cheat_random_features", **chance),
            0.0,
            prototype,
            "at least",
        ),
        Claim(
            "cheating: share of the whole network's gain that the last layer has",
            0.5,
            gained,
            0.0,
            "paper, in words (close to the whole network, far above ERM's head); one half is ours",
            "at least",
        ),
        Claim("DARE leaves rotated digits as they are", 0.0, arms["dare"] - arms["head"], 0.1, prototype),
        Claim(
            "contrast: centred DARE adapted just in time above ERM's head, mean over seeds",
            0.08,
            centred_jit - results.mean("head", **shifted),
            0.0,
            prototype,
            "at least",
        ),
        Claim(
            "contrast: centred DARE adapted just in time above ERM's head, worst seed",
            0.08,
            _least_gap(results, "centred_jit", "head", **shifted),
            0.0,
            prototype,
            "at least",
        ),
        Claim(
            "contrast: centred DARE near the cheating last layer, mean over seeds",
            -0.06,
            centred_jit - results.mean("cheat_head", **shifted),
            0.0,
            prototype,
            "at least",
        ),
        Claim(
            "contrast: centred DARE near the cheating last layer, worst seed",
            -0.06,
            _least_gap(results, "centred_jit", "cheat_head", **shifted),
            0.0,
            prototype,
            "at least",
        ),
        Claim(
            "contrast: the mean outside the span breaks the constraint form: centred above it, worst seed",
            0.1,
            _least_gap(results, "centred_jit", "constraint_jit", **shifted),
            0.0,
            prototype,
            "at least",
        ),
        Claim(
            "contrast: centring without target data does harm: below ERM's head, worst seed",
            0.0,
            _least_gap(results, "head", "centred_without_target", **shifted),
            0.0,
            prototype,
            "at least",
        ),
    ]


def _worst(results: Results, metric: str) -> float:
    return max((abs(value) for value in results.values(metric)), default=math.nan)


def _least_gap(results: Results, above: str, below: str, **conditions: Any) -> float:
    """Smallest difference over seeds; of a curve the last step counts."""
    high, low = (
        {row["seed"]: row["value"] for row in results.rows(metric=metric, **conditions)} for metric in (above, below)
    )
    return min((high[seed] - low[seed] for seed in high.keys() & low.keys()), default=math.nan)


def figures(results: Results) -> list[NamedFigure]:
    """Accuracy against the spread of covariances, the cheating arms, and the size of the adaptation sample."""
    return [_spread_figure(results), _cheating_figure(results), _adaptation_figure(results)]


_COLORS = {"erm": "#D55E00", "dare": "#0072B2", "jit": "#009E73"}


def _axes(xlabel: str) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(xlabel)
    axes.set_ylabel("accuracy on the new domain")
    axes.grid(alpha=0.3)
    return figure, axes


def _spread_figure(results: Results) -> NamedFigure:
    figure, axes = _axes("spread of the covariances' log-eigenvalues")
    names = {"erm": "ERM", "dare": "DARE, average adjustment", "jit": "DARE, adapted just in time"}
    for (metric, label), marker in zip(names.items(), "osD", strict=True):
        axes.plot(
            *results.curve(metric, "spread", experiment="dare/simulation", shift=3.0),
            marker=marker,
            color=_COLORS[metric],
            label=label,
        )
    axes.plot(
        *results.curve("ideal", "spread", experiment="dare/simulation", shift=3.0), "k--", label="ideal, sign of Πβ*·ε"
    )
    axes.legend()
    caption = "Mean over seeds and test domains. With the target's covariance the spread costs nothing."
    return NamedFigure("Accuracy against the spread of domain covariances", caption, figure)


def _cheating_figure(results: Results) -> NamedFigure:
    figure, axes = _axes("")
    arms = {
        "head": "ERM head",
        "source_refit": "refit on\nsources",
        "dare": "DARE",
        "cheat_random_features": "cheat, random\nfeatures",
        "cheat_head": "cheat,\nlast layer",
        "cheat_all": "cheat, whole\nnetwork",
    }
    for place, metric in enumerate(arms):
        values = results.values(metric, experiment="dare/cheating")
        color = "#0072B2" if metric.startswith("cheat") else "#999999"
        axes.bar(place, sum(values) / max(len(values), 1), color=color, width=0.7)
        axes.plot([place] * len(values), values, "k.", markersize=5)
    axes.set_xticks(range(len(arms)), arms.values(), fontsize=8)
    caption = "Digits turned by 75 degrees after training on 0 to 45; points are seeds. The features allow much more than ERM's head shows."
    return NamedFigure("Cheating: the last layer retrained with target labels", caption, figure)


def _adaptation_figure(results: Results) -> NamedFigure:
    figure, axes = _axes("unlabelled target examples used to adapt")
    conditions = {"experiment": "dare/contrast"}
    axes.plot(
        *results.curve("centred_jit", "step", **conditions),
        marker="D",
        color=_COLORS["jit"],
        label="centred DARE, adapted",
    )
    for metric, label, style in (("cheat_head", "cheat, last layer", "--"), ("head", "ERM head", ":")):
        axes.axhline(results.mean(metric, **conditions), color="k", linestyle=style, label=label)
    axes.set_xscale("log")
    axes.set_xticks(ADAPTATION_SIZES, [str(size) for size in ADAPTATION_SIZES])
    axes.minorticks_off()
    axes.legend()
    caption = "Digits under a contrast and brightness never trained on, mean over seeds."
    return NamedFigure("How many unlabelled examples adaptation takes", caption, figure)
