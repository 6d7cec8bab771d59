"""Random generators that come from numbers alone."""

from __future__ import annotations

import numpy as np
import torch


def generator_of(*numbers: int) -> torch.Generator:
    """A generator that comes from these numbers (0 or more) and their order alone."""
    state = np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))
