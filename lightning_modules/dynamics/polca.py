"""POLCA: each example's loss change, split into what movement along each direction of the weights contributed.

With checkpoints theta_t, orthonormal directions b, c = <b, theta_{t+1} - theta_t> and an example's gradient g_t(x):
    order 1      A(x, b) = <b, g_t(x)> c
    trapezoid    1/2 <b, g_t(x) + g_{t+1}(x)> c
    ratio        order 1 + 1/2 lambda c^2 <b, g_{t+1}(x) - g_t(x)> / <b, g_{t+1}(X) - g_t(X)>, lambda = b^T H_t(X) b
    exact        order 1 + 1/2 b^T H_t(x) b c^2
X is the mean over all examples. Where the loss is quadratic and b an eigenvector of its mean's Hessian, ratio and trapezoid agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lightning_modules.dynamics.basis import Basis, check_basis
from lightning_modules.dynamics.flat import LossesAt, directional_derivatives
from lightning_modules.dynamics.recorder import Checkpoints
from lightning_modules.errors import InputError

Order = Literal["1", "trapezoid", "ratio", "exact"]
ORDERS: tuple[Order, ...] = get_args(Order)

_FLAT = 8
"""Change of the mean slope along b, in rounding errors of the examples' slopes, below which the ratio form is undefined."""


@dataclass(frozen=True)
class Interval:
    """What one interval between checkpoints gives.

    Args:
        moved: c [K].
        before: <b, g_t(x)> [K, n].
        after: <b, g_{t+1}(x)> [K, n].
        curvature: b^T H_t(x) b [K, n]; None where nobody asked.
        losses_before: [n].
        losses_after: [n].
    """

    moved: Tensor
    before: Tensor
    after: Tensor
    curvature: Tensor | None
    losses_before: Tensor
    losses_after: Tensor

    def contributions(self, order: Order) -> Tensor:
        """A [K, n]; in the ratio form the trapezoid's where the mean slope does not change, since the ratio is 0 / 0 there.

        Raises:
            InputError: an order that is unknown, or needs the curvature that is not there.
        """
        _check_order(order)
        c = self.moved[:, None]
        if order == "1":
            return self.before * c
        trapezoid = 0.5 * (self.before + self.after) * c
        if order == "trapezoid":
            return trapezoid
        if self.curvature is None:
            raise InputError(f"order: {order} needs the curvature; ask for it")
        if order == "exact":
            return self.before * c + 0.5 * self.curvature * c.square()
        bend = self.after - self.before
        whole = bend.mean(1, keepdim=True)
        rounding = torch.finfo(whole.dtype).eps * (self.before.abs() + self.after.abs()).mean(1, keepdim=True)
        flat = whole.abs() <= _FLAT * rounding
        share = bend / torch.where(flat, torch.ones_like(whole), whole)
        mean_curvature = self.curvature.mean(1, keepdim=True)
        ratio = self.before * c + 0.5 * mean_curvature * c.square() * share
        return torch.where(flat, trapezoid, ratio)


def polca_intervals(
    losses: Sequence[LossesAt], checkpoints: Checkpoints, vectors: Tensor, curvature: bool = False
) -> Iterator[Interval]:
    """The T - 1 intervals, one after the other: memory holds two checkpoints and two sets of derivatives.

    Args:
        losses: of each chunk of examples.
        checkpoints: T of them.
        vectors: B [K, D].
        curvature: whether b^T H_t(x) b is computed as well.

    Raises:
        InputError: a basis that is not orthonormal or of another architecture, or a loss that is not finite.
    """
    check_basis(vectors, checkpoints.size)
    yield from _intervals(losses, checkpoints, vectors, curvature)


def _intervals(
    losses: Sequence[LossesAt], checkpoints: Checkpoints, vectors: Tensor, curvature: bool
) -> Iterator[Interval]:
    theta = checkpoints[0]
    vectors = vectors.to(theta)
    before, losses_before = _at(losses, theta, vectors, checkpoints.steps[0])
    for t in range(len(checkpoints) - 1):
        following = checkpoints[t + 1]
        bends = torch.cat([directional_curvatures(part, theta, vectors) for part in losses], 1) if curvature else None
        after, losses_after = _at(losses, following, vectors, checkpoints.steps[t + 1])
        yield Interval(vectors @ (following - theta), before, after, bends, losses_before, losses_after)
        theta, before, losses_before = following, after, losses_after


def _at(losses: Sequence[LossesAt], theta: Tensor, vectors: Tensor, step: int) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        values = torch.cat([part(theta) for part in losses])
    if not bool(values.isfinite().all()):
        raise InputError(f"checkpoints: at step {step} a loss is not finite; leave these checkpoints out")
    return torch.cat([_slopes(part, theta, vectors) for part in losses], 1), values


def _slopes(losses: LossesAt, theta: Tensor, vectors: Tensor) -> Tensor:
    """By the losses' own way where they have one (`TokenLossesAt`), else by forward mode."""
    own: Any = getattr(losses, "slopes", None)
    found: Tensor = directional_derivatives(losses, theta, vectors) if own is None else own(theta, vectors)
    return found


