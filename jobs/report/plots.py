"""The plots of a report: small inline SVGs that take the page's font and text colour, one panel a figure.

Every method has one colour and line style on the whole page (Okabe-Ito's palette, safe for colour-blind readers).
Figures are drawn with matplotlib's objects alone: no pyplot, so nothing global is left behind. Optuna's figures need
pyplot; they borrow it (`borrowed_pyplot`), and it is handed back as it was.
"""

from __future__ import annotations

import io
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from jobs.report.selection import TRAINING_DOMAIN, Records, best_checkpoints

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A stand-in that becomes CSS's currentColor, so that it is dark on a light page and light on a dark one.
_TEXT = "#010203"
_COLOURS = (_TEXT, "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DASHES = ("", "6 2.5", "1.5 2", "7 2 1.5 2")
_MOST_PANELS = 8
_MOST_VECTOR_DOTS = 3000
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "grid.color": _TEXT,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.7,
    "legend.frameon": False,  # a frame would be a white box on a dark page
}


@dataclass(frozen=True)
class Style:
    """How a method looks: an HTML colour and an SVG dash pattern ("" is solid)."""

    colour: str
    dashes: str

    @property
    def css(self) -> str:
        """The colour for HTML."""
        return "currentColor" if self.colour == _TEXT else self.colour

    @property
    def line(self) -> Any:
        """The dash pattern for matplotlib."""
        return (0, tuple(map(float, self.dashes.split()))) if self.dashes else "-"


