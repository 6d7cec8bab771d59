"""The same on Ray Train V2."""

from __future__ import annotations

from cluster.training.gang import Gang


class RayTrain(Gang):
    """To come."""
