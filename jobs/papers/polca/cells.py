"""What the cells of identities and of the planted skill compute."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jobs.claims import MetricRow, scalar_rows
from jobs.papers.polca.names import SPACINGS
from lightning_modules.dynamics.baselines import exact_loss_curves, fisher_clusters, loss_change_curves
from lightning_modules.dynamics.basis import (
    AxisBasis,
    MakesBasis,
    RandomBasis,
    TrajectoryPCABasis,
    orthonormality_error,
)
from lightning_modules.dynamics.breakthroughs import breakthrough
from lightning_modules.dynamics.clusters import Cluster, best_f1, clusters_of, f1, find_clusters, homogeneity
from lightning_modules.dynamics.curvature import HessianProduct
from lightning_modules.dynamics.flat import FlatParameters, LossesAt, directional_derivatives, losses_at
from lightning_modules.dynamics.hessian_basis import HessianBasis
from lightning_modules.dynamics.planted_skill import PlantedRun, train_planted
from lightning_modules.dynamics.polca import Projected, polca, polca_orders
from lightning_modules.dynamics.recorder import Checkpoints
from lightning_modules.sequence.addition import AdditionData, AdditionLM
from lightning_modules.sequence.language_model import TokenLosses

_BREAK = 5
"""Checkpoints (of 20 steps) to either side of a planted breakthrough: 100 steps, the paper's Delta."""


def identities(name: str) -> list[MetricRow]:
    """Largest errors of what must hold exactly."""
    kinds = {"quadratic": _quadratic, "complete": _complete, "gradients": _gradients, "eigenvectors": _eigenvectors}
    return scalar_rows(kinds[name]())


def _quadratic() -> dict[str, float]:
    """Squared losses of 50 rows in 12 dimensions, one jump, directions all eigenvectors of the mean's Hessian."""
    generator = np.random.default_rng(0)
    a, y = (torch.from_numpy(generator.standard_normal(shape)) for shape in ((50, 12), (50,)))
    start, end = (torch.from_numpy(generator.standard_normal(12)) for _ in range(2))

    def losses(theta: Tensor) -> Tensor:
        return (a @ theta - y).square()

    vectors = torch.linalg.eigh(2 * a.T @ a / 50).eigenvectors.T.contiguous()
    true = losses(end) - losses(start)
    checkpoints = Checkpoints([0, 1], [start, end], torch.double)
    found = polca_orders(losses, checkpoints, vectors, ("trapezoid", "ratio", "exact"))
    trapezoid, ratio, own = (each.values[0] for each in found)
    return {
        "ratio": float((ratio.sum(0) - true).abs().max()),
        "ratio against trapezoid": float((ratio - trapezoid).abs().max()),
        "own curvature, rows": float((own.sum(0) - true).abs().max()),
        "own curvature, mean": float((own.sum(0).mean() - true.mean()).abs()),
    }


def _tiny() -> tuple[LossesAt, Tensor, int]:
    """Token losses of a transformer of a few hundred weights on one-digit sums, in float64."""
    module = AdditionLM(digits=1, layers=1, width=4, heads=2, hidden=4, init_std=0.5).double()
    losses = losses_at(TokenLosses(module), AdditionData(digits=1, train=20).train_tokens)
    theta = FlatParameters(module).vector()
    return losses, theta, len(theta)


def _complete() -> dict[str, float]:
    """A complete basis, and the mean of tokens' curves against the curve of the mean."""
    losses, theta, size = _tiny()
    moved = 0.1 * torch.from_numpy(np.random.default_rng(1).standard_normal(size))
    checkpoints = Checkpoints([0, 1], [theta, theta + moved], torch.double)
    found = polca(losses, checkpoints, RandomBasis(size, 2).fit(checkpoints), 1)
    whole = directional_derivatives(losses, theta, moved[None])[0]
    few = RandomBasis(5, 3).fit(checkpoints)
    tokens = polca(losses, checkpoints, few).values.mean(2)
    mean = polca(lambda at: losses(at).mean()[None], checkpoints, few).values[..., 0]
    return {
        "first order": float((found.values[0].sum(0) - whole).abs().max()),
        "mean of curves": float((tokens - mean).abs().max()),
    }


