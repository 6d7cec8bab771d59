"""A table with notes and plots: how certificates and bounds are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.report.plots import Plot

if TYPE_CHECKING:
    from rich.console import Console

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b")
"""Colours of curves and points, told apart by colour-blind readers."""


@dataclass(frozen=True)
class TableSection:
    """A table of what a job stored, with what it means and plots.

    Args:
        title: the data, and what is shown of them.
        columns: of the table, after the row's name.
        rows: by name, the cells as text.
        best: by column, the row with the largest number, for the columns where that is better.
        notes: what the figures mean and under which assumptions.
        figures: each with its caption.
    """

    title: str
    columns: list[str]
    rows: dict[str, list[str]]
    best: dict[int, str]
    notes: list[str]
    figures: list[tuple[Plot, str]]


def plain(value: Any) -> str:
    """Write a value of a setting: numbers short, names without their fingerprint."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).split("@", 1)[0] if isinstance(value, str) else str(value)


def new_figure() -> tuple[Any, Any]:
    """Make a figure of one plot, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    return figure, figure.add_subplot()


def finish(axes: Any, ylabel: str) -> None:
    """Give axes of a share their range, a grid and a legend beside them."""
    axes.set_ylim(0, 1)
    axes.set_ylabel(ylabel)
    axes.grid(axis="y")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))


def print_sections(console: Console, sections: Sequence[TableSection]) -> None:
    """Print the tables; the best of a column is bold."""
    from rich.table import Table

    for section in sections:
        table = Table(title=section.title, title_justify="left", box=None, pad_edge=False, header_style="")
        table.add_column("")
        for column in section.columns:
            table.add_column(column, justify="right")
        for name, cells in section.rows.items():
            table.add_row(name, *(f"[bold]{c}[/]" if section.best.get(i) == name else c for i, c in enumerate(cells)))
        console.print(table)
        for note in section.notes:
            console.print(f"  {note}", style="dim", markup=False, highlight=False)
        console.print()
