"""Exact risks of linear predictors under Gaussian features, the objectives on them, and their minimisers.

The margin m = y (w.z) of a linear predictor is N(a, q) with a = w.mu and q = sum_j w_j^2 var_j, so a risk is a
one-dimensional integral, a sum over 101 nodes: no sampling. Everything is vectorised over leading axes, which
broadcast: cells, environments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.errors import InputError

NODES = 101

PATH = (1e1, 1e2, 1e3, 1e4, 1e5)
"""Weights of a penalty that continuation goes through: a single huge one from afar stalls."""

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


def population_risk(w: Tensor, mean: Tensor, var: Tensor, bias: float | None = None, eta: float = 0.5) -> Tensor:
    """Expected logistic loss E log(1 + exp(-m)), [...].

    Args:
        w: weights [..., d].
        mean: mean of y z, [..., d].
        var: variances of y z, [..., d]; the features are independent given y.
        bias: intercept; None for none.
        eta: P(y=+1); without effect where there is no intercept.
    """
    margins, weights = _margins(w, mean, var, bias, eta)
    risk: Tensor = F.softplus(-margins) @ weights
    return risk


def population_grad(w: Tensor, mean: Tensor, var: Tensor, bias: float | None = None, eta: float = 0.5) -> Tensor:
    """Gradient of `population_risk` in w [..., d], or in (w, intercept) [..., d+1] where there is an intercept.

    -E[sig(-m)] mu + E[sig(m) sig(-m)] diag(var) w, by Stein's lemma.
    """
    margins, weights = _margins(w, mean, var, bias, eta)
    miss = torch.sigmoid(-margins)
    curvature = (miss * (1 - miss)) @ weights
    gradient = curvature.unsqueeze(-1) * var * w - (miss @ weights).unsqueeze(-1) * mean
    if bias is None:
        return gradient
    sign = torch.ones_like(weights)
    sign[len(weights) // 2 :] = -1
    return torch.cat([gradient, -(miss @ (weights * sign)).unsqueeze(-1)], -1)


def irmv1_penalty(w: Tensor, mean: Tensor, var: Tensor, bias: float | None = None, eta: float = 0.5) -> Tensor:
    """IRMv1's (d/dv R(v f) at v=1)^2 = E[-sig(-m) m]^2, [...]; arguments as in `population_risk`."""
    margins, weights = _margins(w, mean, var, bias, eta)
    slope: Tensor = (-torch.sigmoid(-margins) * margins) @ weights
    return slope.square()


def population_accuracy(w: Tensor, mean: Tensor, var: Tensor, bias: float | None = None, eta: float = 0.5) -> Tensor:
    """P(m > 0), [...]; arguments as in `population_risk`. Weights of zero score 1/2 where there is no intercept."""
    a, deviation = (w * mean).sum(-1), (w.square() * var).sum(-1).sqrt()
    if bias is None:
        alone: Tensor = torch.special.ndtr(torch.where(deviation > 0, a / deviation, torch.zeros_like(a)))
        return alone
    up: Tensor = torch.special.ndtr((a + bias) / deviation)
    down: Tensor = torch.special.ndtr((a - bias) / deviation)
    return eta * up + (1 - eta) * down


def _margins(w: Tensor, mean: Tensor, var: Tensor, bias: float | None, eta: float) -> tuple[Tensor, Tensor]:
    """Values of the margin [..., K] and their weights [K]; with an intercept, first those of y=+1, then of y=-1."""
    nodes, weights = (torch.as_tensor(v, dtype=mean.dtype, device=mean.device) for v in _normal_rule())
    a, q = (w * mean).sum(-1, keepdim=True), (w.square() * var).sum(-1, keepdim=True)
    margins = a + q.sqrt() * nodes
    if bias is None:
        return margins, weights
    return torch.cat([margins + bias, margins - bias], -1), torch.cat([eta * weights, (1 - eta) * weights])


