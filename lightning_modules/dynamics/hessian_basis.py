"""POLCA's directions: top eigenvectors of the Hessian along a training, each orthogonal to those before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_modules.dynamics.basis import Basis
from lightning_modules.dynamics.curvature import HessianProduct, top_eigenpairs
from lightning_modules.dynamics.flat import LossesAt
from lightning_modules.dynamics.recorder import Checkpoints
from lightning_modules.errors import InputError

_DEEPEST = 1e12
"""How far the span of the directions so far is sunk at most."""


@dataclass(frozen=True)
class HessianBasis:
    """At every so many steps, the top eigenvectors of the Hessian in what the directions so far leave: of P H P, P = I - B^T B.

    H is the Hessian of the MEAN loss, "top" is by value and not by magnitude.

    Args:
        k: directions each time.
        every: steps between the checkpoints it looks at, from the first one on; each has to be a recorded one.
        limit: directions at most; None: as many as there are checkpoints for.
        shuffle: look at these checkpoints in a random order of this seed instead; None: in theirs. It is a baseline: what the
            order of the checkpoints is worth.
        tolerance: relative, of eigenvalues.
        iterations: of Lanczos at most.
        seed: of Lanczos's first vectors.

    Raises:
        InputError: a number below 1.

    Source: arXiv 2506.15872, section 3. The paper writes P H; its eigenvectors of other eigenvalues than 0 are those of the symmetric
    P H P.
    """

    k: int = 1
    every: int = 200
    limit: int | None = None
    shuffle: int | None = None
    tolerance: float = 1e-4
    iterations: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        limit = 1 if self.limit is None else self.limit
        for name, value in (("k", self.k), ("every", self.every), ("limit", limit), ("iterations", self.iterations)):
            if value < 1:
                raise InputError(f"{name}: is {value}; give 1 or more")

    def fit(self, checkpoints: Checkpoints, losses: Sequence[LossesAt]) -> Basis:
        """The directions.

        Args:
            checkpoints: of the training.
            losses: of chunks of training examples.

        Raises:
            InputError: more directions than parameters, or a loss that is not finite.
        """
        first = checkpoints.steps[0]
        chosen = [t for t, step in enumerate(checkpoints.steps) if (step - first) % self.every == 0]
        if self.shuffle is not None:
            chosen = list(np.random.default_rng(self.shuffle).permutation(chosen))
        size = checkpoints.size
        count = self.k * len(chosen) if self.limit is None else min(self.limit, self.k * len(chosen))
        if count > size:
            raise InputError(f"basis: {count} directions for {size} parameters; take a longer `every` or a `limit`")
        vectors, parts, steps = checkpoints[0].new_empty(0, size), list[tuple[Tensor, Tensor]](), list[int]()
        for t in chosen:
            k = min(self.k, count - len(vectors))
            if k < 1:
                break
            product = HessianProduct(losses, checkpoints[t])
            found, values, residuals = next_directions(
                product, vectors, k, self.tolerance, self.iterations, self.seed + int(t)
            )
            vectors = torch.cat([vectors, found])
            parts.append((values, residuals))
            steps += [checkpoints.steps[t]] * k
        all_values, all_residuals = (torch.cat(column) for column in zip(*parts, strict=True))
        return Basis(vectors, all_values, tuple(steps), all_residuals)


def next_directions(
    product: HessianProduct,
    vectors: Tensor,
    k: int = 1,
    tolerance: float = 1e-4,
    iterations: int = 100,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The k top eigenvectors of P H P outside the span of `vectors`, with P = I - B^T B.

    Args:
        product: H.
        vectors: B [K, D], K = 0 for none.
        k: how many.
        tolerance: relative, of eigenvalues.
        iterations: of Lanczos at most.
        seed: of Lanczos's first vector.

    Returns:
        Vectors [k, D], orthonormal and orthogonal to B; eigenvalues [k]; residuals [k].

    Raises:
        InputError: no room for so many directions.
    """
    size, device, dtype = vectors.shape[1], vectors.device, vectors.dtype
    if len(vectors) + k > size:
        raise InputError(f"basis: {len(vectors) + k} directions for {size} parameters; ask for fewer")
    drawn = torch.from_numpy(np.random.default_rng(seed).standard_normal(size)).to(device, dtype)
    start = _outside(drawn, vectors)
    sunk = 1.0

    def projected(vector: Tensor) -> Tensor:
        # P H P is 0 on the span of B, which is more than where the loss bends down: there the span is sunk below that.
        inside = vectors.T @ (vectors @ vector)
        outside = vector - inside
        return _outside(product(outside), vectors) - sunk * inside

    while sunk < _DEEPEST:
        pairs = top_eigenpairs(projected, size, k, start, tolerance, iterations, device, dtype, seed)
        if not len(vectors) or float((pairs.vectors @ vectors.T).square().sum(1).max()) < 0.5:
            break
        sunk *= 10
    else:
        raise InputError(
            "basis: the Hessian bends down without end; its weights are of no use, leave the checkpoint out"
        )
    found = list[Tensor]()
    for vector in pairs.vectors:
        others = torch.cat([vectors, *(v[None] for v in found)])
        for _ in range(2):  # once is not enough for float32
            vector = _outside(vector, others)
            vector = vector / vector.norm()
        found.append(vector)
    return torch.stack(found), pairs.values, pairs.residuals


def _outside(vector: Tensor, vectors: Tensor) -> Tensor:
    return vector - vectors.T @ (vectors @ vector) if len(vectors) else vector
