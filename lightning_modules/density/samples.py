"""Contrastive losses of finite samples in the Gaussian mean family, many repeats at once.

Where no sample lies between the modes, the two classes are linearly separable: both losses then fall to 0 at infinity, there is no
minimiser, and only the population shows the landscape.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_modules.density.descent import newton_direction
from lightning_modules.density.gaussian_means import Array, GaussianMeanProblem
from lightning_modules.density.losses import LOSSES
from lightning_modules.errors import InputError


class SampleProblem:
    """The losses of samples in place of the population's; `descent.descend` takes it like a `GaussianMeanProblem`.

    Args:
        problem: what the samples were drawn from; means [d].
        data: [P, n, d] of P repeats.
        noise: [P, m, d].

    Raises:
        InputError: for samples of other shapes, or not finite.
    """

    def __init__(self, problem: GaussianMeanProblem, data: npt.ArrayLike, noise: npt.ArrayLike) -> None:
        self._problem = problem
        self._data, self._noise = np.asarray(data, float), np.asarray(noise, float)
        d = problem.mu_star.shape[-1]
        for name, values in (("data", self._data), ("noise", self._noise)):
            if values.ndim != 3 or values.shape[-1] != d or not values.shape[1]:
                raise InputError(f"{name}: has the shape {list(values.shape)}; give [P, n, {d}]")
            if not np.isfinite(values).all():
                raise InputError(f"{name}: has NaN or infinite rows; clean or drop them")

    @property
    def tau_star(self) -> Array:
        """[P, d+1] parameters of the data's distribution."""
        return np.tile(self._problem.tau_star, (len(self._data), 1))

    @property
    def tau_noise(self) -> Array:
        """[P, d+1] parameters of the noise."""
        return np.tile(self._problem.tau_noise, (len(self._data), 1))

    def take(self, rows: Any) -> SampleProblem:
        """Return some of the repeats."""
        return SampleProblem(self._problem, self._data[rows], self._noise[rows])

    def log_ratios(self, tau: Array) -> tuple[Array, Array]:
        """Return r of data [P, n] and of noise [P, m] at tau [P, d+1]."""
        step = tau[:, :-1] - self._problem.mu_noise
        a = tau[:, -1] - (self._problem.mu_noise**2).sum() / 2
        data, noise = (np.einsum("pnd,pd->pn", x, step) - a[:, None] for x in (self._data, self._noise))
        return data, noise

    def scaled(self, loss: str, tau: Array, hessian: bool = False) -> tuple[Array, Array, Array | None]:
        """Return log L [P], grad L / L [P, d+1] and, if asked for, Hessian / L [P, d+1, d+1].

        Raises:
            InputError: for another loss.
        """
        if loss not in LOSSES:
            raise InputError(f"loss: unknown loss {loss!r}; choose from {', '.join(LOSSES)}")
        found: list[tuple[int, Array, list[Array]]] = []
        for sign, x, r in zip((-1, 1), (self._data, self._noise), self.log_ratios(tau), strict=True):
            u = sign * r
            if loss == "ence":
                logs = [u / 2, u / 2 - math.log(2), u / 2 - math.log(4)]  # of loss, |slope| and curvature in r
            else:
                minus, plus = np.logaddexp(0, -u), np.logaddexp(0, u)
                with np.errstate(divide="ignore"):
                    logs = [np.where(u < -30, u, np.log(plus)), -minus, -minus - plus]
            found.append((sign, x, [part - math.log(2 * x.shape[1]) for part in logs]))
        log_value = np.logaddexp(*(_log_sum(logs[0]) for _, _, logs in found))
        gradient = np.zeros_like(tau)
        second = np.zeros((*tau.shape, tau.shape[-1])) if hessian else None
        for sign, x, logs in found:
            slope = np.exp(logs[1] - log_value[:, None])
            gradient[:, :-1] += sign * np.einsum("pn,pnd->pd", slope, x)
            gradient[:, -1] -= sign * slope.sum(1)
            if second is not None:
                curve = np.exp(logs[2] - log_value[:, None])
                mean = np.einsum("pn,pnd->pd", curve, x)
                second[:, :-1, :-1] += np.einsum("pn,pnd,pne->pde", curve, x, x)
                second[:, :-1, -1] -= mean
                second[:, -1, :-1] -= mean
                second[:, -1, -1] += curve.sum(1)
        return log_value, gradient, second

    def separated(self, tau: Array) -> npt.NDArray[np.bool_]:
        """Whether [P] tau tells every example of data from every one of noise: both losses then have no minimiser."""
        data, noise = self.log_ratios(tau)
        return np.asarray(data.min(1) > noise.max(1))


def minimise(problem: SampleProblem, loss: str, max_steps: int = 50) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Find each repeat's minimiser by Newton's method on L from the parameters of the data.

    Args:
        problem: P repeats.
        loss: "nce" or "ence".
        max_steps: of Newton's method.

    Returns:
        tau [P, d+1], and [P] whether it is one: grad L / L below 1e-9.

    Warns:
        RuntimeWarning: where samples are separated, and nothing is a minimiser.
    """
    tau = problem.tau_star
    for _ in range(max_steps):
        _, gradient, hessian = problem.scaled(loss, tau, True)
        assert hessian is not None
        if np.abs(gradient).max() < 1e-10:
            break
        tau = tau - newton_direction(hessian, gradient)
    warn_separated(problem, tau)
    return tau, np.asarray(np.abs(problem.scaled(loss, tau)[1]).max(-1) < 1e-9)


def warn_separated(problem: SampleProblem, tau: Array) -> int:
    """Count the repeats that tau separates, and warn of them.

    Warns:
        RuntimeWarning: where there are any.
    """
    count = int(problem.separated(tau).sum())
    if count:
        warnings.warn(
            f"{count} of {len(tau)} samples of data and noise are linearly separable: the loss falls to 0 at infinity and has no "
            "minimiser; take noise nearer to the data, or more of both",
            RuntimeWarning,
            stacklevel=2,
        )
    return count


def maximum_likelihood(data: npt.ArrayLike) -> Array:
    """Return tau [..., d+1] of the mean [..., d] of data [..., n, d], with its true log-partition: the closed form."""
    mean = np.asarray(data, float).mean(-2)
    return np.concatenate([mean, (mean**2).sum(-1, keepdims=True) / 2], -1)


def _log_sum(values: Array) -> Array:
    top = values.max(-1)
    return np.asarray(top + np.log(np.exp(values - top[..., None]).sum(-1)))
