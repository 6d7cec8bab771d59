"""The exact minimax optimum as a linear program: l1 and l-infinity costs, and a regularisation that makes it convex."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import block_array, coo_array, csr_array

from lightning_modules.errors import InputError
from lightning_modules.strategic.costs import Array, LpCost


def lp_minimax(
    inputs: Array, y: Array, costs: Sequence[LpCost], lam: float, radius: float = 10.0
) -> tuple[Array, float, float]:
    """Minimise max_j [mean strategic hinge + lam k_j] exactly, over |w_i| <= radius and |b| <= radius.

    The box contains the ball that the iterative solvers keep to; where its optimum lies in the ball the two agree.

    Args:
        inputs: [n, d].
        y: [n] -1 and +1.
        costs: l1 or l-infinity, J of them; n J up to a few thousand.
        lam: at least the share of positives, without which the problem is not convex.
        radius: B.

    Returns:
        w [d], b and the optimal value.

    Raises:
        InputError: other costs, too small a lam, or no optimum found.

    Source: derived: for a positive max(0, 1 - s - k) + k = max(k, 1 - s), which is the larger of two linear functions.
    """
    n, d = inputs.shape
    positive = y > 0
    share = float(positive.mean())
    if lam < share - 1e-12:
        raise InputError(f"lam: {lam} is below the share of positives, {share:g}; the problem would not be convex")
    if any(cost.p not in (1, math.inf) or cost.manipulable is not None for cost in costs):
        raise InputError("costs: the program takes l1 and l-infinity costs that can change every feature")
    count = len(costs)
    # Variables: w+ [d], w- [d], b, t, k [J], losses [J n].
    begin_k, begin_loss = 2 * d + 2, 2 * d + 2 + count
    total = begin_loss + count * n
    scores = np.concatenate([inputs, -inputs, np.ones((n, 1)), np.zeros((n, 1 + count))], axis=1)
    blocks, right = [], []
    for j, cost in enumerate(costs):
        loss_columns = coo_array((np.ones(n), (np.arange(n), j * n + np.arange(n))), shape=(n, count * n))
        # Positives: loss >= 1 - s (and >= k). Negatives: loss >= 1 + s + k (and >= 0, a bound).
        shift = np.zeros((n, begin_loss))
        shift[~positive, begin_k + j] = 1.0
        padded = np.concatenate([scores, np.zeros((n, begin_loss - scores.shape[1]))], axis=1)
        head = np.where(positive[:, None], -padded, padded) + shift
        blocks.append(block_array([[csr_array(head), -loss_columns]]))
        right.append(np.full(n, -1.0))
        above_k = np.zeros((int(positive.sum()), begin_loss))
        above_k[:, begin_k + j] = 1.0
        blocks.append(block_array([[csr_array(above_k), -loss_columns.tocsr()[np.flatnonzero(positive)]]]))
        right.append(np.zeros(int(positive.sum())))
        # The objective of this cost is at most t: mean loss + (lam - share) k_j <= t.
        row = np.zeros((1, total))
        row[0, begin_k + j] = lam - share
        row[0, 2 * d + 1] = -1.0
        row[0, begin_loss + j * n : begin_loss + (j + 1) * n] = 1 / n
        blocks.append(csr_array(row))
        right.append(np.zeros(1))
        # k_j >= u ||w||_*: l1 costs have the largest |w_i|, l-infinity ones their sum.
        sizes = (
            csr_array(np.concatenate([np.eye(d), np.eye(d)], axis=1)) if cost.p == 1 else csr_array(np.ones((1, 2 * d)))
        )
        rest = np.zeros((sizes.shape[0], total - 2 * d))
        rest[:, begin_k + j - 2 * d] = -1.0
        blocks.append(block_array([[cost.budget * sizes, csr_array(rest)]]))
        right.append(np.zeros(sizes.shape[0]))
    objective = np.zeros(total)
    objective[2 * d + 1] = 1.0
    bounds = [(0, radius)] * (2 * d) + [(-radius, radius), (None, None)] + [(0, None)] * (count + count * n)
    found = linprog(
        objective,
        A_ub=block_array([[b] for b in blocks]).tocsr(),
        b_ub=np.concatenate(right),
        bounds=bounds,
        method="highs",
    )
    if found.status != 0:
        raise InputError(f"inputs: the linear program has no optimum ({found.message})")
    return found.x[:d] - found.x[d : 2 * d], float(found.x[2 * d]), float(found.fun)
