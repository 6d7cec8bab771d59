"""Data split into blocks, one for each stochastic layer, and the checks of what comes in."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lightning_modules.errors import InputError


class BlockPartition:
    """Splits x [..., D] into L blocks in order.

    Args:
        sizes: D_1, ..., D_L, each at least 1.

    Raises:
        InputError: a size is below 1, or there is none.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        if not sizes or min(sizes) < 1:
            raise InputError(f"sizes: {list(sizes)}; give one or more block sizes of at least 1")
        self.sizes = tuple(int(size) for size in sizes)

    @classmethod
    def raster(cls, dimension: int, blocks: int) -> BlockPartition:
        """Split D entries in raster order into equal blocks, of which the last takes the rest (784 / 10: 9 of 78 and 82).

        Raises:
            InputError: there are fewer entries than blocks, or no blocks.
        """
        if not 1 <= blocks <= dimension:
            raise InputError(f"blocks: {blocks} of {dimension} entries; give 1 to {dimension}")
        size = dimension // blocks
        return cls([size] * (blocks - 1) + [dimension - size * (blocks - 1)])

    @property
    def dimension(self) -> int:
        """D, the sum of the sizes."""
        return sum(self.sizes)

    def __len__(self) -> int:
        """Count the blocks."""
        return len(self.sizes)

    def split(self, x: Tensor) -> list[Tensor]:
        """Cut x [..., D] into its blocks [..., D_l].

        Raises:
            InputError: the sizes do not sum to D.
        """
        self._check(x)
        return list(torch.split(x, list(self.sizes), -1))

    def join(self, blocks: Sequence[Tensor]) -> Tensor:
        """Put blocks [..., D_l] together again to x [..., D].

        Raises:
            InputError: the blocks do not have the sizes.
        """
        found = [block.shape[-1] for block in blocks]
        if found != list(self.sizes):
            raise InputError(f"blocks: their sizes are {found}; give {list(self.sizes)}")
        return torch.cat(list(blocks), -1)

    def slices(self) -> list[slice]:
        """Where each block lies in x."""
        ends = [sum(self.sizes[:number]) for number in range(len(self) + 1)]
        return [slice(start, end) for start, end in pairwise(ends)]

    def _check(self, x: Tensor) -> None:
        if x.ndim < 1 or x.shape[-1] != self.dimension:
            width = x.shape[-1] if x.ndim else 0
            raise InputError(
                f"x: {width} entries, but the sizes {list(self.sizes)} sum to {self.dimension}; make them agree"
            )


def check_data(x: Tensor, partition: BlockPartition, binary: bool) -> None:
    """Check data before anything is computed from them.

    Args:
        x: [B, D].
        partition: of D.
        binary: whether entries must be 0 or 1.

    Raises:
        InputError: x is no matrix of the partition's width, holds NaN or infinity, or something else than 0 and 1.
    """
    if x.ndim != 2 or not x.is_floating_point():
        raise InputError(f"x: shape {list(x.shape)} of {x.dtype}; give floats [examples, {partition.dimension}]")
    partition._check(x)
    if not bool(torch.isfinite(x).all()):
        raise InputError("x: holds NaN or infinity; leave such examples out")
    if binary and not bool(((x == 0) | (x == 1)).all()):
        raise InputError("x: a Bernoulli likelihood needs entries 0 or 1; binarise x, or take likelihood='gaussian'")


def binarise(intensities: Tensor, generator: torch.Generator) -> Tensor:
    """Draw every pixel from Bernoulli(intensity), anew at every call: dynamic binarisation.

    Args:
        intensities: [..., D] in [0, 1].
        generator: of the draws, on the intensities' device.

    Raises:
        InputError: an intensity is outside [0, 1] or NaN.
    """
    if not bool(((intensities >= 0) & (intensities <= 1)).all()):
        raise InputError("intensities: some are outside [0, 1] or NaN; divide pixels by their largest value, e.g. 255")
    uniform = torch.rand(intensities.shape, generator=generator, device=intensities.device, dtype=intensities.dtype)
    return (uniform < intensities).to(intensities.dtype)