def method_styles(methods: Sequence[str]) -> dict[str, Style]:
    """Give each method its look: the first (the baseline) the text's colour, then the palette, then other dashes."""
    count = len(_COLOURS)
    return {m: Style(_COLOURS[i % count], _DASHES[i // count % len(_DASHES)]) for i, m in enumerate(methods)}


@dataclass(frozen=True)
class Plot:
    """One panel.

    Args:
        title: short; the SVG's accessible name, and its caption on the page.
        svg: markup ready to stand in an HTML page.
    """

    title: str
    svg: str


def learning_curves(records: Records, group: tuple[str, str], styles: dict[str, Style]) -> list[Plot]:
    """Plot accuracy against step by method: mean over trials, band one standard deviation of the trials.

    Args:
        records: from `selection.measure`; trials with exactly one held-out environment are drawn.
        group: (dataset identity, budget JSON).
        styles: from `method_styles`.

    Returns:
        A panel for the training environments (out split) and one for each held-out environment (in split).
    """
    with duckdb.connect() as db:
        db.register("checkpoints", records.checkpoints)
        db.register("runs", records.runs)
        points = db.execute(
            """
            with single as (
                select c.*, method from checkpoints c join runs r using (trial_id)
                where c.single and r.dataset = $1 and r.budget = $2
            ), long as (
                select '' as panel, method, step, training_accuracy as value from single
                union all select environment, method, step, in_accuracy from single
            )
            select panel, method, step, avg(value), stddev_pop(value) from long where isfinite(value)
            group by all order by all
            """,
            list(group),
        ).fetchall()
    panels: dict[str, dict[str, list[tuple[float, float, float]]]] = defaultdict(lambda: defaultdict(list))
    for panel, method, step, mean, spread in points:
        panels[panel][method].append((step, 100 * mean, 100 * spread))
    held_out = [e for e in records.environments.get(group[0], ()) if e in panels][:_MOST_PANELS]
    limits = _limits([p for e in held_out for curve in panels[e].values() for p in curve])
    plots = []
    for panel in [p for p in ["", *held_out] if p in panels]:
        title = f"Held out: {panel}" if panel else "Training environments"
        plots.append(_curve_panel(title, group, panels[panel], styles, None if not panel else limits))
    return plots


def _limits(points: Sequence[tuple[float, float, float]]) -> tuple[float, float] | None:
    """Give a range of accuracy that holds every mean and band, so that panels can be compared."""
    if not points:
        return None
    low, high = min(m - s for _, m, s in points), max(m + s for _, m, s in points)
    margin = 0.05 * (high - low) or 1.0
    return max(0.0, low - margin), min(100.0 + margin, high + margin)


def _curve_panel(
    title: str,
    group: tuple[str, str],
    curves: dict[str, list[tuple[float, float, float]]],
    styles: dict[str, Style],
    limits: tuple[float, float] | None,
) -> Plot:
    ends = ", ".join(f"{m} {curves[m][-1][1]:.1f}" for m in styles if m in curves)

    def draw(axes: Axes) -> None:
        for method, style in styles.items():
            if method not in curves:
                continue
            steps, means, spreads = (list(column) for column in zip(*curves[method], strict=True))
            low = [m - s for m, s in zip(means, spreads, strict=True)]
            high = [m + s for m, s in zip(means, spreads, strict=True)]
            marker = "o" if len(steps) <= 3 else ""
            axes.fill_between(steps, low, high, color=style.colour, alpha=min(0.1, 0.6 / len(curves)), linewidth=0)
            axes.plot(steps, means, color=style.colour, linestyle=style.line, linewidth=1.6, marker=marker, ms=3.5)
        if limits:
            axes.set_ylim(*limits)
        axes.set_xlabel("step")
        axes.set_ylabel("accuracy (%)")
        axes.grid(axis="y")

    return _render(draw, (4.3, 2.6), group, title, f"{title}: mean accuracy in percent at the last step: {ends}.")


def trial_dots(records: Records, group: tuple[str, str], styles: dict[str, Style]) -> list[Plot]:
    """Plot every single-held-out trial's accuracy as a dot by method, one panel a held-out environment.

    A trial's accuracy is the one on its held-out environment (in split), at its best checkpoint by training-domain
    validation; the bar is the mean.
    """
    best = best_checkpoints(records, TRAINING_DOMAIN)
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with duckdb.connect() as db:
        db.register("best", best)
        db.register("runs", records.runs)
        rows = db.execute(
            "select environment, method, accuracy from best join runs using (trial_id) "
            "where dataset = $1 and budget = $2 order by trial_id",
            list(group),
        ).fetchall()
    for environment, method, accuracy in rows:
        values[environment][method].append(100 * accuracy)
    held_out = [e for e in records.environments.get(group[0], ()) if e in values][:_MOST_PANELS]
    return [_dot_panel(f"Held out: {e}", group, values[e], styles, "accuracy (%)") for e in held_out]


def trial_times(trials: pa.Table, group: tuple[str, str], title: str, styles: dict[str, Style]) -> list[Plot]:
    """Plot every completed trial's wall time as a dot by method in one panel; the bar is the median."""
    with duckdb.connect() as db:
        db.register("trials", trials)
        rows = db.execute(
            "select method, seconds from trials where status = 'completed' and isfinite(seconds) "
            "and dataset = $1 and budget = $2 order by trial_id",
            list(group),
        ).fetchall()
    values: dict[str, list[float]] = defaultdict(list)
    for method, seconds in rows:
        values[method].append(seconds)
    if not values:
        return []
    return [_dot_panel(title, group, values, styles, "seconds")]


def _dot_panel(
    title: str,
    group: tuple[str, str],
    values: dict[str, list[float]],
    styles: dict[str, Style],
    unit: str,
) -> Plot:
    seconds = unit == "seconds"
    methods = [m for m in styles if m in values]
    every = [v for m in methods for v in values[m]]
    raster = len(every) > _MOST_VECTOR_DOTS
    centres = {m: (median if seconds else fmean)(values[m]) for m in methods}

    def draw(axes: Axes) -> None:
        for row, method in enumerate(methods):
            style, found = styles[method], values[method]
            # Spread by a hash of the position: even, and the same in every report of the run.
            jitter = [row + 0.5 * (zlib.crc32(f"{method} {i}".encode()) / 2**32 - 0.5) for i in range(len(found))]
            colour = "#808080" if raster and style.colour == _TEXT else style.colour
            axes.scatter(found, jitter, s=13, color=colour, alpha=0.5, linewidths=0, rasterized=raster)
            axes.plot([centres[method]] * 2, [row - 0.36, row + 0.36], color=style.colour, linewidth=2.2)
        if seconds and min(every) > 0 and max(every) > 30 * min(every):
            axes.set_xscale("log")
        elif seconds:
            axes.set_xlim(left=0)
        axes.set_yticks(range(len(methods)), methods, parse_math=False)
        axes.set_ylim(len(methods) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(unit)
        axes.grid(axis="x")

    words = ", ".join(f"{m} {centres[m]:.1f} ({len(values[m])} trials)" for m in methods)
    words = f"{title}: {'median in seconds' if seconds else 'mean accuracy in percent'}: {words}."
    return _render(draw, (4.3, 0.7 + 0.3 * len(methods)), group, title, words)


def _render(
    draw: Callable[[Axes], None], size: tuple[float, float], group: tuple[str, str], title: str, description: str
) -> Plot:
    """Draw one panel and make its SVG fit to stand among others in a page."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Ids are unique on the page and equal in every rendering of the same figure.
    key = f"p{zlib.crc32(f'{group} {title} {description}'.encode()):08x}"
    with matplotlib.rc_context({**_RC, "svg.hashsalt": key}):
        figure: Figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        sink = io.StringIO()
        figure.savefig(sink, format="svg", transparent=True, dpi=160, metadata={"Date": None, "Creator": None})
    return Plot(title, _inline(sink.getvalue(), key, title, description))


def inline_figure(make: Callable[[], Sequence[Any]]) -> list[tuple[Plot, str]]:
    """Draw figures that somebody else makes in the page's look; returns each with its caption.

    Args:
        make: returns objects with `title`, `caption` and a matplotlib `figure`.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    drawn = []
    with matplotlib.rc_context(_RC):
        for named in make():
            key = f"f{zlib.crc32(named.title.encode()):08x}"
            sink = io.StringIO()
            FigureCanvasSVG(named.figure)
            with matplotlib.rc_context({"svg.hashsalt": key}):
                none = {"Date": None, "Creator": None}
                named.figure.savefig(sink, format="svg", transparent=True, dpi=160, metadata=none)
            svg = _inline(sink.getvalue(), key, named.title, named.caption)
            svg = svg.replace("<svg ", f'<svg style="max-width: {7 * named.figure.get_figwidth():g}rem" ', 1)
            drawn.append((Plot(named.title, svg), named.caption))
    return drawn


@contextmanager
def borrowed_pyplot() -> Iterator[None]:
    """Lend pyplot to a library that draws with it, off screen and in the page's look, and leave nothing of it behind.

    Open figures of others, settings and the choice of a backend (that none is chosen yet, too) are as before
    afterwards; what was opened meanwhile is closed. Text is shown as it is: a "$" in a name begins no formula.
    """
    import matplotlib
    import matplotlib.style
    from matplotlib import pyplot

    # rc_context leaves the backend out, and pyplot.switch_backend cannot go back to "none chosen yet", nor to one that
    # cannot be loaded here (MPLBACKEND of a desktop in a job).
    both: tuple[Any, Any] = (matplotlib.rcParams, matplotlib.rcParamsDefault)
    chosen, loaded = [rc._get("backend") for rc in both], pyplot._backend_mod
    library: Any = matplotlib.style.library
    opened, ggplot = pyplot.get_fignums(), library["ggplot"]
    with matplotlib.rc_context({**_RC, "text.parse_math": False, "figure.max_open_warning": 0}):
        try:
            pyplot.switch_backend("agg")
            library["ggplot"] = _RC  # the style that Optuna asks for while it draws
            yield
        finally:
            for number in set(pyplot.get_fignums()) - set(opened):
                pyplot.close(number)
            library["ggplot"] = ggplot
            for rc, backend in zip(both, chosen, strict=True):
                rc._set("backend", backend)
            pyplot._backend_mod = loaded


def _inline(svg: str, key: str, title: str, description: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = svg.replace("url(#", f"url(#{key}-").replace('href="#', f'href="#{key}-')
    svg = svg.replace(_TEXT, "currentColor")
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would apply to the whole page
    svg = re.sub(r'(?<=\s)(?:width|height)="[^"]*"', "", svg, count=2)  # the page decides; the viewBox stays
    names = f'<title id="{key}-t">{escape(title)}</title><desc id="{key}-d">{escape(description)}</desc>'
    head = f'<svg role="img" aria-labelledby="{key}-t" aria-describedby="{key}-d" '
    return re.sub(r"<svg ([^>]*)>", lambda m: f"{head}{m[1]}>{names}", svg, count=1).strip()
