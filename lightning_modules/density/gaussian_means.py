"""The Gaussian mean family: both losses, gradients and Hessians of the population, many problems along leading axes.

P* = N(mu_star, I), Q = N(mu_noise, I), the model log p(x) = theta . x - alpha + log h(x) with h standard normal and alpha a free
parameter. With D = theta - mu_noise and a = alpha - |mu_noise|^2 / 2 the log ratio is r = D . x - a, so that

    eNCE   L = (A + B) / 2,   log A = a/2 - D . mu_star / 2 + |D|^2 / 8,   log B = -a/2 + D . mu_noise / 2 + |D|^2 / 8,

and NCE is an integral along D alone, whatever the number of dimensions: x = mu + z D/|D| + what is independent of r.
The trapezoid rule is exact to rounding where its step h is so small that exp(-2 pi^2 / (|D| h)) is none: the integrand's nearest poles
lie pi / |D| from the real axis (derived). Everything is computed by logarithms and divided by L.

Source: arXiv 2110.11271 for family and losses; closed forms, integral and rule are derived.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_modules.density.losses import LOSSES
from lightning_modules.errors import InputError

Array = npt.NDArray[np.float64]

_FARTHEST = 500.0
"""|D| up to which NCE's integral is computed; its grid grows as |D|^2."""
_REACH = 11.0
"""Standard deviations beyond which what is left out is below e^-60 of the integral."""


