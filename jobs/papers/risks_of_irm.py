"""The Risks of Invariant Risk Minimization: a threshold in the number of environments, and a failure beyond it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError
from cluster.trial import Trial
from jobs.claims import Claim, MetricRow, NamedFigure, Relation, Results, Scale, cell, scalar_rows, settings

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

TITLE = "The Risks of Invariant Risk Minimization"
SOURCE = "Rosenfeld, Ravikumar & Risteski, ICLR 2021, arXiv 2010.05761"

THRESHOLD, SAMPLES, NONLINEAR, COLORED = (
    f"risks_of_irm/{name}" for name in ("threshold", "samples", "nonlinear", "colored_mnist")
)
SPURIOUS = 6  # d_e; the invariant features are three, ||mu_c|| = 0.8
REFERENCE_DRAW = 3  # of the environmental means, to which the reference figures belong
PENALTY = 1e5  # end of the population path

_PROTOTYPE = "derived here, reference prototype"
_COLOURS = {
    "closed_form": "#000000",
    "invariant": "#000000",
    "erm": "#d55e00",
    "irmv1": "#0072b2",
    "irmv1_from_erm": "#56b4e9",
    "vrex": "#009e73",
    "mm_rex": "#cc79a7",
    "construction": "#0072b2",
}
_LABELS = {
    "closed_form": "IRM, closed form",
    "erm": "ERM",
    "irmv1": "IRMv1",
    "irmv1_from_erm": "IRMv1 from ERM alone",
    "vrex": "V-REx",
    "mm_rex": "MM-REx",
    "invariant": "invariant predictor",
    "construction": "construction",
}


def plan(scale: Scale) -> list[Trial]:
    """Cells: population and sample problems for each number of environments; the construction; ColoredMNIST."""
    small = scale == "small"
    counts = (2, 3, 4, 5, 6, 7, 8, 9, 12) if small else tuple(range(2, 17))
    population = ("closed_form", "erm", "irmv1", "irmv1_from_erm", "vrex", "mm_rex")
    cells = [
        cell(THRESHOLD, m, environments=e, scale=1.0, draws=8 if small else 100) for e in counts for m in population
    ]
    cells.append(cell(THRESHOLD, "closed_form", environments=3, scale=3.0, draws=8 if small else 100))
    cells += [
        cell(SAMPLES, method, environments=e, n=5000, draws=4 if small else 20, steps=2000)
        for e in ((3, 6, 7, 12) if small else range(2, 13))
        for method in ("erm", "irmv1", "vrex")
    ]
    cells += [
        cell(NONLINEAR, "construction", spurious=d, environments=3, scale=0.35, eps=eps, n=100_000)
        for d in ((16, 64, 128) if small else (16, 32, 64, 128, 256))
        for eps in ((1.6,) if small else (1.3, 1.6, 2.0))
    ]
    return cells + [
        cell(COLORED, m, seed, steps=801, penalty=1e4, anneal_steps=100, l2=3e-3, lr=2e-3, restart=restart)
        for m, restart in (("erm", False), ("irmv1", False), ("vrex", False), ("irmv1", True), ("vrex", True))
        for seed in range(3 if small else 10)
    ]


def run(trial: Trial) -> list[MetricRow]:
    """Compute one cell."""
    work: dict[str, Callable[..., Iterator[MetricRow]]]
    work = {THRESHOLD: _threshold, SAMPLES: _samples, NONLINEAR: _nonlinear, COLORED: _colored_mnist}
    if trial.dataset not in work:
        raise InputError(f"experiment: unknown {trial.dataset!r}; choose one of {', '.join(work)}")
    return list(work[trial.dataset](trial, **settings(trial)))


def _threshold(trial: Trial, environments: int, scale: float, draws: int) -> Iterator[MetricRow]:
    import numpy as np
    import torch

    from lightning_modules.data.simulated.gaussian_sem import random_sem
    from lightning_modules.domain_generalization.invariant_prediction.linear import linear_irm_solution
    from lightning_modules.domain_generalization.invariant_prediction.population import population_optimum

    sems = [random_sem(environments, spurious=SPURIOUS, scale=scale, seed=draw) for draw in range(draws)]
    mean, var = (torch.tensor(np.stack(part)) for part in zip(*(s.latent_moments() for s in sems), strict=True))
    if trial.method == "closed_form":
        w = torch.tensor(np.stack([linear_irm_solution(sem) for sem in sems]))
    else:
        name = trial.method.removesuffix("_from_erm")
        w = population_optimum(name, mean, var, restart=not trial.method.endswith("_from_erm"))
    yield from _evaluate(w, mean, var)


def _samples(trial: Trial, environments: int, n: int, draws: int, steps: int) -> Iterator[MetricRow]:
    import numpy as np
    import torch

    from lightning_modules.data.simulated.gaussian_sem import random_sem
    from lightning_modules.domain_generalization.invariant_prediction.linear import train_linear

    sems = [random_sem(environments, spurious=SPURIOUS, seed=draw) for draw in range(draws)]
    mean, var = (torch.tensor(np.stack(part)) for part in zip(*(s.latent_moments() for s in sems), strict=True))
    every = np.arange(environments)
    # Streams of the draw, not of the trial: the objectives meet the same examples.
    drawn = [sem.sample(every, n, np.random.default_rng([draw, 1])) for draw, sem in enumerate(sems)]
    x, y = (torch.tensor(np.stack([d[k] for d in drawn]), dtype=torch.float32) for k in (0, 1))
    w = train_linear(x, y, [trial.method], lam=1e4, steps=steps, anneal_steps=200, lr=0.02)
    yield from _evaluate(w[:, 0].double(), mean, var)


def _evaluate(w: Tensor, mean: Tensor, var: Tensor) -> Iterator[MetricRow]:
    """Exact figures of weights [draws, d] under models [draws, E, d], one row a draw and metric."""
    from lightning_modules.domain_generalization.invariant_prediction.population import (
        population_accuracy,
        population_risk,
    )

    invariant = mean.shape[-1] - SPURIOUS
    flipped, each, spurious_only = mean.clone(), w.unsqueeze(1), w.clone()
    flipped[..., invariant:] *= -1
    spurious_only[:, :invariant] = 0
    found = {
        "w_e_norm": w[:, invariant:].norm(dim=1),
        "train_risk": population_risk(each, mean, var).mean(1),
        "train_accuracy": population_accuracy(each, mean, var).mean(1),
        "flip_accuracy": population_accuracy(each, flipped, var).mean(1),
        "spurious_only_risk": population_risk(spurious_only.unsqueeze(1), mean, var).mean(1),
        "invariant_risk": population_risk(2 * _invariant_part(mean), mean, var).mean(1),
    }
    for name, values in found.items():
        for draw, value in enumerate(values.tolist()):
            yield 0, f"draw{draw}", "test", name, value


def _invariant_part(mean: Tensor) -> Tensor:
    part = mean.clone()
    part[..., -SPURIOUS:] = 0
    return part


def _nonlinear(trial: Trial, spurious: int, environments: int, scale: float, eps: float, n: int) -> Iterator[MetricRow]:
    import numpy as np
    import torch

    from lightning_modules.data.simulated.gaussian_sem import random_sem
    from lightning_modules.domain_generalization.invariant_prediction import population
    from lightning_modules.domain_generalization.invariant_prediction.nonlinear import NonlinearFailure

    sem = random_sem(environments, spurious=spurious, scale=scale, seed=REFERENCE_DRAW)
    failure = NonlinearFailure(sem, eps)
    generator = np.random.default_rng(trial.stream("examples"))
    x, y, z = sem.sample(np.arange(environments), n, generator)
    d_c = len(sem.mu_c)
    mean, var = map(torch.as_tensor, sem.latent_moments())
    erm = torch.as_tensor(failure.erm)
    yield from scalar_rows(
        {
            "outside": 1 - failure.in_balls(z[..., d_c:]).mean(),
            "chi_square_tail": failure.chi_square_tail(),
            "p_eps_bound": failure.p_eps_bound(),
            "accuracy": (y * failure.predict(x) > 0).mean(),
            "invariant_accuracy": (y * (z @ failure.invariant) > 0).mean(),
            "erm_accuracy": (y * (z @ failure.erm) > 0).mean(),
            "penalty": failure.penalty(x, y),
            "penalty_scale": failure.p_eps_bound() ** 2 * (spurious + float(np.square(sem.env_means).sum(1).mean())),
            "erm_penalty": float(population.population_grad(erm, mean, var).square().sum(1).mean()),
        },
        split="in",
    )
    for delta in (0.5, 1.0, 2.0):
        far = dataclasses.replace(sem, env_means=failure.far_mean(delta)[None], env_vars=np.ones(1))
        x, y, z = far.sample(0, n, generator)
        predicted = failure.predict(x)
        yield from scalar_rows(
            {
                "outside": 1 - failure.in_balls(z[:, d_c:]).mean(),
                "accuracy": (y * predicted > 0).mean(),
                "invariant_accuracy": (y * (z @ failure.invariant) > 0).mean(),
                "erm_accuracy": (y * (z @ failure.erm) > 0).mean(),
                "differs_from_erm": ((predicted > 0) != (z @ failure.erm > 0)).mean(),
                "erm_share_bound": failure.erm_share_bound(delta),
            },
            environment=f"far{delta:g}",
        )


def colored_digits(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Deal the 5,000 digits into ColoredMNIST's environments: 2,000 each for training, 1,000 for the test.

    The label is "the digit is below 5", flipped at rate 0.25; the colour is the label flipped at rates 0.1, 0.2 and
    0.9 (Arjovsky et al., arXiv 1907.02893, whose sizes are ten times larger).

    Returns:
        x [5000, 392] float32 in [0, 1], 14x14 pixels in two colour channels, and y [5000] in {-1, +1}; rows 0 to 1999
        and 2000 to 3999 are the training environments.
    """
    import numpy as np

    from lightning_modules.data.digits import COLOR_FLIP, LABEL_NOISE, load_digits

    generator = np.random.default_rng(seed)
    images, digits = load_digits()
    order = generator.permutation(len(digits))
    label = (digits[order] < 5) ^ (generator.random(len(order)) < LABEL_NOISE)
    rates = np.repeat(list(COLOR_FLIP.values()), [2000, 2000, len(order) - 4000])
    colour = label ^ (generator.random(len(order)) < rates)
    small = images[order, ::2, ::2].reshape(len(order), 1, -1).astype(np.float32) / 255
    x = small * (np.arange(2) == colour[:, None])[..., None]
    return x.reshape(len(order), -1).astype(np.float32), np.where(label, 1, -1).astype(np.float32)


