"""What every benchmark shares: rounds that alternate ours and the peer, medians, a table and one JSON line a figure."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Args:
        figure: its name.
        value: what is held against the bar, in `unit`.
        unit: "x" for a ratio of ours to the peer's, else what it says.
        bar: what the value must reach, or stay under with `at_most`; None for a figure that only informs.
        ours: our measurement behind the value.
        peer: the peer's, or the ideal; None where there is none.
        at_most: whether less is better.
    """

    figure: str
    value: float
    unit: str
    bar: float | None
    ours: float
    peer: float | None = None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without a bar."""
        if self.bar is None:
            return None
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    def line(self) -> str:
        """Return the figure as one line of JSON."""
        values = {"figure": self.figure, "value": _round(self.value), "unit": self.unit, "bar": self.bar}
        return json.dumps({**values, "met": self.met, "ours": _round(self.ours), "peer": _round(self.peer)})


def alternate(measures: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Take every measure in turn, round after round, so that what else the machine does meets all alike."""
    taken: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            taken[name].append(measure())
    return taken


def ratio(figure: str, ours: Sequence[float], peer: Sequence[float], bar: float | None) -> Figure:
    """Return the median of the rounds' ratios, ours to the peer's, with the median of each."""
    value = statistics.median(our / its for our, its in zip(ours, peer, strict=True))
    return Figure(figure, value, "x", bar, statistics.median(ours), statistics.median(peer))


def quick_asked(description: str | None) -> bool:
    """Parse the command line; returns whether `--quick` was given."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats: under a minute, and rougher")
    return bool(parser.parse_args().quick)


@contextlib.contextmanager
def scratch_folder() -> Iterator[str]:
    """Give a folder that goes when the block ends, and let Ray keep its session there instead of in /tmp/ray."""
    with tempfile.TemporaryDirectory(prefix="bench", ignore_cleanup_errors=True) as folder:
        before = os.environ.get("RAY_TMPDIR")
        os.environ["RAY_TMPDIR"] = folder
        try:
            yield folder
        finally:
            if before is None:
                del os.environ["RAY_TMPDIR"]
            else:
                os.environ["RAY_TMPDIR"] = before


def show(title: str, figures: Sequence[Figure], notes: Sequence[str]) -> None:
    """Print the table and the notes, then one JSON line a figure."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    for column in ("ours", "peer", "value", "bar", "met"):
        table.add_column(column, justify="right")
    for figure in figures:
        bar = "" if figure.bar is None else f"{'≤' if figure.at_most else '≥'} {figure.bar:g}"
        met = {None: "", True: "yes", False: "NO"}[figure.met]
        peer = "" if figure.peer is None else _plain(figure.peer)
        table.add_row(figure.figure, _plain(figure.ours), peer, f"{_plain(figure.value)} {figure.unit}", bar, met)
    console.print(table)
    for note in notes:
        console.print(f"- {note}", highlight=False, markup=False)
    for figure in figures:
        print(figure.line(), flush=True)


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _plain(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
