"""Cells without sampled gradients: the linear model, products with a Hessian, and two equal settings of momentum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from jobs.claims import MetricRow, scalar_rows
from jobs.papers.opposing_signals.names import BETAS, FACTORS
from lightning_modules.dynamics.curvature import HessianProduct
from lightning_modules.dynamics.flat import FlatParameters, losses_at
from lightning_modules.dynamics.full_batch import FullBatchModule
from lightning_modules.dynamics.full_batch_data import FullBatchData
from lightning_modules.dynamics.loss_changes import opposition_rate
from lightning_modules.dynamics.opposing_linear import OpposingLinearModel
from lightning_modules.dynamics.sharpness import dense_hessian, sharpness

Settings = Mapping[str, Any]

_D = 5
_SMALL_CHANGE = 1e-6
"""Changes of a group's loss up to this are left out: they are rounding once the descent has ended."""


def _model(sizes: Sequence[float], alpha: float, k: int = 4, share: float = 0.2) -> OpposingLinearModel:
    direction = np.random.default_rng(7).standard_normal(_D)
    direction /= np.linalg.norm(direction)
    return OpposingLinearModel(np.array(sizes)[:, None] * direction, k, alpha, share=share)


def flow(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Sharpness along the gradient flow of the linear model, for every |beta|."""
    model = _model(BETAS, values["alpha"])
    start = model.start(seed=seed)
    path = model.gradient_flow(start, values["steps"], 20)
    curves, limit = model.sharpness(path.points), model.limit_sharpness(start)
    drift = np.abs(model.invariant(path.points) - model.invariant(start)).max(0)
    rows: list[MetricRow] = []
    for number, size in enumerate(BETAS):
        curve = curves[:, number]
        found = {
            "final": curve[-1],
            "final over the closed form": curve[-1] / limit[number],
            "final over alpha |beta|": curve[-1] / (values["alpha"] * size),
            "least over the start": curve.min() / curve[0],
            "drift": drift[number],
        }
        rows += scalar_rows(found, environment=f"beta={size:g}")
        rows += [
            (int(step), f"beta={size:g}", "test", "sharpness", float(value))
            for step, value in zip(path.steps[::50], curve[::50], strict=True)
        ]
    return rows


def simulated(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Population loss of the linear model over that of simulated rows."""
    model = _model((2.0,), 20.0)
    at = model.start(seed=seed)
    x, signal, y = model.simulate(values["rows"], seed)
    error = at.c[0] * (x @ at.b[0] + signal @ at.o[0]) - y
    return scalar_rows({"loss over the sample's": model.loss(at)[0] / (0.5 * (error**2).mean())})


def edge(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Gradient descent of the linear model with step sizes below and above 2 / the flow's final sharpness."""
    factors = np.array(FACTORS)
    model = _model([2.0] * len(factors), 20.0, k=1, share=1.0)
    start = model.start(seed=seed)
    limit = model.limit_sharpness(start)
    rate = factors * 2 / limit
    path = model.gradient_descent(start, rate, values["steps"])
    curves, excess = model.sharpness(path.points), model.excess(path.points)
    z = path.points.c * (path.points.o @ model.u)
    first, second = (np.diff(losses, axis=0) for losses in model.group_losses(path.points))
    rows: list[MetricRow] = []
    for number, factor in enumerate(FACTORS):
        above = curves[:-1, number] > 2 / rate[number]
        flips = z[1:, number] * z[:-1, number] < 0
        found = {
            "largest sharpness over 2/eta": curves[:, number].max() * rate[number] / 2,
            "final sharpness over 2/eta": curves[-1, number] * rate[number] / 2,
            "final sharpness over the flow's": curves[-1, number] / limit[number],
            "steps above": above.sum(),
            "sign flips above": flips[above].mean() if above.any() else np.nan,
            "final excess loss": excess[-1, number],
            "groups oppose": opposition_rate(first[:, number].tolist(), second[:, number].tolist(), _SMALL_CHANGE),
        }
        known = {name: value for name, value in found.items() if np.isfinite(value)}
        rows += scalar_rows(known, environment=f"factor={factor:g}")
    return rows


def products(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Products with the Hessian of a small network, and its sharpness, against the whole Hessian in double precision."""
    data = FullBatchData(subset=values["rows"])
    data.setup()
    x, y = data.train.tensors
    module = FullBatchModule(width=values["width"], seed=seed).double()
    losses, theta = losses_at(module, (x.double(), y)), FlatParameters(module).vector()
    hessian, product = dense_hessian(losses, theta), HessianProduct([losses], theta)
    vectors = torch.randn(10, len(theta), generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    top = float(torch.linalg.eigvalsh(hessian)[-1])
    found = {"difference": max(float((product(v) - hessian @ v).abs().max()) for v in vectors)}
    for name in ("power", "lanczos"):
        value = sharpness(losses, theta, name, tolerance=1e-6, iterations=20_000, seed=seed).value
        found[f"{name}, relative error"] = abs(value / top - 1)
    return scalar_rows(found)


def rescaled(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Heavy ball with step size lr, and with lr / (1 - momentum) and dampening = momentum, both from momentum 0."""
    data = FullBatchData()
    data.setup()
    ends = []
    for lr, dampening in ((0.1, 0.0), (1.0, 0.9)):
        module = FullBatchModule(lr=lr, momentum=0.9, dampening=dampening, seed=seed)
        optimizer = module.configure_optimizers()
        for p in module.parameters():  # torch would take the first gradient undampened
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        for _ in range(values["steps"]):
            optimizer.zero_grad()
            module.per_example_losses((data.train.tensors[0], data.train.tensors[1])).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        ends.append(FlatParameters(module).vector())
    return scalar_rows({"difference": float((ends[0] - ends[1]).abs().max())})
