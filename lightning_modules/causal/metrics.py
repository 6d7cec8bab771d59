"""How well latents and graphs were recovered, where the truth is known."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from lightning_modules.errors import InputError

Array = np.ndarray


def mean_correlation_coefficient(z: Array, z_hat: Array, held_out: bool = False) -> float:
    """Mean absolute Pearson correlation of true and estimated latents, matched one to one as well as can be (MCC).

    1 means equal up to order, sign, scale and shift of each coordinate.

    Args:
        z: [n, d] true latents.
        z_hat: [n, d] estimated ones.
        held_out: match on the first half of the rows and correlate on the other.

    Raises:
        InputError: shapes that do not fit, NaN, or fewer than 4 rows.
    """
    z, z_hat = _checked(z, z_hat)
    if z.shape[1] != z_hat.shape[1]:
        raise InputError(f"z_hat: has {z_hat.shape[1]} coordinates, z {z.shape[1]}; they are matched one to one")
    half = len(z) // 2 if held_out else len(z)
    matched = linear_sum_assignment(-_correlations(z[:half], z_hat[:half]))
    scored = _correlations(z[half:], z_hat[half:]) if held_out else _correlations(z, z_hat)
    return float(scored[matched].mean())


def linear_r2(z: Array, z_hat: Array) -> float:
    """R^2 of the linear regression, with intercept, from estimated to true latents, mean over the true coordinates.

    1 means equal up to an affine map; a rotation costs nothing, so that it says less than `mean_correlation_coefficient`.

    Args:
        z: [n, d].
        z_hat: [n, e].

    Raises:
        InputError: as `mean_correlation_coefficient`.
    """
    z, z_hat = _checked(z, z_hat)
    design = np.concatenate([z_hat, np.ones((len(z), 1))], axis=1)
    residual = z - design @ np.linalg.lstsq(design, z, rcond=None)[0]
    spread = ((z - z.mean(0)) ** 2).sum(0)
    return float(np.mean(1 - (residual**2).sum(0) / np.maximum(spread, 1e-300)))


def structural_hamming_distance(
    weights: Array, estimate: Array, *, n_edges: int | None = None, threshold: float | None = None
) -> int:
    """Sum of |G - G_hat| over the matrix: a missing or extra edge counts 1, a reversed one 2.

    Args:
        weights: [d, d] true ones, [i, j] of the edge i -> j; not zero where there is an edge.
        estimate: [d, d] scores, the larger in absolute value the likelier an edge; its diagonal does not count.
        n_edges: take so many of the largest ("edge matched": as many as the truth has).
        threshold: or those above it.

    Raises:
        InputError: unless just one of the two is given; more edges than pairs of nodes; shapes that differ; NaN.
    """
    if (n_edges is None) == (threshold is None):
        raise InputError("n_edges: give either it or threshold")
    _check_graphs(weights, estimate)
    pairs = len(weights) * (len(weights) - 1)
    if n_edges is not None and not 0 <= n_edges <= pairs:
        raise InputError(f"n_edges: is {n_edges}; give 0 to {pairs}, the ordered pairs of {len(weights)} nodes")
    scores = np.abs(estimate).astype(np.float64)
    np.fill_diagonal(scores, -1.0)
    if threshold is not None:
        found = scores > threshold
    else:
        assert n_edges is not None
        found = np.zeros(scores.shape, bool)
        found.reshape(-1)[np.argsort(-scores, axis=None, kind="stable")[:n_edges]] = True
    return int((found != (weights != 0)).sum())


def edge_auroc(weights: Array, estimate: Array) -> float:
    """Area under the ROC curve of edge scores off the diagonal; NaN where every or no edge is true.

    Args:
        weights: [d, d] true ones.
        estimate: [d, d] scores, the larger in absolute value the likelier an edge.

    Raises:
        InputError: shapes that differ, NaN.
    """
    _check_graphs(weights, estimate)
    off = ~np.eye(len(weights), dtype=bool)
    truth, scores = (weights != 0)[off], np.abs(estimate)[off]
    positive, negative = scores[truth], scores[~truth]
    if not len(positive) or not len(negative):
        return float("nan")
    above = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    return float(above)


def _correlations(z: Array, z_hat: Array) -> Array:
    """|Pearson correlation| [d, e]."""

    def standard(x: Array) -> Array:
        x = x - x.mean(0)
        unit: Array = x / np.maximum(np.linalg.norm(x, axis=0), 1e-300)
        return unit

    found: Array = np.abs(standard(z).T @ standard(z_hat))
    return found


def _check_graphs(weights: Array, estimate: Array) -> None:
    if weights.shape != estimate.shape or weights.ndim != 2 or weights.shape[0] != weights.shape[1]:
        raise InputError(
            f"estimate: has shape {list(estimate.shape)}, weights {list(weights.shape)}; give [d, d] of both"
        )
    if np.isnan(weights).any() or np.isnan(estimate).any():
        raise InputError("estimate: or weights has NaN; edges cannot be ranked")


def _checked(z: Array, z_hat: Array) -> tuple[Array, Array]:
    z, z_hat = np.asarray(z, np.float64), np.asarray(z_hat, np.float64)
    if z.ndim != 2 or z_hat.ndim != 2 or len(z) != len(z_hat) or len(z) < 4:
        raise InputError(f"z_hat: has shape {list(z_hat.shape)}, z {list(z.shape)}; give equally many rows, 4 or more")
    if not (np.isfinite(z).all() and np.isfinite(z_hat).all()):
        raise InputError("z_hat: or z has NaN or infinite numbers")
    return z, z_hat
