"""What the cells measure. Models of a cell train as one pack where they can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jobs.claims import MetricRow, scalar_rows
from jobs.papers.interventional_crl.names import (
    CODE,
    COVARIANCES,
    FREE_HEAD,
    GRAPH_VAE,
    LINEAR_ENCODER,
    NO_INTERVENTION,
    ORDER,
    PCA,
    REORDERED,
    SHIFTS,
    SHUFFLED,
    VAE,
    ZERO_SHIFT,
)
from jobs.papers.interventional_crl.sampling import weights_and_chance
from lightning_modules.causal.contrastive.baselines import (
    contrast_code,
    fit_autoencoder,
    fit_graph_autoencoder,
    principal_components,
)
from lightning_modules.causal.contrastive.data import GivenData
from lightning_modules.causal.contrastive.environments import World, simulate
from lightning_modules.causal.contrastive.fits import ITERATIONS, fit_linear, fit_module, go_on
from lightning_modules.causal.contrastive.linear_disentanglement import (
    disentangle,
    disentangle_by_shifts,
    linear_disentanglement,
)
from lightning_modules.causal.contrastive.module import ContrastiveCRLModule
from lightning_modules.causal.contrastive.pack import Fit, Trained, Training, train_pack
from lightning_modules.causal.contrastive.recovery import graph_found, held_out_cross_entropy, latents_found, recovery
from lightning_modules.causal.contrastive.scm import Intervention, LinearGaussianSCM, log_odds_exact, sample_er_dag
from lightning_modules.causal.metrics import mean_correlation_coefficient, structural_hamming_distance

Array = np.ndarray
Settings = Mapping[str, Any]
_KINDS: dict[str, dict[str, Any]] = {LINEAR_ENCODER: {"encoder": "linear", "lr": 1e-2}, FREE_HEAD: {"head": "linear"}}
_NARROW = 32


def identities(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Log-odds against Gaussian log-densities, and the rank of the precisions' difference, over random models."""
    rng = np.random.default_rng([seed, 95])
    worst = rank_one_gap = wrong_ranks = 0.0
    for _ in range(20):
        scm = LinearGaussianSCM(sample_er_dag(6, 2.0, rng), rng.uniform(1, 2, 6), rng)
        z = scm.sample(200)
        for t in range(scm.d):
            intervention = Intervention(t, float(rng.uniform(1, 2)), float(rng.uniform(1, 2)))
            mean, precision = scm.intervened(intervention)
            direct = _log_density(z, np.zeros(scm.d), scm.precision) - _log_density(z, mean, precision)
            worst = max(worst, float(np.abs(direct - log_odds_exact(scm, z, intervention)).max()))
            difference, unit = precision - scm.precision, np.eye(scm.d)[t]
            expected = np.outer(unit, unit) / intervention.var - np.outer(scm.B[t], scm.B[t])
            rank_one_gap = max(rank_one_gap, float(np.abs(difference - expected).max()))
            rank = np.linalg.matrix_rank(difference, tol=1e-9)
            wrong_ranks += rank != (2 if scm.W[:, t].any() else 1)
    return scalar_rows({"log-odds error": worst, "precision error": rank_one_gap, "wrong ranks": wrong_ranks})


def _log_density(z: Array, mean: Array, precision: Array) -> Array:
    centred = z - mean
    quadratic = np.einsum("ni,ij,nj->n", centred, precision, centred)
    found: Array = 0.5 * (np.linalg.slogdet(precision)[1] - quadratic - len(mean) * np.log(2 * np.pi))
    return found


