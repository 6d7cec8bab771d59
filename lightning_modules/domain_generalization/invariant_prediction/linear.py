"""IRM for linear representations: its closed form, the check of feasibility, and full-batch training on samples.

With E > d_e environments of generic means, every feasible linear predictor ignores the environmental features; with
E <= d_e a feasible predictor exists that uses them and has lower training risk, so IRM prefers it (theorem on linear
representations, Rosenfeld et al., arXiv 2010.05761).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.data.environments import Dataset
from lightning_modules.data.simulated.gaussian_sem import GaussianSEM
from lightning_modules.domain_generalization.invariant_prediction.population import objective, population_grad
from lightning_modules.domain_generalization.irm import invariance_gradients
from lightning_modules.errors import InputError

INFEASIBLE = 1e-8
"""Relative residual of M v = s above which no environmental direction is feasible; exact ones have about 1e-15."""


class InvariantDirection(NamedTuple):
    """A direction p along which the environmental features' log odds are 2 mu_tilde p.z_e in every environment.

    Args:
        p: [..., d_e], of length 1.
        mu_tilde: [...].
        residual: ||M v - s|| / ||s||, [...]; about 0 where the direction exists, and it means nothing elsewhere.
    """

    p: np.ndarray
    mu_tilde: np.ndarray
    residual: np.ndarray


def invariant_direction(means: np.ndarray, variances: np.ndarray) -> InvariantDirection:
    """Solve mu_e.p = s_e^2 mu_tilde for all e: v = pinv(M) s, p = v/||v||, mu_tilde = 1/||v||.

    Of all solutions v this is the shortest, hence the one of largest mu_tilde: the most informative one.

    Args:
        means: M, environmental means as rows, [..., E, d_e].
        variances: s, environmental variances s_e^2, [..., E].

    Raises:
        InputError: shapes that do not fit, or a variance that is not positive.
    """
    means, variances = np.asarray(means, dtype=np.float64), np.asarray(variances, dtype=np.float64)
    if means.ndim < 2 or variances.shape != means.shape[:-1]:
        raise InputError(
            f"means {list(means.shape)} and variances {list(variances.shape)} do not fit; give [..., E, d_e] and [..., E]"
        )
    if not (variances > 0).all():
        raise InputError(f"variances: {variances.min()} is not a variance; give numbers above 0")
    v = (np.linalg.pinv(means) @ variances[..., None])[..., 0]
    gap = (means @ v[..., None])[..., 0] - variances
    length = np.linalg.norm(v, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):  # means of zero have no direction, and say so by residual 1
        p, mu_tilde = v / length[..., None], 1 / length
    return InvariantDirection(p, mu_tilde, np.linalg.norm(gap, axis=-1) / np.linalg.norm(variances, axis=-1))


def irm_environmental_weights(means: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Weights of IRM's optimum on z_e, [..., d_e]: 2 mu_tilde p where the direction exists, else 0."""
    p, mu_tilde, residual = invariant_direction(means, variances)
    return np.where((residual <= INFEASIBLE)[..., None], 2 * mu_tilde[..., None] * p, 0.0)


def linear_irm_solution(sem: GaussianSEM) -> np.ndarray:
    """Weights on x [d] of IRM's optimum over linear predictors: [2 mu_c/s_c^2, 2 mu_tilde p] on z, or 0 on z_e.

    The intercept is `sem.log_odds`.
    """
    environmental = irm_environmental_weights(sem.env_means, sem.env_vars)
    return sem.input_weights(np.concatenate([2 * sem.mu_c / sem.sigma_c2, environmental]))


def linear_irm_predictor(sem: GaussianSEM) -> tuple[np.ndarray, np.ndarray]:
    """The same optimum as representation and classifier: Phi(x) = [z_c, p.z_e] and its weights.

    Returns:
        phi [k, d] and beta [k]; k is d_c + 1 where the direction exists, else d_c. `beta @ phi` is the solution.
    """
    d_c = len(sem.mu_c)
    p, mu_tilde, residual = invariant_direction(sem.env_means, sem.env_vars)
    rows, beta = np.eye(d_c, sem.latents), 2 * sem.mu_c / sem.sigma_c2
    if residual <= INFEASIBLE:
        rows = np.concatenate([rows, np.concatenate([np.zeros(d_c), p])[None]])
        beta = np.append(beta, 2 * mu_tilde)
    return sem.input_weights(rows), beta


Samples = Sequence[tuple[np.ndarray, np.ndarray]]


