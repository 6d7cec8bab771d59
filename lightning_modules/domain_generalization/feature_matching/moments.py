"""Class-conditional means and covariances of environments, and the penalty on how they differ.

Letters of shapes: E environments, B examples, C classes, P pairs of environments, d features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_modules.errors import InputError

Pairs = Literal["consecutive", "all"]

ABSENT = -1
"""Label of the rows that fill up a short environment; they count nowhere."""


@dataclass(frozen=True)
class Moments:
    """Class-conditional moments of stacked environments. Any number of axes may lead.

    Args:
        means: [..., E, C, d].
        covariances: [..., E, C, d, d].
        valid: [..., E, C] bool, False where a class has too few examples for a covariance; None: all are there.
    """

    means: Tensor
    covariances: Tensor
    valid: Tensor | None = None

    @property
    def environments(self) -> int:
        """E."""
        return int(self.means.shape[-3])

    @property
    def dimension(self) -> int:
        """Number of features, d."""
        return int(self.means.shape[-1])

    def of_environments(self, rows: slice) -> Moments:
        """Select environments."""
        valid = None if self.valid is None else self.valid[..., rows, :]
        return Moments(self.means[..., rows, :, :], self.covariances[..., rows, :, :, :], valid)

    def project(self, projection: Tensor) -> Moments:
        """Moments of W x for W [..., r, d]; what leads in W leads in the moments."""
        w = projection[..., None, None, :, :]
        return Moments((w @ self.means.unsqueeze(-1)).squeeze(-1), w @ self.covariances @ w.mT, self.valid)


def class_moments(features: Tensor, labels: Tensor | None = None, classes: int | None = None) -> Moments:
    """Compute means and covariances (divisor n - 1) of each class in each environment.

    Shapes never depend on the data, so it runs under `torch.func.vmap`.

    Args:
        features: [E, B, d].
        labels: [E, B] class indices; rows with another value (such as `ABSENT`) are ignored. None: one class.
        classes: number of classes; needed with labels.

    Returns:
        means [E, C, d], covariances [E, C, d, d]; `valid` is False for a class with fewer than two examples, whose
        covariance is zero.

    Raises:
        InputError: labels without a number of classes.
    """
    if labels is None:
        labels, classes = torch.zeros_like(features[..., 0], dtype=torch.long), 1
    if classes is None:
        raise InputError("classes: missing; give the number of classes along with the labels")
    member_ECB = (labels.unsqueeze(-2) == torch.arange(classes, device=labels.device).unsqueeze(-1)).to(features.dtype)
    count_EC = member_ECB.sum(-1)
    means = member_ECB @ features / count_EC.clamp(min=1).unsqueeze(-1)
    centred = features.unsqueeze(-3) - means.unsqueeze(-2)
    centred = centred * member_ECB.unsqueeze(-1)
    covariances = centred.mT @ centred / (count_EC - 1).clamp(min=1)[..., None, None]
    return Moments(means, covariances, count_EC >= 2)


def pair_differences(moments: Moments, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Differences of the moments of pairs of environments; zero where one of the two lacks the class.

    Args:
        moments: of E environments.
        pairs: "consecutive" (E - 1 pairs) or "all" (E (E - 1) / 2).

    Returns:
        [..., P, C, d] of the means and [..., P, C, d, d] of the covariances.

    Raises:
        InputError: for another value of `pairs`.
    """
    environments, device = moments.environments, moments.means.device
    if pairs == "consecutive":
        first = torch.arange(max(environments - 1, 0), device=device)
        second = first + 1
    elif pairs == "all":
        first, second = torch.triu_indices(environments, environments, offset=1, device=device)
    else:
        raise InputError(f"pairs: unknown {pairs!r}; choose consecutive or all")
    means = moments.means[..., first, :, :] - moments.means[..., second, :, :]
    covariances = moments.covariances[..., first, :, :, :] - moments.covariances[..., second, :, :, :]
    if moments.valid is not None:
        both = (moments.valid[..., first, :] & moments.valid[..., second, :]).to(means.dtype)
        means, covariances = means * both[..., None], covariances * both[..., None, None]
    return means, covariances


def difference_penalty(means: Tensor, covariances: Tensor) -> Tensor:
    """Mean over pairs of the sum over classes of mean((m_i - m_j)^2) + mean((C_i - C_j)^2); means over elements.

    Args:
        means: differences [..., P, C, r].
        covariances: differences [..., P, C, r, r].

    Returns:
        [...]; zero without pairs.
    """
    per_class = means.square().mean(-1) + covariances.square().mean((-2, -1))
    return per_class.sum((-2, -1)) / max(per_class.shape[-2], 1)


