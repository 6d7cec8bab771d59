"""Which examples a step moves most: changes of every example's loss between steps, and what alternates in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_modules.errors import InputError


@dataclass(frozen=True)
class OutlierReport:
    """What a step did to the loss of every example.

    Args:
        step: after which.
        up: numbers of the k examples whose losses rose most [k], the most first.
        down: of the k whose losses fell most [k], the most first.
        change: losses after the step minus those before [n].
        fraction_up: share of examples whose loss rose.
    """

    step: int
    up: Tensor
    down: Tensor
    change: Tensor
    fraction_up: float


class LossChangeTracker:
    """Compares the losses of the SAME examples before and after each step; outliers are chosen by the change alone.

    Args:
        k: examples in each of the two lists.

    Raises:
        InputError: k is below 1.

    Source: arXiv 2311.04163, section 2 (from memory).

    Example:
        >>> tracker = LossChangeTracker(1)
        >>> tracker.update(torch.tensor([1.0, 1.0, 1.0]), step=0)
        >>> report = tracker.update(torch.tensor([1.5, 0.2, 1.0]), step=1)
        >>> report.up.tolist(), report.down.tolist()
        ([0], [1])
    """

    def __init__(self, k: int = 20) -> None:
        if k < 1:
            raise InputError(f"top: is {k}; give 1 or more")
        self.k = k
        self._losses: Tensor | None = None
        self._step = 0

    def update(self, losses: Tensor, step: int) -> OutlierReport | None:
        """Take the losses [n] after a step; None where those before that step were not seen.

        Raises:
            InputError: losses that are not finite, of another number of examples than before, or too few for k.
        """
        if losses.dim() != 1:
            raise InputError(f"losses: have shape {list(losses.shape)}; give the loss of every example [n]")
        if not bool(losses.isfinite().all()):
            bad = int((~losses.isfinite()).nonzero()[0])
            raise InputError(f"losses: that of example {bad} is {float(losses[bad])}; lower the learning rate")
        if 2 * self.k > len(losses):
            raise InputError(f"top: is {self.k}, of {len(losses)} examples; give {len(losses) // 2} or less")
        before, self._losses = self._losses, losses.detach().clone()
        follows, self._step = step == self._step + 1, step
        if before is None:
            return None
        if len(before) != len(losses):
            raise InputError(f"losses: of {len(losses)} examples, before of {len(before)}; give those of the same ones")
        if not follows:
            return None
        change = self._losses - before.to(self._losses)
        up, down = (torch.topk(change, self.k, largest=largest).indices for largest in (True, False))
        return OutlierReport(step, up, down, change, float((change > 0).double().mean()))

    def state_dict(self) -> dict[str, Any]:
        """The last losses, for a checkpoint."""
        return {"losses": self._losses, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._losses, self._step = state["losses"], int(state["step"])


def overlap(first: Tensor, second: Tensor) -> float:
    """Share of the examples of one list [k] that are in another [k], e.g. of this step's `up` in the next one's `down`."""
    return float(torch.isin(first, second.to(first.device)).double().mean()) if len(first) else 0.0


def alternation_rate(series: Sequence[float]) -> float:
    """Share of neighbouring changes whose signs differ; 1: up and down by turns. NaN of fewer than two changes.

    Args:
        series: changes of one group's loss, step by step.
    """
    signs = torch.as_tensor(series, dtype=torch.double).sign()
    return float((signs[1:] * signs[:-1] < 0).double().mean())


def opposition_rate(first: Sequence[float], second: Sequence[float], least: float = 0.0) -> float:
    """Share of steps at which two groups' losses move in opposite directions; NaN where there is no such step.

    Args:
        first: changes of one group's loss, step by step.
        second: of the other's.
        least: steps at which either moves by no more than this are left out.
    """
    a, b = torch.as_tensor(first, dtype=torch.double), torch.as_tensor(second, dtype=torch.double)
    seen = (a.abs() > least) & (b.abs() > least)
    return float((a[seen] * b[seen] < 0).double().mean())
