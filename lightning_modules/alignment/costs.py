"""What a training took: numbers trained, processor seconds, pairs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn


@dataclass
class Cost:
    """What a training took.

    Args:
        parameters: numbers that were trained.
        pairs: images with captions that it saw.
        seconds: of processor time in this process, all threads together.
    """

    parameters: int = 0
    pairs: int = 0
    seconds: float = 0.0


def trained_parameters(module: nn.Module) -> int:
    """Count the numbers that ask for gradients."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@contextmanager
def counted(pairs: int) -> Iterator[Cost]:
    """Clock what is done within the block; the caller fills in what was trained.

    Example:
        >>> with counted(pairs=100) as cost:
        ...     _ = sum(range(1000))
        >>> cost.seconds > 0
        True
    """
    cost, began = Cost(pairs=pairs), time.process_time()
    try:
        yield cost
    finally:
        cost.seconds = time.process_time() - began


def cost_table(costs: dict[str, Cost], reference: str) -> list[dict[str, float | str]]:
    """Set costs beside each other: each way's figures, and its share of a reference's.

    Args:
        costs: by the way's name.
        reference: name of the way that the shares are of.

    Returns:
        A row a way: name, parameters, pairs, seconds, parameter_share, second_share.
    """
    base = costs[reference]
    return [
        {
            "name": name,
            "parameters": cost.parameters,
            "pairs": cost.pairs,
            "seconds": cost.seconds,
            "parameter_share": cost.parameters / base.parameters,
            "second_share": cost.seconds / base.seconds,
        }
        for name, cost in costs.items()
    ]