def _colored_mnist(
    trial: Trial, steps: int, penalty: float, anneal_steps: int, l2: float, lr: float, restart: bool
) -> Iterator[MetricRow]:
    import torch

    from lightning_modules.domain_generalization.invariant_prediction.nonlinear import train_mlp

    x, y = map(torch.as_tensor, colored_digits(trial.seed))
    generator = torch.Generator().manual_seed(trial.stream("weights"))
    environments = x[:4000].view(2, 2000, -1), y[:4000].view(2, 2000)
    lam = 1.0 if trial.method == "erm" else penalty
    logits = train_mlp(*environments, trial.method, generator, 24, lam, steps, anneal_steps, lr, l2, restart)
    correct = (logits(x) * y > 0).double()
    for name, split, part in (("train", "in", correct[:4000]), ("test", "test", correct[4000:])):
        yield steps, name, split, "accuracy", part.mean().item()


def claims(results: Results, scale: Scale) -> list[Claim]:
    """Statements of theorems from the paper; figures from the reference prototype."""
    return [
        *_population_claims(results),
        *_sample_claims(results),
        *_nonlinear_claims(results),
        *_colored_claims(results),
    ]


def _population_claims(results: Results) -> Iterator[Claim]:
    def at(metric: str, method: str, e: int, scale: float = 1.0) -> float:
        draw = f"draw{REFERENCE_DRAW}"
        found = results.values(
            metric, experiment=THRESHOLD, method=method, environments=e, scale=scale, environment=draw
        )
        return found[0] if found else math.nan

    def every(metric: str, method: str, counts: tuple[int, ...]) -> list[float]:
        return results.values(metric, experiment=THRESHOLD, method=method, environments=counts, scale=1.0)

    counts = tuple(results.curve("flip_accuracy", "environments", experiment=THRESHOLD, scale=1.0)[0])
    few, many = (tuple(e for e in counts if (e <= SPURIOUS) == side) for side in (True, False))
    excess = [
        a - b
        for e in few
        for a, b in zip(
            every("train_risk", "closed_form", (e,)), every("invariant_risk", "closed_form", (e,)), strict=True
        )
    ]
    theorem = "paper, theorem on linear representations (any d_e; here 6)"
    yield Claim("E <= d_e: IRM prefers a predictor that uses z_e (its risk less the invariant one, all draws)",
                0.0, max(excess, default=math.nan), 0.0, theorem, "at most")  # fmt: skip
    yield Claim("E > d_e: largest weight of IRM's optimum on z_e, all draws",
                0.0, max(every("w_e_norm", "closed_form", many), default=math.nan), 1e-9, theorem, "at most")  # fmt: skip
    closed = {3: (2.5600, 0.1636, 0.2542), 4: (2.1581, 0.2171, 0.3481), 5: (0.7012, 0.4144, 0.7231),
              6: (0.0180, 0.4487, 0.7881), 7: (0.0, 0.4487, 0.7881), 8: (0.0, 0.4487, 0.7881)}  # fmt: skip
    for e, figures_e in closed.items():
        for metric, figure in zip(("w_e_norm", "train_risk", "flip_accuracy"), figures_e, strict=True):
            name = f"IRM's closed form, E={e}: {metric.replace('_', ' ')}"
            yield Claim(name, figure, at(metric, "closed_form", e), 5e-4, _PROTOTYPE)
    for e, figure in {3: 0.211, 5: 0.537, 6: 0.519, 7: 0.627, 8: 0.578}.items():
        yield Claim(f"ERM, E={e}: flip accuracy", figure, at("flip_accuracy", "erm", e), 3e-3, _PROTOTYPE)
    for method in ("irmv1", "vrex", "mm_rex"):
        source = _PROTOTYPE if method != "mm_rex" else "ours, by analogy with V-REx"
        for metric, group, bound in (("w_e_norm", (3, 5, 6), 5e-3), ("w_e_norm", (7, 8, 12), 3e-2),
                                     ("flip_accuracy", (3, 5, 6, 7, 8, 12), 5e-3)):  # fmt: skip
            gaps = [abs(at(metric, method, e) - at(metric, "closed_form", e)) for e in group]
            name = f"{_LABELS[method]}, penalty {PENALTY:.0e}, E={','.join(map(str, group))}: {metric.replace('_', ' ')} off the closed form by"
            yield Claim(name, bound, _worst(gaps), 0.0, source, "at most")
        shares = _share_reached(results, method, counts)
        yield Claim(f"{_LABELS[method]}: share of all draws and E within 0.005 of the closed form's flip accuracy",
                    1.0, shares, 0.02, "ours", "at least")  # fmt: skip
    yield Claim("IRMv1 by continuation from the ERM optimum alone: share of all draws and E that reaches it",
                1.0, _share_reached(results, "irmv1_from_erm", counts), 0.02, _PROTOTYPE, "at least")  # fmt: skip
    yield Claim("Means x 3, E=3: risk of IRM's predictor on z_e alone",
                2e-4, at("spurious_only_risk", "closed_form", 3, 3.0), 1e-4, _PROTOTYPE)  # fmt: skip
    yield Claim("Means x 3, E=3: risk of the invariant predictor",
                0.4487, at("invariant_risk", "closed_form", 3, 3.0), 5e-4, _PROTOTYPE)  # fmt: skip
    yield Claim("Means x 3, E=3: flip accuracy of IRM's optimum",
                2e-4, at("flip_accuracy", "closed_form", 3, 3.0), 1e-4, _PROTOTYPE)  # fmt: skip