class GaussianMeanProblem:
    """Means of data and noise, of one problem [d] or of many [..., d]; what is computed has the same leading axes.

    Args:
        mu_star: [..., d] mean of the data.
        mu_noise: [..., d] mean of the noise.

    Raises:
        InputError: for means of different shapes, without an axis, or not finite.
    """

    def __init__(self, mu_star: npt.ArrayLike, mu_noise: npt.ArrayLike) -> None:
        self.mu_star, self.mu_noise = np.asarray(mu_star, float), np.asarray(mu_noise, float)
        if self.mu_star.shape != self.mu_noise.shape or self.mu_star.ndim < 1 or not self.mu_star.shape[-1]:
            raise InputError(
                f"mu_star: has the shape {list(self.mu_star.shape)}, mu_noise {list(self.mu_noise.shape)}; give [d] twice"
            )
        if not (np.isfinite(self.mu_star).all() and np.isfinite(self.mu_noise).all()):
            raise InputError("mu_star: it or mu_noise is not finite; give finite means")

    @property
    def tau_star(self) -> Array:
        """[..., d+1] parameters (theta, alpha) of the data, where both losses are least."""
        return _parameters(self.mu_star)

    @property
    def tau_noise(self) -> Array:
        """[..., d+1] parameters of the noise, where every method starts."""
        return _parameters(self.mu_noise)

    def take(self, rows: Any) -> GaussianMeanProblem:
        """Return some of many problems, by an index into the first axis."""
        return GaussianMeanProblem(self.mu_star[rows], self.mu_noise[rows])

    def scaled(self, loss: str, tau: Array, hessian: bool = False) -> tuple[Array, Array, Array | None]:
        """Return log L [...], grad L / L [..., d+1] and, if asked for, Hessian of L / L [..., d+1, d+1].

        None of the three underflows, however small L is. NCE's are NaN where |theta - mu_noise| is above 500.

        Args:
            loss: "nce" or "ence".
            tau: [..., d+1].
            hessian: whether it is wanted.

        Raises:
            InputError: for another loss, or a tau that does not fit.
        """
        if loss not in LOSSES:
            raise InputError(f"loss: unknown loss {loss!r}; choose from {', '.join(LOSSES)}")
        tau = np.asarray(tau, float)
        if tau.shape[-1:] != (self.mu_star.shape[-1] + 1,):
            raise InputError(f"tau: has the shape {list(tau.shape)}; give [..., {self.mu_star.shape[-1] + 1}]")
        return self._ence(tau, hessian) if loss == "ence" else self._nce(tau, hessian)

    def nce(self, tau: Array) -> tuple[Array, Array, Array]:
        """Return the NCE loss [...], its gradient [..., d+1] and its Hessian [..., d+1, d+1] at tau [..., d+1]."""
        return self._whole("nce", tau)

    def ence(self, tau: Array) -> tuple[Array, Array, Array]:
        """Return the eNCE loss, its gradient and its Hessian, as `nce`."""
        return self._whole("ence", tau)

    def log_nce(self, tau: Array) -> tuple[Array, Array]:
        """Return log L [...] of NCE and the gradient [..., d+1] of log L."""
        return self.scaled("nce", tau)[:2]

    def log_ence(self, tau: Array) -> tuple[Array, Array]:
        """Return log L [...] of eNCE and the gradient [..., d+1] of log L."""
        return self.scaled("ence", tau)[:2]

    def bhattacharyya(self) -> Array:
        """Return the integral [...] of sqrt(p_* q), exp(-|mu_star - mu_noise|^2 / 8): eNCE's least value."""
        return np.asarray(np.exp(-((self.mu_star - self.mu_noise) ** 2).sum(-1) / 8))

    def condition_number(self, loss: str) -> Array:
        """Return the ratio [...] of the largest to the smallest eigenvalue of the Hessian at tau_star.

        eNCE's is ((2 + m^2 + m sqrt(m^2 + 4)) / 2)^2 with m = |mu_star + mu_noise| / 2 (derived): polynomial in m.
        """
        values = np.linalg.eigvalsh(self._hessian_ratio(loss))
        return np.asarray(values[..., -1] / values[..., 0])

    def smallest_eigenvalue(self, loss: str) -> Array:
        """Return the smallest eigenvalue [...] of the Hessian at tau_star: how flat the loss is there."""
        log_value = self.scaled(loss, self.tau_star)[0]
        return np.asarray(np.linalg.eigvalsh(self._hessian_ratio(loss))[..., 0] * np.exp(log_value))

    def sample(self, n: int, seed: int) -> tuple[Array, Array]:
        """Draw n examples of each problem's data and noise, [..., n, d] each.

        Raises:
            InputError: for n below 1.
        """
        if n < 1:
            raise InputError(f"n: {n} examples are asked for; give 1 or more")
        generator = np.random.default_rng(seed)
        shape = (*self.mu_star.shape[:-1], n, self.mu_star.shape[-1])
        data, noise = generator.standard_normal(shape), generator.standard_normal(shape)
        return data + self.mu_star[..., None, :], noise + self.mu_noise[..., None, :]

    def asymptotic_covariance(self, loss: str) -> Array:
        """Return lim n Cov [..., d+1, d+1] of the minimiser of the loss over n examples of data and n of noise.

        H^-1 V H^-1 with V = Cov_P*(c T~) + Cov_Q(c T~), c T~ an example's gradient at tau_star. For eNCE, with M the second
        moment of T~ = (x, -1) under the law of the index, t its mean under the midpoint and BC the Bhattacharyya coefficient,
        V = (M_Q + M_P* - 2 BC^2 t t') / 16 and H = BC M_mid / 4 (derived).
        """
        if loss == "ence":
            middle = (self.mu_star + self.mu_noise) / 2
            mean = np.concatenate([middle, -np.ones_like(middle[..., :1])], -1)
            overlap = self.bhattacharyya()[..., None, None]
            v = (
                _moments(self.mu_noise)
                + _moments(self.mu_star)
                - 2 * overlap**2 * mean[..., :, None] * mean[..., None, :]
            )
            inverse = np.linalg.inv(overlap * _moments(middle) / 4)
            return np.asarray(inverse @ (v / 16) @ inverse)
        tau, eye = self.tau_star, np.eye(self.mu_star.shape[-1])
        total = np.zeros((*tau.shape, tau.shape[-1]))
        for sign, mu in ((-1, self.mu_star), (1, self.mu_noise)):
            log_weights, z, unit, r = self._line(tau, mu, sign)
            sure = np.exp(-np.logaddexp(0, -sign * r))
            once, twice = (np.exp(log_weights) * sure**k @ _powers(z) for k in (1, 2))
            mean = np.concatenate([once[..., :1] * mu + once[..., 1:2] * unit, -once[..., :1]], -1)
            total += (_second(twice, mu, unit, eye) - mean[..., :, None] * mean[..., None, :]) / 4
        inverse = np.linalg.inv(self.nce(tau)[2])
        return np.asarray(inverse @ total @ inverse)

    def _whole(self, loss: str, tau: Array) -> tuple[Array, Array, Array]:
        log_value, gradient, hessian = self.scaled(loss, tau, True)
        assert hessian is not None
        value = np.exp(log_value)
        return value, gradient * value[..., None], hessian * value[..., None, None]

    def _hessian_ratio(self, loss: str) -> Array:
        hessian = self.scaled(loss, self.tau_star, True)[2]
        assert hessian is not None
        return hessian

    def _offsets(self, tau: Array) -> tuple[Array, Array]:
        """D [..., d] and a [...]: r = D . x - a."""
        return tau[..., :-1] - self.mu_noise, tau[..., -1] - (self.mu_noise**2).sum(-1) / 2

    def _ence(self, tau: Array, hessian: bool) -> tuple[Array, Array, Array | None]:
        step, a = self._offsets(tau)
        curve = (step**2).sum(-1) / 8
        logs = [
            a / 2 - (step * self.mu_star).sum(-1) / 2 + curve,
            -a / 2 + (step * self.mu_noise).sum(-1) / 2 + curve,
        ]
        log_sum = np.logaddexp(*logs)
        shares = [np.exp(log - log_sum)[..., None] for log in logs]
        half = np.full((*step.shape[:-1], 1), 0.5)
        slopes = [
            np.concatenate([step / 4 - self.mu_star / 2, half], -1),
            np.concatenate([step / 4 + self.mu_noise / 2, -half], -1),
        ]
        gradient = shares[0] * slopes[0] + shares[1] * slopes[1]
        second = None
        if hessian:
            second = sum(s[..., None] * g[..., :, None] * g[..., None, :] for s, g in zip(shares, slopes, strict=True))
            second = np.asarray(second)
            d = step.shape[-1]
            second[..., range(d), range(d)] += 0.25
        return log_sum - math.log(2), gradient, second

    def _line(self, tau: Array, mu: Array, sign: int) -> tuple[Array, Array, Array, Array]:
        """Integrate along D: log weights [N], z [N], the unit vector [..., d], r [..., N]."""
        step, a = self._offsets(tau)
        length = np.sqrt((step**2).sum(-1, keepdims=True))
        unit = np.divide(step, length, out=np.zeros_like(step), where=length > 0)
        unit[..., 0] += (length == 0)[..., 0]
        y, log_weights = _grid(math.ceil(float(length.max(initial=0))))
        z = sign * y
        return log_weights, z, unit, ((step * mu).sum(-1) - a)[..., None] + length * z

    def _nce(self, tau: Array, hessian: bool) -> tuple[Array, Array, Array | None]:
        lost = np.linalg.norm(tau[..., :-1] - self.mu_noise, axis=-1) > _FARTHEST
        if lost.any():
            tau = np.where(lost[..., None], self.tau_noise, tau)
        parts, log_sums = [], []
        for sign, mu in ((-1, self.mu_star), (1, self.mu_noise)):
            log_weights, z, unit, r = self._line(tau, mu, sign)
            u = sign * r
            rest = np.log1p(np.exp(-np.abs(u)))
            plus, minus = np.maximum(u, 0) + rest, np.maximum(-u, 0) + rest  # softplus(u), softplus(-u)
            with np.errstate(divide="ignore"):
                log_loss = log_weights + np.where(u < -30, u, np.log(plus))
            log_sums.append(_log_sum(log_loss))
            parts.append((sign, mu, z, unit, log_weights - minus, plus))
        log_value = np.logaddexp(*log_sums) - math.log(2)
        log_value = np.where(lost, math.nan, log_value)
        gradient = np.zeros(np.broadcast_shapes(tau.shape, (*log_value.shape, 1)))
        second = np.zeros((*gradient.shape, tau.shape[-1])) if hessian else None
        for sign, mu, z, unit, log_slope, plus in parts:
            slope = np.exp(log_slope - log_value[..., None])
            moments = slope @ _powers(z)[:, :2]
            gradient[..., :-1] += sign / 2 * (moments[..., :1] * mu + moments[..., 1:] * unit)
            gradient[..., -1] -= sign / 2 * moments[..., 0]
            if second is not None:
                second += _second(slope * np.exp(-plus) @ _powers(z), mu, unit, np.eye(mu.shape[-1])) / 2
        return log_value, gradient, second