def directional_curvatures(losses: LossesAt, theta: Tensor, directions: Tensor, chunk: int = 16) -> Tensor:
    """b^T H(x) b [K, n] of every example's own loss, by forward mode nested twice.

    Args:
        losses: with forward-mode rules.
        theta: [D].
        directions: [K, D].
        chunk: directions at once.
    """

    def along(direction: Tensor) -> Tensor:
        def slope(at: Tensor) -> Tensor:
            inner: Tensor = torch.func.jvp(losses, (at,), (direction,))[1]
            return inner

        found: Tensor = torch.func.jvp(slope, (theta,), (direction,))[1]
        return found

    with torch.no_grad():
        return torch.cat([torch.func.vmap(along)(part) for part in torch.split(directions, chunk)])


@dataclass(frozen=True)
class Projected:
    """A training, taken apart.

    Args:
        steps: of the T checkpoints.
        values: A [T - 1, K, n], contributions to each example's loss change in each interval.
        slopes: <b, g_t(x)> [T, K, n].
        losses: [T, n], the true ones.
        moved: c [T - 1, K].
        captured_first: what the first order says all directions together changed the mean loss by.
        captured: the same of the order that was asked for.
        total: true change of the mean loss.
    """

    steps: tuple[int, ...]
    values: Tensor
    slopes: Tensor
    losses: Tensor
    moved: Tensor
    captured_first: float
    captured: float
    total: float

    @property
    def share(self) -> float:
        """captured / total; NaN where the loss did not change."""
        return self.captured / self.total if self.total else math.nan

    def curves(self, direction: int) -> Tensor:
        """Projected losses L_b(x, t) [n, T] along a direction: 0 at first, then the sums of its contributions."""
        along = self.values[:, direction].cumsum(0)
        return torch.cat([torch.zeros_like(along[:1]), along]).T


def polca(
    losses: LossesAt | Sequence[LossesAt],
    checkpoints: Checkpoints,
    basis: Basis | Tensor,
    order: Order | int = "trapezoid",
) -> Projected:
    """Take a training apart along the directions of a basis.

    Args:
        losses: of the examples, or of each chunk of them; an example may be a token (`token_losses.TokenLossesAt`).
        checkpoints: T of them.
        basis: K directions.
        order: 1, "trapezoid", "ratio" or "exact".

    Raises:
        InputError: a basis that is not orthonormal or of another architecture, an unknown order, or a loss that is not finite.

    Source: arXiv 2506.15872, equations 2 to 5. Equation 4 prints losses in the inner products where its derivation has gradients.
    The trapezoid is what its second term comes to, without a division and without the curvature.
    """
    return polca_orders(losses, checkpoints, basis, (order,))[0]


def polca_orders(
    losses: LossesAt | Sequence[LossesAt],
    checkpoints: Checkpoints,
    basis: Basis | Tensor,
    orders: Sequence[Order | int],
) -> list[Projected]:
    """`polca` in several orders for the derivatives of one.

    Raises:
        InputError: as `polca` does.
    """
    return polca_bases(losses, checkpoints, {"": basis}, orders)[""]


def polca_bases(
    losses: LossesAt | Sequence[LossesAt],
    checkpoints: Checkpoints,
    bases: Mapping[str, Basis | Tensor],
    orders: Sequence[Order | int],
) -> dict[str, list[Projected]]:
    """`polca` along several bases, in several orders, in one pass over the checkpoints.

    Args:
        losses: as for `polca`.
        checkpoints: T of them.
        bases: by name.
        orders: of each basis.

    Raises:
        InputError: as `polca` does.
    """
    named = [_check_order(order) for order in orders]
    chunks = [losses] if callable(losses) else list(losses)
    stacks = [basis.vectors if isinstance(basis, Basis) else basis for basis in bases.values()]
    for vectors in stacks:
        check_basis(vectors, checkpoints.size)
    ends = np.cumsum([0, *map(len, stacks)])
    values: dict[Order, list[Tensor]] = {order: [] for order in named}
    firsts, slopes, curves, moved = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    for interval in _intervals(chunks, checkpoints, torch.cat(stacks), bool({"ratio", "exact"} & set(named))):
        for order, parts in values.items():
            parts.append(interval.contributions(order))
        firsts.append(interval.contributions("1").double().mean(1))
        slopes.append(interval.before)
        curves.append(interval.losses_before)
        moved.append(interval.moved)
    slopes.append(interval.after)
    curves.append(interval.losses_after)
    true = torch.stack(curves)
    total = float(true[-1].double().mean() - true[0].double().mean())
    found: dict[str, list[Projected]] = {}
    for name, start, end in zip(bases, ends[:-1], ends[1:], strict=True):
        own = slice(int(start), int(end))
        first = float(torch.stack(firsts)[:, own].sum())
        shared = torch.stack([part[own] for part in slopes]), true, torch.stack(moved)[:, own]
        found[name] = []
        for order in named:
            contributions = torch.stack([part[own] for part in values[order]])
            captured = float(contributions.double().mean(2).sum())
            found[name].append(Projected(tuple(checkpoints.steps), contributions, *shared, first, captured, total))
    return found


def _check_order(order: str | int) -> Order:
    for known in ORDERS:
        if str(order) == known:
            return known
    raise InputError(f"order: unknown {order!r}; choose from {', '.join(ORDERS)}")
