"""Losses of training under noise, functions of logits [m, B, C] of m noise draws and of labels [B]; their options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.errors import InputError

REGULARISERS: dict[str, dict[str, float]] = {
    "none": {"draws": 1},
    "consistency": {"lam": 10.0, "eta": 0.5, "draws": 2},
    "smoothadv": {"epsilon": 127 / 256, "attack_steps": 2, "warmup_epochs": 10, "draws": 2},
    "macer": {"lam": 12.0, "gamma": 8.0, "draws": 16},
}
"""Each regulariser's options and their defaults; `training.NoiseAugmentedClassifier` says where they are from."""

_LOWEST = {"draws": 1, "attack_steps": 1, "warmup_epochs": 0, "lr_step": 1}
"""Smallest value of each option that is a whole number; the others are at least 0."""


def noise_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean cross-entropy over draws and examples.

    Source: Cohen et al., "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019, arXiv 1902.02918,
    section 3.3.
    """
    return F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)))


def smoothed_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute -log of the mean over draws of the label's softmax, [B].

    This is the soft smoothed classifier's cross-entropy, which an attack climbs. It stays finite where every softmax
    underflows, and keeps its gradient where every softmax rounds to 1.

    Source: Salman et al., "Provably Robust Deep Learning via Adversarially Trained Smoothed Classifiers", NeurIPS 2019,
    arXiv 1906.04584, section 2.
    """
    places = labels.expand(logits.shape[:2]).unsqueeze(-1)
    others = logits.scatter(-1, places, -math.inf).logsumexp(-1)
    losses = F.softplus(others - logits.gather(-1, places).squeeze(-1))
    return math.log(len(logits)) - (-losses).logsumexp(0)


def consistency_loss(logits: Tensor, labels: Tensor, lam: float, eta: float) -> Tensor:
    """Compute mean cross-entropy + lam * mean_i KL(p || p_i) + eta * H(p), p the mean of the draws' softmax p_i.

    Args:
        logits: [m, B, C] with m of 2 or more; with one draw p is p_1, and the penalty's first term is zero.
        labels: [B].
        lam: weight of the divergence between draws.
        eta: weight of the mean prediction's entropy.

    Source: Jeong & Shin, "Consistency Regularization for Certified Robustness of Smoothed Classifiers", NeurIPS 2020,
    arXiv 2006.04062.
    """
    log_p = logits.log_softmax(-1)
    log_mean = log_p.logsumexp(0) - math.log(len(logits))
    mean = log_mean.exp()
    divergence = (mean * (log_mean - log_p.mean(0))).sum(-1).mean()
    entropy = -(mean * log_mean).sum(-1).mean()
    risk = F.nll_loss(log_p.flatten(0, 1), labels.repeat(len(logits)))
    return risk + lam * divergence + eta * entropy


def macer_loss(logits: Tensor, labels: Tensor, sigma: float, lam: float, gamma: float, beta: float = 16.0) -> Tensor:
    """Compute the mean of `smoothed_losses` + lam * (sigma / 2) * [right] * max(0, gamma + Q(p_2) - Q(p_1)).

    p is the mean over draws of the softmax at inverse temperature beta, p_1 and p_2 its two largest entries, Q the
    normal quantile function; [right] says that p_1 is the label's. sigma / 2 (Q(p_1) - Q(p_2)) is the certified radius
    in its soft form, so that the hinge widens radii below sigma * gamma / 2.

    Q(p_1) is computed from the sum of all other entries: p_1 itself rounds to 1 long before the radius gets large.

    Args:
        logits: [m, B, C].
        labels: [B].
        sigma: of the noise, in the inputs' units.
        lam: weight of the hinge.
        gamma: margin Q(p_1) - Q(p_2) from which on an example adds nothing.
        beta: inverse temperature.

    Source: Zhai et al., "MACER: Attack-free and Scalable Robust Training via Maximizing Certified Radius", ICLR 2020,
    arXiv 2001.02378, algorithm 1.
    """
    p = (beta * logits).softmax(-1).mean(0)
    p_label = p.gather(1, labels[:, None]).squeeze(1)
    others = p.scatter(1, labels[:, None], 0.0)
    runner_up = others.amax(1)
    # Bounds of what has a finite quantile: rounded, a confident mistake's sum of other entries may exceed 1.
    lowest, highest = torch.finfo(p.dtype).tiny, 1 - torch.finfo(p.dtype).eps
    quantile_others, quantile_runner_up = torch.special.ndtri(
        torch.stack([others.sum(1), runner_up]).clamp(lowest, highest)
    )
    margin = -quantile_others - quantile_runner_up
    hinge = torch.where(p_label > runner_up, (gamma - margin).clamp_min(0), 0.0)
    return smoothed_losses(logits, labels).mean() + lam * sigma / 2 * hinge.mean()


def resolve(given: Mapping[str, Any], defaults: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Fill options that were not given (None) with their defaults.

    Raises:
        InputError: for an option without a default, since `owner` does not have it, or a value out of range.
    """
    for name, value in given.items():
        if value is None:
            continue
        if name not in defaults:
            raise InputError(f"{name}: has no effect with {owner}; leave it out")
        whole = name in _LOWEST
        if not _LOWEST.get(name, 0) <= value < math.inf or (whole and value != int(value)):
            kind = "a whole number" if whole else "a number"
            raise InputError(f"{name}: {value} is out of range; give {kind} of {_LOWEST.get(name, 0)} or more")
    values = {name: default if given.get(name) is None else given[name] for name, default in defaults.items()}
    return {name: int(value) if name in _LOWEST and value is not None else value for name, value in values.items()}
