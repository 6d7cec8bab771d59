"""Images and text in one sequence: placeholders among the tokens, whose embeddings patches of images take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_modules.errors import InputError
from lightning_modules.sequence.cache import Cache
from lightning_modules.sequence.decoding import Choose, most_likely
from lightning_modules.sequence.transformer import Transformer, linear

Array = NDArray[Any]


class Interleaved(NamedTuple):
    """A sequence of text and images: tokens [T], patches [n, D] in the order of their placeholders."""

    tokens: Tensor
    patches: Tensor


def patches_of(image: Array, size: int) -> Array:
    """Cut an image into squares, row by row.

    Args:
        image: [height, width] or [height, width, channels].
        size: side of a square, which divides height and width.

    Returns:
        [squares, size * size * channels], float32, each square's pixels row by row.

    Raises:
        InputError: another number of dimensions, or sides that the size does not divide.
    """
    if image.ndim not in (2, 3):
        raise InputError(f"image: has shape {list(image.shape)}; give [height, width] or [height, width, channels]")
    height, width = image.shape[:2]
    if size < 1 or height % size or width % size or not image.size:
        raise InputError(f"image: of {height} by {width} pixels cannot be cut into squares of {size}; resize it")
    rows, columns = height // size, width // size
    squares = image.reshape(rows, size, columns, size, -1).swapaxes(1, 2)
    return np.ascontiguousarray(squares.reshape(rows * columns, -1), dtype=np.float32)


def interleave(parts: Sequence[Any], placeholder: int, size: int) -> Interleaved:
    """Join texts and images into one sequence.

    Args:
        parts: in their order; each a list or a one-dimensional array of token ids, or an image [height, width] or
            [height, width, channels], all images with as many channels.
        placeholder: the token that stands for a patch; no text may have it.
        size: side of a patch.

    Raises:
        InputError: a text with the placeholder, images that cannot be cut or differ in channels, no part at all.

    Example:
        >>> tokens, patches = interleave([[5, 6], np.zeros((8, 8)), [7]], placeholder=9, size=4)
        >>> tokens.tolist(), patches.shape
        ([5, 6, 9, 9, 9, 9, 7], torch.Size([4, 16]))
    """
    if not len(parts):
        raise InputError("parts: there are none; give texts (token ids) and images")
    tokens: list[Array] = []
    patches: list[Array] = []
    for number, part in enumerate(parts):
        array = np.asarray(part)
        if array.ndim == 1 and (array.dtype.kind in "iu" or not array.size):
            ids = array.astype(np.int64)
            if (ids == placeholder).any():
                raise InputError(
                    f"parts: text number {number} has the placeholder {placeholder}; give it another token"
                )
        else:
            squares = patches_of(array, size)
            if patches and squares.shape[1] != patches[0].shape[1]:
                raise InputError(
                    f"parts: image number {number} has patches of {squares.shape[1]} numbers, the first one's have "
                    f"{patches[0].shape[1]}; give images with as many channels"
                )
            patches.append(squares)
            ids = np.full(len(squares), placeholder, np.int64)
        tokens.append(ids)
    joined = np.concatenate(patches) if patches else np.empty((0, 0), np.float32)
    return Interleaved(torch.from_numpy(np.concatenate(tokens)), torch.from_numpy(joined))


class PatchDecoder(nn.Module):
    """A decoder of tokens and patches: a linear map of a patch takes the place of its placeholder's embedding.

    Attention is causal over everything, so that text sees the images before it and none behind it.

    Args:
        decoder: of tokens.
        patch: D, numbers in a patch.
        placeholder: the token that stands for a patch.
        generator: of the projection's first weights, of standard deviation 1 / sqrt(D); None: torch's global one.

    Raises:
        InputError: a placeholder outside the vocabulary, or patches of no numbers.

    Source: field standard; arXiv 2507.06261 says natively multimodal and no more.
    """

    def __init__(
        self, decoder: Transformer, patch: int, placeholder: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if patch < 1:
            raise InputError(f"patch: is {patch}; give 1 or more")
        if not 0 <= placeholder < decoder.config.vocabulary:
            raise InputError(f"placeholder: {placeholder} is no token; give 0 to {decoder.config.vocabulary - 1}")
        self.decoder = decoder
        self.placeholder = placeholder
        self.projection = linear(patch, decoder.config.width)
        with torch.no_grad():
            self.projection.weight.normal_(0, patch**-0.5, generator=generator)
            self.projection.bias.zero_()

    def embedded(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """What the blocks are given [B, T, W].

        Args:
            tokens: [B, T].
            patches: [n, D], of the first sequence's placeholders in their order, then of the second one's, and so on.

        Raises:
            InputError: more or fewer patches than placeholders, or patches of another size.
        """
        at = tokens == self.placeholder
        expected, found = int(at.sum()), len(patches)
        if expected != found:
            raise InputError(f"patches: there are {found} for {expected} placeholders; give one each")
        x: Tensor = self.decoder.embedding(tokens)
        if not found:
            return x
        if patches.dim() != 2 or patches.shape[1] != self.projection.in_features:
            raise InputError(
                f"patches: have shape {list(patches.shape)}; give [{expected}, {self.projection.in_features}]"
            )
        return x.masked_scatter(at[..., None], self.projection(patches).to(x.dtype))

    def features(self, tokens: Tensor, patches: Tensor, cache: Cache | None = None) -> Tensor:
        """The normed residual stream [B, T, W] of tokens [B, T] and the patches [n, D] of their placeholders."""
        return self.decoder.features_of(self.embedded(tokens, patches), cache)

    def forward(self, tokens: Tensor, patches: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits [B, T, V] of each next token."""
        return self.decoder.logits(self.features(tokens, patches, cache))

    @torch.no_grad()
    def write(self, tokens: Tensor, patches: Tensor, count: int, choose: Choose = most_likely) -> Tensor:
        """Go on from tokens [B, T] and their patches [n, D] by `count` tokens of text [B, count], in evaluation mode."""
        training = self.training
        self.eval()
        cache, found = Cache(), []
        for _ in range(count):
            logits = self(tokens, patches, cache)[:, -1]
            logits[:, self.placeholder] = -torch.inf  # no image stands behind one that is written
            tokens, patches = choose(logits)[:, None], patches[:0]
            found.append(tokens)
        self.train(training)
        return torch.cat(found, 1) if found else tokens[:, :0]