def is_irm_feasible(
    phi: np.ndarray | Callable[[np.ndarray], np.ndarray],
    beta: np.ndarray,
    data_or_sem: GaussianSEM | Dataset | Samples,
    tol: float | None = None,
    bias: float | None = None,
) -> tuple[bool, np.ndarray]:
    """Check IRM's constraint: is beta optimal on top of Phi in every environment at once?

    Feasible means ||grad_beta R^e(beta.Phi)|| <= tol for all e: the whole vector, not IRMv1's one number.

    Args:
        phi: the representation: a matrix [k, d] (features are phi @ x) or, for data, a function of inputs [n, ...]
            that returns features [n, k].
        beta: the linear classifier on the features, [k]; its logit is that of class +1.
        data_or_sem: a model (exact risks); a dataset of two classes, such as `load_table` returns; or a pair of
            inputs [n, d] and labels [n] in {-1, +1} for each environment.
        tol: None for 1e-6 on a model; on data for three times the norm that sampling alone gives a gradient whose
            expectation is zero, environment by environment (ours, not the paper's).
        bias: intercept; its derivative joins the gradient. None for none.

    Returns:
        Whether beta is feasible, and the norms [E].

    Raises:
        InputError: sizes that do not fit, more than two classes, labels outside the coding, no environments, or a
            tolerance that is not positive.
    """
    if tol is not None and not tol > 0:
        raise InputError(f"tol: {tol} is not positive; 1e-6 suits exact risks, None suits data")
    beta = np.asarray(beta, dtype=np.float64)
    if isinstance(data_or_sem, GaussianSEM):
        norms = _model_gradients(phi, beta, data_or_sem, bias)
        return bool((norms <= (1e-6 if tol is None else tol)).all()), norms
    weights = torch.as_tensor(beta if bias is None else np.append(beta, bias))
    features, labels = [], []
    for name, x, y in _named_samples(data_or_sem):
        found = np.asarray(phi(x) if callable(phi) else _apply(phi, x, name), dtype=np.float64)
        if found.shape != (len(y), len(beta)):
            raise InputError(
                f"phi: features of environment {name} have shape {list(found.shape)}; give [{len(y)}, {len(beta)}], "
                f"as beta has {len(beta)} weights"
            )
        features.append(torch.as_tensor(found if bias is None else np.c_[found, np.ones(len(y))]))
        labels.append(torch.as_tensor(y))
    gradients = invariance_gradients(weights, features, labels).numpy()
    if tol is not None:
        return bool((gradients <= tol).all()), gradients
    noise = [_gradient_noise(weights, f, y) for f, y in zip(features, labels, strict=True)]
    return bool((gradients <= 3 * np.array(noise)).all()), gradients


def _model_gradients(phi: object, beta: np.ndarray, sem: GaussianSEM, bias: float | None) -> np.ndarray:
    if callable(phi):
        raise InputError(
            "phi: a function has no exact risk under a model; give a matrix [k, d], or samples of the model"
        )
    matrix = np.asarray(phi, dtype=np.float64)
    inputs = sem.latents if sem.mixing is None else len(sem.mixing)
    if matrix.shape != (len(beta), inputs):
        raise InputError(f"phi: has shape {list(matrix.shape)}; give [{len(beta)}, {inputs}] for this beta and model")
    latent = torch.as_tensor(matrix if sem.mixing is None else matrix @ sem.mixing)  # features from z
    means, variances = map(torch.as_tensor, sem.latent_moments())
    gradient = population_grad(torch.as_tensor(beta) @ latent, means, variances, bias, sem.eta)
    in_beta = gradient[:, : latent.shape[1]] @ latent.T
    norms: np.ndarray = torch.cat([in_beta, gradient[:, latent.shape[1] :]], 1).norm(dim=1).numpy()
    return norms


def _named_samples(data: Dataset | Samples) -> list[tuple[str, np.ndarray, np.ndarray]]:
    if isinstance(data, Dataset):
        if len(data.classes) != 2:
            raise InputError(f"dataset {data.name}: has {len(data.classes)} classes; the check needs two")
        return [(repr(e.name), e.inputs, 2.0 * e.labels - 1) for e in data.environments]
    rooms = [(str(e), np.asarray(x), np.asarray(y, dtype=np.float64)) for e, (x, y) in enumerate(data)]
    if not rooms:
        raise InputError("data: has no environments; give inputs and labels of at least one")
    for name, x, y in rooms:
        if len(x) != len(y) or not len(y):
            raise InputError(
                f"data: environment {name} has {len(x)} inputs and {len(y)} labels; give one label an example"
            )
        check_labels(y, f"environment {name}")
    return rooms


def check_labels(y: np.ndarray, where: str) -> None:
    """Raise InputError for a label other than -1 and +1."""
    bad = np.abs(y) != 1
    if bad.any():
        raise InputError(f"{where}: label {y[bad][0]:g} is outside the coding; give -1 or +1")


