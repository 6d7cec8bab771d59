"""What POLCA is compared with: curves of examples to cluster that no direction, or the Fisher information, gives.

Loss change allocation is `polca` in the first order along `AxisBasis`; first-order POLCA along its own basis.
"""

from __future__ import annotations

import numpy as np

from lightning_modules.dynamics.clusters import Cluster, clusters_of
from lightning_modules.dynamics.polca import Projected

Array = np.ndarray


def exact_loss_curves(projected: Projected) -> Array:
    """Each example's loss at every checkpoint [n, T]."""
    found: Array = projected.losses.T.cpu().numpy()
    return found


def loss_change_curves(projected: Projected) -> Array:
    """Each example's change of loss over every interval [n, T - 1]."""
    return np.diff(exact_loss_curves(projected), axis=1)


def fisher_curves(projected: Projected, direction: int) -> Array:
    """<b, g_t(x)>^2 of each example at every checkpoint [n, T]."""
    found: Array = projected.slopes[:, direction].square().T.cpu().numpy()
    return found


def fisher_clusters(
    projected: Projected, min_cluster_fraction: float = 0.03, min_samples_divisor: int = 15
) -> list[Cluster]:
    """Clusters of the Fisher curves along every direction; they have no sign, so nothing is filtered.

    Args:
        projected: what `polca` gave.
        min_cluster_fraction: smallest cluster, as a share of all examples.
        min_samples_divisor: HDBSCAN's min_samples are the examples over this.
    """
    shares = {"min_cluster_fraction": min_cluster_fraction, "min_samples_divisor": min_samples_divisor}
    return [
        cluster
        for direction in range(projected.values.shape[1])
        for cluster in clusters_of(fisher_curves(projected, direction), direction, **shares)  # type: ignore[arg-type]
    ]
