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

    For a linear encoder z = M x the log-odds are g_t(x) = c_t + l_t u_t . x + (u_t . x)^2 - (r_t . x)^2 with u_t = lam_t M_t and
    r_t = B_t M: every environment has parameters of its own, p_t = (u_t, r_t, l_t, c_t), and is fitted by itself. Standard errors
    are those of an M-estimator, H^-1 V H^-1 with H the Hessian and V the covariance of the gradient, in which environments share
    the observational rows, passed on to the standardised weights by the delta method.

    Returns:
        "converged weight error": largest error of a true edge's |weight| there; "weight error in standard errors": the largest.
    """
    mean, spread = world.data.scales
    x_obs, *x_int = (torch.from_numpy((rows.astype(np.float64) - mean) / spread) for rows in world.data.arrays)
    pairs = list(zip(_parameters(module), x_int, strict=True))
    optimum = torch.stack([torch.from_numpy(_minimum(start, x_obs, rows)) for start, rows in pairs])
    d, size = optimum.shape
    curvature, shared = torch.zeros(d, size, d, size, dtype=torch.float64), []
    own = torch.zeros_like(curvature)
    for t, (p, rows) in enumerate(zip(optimum, x_int, strict=True)):
        bend = hessian(_cross_entropy)(p, x_obs, rows)
        curvature[t, :, t] = torch.linalg.pinv(bend, rtol=_FLAT, hermitian=True)
        shared.append(vmap(grad(_row_loss), (None, 0, None))(p, x_obs, -1.0))
        own[t, :, t] = torch.cov(vmap(grad(_row_loss), (None, 0, None))(p, rows, 1.0).T) / len(rows)
    gradients = torch.cov(torch.cat(shared, 1).T) / len(x_obs) + own.view(d * size, -1)
    inverse = curvature.view(d * size, -1)
    slopes = jacrev(_weights)(optimum, x_obs).flatten(2)
    errors = torch.einsum("ijp,pq,ijq->ij", slopes, inverse @ gradients @ inverse, slopes).sqrt().numpy()
    truth = world.weights
    off = np.abs(np.abs(truth) - np.abs(_weights(optimum, x_obs).numpy()))[truth != 0]
    return {
        "converged weight error": float(off.max(initial=0.0)),
        "weight error in standard errors": float((off / errors[truth != 0]).max(initial=0.0)),
    }


def _parameters(module: ContrastiveCRLModule) -> Tensor:
    """[d, 2 dx + 2] parameters p_t of a trained module."""
    mixed, head = module.encoder.get_parameter("weight_0")[0].detach().double(), module.head
    lam, slope, constant = (p[0].detach().double() for p in (head.curvature, head.slope, head.constant))
    b = head.b[0].detach().double() @ mixed.T
    return torch.cat([lam[:, None] * mixed.T, b, (slope / lam)[:, None], constant[:, None]], 1)


def _minimum(start: Tensor, x_obs: Tensor, x_int: Tensor) -> Array:
    def numbers(function: Any) -> Any:
        return lambda p: function(torch.from_numpy(p), x_obs, x_int).numpy()

    found: Array = minimize(
        numbers(_cross_entropy),
        start.numpy(),
        jac=numbers(grad(_cross_entropy)),
        hess=numbers(hessian(_cross_entropy)),
        method="trust-exact",
        options={"gtol": 1e-7, "maxiter": 10},
    ).x
    return found


def _row_loss(p: Tensor, x: Tensor, sign: float) -> Tensor:
    """softplus(sign g(x)) of rows [..., dx]: sign -1 for observational ones, 1 for the environment's."""
    dx = x.shape[-1]
    u = x @ p[:dx]
    log_odds = p[-1] + p[-2] * u + u**2 - (x @ p[dx : 2 * dx]) ** 2
    return torch.nn.functional.softplus(sign * log_odds)


def _cross_entropy(p: Tensor, x_obs: Tensor, x_int: Tensor) -> Tensor:
    return _row_loss(p, x_obs, -1.0).mean() + _row_loss(p, x_int, 1.0).mean()


def _weights(p: Tensor, x_obs: Tensor) -> Tensor:
    """Standardised weights [d, d] of the edges i -> j, of all environments' parameters."""
    dx = x_obs.shape[1]
    of_latents = p[:, dx : 2 * dx] @ torch.linalg.inv(p[:, :dx])
    spread = (x_obs @ p[:, :dx].T).std(0)
    found: Tensor = -(of_latents / of_latents.diagonal()[:, None]).T * spread[:, None] / spread
    return found
