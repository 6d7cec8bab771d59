"""How far weights may be off by chance alone: the cross-entropy's exact optimum, and its standard errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.func import grad, hessian, jacrev, vmap

from lightning_modules.causal.contrastive.environments import World
from lightning_modules.causal.contrastive.module import ContrastiveCRLModule

Array = np.ndarray

_FLAT = 1e-8
"""Curvature, of the largest, below which a direction counts as free: a node without parents leaves some."""


def weights_and_chance(module: ContrastiveCRLModule, world: World) -> dict[str, float]:
    """Take a linear encoder's cross-entropy to its optimum in float64, and its true edges' weights in standard errors.

    For a linear encoder z = M x and head everything is in u_t = lam_t M_t and r_t = B_t M, the slopes and the constants:
    g_t(x) = c_t + l_t u_t . x + (u_t . x)^2 - (r_t . x)^2. Standard errors are those of an M-estimator, H^-1 V H^-1 with H the
    Hessian and V the covariance of the gradient, passed on to the standardised weights by the delta method.

    Returns:
        "converged weight error": largest error of a true edge's |weight| there; "weight error in standard errors": the largest.
    """
    mean, spread = world.data.scales
    x_obs, *x_int = (
        torch.from_numpy((rows.astype(np.float64) - mean) / spread) for rows in (world.data.x_obs, *world.data.x_int)
    )
    start = _parameters(module)
    optimum = torch.from_numpy(_minimum(start, x_obs, x_int))
    curvature = torch.linalg.pinv(hessian(_cross_entropy)(optimum, x_obs, x_int), rtol=_FLAT, hermitian=True)
    parts = [vmap(grad(_obs_loss), (None, 0))(optimum, x_obs)]
    for t, rows in enumerate(x_int):
        parts.append(vmap(grad(lambda p, x, t=t: _int_loss(p, x, t)), (None, 0))(optimum, rows))
    gradients = sum(torch.cov(part.T) / len(part) for part in parts)
    covariance = curvature @ gradients @ curvature
    slopes = jacrev(_weights)(optimum, x_obs)
    errors = torch.einsum("ijp,pq,ijq->ij", slopes, covariance, slopes).sqrt().numpy()
    truth = world.weights
    off = np.abs(np.abs(truth) - np.abs(_weights(optimum, x_obs).numpy()))[truth != 0]
    return {
        "converged weight error": float(off.max(initial=0.0)),
        "weight error in standard errors": float((off / errors[truth != 0]).max(initial=0.0)),
    }


def _minimum(start: Tensor, x_obs: Tensor, x_int: list[Tensor]) -> Array:
    def numbers(function: Any) -> Any:
        return lambda p: function(torch.from_numpy(p), x_obs, x_int).numpy()

    found: Array = minimize(
        numbers(_cross_entropy),
        start.numpy(),
        jac=numbers(grad(_cross_entropy)),
        hess=numbers(hessian(_cross_entropy)),
        method="trust-exact",
        options={"gtol": 1e-7, "maxiter": 6},
    ).x
    return found


def _parameters(module: ContrastiveCRLModule) -> Tensor:
    mixed, head = module.encoder.get_parameter("weight_0")[0].detach().double(), module.head
    lam = head.curvature[0].detach().double()
    rows, b = lam[:, None] * mixed.T, head.b[0].detach().double() @ mixed.T
    return torch.cat([rows.flatten(), b.flatten(), head.slope[0].detach().double() / lam, head.constant[0].detach()])


def _split(p: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d = round((len(p) + 1) ** 0.5 / 2**0.5 - 0.5)  # 2 d^2 + 2 d numbers
    return p[: d * d].view(d, d), p[d * d : 2 * d * d].view(d, d), p[2 * d * d : -d], p[-d:]


def _obs_loss(p: Tensor, x: Tensor) -> Tensor:
    """Mean over environments, of one row [dx]."""
    rows, b, slope, constant = _split(p)
    u = rows @ x
    return torch.nn.functional.softplus(-(constant + slope * u + u**2 - (b @ x) ** 2)).mean()


def _int_loss(p: Tensor, x: Tensor, t: int) -> Tensor:
    rows, b, slope, constant = _split(p)
    u = rows[t] @ x
    return torch.nn.functional.softplus(constant[t] + slope[t] * u + u**2 - (b[t] @ x) ** 2) / len(rows)


def _cross_entropy(p: Tensor, x_obs: Tensor, x_int: list[Tensor]) -> Tensor:
    found = vmap(_obs_loss, (None, 0))(p, x_obs).mean()
    for t, x in enumerate(x_int):
        found = found + vmap(lambda q, row, t=t: _int_loss(q, row, t), (None, 0))(p, x).mean()
    return found


def _weights(p: Tensor, x_obs: Tensor) -> Tensor:
    """Standardised weights [d, d] of the edges i -> j."""
    rows, b, _, _ = _split(p)
    of_latents = b @ torch.linalg.inv(rows)
    spread = (x_obs @ rows.T).std(0)
    found: Tensor = -(of_latents / of_latents.diagonal()[:, None]).T * spread[:, None] / spread
    return found
