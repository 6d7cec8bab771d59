"""What people do when they see a classifier, and the losses of a learner that foresees it."""

from __future__ import annotations

import numpy as np

from lightning_modules.errors import InputError
from lightning_modules.strategic.costs import Array, Cost, Mask

_OVERSHOOT = 1e-9


def best_response(inputs: Array, w: Array, b: float, cost: Cost) -> tuple[Array, Mask, Array]:
    """Move everybody who gains by it, as far as needed and no further.

    Who is accepted stays; who is below by at most the shift k moves onto the boundary (and a hair beyond it, so that rounding
    does not decide); who is further away stays.

    Args:
        inputs: [n, d].
        w: [d] weights.
        b: bias.
        cost: of moving.

    Returns:
        Where everybody is afterwards [n, d], who moved [n], and what it cost them [n], in the cost's norm.

    Source: derived; the cheapest way to raise a score by t costs t / ||w||_*.
    """
    scores = inputs @ w + b
    length = float(cost.dual_norm(w))
    moves = (scores < 0) & (scores + float(cost.shift(w)) >= 0)
    if not moves.any() or length == 0:
        return inputs.copy(), np.zeros(len(inputs), bool), np.zeros(len(inputs))
    distance = np.where(moves, -scores / length, 0.0)
    moved = inputs + (distance * (1 + _OVERSHOOT) + _OVERSHOOT * moves)[:, None] * cost.dual_maximizer(w)
    return moved, moves, distance


def accepted(scores: Array, shift: float | Array) -> Mask:
    """Who is accepted after everybody responded: s + k >= 0."""
    found: Mask = scores + shift >= 0
    return found


def strategic_hinge(scores: Array, y: Array, shift: float | Array) -> Array:
    """max(0, 1 - y (s + k)), of shape [...]: at least the strategic 0-1 loss, and convex in k.

    Putting the moved point into the ordinary hinge instead would be discontinuous, and 1 for everybody who moved.

    Args:
        scores: s before anybody moves.
        y: -1 or +1, of the same shape.
        shift: k >= 0.

    Source: the form with k = 2 ||w||_2 is Levanon & Rosenfeld, ICML 2022, arXiv 2206.01984.
    """
    found: Array = np.maximum(0.0, 1 - y * (scores + shift))
    return found


def strategic_error(scores: Array, y: Array, shift: float | Array) -> Mask:
    """0-1 loss [...] after everybody responded."""
    found: Mask = accepted(scores, shift) != (y > 0)
    return found


def check_labels(y: Array, zero_one: bool = False) -> Array:
    """Return labels as -1 and +1.

    Args:
        y: [n].
        zero_one: whether they are given as 0 and 1.

    Raises:
        InputError: for any other value, or one class alone.
    """
    allowed = {0, 1} if zero_one else {-1, 1}
    found = set(np.unique(y).tolist())
    if not found <= allowed:
        hint = "" if zero_one else "; for 0 and 1 say zero_one=True"
        raise InputError(f"y: holds {sorted(found - allowed)[:3]}, not only {sorted(allowed)}{hint}")
    if len(found) < 2:
        raise InputError(f"y: is {found} alone; give both classes")
    signs: Array = np.where(np.asarray(y) > 0, 1.0, -1.0)
    return signs
