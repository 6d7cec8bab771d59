"""What the cells measure. Autoencoders of a cell train as one pack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jobs.claims import MetricRow, scalar_rows
from jobs.papers.rep4ex.names import (
    BANDWIDTHS,
    BENDS,
    GAMMAS,
    HIDDEN,
    LAMBDAS,
    MLP,
    MMR,
    NO_CONTROL,
    NOISES,
    OLS,
    ORACLE,
    REACH,
    TRUTH,
    VANILLA,
)
from lightning_modules.causal.metrics import linear_r2
from lightning_modules.causal.rep4ex.control import AdditiveControlFunction
from lightning_modules.causal.rep4ex.module import VALIDATION_WEIGHT, MMRAutoencoder
from lightning_modules.causal.rep4ex.pack import Fit, Trained, Training, scales, train_autoencoders
from lightning_modules.causal.rep4ex.regression import RegressionTraining, fit_least_squares, fit_networks
from lightning_modules.causal.rep4ex.scm import InterventionSCM, Sample
from lightning_modules.causal.rep4ex.statistics import linearity_ratio, median_distance, mmr_statistic

Array = np.ndarray
Settings = Mapping[str, Any]
_FRESH = 2000
_PLANE_REACH = 1.75


def curve_world(seed: int, gamma: float, confounding: float = 1.0) -> InterventionSCM:
    """One action, one latent, five features."""
    return InterventionSCM(1, 1, 5, 1.0, gamma, "curve", confounding=confounding, seed=seed)


def curve(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Error of every method in and outside the support, its curve, and the conditional prediction at do(A = 2)."""
    world = curve_world(seed, values["gamma"])
    sample, training = world.sample(values["rows"]), Training(steps=values["encoder_steps"])
    restarts = {MMR: values["restarts"], VANILLA: 1}  # which of two plain ones is kept decides nothing
    trained = {
        name: train_autoencoders([Fit(sample.x, sample.a, 1, weight, seed=seed)], training, restarts[name])[0]
        for name, weight in ((MMR, 30.0), (VANILLA, 0.0))
    }
    targets = np.linspace(-REACH, REACH, 51)[:, None]
    truth = world.do_mean(targets)
    latents = {ORACLE: sample.z} | {name: one.module.encode(sample.x) for name, one in trained.items()}
    predicted = _predictions(sample, latents, targets, seed, values["steps"])
    beyond = np.abs(targets[:, 0]) > world.gamma
    rows = scalar_rows({"variance": truth.var()})
    for name, prediction in predicted.items():
        error = (prediction - truth) ** 2
        found = {"outside": error[beyond].mean(), "inside": error[~beyond].mean()}
        rows += scalar_rows(found, environment=name)
    for name, one in trained.items():
        rows += scalar_rows({"reconstruction": one.reconstruction}, environment=name)
    for name, line in {**predicted, TRUTH: truth}.items():
        rows += [(i, name, "test", "curve", float(value)) for i, value in enumerate(line)]
    if method == "methods" and values["gamma"] == GAMMAS[-1]:
        for name in (ORACLE, MMR):
            networks = AdditiveControlFunction("mlp", seed=seed, training=RegressionTraining(values["steps"]))
            prediction = networks.fit(latents[name], sample.a, sample.y).predict_do(targets)
            found = {"outside, networks": ((prediction - truth)[beyond] ** 2).mean()}
            rows += scalar_rows(found, environment=name)
        rows += scalar_rows({"conditional": _conditional(world, sample)}, environment=ORACLE)
    return rows


def _conditional(world: InterventionSCM, sample: Sample) -> float:
    """Squared error of E[Y | X, do(A = 2)] with true latents, over fresh rows of that action."""
    control = AdditiveControlFunction().fit(sample.z, sample.a, sample.y)
    fresh, action = world.sample(_FRESH, 1), np.array([[2.0]])
    z = fresh.z - world.alpha * fresh.a @ world.effect + world.alpha * action @ world.effect
    return float(((control.predict_conditional(z, action) - world.conditional_mean(z, action)) ** 2).mean())


def _predictions(
    sample: Sample, latents: Mapping[str, Array], targets: Array, seed: int, steps: int
) -> dict[str, Array]:
    """E[Y | do(A = a*)] by every method."""
    a, y = sample.a, sample.y
    found = {name: AdditiveControlFunction().fit(z, a, y).predict_do(targets) for name, z in latents.items()}
    found[NO_CONTROL] = AdditiveControlFunction(control=False).fit(latents[MMR], a, y).predict_do(targets)
    found[MLP] = fit_networks([a], y, seed, RegressionTraining(steps)).predict(targets)
    line = fit_least_squares(a, y)
    found[OLS] = targets @ line[:-1] + line[-1]
    return found


