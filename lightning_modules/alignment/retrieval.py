"""How often an image's own caption is among the nearest, and a caption's own image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.errors import InputError

_TIE = 1e-6
"""Cosines that differ by less are equal in single precision."""


@dataclass(frozen=True)
class Recall:
    """Shares of n queries whose own partner is among the k nearest.

    Args:
        pairs: n.
        image_to_text: by k, of images that ask for their captions.
        text_to_image: by k, of captions that ask for their images.
    """

    pairs: int
    image_to_text: dict[int, float]
    text_to_image: dict[int, float]

    def chance(self, k: int) -> float:
        """What guessing gives: k / n."""
        return min(1.0, k / self.pairs)


def retrieval_recall(
    images: Tensor | np.ndarray, texts: Tensor | np.ndarray, ks: Sequence[int] = (1, 5, 10), chunk: int = 2048
) -> Recall:
    """Recall at k in both directions, by cosine, among n pairs.

    A partner's rank is the number of candidates whose cosine is at least its own: who shares a place gets the last of them, so
    that vectors which are all equal find nothing. Equal captions therefore count against each other.

    Args:
        images: [n, D], of any length; row i belongs to text i.
        texts: [n, D] in the same space, on the same device.
        ks: how many nearest count.
        chunk: images that are compared at once, with all texts: [chunk, n] is the memory.

    Raises:
        InputError: shapes that differ, no pairs, a k or chunk below 1, values that are not finite, zero vectors.
    """
    w, z = _unit("images", images), _unit("texts", texts)
    if w.shape != z.shape:
        raise InputError(f"pairs: images have shape {list(w.shape)}, texts {list(z.shape)}; give one text an image")
    if chunk < 1 or not ks or min(ks) < 1:
        raise InputError(f"ks, chunk: {list(ks)}, {chunk}; give numbers above 0")
    own = (w * z).sum(1) - _TIE
    by_image, by_text = [], torch.zeros(len(w), dtype=torch.int64, device=w.device)
    for rows in torch.split(torch.arange(len(w), device=w.device), chunk):
        cosines = w[rows] @ z.T
        by_image.append((cosines >= own[rows, None]).sum(1))
        by_text += (cosines >= own).sum(0)
    ranks = torch.cat(by_image)
    return Recall(len(w), *({int(k): float((r <= k).double().mean()) for k in ks} for r in (ranks, by_text)))


def _unit(name: str, vectors: Tensor | np.ndarray) -> Tensor:
    found = torch.as_tensor(vectors).float()
    check_vectors(name, found)
    return F.normalize(found, dim=1)


def check_vectors(name: str, vectors: Tensor) -> None:
    """Refuse what has no cosines.

    Raises:
        InputError: naming the first row: vectors are not [n, D] with n and D above 0, are not finite, or zero.
    """
    if vectors.dim() != 2 or not vectors.numel():
        raise InputError(f"{name}: have shape {list(vectors.shape)}; give [rows, numbers], one row or more")
    for bad, what in (
        (~vectors.isfinite().all(1), "is not finite; encode it again or leave it out"),
        ((vectors == 0).all(1), "is zero, so it points nowhere; leave it out"),
    ):
        if bool(bad.any()):
            raise InputError(f"{name}: row {int(bad.nonzero()[0, 0])} {what}")