def closed_forms(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Closed forms on the exact moments of random models under linear mixings, environments in any order: their largest errors."""
    rng, errors = np.random.default_rng([seed, 96]), {COVARIANCES: 0.0, SHIFTS: 0.0}
    for _ in range(20):
        scm = LinearGaussianSCM(sample_er_dag(6, 2.0, rng), rng.uniform(1, 2, 6), rng)
        mixing, order = rng.standard_normal((9, 6)), rng.permutation(6)
        moments = [scm.intervened(Intervention(int(t), rng.uniform(1, 2), rng.uniform(1, 2))) for t in order]
        observational, *others = (
            mixing @ np.linalg.inv(p) @ mixing.T for p in (scm.precision, *(p for _, p in moments))
        )
        spread = np.sqrt(np.diag(np.linalg.inv(scm.precision)))
        scores = (np.abs(scm.B.T) * spread[:, None] * (1 - np.eye(6)))[np.ix_(order, order)]
        for name, found in (
            (COVARIANCES, disentangle(observational, others)),
            (SHIFTS, disentangle_by_shifts(observational, others, [mixing @ mean for mean, _ in moments])),
        ):
            latents = (found.unmixing @ mixing)[:, order]  # of a latent's own unit, where it is solved
            off = np.abs(latents / np.diag(latents)[:, None] - np.eye(6)).max()
            errors[name] = max(errors[name], float(off), float(np.abs(found.edge_scores() - scores).max()))
    return [row for name, error in errors.items() for row in scalar_rows({"error": error}, environment=name)]


def linear_mixing(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Five latents under a linear mixing to five features: a linear encoder by L-BFGS on all rows, or a closed form."""
    world = simulate(5, 2.0, 5, values["rows"], "linear", seed)
    if method in (COVARIANCES, SHIFTS):
        return _closed_form(method, world, seed)
    trained = fit_linear(world.data, seed)
    return _rows(world, trained, seed, weights_and_chance(trained.module, world) if values.get("chance") else None)


def network_mixing(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """One method on worlds whose mixing is the paper's network, five latents, twenty features."""
    return _worlds(method, _simulated(seed, values), seed, values)


def narrow_network_mixing(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """The same with hidden layers of 32, a mixing that bends more."""
    return _worlds(method, _simulated(seed, values, width=_NARROW), seed, values)


def sizes(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Other numbers of latents, edges and features."""
    return _worlds(
        method, _simulated(seed, values, d=values["d"], degree=values["degree"], dx=values["dx"]), seed, values
    )


def noise(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Latents whose noise is not Gaussian."""
    return _worlds(method, _simulated(seed, values, noise=values["noise"]), seed, values)


def learning_rates(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Other learning rates of encoder and head."""
    return _worlds(method, _simulated(seed, values), seed, values, lr=values["lr"], lr_head=values["lr_head"])


def original_protocol(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Rows as they are, hidden layer of 512, one learning rate of 5e-4 for all, cut on plateaus: the authors' settings."""
    world = simulate(n=values["rows"], seed=seed)
    training, held_out = world.data.split(0.2, seed)
    module = ContrastiveCRLModule(
        world.data.dx,
        world.data.d,
        width=512,
        lr=5e-4,
        lr_head=5e-4,
        schedule="plateau",
        standardise_x=False,
        seed=seed,
    )
    # The authors' batch of 512 holds interventional rows of all environments.
    taken = fit_module(module, GivenData(training, held_out, 512 // world.data.d, seed), values["steps"], 80)
    value = float(held_out_cross_entropy(module.cpu().eval(), held_out).mean())
    return _rows(world, Trained(module, value, taken, training, held_out), seed)


def overfitting(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Training on past the best validation by L-BFGS: with and without the module's options against it."""
    world = simulate(n=values["rows"], seed=seed)
    (start,) = train_pack([Fit(world.data, seed)], Training(steps=values["steps"]))
    steps = values["iterations"] // ITERATIONS
    rows: list[MetricRow] = []
    models = {
        "before": start,
        "after": go_on(start, steps, keep_best=False),
        "kept": go_on(start, steps, keep_best=True, patience=2),
    }
    for name, model in models.items():
        found = recovery(model.module, world)
        found["train CE"] = float(held_out_cross_entropy(model.module, model.training).mean())
        found |= {"held-out CE": model.cross_entropy, "Bayes": world.bayes, "steps": model.steps}
        rows += scalar_rows(found, environment=name)
    return rows


def broken(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Data that lack what identifies the latents; and environments in another order, which lack nothing."""
    worlds = [
        simulate(n=values["rows"], seed=seed + number, shift=method != ZERO_SHIFT)
        for number in range(values.get("count", 1))
    ]
    if method == REORDERED:
        worlds = [world.reordered(ORDER) for world in worlds]
    fits = []
    for number, world in enumerate(worlds, seed):
        data = {
            NO_INTERVENTION: world.data.without_interventions,
            SHUFFLED: world.data.shuffled,
        }.get(method, lambda _, data=world.data: data)(number)
        fits.append(Fit(data, number))
    rows: list[MetricRow] = []
    for fit, world, trained in zip(fits, worlds, train_pack(fits, Training(steps=values["steps"])), strict=True):
        z = trained.module.transform(world.x_test)
        more = {"absolute MCC": mean_correlation_coefficient(np.abs(world.z_test), np.abs(z))}
        more["train CE"] = float(held_out_cross_entropy(trained.module, trained.training).mean())
        wrong, scores = world.scm.standardised_weights(), trained.module.edge_scores()
        more["SHD not re-indexed"] = structural_hamming_distance(wrong, scores, n_edges=int((wrong != 0).sum()))
        rows += _rows(world, trained, fit.seed, more)
    return rows


def balls(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Pictures of coloured balls whose coordinates are the latents."""
    d, side = values["d"], values["side"]
    world = simulate(d, 2.0, 3 * side**2, values["rows"], "balls", seed, n_test=2000)
    training = Training(steps=values["steps"], batch_size=values["batch"], encoder="conv")
    if method == CODE:
        return _rows(*contrast_code(world, training, seed), seed)
    (trained,) = train_pack([Fit(world.data, seed)], training)
    return _rows(world, trained, seed)


def _simulated(first: int, values: Settings, **how: Any) -> list[World]:
    return [simulate(n=values["rows"], seed=first + number, **how) for number in range(values["count"])]


def _worlds(method: str, worlds: Sequence[World], first: int, values: Settings, **more: Any) -> list[MetricRow]:
    rows: list[MetricRow] = []
    if method in (VAE, GRAPH_VAE, PCA, COVARIANCES, SHIFTS):
        for seed, world in enumerate(worlds, first):
            rows += _rival(method, world, seed, values)
        return rows
    training = Training(steps=values["steps"], **_KINDS.get(method, {}), **more)
    fits = [Fit(world.data, seed) for seed, world in enumerate(worlds, first)]
    for fit, world, trained in zip(fits, worlds, train_pack(fits, training, values.get("restarts", 1)), strict=True):
        rows += _rows(world, trained, fit.seed)
    return rows


def _rival(method: str, world: World, seed: int, values: Settings) -> list[MetricRow]:
    if method == GRAPH_VAE:
        return _rows(world, fit_graph_autoencoder(world.data, values["steps"], seed), seed)
    if method in (COVARIANCES, SHIFTS):
        return _closed_form(method, world, seed)
    if method == PCA:
        z = principal_components(world.data, world.x_test)
    else:
        z = fit_autoencoder(world.data, values["steps"], seed).transform(world.x_test)
    return scalar_rows(latents_found(world, z), environment=f"seed {seed}")


def _closed_form(method: str, world: World, seed: int) -> list[MetricRow]:
    found = linear_disentanglement(world.data, method == SHIFTS)
    measured = latents_found(world, found.transform(world.x_test)) | graph_found(world, found.edge_scores())
    return scalar_rows(measured, environment=f"seed {seed}")


def _rows(world: World, trained: Trained, seed: int, more: Mapping[str, float] | None = None) -> list[MetricRow]:
    found = recovery(trained.module, world)
    found |= {"held-out CE": trained.cross_entropy, "best step": trained.steps, **(more or {})}
    if world.scm.noise == "gaussian":
        found["Bayes"] = world.bayes
    return scalar_rows(found, environment=f"seed {seed}")
