"""Surrogates that a critic minimises: to agree with the classifier on the source, to disagree with it on the target.

Logits z [N, K] of a critic, y [N] what the classifier predicts (never the label). Every function also takes the logits of many
critics, [..., N, K].
"""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from lightning_modules.errors import InputError

Kind = Literal["dis2", "one_minus_p", "neg_ce"]
KINDS: tuple[Kind, ...] = ("dis2", "one_minus_p", "neg_ce")


def agreement_loss(logits: Tensor, target: Tensor, normalize: bool = False) -> Tensor:
    """Cross-entropy [..., N] of the critic against the classifier's predictions.

    Args:
        logits: [..., N, K].
        target: [N] classes.
        normalize: divide by log K, so that equal logits cost 1 (the paper's constant, from memory; its code has none).

    Source: Rosenfeld & Garg 2023.
    """
    classes = logits.shape[-1]
    chosen = logits.gather(-1, _spread(target, logits)).squeeze(-1)
    loss = logits.logsumexp(-1) - chosen
    return loss / math.log(classes) if normalize else loss


def disagreement_loss(logits: Tensor, target: Tensor, kind: Kind = "dis2", normalize: bool = False) -> Tensor:
    """Loss [..., N] that falls as the critic moves away from the classifier's predictions.

    "dis2" is log(1 + exp(z_y - mean of the other logits)), convex in z; divided by log 2 it is at least the 0-1 agreement.
    "one_minus_p" is -log(1 - softmax(z)_y), which is consistent for K > 2 where "dis2" is not, but not convex. "neg_ce" is
    minus the cross-entropy, unbounded below. With two classes the first two are the cross-entropy of the other class.

    Args:
        logits: [..., N, K] with K >= 2.
        target: [N] classes.
        kind: which.
        normalize: divide by log 2, so that dis2 at equal logits costs 1 (the paper's constant, from memory).

    Raises:
        InputError: for an unknown kind, or one class.

    Source: Rosenfeld & Garg 2023 ("dis2"); Pagliardini et al. 2022, arXiv 2202.04414 ("one_minus_p", D-BAT);
    on its consistency Marchant et al. 2025, arXiv 2512.05931.
    """
    classes = logits.shape[-1]
    if classes < 2:
        raise InputError("logits: have one column; a critic needs two classes or more")
    index = _spread(target, logits)
    if kind == "neg_ce":
        loss = logits.gather(-1, index).squeeze(-1) - logits.logsumexp(-1)
    else:
        chosen = logits.gather(-1, index).squeeze(-1)
        if kind == "dis2":
            margin = chosen - (logits.sum(-1) - chosen) / (classes - 1)
        elif kind == "one_minus_p":
            margin = chosen - logits.scatter(-1, index, -math.inf).logsumexp(-1)
        else:
            raise InputError(f"loss: unknown {kind!r}; choose one of {', '.join(KINDS)}")
        loss = F.softplus(margin)  # log(1 + exp(margin)) overflows
    return loss / math.log(2) if normalize else loss


def _spread(target: Tensor, logits: Tensor) -> Tensor:
    """Indices [..., N, 1] for logits [..., N, K]."""
    return target.unsqueeze(-1).expand(*logits.shape[:-1], 1)


def agreement_gradient(logits: Tensor, onehot: Tensor, scale: float = 1.0) -> Tensor:
    """Gradient of the sum of `agreement_loss`, times `scale`, in a layout with classes first; overwrites `logits`.

    Args:
        logits: [P, K, R, N] of R critics of each of P problems.
        onehot: [P, K, 1, N] of the classifier's predictions.
        scale: e.g. 1 / N for the mean.
    """
    return logits.softmax(1).sub_(onehot).mul_(scale)


def disagreement_gradient(logits: Tensor, onehot: Tensor, kind: Kind = "dis2", scale: float = 1.0) -> Tensor:
    """Gradient of the sum of `disagreement_loss`, times `scale`; see `agreement_gradient`."""
    classes = logits.shape[1]
    if kind == "dis2":
        coefficients = (onehot * classes).sub_(1).div_(classes - 1)  # the margin is linear in z
        margin = (logits * coefficients).sum(1, keepdim=True)
        return margin.sigmoid_().mul_(scale) * coefficients
    softmax = logits.softmax(1)
    if kind == "neg_ce":
        return onehot.sub(softmax).mul_(scale)
    # With p = softmax(z): the derivative of -log(1 - p_y) by z_y is p_y, by z_k it is -p_y p_k / (1 - p_y).
    # The others' weights are their softmax without y, which stays exact where p_y rounds to 1.
    others = logits.sub(onehot * 1e30).softmax(1)
    chosen = (softmax * onehot).sum(1, keepdim=True).mul_(scale)
    return (onehot - others).mul_(chosen)