def _apply(phi: object, x: np.ndarray, name: str) -> np.ndarray:
    matrix, flat = np.asarray(phi, dtype=np.float64), x.reshape(len(x), -1)
    if matrix.ndim != 2 or matrix.shape[1] != flat.shape[1]:
        raise InputError(
            f"phi: has shape {list(matrix.shape)}, inputs of environment {name} have {flat.shape[1]} numbers; "
            f"give [k, {flat.shape[1]}]"
        )
    return flat @ matrix.T


def _gradient_noise(weights: Tensor, features: Tensor, y: Tensor) -> float:
    """Root of the expected squared norm of a mean of centred gradients: sqrt(trace(covariance) / n)."""
    each = (-torch.sigmoid(-y * (features @ weights)) * y).unsqueeze(1) * features
    return float((each.var(0, correction=0).sum() / len(y)).sqrt())


def train_linear(
    x: Tensor,
    y: Tensor,
    objectives: Sequence[str],
    lam: float = 1e4,
    steps: int = 2000,
    anneal_steps: int = 200,
    lr: float = 0.02,
) -> Tensor:
    """Train linear predictors by full-batch Adam, every draw of the data under every objective at once.

    The penalty's weight is 0 for `anneal_steps` updates, then `lam`; Adam starts anew there, and a loss of weight above
    1 is divided by it, since Adam's steps would else explode. Predictors start at zero and have no intercept.

    Args:
        x: inputs [S, E, n, d] of S independent draws.
        y: labels [S, E, n] in {-1, +1}.
        objectives: names, see `population.OBJECTIVES`.
        lam: weight of the penalty.
        steps: updates.
        anneal_steps: updates before the penalty counts.
        lr: Adam's learning rate.

    Returns:
        Weights [S, len(objectives), d].

    Raises:
        InputError: unknown objective, shapes that do not fit, labels outside the coding, or too few environments.
        FloatingPointError: a loss is not finite.
    """
    if x.dim() != 4 or y.shape != x.shape[:3]:
        raise InputError(f"x {list(x.shape)} and y {list(y.shape)} do not fit; give [S, E, n, d] and [S, E, n]")
    if min(x.shape) < 1:
        raise InputError(f"x: has shape {list(x.shape)}; every count must be 1 or more")
    if not (steps > 0 and anneal_steps >= 0 and lr > 0 and lam >= 0):
        raise InputError(
            f"steps {steps}, anneal_steps {anneal_steps}, lr {lr}, lam {lam}: give none below 0, steps and lr above"
        )
    check_labels(y.numpy(force=True), "y")
    forms = [objective(name) for name in objectives]
    draws, environments, n, d = x.shape
    signed = (y.unsqueeze(-1) * x).transpose(2, 3).contiguous()  # y x, [S, E, d, n]: rows of n for the products below
    w = torch.zeros(draws, len(forms), d, dtype=x.dtype, device=x.device)
    for first, last, weight in ((0, min(anneal_steps, steps), 0.0), (anneal_steps, steps, lam)):
        adam = torch.optim.Adam([w], lr)
        for _ in range(first, last):
            margins = w.unsqueeze(1) @ signed  # [S, E, O, n]
            miss = torch.sigmoid(-margins)
            # Gradients in closed form: two products instead of a graph over all examples.
            risks = F.softplus(-margins).mean(-1)
            slopes = -(miss * margins).mean(-1)
            risk_gradient = -(miss @ signed.mT) / n  # [S, E, O, d]
            slope_gradient = ((miss * (1 - miss) * margins - miss) @ signed.mT) / n
            w.grad = _combine(forms, risks, slopes, risk_gradient, slope_gradient, weight)
            adam.step()
    if not w.isfinite().all():
        bad = [objectives[k] for k in torch.nonzero(~w.isfinite().all(-1).all(0)).flatten().tolist()]
        raise FloatingPointError(f"the loss of {', '.join(bad)} is not finite")
    return w


def _combine(
    forms: Sequence[Callable[[Tensor, Tensor, Tensor], Tensor]],
    risks: Tensor,
    slopes: Tensor,
    risk_gradient: Tensor,
    slope_gradient: Tensor,
    weight: float,
) -> Tensor:
    """Chain rule through the objectives: their gradients in the weights, [S, O, d]."""
    leaves = [v.transpose(1, 2).detach().requires_grad_() for v in (risks, slopes)]  # [S, O, E]
    lam = torch.tensor(weight, dtype=risks.dtype, device=risks.device)
    total = sum(
        (form(leaves[0][:, k], leaves[1][:, k], lam).sum() for k, form in enumerate(forms)), risks.new_zeros(())
    )
    total = total / max(1.0, weight) + 0 * leaves[1].sum()  # so that ERM, which uses no slope, has its gradient too
    by_risk, by_slope = torch.autograd.grad(total, leaves)
    return torch.einsum("soe,seod->sod", by_risk, risk_gradient) + torch.einsum(
        "soe,seod->sod", by_slope, slope_gradient
    )
