"""Groups of examples whose gradients oppose each other: found in the changes of losses alone, and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_modules.dynamics.flat import LossesAt
from lightning_modules.dynamics.loss_changes import OutlierReport, overlap
from lightning_modules.errors import InputError


@dataclass(frozen=True)
class OutlierGroups:
    """Two groups whose losses moved in opposite directions.

    Args:
        first: numbers of its examples.
        second: of the other's.
        labels: the one label of each, or -1 where there are none.
    """

    first: Tensor
    second: Tensor
    labels: tuple[int, int] = (-1, -1)

    def by_name(self) -> dict[str, Tensor]:
        """Its examples by group, "A" and "B"."""
        return {"A": self.first, "B": self.second}


def outlier_groups(report: OutlierReport, labels: Tensor | None, before: OutlierGroups | None = None) -> OutlierGroups:
    """Part a step's outliers into two groups: by the sign of the change, and in each the most frequent label.

    Nothing but losses and labels of single examples is looked at. The groups keep their names from step to step, though the
    one that rose falls next: a group is named after the one of the step before that it shares more examples with.

    Args:
        report: of a step.
        labels: whole numbers [n]; None: the lists are not parted further.
        before: the groups of an earlier step.
    """
    rising, falling = (_most_frequent(part, labels) for part in (report.up, report.down))
    swapped = False
    if before is not None:
        kept = overlap(rising[0], before.first) + overlap(falling[0], before.second)
        swapped = overlap(rising[0], before.second) + overlap(falling[0], before.first) > kept
    one, other = (falling, rising) if swapped else (rising, falling)
    return OutlierGroups(one[0], other[0], (one[1], other[1]))


def _most_frequent(part: Tensor, labels: Tensor | None) -> tuple[Tensor, int]:
    if labels is None:
        return part, -1
    own = labels[part]
    name = int(own.mode().values)
    return part[own == name], name


def labels_of(batches: Sequence[Any]) -> Tensor | None:
    """Labels [n] of batches (inputs, labels) with whole numbers; None of any other batches."""
    found = []
    for batch in batches:
        pair = isinstance(batch, tuple | list) and len(batch) == 2
        labels = batch[1] if pair else None
        if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point():
            return None
        found.append(labels)
    return torch.cat(found) if found else None


@dataclass(frozen=True)
class GroupStatistics:
    """Groups at one point.

    Args:
        names: of G groups.
        losses: mean loss of each, [G].
        cosine: of the mean gradients, [G, G].
        alignment: |cosine| of each mean gradient with a direction, [G]; NaN without one.
    """

    names: tuple[str, ...]
    losses: Tensor
    cosine: Tensor
    alignment: Tensor


def group_statistics(
    losses: LossesAt | Sequence[LossesAt],
    theta: Tensor,
    groups: Mapping[str, Tensor],
    direction: Tensor | None = None,
) -> GroupStatistics:
    """Mean losses of groups of examples, and how their mean gradients lie to each other and to a direction.

    Args:
        losses: of all examples, or of each chunk of them in order, [n_i].
        theta: parameters [D].
        groups: numbers of examples by name.
        direction: [D], e.g. the Hessian's top eigenvector.

    Raises:
        InputError: a group without examples, or with a number that no example has.
    """
    chunks = [losses] if callable(losses) else list(losses)
    theta = theta.detach().clone().requires_grad_()
    gradients = torch.zeros(len(groups), len(theta)).to(theta)
    means = torch.zeros(len(groups)).to(theta)
    start = 0
    for chunk in chunks:
        found = chunk(theta)
        for place, (name, members) in enumerate(groups.items()):
            if not len(members):
                raise InputError(f"groups: {name} has no examples; give one or more")
            inside = members[(members >= start) & (members < start + len(found))].to(found.device) - start
            if len(inside):
                part = found[inside].sum() / len(members)
                (gradient,) = torch.autograd.grad(part, theta, retain_graph=True)
                gradients[place] += gradient
                means[place] += part.detach()
        start += len(found)
    for name, members in groups.items():
        if int(members.max()) >= start or int(members.min()) < 0:
            raise InputError(f"groups: {name} has example {int(members.max())} of {start}; give 0 to {start - 1}")
    units = gradients / gradients.norm(dim=1, keepdim=True).clamp(min=1e-30)
    unknown = torch.full_like(means, torch.nan)
    alignment = unknown if direction is None else (units @ (direction / direction.norm()).to(units)).abs()
    return GroupStatistics(tuple(groups), means, units @ units.T, alignment)
