"""Confidence optimal transport: how far the target's probabilities are from one-hot vectors in the source's proportions."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linprog

from lightning_modules.error_bounds.evidence import Array, Estimate, Evidence, error_rate, estimate, softmax
from lightning_modules.errors import InputError

_EXACT_CLASSES = 32
"""Up to so many classes the optimum is found exactly; the work grows fast with them."""

_CUTS = 2_000
_GAP = 1e-9
_ROUNDS = 2_000
_TEMPERATURE = 0.005


def confidence_optimal_transport(evidence: Evidence, exact: bool | None = None) -> Estimate:
    """Transport cost from the target's probabilities to one-hot vectors, weighted by the source's label shares (COT).

    The cost of moving p to class k is half their l1 distance, 1 - p_k. The source's excess of confidence over accuracy is
    added. A shift of the label shares makes it overestimate, by construction.

    Args:
        evidence: of the target.
        exact: whether to solve the linear program, else an entropic approximation from above; None takes it up to 32
            classes.

    Source: Lu et al., "Characterizing Out-of-Distribution Error via Optimal Transport", 2023, arXiv 2305.15640.
    """
    probabilities = softmax(evidence.target_logits)
    marginal = np.bincount(evidence.source_labels, minlength=evidence.classes) / len(evidence.source_labels)
    if exact is None:
        exact = evidence.classes <= _EXACT_CLASSES
    cost = transport_cost(1 - probabilities, marginal, exact)
    confidence = softmax(evidence.source_logits).max(axis=1).mean()
    gap = confidence - (1 - error_rate(evidence.source_logits, evidence.source_labels))
    return estimate("COT", cost + gap, cost=cost)


def transport_cost(cost: Array, marginal: Array, exact: bool = True) -> float:
    """Least mean cost of assigning n equally heavy rows to K columns of given weights.

    Args:
        cost: [n, K].
        marginal: [K], summing to 1.
        exact: to 1e-9, by linear programming; else by Sinkhorn's iteration with rounding, whose cost is feasible, so never below.

    Raises:
        InputError: a marginal that does not sum to one.
    """
    columns = cost.shape[1]
    if marginal.shape != (columns,) or abs(marginal.sum() - 1) > 1e-6 or (marginal < 0).any():
        raise InputError(f"marginal: {marginal.tolist()} is no distribution over {columns} classes")
    kept = marginal > 0
    cost, marginal = cost[:, kept], marginal[kept]
    return _cutting_planes(cost, marginal) if exact else _sinkhorn(cost, marginal)


def _cutting_planes(cost: Array, marginal: Array) -> float:
    """Maximise the dual, mean_i min_k (c_ik - v_k) + v . b, over K prices v: concave and piecewise linear (Kelley 1960).

    A linear program of K + 1 variables a cut, in place of one of n K; ends when the bounds from both sides meet.
    """
    rows, columns = cost.shape
    largest = float(cost.max() - cost.min())
    prices, lower, upper = np.zeros(columns), -np.inf, np.inf
    cuts: list[Array] = []
    heights: list[float] = []
    while len(cuts) < _CUTS:
        chosen = (cost - prices).argmin(axis=1)
        share = np.bincount(chosen, minlength=columns) / rows
        height = float(cost[np.arange(rows), chosen].mean())
        lower = max(lower, height + float(prices @ (marginal - share)))
        cuts.append(np.concatenate([[1.0], share - marginal]))
        heights.append(height)
        objective = np.concatenate([[-1.0], np.zeros(columns)])
        bounds = [(None, None), *[(-largest, largest)] * columns]
        found = linprog(objective, A_ub=np.array(cuts), b_ub=heights, bounds=bounds, method="highs-ds")
        upper, prices = -float(found.fun), found.x[1:]
        if upper - lower < _GAP:
            break
    return upper


def _sinkhorn(cost: Array, marginal: Array) -> float:
    """Sinkhorn's iteration in the log domain; the plan is rounded to meet both marginals (Altschuler et al. 2017)."""
    c = torch.from_numpy(np.ascontiguousarray(cost, np.float64))
    n = len(c)
    log_b = torch.from_numpy(marginal).log()
    scaled = -c / _TEMPERATURE
    g = torch.zeros(len(marginal), dtype=torch.float64)
    for _ in range(_ROUNDS):
        f = -np.log(n) - (scaled + g).logsumexp(1, keepdim=True)
        following = log_b - (scaled + f).logsumexp(0)
        done = (following - g).abs().max() < 1e-7
        g = following
        if done:
            break
    plan = (scaled + f + g).exp()
    plan *= (1 / n / plan.sum(1)).clamp(max=1)[:, None]
    plan *= (torch.from_numpy(marginal) / plan.sum(0)).clamp(max=1)
    rows, columns = 1 / n - plan.sum(1), torch.from_numpy(marginal) - plan.sum(0)
    missing = columns.sum()
    if missing > 0:
        plan = plan + rows[:, None] * columns / missing
    return float((plan * c).sum())
