"""What the papers' drawings share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def panels(columns: int = 1, rows: int = 1, size: tuple[float, float] | None = None) -> tuple[Figure, list[Any]]:
    """Make a figure of panels, and their axes in reading order; rows share their x axis.

    Args:
        columns: of panels.
        rows: of panels.
        size: width and height in inches; None: 5 by 3.6, and more for more panels.
    """
    from matplotlib.figure import Figure

    size = size or (5.0 + 3.6 * (columns - 1), 3.6 * rows)
    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, sharex=rows > 1).flat)