def _worst(gaps: list[float]) -> float:
    """The largest; NaN if one is missing."""
    return math.nan if any(map(math.isnan, gaps)) else max(gaps)


def _share_reached(results: Results, method: str, counts: tuple[int, ...]) -> float:
    pairs = [
        pair
        for e in counts
        for pair in zip(
            *(
                results.values("flip_accuracy", experiment=THRESHOLD, method=m, environments=e, scale=1.0)
                for m in (method, "closed_form")
            ),
            strict=False,
        )
    ]
    return sum(abs(a - b) <= 5e-3 for a, b in pairs) / len(pairs) if pairs else math.nan


def _sample_claims(results: Results) -> Iterator[Claim]:
    def values(method: str, e: int, draws: tuple[str, ...] | None) -> list[float]:
        only: dict[str, Any] = {} if draws is None else {"environment": draws}
        return results.values("flip_accuracy", experiment=SAMPLES, method=method, environments=e, **only)

    three = ("draw0", "draw1", "draw2")
    size = "5000 examples an environment"
    low = min(values("irmv1", 12, three), default=math.nan)
    high = max(values("irmv1", 3, three), default=math.nan)
    erm = max(values("erm", 12, three), default=math.nan)
    yield Claim(f"{size}, E=12: IRMv1's lowest flip accuracy of draws 0-2", 0.77, low, 0.0, _PROTOTYPE, "at least")
    yield Claim(f"{size}, E=12: the same, range 0.787-0.793", 0.79, low, 3e-3, _PROTOTYPE)
    yield Claim(f"{size}, E=12: ERM's highest flip accuracy of draws 0-2", 0.732, erm, 0.01, _PROTOTYPE, "at most")
    yield Claim(f"{size}, E=3: IRMv1's highest flip accuracy of draws 0-2", 0.65, high, 0.0, _PROTOTYPE, "at most")
    lowest = min(values("irmv1", 12, None), default=math.nan)
    yield Claim(f"{size}, E=12: IRMv1's lowest flip accuracy of all draws", 0.77, lowest, 0.0, "ours", "at least")


