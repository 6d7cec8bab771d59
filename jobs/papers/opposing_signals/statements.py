"""The claims."""

from __future__ import annotations

import math
from statistics import median

from jobs.claims import Claim, Relation, Results, Scale, mean, most
from jobs.papers.opposing_signals.linear_statements import exact, least_of
from jobs.papers.opposing_signals.names import FOLLOWED, LATE, MODES, MOVED, NATURAL, OPTIMIZERS, PLANTED, SETTLED

_PROTOTYPE = "ours, reference prototype"
_MEMORY = "paper, from memory; threshold ours"
_SIGNAL = {"experiment": PLANTED, "m": 30, "magnitude": 10.0}
_STABLE = 10.0
"""2 / eta of the planted runs."""


def claims(results: Results, scale: Scale) -> list[Claim]:
    """State the claims, measured over whatever seeds the scale has; those of the sweep only where it has been run."""
    made = [
        *exact(results),
        *_sharpness(results),
        *_groups(results),
        *_selectors(results),
        *_natural(results, "Digits"),
        *_natural(results, "MNIST"),
        *_optimizers(results),
    ]
    return made + (_sweep(results) if results.rows(experiment=PLANTED, magnitude=20.0) else [])


def _largest(results: Results, mode: str, **at: object) -> list[float]:
    """Largest sharpness over 2 / eta of each seed."""
    rows = results.rows(metric="sharpness over 2/eta", method=mode, **{**_SIGNAL, **at})
    return [max(row["value"] for row in rows if row["seed"] == seed) for seed in sorted({row["seed"] for row in rows})]


def _sharpness(results: Results) -> list[Claim]:
    largest = {mode: _largest(results, mode) for mode in MODES}
    late = {}
    for mode in MODES:
        rows = results.rows(metric="sharpness over 2/eta", method=mode, **_SIGNAL)
        settled = [row for row in rows if row["step"] >= SETTLED]
        seeds = sorted({row["seed"] for row in settled})
        late[mode] = [median(row["value"] for row in settled if row["seed"] == seed) for seed in seeds]
    ratios = [one / other for one, other in zip(largest["opposing"], largest["same"], strict=False)]
    words = {"opposing": "opposing", "same": "one class", "none": "no signal"}
    made = [
        Claim(
            f"planted digits, {words[mode]}: largest sharpness, mean",
            middle,
            _STABLE * mean(largest[mode]),
            spread,
            _PROTOTYPE,
        )
        for mode, middle, spread in (("opposing", 11.8, 0.4), ("same", 3.5, 0.9), ("none", 2.55, 0.15))
    ]
    median_words = f"median sharpness over 2 / eta after step {SETTLED}"
    return [
        *made,
        _least(f"planted digits, opposing: {median_words}", 0.85, late["opposing"], _PROTOTYPE),
        _most(f"planted digits, opposing: {median_words}", 1.1, late["opposing"], _PROTOTYPE),
        _most(f"planted digits, controls: {median_words}", 0.25, [*late["same"], *late["none"]], _PROTOTYPE),
        _least("planted digits: largest sharpness, opposing signals over one class", 2.4, ratios, _PROTOTYPE),
    ]


def _groups(results: Results) -> list[Claim]:
    def values(metric: str, mode: str = "opposing") -> list[float]:
        return results.values(metric, **_SIGNAL, method=mode, environment="")

    moving = f"steps that move both groups' losses by more than {MOVED}"
    rising = mean(values("fraction up when the loss rises"))
    mass = mean(values("mass of the first layer"))
    return [
        _least(
            "planted digits: share of the 20 that rise most that is planted",
            0.9,
            values("precision of the risers"),
            _PROTOTYPE,
        ),
        _least(
            "planted digits: share of the 20 that fall most that is planted",
            0.9,
            values("precision of the fallers"),
            _PROTOTYPE,
        ),
        _least(
            f"planted digits, {moving}: share of both that is planted",
            0.9,
            values("precision while groups move"),
            "ours",
        ),
        _least(
            "planted digits: share of steps at which the groups' losses move in opposite directions",
            0.95,
            values("groups oppose"),
            _MEMORY,
        ),
        _least(
            "planted digits: share of steps after which a group's loss turns round",
            0.95,
            values("groups alternate"),
            _MEMORY,
        ),
        _least("planted digits: overlap of the risers with the next step's fallers", 0.9, values("overlap"), _MEMORY),
        _least(f"planted digits, {moving}: that overlap", 0.9, values("overlap while groups move"), "ours"),
        _most("planted digits: cosine of the groups' gradients", -0.9, values("cosine of the groups"), _PROTOTYPE),
        _least(
            "planted digits, one class: cosine of the groups' gradients",
            0.9,
            values("cosine of the groups", "same"),
            _PROTOTYPE,
        ),
        _least(
            "planted digits: alignment of a group's gradient with the sharpest direction",
            0.9,
            values("alignment with the sharpest direction"),
            _PROTOTYPE,
        ),
        _most(
            "planted digits, one class: that alignment",
            0.35,
            values("alignment with the sharpest direction", "same"),
            _PROTOTYPE,
        ),
        Claim(
            "planted digits: share of all examples that rise when the mean loss does",
            0.475,
            rising,
            0.125,
            "paper, from memory: about half; tolerance ours",
        ),
        Claim(
            "planted digits: share of the sharpest direction in the first layer, mean",
            0.5,
            mass,
            0.0,
            _MEMORY,
            "at least",
        ),
        _least(
            f"planted digits: share of steps after {LATE} after which the probability of a class for the plain signal turns round",
            0.95,
            values("plain image alternates"),
            _MEMORY,
        ),
    ]


