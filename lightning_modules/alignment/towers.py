"""The rivals that train whole encoders: one tower on a locked one (LiT), or both from scratch (CLIP)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.alignment.dual_encoder import DualEncoder
from lightning_modules.errors import InputError
from lightning_modules.networks import initialise

_LENGTHS = 4
"""Parts of a batch, by the lengths of its texts."""


class LiTModule(DualEncoder):
    """min over a text tower, a linear map and t:  info_nce(v, map(tower(tokens)), t), image vectors v locked.

    Args:
        tower: maps tokens [B, T] int64 and a mask [B, T] bool, False on padding, to vectors [B, d_text]; all of it is trained.
        d_text: width of its vectors.
        d_image: width of the image encoder's.
        padding: the token that fills up short texts. What dropout the tower has draws from torch's global numbers.
        temperature: at the start.
        lr: largest learning rate of the tower.
        weight_decay: AdamW's.
        warmup: share of the steps over which the rate rises.
        seed: of the map's first weights.
        head_lr: largest learning rate of the map and of t.

    Source: Zhai et al., 2022 (LiT). Optimiser and schedule are ours.
    """

    def __init__(
        self,
        tower: nn.Module,
        d_text: int,
        d_image: int,
        padding: int = 0,
        temperature: float = 0.07,
        lr: float = 1e-4,
        weight_decay: float = 0.1,
        warmup: float = 0.1,
        seed: int = 0,
        head_lr: float = 1e-3,
    ) -> None:
        super().__init__(temperature, head_lr, weight_decay, warmup, seed)
        self.tower, self.map = tower.requires_grad_(True), nn.Linear(d_text, d_image)
        initialise(self.map, torch.Generator().manual_seed(seed))
        self._padding, self._tower_lr = padding, lr

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The tower at its own rate, the map and t at theirs."""
        tower = {"params": list(self.tower.parameters()), "lr": self._tower_lr, "weight_decay": self._decay}
        linear = {"params": list(self.map.parameters()), "lr": self._lr, "weight_decay": self._decay}
        return [tower, linear, {"params": [self.log_scale], "lr": self._lr, "weight_decay": 0.0}]

    def image_vectors(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The locked encoder's vectors as they are."""
        return images

    def text_vectors(self, texts: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Vectors [n, d_image] of tokens [n, T], padded at their ends.

        Equal texts go through the tower once, and those of like length together, so that little of it is padding.
        """
        texts, own = torch.unique(texts, dim=0, return_inverse=True)
        mask = texts != self._padding
        lengths = mask.sum(1)
        order = lengths.argsort()
        parts = []
        for rows in torch.tensor_split(order, min(_LENGTHS, len(order))):
            longest = int(lengths[rows[-1]])
            parts.append(self.tower(texts[rows, :longest], mask[rows, :longest]))
        found: Tensor = self.map(torch.cat(parts)[order.argsort()][own])
        return found


class ClipFromScratch(DualEncoder):
    """min over both towers and t:  info_nce(CNN(pixels), MLP(bag of words), t), from random weights.

    Args:
        vocabulary: numbers of a bag of words.
        channels: of the first of four convolutions, each but the last of which halves the image; the others have 2, 4 and
            4 times as many.
        width: of the common space, and of the text tower's hidden layer.
        temperature: at the start.
        lr: largest learning rate.
        weight_decay: AdamW's.
        warmup: share of the steps over which the rate rises.
        seed: of the first weights.

    Source: Radford et al., 2021 (CLIP), at the size of a small experiment; the towers are ours.
    """

    def __init__(
        self,
        vocabulary: int,
        channels: int = 32,
        width: int = 256,
        temperature: float = 0.07,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        warmup: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(temperature, lr, weight_decay, warmup, seed)
        sizes = [3, channels, 2 * channels, 4 * channels, 4 * channels]
        layers: list[nn.Module] = []
        for at, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False)):
            norm = nn.GroupNorm(max(1, outputs // 16), outputs)
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2 if at < 3 else 1, padding=1), norm, nn.GELU()]
        self.images = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], width))
        self.texts = nn.Sequential(nn.Linear(vocabulary, width), nn.GELU(), nn.Linear(width, width))
        initialise(self, torch.Generator().manual_seed(seed))

    def image_vectors(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Vectors [n, width] of images [n, 3, H, W] uint8."""
        found: Tensor = self.images(images.float() / 127.5 - 1)
        return found

    def text_vectors(self, texts: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Vectors [n, width] of bags of words [n, V]."""
        found: Tensor = self.texts(texts)
        return found


def vocabulary_of(captions: Sequence[str]) -> tuple[str, ...]:
    """The words of captions, sorted."""
    return tuple(sorted({word for caption in captions for word in _words(caption)}))


def bags_of_words(captions: Sequence[str], vocabulary: Sequence[str]) -> Tensor:
    """Count a vocabulary's words in captions: [n, V + 1] float32 at unit length, words that it lacks counted last.

    Raises:
        InputError: a caption without a word.
    """
    numbers = {word: at for at, word in enumerate(vocabulary)}
    bags = torch.zeros(len(captions), len(vocabulary) + 1)
    for row, caption in enumerate(captions):
        words = _words(caption)
        if not words:
            raise InputError(f"captions: row {row} ({caption!r}) has no word; write one or leave the image out")
        for word in words:
            bags[row, numbers.get(word, len(vocabulary))] += 1
    return nn.functional.normalize(bags, dim=1)


def _words(caption: str) -> list[str]:
    return re.findall(r"\w+", caption.casefold())
