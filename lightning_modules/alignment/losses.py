"""The symmetric contrastive objective, what it cannot go below, and its temperature."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.errors import InputError

LARGEST_SCALE = 100.0
"""What the factor of the cosines may reach (CLIP's convention)."""


def info_nce(images_BD: Tensor, texts_BD: Tensor, log_scale: Tensor | float) -> Tensor:
    """Half the cross-entropy of each image's own text among all, plus half that of each text's own image.

    Logits are e^log_scale times the cosines; gradients reach both sides and the scale.

    Args:
        images_BD: vectors of B images; their lengths do not matter.
        texts_BD: of their captions, in the same order.
        log_scale: t, the logarithm of the inverse temperature.

    Returns:
        A scalar, in nats: log B where the scale is 0 (log_scale is -inf), near 0 where all pairs are told apart.

    Raises:
        InputError: the two differ in shape, or there is one pair only, which has no negatives.

    Source: Radford et al., 2021 (CLIP), as in arXiv 2210.03927.
    """
    if images_BD.dim() != 2 or images_BD.shape != texts_BD.shape:
        raise InputError(
            f"pairs: images have shape {list(images_BD.shape)}, texts {list(texts_BD.shape)}; give [B, D] of both"
        )
    if len(images_BD) < 2:
        raise InputError("batch: has one pair, so nothing to tell it from; give 2 or more")
    scale = torch.as_tensor(log_scale, device=images_BD.device).exp()
    logits = scale * F.normalize(images_BD, dim=1) @ F.normalize(texts_BD, dim=1).T
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def duplicates_floor(captions: Sequence[Hashable]) -> float:
    """The least that `info_nce` can be on a batch with these captions: the mean of log(how often each occurs in it).

    Equal captions have equal vectors, so an image's own text can get no more than its share among the equal ones, and their
    images must share the probability of one text.

    Raises:
        InputError: there are none.

    Source: derived.
    """
    if not len(captions):
        raise InputError("captions: there are none; give one an example")
    return math.fsum(n * math.log(n) for n in Counter(captions).values()) / len(captions)


def first_log_scale(temperature: float) -> nn.Parameter:
    """The trained parameter t = log(1 / temperature).

    Raises:
        InputError: the temperature is below 0.01, where the scale is at its largest, or not finite.
    """
    if not 1 / LARGEST_SCALE <= temperature < math.inf:
        raise InputError(f"temperature: is {temperature}; give {1 / LARGEST_SCALE:g} or more, 0.07 is usual")
    return nn.Parameter(torch.tensor(math.log(1 / temperature)))


@torch.no_grad()
def hold_scale(log_scale: Tensor) -> None:
    """Put t back to log(100) where an update has taken it above, in place.

    The bound is on the parameter, not in the loss: a `clamp` there would have no gradient beyond it, so that t could never
    come back.
    """
    log_scale.clamp_(max=math.log(LARGEST_SCALE))
