"""Descent on a contrastive loss from the noise's parameters, many problems and step sizes at once.

A cell is one problem with one step size. All cells take their step in the same array operations, and what has arrived
or is no longer finite leaves; a cell's numbers do not depend on the others (to rounding, since NCE's grid follows the largest |D|).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from lightning_modules.density.gaussian_means import Array, GaussianMeanProblem
from lightning_modules.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

Optimizer = Literal["gd", "gd_log", "ngd", "newton", "adam"]
OPTIMIZERS: tuple[Optimizer, ...] = ("gd", "gd_log", "ngd", "newton", "adam")

_TINY = 1e-300


class Landscape(Protocol):
    """Problems along a leading axis: a population's (`GaussianMeanProblem`) or samples' (`samples.SampleProblem`)."""

    @property
    def tau_star(self) -> Array:
        """[P, k] parameters of the data."""

    @property
    def tau_noise(self) -> Array:
        """[P, k] parameters of the noise."""

    def scaled(self, loss: str, tau: Array, hessian: bool = False) -> tuple[Array, Array, Array | None]:
        """Return log L [P], grad L / L [P, k] and Hessian / L [P, k, k]."""

    def take(self, rows: Any) -> Landscape:
        """Return some of the problems."""


@dataclass(frozen=True)
class Descent:
    """Where P cells came to.

    Args:
        steps: [P] updates until the distance was within the tolerance; -1 where it never was.
        best: [P] least distance on the way.
        final: [P] distance at the end; NaN or infinite where the descent diverged.
        tau: [P, k] at the end.
        marks: for each mark that was asked for and reached, [P] the least distance up to then.
    """

    steps: npt.NDArray[np.int64]
    best: Array
    final: Array
    tau: Array
    marks: tuple[Array, ...] = ()


def descend(
    problem: Landscape,
    loss: str,
    optimizer: str,
    lr: npt.ArrayLike,
    delta: float = 0.1,
    max_steps: int = 5000,
    stop_within: bool = True,
    marks: Sequence[int] = (),
) -> Descent:
    """Descend from tau_noise; the distance is ||tau - tau_star||_2 over theta and alpha together.

    - gd: tau - lr grad L; gd_log: tau - lr grad log L, another algorithm
    - ngd: tau - lr grad L / ||grad L||, the same for L and log L, one norm over all parameters
    - newton: tau - lr H^-1 grad L with the exact Hessian of L
    - adam: on log L, with the usual 0.9, 0.999 and 1e-8

    Args:
        problem: P problems along one leading axis.
        loss: "nce" or "ence".
        optimizer: as above.
        lr: of all, or [P].
        delta: tolerance.
        max_steps: updates.
        stop_within: whether a cell ends where it is within the tolerance; else all take all steps.
        marks: updates, rising, after which the least distance so far is kept.

    Raises:
        InputError: for an unknown loss or optimizer, or an lr, delta or number of steps that is not above 0.
    """
    _check(optimizer, lr, delta, max_steps)
    star, tau = problem.tau_star, problem.tau_noise.copy()
    if tau.ndim != 2:
        raise InputError(f"problem: its parameters have the shape {list(tau.shape)}; give one leading axis of problems")
    rates = np.broadcast_to(np.asarray(lr, float), len(tau))[:, None]
    distance = np.linalg.norm(tau - star, axis=-1)
    steps = np.where(distance <= delta, 0, -1)
    best, active = distance.copy(), np.flatnonzero((steps < 0) | (not stop_within))
    now, goal, here, pace = problem.take(active), star[active], tau[active], rates[active]
    moments, kept = [np.zeros_like(here), np.zeros_like(here)], list[Array]()
    for step in range(1, max_steps + 1):
        if not len(active):
            break
        with np.errstate(over="ignore", invalid="ignore"):
            here = here - pace * _direction(now, loss, optimizer, here, moments, step)
            distance = np.sqrt(((here - goal) ** 2).sum(-1))
        best[active] = np.fmin(best[active], distance)
        if step in marks:
            kept.append(best.copy())
        within = distance <= delta
        left = ~np.isfinite(distance) | (within & stop_within)
        if within.any():
            arrived = active[within]
            steps[arrived] = np.where(steps[arrived] < 0, step, steps[arrived])
        if left.any():
            tau[active[left]] = here[left]
            stay = ~left
            active, here, goal, pace = active[stay], here[stay], goal[stay], pace[stay]
            moments = [m[stay] for m in moments]
            now = problem.take(active)
    tau[active] = here
    with np.errstate(over="ignore", invalid="ignore"):
        final = np.linalg.norm(tau - star, axis=-1)
    return Descent(steps, best, final, tau, tuple(kept))


def _direction(problem: Landscape, loss: str, optimizer: str, tau: Array, moments: list[Array], step: int) -> Array:
    log_value, gradient, hessian = problem.scaled(loss, tau, optimizer == "newton")
    if optimizer == "gd":
        return np.asarray(gradient * np.exp(log_value)[:, None])
    if optimizer == "ngd":
        return np.asarray(gradient / np.maximum(np.sqrt((gradient**2).sum(-1, keepdims=True)), _TINY))
    if optimizer == "newton":
        assert hessian is not None
        return newton_direction(hessian, gradient)
    if optimizer == "adam":
        for m, (beta, new) in zip(moments, ((0.9, gradient), (0.999, gradient**2)), strict=True):
            m *= beta
            m += (1 - beta) * new
        mean, square = moments[0] / (1 - 0.9**step), moments[1] / (1 - 0.999**step)
        return np.asarray(mean / (np.sqrt(square) + 1e-8))
    return gradient


def newton_direction(hessian: Array, gradient: Array) -> Array:
    """Solve H x = g for [..., k, k] and [..., k]; NaN where H is singular in floating point."""
    try:
        return np.asarray(np.linalg.solve(hessian, gradient[..., None])[..., 0])
    except np.linalg.LinAlgError:
        if gradient.ndim == 1:
            return np.full_like(gradient, math.nan)
        return np.stack([newton_direction(h, g) for h, g in zip(hessian, gradient, strict=True)])


def steps_to_tolerance(
    problem: GaussianMeanProblem, loss: str, optimizer: str, lr: float, delta: float = 0.1, max_steps: int = 5000
) -> tuple[int | None, float]:
    """Count the updates of one problem until ||tau - tau_star|| <= delta.

    Args:
        problem: of means [d].
        loss: "nce" or "ence".
        optimizer: see `descend`, which takes many problems at once.
        lr: step size.
        delta: tolerance.
        max_steps: after which the answer is None.

    Returns:
        The number, or None, and the least distance on the way.

    Raises:
        InputError: as `descend`.

    Example:
        >>> steps_to_tolerance(GaussianMeanProblem([4.0], [0.0]), "ence", "ngd", 0.1)[0]
        92
    """
    one = GaussianMeanProblem(problem.mu_star[None], problem.mu_noise[None])
    found = descend(one, loss, optimizer, lr, delta, max_steps)
    return (int(found.steps[0]) if found.steps[0] >= 0 else None), float(found.best[0])


def guarantee_step(problem: GaussianMeanProblem, loss: str, points: int = 401) -> Array:
    """Return min / max curvature [...] on the segment from tau_noise to tau_star.

    It is the step size that the standard guarantee for damped Newton prescribes (paper, from memory): the smallest eigenvalue of
    the Hessian anywhere on the segment over the largest.

    Args:
        problem: of any leading axes.
        loss: "nce" or "ence".
        points: evenly spaced, both ends among them.
    """
    low, high = np.full(problem.mu_star.shape[:-1], math.inf), np.full(problem.mu_star.shape[:-1], -math.inf)
    for share in np.linspace(0, 1, points):
        log_value, _, ratio = problem.scaled(loss, (1 - share) * problem.tau_noise + share * problem.tau_star, True)
        assert ratio is not None
        values = np.linalg.eigvalsh(ratio) * np.exp(log_value)[..., None]
        low, high = np.minimum(low, values[..., 0]), np.maximum(high, values[..., -1])
    return np.asarray(low / high)


def landscape_grid(problem: GaussianMeanProblem, loss: str, thetas: Array, alphas: Array) -> pa.Table:
    """Evaluate a one-dimensional problem on a grid.

    Args:
        problem: of means [1].
        loss: "nce" or "ence".
        thetas: [T].
        alphas: [S].

    Returns:
        T S rows of theta, alpha, log_loss, log_gradient_norm (of L) and distance to tau_star.

    Raises:
        InputError: for a problem of other means.
    """
    import pyarrow as pa

    if problem.mu_star.shape != (1,):
        raise InputError(f"problem: its means have the shape {list(problem.mu_star.shape)}; a grid needs [1]")
    theta, alpha = (part.ravel() for part in np.meshgrid(thetas, alphas, indexing="ij"))
    tau = np.stack([theta, alpha], -1)
    log_value, gradient, _ = problem.scaled(loss, tau)
    with np.errstate(divide="ignore"):
        log_norm = log_value + np.log(np.linalg.norm(gradient, axis=-1))
    distance = np.linalg.norm(tau - problem.tau_star, axis=-1)
    names = ("theta", "alpha", "log_loss", "log_gradient_norm", "distance")
    return pa.table(dict(zip(names, (theta, alpha, log_value, log_norm, distance), strict=True)))


def _check(optimizer: str, lr: npt.ArrayLike, delta: float, max_steps: int) -> None:
    if optimizer not in OPTIMIZERS:
        raise InputError(f"optimizer: unknown optimizer {optimizer!r}; choose from {', '.join(OPTIMIZERS)}")
    if not (np.asarray(lr, float) > 0).all():
        raise InputError(f"lr: {np.asarray(lr).tolist()} is not above 0; give a step size like 0.1")
    if not delta > 0:
        raise InputError(f"delta: {delta} is not above 0; give a distance like 0.1")
    if max_steps < 1:
        raise InputError(f"max_steps: {max_steps} updates are asked for; give 1 or more")