def _selectors(results: Results) -> list[Claim]:
    def precision(name: str) -> float:
        return results.mean("precision", **_SIGNAL, method="opposing", environment=name)

    made = []
    for name in ("loss", "gradient norm", "sharpest direction"):
        gain = precision("change of loss") - precision(name)
        words = f"planted digits: share of 40 that is planted, chosen by change of loss, minus chosen by {name}"
        made.append(Claim(words, 0.05, gain, 0.0, "ours", "at least"))
    return made


def _natural(results: Results, images: str) -> list[Claim]:
    at = {"experiment": NATURAL, "method": images}
    curve = [row["value"] for row in results.rows(metric="sharpness over 2/eta", **at) if row["step"] >= LATE]
    what = {"Digits": "digits", "MNIST": "5,000 MNIST digits"}[images] + " as they are, squared loss"
    groups = f"groups that step {LATE} finds, over the next {FOLLOWED} steps"

    def claim(words: str, reference: float, metric: str, source: str, relation: Relation = "at least") -> Claim:
        return Claim(f"{what}: {words}", reference, results.mean(metric, **at, environment=""), 0.0, source, relation)

    up = results.mean("fraction up", **at)
    return [
        Claim(f"{what}: median sharpness over 2 / eta after step {LATE}", 1.0, _median(curve), 0.15, _MEMORY),
        claim(f"{groups}: share at which they oppose each other", 0.9, "groups oppose", _MEMORY),
        claim(f"{groups}: share after which a group's loss turns round", 0.9, "alternate", _MEMORY),
        claim("overlap of the risers with the next step's fallers", 0.7, "overlap", _MEMORY),
        Claim(
            f"{what}: share of all examples that rise in a step",
            0.475,
            up,
            0.125,
            "paper, from memory: about half; tolerance ours",
        ),
        claim("cosine of the gradients of the groups found", -0.5, "cosine of the groups", _MEMORY, "at most"),
        claim("share of the sharpest direction in the first layer", 0.5, "mass of the first layer", _MEMORY),
    ]


def best_setting(results: Results, name: str, mode: str) -> tuple[str, float]:
    """The setting of an optimizer whose mean final loss over seeds is least, and that loss; NaN where there is none."""
    at = {"experiment": OPTIMIZERS, "method": name, "mode": mode}
    rows = results.rows(metric="final", **at)
    seeds = {row["seed"] for row in rows}
    finals: dict[str, list[float]] = {}
    for row in rows:
        finals.setdefault(row["environment"], []).append(row["value"])
    # A setting that diverges with a seed has no figure there, and is not the best.
    means = [(mean(values), setting) for setting, values in finals.items() if len(values) == len(seeds)]
    loss, setting = min(means, default=(math.nan, ""))
    return setting, loss


def _optimizers(results: Results) -> list[Claim]:
    references = {"SGD": (0.024, 0.0004), "Adam": (0.014, 0.0004), "SplitSGD": (0.022, 0.002)}
    loss = {(name, mode): best_setting(results, name, mode)[1] for name in references for mode in ("opposing", "none")}
    made = []
    for name, pair in references.items():
        for mode, reference in zip(("opposing", "none"), pair, strict=True):
            words = "with the signal" if mode == "opposing" else "without it"
            spread = 0.01 if mode == "opposing" else 0.002
            what = f"mini-batches of 128, {words}: training loss, best {name}"
            made.append(Claim(what, reference, loss[name, mode], spread, f"{_PROTOTYPE}; tolerance ours"))
    with_signal = {name: loss[name, "opposing"] for name in references}
    apart = loss["Adam", "none"] - loss["SGD", "none"]
    close = "paper, from memory: close; threshold ours"
    what = "mini-batches of 128, with the signal"
    return [
        *made,
        Claim(
            f"{what}: Adam's loss over SGD's", 0.8, with_signal["Adam"] / with_signal["SGD"], 0.0, _PROTOTYPE, "at most"
        ),
        Claim("mini-batches of 128, without it: Adam's loss minus SGD's", 0.0, apart, 0.002, _PROTOTYPE),
        Claim(
            f"{what}: SplitSGD's loss over Adam's",
            1.25,
            with_signal["SplitSGD"] / with_signal["Adam"],
            0.0,
            close,
            "at most",
        ),
    ]


def _sweep(results: Results) -> list[Claim]:
    made = []
    for m in (10, 30, 60):
        sizes = [mean(_largest(results, "opposing", m=m, magnitude=magnitude)) for magnitude in (20.0, 2.5)]
        words = f"planted digits, {m} in a group: largest sharpness, signal of length 20 over one of length 2.5"
        made.append(Claim(words, 1.0, sizes[0] / sizes[1], 0.0, "ours", "at least"))
    return made


def _least(name: str, reference: float, values: list[float], source: str) -> Claim:
    return Claim(f"{name}, least", reference, least_of(values), 0.0, source, "at least")


def _most(name: str, reference: float, values: list[float], source: str) -> Claim:
    return Claim(f"{name}, largest", reference, most(values), 0.0, source, "at most")


def _median(values: list[float]) -> float:
    return median(values) if values else math.nan
