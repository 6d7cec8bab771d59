"""Orthonormal directions in the space of a module's weights, along which a training's progress is taken apart.

POLCA's own, eigenvectors of the Hessian, are in `hessian_basis.py`; trajectories' principal components, random directions and single
weights stand here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lightning_modules.dynamics.flat import LossesAt
from lightning_modules.dynamics.recorder import Checkpoints
from lightning_modules.errors import InputError

_ORTHONORMAL = 1e-3
"""Largest |B B^T - I| of a basis; of float32 vectors in 100,000 dimensions it is 1e-5."""


@dataclass(frozen=True)
class Basis:
    """Directions, each a row.

    Args:
        vectors: B [K, D], orthonormal.
        values: [K], what each was chosen by: an eigenvalue, a variance, a distance moved; NaN of random ones.
        steps: [K], of the checkpoint each comes from; -1 where it comes from all of them or none.
        residuals: [K], of eigenvectors |P H P b - value b|; NaN of others.

    Raises:
        InputError: no vector, more than D, or vectors that are not orthonormal.
    """

    vectors: Tensor
    values: Tensor
    steps: tuple[int, ...]
    residuals: Tensor

    def __post_init__(self) -> None:
        check_basis(self.vectors)

    def __len__(self) -> int:
        """K."""
        return len(self.vectors)


class MakesBasis(Protocol):
    """Finds directions for the checkpoints of a training."""

    def fit(self, checkpoints: Checkpoints, losses: Sequence[LossesAt]) -> Basis:
        """Directions for checkpoints; `losses` of chunks of training examples, for what looks at curvature."""


def check_basis(vectors: Tensor, size: int | None = None) -> None:
    """Refuse what is no orthonormal basis.

    Args:
        vectors: [K, D].
        size: D that they should have; None: any.

    Raises:
        InputError: no vector, more than D, another D, or vectors that are not orthonormal.
    """
    if vectors.dim() != 2 or not 1 <= len(vectors) <= vectors.shape[1]:
        raise InputError(f"basis: has shape {list(vectors.shape)}; give [K, D] with 1 <= K <= D")
    if size is not None and vectors.shape[1] != size:
        raise InputError(f"basis: is of {vectors.shape[1]} parameters, the checkpoints have {size}; fit it to them")
    off = orthonormality_error(vectors)
    if not off <= _ORTHONORMAL:
        raise InputError(f"basis: |B B^T - I| is {off:.2g}; give orthonormal rows, e.g. of torch.linalg.qr(V.T).Q.T")


def orthonormality_error(vectors: Tensor) -> float:
    """Largest entry of |B B^T - I| of rows B [K, D]."""
    gram = vectors.double() @ vectors.double().T
    return float((gram - torch.eye(len(vectors), dtype=torch.double, device=vectors.device)).abs().max())


@dataclass(frozen=True)
class TrajectoryPCABasis:
    """The principal components of the checkpoints about their mean: where the weights went.

    Args:
        count: K.

    Raises:
        InputError: K is below 1.
    """

    count: int = 10

    def __post_init__(self) -> None:
        _check_count(self.count)

    def fit(self, checkpoints: Checkpoints, losses: Sequence[LossesAt] = ()) -> Basis:
        """The directions; `losses` are not looked at.

        Raises:
            InputError: more directions than the checkpoints span.
        """
        if self.count > min(len(checkpoints) - 1, checkpoints.size):
            raise InputError(
                f"basis: {self.count} principal components of {len(checkpoints)} checkpoints of {checkpoints.size} "
                "parameters; ask for fewer, or record more often"
            )
        # The matrix of checkpoints' inner products is small, where that of weights is not.
        rows = torch.stack([checkpoints[t] for t in range(len(checkpoints))])
        rows = rows - rows.mean(0)
        gram = rows.double() @ rows.double().T
        values, mixes = torch.linalg.eigh(gram)
        values, mixes = values.flip(0)[: self.count], mixes.flip(1)[:, : self.count]
        if not float(values[-1]) > 1e-12 * float(values[0]):
            raise InputError(f"basis: the checkpoints span fewer than {self.count} directions; ask for fewer")
        vectors = _orthonormal(mixes.T.to(rows) @ rows)
        return _plain(vectors, values.to(rows) / len(rows))


@dataclass(frozen=True)
class RandomBasis:
    """Random orthonormal directions.

    Args:
        count: K.
        seed: of them.

    Raises:
        InputError: K is below 1.
    """

    count: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        _check_count(self.count)

    def fit(self, checkpoints: Checkpoints, losses: Sequence[LossesAt] = ()) -> Basis:
        """The directions; of the checkpoints only their length counts.

        Raises:
            InputError: more directions than parameters.
        """
        _check_fits(self.count, checkpoints.size)
        drawn = np.random.default_rng(self.seed).standard_normal((self.count, checkpoints.size))
        vectors = _orthonormal(torch.from_numpy(drawn).to(checkpoints[0]))
        return _plain(vectors, vectors.new_full((self.count,), math.nan))


@dataclass(frozen=True)
class AxisBasis:
    """Single weights: those that are largest at the end, or that moved the most.

    Along them first-order POLCA is loss change allocation (LCA, arXiv 1909.01440).

    Args:
        top: K.
        by: "size" at the last checkpoint, as the paper's baseline has it, or "moved" from the first to the last.

    Raises:
        InputError: K is below 1, or an unknown `by`.
    """

    top: int = 50
    by: str = "size"

    def __post_init__(self) -> None:
        _check_count(self.top)
        if self.by not in ("size", "moved"):
            raise InputError(f"by: unknown {self.by!r}; choose from size, moved")

    def fit(self, checkpoints: Checkpoints, losses: Sequence[LossesAt] = ()) -> Basis:
        """The directions; `losses` are not looked at.

        Raises:
            InputError: more directions than parameters.
        """
        _check_fits(self.top, checkpoints.size)
        last = checkpoints[len(checkpoints) - 1]
        measure = (last if self.by == "size" else last - checkpoints[0]).abs()
        values, places = measure.topk(self.top)
        vectors = last.new_zeros(self.top, checkpoints.size)
        vectors[torch.arange(self.top), places] = 1
        return _plain(vectors, values)


def _plain(vectors: Tensor, values: Tensor) -> Basis:
    return Basis(vectors, values, (-1,) * len(vectors), torch.full_like(values, math.nan))


def _orthonormal(vectors: Tensor) -> Tensor:
    """Gram-Schmidt on rows [K, D], each keeping its sense."""
    q, r = torch.linalg.qr(vectors.double().T)
    found: Tensor = (q * r.diagonal().sign()).T.to(vectors.dtype).contiguous()
    return found


def _check_count(count: int) -> None:
    if count < 1:
        raise InputError(f"basis: {count} directions are asked for; give 1 or more")


def _check_fits(count: int, size: int) -> None:
    _check_count(count)
    if count > size:
        raise InputError(f"basis: {count} directions for {size} parameters; ask for fewer")
