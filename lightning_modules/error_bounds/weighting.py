"""Importance weighting: source errors, weighted by how much likelier a row is in the target than in the source."""

from __future__ import annotations

import numpy as np

from lightning_modules.domain_generalization.domain_adjusted import LogisticHead
from lightning_modules.error_bounds.evidence import Array, Estimate, Evidence, estimate

_LARGEST_WEIGHT = 1e3


def importance_weighting(evidence: Evidence, l2: float = 1e-2) -> Estimate:
    """Mean source error under weights p_T(x) / p_S(x), which a logistic regression of the domain on the features gives (IW).

    Right where the target's features are covered by the source's and labels depend on features alike in both (covariate
    shift), and where the ratio is log-linear. Weights are scaled to mean 1 and cut at 1,000.

    Args:
        evidence: of the target.
        l2: ridge of the regression, on standardised features.

    Source: Sugiyama et al., "Covariate Shift Adaptation by Importance Weighted Cross Validation", JMLR 2007; the ratio from a
    classifier of domains as in Bickel et al., ICML 2007.
    """
    weights = density_ratios(evidence.source_features, evidence.target_features, l2)
    wrong = evidence.source_logits.argmax(axis=1) != evidence.source_labels
    effective = weights.sum() ** 2 / (weights**2).sum()
    return estimate("IW", (weights * wrong).sum() / weights.sum(), effective_rows=float(effective))


def density_ratios(source: Array, target: Array, l2: float = 1e-2) -> Array:
    """Weights [n_S] of source rows, proportional to p_T / p_S, with mean 1.

    Args:
        source: [n_S, d].
        target: [n_T, d].
        l2: ridge.
    """
    x = np.concatenate([source, target]).astype(np.float64)
    spread = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1)
    domain = np.repeat([0, 1], [len(source), len(target)])
    head = LogisticHead(l2).fit(x, domain, domain)
    # The log ratio, but for a constant that the domains' numbers of rows and the scaling to mean 1 share.
    log_ratios = x[: len(source)] @ (head.beta_[:, 1] - head.beta_[:, 0])
    ratios = np.exp(log_ratios - log_ratios.max())
    found: Array = np.minimum(ratios / ratios.mean(), _LARGEST_WEIGHT)
    found /= found.mean()
    return found
