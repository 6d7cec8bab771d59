"""Clusters of curves: which examples gain together, along which direction, and how well that matches a skill."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lightning_modules.dynamics.polca import Projected
from lightning_modules.errors import InputError

Array = np.ndarray


@dataclass(frozen=True)
class Cluster:
    """Examples whose curves along a direction are alike.

    Args:
        direction: its number; -1 for curves that belong to none, such as exact losses.
        members: numbers of the examples, rising.
    """

    direction: int
    members: Array


def filter_directions(final: Tensor) -> list[int]:
    """Numbers of the directions along which losses fall on average; the others oscillate, and teach nothing.

    Args:
        final: L_b(x, T) [K, n].
    """
    return [k for k, mean in enumerate(final.double().mean(1).tolist()) if mean < 0]


def filter_tokens(final: Tensor) -> Array:
    """Numbers of the examples whose own loss falls along a direction.

    Args:
        final: L_b(x, T) [n].
    """
    found: Array = np.flatnonzero((final < 0).cpu().numpy())
    return found


def cluster_curves(
    curves: Tensor | Array,
    min_cluster_fraction: float = 0.03,
    min_samples_divisor: int = 15,
    of: int | None = None,
) -> Array:
    """HDBSCAN on curves as vectors; labels [n], -1 for noise.

    Args:
        curves: [n, T].
        min_cluster_fraction: smallest cluster, as a share of `of`.
        min_samples_divisor: HDBSCAN's min_samples are n over this.
        of: number of examples before any was filtered; None: n.

    Raises:
        InputError: a share outside ]0, 1], a divisor below 1, or curves that are not finite.
    """
    if not 0 < min_cluster_fraction <= 1 or min_samples_divisor < 1:
        raise InputError(
            f"clusters: min_cluster_fraction is {min_cluster_fraction}, min_samples_divisor {min_samples_divisor}; give "
            "a share of 1, and 1 or more"
        )
    rows = np.asarray(curves, np.float64)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise InputError(f"clusters: curves have shape {list(rows.shape)} or are not finite; give finite ones [n, T]")
    smallest = max(2, int(min_cluster_fraction * (of or len(rows))))
    if len(rows) < smallest:
        return np.full(len(rows), -1)
    from sklearn.cluster import HDBSCAN  # loading scikit-learn takes a second

    samples = max(1, len(rows) // min_samples_divisor)
    found: Array = HDBSCAN(min_cluster_size=smallest, min_samples=samples, copy=True).fit_predict(rows)
    return found


def clusters_of(
    curves: Tensor | Array,
    direction: int = -1,
    numbers: Array | None = None,
    of: int | None = None,
    min_cluster_fraction: float = 0.03,
    min_samples_divisor: int = 15,
) -> list[Cluster]:
    """`cluster_curves`, as clusters without the noise.

    Args:
        curves: [n, T].
        direction: that they are along.
        numbers: of their examples [n]; None: 0 to n - 1.
        of: as for `cluster_curves`.
        min_cluster_fraction: as for `cluster_curves`.
        min_samples_divisor: as for `cluster_curves`.
    """
    labels = cluster_curves(curves, min_cluster_fraction, min_samples_divisor, of)
    names = np.arange(len(labels)) if numbers is None else numbers
    return [Cluster(direction, names[labels == label]) for label in range(labels.max(initial=-1) + 1)]


def find_clusters(
    projected: Projected, min_cluster_fraction: float = 0.03, min_samples_divisor: int = 15, filters: bool = True
) -> list[Cluster]:
    """Clusters along every direction.

    Args:
        projected: what `polca` gave.
        min_cluster_fraction: smallest cluster, as a share of all examples.
        min_samples_divisor: HDBSCAN's min_samples are the examples left over this.
        filters: whether directions and examples whose loss does not fall are left out.

    Source: arXiv 2506.15872, section 4: clusters of 150 of 5,000 tokens or more, min_samples a fifteenth of the tokens left.
    """
    final = projected.values.sum(0)
    found: list[Cluster] = []
    for direction in filter_directions(final) if filters else range(len(final)):
        kept = filter_tokens(final[direction]) if filters else np.arange(final.shape[1])
        curves = projected.curves(direction).cpu().numpy()[kept]
        found += clusters_of(curves, direction, kept, final.shape[1], min_cluster_fraction, min_samples_divisor)
    return found


def precision(cluster: Cluster, skill: Array) -> float:
    """Share of a cluster's members that have the skill [n]."""
    return float(np.asarray(skill, bool)[cluster.members].mean())


def homogeneity(clusters: Iterable[Cluster], skill: Array) -> float:
    """Largest `precision` of any cluster; 0 where there is none."""
    return max((precision(cluster, skill) for cluster in clusters), default=0.0)


def recall(cluster: Cluster, skill: Array, clusters: Sequence[Cluster] | None = None) -> float:
    """Share of the examples with the skill that a cluster has.

    Args:
        cluster: one of them.
        skill: [n].
        clusters: all of them; then, as in the paper, examples are counted that are in some cluster of this direction. None: all.
    """
    counted = np.asarray(skill, bool)
    if clusters is not None:
        clustered = np.zeros(len(counted), bool)
        for other in clusters:
            if other.direction == cluster.direction:
                clustered[other.members] = True
        counted = counted & clustered
    whole = int(counted.sum())
    return float(counted[cluster.members].sum() / whole) if whole else 0.0


def f1(cluster: Cluster, skill: Array, clusters: Sequence[Cluster] | None = None) -> float:
    """2 p r / (p + r) of `precision` and `recall`."""
    p, r = precision(cluster, skill), recall(cluster, skill, clusters)
    return 2 * p * r / (p + r) if p + r else 0.0


def best_f1(clusters: Sequence[Cluster], skill: Array, noise_counts: bool = True) -> float:
    """Largest `f1` of any cluster; 0 where there is none.

    Args:
        clusters: all of them.
        skill: [n].
        noise_counts: whether examples with the skill that are in no cluster lower the recall.
    """
    among = None if noise_counts else clusters
    return max((f1(cluster, skill, among) for cluster in clusters), default=0.0)
