"""Linear heads on frozen features: what DARE is compared with, all full-batch, deterministic and in float64.

Every head has `fit(x, y, domain)`, `predict(x)`, `predict_proba(x)` and `score(x, y)`: x [n, d] features, y [n] class
indices, domain [n] integers or strings. Logits are x beta + intercept; the ridge (l2 / 2) ||beta||^2 leaves the
intercept out. Objectives are those of the sweep's methods of the same names, with full-batch means.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.domain_generalization.domain_adjusted.regression import Predictor, check_training, domain_weights
from lightning_modules.domain_generalization.domain_adjusted.solver import SoftmaxRisk, differentiate, lbfgs, solve
from lightning_modules.domain_generalization.domain_adjusted.stats import DomainStats, check_features
from lightning_modules.errors import InputError

Head = TypeVar("Head", bound="LogisticHead")


class LogisticHead(Predictor):
    """Multinomial logistic regression on the pooled domains: the head that ERM ends with.

    Args:
        l2: weight of the ridge.
    """

    least_domains = 1

    def __init__(self, l2: float = 1e-4) -> None:
        if l2 < 0:
            raise InputError(f"l2: {l2} is negative; give 0 or more")
        self.l2 = l2

    def fit(self: Head, x: Any, y: Any, domain: Any) -> Head:
        """Fit the head; returns itself.

        Raises:
            InputError: see `check_training`.
        """
        features, labels, index, names = check_training(x, y, domain, least_domains=self.least_domains)
        features = self._prepare(features, index, len(names))
        # The problem is solved in principal coordinates of about equal curvature, which takes far fewer steps. The
        # intercept has no ridge, so centring changes nothing; the ridge on beta turns into one per coordinate.
        mean = features.mean(0)
        values, vectors = torch.linalg.eigh((features - mean).T @ (features - mean) / len(features))
        scale = (values.clamp_min(0) + 10 * self.l2).clamp_min(1e-12 * float(values[-1]) + 1e-300).sqrt()
        to_features = vectors / scale
        coordinates = torch.cat([(features - mean) @ to_features, features.new_ones(len(features), 1)], 1)
        self._ridge = torch.cat([self.l2 / scale.square(), scale.new_zeros(1)])
        weights = self._minimise(coordinates, labels, index, int(labels.max()) + 1)
        beta = to_features @ weights[:-1]
        self.beta_, self.intercept_ = beta.numpy(), (weights[-1] - mean @ beta).numpy()
        return self

    def _prepare(self, x: Tensor, index: Tensor, domains: int) -> Tensor:
        return x

    def _weights(self, index: Tensor) -> Tensor:
        return torch.full((len(index),), 1 / len(index), dtype=torch.float64)

    def _minimise(self, x: Tensor, y: Tensor, index: Tensor, classes: int) -> Tensor:
        return solve(SoftmaxRisk(x, y, self._weights(index), classes, self._ridge))


class OracleHead(LogisticHead):
    """The cheat: a logistic head for which the target's labelled examples are among the domains.

    An upper bound on what a last layer can do on these features, no method: give `fit` the source domains and the
    target's training examples, and score on target examples kept out. Source: arXiv 2202.06856, "cheating" experiment.
    """


class _DomainRiskHead(LogisticHead):
    """A head whose objective is a function of the risks of the domains; starts at the mean risk's minimum."""

    least_domains = 2

    def _weights(self, index: Tensor) -> Tensor:
        return domain_weights(index)

    def _minimise(self, x: Tensor, y: Tensor, index: Tensor, classes: int) -> Tensor:
        start = super()._minimise(x, y, index, classes)
        counts = torch.bincount(index).to(x.dtype)
        member = F.one_hot(index).to(x.dtype).T / counts.unsqueeze(1)  # [E, n], the mean over each domain

        def value(w: Tensor) -> Tensor:
            logits = x @ w
            return self._objective(logits, y, member, w) + (self._ridge @ w.square()).sum() / 2

        return self._descend(value, start)

    def _descend(self, value: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
        return lbfgs(differentiate(value), start)

    def _objective(self, logits: Tensor, y: Tensor, member: Tensor, w: Tensor) -> Tensor:
        raise NotImplementedError


class IRMHead(_DomainRiskHead):
    """mean_e [R_e + weight (d/ds R_e(s f) at s = 1)^2]: IRMv1 (arXiv 1907.02893). Not convex; begins at ERM's minimum.

    Args:
        weight: of the penalty.
        l2: of the ridge.
    """

    def __init__(self, weight: float = 100.0, l2: float = 1e-4) -> None:
        super().__init__(l2)
        self.weight = _check_weight(weight)

    def _objective(self, logits: Tensor, y: Tensor, member: Tensor, w: Tensor) -> Tensor:
        log_p = logits.log_softmax(1)
        own = y.unsqueeze(1)
        risks = -member @ log_p.gather(1, own).squeeze(1)
        slopes = member @ ((log_p.exp() * logits).sum(1) - logits.gather(1, own).squeeze(1))
        return risks.mean() + self.weight * slopes.square().mean()


class VRExHead(_DomainRiskHead):
    """mean_e R_e + weight Var_e(R_e): V-REx (arXiv 2003.00688). Not convex; begins at ERM's minimum.

    Args:
        weight: of the variance.
        l2: of the ridge.
    """

    def __init__(self, weight: float = 10.0, l2: float = 1e-4) -> None:
        super().__init__(l2)
        self.weight = _check_weight(weight)

    def _objective(self, logits: Tensor, y: Tensor, member: Tensor, w: Tensor) -> Tensor:
        risks = member @ F.cross_entropy(logits, y, reduction="none")
        return risks.mean() + self.weight * risks.var(correction=0)


class GroupDROHead(_DomainRiskHead):
    """min over f of max over e of R_e (GroupDRO, arXiv 1911.08731), as tau log mean_e exp(R_e / tau).

    The smooth form is convex and at most tau log E below the maximum; its gradient weighs the domains by
    q_e = softmax(R_e / tau), where the stochastic algorithm's weights settle too.

    Args:
        temperature: tau, in nats.
        l2: weight of the ridge.
    """

    def __init__(self, temperature: float = 1e-3, l2: float = 1e-4) -> None:
        super().__init__(l2)
        if not temperature > 0:
            raise InputError(f"temperature: {temperature} is not above 0; 0.001 is usual")
        self.temperature = temperature

    def _descend(self, value: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
        self._tau = max(0.1, self.temperature)
        while True:  # a low temperature is stiff: cool down to it
            start = lbfgs(differentiate(value), start)
            if self._tau <= self.temperature:
                return start
            self._tau = max(self._tau / 10, self.temperature)

    def _objective(self, logits: Tensor, y: Tensor, member: Tensor, w: Tensor) -> Tensor:
        risks = member @ F.cross_entropy(logits, y, reduction="none")
        soft_maximum: Tensor = (risks / self._tau).logsumexp(0) - math.log(len(risks))
        return self._tau * soft_maximum


class CoralHead(_DomainRiskHead):
    """mean_e R_e + weight x CORAL's distance between the domains' logits (arXiv 1607.01719, which took a last layer's).

    The distance is the mean over pairs of domains of mean((m_i - m_j)^2) + mean((C_i - C_j)^2), of the logits' means m
    and covariances C. Not convex; begins at ERM's minimum.

    Args:
        weight: of the distance.
        l2: of the ridge.
    """

    def __init__(self, weight: float = 1.0, l2: float = 1e-4) -> None:
        super().__init__(l2)
        self.weight = _check_weight(weight)

    def _minimise(self, x: Tensor, y: Tensor, index: Tensor, classes: int) -> Tensor:
        # Logits are linear in the features, so their moments come from the features' and cost nothing per example.
        stats = DomainStats.fit(x[:, :-1], index.numpy())
        self._means, self._covariances = stats.mean, stats.covariance
        weights = super()._minimise(x, y, index, classes)
        del self._means, self._covariances
        return weights

    def _objective(self, logits: Tensor, y: Tensor, member: Tensor, w: Tensor) -> Tensor:
        risks = member @ F.cross_entropy(logits, y, reduction="none")
        beta = w[:-1]
        means, covariances = self._means @ beta, beta.T @ self._covariances @ beta
        first, second = torch.triu_indices(len(means), len(means), offset=1)
        gap = (means[first] - means[second]).square().mean()
        gap = gap + (covariances[first] - covariances[second]).square().mean()
        return risks.mean() + self.weight * gap


class PerDomainStandardised(LogisticHead):
    """Logistic head on features standardised in each domain (diagonal whitening): what DARE is without rotations.

    A new domain is standardised by the mean of the training domains' means and variances, or by its own after `adapt`.
    """

    least_domains = 2

    def _prepare(self, x: Tensor, index: Tensor, domains: int) -> Tensor:
        means, scales, variances = [], [], []
        for e in range(domains):
            mean, scale = _moments(x[index == e])
            means.append(mean)
            scales.append(scale)
            variances.append(x[index == e].var(0, correction=0))
        self._mean = torch.stack(means).mean(0)
        self._scale = _positive(torch.stack(variances).mean(0).sqrt())
        return (x - torch.stack(means)[index]) / torch.stack(scales)[index]

    def adapt(self, x_unlabelled: Any) -> PerDomainStandardised:
        """Return the head with the mean and variances of a sample [n, d], n >= 2, of the new domain."""
        sample = check_features(x_unlabelled)
        if len(sample) < 2:
            raise InputError(f"x_unlabelled: {len(sample)} example has no variance; give at least 2")
        adapted = copy.copy(self)
        adapted._mean, adapted._scale = _moments(sample)
        return adapted

    def _test_map(self) -> tuple[Tensor | None, Tensor | None]:
        return self._mean, torch.diag(1 / self._scale)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(0), _positive(x.std(0, correction=0))


def _positive(scale: Tensor) -> Tensor:
    """A constant feature stays as it is."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def _check_weight(weight: float) -> float:
    if not weight >= 0:
        raise InputError(f"weight: {weight} is not 0 or more")
    return weight
