"""What the paper and a prototype state, beside what was measured."""

from __future__ import annotations

import math
from typing import Any

from jobs.claims import Claim, Results, Scale, mean
from jobs.papers.ape.names import (
    CHOSEN,
    CLIP,
    CURATION,
    DEPTH,
    DIGITS,
    FOUR,
    FROZEN,
    ICONS,
    IDENTITIES,
    LINEAR,
    LIT,
    OTHER_STYLE,
    OWN,
    OWN_STYLE,
    PLAIN,
    PROBE,
    RIDGE,
    SHIFTS,
    SHUFFLED,
    SUBCATEGORIES,
    TEXT,
    TWO,
    UNSEEN,
)

_OURS = "ours, prototype"
_LITTLE = "paper: with little data well above CLIP-style training"
_FIVE = "image_to_text_5"


def claims(results: Results, scale: Scale) -> list[Claim]:
    """Each statement beside the figure measured; those on icons where there are icons."""
    made = [*_basics(results), *_digits(results)]
    if scale == "paper" or results.rows(experiment=(ICONS, SUBCATEGORIES, CURATION)):
        made += [*_icons(results), *_rivals(results), *_chosen_icons(results)]
    return made + (_large(results) if scale == "paper" else [])


def _basics(results: Results) -> list[Claim]:
    loss = {name: results.mean(name, experiment=IDENTITIES) for name in ("scale 0", "told apart", "shared", "floor")}
    made = [
        Claim("loss of 256 pairs at scale 0", math.log(256), loss["scale 0"], 1e-5, "derived: log 256"),
        Claim("loss of 256 pairs that agree, at scale 100 in 1,280 dimensions", 1e-6, loss["told apart"], 0.0, _OURS, "at most"),
        Claim("loss of 256 pairs that share 10 captions, at its best", 3.2428, loss["shared"], 1e-4, f"derived; {_OURS}"),
        Claim("the same, less its floor, the mean of log(duplicates)", 0.0, loss["shared"] - loss["floor"], 1e-5, "derived"),
    ]  # fmt: skip
    for layers, count in ((1, 492_800), (2, 1_706_240), (4, 3_805_440)):
        found = mean(results.values("parameters", experiment=IDENTITIES, environment="head", step=layers))
        words = f"trained parameters of a head of {layers} layer{'s' * (layers > 1)} from 384 to 1,280 dimensions"
        made.append(Claim(words, count, found, 0.0, "derived"))
    for sentence, reference in (
        ("That is a happy dog", 0.69458),
        ("That is a very happy person", 0.94291),
        ("Today is a sunny day", 0.25688),
    ):
        found = results.mean(sentence, experiment=TEXT)
        words = f"text encoder: cosine of 'That is a happy person' with {sentence!r}"
        made.append(Claim(words, reference, found, 1e-4, "published with the text encoder"))
    frozen = {
        name: results.mean(name, experiment=FROZEN) for name in ("changed", "alone", "cached", "in training mode")
    }
    largest = results.mean("largest", experiment=FROZEN)
    return [
        *made,
        Claim("image encoder: tensors that an alignment changes", 0.0, frozen["changed"], 0.0, "paper: both encoders are frozen"),
        Claim("image encoder: images alone against 8 at once, largest difference over the largest feature", 1e-5, frozen["alone"] / largest, 0.0, f"{_OURS}: none", "at most"),
        Claim("image encoder: cached against fresh, largest difference over the largest feature", 1e-5, frozen["cached"] / largest, 0.0, f"{_OURS}: 1.1e-5 at a scale of 5.6", "at most"),
        Claim("image encoder in training mode by mistake: cosine with the right vectors", 0.5, frozen["in training mode"], 0.0, f"{_OURS}: 0.19 on icons; the bar is ours", "at most"),
    ]  # fmt: skip


