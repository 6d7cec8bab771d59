"""Texts as an encoder's items: tokens of similar length are encoded together, so that little is padded."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.encoders.adapter import FrozenEncoder, check_finite, item_name, to_numpy
from lightning_modules.errors import InputError


class TextEncoder(FrozenEncoder):
    """An encoder of texts: strings that are not empty."""

    kind = "text"
    cpu_batch = 64
    padding = 0
    """Token that fills shorter texts up."""

    @abc.abstractmethod
    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Turn texts into tokens, cut to what the model can read, with its special tokens."""

    @abc.abstractmethod
    def __call__(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Compute features [B, d] float32 of tokens [B, T] int64, padded where mask [B, T] bool is False."""

    def encode(self, items: Sequence[Any], batch_size: int | None = None, threads: int = 1) -> np.ndarray:
        """Encode texts.

        Args:
            items: n strings; those longer than the model reads are cut.
            batch_size: texts encoded at once; features depend on it no more than on the order of floating-point sums.
                None: what is fast where the weights are.
            threads: no effect: tokens are quickly made.

        Returns:
            Features [n, d] float32.

        Raises:
            InputError: naming an item that is no string or empty, or whose features are NaN or infinite; the model is
                in train mode.
        """
        self._check_eval()
        size = self._batch(batch_size)
        for row, item in enumerate(items):
            if not isinstance(item, str) or not item.strip():
                what = "is empty" if isinstance(item, str) else f"is {type(item).__name__}"
                raise InputError(f"{item_name(item, row)}: {what}; give a text")
        tokens = self.tokenise(items)
        order = sorted(range(len(items)), key=lambda row: len(tokens[row]))
        features = np.empty((len(items), self.dimension), dtype=np.float32)
        for start in range(0, len(items), size):
            rows = order[start : start + size]
            features[rows] = to_numpy(self(*pad([tokens[row] for row in rows], self.padding)))
        return check_finite(features, items)


def pad(tokens: Sequence[Sequence[int]], padding: int = 0) -> tuple[Tensor, Tensor]:
    """Put lists of tokens into one tensor.

    Args:
        tokens: B lists.
        padding: token that fills shorter lists up on the right.

    Returns:
        Tokens [B, T] int64 and mask [B, T] bool, False where padded.
    """
    longest = max(map(len, tokens), default=0)
    mask = torch.tensor([[i < len(row) for i in range(longest)] for row in tokens], dtype=torch.bool).view(
        len(tokens), longest
    )
    filled = [[*row, *[padding] * (longest - len(row))] for row in tokens]
    return torch.tensor(filled, dtype=torch.int64).view(len(tokens), longest), mask
