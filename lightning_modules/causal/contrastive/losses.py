"""The objective, of K models at once: pure functions of encodings and the head's parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHANCE = 2 * 0.6931471805599453
"""2 log 2: the cross-entropy of an environment where nothing can be told apart."""


def rows_of_b(scale: Tensor, parents: Tensor) -> Tensor:
    """B = diag(s) (I - A_off) [K, d, d], of s [K, d] and A [K, d, d], whose diagonal does not count."""
    eye = torch.eye(parents.shape[-1], dtype=parents.dtype, device=parents.device)
    return scale.unsqueeze(-1) * (eye - parents * (1 - eye))


def contrastive_cross_entropy(log_odds_obs: Tensor, log_odds_int: Tensor) -> Tensor:
    """Cross-entropy [K, d] of observational against interventional rows, classes balanced, natural logarithm.

    mean softplus(-g_t(z_obs)) + mean softplus(g_t(z_int_t)); g models log p_obs - log p_int.

    Args:
        log_odds_obs: [K, n, d] g_t of the observational rows, for all t.
        log_odds_int: [K, m, d] g_t of the rows of environment t.

    Source: arXiv 2306.02235, section 4; every observational row is scored for all environments.
    """
    softplus = nn.functional.softplus
    return softplus(-log_odds_obs).mean(-2) + softplus(log_odds_int).mean(-2)


def notears_penalty(parents: Tensor) -> Tensor:
    """tr exp(A o A) - d, of A [..., d, d]: 0 for a directed acyclic graph, above 0 for any other.

    Source: Zheng et al., "DAGs with NO TEARS", NeurIPS 2018.
    """
    exponential: Tensor = torch.linalg.matrix_exp(parents * parents)
    return exponential.diagonal(dim1=-2, dim2=-1).sum(-1) - parents.shape[-1]


def graph_penalty(parents: Tensor, eta: float, mu: float) -> Tensor:
    """eta sum |A_off| + mu (tr exp(A_off o A_off) - d) [K]."""
    off = parents * (1 - torch.eye(parents.shape[-1], dtype=parents.dtype, device=parents.device))
    return eta * off.abs().sum((-2, -1)) + mu * notears_penalty(off)


def centering_penalty(z_obs: Tensor) -> Tensor:
    """||mean over the rows of z_obs||^2 [K], of [K, n, d]: encoder and head share a shift that nothing else pins down."""
    return z_obs.mean(-2).square().sum(-1)