def plane_targets(gamma: float) -> Array:
    """Actions [400, 2] with gamma < max |a_j| <= 1.75."""
    drawn = np.random.default_rng(92).uniform(-_PLANE_REACH, _PLANE_REACH, (4000, 2))
    found: Array = drawn[np.abs(drawn).max(1) > gamma][:400]
    return found


def strengths(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """R^2, linearity and extrapolation against alpha, with and without the restriction."""
    alphas = [float(word) for word in values["strengths"].split()]
    worlds = [InterventionSCM(alpha=alpha, seed=seed) for alpha in alphas]
    samples = [world.sample(values["rows"]) for world in worlds]
    fits = [Fit(s.x, s.a, 2, weight, seed=seed) for s in samples for weight in (30.0, 0.0)]
    trained = train_autoencoders(fits, Training(steps=values["steps"]))
    rows: list[MetricRow] = []
    for number, (world, sample) in enumerate(zip(worlds, samples, strict=True)):
        place = f"alpha={world.alpha:g}"
        models = dict(zip((MMR, VANILLA), trained[2 * number : 2 * number + 2], strict=True))
        fresh = world.sample(_FRESH, 1)
        found = {f"ratio {ORACLE}": linearity_ratio(fresh.z, fresh.a)}
        for name, one in models.items():
            phi = one.module.encode(fresh.x)
            found |= {f"R2 {name}": linear_r2(fresh.z, phi), f"ratio {name}": linearity_ratio(phi, fresh.a)}
            found[f"reconstruction {name}"] = one.reconstruction
        if world.alpha > 0:
            latents = {ORACLE: sample.z} | {name: one.module.encode(sample.x) for name, one in models.items()}
            targets = plane_targets(world.gamma)
            truth = world.do_mean(targets)
            found["variance"] = truth.var()
            predicted = _predictions(sample, latents, targets, seed, values["steps"])
            found |= {f"outside {name}": ((line - truth) ** 2).mean() for name, line in predicted.items()}
        rows += scalar_rows(found, environment=place)
    return rows


def variant(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """R^2 at alpha 2 of a training that differs in one choice."""
    world = InterventionSCM(alpha=2.0, seed=seed)
    sample, steps = world.sample(values["rows"]), values["steps"]
    training = {
        "wide kernel": Training(steps=steps),
        "not whitened": Training(steps=steps, whiten=False),
        "u-statistic": Training(steps=steps, estimator="u"),
    }[method]
    fit = Fit(sample.x, sample.a, 2, bandwidth=1.0 if method == "wide kernel" else 0.3, seed=seed)
    (trained,) = train_autoencoders([fit], training)
    fresh = world.sample(_FRESH, 1)
    phi = trained.module.encode(fresh.x)
    return scalar_rows({"R2": linear_r2(fresh.z, phi), "spread": phi.std(0).mean()})


def study(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Held-out reconstruction + 30 Q, which needs no true latents, and R^2, which does, over lambda and bandwidth."""
    world = InterventionSCM(alpha=2.0, seed=seed)
    sample, held, fresh = (world.sample(n, part) for part, n in enumerate((values["rows"], 1000, _FRESH)))
    grid = [(weight, bandwidth) for weight in LAMBDAS for bandwidth in BANDWIDTHS]
    fits = [Fit(sample.x, sample.a, 2, weight, bandwidth, seed) for weight, bandwidth in grid]
    mean, spread, _ = scales(sample.x, sample.a)
    rows: list[MetricRow] = []
    for (weight, bandwidth), one in zip(grid, train_autoencoders(fits, Training(steps=values["steps"])), strict=True):
        q = mmr_statistic(one.module.encode(held.x), held.a, 0.3 * median_distance(sample.a))
        error = _reconstruction(one.module, (held.x - mean) / spread)
        score = linear_r2(fresh.z, one.module.encode(fresh.x))
        found = {"objective": error + VALIDATION_WEIGHT * q, "R2": score}
        rows += scalar_rows(found, environment=f"lambda={weight:g} bandwidth={bandwidth:g}")
    return rows


def _reconstruction(module: MMRAutoencoder, x: Array) -> float:
    """Error on standardised features [n, dx]."""
    import torch

    from lightning_modules.causal.rep4ex.module import reconstruction_error

    with torch.no_grad():
        inputs = torch.from_numpy(x).float()[None]
        return float(reconstruction_error(inputs, module.networks(inputs)[1]))


def assumptions(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """R^2 and extrapolation at alpha 2 with noise in X, or actions that act nonlinearly."""
    broken: list[dict[str, Any]] = [{}]
    broken += [{"noise_x": noise} for noise in NOISES] + [{"nonlinearity": bend} for bend in BENDS]
    worlds = [InterventionSCM(alpha=2.0, seed=seed, **how) for how in broken]
    samples = [world.sample(values["rows"]) for world in worlds]
    fits = [Fit(s.x, s.a, 2, seed=seed) for s in samples]
    rows: list[MetricRow] = []
    found = train_autoencoders(fits, Training(steps=values["steps"]))
    for how, world, sample, one in zip(broken, worlds, samples, found, strict=True):
        place = " ".join(f"{name}={value:g}" for name, value in how.items()) or "none"
        rows += scalar_rows(_worth(world, sample, one), environment=place)
    return rows


def _worth(world: InterventionSCM, sample: Sample, one: Trained) -> dict[str, float]:
    fresh, targets = world.sample(_FRESH, 1), plane_targets(world.gamma)
    truth = world.do_mean(targets)
    control = AdditiveControlFunction().fit(one.module.encode(sample.x), sample.a, sample.y)
    return {
        "R2": linear_r2(fresh.z, one.module.encode(fresh.x)),
        "outside": ((control.predict_do(targets) - truth) ** 2).mean() / truth.var(),
    }


def confounding(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Error outside the support with and without psi(V), against the strength of confounding; one encoder serves all."""
    targets = np.linspace(-REACH, REACH, 51)[:, None]
    first = curve_world(seed, GAMMAS[-1]).sample(values["rows"])
    fit = Fit(first.x, first.a, 1, seed=seed)
    (trained,) = train_autoencoders([fit], Training(steps=values["encoder_steps"]), values["restarts"])
    phi = trained.module.encode(first.x)
    beyond = np.abs(targets[:, 0]) > GAMMAS[-1]
    rows: list[MetricRow] = []
    for strength in HIDDEN:
        world = curve_world(seed, GAMMAS[-1], strength)  # the same features and actions
        sample, truth = world.sample(values["rows"]), world.do_mean(targets)
        for name, control in ((MMR, True), (NO_CONTROL, False)):
            fitted = AdditiveControlFunction(control=control).fit(phi, sample.a, sample.y)
            error = ((fitted.predict_do(targets) - truth)[beyond] ** 2).mean()
            rows += scalar_rows({f"outside {name}": error}, environment=f"confounding={strength:g}")
    return rows


def sprites(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """R^2, linearity and reconstruction where features are pictures of a digit and latents its place; alpha 2."""
    world = InterventionSCM(dim_x=values["side"] ** 2, alpha=2.0, mixing="sprites", seed=seed)
    sample, fresh = world.sample(values["rows"]), world.sample(_FRESH, 1)
    fits = [Fit(sample.x, sample.a, 2, weight, seed=seed) for weight in (30.0, 0.0)]
    trained = train_autoencoders(fits, Training(steps=values["steps"], batch_size=values["batch_size"]))
    rows: list[MetricRow] = []
    for name, one in zip((MMR, VANILLA), trained, strict=True):
        phi = one.module.encode(fresh.x)
        found = {"R2": linear_r2(fresh.z, phi), "ratio": linearity_ratio(phi, fresh.a)}
        rows += scalar_rows({**found, "reconstruction": one.reconstruction}, environment=name)
    return rows


def null_statistic(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """V- and U-statistics of latents that do not depend on actions, and their expectation."""
    import torch

    from lightning_modules.causal.rep4ex.statistics import gram, projected_trace

    n, generator = 400, np.random.default_rng([seed, 93])
    a = generator.uniform(-1, 1, (n, 2))
    width = 0.3 * median_distance(a)
    draws = generator.standard_normal((values["draws"], n, 2))
    v, u = ([mmr_statistic(phi, a, width, kind, whiten=False) for phi in draws] for kind in ("v", "u"))
    at = torch.from_numpy(a)
    expected = 2 * float(projected_trace(gram(at, torch.tensor(width)), at)) / n**2
    error = float(np.std(v, ddof=1)) / len(v) ** 0.5
    found = {"mean": np.mean(v), "expected": expected, "errors": (np.mean(v) - expected) / error}
    return scalar_rows({**found, "negative": float(np.mean(np.array(u) < 0))})


def two_stage(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Linear second stage against two-stage least squares and plain least squares; truth (1, -2), three actions."""
    generator = np.random.default_rng([seed, 94])
    n = 500
    a, v = generator.uniform(-1, 1, (n, 3)), generator.standard_normal((n, 2))
    z = 2 * a @ np.linalg.qr(generator.standard_normal((3, 2)))[0] + v
    y = z @ np.array([1.0, -2.0]) + v @ np.array([0.8, 0.5]) + 0.3 * generator.standard_normal(n)
    control = AdditiveControlFunction("polynomial", penalty=0.0, degree=1).fit(z, a, y)
    design = np.concatenate([a, np.ones((n, 1))], 1)
    fitted = design @ np.linalg.lstsq(design, z, rcond=None)[0]
    second = fit_least_squares(fitted, y)[:2]
    plain = fit_least_squares(z, y)[:2]
    truth = np.array([1.0, -2.0])
    distances = {
        "to two stages": np.abs(control.coefficients - second).max(),
        "error": np.abs(control.coefficients - truth).max(),
        "plain error": np.abs(plain - truth).max(),
    }
    return scalar_rows(distances)