def _nonlinear_claims(results: Results) -> Iterator[Claim]:
    def at(metric: str, d: int, environment: str = "") -> float:
        return results.mean(metric, experiment=NONLINEAR, spurious=d, eps=1.6, environment=environment)

    theorem = "paper, theorem on non-linear representations (constants from memory)"
    shares: list[tuple[str, float, float, float, str, Relation]] = [
        ("share of training data outside the balls", 0.0014, at("outside", 64), 2e-4, _PROTOTYPE, "equals"),
        ("that share is below the chi-square tail", at("chi_square_tail", 64), at("outside", 64), 0.0, "derived here", "at most"),
        ("the tail is below the bound p_eps", at("p_eps_bound", 64), at("chi_square_tail", 64), 0.0, theorem, "at most"),
        ("bound p_eps", 0.0561, at("p_eps_bound", 64), 1e-4, _PROTOTYPE, "equals"),
        ("training accuracy", 0.788, at("accuracy", 64), 3e-3, _PROTOTYPE, "equals"),
        ("training accuracy of ERM", 0.966, at("erm_accuracy", 64), 3e-3, _PROTOTYPE, "equals"),
        ("IRM's gradient penalty (sampling error 3e-6)", 1e-6, at("penalty", 64), 1e-5, _PROTOTYPE, "at most"),
        ("IRM's gradient penalty against p_eps^2 (d_e + mean ||mu_e||^2)", at("penalty_scale", 64), at("penalty", 64), 0.0, theorem, "at most"),
        ("far test data outside the balls", 1.0, at("outside", 64, "far1"), 1e-3, _PROTOTYPE, "equals"),
        ("accuracy on far test data", 0.0, at("accuracy", 64, "far1"), 1e-3, _PROTOTYPE, "equals"),
        ("invariant predictor's accuracy on far test data", 0.787, at("invariant_accuracy", 64, "far1"), 5e-3, _PROTOTYPE, "equals"),
        ("share of far test data not treated as by ERM, delta=2", at("erm_share_bound", 64, "far2"), at("differs_from_erm", 64, "far2"), 0.0, theorem, "at most"),
    ]  # fmt: skip
    for name, reference, measured, tolerance, source, relation in shares:
        yield Claim(f"Non-linear, d_e=64: {name}", reference, measured, tolerance, source, relation)
    for d, tail, bound in ((16, 0.0599, 0.487), (128, 1.9e-5, 3.15e-3)):
        yield Claim(f"Non-linear, d_e={d}: chi-square tail", tail, at("chi_square_tail", d), 0.01 * tail, _PROTOTYPE)
        yield Claim(f"Non-linear, d_e={d}: bound p_eps", bound, at("p_eps_bound", d), 0.01 * bound, _PROTOTYPE)