def moment_matching_penalty(
    features_EBd: Tensor, labels_EB: Tensor | None = None, classes: int | None = None, pairs: Pairs = "consecutive"
) -> Tensor:
    """Penalise how the (class-conditional) moments of the features differ between environments.

    mean over pairs of environments of sum over classes of [mean((m_i - m_j)^2) + mean((C_i - C_j)^2)], with means over
    the elements and divisor n - 1 in C. A class with fewer than two examples in an environment is left out of that
    environment's pairs. Pure, and fit for `torch.func.vmap` over a leading axis of models.

    Args:
        features_EBd: [E, B, d].
        labels_EB: [E, B] class indices; None matches the moments of all classes together, which is another method.
        classes: number of classes; needed with labels.
        pairs: "consecutive", the estimator of the paper's code, or "all", as in DomainBed's CORAL.

    Returns:
        A scalar, zero for a single environment.

    Raises:
        InputError: labels without a number of classes, or an unknown kind of pairs.

    Source: arXiv 2106.09913 and its published code (`coral_penalty`).
    """
    return difference_penalty(*pair_differences(class_moments(features_EBd, labels_EB, classes), pairs))


def stack_environments(inputs: Sequence[Any], labels: Sequence[Any]) -> tuple[Tensor, Tensor, np.ndarray]:
    """Check and stack lists of environments; short ones are filled up with rows of label `ABSENT`.

    Args:
        inputs: of each environment, [n_e, d] array or tensor.
        labels: of each environment, [n_e] of any sortable kind.

    Returns:
        x [E, B, d] float64, class indices [E, B], and the classes [C].

    Raises:
        InputError: for unequal feature dimension or lengths, no environments, NaN or infinite inputs, one class only,
            or an environment with fewer than two examples of a class (it has no covariance).
    """
    if len(inputs) == 0 or len(inputs) != len(labels):
        raise InputError(f"environments: {len(inputs)} of inputs, {len(labels)} of labels; give as many, at least one")
    x = [torch.as_tensor(np.asarray(part), dtype=torch.float64) for part in inputs]
    y = [np.asarray(part) for part in labels]
    for i, (part, label) in enumerate(zip(x, y, strict=True)):
        if part.dim() != 2 or part.shape[1] != x[0].shape[1]:
            raise InputError(f"environment {i}: inputs have shape {tuple(part.shape)}; make it [n, {x[0].shape[-1]}]")
        if label.shape != (len(part),):
            raise InputError(f"environment {i}: {len(part)} inputs but labels of shape {label.shape}; give one each")
        if not torch.isfinite(part).all():
            raise InputError(f"environment {i}: inputs have NaN or infinite entries; clean or drop those rows")
    classes, codes = np.unique(np.concatenate(y), return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"labels: only {len(classes)} class; give at least two")
    parts = np.split(codes.reshape(-1), np.cumsum([len(label) for label in y])[:-1])
    counts = np.stack([np.bincount(part, minlength=len(classes)) for part in parts])
    if counts.min() < 2:
        e, c = map(int, np.unravel_index(counts.argmin(), counts.shape))
        raise InputError(
            f"environment {e}: {counts[e, c]} examples of class {classes[c]!s}; a covariance needs at least 2, "
            "so add some or drop the environment"
        )
    stacked = pad_sequence([torch.from_numpy(part) for part in parts], batch_first=True, padding_value=ABSENT)
    return pad_sequence(x, batch_first=True), stacked, classes


def subspace_leak(projection: Tensor | np.ndarray, basis: Tensor | np.ndarray) -> float:
    """Compute ||U S||_2: how much of a subspace a projection lets through, 0 (nothing) to 1 (some direction whole).

    Args:
        projection: U [r, d], orthonormal rows.
        basis: S [d, k], orthonormal columns, such as the true spurious directions.

    Raises:
        InputError: when the two do not have the same d.
    """
    u, s = torch.as_tensor(projection, dtype=torch.float64), torch.as_tensor(basis, dtype=torch.float64)
    if u.shape[1] != s.shape[0]:
        raise InputError(f"basis: has {s.shape[0]} rows, the projection {u.shape[1]} columns; make them equal")
    return float(torch.linalg.matrix_norm(u @ s, 2)) if min(len(u), s.shape[1]) else 0.0
