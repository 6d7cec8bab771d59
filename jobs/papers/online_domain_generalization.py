"""An Online Learning Approach to Interpolation and Extrapolation in Domain Generalization, as cells, claims, figures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from cluster.trial import Trial, derive_seed
from jobs.claims import Claim, MetricRow, NamedFigure, Results, Scale, cell, scalar_rows, settings

if TYPE_CHECKING:
    from lightning_modules.online.groups import QuadraticGroups
    from lightning_modules.online.players import Player

TITLE = "An Online Learning Approach to Interpolation and Extrapolation in Domain Generalization"
SOURCE = "Elan Rosenfeld, Pradeep Ravikumar, Andrej Risteski; AISTATS 2022; arXiv 2102.13128"

INTERPOLATION = "online_domain_generalization/interpolation"
EXTRAPOLATION = "online_domain_generalization/extrapolation"
HARDNESS = "online_domain_generalization/hardness"
GROUPS = "online_domain_generalization/groups"

_HORIZONS = {"small": (100, 400, 1600), "paper": (100, 400, 1600, 6400, 25600)}
_RADII = (1.0, 0.5, 0.1)
_NAMED = ("C5", "K6", "Petersen")
_RIDGE = 0.05
_MIXED = "derived here; the shape of the claim: paper, abstract"
_OURS = "ours, reference prototype"


def plan(scale: Scale) -> list[Trial]:
    """List the cells; those of the paper scale contain those of the small one."""
    cells = []
    for adversary, batches in (("fair_coin", 4), ("hidden_bias", 6)):
        sizes = [(1000, 1000, batches)] + ([(10_000, 250, 8)] if scale == "paper" else [])
        for rounds, games, seeds in sizes:
            for method in ("ftl", "ogd", "bayes"):
                cells += [
                    cell(INTERPOLATION, method, seed, adversary=adversary, rounds=rounds, games=games)
                    for seed in range(seeds)
                ]
    for rounds in _HORIZONS[scale]:
        for method in ("ftl", "ftpl", "ogd", "hedge"):
            batches = 5 if scale == "paper" and method in ("ftpl", "hedge") else 1
            games = 200 if method in ("ftpl", "hedge") else 1  # the others are deterministic
            cells += [
                cell(EXTRAPOLATION, method, seed, adversary="alternating", rounds=rounds, games=games)
                for seed in range(batches)
            ]
            cells += [cell(EXTRAPOLATION, method, adversary="iid_signs", rounds=rounds, games=400)]
    for name in _NAMED:
        cells += [cell(HARDNESS, "projected_gradient", graph=name, radius=r, starts=4000) for r in _RADII]
    nodes = (6, 8, 10, 12, 14, 16, 18) if scale == "small" else tuple(range(6, 25, 2))
    densities = (0.5,) if scale == "small" else (0.25, 0.5, 0.75)
    cells += [
        cell(HARDNESS, "projected_gradient", seed, graph="random", nodes=n, density=p, radius=r, starts=400, graphs=10)
        for n in nodes
        for p in densities
        for r in (1.0, 0.1)
        for seed in range(1 if scale == "small" else 3)
    ]
    games_on_data: list[tuple[str, float, int, float | None]] = [
        ("diabetes", 0.0, 3000, None),
        ("diabetes", 0.01, 3000, None),
        ("diabetes", 0.1, 1000, 3.0),
        ("RotatedMNIST", 0.0, 1000, None),
        ("RotatedMNIST", 0.005, 1000, None),
    ]
    if scale == "paper":
        games_on_data += [("diabetes", 0.0, 30_000, None), ("RotatedMNIST", 0.1, 300, 3.0)]
    cells += [cell(GROUPS, "ftl", data=d, alpha=a, rounds=t, radius=r) for d, a, t, r in games_on_data]
    return cells


def run(trial: Trial) -> list[MetricRow]:
    """Compute one cell."""
    if trial.dataset in (INTERPOLATION, EXTRAPOLATION):
        return _regret_curve(trial)
    return _hardness(trial) if trial.dataset == HARDNESS else _groups(trial)


def diabetes_groups() -> QuadraticGroups:
    """Build instance D: 442 patients in four groups by age quartile, ridge least squares on the standardised target.

    Raises:
        InputError: scikit-learn, which carries the data, is not installed.
    """
    import numpy as np

    from cluster.errors import InputError
    from lightning_modules.online.groups import QuadraticGroups, standardised

    try:
        from sklearn.datasets import load_diabetes
    except ImportError as error:
        raise InputError(
            "the diabetes data come with scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
    X, y = load_diabetes(return_X_y=True)
    quartile = np.searchsorted(np.quantile(X[:, 0], [0.25, 0.5, 0.75]), X[:, 0], side="right")
    return QuadraticGroups.from_data(standardised(X), (y - y.mean()) / y.std(), quartile, _RIDGE)


def rotated_digit_groups() -> QuadraticGroups:
    """Build ridge least squares on rotated digits, six groups by angle: 7x7 mean-pooled pixels, ten one-hot outputs."""
    from dataclasses import replace

    from lightning_modules.data.digits import rotated_mnist
    from lightning_modules.online.groups import QuadraticGroups

    dataset = rotated_mnist()
    pooled = (replace(e, inputs=e.inputs.reshape(-1, 7, 4, 7, 4).mean((2, 4))) for e in dataset.environments)
    return QuadraticGroups.from_dataset(replace(dataset, environments=tuple(pooled)), _RIDGE)


def _player(method: str, experiment: str, rounds: int) -> Player:
    from lightning_modules.online import players

    if method == "ftl":
        return players.FollowTheLeader()
    if method == "bayes":
        return players.FollowTheLeader(prior=1.0)
    if method == "ogd":
        convex = experiment == EXTRAPOLATION  # else 1-strongly convex
        return players.OnlineGradientDescent(2.0, 0.5) if convex else players.OnlineGradientDescent(1.0, 1.0)
    if method == "ftpl":
        return players.FollowThePerturbedLeader(1 / math.sqrt(rounds))
    return players.Hedge([[-1.0], [1.0]], math.sqrt(2 * math.log(2) / rounds))


def _regret_curve(trial: Trial) -> list[MetricRow]:
    """Mean, variance and maximum of the regret over a batch of games, on a logarithmic grid of rounds."""
    import numpy as np

    from lightning_modules.online import adversaries
    from lightning_modules.online.game import extrapolation_game, interpolation_game, linear_weights, play

    chosen = settings(trial)
    rounds, adversary = chosen["rounds"], chosen["adversary"]
    game = interpolation_game() if trial.dataset == INTERPOLATION else extrapolation_game()
    signs = [linear_weights(-1), linear_weights(1)]
    against = {
        "fair_coin": adversaries.IIDVertices(),
        "hidden_bias": adversaries.HiddenBias(),
        "alternating": adversaries.Alternating(signs, first=linear_weights(0.5)),
        "iid_signs": adversaries.IIDVertices(signs),
    }[adversary]
    # not of the method: all players of a batch meet the same sequences
    seed = derive_seed(trial.dataset, adversary, rounds, trial.seed)
    regret = play(game, _player(trial.method, trial.dataset, rounds), against, rounds, seed, chosen["games"]).regret
    rows: list[MetricRow] = []
    for t in _grid(rounds):
        now = regret[:, t - 1]
        rows += scalar_rows({"regret": now.mean(), "variance": now.var(), "largest": now.max()}, t, adversary)
    bound = 2 * (1 + np.log(np.arange(1, rounds + 1)))
    return rows + scalar_rows({"bound_share": (regret / bound).max()}, rounds, adversary)


def _grid(rounds: int) -> list[int]:
    """1, 2, 3, 5, 10, 20, ... and the last round."""
    decades = range(math.ceil(math.log10(rounds)) + 1)
    return sorted({m * 10**k for k in decades for m in (1, 2, 3, 5) if m * 10**k < rounds} | {rounds})


def _hardness(trial: Trial) -> list[MetricRow]:
    """Exact minimum and descent for each graph of the cell; `step` numbers the graphs."""
    import numpy as np

    from lightning_modules.online.maxcut import MaxCutExtrapolation, named_graph, random_graph

    chosen = settings(trial)
    if chosen["graph"] == "random":
        # not of the starts' radius: both meet the same graphs
        generator = np.random.default_rng(derive_seed("graphs", chosen["nodes"], chosen["density"], trial.seed))
        graphs = [random_graph(chosen["nodes"], chosen["density"], generator) for _ in range(chosen["graphs"])]
    else:
        graphs = [named_graph(chosen["graph"])]
    rows: list[MetricRow] = []
    for i, graph in enumerate(graphs):
        report = MaxCutExtrapolation(graph).report(chosen["starts"], trial.stream(f"starts {i}"), chosen["radius"])
        rows += scalar_rows(dict(vars(report)), i, chosen["graph"])
    return rows


def _groups(trial: Trial) -> list[MetricRow]:
    from lightning_modules.data.catalog import load_dataset
    from lightning_modules.online.game import group_game
    from lightning_modules.online.groups import QuadraticGroups

    chosen = settings(trial)
    built_in = {"diabetes": diabetes_groups, "RotatedMNIST": rotated_digit_groups}
    data, rounds = chosen["data"], chosen["rounds"]
    groups = built_in[data]() if data in built_in else QuadraticGroups.from_dataset(load_dataset(data), _RIDGE)
    played = group_game(groups, chosen["alpha"], rounds, radius=chosen["radius"])
    regret = played.record.regret[0]
    rows = [(t, data, "test", "regret", float(regret[t - 1])) for t in _grid(rounds) if t < rounds]
    # a gap that is not certified has no row
    known = {name: value for name, value in played.summary().items() if not math.isnan(value)}
    return rows + scalar_rows(known, rounds, data)


def harmonic(n: int) -> float:
    """Return 1 + 1/2 + ... + 1/n."""
    return math.fsum(1 / i for i in range(1, n + 1))


def exact_interpolation_regret(method: str, adversary: str, t: int) -> float:
    """Return the expected regret of instance A in closed form: of "ftl", or of "bayes" under a hidden bias."""
    if adversary == "fair_coin":
        return (1 + harmonic(t - 1)) / 2 if method == "ftl" else math.nan
    return harmonic(t - 1) / 3 + 0.5 if method == "ftl" else harmonic(t + 1) / 3


def exact_walk(t: int) -> float:
    """Return E|S_t| of a walk of t fair steps +-1, about sqrt(2t/pi)."""
    n = 2 * math.ceil(t / 2)
    return n * math.exp(math.lgamma(n + 1) - 2 * math.lgamma(n / 2 + 1) - n * math.log(2))


def _pooled(results: Results, step: int, **conditions: Any) -> tuple[float, float]:
    """Mean and standard error over the games of all batches (equal in size)."""
    means = results.values("regret", step=step, **conditions)
    variances = results.values("variance", step=step, **conditions)
    if not means:
        return math.nan, math.nan
    mean = math.fsum(means) / len(means)
    variance = math.fsum(v + (m - mean) ** 2 for v, m in zip(variances, means, strict=True)) / len(means)
    return mean, math.sqrt(variance / (len(means) * results.rows(step=step, **conditions)[0]["games"]))


def _slope(points: list[tuple[float, float]]) -> float:
    """Least-squares slope in log-log."""
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) if y > 0 else math.nan for _, y in points]
    x0, y0 = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    return math.fsum((x - x0) * (y - y0) for x, y in zip(xs, ys, strict=True)) / math.fsum((x - x0) ** 2 for x in xs)


def claims(results: Results, scale: Scale) -> list[Claim]:
    """Compare."""
    return [
        *_interpolation_claims(results, scale),
        *_extrapolation_claims(results, scale),
        *_hardness_claims(results),
        *_group_claims(results, scale),
    ]


def _interpolation_claims(results: Results, scale: Scale) -> list[Claim]:
    found = []
    sizes = [(10, 1000), (100, 1000), (1000, 1000)] + ([(10_000, 10_000)] if scale == "paper" else [])
    for adversary, method, label in (
        ("fair_coin", "ftl", "fair coin: ERM's mean regret"),
        ("hidden_bias", "ftl", "hidden bias: ERM's mean regret"),
        ("hidden_bias", "bayes", "hidden bias: the Bayes floor that no player beats"),
    ):
        for t, rounds in sizes:
            mean, error = _pooled(
                results, t, experiment=INTERPOLATION, method=method, adversary=adversary, rounds=rounds
            )
            exact = exact_interpolation_regret(method, adversary, t)
            found.append(Claim(f"{label} at T={t}, within 4 se", exact, mean, 4 * error, _MIXED))
    at, ftl = results.curve(
        "regret", "step", experiment=INTERPOLATION, method="ftl", adversary="hidden_bias", rounds=1000
    )
    _, floor = results.curve(
        "regret", "step", experiment=INTERPOLATION, method="bayes", adversary="hidden_bias", rounds=1000
    )
    excess = max((a - b for a, b in zip(ftl, floor, strict=True)), default=math.nan)
    found.append(Claim("hidden bias: ERM is a constant above the floor at every T", 0.51, excess, 0, _MIXED, "at most"))
    gaps = []
    for adversary in ("fair_coin", "hidden_bias"):
        conditions = {"experiment": INTERPOLATION, "adversary": adversary, "rounds": 1000}
        pairs = zip(*(results.values("regret", method=m, **conditions) for m in ("ftl", "ogd")), strict=True)
        gaps += [abs(a - b) for a, b in pairs]
    found.append(
        Claim("OGD with step 1/t is ERM: difference in regret", 0, max(gaps, default=math.nan), 1e-9, "derived here")
    )
    share = max(results.values("bound_share", experiment=INTERPOLATION, method="ftl"), default=math.nan)
    found.append(Claim("ERM's regret over 2(1 + ln T), worst game and T", 1, share, 0, _MIXED, "at most"))
    return found


def _extrapolation_claims(results: Results, scale: Scale) -> list[Claim]:
    found: list[Claim] = []
    curves: dict[str, list[tuple[float, float]]] = {}
    reference = {"ftpl": (5.9, 10.3, 17.0), "ogd": (18.64, 38.64, 78.64)}
    errors = (0.7, 1.3, 3.0)  # standard errors of the reference's 200 runs
    for method in ("ftl", "ftpl", "ogd", "hedge"):
        curves[method] = []
        for i, t in enumerate(_HORIZONS[scale]):
            conditions = {"experiment": EXTRAPOLATION, "method": method, "adversary": "alternating", "rounds": t}
            mean, error = _pooled(results, t, **conditions)
            curves[method].append((t, mean))
            if method == "ftl":
                found.append(Claim(f"alternating: ERM's regret at T={t} is linear", t - 0.5, mean, 1e-9, _MIXED))
            elif method in reference and i < 3:
                tolerance = 0.01 if method == "ogd" else 4 * math.hypot(error, errors[i])
                name = f"alternating: {method.upper()}'s regret at T={t}"
                found.append(Claim(name, reference[method][i], mean, tolerance, _OURS))
    found.append(
        Claim("alternating: log-log slope of ERM's regret", 0.98, _slope(curves["ftl"]), 0, _MIXED, "at least")
    )
    for method in ("ftpl", "ogd", "hedge"):
        name = f"alternating: log-log slope of {method.upper()}'s regret"
        found.append(Claim(name, 0.65, _slope(curves[method]), 0, _MIXED, "at most"))
    for method in ("ftl", "ftpl", "ogd", "hedge"):
        for t in _HORIZONS[scale]:
            conditions = {"experiment": EXTRAPOLATION, "method": method, "adversary": "iid_signs", "rounds": t}
            mean, error = _pooled(results, t, **conditions)
            name = f"iid signs: {method.upper()} pays E|S_T| at T={t}, within 4 se"
            found.append(Claim(name, exact_walk(t), mean, 4 * error, _MIXED))
    return found


def _hardness_claims(results: Results) -> list[Claim]:
    found = []
    named = {"C5": (-8.0, 0.98), "K6": (-18.0, 0.59), "Petersen": (-24.0, 0.25)}
    for name, (minimum, success) in named.items():
        conditions = {"experiment": HARDNESS, "graph": name, "radius": 1.0}
        found.append(
            Claim(
                f"{name}: minimum of the extrapolated risk", minimum, results.mean("minimum", **conditions), 0, _MIXED
            )
        )
        measured = results.mean("success", **conditions)
        source = f"{_OURS} (its law of starts is not known)"
        found.append(Claim(f"{name}: share of starts that find it", success, measured, 0.05, source))
    success_at = {
        n: results.mean("success", experiment=HARDNESS, graph="random", nodes=n, density=0.5, radius=1.0)
        for n in (10, 14, 18)
    }
    found += [
        Claim(
            "random graphs: share of starts that succeed, n=14 over n=10",
            0.5,
            success_at[14] / (success_at[10] or math.nan),
            0,
            _MIXED,
            "at most",
        ),
        Claim("random graphs: share of starts that succeed, n=18", 0.05, success_at[18], 0, _MIXED, "at most"),
    ]
    gap = results.mean("mean_gap", experiment=HARDNESS, graph="random", nodes=18, density=0.5, radius=1.0)
    name = "random graphs: mean relative gap of one start, n=18, does not vanish"
    found.append(Claim(name, 0.1, gap, 0, _MIXED, "at least"))
    worst = max(results.values("mixture_gradient", experiment=HARDNESS), default=math.nan)
    found.append(Claim("interpolations of the same groups: largest final gradient norm", 0, worst, 1e-8, _MIXED))
    return found


def _group_claims(results: Results, scale: Scale) -> list[Claim]:
    diabetes = {"experiment": GROUPS, "data": "diabetes", "alpha": 0.0, "rounds": 3000}
    regret = {t: results.mean("regret", step=t, **diabetes) for t in (30, 300, 3000)}
    extrapolated = {"experiment": GROUPS, "data": "diabetes", "alpha": 0.1}
    found = [
        Claim(f"diabetes: ERM's regret at T={t}", r, regret[t], 0.0015, _OURS)
        for t, r in ((30, 0.503), (300, 0.565), (3000, 0.626))
    ]
    found += [
        Claim(f"diabetes: regret per decade, T={a} to {b}", 0.062, regret[b] - regret[a], 0.003, _OURS)
        for a, b in ((30, 300), (300, 3000))
    ]
    found += [
        Claim(
            "diabetes: worst group risk of ERM over the game",
            0.2546,
            results.mean("worst_group_final", **diabetes),
            1e-4,
            _OURS,
        ),
        Claim(
            "diabetes: worst group risk of balanced ERM",
            0.2610,
            results.mean("worst_group_balanced_erm", **diabetes),
            1e-4,
            _OURS,
        ),
        Claim(
            "diabetes: smallest curvature, alpha=0", 0.056, results.mean("smallest_curvature", **diabetes), 1e-3, _OURS
        ),
        Claim(
            "diabetes: smallest curvature, alpha=0.1",
            -0.336,
            results.mean("smallest_curvature", **extrapolated),
            1e-3,
            _OURS,
        ),
    ]
    for data in ("diabetes", "RotatedMNIST"):
        conditions = {"experiment": GROUPS, "data": data, "alpha": 0.0, "rounds": 3000 if data == "diabetes" else 1000}
        final, dro = (results.mean(f"worst_group_{name}", **conditions) for name in ("final", "minimax"))
        found.append(Claim(f"{data}: ERM over the game solves group DRO, excess risk", 0, final - dro, 1e-3, _MIXED))
    digits = {"experiment": GROUPS, "data": "RotatedMNIST", "alpha": 0.0, "rounds": 1000}
    early = results.mean("regret", step=100, **digits) - results.mean("regret", step=10, **digits)
    late = results.mean("regret", step=1000, **digits) - results.mean("regret", step=100, **digits)
    name = "RotatedMNIST: regret of the third decade over that of the second (1 is logarithmic, 3.2 is sqrt T)"
    found.append(Claim(name, 1.1, late / early if early else math.nan, 0, _MIXED, "at most"))
    return found


_COLORS = {"ftl": "#0072B2", "ogd": "#E69F00", "ftpl": "#D55E00", "bayes": "#009E73", "hedge": "#CC79A7"}
_LABELS = {
    "ftl": "FTL (ERM)",
    "ogd": "OGD",
    "ftpl": "FTPL (noisy ERM)",
    "bayes": "Bayes player",
    "hedge": "Hedge",
}


def figures(results: Results) -> list[NamedFigure]:
    """Draw regret against T for interpolation and extrapolation, and success against n for max-cut."""
    return [_interpolation_figure(results), _extrapolation_figure(results), _hardness_figure(results)]


def _interpolation_figure(results: Results) -> NamedFigure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, adversary in zip(figure.subplots(1, 2, sharey=True), ("fair_coin", "hidden_bias"), strict=True):
        for method, marker in (("ftl", "o"), ("bayes", "s")):
            conditions = {"experiment": INTERPOLATION, "method": method, "adversary": adversary}
            horizons = {row["rounds"] for row in results.rows(**conditions)}
            if not horizons or (method == "bayes" and adversary == "fair_coin"):
                continue
            at, mean = results.curve("regret", "step", rounds=max(horizons), **conditions)
            exact = [exact_interpolation_regret(method, adversary, t) for t in at]
            axes.plot(at, exact, color=_COLORS[method], lw=1, label=f"{_LABELS[method]}, exact")
            axes.plot(at, mean, marker, color=_COLORS[method], ms=5, label=f"{_LABELS[method]}, measured")
        axes.set(xscale="log", xlabel="rounds T", title=adversary.replace("_", " "))
        if axes.lines:
            axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mean regret (loss units)")
    caption = (
        "Interpolation with strongly convex risks: the regret of ERM is a straight line over log T, and under a hidden "
        "bias it stays a constant above what any player must pay."
    )
    return NamedFigure("Interpolation: regret grows as log T", caption, figure)


def _extrapolation_figure(results: Results) -> NamedFigure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, adversary in zip(figure.subplots(1, 2, sharey=True), ("alternating", "iid_signs"), strict=True):
        horizons: list[int] = []
        for method in ("ftl", "ogd", "ftpl", "hedge"):
            conditions = {"experiment": EXTRAPOLATION, "method": method, "adversary": adversary}
            horizons = sorted({row["rounds"] for row in results.rows(**conditions)}) or horizons
            points = [(t, *_pooled(results, t, rounds=t, **conditions)) for t in horizons]
            if points:
                axes.errorbar(
                    [p[0] for p in points],
                    [p[1] for p in points],
                    [p[2] for p in points],
                    color=_COLORS[method],
                    marker="o",
                    ms=4,
                    capsize=3,
                    label=_LABELS[method],
                )
        if adversary == "iid_signs" and horizons:
            axes.plot(horizons, [exact_walk(t) for t in horizons], "k--", lw=1, label="E|S_T|, lower bound")
        elif horizons:
            axes.plot(horizons, [math.sqrt(t) for t in horizons], "k:", lw=1, label="sqrt T")
        axes.set(xscale="log", yscale="log", xlabel="rounds T", title=adversary.replace("_", " "))
        if axes.lines:
            axes.legend(frameon=False)
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel("mean regret (loss units)")
    caption = (
        "Extrapolation with the same kind of risks, alpha = 1: plain ERM can be wrong in every round (slope 1), noisy ERM "
        "has slope 1/2, and on random signs nobody does better than E|S_T|. Bars: one standard error."
    )
    return NamedFigure("Extrapolation: linear for ERM, sqrt T with noise", caption, figure)


def _hardness_figure(results: Results) -> NamedFigure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    for radius, color, marker in ((1.0, "#D55E00", "o"), (0.1, "#0072B2", "s")):
        conditions = {"experiment": HARDNESS, "graph": "random", "density": 0.5, "radius": radius}
        at, success = results.curve("success", "nodes", **conditions)
        label = f"extrapolation, starts in [-{radius:g}, {radius:g}]^n"
        axes.plot(at, [100 * s for s in success], color=color, marker=marker, label=label)
    at = sorted({row["nodes"] for row in results.rows(experiment=HARDNESS, graph="random", density=0.5)})
    solved = []
    for n in at:
        norms = results.values("mixture_gradient", experiment=HARDNESS, graph="random", density=0.5, nodes=n)
        solved.append(100 * sum(norm <= 1e-8 for norm in norms) / len(norms))
    axes.plot(at, solved, color="#009E73", marker="^", label="interpolation of the same groups")
    axes.set(
        xlabel="nodes n of G(n, 1/2), the dimension of b", ylabel="runs that reach the minimum (%)", ylim=(-3, 105)
    )
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    caption = (
        "One step of ERM by projected gradient from random starts: extrapolating two strongly convex risks is max-cut "
        "and fails ever more often, interpolating them always succeeds."
    )
    return NamedFigure("One step of ERM: success against dimension", caption, figure)
