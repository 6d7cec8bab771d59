"""Exact feature matching, two environments a round: eigenvectors in place of optimisation. For population moments.

The rule for a round is derived here, not the paper's: the largest subspace on which the quadratic form D of the
difference of two covariances vanishes has the dimension z + min(p, n), for p positive, n negative and z zero
eigenvalues. Invariant directions lie in the null space, so they stay; k spurious dimensions become at most floor(k/2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_modules.domain_generalization.feature_matching.moments import (
    Moments,
    class_moments,
    stack_environments,
)
from lightning_modules.errors import InputError


def isotropic_subspace(difference: Tensor, tol: float = 1e-9, scale: float | None = None) -> Tensor:
    """Find a largest subspace on which a quadratic form vanishes: W D W' = 0.

    The null eigenvectors, and for each pairing of a positive with a negative eigenpair the direction
    v_i / sqrt(l_i) + v_j / sqrt(-l_j); pairs share no eigenvector, so the directions are orthogonal as they are.

    Args:
        difference: D [d, d], symmetric.
        tol: an eigenvalue counts as zero where |l| <= tol * scale.
        scale: size of the matrices D came from. The default, D's own norm, is wrong once D is all round-off: then
            null directions look like large ones. Give ||Sig_a - Sig_b||_2 of the original space.

    Returns:
        W [r, d] with orthonormal rows, r = z + min(p, n); r is 0 for a definite D.
    """
    values, vectors = torch.linalg.eigh(difference)
    if scale is None:
        scale = float(values.abs().max()) if len(values) else 0.0
    null = values.abs() <= tol * scale
    positive, negative = (values > 0) & ~null, (values < 0) & ~null
    count = int(min(positive.sum(), negative.sum()))
    # Any pairing will do in exact arithmetic. Dropping the largest of the longer side and pairing large with small keeps
    # round-off far from the next rounds' null space: the leak stays near 1e-13, where other pairings reach 1e-8.
    up, down = values[positive][:count], -values[negative][len(values[negative]) - count :]
    total = up + down
    mixed = vectors[:, positive][:, :count] * (down / total).sqrt()
    mixed = mixed + vectors[:, negative][:, int(negative.sum()) - count :] * (up / total).sqrt()
    return torch.cat([vectors[:, null], mixed], 1).mT


def mean_matching_subspace(moments: Moments, tol: float = 1e-9, scale: float | None = None) -> Tensor:
    """Find the directions in which every class has the same mean in all environments: what mean matching alone gives.

    With generic means this drops E - 1 dimensions for two classes of opposite means: it needs d_s + 1 environments.

    Args:
        moments: of E environments.
        tol: a direction of the differences counts as zero where its singular value is <= tol * scale.
        scale: default, the largest singular value.

    Returns:
        W [r, d] with orthonormal rows.
    """
    d = moments.dimension
    differences = (moments.means[1:] - moments.means[:1]).flatten(0, 1)
    if len(differences) == 0:
        return torch.eye(d, dtype=moments.means.dtype)
    directions: Tensor
    _, values, directions = torch.linalg.svd(differences, full_matrices=True)
    if scale is None:
        scale = float(values[0])
    return directions[int((values > tol * scale).sum()) :]


class ExactIFM:
    """Iterative feature matching by eigendecompositions: environments 2t and 2t + 1 serve round t alone.

    Each round keeps a largest subspace on which the two environments' class-conditional covariances agree, class after
    class. With generic spurious covariances and population moments at most floor(log2 d_s) + 1 rounds leave exactly
    the invariant directions. On sample moments the rule is fragile: noise makes null eigenvalues nonzero, so give a
    tolerance well above the noise (about 1e-2 at thousands of examples an environment) or use
    `LinearFeatureMatching`.

    Args:
        use_mean: match the class means too, before the covariances; drops one more dimension a round (two classes of
            opposite means).
        tol: relative to the original moments' difference (the rule in `isotropic_subspace`).
        pool_classes: average the classes' covariances first, for data whose classes share one: halves the noise.

    Example:
        >>> import torch
        >>> from lightning_modules.domain_generalization.feature_matching.exact import ExactIFM, Moments
        >>> covariances = torch.diag_embed(torch.tensor([[1.0, 2.0, 5.0], [1.0, 3.0, 1.0]]))
        >>> ExactIFM().fit(Moments(torch.zeros(2, 1, 3), covariances.unsqueeze(1))).dims
        [3, 2]

    Source: arXiv 2106.09913, algorithm IFM; the solution of a round: derived here.
    """

    U: Tensor
    """[r, d] orthonormal rows: the projection found by `fit`."""
    history: list[Tensor]
    """The projection before the first round and after each."""
    environments_used: int
    """Twice the number of the last round that dropped a dimension."""

    def __init__(self, use_mean: bool = False, tol: float = 1e-9, pool_classes: bool = False) -> None:
        if tol < 0:
            raise InputError(f"tol: {tol} is negative; 1e-9 suits population moments, 1e-2 samples")
        self.use_mean, self.tol, self.pool_classes = use_mean, tol, pool_classes

    @property
    def dims(self) -> list[int]:
        """Dimension before the first round and after each."""
        return [len(u) for u in self.history]

    def fit(self, data: Moments | Sequence[Any], labels: Sequence[Any] | None = None) -> ExactIFM:
        """Find the projection.

        Args:
            data: moments of E environments, or the inputs [n_e, d] of each.
            labels: of each environment, [n_e]; where inputs are given.

        Raises:
            InputError: for fewer than two environments, or data that `stack_environments` refuses. With an odd number
                the last environment is without a partner and is not used.
        """
        if isinstance(data, Moments):
            moments = data
        else:
            if labels is None:
                raise InputError("labels: missing; give those of each environment along with its inputs")
            x, y, classes = stack_environments(data, labels)
            moments = class_moments(x, y, len(classes))
        if moments.environments < 2:
            raise InputError(f"environments: {moments.environments} is below 2; a round compares two")
        covariances = moments.covariances
        if self.pool_classes:
            covariances = covariances.mean(1, keepdim=True)
        u = torch.eye(moments.dimension, dtype=covariances.dtype)
        self.history = [u]
        for first in range(0, moments.environments - 1, 2):
            if self.use_mean:
                pair = moments.of_environments(slice(first, first + 2))
                scale = float(torch.linalg.matrix_norm(pair.means[0] - pair.means[1], 2))
                u = mean_matching_subspace(pair.project(u), self.tol, scale) @ u
            for difference in covariances[first] - covariances[first + 1]:
                scale = float(torch.linalg.matrix_norm(difference, 2))
                u = isotropic_subspace(u @ difference @ u.T, self.tol, scale) @ u
            self.history.append(u)
        self.U = u
        useful = [t for t, (a, b) in enumerate(zip(self.dims, self.dims[1:], strict=False), 1) if b < a]
        self.environments_used = 2 * max(useful, default=0)
        return self

    def transform(self, inputs: Any) -> Tensor:
        """Project inputs [n, d] to [n, r]."""
        return torch.as_tensor(inputs, dtype=self.U.dtype) @ self.U.T


def pooled_discriminant(moments: Moments, projection: Tensor | None = None) -> Tensor:
    """Direction of the linear discriminant of two equally likely classes, with all environments pooled.

    Args:
        moments: of E environments and two classes; class 1 gets the positive side.
        projection: U [r, d]; the rule sees U x only.

    Returns:
        weights [d] on the original inputs. The mean of the two pooled class means lies on the boundary at bias
        -weights . mean, which is zero for classes with opposite means.

    Raises:
        InputError: for another number of classes.
    """
    if moments.means.shape[-2] != 2:
        raise InputError(f"moments: has {moments.means.shape[-2]} classes; a discriminant needs 2")
    u = torch.eye(moments.dimension, dtype=moments.means.dtype) if projection is None else projection
    centre = moments.means.mean(0, keepdim=True)
    spread = moments.means - centre
    within = (moments.covariances + spread.unsqueeze(-1) * spread.unsqueeze(-2)).mean((0, 1))
    direction = centre[0, 1] - centre[0, 0]
    rule: Tensor = torch.linalg.solve(u @ within @ u.T, u @ direction)
    return u.T @ rule
