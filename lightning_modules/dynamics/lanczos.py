"""Lanczos iterations that stop as soon as they may: from a warm start they take 6 products, where ARPACK's take 22."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.dynamics.curvature import Eigenpairs, Product

_LEAST = 6
"""Products before the first check: a start near an eigenvector would else be taken for the top one unseen."""
_NOISE = 0.1
"""Share of a random direction in a warm start, which finds what the last step's eigenvectors know nothing of."""


class WarmLanczos:
    """The algebraically largest eigenpairs of a matrix that changes little from call to call.

    The basis is kept orthogonal by projecting twice against all of it, so no eigenvalue appears twice. The next call starts from
    the wanted eigenvectors and the two that follow, so that an eigenvector that overtakes the first is found too; products are
    taken until the residual of each wanted pair is small.

    Args:
        k: how many pairs.
        tolerance: of residuals |H v - value v|, relative to the largest |eigenvalue| seen.
        products: at most, in one call.
        seed: of the random directions.
    """

    def __init__(self, k: int = 1, tolerance: float = 3e-3, products: int = 60, seed: int = 0) -> None:
        self.k, self.tolerance, self.limit, self._seed = k, tolerance, products, seed
        self.start: Tensor | None = None
        self.products = 0

    def __call__(
        self,
        product: Product,
        size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Eigenpairs:
        """Find the pairs of the matrix that `product` multiplies with.

        Args:
            product: with the matrix [D, D].
            size: D.
            device: of vectors.
            dtype: of vectors.
        """
        limit = min(size, max(self.limit, self.k + 1))
        basis = self._first(size, device, dtype)[None]
        band = torch.zeros(limit + 1, limit + 1, dtype=torch.double)
        self.products = 0
        for m in range(1, limit + 1):
            image = product(basis[m - 1])
            self.products += 1
            done, rest = basis[:m], image
            for _ in range(2):  # once is not enough in float32
                rest = rest - done.T @ (done @ rest)
            band[m - 1, m - 1] = torch.dot(image, basis[m - 1]).double().cpu()
            off = float(rest.norm())
            values, rows = torch.linalg.eigh(band[:m, :m])
            scale = float(values.abs().max())
            wanted = off * rows[m - 1].abs().flip(0)[: self.k]
            enough = m >= max(_LEAST, self.k + 1) and float(wanted.max()) <= self.tolerance * scale
            if enough or m == limit or off <= 1e-6 * scale:
                break
            if m == len(basis):  # grows as it is filled: D may be large, and few rows are usual
                basis = torch.cat([basis, basis.new_empty(min(len(basis) + 3, limit - m), size)])
            basis[m] = rest / off
            band[m - 1, m] = band[m, m - 1] = off
        values, rows = values.flip(0), rows.flip(1).T  # [m], [m, m]: the largest first
        kept = min(self.k + 2, m)
        vectors = rows[:kept].to(basis) @ basis[:m]
        weights = torch.tensor([1.0] * self.k + [0.3, 0.1])[:kept].to(basis)
        self.start = weights @ vectors
        found = vectors[: self.k] / vectors[: self.k].norm(dim=1, keepdim=True)
        return Eigenpairs(values[: self.k].to(basis), found, (off * rows[: self.k, m - 1].abs()).to(basis))

    def _first(self, size: int, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        drawn = torch.randn(size, generator=torch.Generator().manual_seed(self._seed), dtype=torch.double)
        start: Tensor = (drawn / drawn.norm()).to(device, dtype)
        if self.start is not None and self.start.shape == (size,):
            last = self.start.to(device, dtype)
            start = last / last.norm() + _NOISE * start
        return start.div(start.norm())
