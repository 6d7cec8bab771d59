"""Domain-adjusted regression: one linear predictor on features whitened domain by domain."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_modules.domain_generalization.domain_adjusted.solver import SoftmaxRisk, solve
from lightning_modules.domain_generalization.domain_adjusted.stats import (
    DomainStats,
    check_adjustment,
    check_features,
    check_shrinkage,
)
from lightning_modules.errors import InputError

RANK_TOLERANCE = 1e-9
"""Singular value of the whitened means, in standard deviations, below which a direction counts as having no shift."""


class Predictor:
    """A linear predictor of (x - shift) W beta + intercept: what every head becomes once it is fitted.

    Attributes:
        task: "classification" or "regression".
        beta_: [d, k] float64; k = 1 for regression.
        intercept_: [k].
    """

    task: str = "classification"
    beta_: np.ndarray
    intercept_: np.ndarray

    def decision_function(self, x: Any) -> np.ndarray:
        """Compute logits (regression: values) [n, k] of x [n, d].

        Raises:
            InputError: before `fit`, for features that are not finite, or another number of them than in training.
        """
        if not hasattr(self, "beta_"):
            raise InputError(f"{type(self).__name__} is not fitted; call fit first")
        features = check_features(x)
        if features.shape[1] != len(self.beta_):
            raise InputError(
                f"x: {features.shape[1]} features, the head was fitted on {len(self.beta_)}; give the same"
            )
        shift, adjustment = self._test_map()
        weights = torch.as_tensor(self.beta_) if adjustment is None else adjustment @ torch.as_tensor(self.beta_)
        if shift is not None:
            features = features - shift
        return (features @ weights + torch.as_tensor(self.intercept_)).numpy()

    def predict_proba(self, x: Any) -> np.ndarray:
        """Class probabilities [n, k]."""
        if self.task != "classification":
            raise InputError("predict_proba: a regression has no classes; use predict")
        return torch.from_numpy(self.decision_function(x)).softmax(1).numpy()

    def predict(self, x: Any) -> np.ndarray:
        """Class indices [n] int64, or values [n] float64 for regression."""
        values = self.decision_function(x)
        return values[:, 0] if self.task == "regression" else values.argmax(1)

    def score(self, x: Any, y: Any) -> float:
        """Accuracy (regression: mean squared error) on x [n, d], y [n].

        Raises:
            InputError: for labels of classes that the predictor does not have.
        """
        y = np.asarray(y)
        if self.task == "regression":
            return float(np.square(self.predict(x) - y).mean())
        classes = self.beta_.shape[1]
        if y.min() < 0 or y.max() >= classes:
            raise InputError(f"y: class {y.max() if y.max() >= classes else y.min()}, the head has 0..{classes - 1}")
        return float((self.predict(x) == y).mean())

    def _test_map(self) -> tuple[Tensor | None, Tensor | None]:
        """What to subtract from a new example, [d], and its whitening matrix [d, d]; None for neither."""
        return None, None


class DomainAdjustedRegression(Predictor):
    """DARE: min over beta of mean_e E_e loss(beta' Sigma_e^{-1/2} x, y), every domain mean predicting nothing.

    Classification: min_beta (1/E) sum_e E_e CE(softmax(beta' Sigma_e^{-1/2} x), y) + (l2 / 2) ||beta||^2 subject to
    softmax(beta' m_e) = 1/k, m_e = Sigma_e^{-1/2} mu_e, for every training domain; no intercept. Regression: half the
    squared loss, subject to beta . m_e = 0; y counts from its mean, so centre it if it has one.
    Source: arXiv 2202.06856, the constrained objective; solved exactly by beta = Q gamma with Q an orthonormal basis of
    the space orthogonal to all m_e (derived here), after which the problem has no constraint.

    Args:
        task: "classification" (labels 0..k-1) or "regression".
        shrinkage: rho of every covariance, see `DomainStats`.
        l2: weight of the ridge.
        center: "constraint" (the paper's), or "subtract" (ours): train on Sigma_e^{-1/2} (x - mu_e) without constraint
            and subtract the new domain's mean too. Needed where that mean leaves the span of the training means; it
            does harm without a sample of the new domain.
        solver: "exact" (null space), or "penalty": adds penalty * sum_e KL(uniform || softmax(beta' m_e)) (regression:
            penalty * sum_e (beta . m_e)^2 / 2), which tends to the exact solution as `penalty` grows.
        test_adjustment: whitening of a new domain without data, see `DomainStats.average_adjustment`.
        penalty: weight for solver="penalty"; without effect otherwise.

    Attributes:
        beta_: [d, k].
        nullspace_: Q, [d, d - r] with r the rank of the whitened means; the identity for center="subtract".
        constraint_violation_: max over e, j of |(beta_j - mean_j beta) . m_e| (regression: max_e |beta . m_e|).
        stats_: statistics of the training domains.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> domain = np.arange(600) % 2
        >>> x = rng.normal(size=(600, 5)) + domain[:, None]
        >>> y = (x[:, 0] - domain > x[:, 1] - domain).astype(int)
        >>> head = DomainAdjustedRegression().fit(x, y, domain)
        >>> head.adapt(rng.normal(size=(50, 5)) * 3).predict_proba(x[:2]).shape
        (2, 2)
    """

    def __init__(
        self,
        task: Literal["classification", "regression"] = "classification",
        shrinkage: float = 0.1,
        l2: float = 1e-4,
        center: Literal["constraint", "subtract"] = "constraint",
        solver: Literal["exact", "penalty"] = "exact",
        test_adjustment: str = "mean_cov",
        penalty: float = 1e4,
    ) -> None:
        for name, value, known in (
            ("task", task, ("classification", "regression")),
            ("center", center, ("constraint", "subtract")),
            ("solver", solver, ("exact", "penalty")),
        ):
            if value not in known:
                raise InputError(f"{name}: unknown {value!r}; choose one of {', '.join(known)}")
        if l2 < 0 or penalty <= 0:
            raise InputError(f"l2 and penalty: {l2} and {penalty}; give l2 of 0 or more and penalty above 0")
        self.task, self.l2, self.center, self.solver, self.penalty = task, l2, center, solver, penalty
        self.shrinkage, self.test_adjustment = check_shrinkage(shrinkage), check_adjustment(test_adjustment)

    def fit(
        self, x: Any, y: Any, domain: Any, stats: DomainStats | None = None, start: np.ndarray | None = None
    ) -> DomainAdjustedRegression:
        """Fit on features x [n, d], targets y [n] and domains [n] (integers or strings); returns itself.

        Args:
            x: features.
            y: class indices 0..k-1, or values for regression.
            domain: domain of each example.
            stats: their statistics where they are known already, which saves the eigendecompositions; `shrinkage`
                of this object applies.
            start: [d, k] where the solver begins, e.g. the solution for another l2; the solution does not depend on it.

        Raises:
            InputError: fewer than two domains, whitened means that span all of R^d, a class without example, features
                that are not finite, or a singular covariance.
        """
        features, targets, index, names = check_training(x, y, domain, self.task, least_domains=2)
        stats = (stats or DomainStats.fit(features, domain)).with_shrinkage(self.shrinkage).select(names)
        whitened, self.stats_ = torch.empty_like(features), stats
        roots, means = stats.inv_sqrt, stats.mean
        for e in range(len(names)):  # not gathered per example: [n, d, d] would not fit
            rows = features[index == e]
            whitened[index == e] = (rows - means[e] if self.center == "subtract" else rows) @ roots[e].T
        centres = torch.einsum("eij,ej->ei", roots, means)
        if self.center == "subtract":
            centres = torch.zeros_like(centres)
        basis = nullspace(centres)
        beta = self._solve(whitened, targets, domain_weights(index), centres, basis, start)
        self.beta_, self.nullspace_ = beta.numpy(), basis.numpy()
        self.intercept_ = np.zeros(beta.shape[1])
        contrast = beta - beta.mean(1, keepdim=True) if self.task == "classification" else beta
        self.constraint_violation_ = float((centres @ contrast).abs().max())
        return self

    def adapt(self, x_unlabelled: Any) -> AdaptedDARE:
        """Just-in-time unsupervised adaptation: the same beta with the whitening of a sample [n, d] of the new domain.

        Raises:
            InputError: fewer than two examples, or no more than features while nothing is shrunk.
        """
        if not hasattr(self, "beta_"):
            raise InputError("DomainAdjustedRegression is not fitted; call fit before adapt")
        sample = check_features(x_unlabelled)
        n, d = sample.shape
        if d != len(self.beta_):
            raise InputError(f"x_unlabelled: {d} features, the head was fitted on {len(self.beta_)}; give the same")
        if n < 2:
            raise InputError(f"x_unlabelled: {n} example has no covariance; give at least 2")
        if n <= d and self.shrinkage == 0:
            raise InputError(f"x_unlabelled: {n} examples of {d} features; give more than {d}, or shrinkage above 0")
        return AdaptedDARE(self, DomainStats.fit(sample, np.zeros(n, dtype=np.int64), self.shrinkage))

    def adapt_to(self, stats: DomainStats, domain: Any) -> AdaptedDARE:
        """Adapt as `adapt` does, from statistics that exist already, such as those of a training domain."""
        return AdaptedDARE(self, stats.with_shrinkage(self.shrinkage).select([domain]))

    def _test_map(self) -> tuple[Tensor | None, Tensor | None]:
        shift = self.stats_.mean.mean(0) if self.center == "subtract" else None
        return shift, self.stats_.average_adjustment(self.test_adjustment)

    def _solve(
        self, x: Tensor, y: Tensor, weight: Tensor, centres: Tensor, basis: Tensor, start: np.ndarray | None
    ) -> Tensor:
        exact = self.solver == "exact"
        penalty = 0.0 if exact else self.penalty
        if exact:
            x = x @ basis
        if self.task == "regression":
            hessian = x.T @ (weight.unsqueeze(1) * x) + self.l2 * torch.eye(x.shape[1], dtype=x.dtype)
            if not exact:
                hessian += penalty * centres.T @ centres
            beta: Tensor = torch.linalg.solve(hessian, x.T @ (weight * y)).unsqueeze(1)
            return basis @ beta if exact else beta
        classes = int(y.max()) + 1
        begin = None if start is None else torch.as_tensor(start, dtype=x.dtype)
        if exact:
            gamma = solve(SoftmaxRisk(x, y, weight, classes, self.l2), None if begin is None else basis.T @ begin)
            return basis @ gamma
        strength = min(1.0, penalty)
        while True:  # a large penalty is stiff: come to it from small ones
            begin = solve(SoftmaxRisk(x, y, weight, classes, self.l2, means=centres, penalty=strength), begin)
            if strength >= penalty:
                return begin
            strength = min(10 * strength, penalty)


class AdaptedDARE(Predictor):
    """A fitted DARE with the statistics of one new domain; beta is that of training."""

    def __init__(self, fitted: DomainAdjustedRegression, stats: DomainStats) -> None:
        self.task, self.beta_, self.intercept_ = fitted.task, fitted.beta_, fitted.intercept_
        self.stats_ = stats
        self._map = (stats.mean[0] if fitted.center == "subtract" else None, stats.inv_sqrt[0])

    def _test_map(self) -> tuple[Tensor | None, Tensor | None]:
        return self._map


def nullspace(centres: Tensor) -> Tensor:
    """Orthonormal basis [d, d - r] of what is orthogonal to the rows of centres [E, d], r their rank.

    Raises:
        InputError: r = d, so that only beta = 0 is feasible.
    """
    _, values, vectors = torch.linalg.svd(centres, full_matrices=True)
    rank = int((values > RANK_TOLERANCE * max(1.0, float(values[0]))).sum())
    if rank == centres.shape[1]:
        raise InputError(
            f"the means of {len(centres)} domains span all {rank} features, so that only beta = 0 meets the constraint; "
            "take fewer domains, more features, or center='subtract'"
        )
    basis: Tensor = vectors[rank:].T.contiguous()
    return basis


def domain_weights(index: Tensor) -> Tensor:
    """Weights [n] under which every domain counts the same and all sum to 1, from domain indices [n]."""
    counts = torch.bincount(index).to(torch.float64)
    return 1 / (len(counts) * counts[index])


def check_training(
    x: Any, y: Any, domain: Any, task: str = "classification", least_domains: int = 1
) -> tuple[Tensor, Tensor, Tensor, list[Any]]:
    """Turn training data into tensors: x [n, d] float64, y [n], domain indices [n], and the domains' sorted names.

    Raises:
        InputError: unequal lengths, too few domains, features or targets that are not finite, labels that are not
            0..k-1, or a class that no domain has.
    """
    features, targets, domain = check_features(x), np.asarray(y), np.asarray(domain)
    if targets.shape != (len(features),) or domain.shape != (len(features),):
        raise InputError(
            f"y and domain: have shapes {list(targets.shape)} and {list(domain.shape)}; give one each for "
            f"{len(features)} rows of features"
        )
    names, index = np.unique(domain, return_inverse=True)
    if len(names) < least_domains:
        raise InputError(f"domain: found {len(names)}, {names[0]!r}; give at least {least_domains} domains")
    if task == "regression":
        values = targets.astype(np.float64)
        if not np.isfinite(values).all():
            raise InputError(f"y: row {int(np.isfinite(values).argmin())} is not finite; clean or drop it")
        return features, torch.from_numpy(values), torch.from_numpy(index), names.tolist()
    if targets.dtype.kind not in "iub" or targets.min() < 0:
        raise InputError("y: labels must be integers from 0; number the classes")
    counts = np.bincount(targets.astype(np.int64))
    if len(counts) < 2:
        raise InputError("y: has one class only; give at least two")
    if (counts == 0).any():
        raise InputError(f"y: class {int((counts == 0).argmax())} has no example in any domain; number classes 0..k-1")
    return features, torch.from_numpy(targets.astype(np.int64)), torch.from_numpy(index), names.tolist()
