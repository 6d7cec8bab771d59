"""The two contrastive losses of log ratios r = log p - log q, in the log domain.

NCE is the logistic loss of telling data from noise, eNCE the exponential loss of the score r / 2: with half the log ratio in the
exponent the minimiser is the density itself. Each is half the mean over data plus half the mean over noise, whatever
the two numbers of examples, so the mean over both together is another loss.

Source: the losses are those of Liu, Rosenfeld, Ravikumar, Risteski, "Analyzing and Improving the Optimization Landscape of
Noise-Contrastive Estimation", ICLR 2022, arXiv 2110.11271; the computation by logarithms is ours.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules.errors import InputError

Loss = Literal["nce", "ence"]
LOSSES: tuple[Loss, ...] = ("nce", "ence")

_LINEAR_BELOW = -15.0
"""Below it log softplus(u) is u - e^u / 2, up to 1e-13."""


def log_softplus(u: Tensor) -> Tensor:
    """Return log(log(1 + e^u)) without an underflow, and with a finite gradient everywhere; derived.

    Args:
        u: any shape.
    """
    near = u.clamp(min=_LINEAR_BELOW)  # no part of the other branch may be infinite: its gradient would be 0 * inf
    return torch.where(u < _LINEAR_BELOW, u - u.clamp(max=0).exp() / 2, functional.softplus(near).log())


def log_terms(loss: Loss, signed: Tensor) -> Tensor:
    """Return the logarithm of each example's loss.

    Args:
        loss: which.
        signed: -r of data, or r of noise; any shape.
    """
    return log_softplus(signed) if loss == "nce" else signed / 2


def log_loss(loss: Loss, log_ratio_data: Tensor, log_ratio_noise: Tensor) -> Tensor:
    """Return the logarithm of a loss, log((mean over data + mean over noise) / 2).

    Args:
        loss: which.
        log_ratio_data: [n].
        log_ratio_noise: [m].

    Raises:
        InputError: for empty input, another number of axes, or NaN.
    """
    for name, values in (("log_ratio_data", log_ratio_data), ("log_ratio_noise", log_ratio_noise)):
        if values.dim() != 1 or not len(values):
            raise InputError(f"{name}: has the shape {list(values.shape)}; give [n], n at least 1")
        if bool(values.isnan().any()):
            raise InputError(f"{name}: has NaN; look for it in the model's log density or the noise's")
    means = torch.stack(
        [
            torch.logsumexp(log_terms(loss, sign * values), 0) - math.log(len(values))
            for sign, values in ((-1, log_ratio_data), (1, log_ratio_noise))
        ]
    )
    return torch.logsumexp(means, 0) - math.log(2)


def nce_loss(log_ratio_data: Tensor, log_ratio_noise: Tensor, log: bool = False) -> Tensor:
    """Return L = 1/2 E_data[softplus(-r)] + 1/2 E_noise[softplus(r)], or its logarithm; log 2 where the model is the noise.

    Args:
        log_ratio_data: [n] log p - log q of data.
        log_ratio_noise: [m] of noise.
        log: whether the logarithm is wanted, which is finite for all finite ratios. Without it L = 0 where the two are told
            apart beyond float's range.

    Returns:
        A scalar that can be differentiated.

    Raises:
        InputError: for empty input, another number of axes, or NaN.

    Source: arXiv 2110.11271, equation of the NCE loss.
    """
    found = log_loss("nce", log_ratio_data, log_ratio_noise)
    return found if log else found.exp()


def ence_loss(log_ratio_data: Tensor, log_ratio_noise: Tensor, log: bool = True) -> Tensor:
    """Return log L, or L = 1/2 E_data[exp(-r/2)] + 1/2 E_noise[exp(r/2)] itself; L is 1 where the model is the noise.

    Its least value, at the density of the data, is the Bhattacharyya coefficient of data and noise.

    Args:
        log_ratio_data: [n] log p - log q of data.
        log_ratio_noise: [m] of noise.
        log: whether the logarithm is wanted. L itself is infinite from |r| = 177 on in float32, and L and log L are
            different objectives for a plain gradient step.

    Returns:
        A scalar that can be differentiated.

    Raises:
        InputError: for empty input, another number of axes, or NaN.

    Source: arXiv 2110.11271, the eNCE loss (its form from memory).
    """
    found = log_loss("ence", log_ratio_data, log_ratio_noise)
    return found if log else found.exp()