def _parameters(mu: Array) -> Array:
    return np.asarray(np.concatenate([mu, (mu**2).sum(-1, keepdims=True) / 2], -1))


def _moments(mu: Array) -> Array:
    """Second moment [..., d+1, d+1] of (x, -1) under N(mu, I)."""
    mean = np.concatenate([mu, -np.ones_like(mu[..., :1])], -1)
    found: Array = mean[..., :, None] * mean[..., None, :]
    d = mu.shape[-1]
    found[..., range(d), range(d)] += 1
    return found


def _powers(z: Array) -> Array:
    return np.stack([np.ones_like(z), z, z * z], -1)


def _second(moments: Array, mu: Array, unit: Array, eye: Array) -> Array:
    """Second moment [..., d+1, d+1] of (x, -1), x = mu + z unit + the rest, weighted; moments [..., 3] of 1, z and z^2."""
    w0, w1, w2 = (moments[..., k, None, None] for k in range(3))
    along = unit[..., :, None] * unit[..., None, :]
    cross = mu[..., :, None] * unit[..., None, :]
    block = (
        w0 * (mu[..., :, None] * mu[..., None, :] + eye - along)
        + w1 * (cross + np.swapaxes(cross, -1, -2))
        + w2 * along
    )
    side = -(w0[..., 0] * mu + w1[..., 0] * unit)[..., None]
    return np.concatenate([np.concatenate([block, side], -1), np.concatenate([np.swapaxes(side, -1, -2), w0], -1)], -2)


def _log_sum(values: Array) -> Array:
    top = values.max(-1)
    return np.asarray(top + np.log(np.exp(values - top[..., None]).sum(-1)))


@lru_cache(maxsize=256)
def _grid(length: int) -> tuple[Array, Array]:
    """Points and log weights for |D| up to `length`.

    softplus(u) falls as e^u where u is negative, and e^(|D| y) moves the peak of the normal density by |D| at most.
    """
    h = min(0.1, 0.5 / max(length, 1))
    y = h * np.arange(-math.ceil(_REACH / h), math.ceil((_REACH + length) / h) + 1)
    return np.asarray(y), np.asarray(-(y**2) / 2 + math.log(h / math.sqrt(2 * math.pi)))
