"""The head that takes a text encoder's vectors into an image encoder's space."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.errors import InputError
from lightning_modules.networks import initialise


class AlignmentHead(nn.Module):
    """phi: R^d_text -> R^d_image, dense layers with GELU and dropout between them.

    Dropout acts only where a generator is given, so the random numbers are the caller's, and a head has no modes.

    Args:
        d_text: width of the text encoder's vectors.
        d_image: width of the image encoder's.
        layers: dense layers; 1 is a linear map, which has neither width nor dropout. The paper has 4 to 6.
        width: of the layers between; the paper's is not known.
        dropout: share of hidden units that are dropped.
        generator: of the first weights; None: one with seed 0.

    Raises:
        InputError: a size below 1, or a dropout outside [0, 1).

    Source: arXiv 2210.03927. Width, dropout and the linear default are ours.
    """

    def __init__(
        self,
        d_text: int,
        d_image: int,
        layers: int = 1,
        width: int = 1024,
        dropout: float = 0.3,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_head(layers, width, dropout)
        for name, value in {"d_text": d_text, "d_image": d_image}.items():
            if value < 1:
                raise InputError(f"{name}: is {value}; give 1 or more")
        self.d_text, self.d_image, self.dropout = d_text, d_image, dropout
        sizes = [d_text, *[width] * (layers - 1), d_image]
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes))
        initialise(self, generator or torch.Generator().manual_seed(0))

    def forward(self, texts_BU: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Map vectors [B, d_text] to [B, d_image], not normalised.

        Args:
            texts_BU: of the text encoder.
            generator: draws what is dropped, on the texts' device; None: nothing is.

        Raises:
            InputError: the vectors have another width.
        """
        if texts_BU.dim() != 2 or texts_BU.shape[1] != self.d_text:
            raise InputError(
                f"texts: have shape {list(texts_BU.shape)}, the head takes [B, {self.d_text}]; use the encoder it was made for"
            )
        hidden = texts_BU
        for layer in list(self.layers)[:-1]:
            hidden = _drop(F.gelu(layer(hidden)), self.dropout, generator)
        found: Tensor = self.layers[-1](hidden)
        return found


def check_head(layers: int, width: int, dropout: float) -> None:
    """Refuse a head's hyperparameters that are out of range.

    Raises:
        InputError: a size below 1, or a dropout outside [0, 1).
    """
    for name, value in {"layers": layers, "width": width}.items():
        if value < 1:
            raise InputError(f"{name}: is {value}; give 1 or more")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout: is {dropout}; give 0 or more, below 1")


def _drop(values: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    if generator is None or not share:
        return values
    kept = torch.rand(values.shape, generator=generator, device=values.device) >= share
    return values * kept / (1 - share)