def _colored_claims(results: Results) -> Iterator[Claim]:
    def mean(method: str, environment: str = "test", restart: bool = False) -> float:
        where: dict[str, Any] = {"method": method, "environment": environment, "restart": restart}
        return results.mean("accuracy", experiment=COLORED, seed=(0, 1, 2), **where)

    erm = mean("erm")
    yield Claim("ColoredMNIST: ERM's training accuracy", 0.96, mean("erm", "train"), 0.02, _PROTOTYPE)
    yield Claim("ColoredMNIST: ERM's test accuracy", 0.25, erm, 0.02, _PROTOTYPE)
    for method in ("irmv1", "vrex"):
        name = f"ColoredMNIST: {_LABELS[method]}'s gain in test accuracy over ERM"
        yield Claim(name, 0.08, mean(method) - erm, 0.0, _PROTOTYPE, "at least")
        name += ", Adam restarted at the jump of the penalty"
        yield Claim(name, 0.08, mean(method, restart=True) - erm, 0.0, "ours", "at least")


def figures(results: Results) -> list[NamedFigure]:
    """The threshold in the number of environments; the construction; ColoredMNIST."""
    from matplotlib.figure import Figure

    threshold = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = threshold.subplots(1, 2, sharey=True)
    panels = (
        (left, THRESHOLD, ("erm", "irmv1", "vrex", "closed_form"), f"Exact risks, penalty {PENALTY:.0e}"),
        (right, SAMPLES, ("erm", "irmv1", "vrex"), "5,000 examples an environment, penalty 1e+04"),
    )
    for axes, experiment, methods, title in panels:
        for method in methods:
            where: dict[str, Any] = {"experiment": experiment, "method": method}
            if experiment == THRESHOLD:
                where["scale"] = 1.0
            counts, means = results.curve("flip_accuracy", "environments", **where)
            values = [results.values("flip_accuracy", **where, environments=e) for e in counts]
            closed = method == "closed_form"
            axes.plot(counts, means, "--" if closed else "o-", ms=4, color=_COLOURS[method], label=_LABELS[method])
            if not closed:
                axes.fill_between(counts, [min(v) for v in values], [max(v) for v in values], color=_COLOURS[method], alpha=0.12, lw=0)  # fmt: skip
        axes.axvline(SPURIOUS + 0.5, color="0.45", lw=1)
        axes.text(SPURIOUS + 0.6, 0.03, f"E > d_e = {SPURIOUS}", color="0.35")
        axes.axhline(0.78814, color="0.45", ls=":", lw=1.2)
        axes.set(xlabel="training environments E", title=title, ylim=(0, 0.85))
    left.set_ylabel("accuracy after the sign change")
    left.text(2, 0.8, "invariant predictor", color="0.35")
    right.legend(*left.get_legend_handles_labels(), loc="lower right", bbox_to_anchor=(1, 0.12), frameon=False)
    caption = (
        "Accuracy when every environmental mean changes its sign. IRM's optimum uses the environmental features until there are more environments than such features, then "
        "equals the invariant predictor; ERM shows no threshold. Lines: mean over draws of the means; bands: all draws."
    )
    return [
        NamedFigure("A threshold in the number of environments", caption, threshold),
        _nonlinear_figure(results),
        _colored_figure(results),
    ]


