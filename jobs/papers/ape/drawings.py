"""The figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.claims import NamedFigure, Results
from jobs.drawing import panels
from jobs.papers.ape.names import (
    ARMS,
    CLIP,
    CURATION,
    DIGITS,
    FOUR,
    ICONS,
    LINEAR,
    LIT,
    MEANS,
    OTHER_STYLE,
    OWN_STYLE,
    PLAIN,
    PROBE,
    RIDGE,
    SHIFTS,
    SHUFFLED,
    TARGETS,
    TEST,
    TWO,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
_WAYS = (RIDGE, LINEAR, TWO, FOUR, LIT, CLIP, SHUFFLED)


def figures(results: Results) -> list[NamedFigure]:
    """Draw recall and its cost on icons, curation, and accuracy on digits, as far as they are measured."""
    drawn = []
    if results.rows(experiment=ICONS):
        words = (
            "Left: share of 327 unseen icons whose own caption is among the five nearest, in the drawing style that was trained on and "
            "in another; the line is chance. Right: the same against processor time. A linear map of frozen vectors costs least."
        )
        drawn.append(NamedFigure("Recall of icons, and its cost", words, _icons(results)))
    if results.rows(experiment=CURATION):
        words = (
            "Recall at 5 among 90 unseen icons of animals, nature, food and drink, by the pairs that were trained on; a dot a seed, the "
            "line is chance. 200 pairs of these kinds do more than all of other kinds together."
        )
        drawn.append(NamedFigure("Which pairs", words, _curation(results)))
    if results.rows(experiment=DIGITS):
        words = (
            "Accuracy among ten digits by prompts that are not in training, on digits like those trained on and under shift. "
            "The first two see labels, the others captions."
        )
        drawn.append(NamedFigure("Digits told apart by prompts", words, _digits(results)))
    return drawn


def _icons(results: Results) -> Figure:
    figure, (left, right) = panels(2, size=(9.6, 3.8))
    for at, style in enumerate((OWN_STYLE, OTHER_STYLE)):
        values = [_recall(results, way, style) for way in _WAYS]
        left.bar([x + 0.4 * at - 0.2 for x in range(len(_WAYS))], values, 0.4, color=_COLOURS[at], label=style)
    left.axhline(5 / TEST, color="black", linewidth=0.8, linestyle=":")
    left.set_xticks(range(len(_WAYS)), [way.replace(" ", "\n", 1) for way in _WAYS], fontsize="small")
    left.set_ylabel("R@5, image to text")
    left.legend(fontsize="small")
    for at, way in enumerate(_WAYS[:-1]):
        seconds = results.mean("seconds", experiment=ICONS, method=way, environment="cost", centred=None)
        right.scatter([seconds], [_recall(results, way, OWN_STYLE)], color=_COLOURS[at], label=way)
    right.set_xscale("log")
    right.set_xlabel("processor seconds of the training")
    right.set_ylim(bottom=0)
    right.legend(fontsize="small", loc="lower right")
    return figure


def _recall(results: Results, way: str, style: str) -> float:
    return results.mean("image_to_text_5", experiment=ICONS, method=way, environment=style, centred=None)


def _curation(results: Results) -> Figure:
    figure, (axes,) = panels(size=(6.4, 3.6))
    for at, arm in enumerate(ARMS):
        values = results.values("image_to_text_5", experiment=CURATION, environment=arm)
        axes.bar([at], [sum(values) / max(1, len(values))], color=_COLOURS[at], alpha=0.6)
        axes.scatter([at] * len(values), values, color="black", s=8, zorder=3)
    axes.axhline(5 / TARGETS, color="black", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(ARMS)), [arm.replace(" ", "\n", 1) for arm in ARMS], fontsize="small")
    axes.set_ylabel("R@5, image to text")
    return figure


def _digits(results: Results) -> Figure:
    figure, (axes,) = panels(size=(8.6, 3.6))
    ways, environments = (PROBE, MEANS, RIDGE, LINEAR, LIT, CLIP), (PLAIN, *SHIFTS)
    for at, way in enumerate(ways):
        values = [results.mean("accuracy", experiment=DIGITS, method=way, environment=e) for e in environments]
        places = [x + 0.13 * (at - 2.5) for x in range(len(environments))]
        axes.bar(places, values, 0.13, color=_COLOURS[at], label=way)
    axes.axhline(0.1, color="black", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(environments)), environments)
    axes.set_ylabel("accuracy")
    axes.legend(fontsize="small", ncols=2)
    return figure