def _digits(results: Results) -> list[Claim]:
    def accuracy(method: str, environment: str = PLAIN) -> float:
        return results.mean("accuracy", experiment=DIGITS, method=method, environment=environment)

    linear, probe = accuracy(LINEAR), accuracy(PROBE)
    seconds = {method: results.mean("seconds", experiment=DIGITS, method=method) for method in (LINEAR, LIT)}
    made = [
        Claim("digits, templates not in training: accuracy of the linear head", 0.934, linear, 0.03, _OURS),
        Claim("digits: accuracy of a linear probe with labels", 0.941, probe, 0.03, _OURS),
        Claim("digits: the probe's accuracy less the linear head's", 0.03, probe - linear, 0.0, f"{_OURS}: 0.007; the bar is ours", "at most"),
        Claim("digits, captions shuffled: accuracy, chance 0.1", 0.2, accuracy(SHUFFLED), 0.0, "derived: chance; the bar is ours", "at most"),
        Claim("digits: LiT's accuracy less the linear head's", 0.0, accuracy(LIT) - linear, 0.05, "ours"),
        Claim("digits: processor time of the linear head over LiT's", 1.0, seconds[LINEAR] / seconds[LIT], 0.0, "ours", "at most"),
    ]  # fmt: skip
    for environment in SHIFTS:
        gap = accuracy(LIT, environment) - accuracy(LINEAR, environment)
        words = f"digits, {environment}: LiT's accuracy less the linear head's"
        made.append(Claim(words, 0.05, gap, 0.0, "paper: within 0.5 points under shift; the bar is ours", "at most"))
    for environment in (PLAIN, *SHIFTS):
        gap = accuracy(LINEAR, environment) - accuracy(CLIP, environment)
        words = "digits" if environment == PLAIN else f"digits, {environment}"
        made.append(
            Claim(f"{words}: linear head's accuracy less that of CLIP from scratch", 0.0, gap, 0.0, _LITTLE, "at least")
        )
    for classes, reference in (("3 8", 0.0), ("7 9", 0.026)):
        at = {"experiment": UNSEEN, "classes": classes}
        words = f"digits {classes.replace(' ', ' and ')} never in training"
        held, others = results.mean("unseen", **at), results.mean("seen", **at)
        made += [
            Claim(f"{words}: ten-way accuracy on them", 0.1, held, 0.0, f"{_OURS}: {reference:.3f}; the bar is chance", "at most"),
            Claim(f"{words}: accuracy on the others", 0.92, others, 0.0, f"{_OURS}: 0.950 to 0.957; the bar is ours", "at least"),
        ]  # fmt: skip
    arms = {
        name: results.mean("accuracy", experiment=CHOSEN, environment=name)
        for name in ("100 relevant", "all irrelevant", "all")
    }
    chosen = "paper: choose pairs that resemble the task; the bar is ours"
    return [
        *made,
        Claim("digits below 5: accuracy from 100 pairs of them less that from all pairs of others", 0.3, arms["100 relevant"] - arms["all irrelevant"], 0.0, chosen, "at least"),
        Claim("digits below 5: accuracy from all pairs less that from 100 pairs of them", 0.05, arms["all"] - arms["100 relevant"], 0.0, chosen, "at most"),
    ]  # fmt: skip


def _recall(results: Results, method: str, style: str = OWN_STYLE, k: int = 5, **at: Any) -> float:
    where: dict[str, Any] = {"experiment": ICONS, "centred": None, **at}
    return results.mean(f"image_to_text_{k}", method=method, environment=style, **where)


def _icons(results: Results) -> list[Claim]:
    made = []
    for method, references in (
        (RIDGE, (0.226, 0.425, 0.541)),
        (LINEAR, (0.251, 0.505, 0.584)),
        (TWO, (0.245, 0.480, 0.563)),
        (FOUR, (0.226, 0.459, 0.563)),
    ):
        for k, reference in zip((1, 5, 10), references, strict=True):
            found = _recall(results, method, k=k)
            made.append(
                Claim(f"icons, {method}: unseen images find their caption, R@{k}", reference, found, 0.05, _OURS)
            )
    linear, other = _recall(results, LINEAR), _recall(results, LINEAR, OTHER_STYLE)
    least = min(results.values(_FIVE, experiment=ICONS, method=LINEAR, environment=OWN_STYLE), default=math.nan)
    made += [
        Claim("icons, linear: R@5 over seeds, least (chance 0.015)", 0.42, least, 0.0, f"{_OURS}; the bar is ours", "at least"),
        Claim("icons, linear: processor seconds", 10.0, results.mean("seconds", experiment=ICONS, method=LINEAR), 0.0, f"{_OURS}: 4.4", "at most"),
        Claim("icons: R@5 of 4 layers less that of one", 0.02, _recall(results, FOUR) - linear, 0.0, f"{_OURS}: -0.046; depth does not help at 1,309 pairs", "at most"),
        Claim("icons, linear, other style: R@5", 0.25, other, 0.0, f"{_OURS}: 0.324; the bar is ours", "at least"),
        Claim("icons, linear: R@5 in the other style less that in the own", 0.0, other - linear, 0.0, f"{_OURS}: -0.181", "at most"),
        Claim("icons, ridge, other style: R@5", 0.355, _recall(results, RIDGE, OTHER_STYLE), 0.05, _OURS),
        Claim("icons, captions shuffled: R@5 (chance 0.015)", 0.05, _recall(results, SHUFFLED), 0.0, f"{_OURS}: 0.028; the bar is ours", "at most"),
        Claim("icons: mean cosine between images", 0.331, _mean_cosine(results, None), 0.02, _OURS),
        Claim("icons: the same, centred with the training's mean", 0.002, _mean_cosine(results, True), 0.01, _OURS),
    ]  # fmt: skip
    for method in (LINEAR, RIDGE):
        gain = _recall(results, method, centred=True) - _recall(results, method)
        made.append(Claim(f"icons, {method}: R@5 centred less raw", 0.0, gain, 0.05, f"{_OURS}: no need"))
    strict = {"experiment": SUBCATEGORIES}
    for k, reference in zip((1, 5, 10), (0.050, 0.151, 0.236), strict=True):
        found = _recall(results, LINEAR, k=k, **strict)
        words = f"icons, 20 subcategories held out, linear: R@{k}"
        made.append(Claim(words, reference, found, 0.05, f"{_OURS}; which are held out differs"))
    return made


