"""Certified accuracy against the number of flipped labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs.claims import NamedFigure, Results
from jobs.papers.label_flip_certification.plans import (
    FEATURE_SCALES,
    FEATURES,
    HEAVY,
    NO_DEFENCE,
    QS,
    SCALES,
    SPARSE,
    TASKS,
    TEN_QS,
    UNDEFENDED,
    WHITE_BOX,
    Setting,
    greedy,
    ridge,
    votes,
)
from jobs.papers.label_flip_certification.tally import Tally

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_PLAIN, _ATTACKED, _VOTES = "#7f7f7f", "#8c564b", "#e69f00"


def draw(results: Results) -> list[NamedFigure]:
    """Draw the figures that the results have curves for."""
    tally = Tally(results)
    figures = [_by_noise(tally), _under_attack(tally), _by_parts(tally), _other_data(tally), _by_features(tally)]
    figures += [_task(tally, data) for data in TASKS]
    return [f for f in figures if any(axes.lines for axes in f.figure.axes)]


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.6, 4.4 * count), 4.6), layout="constrained")
    return figure, list(figure.subplots(1, count, sharey=True, squeeze=False)[0])


def _line(axes: Axes, tally: Tally, metric: str, setting: Setting, q: float | None = None, **look: Any) -> None:
    """Draw one curve; none where the setting was not run."""
    steps, shares = tally.curve(metric, setting, q)
    if steps:
        axes.plot(steps, shares, drawstyle="steps-pre", linewidth=1.4, **look)


def _finish(axes: Axes, title: str) -> None:
    axes.set_xscale("symlog", linthresh=10)
    axes.set(xlabel="flipped training labels", ylim=(0, 1), title=title)
    axes.title.set_fontsize("medium")
    axes.set_xlim(left=0)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(fontsize="small", frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def _by_noise(tally: Tally) -> NamedFigure:
    figure, panels = _panels(2)
    for axes, lam in zip(panels, (SPARSE, HEAVY), strict=True):
        setting = ridge("MNIST17", lam=lam)
        for q, colour in zip(QS, _COLOURS, strict=False):
            _line(axes, tally, "np", setting, q, color=colour, label=f"q = {q:g}, tight")
        _line(axes, tally, "kl", setting, QS[0], color=_COLOURS[0], linestyle=":", label=f"q = {QS[0]:g}, closed form")
        _line(axes, tally, "exact", setting, color=_PLAIN, linestyle="--", label="plain ridge, exact")
        _finish(axes, f"lam = {lam:g}")
    panels[0].set_ylabel("certified accuracy")
    return NamedFigure(
        "Ones and sevens: certified accuracy against flipped labels, by noise rate",
        "800 training digits, 200 test digits, 50 principal components. A larger penalty survives more flips at little "
        "accuracy. On so few training labels the smallest noise rate certifies most. Ridge regression without any noise, "
        "certified exactly, is above every curve.",
        figure,
    )


def _under_attack(tally: Tally) -> NamedFigure:
    figure, (axes,) = _panels(1)
    setting = ridge("MNIST17", lam=HEAVY)
    for lam, look in ((UNDEFENDED, "-"), (SPARSE, "--")):
        name = "undefended" if lam == UNDEFENDED else "plain ridge"
        label = f"{name} (lam = {lam:g}), attacked"
        _line(axes, tally, "attacked", greedy(lam), color=_ATTACKED, linestyle=look, label=label)
    for metric, look, kind in (("np", "-", "tight"), ("kl", ":", "closed form")):
        label = f"smoothed (lam = {HEAVY:g}, q = {QS[0]:g}), {kind}"
        _line(axes, tally, metric, setting, QS[0], color=_COLOURS[0], linestyle=look, label=label)
    _line(axes, tally, "exact", setting, color=_PLAIN, linestyle="--", label=f"plain ridge (lam = {HEAVY:g}), exact")
    _finish(axes, "ones and sevens")
    axes.set_ylabel("accuracy")
    return NamedFigure(
        "Accuracy left by the worst attack, and accuracy certified",
        "The greedy attack flips, for each test digit, the labels that hurt it most. At the size that leaves the "
        "undefended classifier nothing, the smoothed one keeps most of its accuracy; so does plain ridge regression with "
        "the same penalty.",
        figure,
    )


def _by_parts(tally: Tally) -> NamedFigure:
    figure, (axes,) = _panels(1)
    for parts, colour in zip((25, 100, 200, 400), _COLOURS[1:], strict=False):
        _line(axes, tally, "votes", votes("MNIST17", parts, 100.0), color=colour, label=f"SS-DPA, {parts} parts")
        white = votes("MNIST17", parts, 100.0, method=WHITE_BOX)
        _line(axes, tally, "votes", white, color=colour, linestyle=":", label=f"the same, white box ({parts})")
    setting = ridge("MNIST17", lam=SPARSE)
    _line(axes, tally, "np", setting, QS[0], color=_COLOURS[0], label=f"smoothed, q = {QS[0]:g}, tight")
    _line(axes, tally, "exact", setting, color=_PLAIN, linestyle="--", label="plain ridge, exact")
    _finish(axes, "ones and sevens, lam = 100")
    axes.set_ylabel("certified accuracy")
    return NamedFigure(
        "Partition ensembles certify further",
        "Every flip reaches one part alone, so many small parts survive many flips. Counting what each vote costs (white "
        "box) helps where parts are large.",
        figure,
    )


def _other_data(tally: Tally) -> NamedFigure:
    figure, panels = _panels(2)
    shown = (
        (ridge("MNIST", lam=SPARSE), TEN_QS, [votes("MNIST", k, 100.0) for k in (50, 400)], "ten digits, lam = 100"),
        (
            ridge("BreastCancer", "raw", 1000.0),
            QS[:3],
            [votes("BreastCancer", k, 10.0, "raw") for k in (25, 200)],
            "breast cancer, lam = 1000 (SS-DPA 10)",
        ),
    )
    for axes, (setting, qs, ensembles, title) in zip(panels, shown, strict=True):
        for q, colour in zip(qs, _COLOURS, strict=False):
            _line(axes, tally, "np", setting, q, color=colour, label=f"q = {q:g}, tight")
        _line(axes, tally, "exact", setting, color=_PLAIN, linestyle="--", label="plain ridge, exact")
        for ensemble, look in zip(ensembles, ("-", ":"), strict=True):
            label = f"SS-DPA, {ensemble.parts} parts"
            _line(axes, tally, "votes", ensemble, color=_VOTES, linestyle=look, label=label)
        _finish(axes, title)
    panels[0].set_ylabel("certified accuracy")
    return NamedFigure(
        "Ten digits, and a table",
        "4,000 training digits and 300 test digits; 455 and 114 rows of the breast cancer table, standardised.",
        figure,
    )


def _by_features(tally: Tally) -> NamedFigure:
    figure, panels = _panels(len(FEATURE_SCALES))
    for axes, scale in zip(panels, FEATURE_SCALES, strict=True):
        for features, colour in zip(FEATURES, _COLOURS, strict=False):
            setting = ridge("MNIST17", features, lam_scale=scale)
            _line(axes, tally, "np", setting, QS[0], color=colour, label=f"{features}, tight")
            _line(axes, tally, "exact", setting, color=colour, linestyle=":")
        _finish(axes, f"lam = {scale:g} trace/k")
    panels[0].set_ylabel("certified accuracy")
    return NamedFigure(
        "Ones and sevens, by features that no label enters",
        "q = 0.05; dotted: plain ridge regression, exact. The penalty is a multiple of the features' mean scatter. With "
        "fewer directions a prediction rests on more labels and survives more flips.",
        figure,
    )


def _task(tally: Tally, data: str) -> NamedFigure:
    task = TASKS[data]
    figure, panels = _panels(len(SCALES))
    for axes, scale in zip(panels, SCALES, strict=True):
        setting = ridge(data, task.features, lam_scale=scale)
        for q, colour in zip(task.qs, _COLOURS, strict=False):
            _line(axes, tally, "np", setting, q, color=colour, label=f"q = {q:g}, tight")
            _line(axes, tally, "kl", setting, q, color=colour, linestyle=":")
        _line(axes, tally, "exact", setting, color=_PLAIN, linestyle="--", label="plain ridge, exact")
        undefended = ridge(data, task.features, lam_scale=NO_DEFENCE)
        _line(axes, tally, "exact", undefended, color=_ATTACKED, label="undefended, worst attack")
        for parts, look in zip(task.parts, ("-", "--", ":"), strict=False):
            setting = votes(data, parts, features=task.features)
            _line(axes, tally, "votes", setting, color=_VOTES, linestyle=look, label=f"SS-DPA, {parts} parts")
        _finish(axes, f"lam = {scale:g} trace/k")
    panels[0].set_ylabel("certified accuracy")
    return NamedFigure(
        f"{task.title}: certified accuracy against flipped labels",
        f"Features of the file {data}; dotted: closed form of the curve in the same colour. The undefended classifier is "
        "ridge regression almost without a penalty, under the worst attack on each test point.",
        figure,
    )