@functools.cache
def _normal_rule() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for expectations under N(0, 1): the trapezoidal rule on [-8, 8].

    A logistic loss is analytic in a strip only, of width pi / sqrt(q) on either side: there equal steps h err by
    exp(-2 pi^2 / (h sqrt(q))), about 1e-8 for sqrt(q) = 7, where 101 Gauss-Hermite nodes err by about 1e-6.
    """
    nodes = np.linspace(-8, 8, NODES)
    weights = np.exp(-(nodes**2) / 2)
    return nodes, weights / weights.sum()


# Objectives: pure functions of the environments' risks [..., E], IRMv1's derivatives [..., E] and a weight [...].


def erm(risks: Tensor, slopes: Tensor, lam: Tensor) -> Tensor:
    """mean_e R_e."""
    return risks.mean(-1)


def irmv1(risks: Tensor, slopes: Tensor, lam: Tensor) -> Tensor:
    """mean_e [R_e + lam (d/dv R_e(v f) at v=1)^2] (Arjovsky et al., arXiv 1907.02893)."""
    return risks.mean(-1) + lam * slopes.square().mean(-1)


def vrex(risks: Tensor, slopes: Tensor, lam: Tensor) -> Tensor:
    """mean_e R_e + lam Var_e(R_e), population variance (Krueger et al., arXiv 2003.00688)."""
    return risks.mean(-1) + lam * _several(risks, "vrex").var(-1, correction=0)


def rvp(risks: Tensor, slopes: Tensor, lam: Tensor) -> Tensor:
    """mean_e R_e + lam Std_e(R_e) (Xie et al., arXiv 2006.07544); its gradient is 0, not NaN, at equal risks."""
    variance = _several(risks, "rvp").var(-1, correction=0)
    safe = torch.where(variance > 0, variance, torch.ones_like(variance))
    return risks.mean(-1) + lam * torch.where(variance > 0, safe.sqrt(), torch.zeros_like(variance))


def mm_rex(risks: Tensor, slopes: Tensor, lam: Tensor) -> Tensor:
    """(1 + E a) max_e R_e - a sum_e R_e with a = lam >= 0 (Krueger et al., arXiv 2003.00688)."""
    return (1 + risks.shape[-1] * lam) * risks.amax(-1) - lam * risks.sum(-1)


def _several(risks: Tensor, name: str) -> Tensor:
    if risks.shape[-1] < 2:
        raise InputError(
            f"{name}: needs the risks of at least 2 environments, got {risks.shape[-1]}; add one or use erm"
        )
    return risks


OBJECTIVES: dict[str, Objective] = {"erm": erm, "irmv1": irmv1, "vrex": vrex, "rvp": rvp, "mm_rex": mm_rex}
"""Objectives by name."""


def objective(name: str) -> Objective:
    """Return an objective by its name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in OBJECTIVES:
        raise InputError(f"objective: unknown {name!r}; choose one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def risks_and_slopes(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean logistic loss and IRMv1's derivative d/dv R(v f) at v=1 of each environment, [..., E] each.

    Args:
        logits: [..., E, n].
        y: labels [..., E, n] in {-1, +1}.
    """
    margins = y * logits
    return F.softplus(-margins).mean(-1), (-torch.sigmoid(-margins) * margins).mean(-1)


def population_optimum(
    name: str,
    mean: Tensor,
    var: Tensor,
    path: Sequence[float] = PATH,
    restart: bool = True,
    tolerance: float = 1e-10,
    iterations: int = 200,
) -> Tensor:
    """Minimise an objective's population form over linear predictors, many cells at once.

    Starts from the ERM optimum (found from the environments' mean) and raises the penalty's weight along `path`, each
    time by Newton's method with the Hessian's eigenvalues made positive and the best of 24 step lengths. MM-REx, which
    has a kink where risks are equal, is smoothed by a log-sum-exp whose temperature falls as its weight grows.

    IRMv1 is not convex: its derivative also falls where an environment's risk goes to zero, so that descent from the
    ERM optimum can end in a point of large penalty. Therefore it starts a second time, from V-REx's optimum, and each
    cell keeps the better end.

    Args:
        name: see `OBJECTIVES`.
        mean: mean of y z, [C, E, d] float64.
        var: variances of y z, [C, E, d].
        path: weights, ascending; without effect on ERM.
        restart: whether IRMv1 starts that second time; without effect on the others, and for one environment.
        tolerance: a cell is done when Newton's predicted decrease falls below it, relative to 1 + |objective|.
        iterations: at most, for each weight.

    Returns:
        Weights [C, d] at the last weight of the path.

    Raises:
        InputError: unknown objective, shapes that differ, or too few environments for it.
        FloatingPointError: the objective is not finite at the start.
    """
    if not path:
        raise InputError("path: is empty; give the penalty's weights, ascending")
    if mean.dim() != 3 or mean.shape != var.shape:
        raise InputError(f"mean {list(mean.shape)} and var {list(var.shape)}: give both as [cells, environments, d]")
    final = objective(name)
    start = mean.mean(1) / var.mean(1)  # the Bayes direction, were there one Gaussian environment
    w = _newton(erm, start, mean, var, 0.0, tolerance, iterations)
    if final is erm:
        return w
    if name in ("vrex", "rvp"):
        _several(mean[..., 0], name)
    for lam in path:
        smooth = functools.partial(_smooth_mm_rex, temperature=1e-2 / (1 + lam)) if name == "mm_rex" else final
        w = _newton(smooth, w, mean, var, lam, tolerance, iterations)
    if name != "irmv1" or not restart or mean.shape[1] < 2:
        return w
    other = population_optimum("vrex", mean, var, path, False, tolerance, iterations)
    other = _newton(irmv1, other, mean, var, path[-1], tolerance, iterations)
    first, second = (
        irmv1(population_risk(v, mean, var), irmv1_penalty(v, mean, var).sqrt(), mean.new_tensor(path[-1]))
        for v in (w.unsqueeze(1), other.unsqueeze(1))
    )
    return torch.where((second < first).unsqueeze(-1), other, w)


def _smooth_mm_rex(risks: Tensor, slopes: Tensor, lam: Tensor, temperature: float) -> Tensor:
    peak = temperature * torch.logsumexp(risks / temperature, -1)
    return (1 + risks.shape[-1] * lam) * peak - lam * risks.sum(-1)


_STEPS = tuple(0.5**k for k in range(24))


def _newton(
    form: Objective, w: Tensor, mean: Tensor, var: Tensor, lam: float, tolerance: float, iterations: int
) -> Tensor:
    weight = torch.as_tensor(lam, dtype=mean.dtype, device=mean.device)

    def loss(w: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        margins, weights = _margins(w.unsqueeze(-2), mean, var, None, 0.5)
        return form(F.softplus(-margins) @ weights, (-torch.sigmoid(-margins) * margins) @ weights, weight)

    slope = torch.func.vmap(torch.func.grad_and_value(loss))
    curvature = torch.func.vmap(torch.func.hessian(loss))
    lengths = torch.tensor(_STEPS, dtype=mean.dtype, device=mean.device)
    w = w.clone()
    active = torch.arange(len(w), device=w.device)
    for _ in range(iterations):
        cells = w[active], mean[active], var[active]
        gradient, value = slope(*cells)
        if not value.isfinite().all():
            raise FloatingPointError("the population objective is not finite")
        eigenvalues, vectors = torch.linalg.eigh(curvature(*cells))
        size = eigenvalues.abs()
        size = size.maximum(1e-14 * size.amax(-1, keepdim=True) + 1e-300)
        step = -(vectors @ ((vectors.mT @ gradient.unsqueeze(-1)) / size.unsqueeze(-1))).squeeze(-1)
        tried = cells[0].unsqueeze(1) + lengths.view(1, -1, 1) * step.unsqueeze(1)  # [C, steps, d]
        values = loss(tried, mean[active].unsqueeze(1), var[active].unsqueeze(1)).nan_to_num(nan=torch.inf)
        best, which = values.min(1)
        better = best < value
        w[active[better]] = tried[better, which[better]]
        predicted = -(gradient * step).sum(-1)
        active = active[better & (predicted > tolerance * (1 + value.abs()))]
        if not len(active):
            break
    return w