def _nonlinear_figure(results: Results) -> NamedFigure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    where: dict[str, Any] = {"experiment": NONLINEAR, "eps": 1.6}
    lines = (
        ("outside", "training data outside the balls", "o-", "#0072b2"),
        ("chi_square_tail", "chi-square tail", "s--", "#e69f00"),
        ("p_eps_bound", "bound p_eps", "^:", "#000000"),
    )
    for metric, label, style, colour in lines:
        left.plot(*results.curve(metric, "spurious", **where, split="in", environment=""), style, color=colour, label=label)  # fmt: skip
    left.set(xlabel="environmental features d_e", ylabel="share", yscale="log", title="What training can notice")
    left.legend(frameon=False, loc="lower left")
    for metric, method in (("accuracy", "construction"), ("erm_accuracy", "erm"), ("invariant_accuracy", "invariant")):
        for environment, style in (("", "-"), ("far1", "--")):
            d, accuracy = results.curve(metric, "spurious", **where, environment=environment)
            marker = {"construction": "o", "erm": "x", "invariant": ""}[method]
            name = f"{_LABELS[method]}, {'test far away' if environment else 'training'}"
            right.plot(d, accuracy, style, marker=marker, ms=8 if marker == "x" else 4, color=_COLOURS[method], label=name)  # fmt: skip
    right.set(xlabel="environmental features d_e", ylabel="accuracy", ylim=(-0.03, 1.03), title="What it does")
    right.legend(frameon=False, fontsize=8, loc="center right", bbox_to_anchor=(1, 0.45))
    caption = (
        "The construction predicts as the invariant predictor in training and satisfies IRM's constraint but for a "
        "vanishing share of the data; where the test mean lies far away it is ERM, whose accuracy is 0."
    )
    return NamedFigure("A non-linear predictor that passes and fails", caption, figure)


def _colored_figure(results: Results) -> NamedFigure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    for place, method in enumerate(("erm", "irmv1", "vrex")):
        for offset, environment in ((-0.2, "train"), (0.2, "test")):
            values = results.values(
                "accuracy", experiment=COLORED, method=method, environment=environment, restart=False
            )
            if values:
                hatch = "" if environment == "test" else "//"
                face = _COLOURS[method] if environment == "test" else "white"
                axes.bar(place + offset, sum(values) / len(values), 0.36, facecolor=face, edgecolor=_COLOURS[method], hatch=hatch)  # fmt: skip
                axes.plot([place + offset] * len(values), values, "k.", ms=5)
    axes.axhline(0.75, color="0.45", ls=":", lw=1.2)
    axes.set_xticks(range(3), [_LABELS[m] for m in ("erm", "irmv1", "vrex")])
    axes.set(ylabel="accuracy", ylim=(0, 1), title="ColoredMNIST from 5,000 digits")
    caption = (
        "Training (hatched) and test (filled) accuracy, dots: seeds. Dotted: the most that shape alone allows. The "
        "colour agrees with the label in 90% and 80% of the training examples and in 10% of the test examples."
    )
    return NamedFigure("ColoredMNIST", caption, figure)
