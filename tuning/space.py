"""Random draws of hyperparameters that depend on what is drawn, never on who drew before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from cluster.trial import Scalar, derive_seed


class Law(Protocol):
    """A random law of one hyperparameter."""

    def sample(self, generator: np.random.Generator) -> Any:
        """Draw one value."""


def draw(space: Mapping[str, Law], *key: Scalar) -> dict[str, Any]:
    """Draw every hyperparameter of a space, each from a generator of its own.

    A value depends on the key and the field's name alone: adding a field, a method or more draws changes no other
    value, so that trials already stored stay valid.

    Args:
        space: law by field name.
        *key: what the draw belongs to, e.g. method, draw number, seed.
    """
    return {name: law.sample(np.random.default_rng(derive_seed("draw", *key, name))) for name, law in space.items()}
