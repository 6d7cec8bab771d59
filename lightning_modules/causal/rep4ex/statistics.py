"""The linear invariance of a right latent and the moment restriction that tests it.

Source: arXiv 2310.04295, sections 3 and 4: at a right encoder phi, E[phi(X) | A] is affine in A. With psi the residual of the
regression of phi on A and k a kernel on actions, Q = (1/n^2) sum_ij psi_i . psi_j k(A_i, A_j) is zero in the limit exactly then. The
normalised ratio and the projected factor are derived here.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_modules.causal.rep4ex import checks
from lightning_modules.causal.rep4ex.checks import Array
from lightning_modules.errors import InputError

Estimator = Literal["v", "u"]
ESTIMATORS = ("v", "u")

_MEDIAN_ROWS = 1000


def linear_invariance(phi: Array, a: Array) -> tuple[Array, Array, Array]:
    """Regress latents on actions by least squares, with intercept.

    Args:
        phi: [n, d] latents.
        a: [n, k] actions.

    Returns:
        W [k, d], c [d] and residuals phi - (a W + c) [n, d].

    Raises:
        InputError: as `checks.actions`, or lengths that differ.
    """
    a, phi = checks.actions(a), checks.matrix("phi", phi)
    checks.same_length(a=a, phi=phi)
    centre = a.mean(0)
    w = np.linalg.lstsq(a - centre, phi - phi.mean(0), rcond=None)[0]
    c = phi.mean(0) - centre @ w
    return w, c, phi - (a @ w + c)


def median_distance(a: Array) -> float:
    """Median Euclidean distance of pairs of actions [n, k], over 1,000 rows spread evenly where there are more."""
    chosen = a[np.linspace(0, len(a) - 1, min(len(a), _MEDIAN_ROWS)).astype(int)]
    squares = ((chosen[:, None] - chosen) ** 2).sum(2)
    found = float(np.sqrt(np.median(squares[np.triu_indices(len(chosen), 1)])))
    return found if found > 0 else float(np.sqrt(squares.mean()))  # discrete actions: most pairs may be equal


def mmr_statistic(phi: Array, a: Array, bandwidth: float, estimator: Estimator = "v", whiten: bool = True) -> float:
    """Maximum moment restriction statistic Q of latents, in float64.

    Args:
        phi: [n, d] latents.
        a: [n, k] actions.
        bandwidth: standard deviation of the Gaussian kernel on actions, in their units.
        estimator: "v", never negative, or "u", without the pairs of a row with itself, which can be.
        whiten: give phi covariance I before, so that Q does not change under invertible affine maps of it.

    Raises:
        InputError: as `linear_invariance`, or a bandwidth that is not positive.
    """
    a, phi = checks.actions(a), checks.matrix("phi", phi)
    checks.same_length(a=a, phi=phi)
    _check_kernel(bandwidth, estimator)
    tensors = torch.from_numpy(phi), torch.from_numpy(a)
    return float(moment_restriction(*tensors, torch.tensor(bandwidth, dtype=torch.double), estimator, whiten))


def linearity_ratio(phi: Array, a: Array, bandwidth: float | None = None, whiten: bool = True) -> float:
    """How far E[phi | A] is from affine: n^2 Q divided by its mean where residuals do not depend on A.

    About 1 for a right latent, more for another. It needs large effects of A: at none it is 1 for every latent.

    Args:
        phi: [n, d] latents of rows that phi was not trained on.
        a: [n, k] actions; memory is n^2 numbers.
        bandwidth: of the kernel; None: 0.3 times the median distance.
        whiten: give phi covariance I before, so that the ratio does not depend on its scales.

    Raises:
        InputError: as `mmr_statistic`.
    """
    a, phi = checks.actions(a), checks.matrix("phi", phi)
    checks.same_length(a=a, phi=phi)
    bandwidth = 0.3 * median_distance(a) if bandwidth is None else bandwidth
    _check_kernel(bandwidth, "v")
    values, at = torch.from_numpy(phi), torch.from_numpy(a)
    psi = residuals(whitened(values) if whiten else values, at)
    kernel = gram(at, torch.tensor(bandwidth, dtype=torch.double))
    null = psi.square().sum(1).mean() * projected_trace(kernel, at)
    return float((psi * (kernel @ psi)).sum() / null)


def projected_trace(kernel: Tensor, a: Tensor) -> Tensor:
    """trace(R K R), R the residual maker of [A, 1]: n^2 Q / sigma^2 for one latent independent of A, in expectation."""
    design = torch.cat([a, torch.ones_like(a[:, :1])], 1)
    basis = torch.linalg.qr(design).Q
    found: Tensor = kernel.diagonal().sum() - ((kernel @ basis) * basis).sum()
    return found


def projected_factor(a: Tensor, factor: Tensor) -> Tensor:
    """R F [n, m] for a factor F of the kernel, K = F F^T; it depends on actions alone and is computed once.

    Args:
        a: [n, k].
        factor: [n, m], exact (Cholesky) or approximate (`random_factor`).
    """
    basis = torch.linalg.qr(torch.cat([a, torch.ones_like(a[:, :1])], 1)).Q
    found: Tensor = factor - basis @ (basis.mT @ factor)
    return found


def random_factor(a: Tensor, bandwidth: float, count: int, generator: torch.Generator) -> Tensor:
    """Random Fourier features F [n, count] with E[F F^T] the Gaussian kernel of actions a [n, k]; count is even."""
    frequencies = torch.randn(a.shape[1], count // 2, generator=generator, dtype=a.dtype) / bandwidth
    angles = a @ frequencies
    found: Tensor = torch.cat([angles.cos(), angles.sin()], 1) / (count // 2) ** 0.5
    return found


def factored_restriction(phi: Tensor, projected: Tensor) -> Tensor:
    """Q [] = ||(R F)^T phi||^2 / n^2 of latents [n, d]: O(n m d), where pairs are O(n^2)."""
    return (projected.mT @ phi).square().sum() / len(phi) ** 2


def residuals(phi: Tensor, a: Tensor) -> Tensor:
    """Residuals [..., n, d] of the regression of phi [..., n, d] on a [..., n, k] with intercept; gradients flow through it."""
    phi, a = phi - phi.mean(-2, keepdim=True), a - a.mean(-2, keepdim=True)
    found: Tensor = phi - a @ torch.linalg.solve(a.mT @ a, a.mT @ phi)
    return found


def whitened(phi: Tensor) -> Tensor:
    """Latents [..., n, d] with mean 0 and covariance I, by the Cholesky factor of their covariance."""
    phi = phi - phi.mean(-2, keepdim=True)
    covariance = phi.mT @ phi / phi.shape[-2]
    width = phi.shape[-1]
    size = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].detach()
    eye = torch.eye(width, dtype=phi.dtype, device=phi.device)
    # The ridge keeps latents that collapsed, or two that are equal, from stopping the training.
    ridge = (10 * torch.finfo(phi.dtype).eps * size + 1e-30) * eye
    lower = torch.linalg.cholesky(covariance + ridge)
    found: Tensor = torch.linalg.solve_triangular(lower, phi.mT, upper=False).mT
    return found


def gram(a: Tensor, bandwidth: Tensor) -> Tensor:
    """Gaussian kernel [..., n, n] of actions [..., n, k], bandwidth [...]."""
    scaled = a / (bandwidth[..., None, None] * 2**0.5)
    squares = scaled.square().sum(-1)
    kernel = torch.baddbmm if scaled.dim() == 3 else torch.addmm
    exponent = kernel(-squares[..., None, :], scaled, scaled.mT, alpha=2)
    return exponent.sub_(squares[..., :, None]).clamp_(max=0).exp_()


def moment_restriction(phi: Tensor, a: Tensor, bandwidth: Tensor, estimator: str = "v", whiten: bool = True) -> Tensor:
    """Q [...] of latents [..., n, d] and actions [..., n, k]: (1/n^2) trace(Psi^T K Psi), summed over latent coordinates.

    Args:
        phi: differentiable.
        a: no gradient is needed.
        bandwidth: [...].
        estimator: "v" or "u".
        whiten: see `mmr_statistic`.
    """
    psi = residuals(whitened(phi) if whiten else phi, a)
    n = phi.shape[-2]
    pairs = n * (n - 1) if estimator == "u" else n * n
    return _Pairs.apply(psi, a, bandwidth, estimator == "u") / pairs  # type: ignore[no-any-return,no-untyped-call]


class _Pairs(torch.autograd.Function):
    """trace(Psi^T K Psi) [...], one kernel at a time, used once and dropped: it stays in a core's cache.

    K is symmetric, so the gradient is 2 K Psi, which the value needs anyway.
    """

    @staticmethod
    def forward(ctx: Any, psi: Tensor, a: Tensor, bandwidth: Tensor, without_diagonal: bool) -> Tensor:
        shape, rows = psi.shape, psi.shape[-2:]
        psis, actions = psi.reshape(-1, *rows), a.reshape(-1, *a.shape[-2:])
        smoothed = torch.stack(
            [gram(at, h) @ one for one, at, h in zip(psis, actions, bandwidth.reshape(-1), strict=True)]
        )
        smoothed = smoothed.view(shape)
        if without_diagonal:
            smoothed = smoothed - psi
        ctx.save_for_backward(smoothed)
        return (psi * smoothed).sum((-2, -1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (smoothed,) = ctx.saved_tensors
        return 2 * gradients[0][..., None, None] * smoothed, None, None, None


def _check_kernel(bandwidth: float, estimator: str) -> None:
    if not (np.isfinite(bandwidth) and bandwidth > 0):
        raise InputError(
            f"bandwidth: is {bandwidth}; give a positive number, 0.3 times the actions' median distance is usual"
        )
    if estimator not in ESTIMATORS:
        raise InputError(f"estimator: unknown {estimator!r}; choose v or u")
