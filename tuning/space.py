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


Conditions = Mapping[str, tuple[str, tuple[Any, ...]]]
"""By hyperparameter, another one and its values under which the first matters."""


def draw(
    space: Mapping[str, Law], *key: Scalar, conditions: Conditions | None = None, fixed: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Draw every hyperparameter of a space, each from a generator of its own.

    A value depends on the key and the field's name alone: adding a field, a method or more draws changes no other
    value, so that trials already stored stay valid.

    Args:
        space: law by field name.
        *key: what the draw belongs to, e.g. method, draw number, seed.
        conditions: of fields that are left out where they do not matter; they may hang on each other, not in a circle.
        fixed: values of what is not drawn or left out, for the conditions.
    """
    values = {name: law.sample(np.random.default_rng(derive_seed("draw", *key, name))) for name, law in space.items()}

    def known(name: str) -> Any:
        return values[name] if name in values and matters(name) else (fixed or {}).get(name)

    def matters(name: str) -> bool:
        other, allowed = (conditions or {}).get(name, (None, ()))
        return other is None or known(other) in allowed

    return {name: value for name, value in values.items() if matters(name)}