def _gradients() -> dict[str, float]:
    """Forward mode in float32 against each token's own gradient, relative to the largest product."""
    module, data = AdditionLM(), AdditionData(train=5)
    losses = losses_at(TokenLosses(module), data.train_tokens)
    theta = FlatParameters(module).vector()
    vectors = RandomBasis(4).fit(Checkpoints([0, 1], [theta, theta + 1])).vectors
    along = directional_derivatives(losses, theta, vectors)
    leaf = theta.clone().requires_grad_()
    each = torch.stack([torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in losses(leaf)])
    products = vectors @ each.T
    return {"relative": float((along - products).abs().max() / products.abs().max())}


def _eigenvectors() -> dict[str, float]:
    """Lanczos against all eigenvectors of P H P of the planted net, one direction after the other, in float64."""
    planted = train_planted(0, steps=240)
    basis = HessianBasis(1, 40, tolerance=0.0).fit(planted.checkpoints, [planted.training])
    cosine, value = 0.0, 0.0
    for number, step in enumerate(basis.steps):
        theta = planted.checkpoints[planted.checkpoints.steps.index(step)]
        product = HessianProduct([planted.training], theta)
        hessian = torch.stack([product(row) for row in torch.eye(64, dtype=torch.double)])
        before = basis.vectors[:number]
        p = torch.eye(64, dtype=torch.double) - before.T @ before
        values, vectors = torch.linalg.eigh(p @ (hessian + hessian.T) @ p / 2)
        cosine = max(cosine, 1 - abs(float(vectors[:, -1] @ basis.vectors[number])))
        value = max(value, abs(float(values[-1] - basis.values[number])))
    return {"1 - cosine": cosine, "eigenvalue": value, "orthonormal": orthonormality_error(basis.vectors)}


def planted(method: str, seed: int, order: str) -> list[MetricRow]:
    """Train the planted net, take it apart, cluster, and compare clusters with the hidden feature."""
    made = train_planted(seed)
    makers: dict[str, MakesBasis] = {
        "hessian": HessianBasis(1, 120, 20),
        "shuffled": HessianBasis(1, 120, 20, shuffle=seed),
        "pca": TrajectoryPCABasis(4),
        "random": RandomBasis(20, seed),
        "axis": AxisBasis(20),
    }
    basis = makers.get(method, makers["hessian"]).fit(made.checkpoints, [made.training])
    found = polca(made.held_out, made.checkpoints, basis, "trapezoid" if order == "none" else order)  # type: ignore[arg-type]
    clusters = {
        "exact loss": lambda: clusters_of(exact_loss_curves(found)),
        "loss change": lambda: clusters_of(loss_change_curves(found)),
        "fisher": lambda: fisher_clusters(found),
    }.get(method, lambda: find_clusters(found))()
    values = {
        "clusters": len(clusters),
        "f1": best_f1(clusters, made.hidden),
        "f1 without noise": best_f1(clusters, made.hidden, noise_counts=False),
        "homogeneity": homogeneity(clusters, made.hidden),
        "share": found.share,
        "share of first order": found.captured_first / found.total,
        "total": found.total,
    }
    rows = scalar_rows(values)
    if method == "hessian" and order == "trapezoid" and clusters:
        rows += _curves(found, max(clusters, key=lambda c: f1(c, made.hidden)), made)
    return rows


def _curves(found: Projected, best: Cluster, made: PlantedRun) -> list[MetricRow]:
    """Mean curves of the best cluster and of the examples outside it along its direction, and the mean loss."""
    curves = found.curves(best.direction).numpy()
    outside = np.setdiff1d(np.arange(len(curves)), best.members)
    inside, others, loss = curves[best.members].mean(0), curves[outside].mean(0), found.losses.mean(1).numpy()
    rows: list[MetricRow] = []
    for t, step in enumerate(found.steps):
        each = {"best cluster": inside[t], "others": others[t], "mean loss": loss[t]}
        rows += scalar_rows({name: float(value) for name, value in each.items()}, step, "curve")
    ends = {"cluster": inside, "loss": loss}
    at = {f"{name} end": float(found.steps[int(breakthrough(curve, _BREAK))]) for name, curve in ends.items()}
    return rows + scalar_rows(at, environment="break")


def intervals(seed: int) -> list[MetricRow]:
    """Share of the loss change that a complete basis captures of steps 0 to 800, by steps between records."""
    made = train_planted(seed, steps=800, every=1)
    whole = torch.eye(made.checkpoints.size, dtype=torch.double)
    # The mean loss suffices: contributions of a mean are means of contributions.
    rows: list[MetricRow] = []
    for spacing in SPACINGS:
        found = polca(lambda at: made.held_out(at).mean()[None], made.checkpoints.every(spacing), whole)
        rows += scalar_rows({"share": found.share}, step=spacing)
    return rows
