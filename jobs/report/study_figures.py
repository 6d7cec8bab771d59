"""Optuna's own figures of a study (its matplotlib backend), made fit to stand in the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.claims import NamedFigure
from jobs.report.plots import Plot, borrowed_pyplot, inline_figure

if TYPE_CHECKING:
    import optuna
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from optuna.trial import FrozenTrial

_MOST_MARKS = 500  # dots, bars, or four points of a curve; more become a picture inside the SVG
_MOST_CURVES = 250  # below the 256 Pareto ranks that Optuna's parallel coordinates can colour
_MOST_DOTS = 400  # of a slice
_MOST_BARS = 1000
_MOST_SLICES = 12
_MOST_AXES = 10
_FEW = 50  # complete trials; Optuna advises five among the best tenth
_HALF, _THIRD = (4.6, 2.8), (3.2, 2.3)


@dataclass(frozen=True)
class StudyFigures:
    """Figures of one study, each with its caption.

    Args:
        figures: history, importances, Pareto front, intermediate values and timeline, as far as the study has them.
        wide: parallel coordinates, which need the page's width.
        slices: score against parameter, a panel each.
        slices_caption: what all these panels show.
        missing: what could not be drawn, and why.
    """

    figures: list[tuple[Plot, str]]
    wide: list[tuple[Plot, str]]
    slices: list[tuple[Plot, str]]
    slices_caption: str
    missing: list[str]


def study_figures(study: optuna.Study, objectives: Sequence[str], parameters: Sequence[str]) -> StudyFigures:
    """Draw a study, of thousands of trials too, in a few seconds and less than 2 MB.

    Args:
        study: with at least one trial that has ended.
        objectives: their names.
        parameters: names, in the order that they have where none is known to matter more.
    """
    drawer = _Drawer(study, objectives, parameters)
    with borrowed_pyplot():
        return StudyFigures(
            inline_figure(drawer.overview),
            inline_figure(drawer.parallel),
            inline_figure(drawer.slices),
            f"Score against parameter, {drawer.some(drawer.sliced)}: a dot a complete trial{drawer.some_dots}, the stronger "
            "its colour the later it was asked for.",
            drawer.missing,
        )


class _Drawer:
    """What the figures of a study have in common."""

    def __init__(self, study: optuna.Study, objectives: Sequence[str], parameters: Sequence[str]) -> None:
        self.study = study
        self.title = study.study_name
        self.objectives = list(objectives)
        self.trials = study.get_trials(deepcopy=False)
        self.complete = [t for t in self.trials if t.state.name == "COMPLETE" and all(map(math.isfinite, t.values))]
        self.bare = self._study_of([_bare(t) for t in self.trials])
        self.missing: list[str] = []
        if not self.complete:
            self.missing.append(
                "No trial is complete with a finite score, so there is no history, importance or slice to draw."
            )
        self.importances = [self._importances(i) for i in range(len(objectives))]
        first = self.importances[0]
        self.parameters = sorted(_had(parameters, self.complete), key=lambda name: -first.get(name, 0.0))
        self.dots, self.some_dots = self._thin(self.complete, _MOST_DOTS)
        self.sliced = _had(self.parameters, self.dots)[: max(1, _MOST_SLICES // len(objectives))]

    def some(self, shown: Sequence[str]) -> str:
        """Say in words which parameters are shown."""
        if len(shown) == len(self.parameters):
            return "all parameters"
        first = f"most important for {self.objectives[0]}" if self.importances[0] else "first"
        return f"the {len(shown)} {first} of {len(self.parameters)} parameters"

    def _importances(self, objective: int) -> dict[str, float]:
        """Importance by parameter, not scaled; empty if there is none to tell."""
        import optuna

        name = self.objectives[objective]
        if len({t.values[objective] for t in self.complete}) < 2:
            if self.complete:
                self.missing.append(f"No importances for {name}: they need two complete trials with different scores.")
            return {}
        found = optuna.importance.get_param_importances(
            self.study,
            evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
            params=sorted({name for t in self.complete for name in t.params}),
            target=self._to_minimise(objective),
            normalize=False,
        )
        if sum(found.values()) > 0:
            return found
        self.missing.append(f"No importances for {name}: no parameter tells the best trials from the others.")
        return {}

    def _target(self, objective: int) -> Callable[[FrozenTrial], float] | None:
        return None if len(self.objectives) == 1 else lambda trial: trial.values[objective]

    def _to_minimise(self, objective: int) -> Callable[[FrozenTrial], float] | None:
        if len(self.objectives) == 1:
            return None  # there Optuna knows the direction
        sign = 1 if self.study.directions[objective].name == "MINIMIZE" else -1
        return lambda trial: sign * trial.values[objective]

    def overview(self) -> list[NamedFigure]:
        """All figures but those that stand in a grid of their own."""
        found = [self._front()] if self.complete and len(self.objectives) in (2, 3) else []
        for i in range(len(self.objectives)) if self.complete else ():
            found.append(self._history(i))
            if self.importances[i]:
                found.append(self._importance(i))
        if curves := [t for t in self.trials if t.intermediate_values and t.state.name in ("COMPLETE", "PRUNED")]:
            found.append(self._intermediate(curves))
        return [*found, self._timeline()]

    def _front(self) -> NamedFigure:
        from optuna.visualization import matplotlib as draw

        return _named(
            f"{self.title}: Pareto front",
            "Pareto front: no trial is better than a red one in one objective and as good in all others.",
            lambda: draw.plot_pareto_front(self.study, target_names=self.objectives),
            len(self.complete),
            size=(4.6, 3.8) if len(self.objectives) == 3 else _HALF,
        )

    def _history(self, objective: int) -> NamedFigure:
        from optuna.visualization import matplotlib as draw

        name = self.objectives[objective]
        line = " The line is the best so far." if len(self.objectives) == 1 else ""
        return _named(
            f"{self.title}: history of {name}",
            f"History of {name}: a dot a complete trial, in the order of asking.{line}",
            lambda: draw.plot_optimization_history(self.bare, target=self._target(objective), target_name=name),
            len(self.complete),
        )

    def _importance(self, objective: int) -> NamedFigure:
        import optuna
        from optuna.visualization import matplotlib as draw

        name, found = self.objectives[objective], self.importances[objective]
        rough = "; from so few a rough guess" if len(self.complete) < _FEW else ""
        return _named(
            f"{self.title}: importances for {name}",
            f"Importances for {name}: each parameter's share in reaching the best tenth of {len(self.complete):,} complete "
            f"trials (PED-ANOVA){rough}.",
            lambda: draw.plot_param_importances(
                self.study,
                optuna.importance.PedAnovaImportanceEvaluator(),
                params=list(found),
                target=self._to_minimise(objective),
                target_name=name,
            ),
            marks=0,
            size=(4.6, 0.9 + 0.24 * len(found)),
        )

    def _intermediate(self, curves: Sequence[FrozenTrial]) -> NamedFigure:
        from optuna.visualization import matplotlib as draw

        thinned, some = self._thin(curves, _MOST_CURVES)
        part = self._study_of(thinned)
        figure = _named(
            f"{self.title}: intermediate values",
            "Intermediate values: what a trial had reached when it was asked whether to go on, the stronger its colour the later it "
            f"was asked for{some}. Replicates follow one another on the axis.",
            lambda: draw.plot_intermediate_values(part),
            sum(len(t.intermediate_values) for t in thinned) // 4,
        )
        axes = figure.figure.axes[0]
        axes.set_ylabel(self.objectives[0])
        for i, line in enumerate(axes.lines):  # Optuna has twenty colours
            line.set_color(_shades()(i / len(axes.lines)))
        return figure

    def _thin(self, trials: Sequence[FrozenTrial], most: int) -> tuple[Sequence[FrozenTrial], str]:
        """About so many of the trials, evenly chosen, the best among them unless they are many; and words for it."""
        if len(trials) <= most:
            return trials, ""
        best = {t.number for t in self.study.best_trials} if self.complete else set()
        best = best if len(best) <= most // 2 else set()
        step = math.ceil(len(trials) / most)
        thinned = [t for i, t in enumerate(trials) if i % step == 0 or t.number in best]
        return thinned, f" ({len(thinned):,} of {len(trials):,}, {'the best and others ' if best else ''}evenly chosen)"

    def _study_of(self, trials: Sequence[FrozenTrial]) -> optuna.Study:
        import optuna

        part = optuna.create_study(storage=optuna.storages.InMemoryStorage(), directions=self.study.directions)
        part.set_metric_names(self.objectives)
        part.add_trials(trials)
        return part

    def _timeline(self) -> NamedFigure:
        from optuna.visualization import matplotlib as draw

        some = f", the last {_MOST_BARS:,} of {len(self.trials):,}" if len(self.trials) > _MOST_BARS else ""
        return _named(
            f"{self.title}: timeline",
            f"Timeline: when each trial ran{some}.",
            lambda: draw.plot_timeline(self.bare, n_recent_trials=_MOST_BARS),
            len(self.trials),
        )

    def parallel(self) -> list[NamedFigure]:
        """Parallel coordinates of the parameters and all objectives."""
        from optuna.visualization import matplotlib as draw

        if not self.parameters:
            return []
        many = len(self.objectives) > 1
        named: dict[str, Any] = {} if many else {"target_name": self.objectives[0]}
        thinned, some = self._thin(self.complete, _MOST_CURVES)
        study, shown = self._study_of(thinned), _had(self.parameters, thinned)[:_MOST_AXES]
        return [
            _named(
                f"{self.title}: parallel coordinates",
                f"Parallel coordinates, {self.some(shown)}: a line a complete trial{some}, the stronger its "
                f"colour the better{' its Pareto rank' if many else ''}.",
                lambda: draw.plot_parallel_coordinate(study, shown, **named),
                marks=0,  # lines that cover everything make a large picture
                size=(min(9.5, 3 + 1.1 * (len(shown) + len(self.objectives))), 3.4),
                rc={"axes.spines.right": True, "axes.grid": False},
            )
        ]

    def slices(self) -> list[NamedFigure]:
        """Every objective against every parameter that is shown."""
        from optuna.visualization import matplotlib as draw

        study, panels = self._study_of(self.dots), []
        for i, objective in enumerate(self.objectives):
            for name in self.sliced:
                panel = _named(
                    f"{self.title}: {objective} against {name}",
                    "",
                    lambda i=i, objective=objective, name=name: draw.plot_slice(  # type: ignore[misc]
                        study, [name], target=self._target(i), target_name=objective
                    ),
                    len(self.dots),
                    size=_THIRD,
                )
                panel.figure.axes[1].remove()  # the colour bar; the caption says what it would
                panels.append(panel)
        return panels


def _had(parameters: Sequence[str], trials: Sequence[FrozenTrial]) -> list[str]:
    """Those parameters that at least one of the trials has: Optuna refuses to draw others."""
    return [name for name in parameters if any(name in t.params for t in trials)]


def _bare(trial: FrozenTrial) -> FrozenTrial:
    """A trial without its parameters, which history and timeline do not show but copy: half of their time."""
    import optuna

    bare = optuna.trial.create_trial(state=trial.state, values=trial.values)
    bare.datetime_start, bare.datetime_complete = trial.datetime_start, trial.datetime_complete
    return bare


def _named(
    title: str,
    caption: str,
    draw: Callable[[], Any],
    marks: int,
    size: tuple[float, float] = _HALF,
    rc: Mapping[str, Any] | None = None,
) -> NamedFigure:
    """Let Optuna draw, and make the figure fit for the page: light, no title, colours for both schemes."""
    import matplotlib

    look: dict[Any, Any] = {"figure.figsize": size, "figure.constrained_layout.use": True, "axes.grid": True}
    look |= {"axes.axisbelow": True, "lines.markersize": 3.5, "lines.linewidth": 1.2, **(rc or {})}
    with matplotlib.rc_context(look):
        figure: Figure = draw().figure
    figure.set_layout_engine("constrained")  # where Optuna chose another
    for axes in figure.axes:
        _fit(axes)
        if marks > _MOST_MARKS:
            for artist in (*axes.collections, *axes.lines, *axes.patches):
                artist.set_rasterized(True)
    return NamedFigure(title, caption, figure)


def _shades() -> LinearSegmentedColormap:
    """Grey to vermilion, seen on light and dark pages, where one end or the other of Optuna's blues vanishes."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shades", [(0.52, 0.57, 0.62, 0.4), (0.84, 0.37, 0.0, 1.0)])


def _fit(axes: Any) -> None:
    from matplotlib import dates, ticker

    for place in ("left", "center", "right"):
        axes.set_title("", loc=place)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":  # plain numbers instead of formulas
            axis.set_major_formatter(ticker.LogFormatter())
            axis.set_minor_formatter(ticker.LogFormatter(labelOnlyBase=False, minor_thresholds=(1, 0.4)))
        if isinstance(axis.get_major_formatter(), dates.DateFormatter):
            axis.set_major_formatter(dates.ConciseDateFormatter(axis.get_major_locator()))  # type: ignore[no-untyped-call]
            axis.set_tick_params(labelrotation=0)
            axis.set_label_text("time (UTC)")
    shades = _shades()
    for artist in axes.collections:
        if artist.get_array() is not None:
            artist.set_cmap(shades.reversed() if artist.get_cmap().name.endswith("_r") else shades)
    if axes.name == "3d":
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            axis.set_pane_color((0, 0, 0, 0))
    if legend := axes.get_legend():
        handles, labels = legend.legend_handles, [text.get_text() for text in legend.get_texts()]
        legend.remove()
        if 1 < len(labels) <= 4:
            axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, fontsize="small")
