"""Confidence optimal transport: how far the target's probabilities are from one-hot vectors in the source's proportions."""

from __future__ import annotations

import numpy as np

from lightning_modules.error_bounds.evidence import Array, Estimate, Evidence, error_rate, estimate, softmax
from lightning_modules.errors import InputError

_EXACT_ENTRIES = 20_000_000
"""Up to so many entries of the plan the optimum is found exactly: seconds, and a few copies of the plan in memory."""

_ITERATIONS = 100_000_000
_TEMPERATURE = 0.005


def confidence_optimal_transport(evidence: Evidence, exact: bool | None = None) -> Estimate:
    """Transport cost from the target's probabilities to one-hot vectors, weighted by the source's label shares (COT).

    The cost of moving p to class k is half their l1 distance, 1 - p_k. The source's excess of confidence over accuracy is
    added. A shift of the label shares makes it overestimate, by construction.

    Args:
        evidence: of the target.
        exact: whether to find the optimum, else an entropic approximation; None takes it up to 20 million entries of the plan.

    Source: Lu et al., "Characterizing Out-of-Distribution Error via Optimal Transport", 2023, arXiv 2305.15640.
    """
    probabilities = softmax(evidence.target_logits)
    marginal = np.bincount(evidence.source_labels, minlength=evidence.classes) / len(evidence.source_labels)
    if exact is None:
        exact = probabilities.size <= _EXACT_ENTRIES
    cost = transport_cost(1 - probabilities, marginal, exact)
    confidence = softmax(evidence.source_logits).max(axis=1).mean()
    gap = confidence - (1 - error_rate(evidence.source_logits, evidence.source_labels))
    return estimate("COT", cost + gap, cost=cost)


def transport_cost(cost: Array, marginal: Array, exact: bool = True) -> float:
    """Least mean cost of assigning n equally heavy rows to K columns of given weights.

    Args:
        cost: [n, K].
        marginal: [K], summing to 1.
        exact: by the network simplex method; else by Sinkhorn's iteration at temperature 0.005.

    Raises:
        InputError: a marginal that does not sum to one.
    """
    import ot  # takes a second

    if marginal.shape != (cost.shape[1],) or abs(marginal.sum() - 1) > 1e-6 or (marginal < 0).any():
        raise InputError(f"marginal: {marginal.tolist()} is no distribution over {cost.shape[1]} classes")
    kept = marginal > 0
    rows, columns = np.full(len(cost), 1 / len(cost)), marginal[kept] / marginal.sum()
    cost = np.ascontiguousarray(cost[:, kept], np.float64)
    if exact:
        return float(ot.emd2(rows, columns, cost, numItermax=_ITERATIONS))
    plan = ot.sinkhorn(rows, columns, cost, _TEMPERATURE, method="sinkhorn_log", numItermax=2_000, warn=False)
    return float((plan * cost).sum())