def _mean_cosine(results: Results, centred: bool | None) -> float:
    return results.mean("cosine", experiment=ICONS, method=LINEAR, centred=centred)


def _rivals(results: Results) -> list[Claim]:
    cost = {
        (name, method): results.mean(name, experiment=ICONS, method=method, environment="cost", centred=None)
        for name in ("parameters", "seconds")
        for method in (LINEAR, LIT)
    }
    shifted = _recall(results, LIT, OTHER_STYLE) - _recall(results, LINEAR, OTHER_STYLE)
    made = [
        Claim("icons: LiT's R@5 less the linear head's", 0.0, _recall(results, LIT) - _recall(results, LINEAR), 0.08, f"{_OURS}: -0.034"),
        Claim("icons, other style: LiT's R@5 less the linear head's", 0.08, shifted, 0.0, f"{_OURS}: 0.022; the bar is ours", "at most"),
        Claim("icons: trained parameters, linear head over LiT", 0.03, cost["parameters", LINEAR] / cost["parameters", LIT], 0.0, f"{_OURS}: 0.02", "at most"),
        Claim("icons: processor time, linear head over LiT", 0.12, cost["seconds", LINEAR] / cost["seconds", LIT], 0.0, f"{_OURS}: 0.06; the bar is ours", "at most"),
    ]  # fmt: skip
    for words, experiment, style in (
        ("icons", ICONS, OWN_STYLE),
        ("icons, other style", ICONS, OTHER_STYLE),
        ("icons, 20 subcategories held out", SUBCATEGORIES, OWN_STYLE),
    ):
        ours, other = (_recall(results, way, style, experiment=experiment) for way in (LINEAR, CLIP))
        gap = ours - other
        made.append(
            Claim(f"{words}: linear head's R@5 less that of CLIP from scratch", 0.0, gap, 0.0, _LITTLE, "at least")
        )
    return made


def _chosen_icons(results: Results) -> list[Claim]:
    arms = {
        name: results.values(_FIVE, experiment=CURATION, environment=name)
        for name in ("200 relevant", "200 irrelevant", "all irrelevant", "all", "200 by similarity")
    }
    made = [
        Claim(f"curation: mean R@5 from {name} pairs (chance 0.056)", reference, mean(arms[name]), 0.06, _OURS)
        for name, reference in (("200 relevant", 0.280), ("200 irrelevant", 0.131), ("all irrelevant", 0.187), ("all", 0.293))
    ]  # fmt: skip
    gaps = [a - b for a, b in zip(arms["200 relevant"], arms["all irrelevant"], strict=False)]
    chosen = "paper: choose pairs that resemble the task"
    return [
        *made,
        Claim("curation: mean R@5 from 200 relevant pairs less that from all others", 0.03, mean(gaps), 0.0, f"{chosen}; the bar is ours", "at least"),
        Claim("curation: the same in the worst seed", 0.0, min(gaps, default=math.nan), 0.0, f"{_OURS}: above in every seed", "at least"),
        Claim("curation: mean R@5 from all pairs less that from 200 relevant ones", 0.02, mean(arms["all"]) - mean(arms["200 relevant"]), 0.0, f"{_OURS}: 0.013", "at most"),
        Claim("curation by similarity to the classes' names: mean R@5 less that from all irrelevant pairs", 0.03, mean(arms["200 by similarity"]) - mean(arms["all irrelevant"]), 0.0, "ours", "at least"),
    ]  # fmt: skip


def _large(results: Results) -> list[Claim]:
    def recall(layers: int, pairs: int) -> float:
        return results.mean(_FIVE, experiment=DEPTH, layers=layers, pairs=pairs)

    made = [
        Claim(f"icons, {pairs} pairs: R@5 of 4 layers less that of one", 0.02, recall(4, pairs) - recall(1, pairs), 0.0, "ours: few pairs need no depth", "at most")
        for pairs in (200, 1309)
    ]  # fmt: skip
    if results.rows(experiment=OWN):
        own = {layers: results.mean(_FIVE, experiment=OWN, method="head", layers=layers) for layers in (1, 2, 4, 6)}
        shuffled = results.mean(_FIVE, experiment=OWN, method=SHUFFLED)
        deep = max(own[layers] for layers in (4, 6))
        made += [
            Claim("your pairs: R@5 of the linear head less that with captions shuffled", 0.0, own[1] - shuffled, 0.0, "derived: shuffled captions teach nothing", "at least"),
            Claim("your pairs: R@5 of 4 or 6 layers less that of one", 0.0, deep - own[1], 0.0, "paper: heads of 4 to 6 layers", "at least"),
        ]  # fmt: skip
    return made
