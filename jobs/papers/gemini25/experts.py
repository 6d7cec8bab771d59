"""Sparse mixture of experts: facts that a decoder holds at the cost of a small one, and how evenly its experts are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.trial import Trial
from jobs.claims import Claim, MetricRow, NamedFigure, Results, Scale, cell, least, mean, most, settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IDENTITIES, MEMORY, FEW = "gemini25/expert_identities", "gemini25/expert_memory", "gemini25/expert_few_facts"
EXPERIMENTS = (IDENTITIES, MEMORY, FEW)

_SMALL, _LARGE = 64, 512
"""Hidden units of dense networks: as many as a token of the mixture uses, and as many as it has in all."""
_BALANCE = 0.01
_TRAINED: dict[str, Any] = {"lr": 1e-3, "init_std": 0.1}
_MEMORY: dict[str, Any] = {**_TRAINED, "domains": 192, "steps": 600}
_PROTOTYPE = "ours, prototype"
_DERIVED = "derived, closed form"


def plan(scale: Scale) -> list[Trial]:
    """Cells; the paper scale has more seeds and more facts."""
    paper = scale == "paper"
    cells = [cell(IDENTITIES, "experts", seed) for seed in range(10 if paper else 5)]
    for seed in range(5 if paper else 2):
        cells += _compared(MEMORY, seed, _MEMORY)
    cells.append(cell(FEW, "dense", 0, **_TRAINED, domains=64, steps=400, hidden=_SMALL))
    if paper:
        for domains, steps in ((512, 1500), (1024, 3000)):
            cells += _compared(MEMORY, 0, {**_TRAINED, "domains": domains, "steps": steps})
    return cells


def _compared(experiment: str, seed: int, values: dict[str, Any]) -> list[Trial]:
    dense = [cell(experiment, "dense", seed, **values, hidden=hidden) for hidden in (_SMALL, _LARGE)]
    return dense + [cell(experiment, "experts", seed, **values, hidden=_SMALL, balance=b) for b in (0.0, _BALANCE)]


def run(trial: Trial) -> list[MetricRow]:
    """Compute one cell."""
    from jobs.papers.gemini25 import experts_cells as cells

    if trial.dataset == IDENTITIES:
        return cells.identities(trial.seed)
    return cells.memory(trial.method, trial.seed, **settings(trial))


def claims(results: Results, scale: Scale) -> list[Claim]:
    """What the report states of its architecture, beside a mixture that memorises facts."""
    return [*_memory(results), *_identities(results)]


def _memory(results: Results) -> list[Claim]:
    at: dict[str, Any] = {"experiment": MEMORY, "domains": _MEMORY["domains"]}
    mixture = {"method": "experts", "balance": _BALANCE}

    def seeds(metric: str, **more: Any) -> list[float]:
        return results.values(metric, **{**at, **more})

    known, small, large = (
        seeds("accuracy", **how)
        for how in (mixture, {"method": "dense", "hidden": _SMALL}, {"method": "dense", "hidden": _LARGE})
    )
    parameters = results.mean("parameters", **at, **mixture) / results.mean(
        "parameters", **at, method="dense", hidden=_SMALL
    )
    even, uneven = (seeds("load_entropy", method="experts", balance=b) for b in (_BALANCE, 0.0))
    crowded = {b: seeds("fullest", method="experts", balance=b) for b in (_BALANCE, 0.0)}
    few = results.mean("accuracy", experiment=FEW)
    return [
        Claim(
            "6,144 facts: share that 16 experts know at the cost of a small dense network, above what that network knows, least",
            0.1, least(_gaps(known, small)), 0.0, f"{_PROTOTYPE}: 0.968 and 0.437 of 2,048 facts", "at least",
            stated="sparse mixture of experts: each token is routed to a subset of the experts, which decouples total capacity from the "
            "cost of a token; no sizes are published. Serving costs of large models cannot be shown here: 0.2 M parameters memorise facts.",
        ),
        Claim("6,144 facts: share known by 16 experts, two a token, least", 0.9, least(known), 0.0, f"{_PROTOTYPE}: 0.968 of 2,048 facts", "at least"),
        Claim("6,144 facts: share known by a dense network of all experts' width, above the mixture's, least", 0.0, least(_gaps(large, known)), 0.0, f"{_PROTOTYPE}: 0.999 and 0.968", "at least"),
        Claim("parameters of the mixture over those of the small dense decoder", 2.8, parameters, 0.3, f"{_PROTOTYPE}: 2.8"),
        Claim("load entropy with the balance loss, least layer", 0.98, least(even), 0.0, f"{_PROTOTYPE}: 0.994 and 0.997, bar 0.98", "at least"),
        Claim("load entropy with the balance loss, above that without, mean", 0.0, mean(even) - mean(uneven), 0.0, f"{_PROTOTYPE}: 0.03 to 0.1", "at least"),
        Claim("6,144 facts: fullest expert without the balance loss, over an even share, most crowded layer", 2.0, most(crowded[0.0]), 0.0, f"{_PROTOTYPE}: 4.4 and 8.0", "at least"),
        Claim("6,144 facts: the same with the balance loss", 2.2, most(crowded[_BALANCE]), 0.0, f"{_PROTOTYPE}: 1.3 and 2.0", "at most"),
        Claim("2,048 facts: share known by the small dense network after 400 steps", 0.437, few, 0.2, _PROTOTYPE),
    ]  # fmt: skip


def _identities(results: Results) -> list[Claim]:
    def found(metric: str) -> list[float]:
        return results.values(metric, experiment=IDENTITIES)

    return [
        Claim("equal experts: largest difference from one dense network, float32", 1e-6, most(found("difference")), 0.0, f"derived: none but rounding; {_PROTOTYPE}: 2.4e-7", "at most"),
        Claim("router of zeros: balance loss", 1.0, most(found("balance")), 0.0, _DERIVED),
        Claim("capacity factor experts / per token: share dropped, most", 0.0, most(found("dropped_full")), 0.0, _DERIVED),
        Claim("capacity factor 1, 63 random tokens: share dropped, mean", 0.079, mean(found("dropped_even")), 0.04, f"{_PROTOTYPE}, one router"),
    ]  # fmt: skip


def _gaps(more: list[float], less: list[float]) -> list[float]:
    """Seed by seed; none where a seed lacks one of the two."""
    return [a - b for a, b in zip(more, less, strict=True)] if len(more) == len(less) else []


def figures(results: Results) -> list[NamedFigure]:
    """Draw what is known at which cost, and the experts' loads."""
    drawn = []
    if results.values("accuracy", experiment=MEMORY, domains=_MEMORY["domains"]):
        words = (
            "Share of 6,144 facts known after 600 steps, mean over seeds, with the hidden units that a token goes through. The mixture "
            "costs a token what the small dense network costs it."
        )
        drawn.append(NamedFigure("Capacity apart from cost", words, _capacity(results)))
    if results.rows(experiment=MEMORY, environment="layer"):
        words = "Share of the assignments that each of 16 experts gets, most used first, by layer; the line is an even share. Seed 0, 6,144 facts."
        drawn.append(NamedFigure("Loads with and without the balance loss", words, _loads(results)))
    return drawn


def _capacity(results: Results) -> Figure:
    from jobs.drawing import panels

    ways: tuple[tuple[str, dict[str, Any]], ...] = (
        ("dense\n64 units", {"method": "dense", "hidden": _SMALL}),
        ("16 experts\n2 x 32 units", {"method": "experts", "balance": _BALANCE}),
        ("16 experts,\nno balance loss", {"method": "experts", "balance": 0.0}),
        ("dense\n512 units", {"method": "dense", "hidden": _LARGE}),
    )
    at = {"experiment": MEMORY, "domains": _MEMORY["domains"]}
    figure, (axis,) = panels(size=(6.2, 3.4))
    heights = [results.mean("accuracy", **at, **how) for _, how in ways]
    axis.bar(range(len(ways)), heights, color=["#999999", "#0072b2", "#56b4e9", "#555555"])
    for place, height in enumerate(heights):
        axis.text(place, height + 0.02, f"{height:.2f}", ha="center")
    axis.set_xticks(range(len(ways)), [name for name, _ in ways])
    axis.set(ylabel="share of facts known", ylim=(0, 1.12))
    return figure


def _loads(results: Results) -> Figure:
    from jobs.drawing import panels

    figure, axes = panels(2, size=(7.2, 3.2))
    for axis, (balance, words) in zip(axes, ((0.0, "without"), (_BALANCE, "with")), strict=True):
        at = {
            "experiment": MEMORY,
            "domains": _MEMORY["domains"],
            "balance": balance,
            "environment": "layer",
            "seed": 0,
        }
        for layer, colour in enumerate(("#0072b2", "#d55e00")):
            loads = sorted(
                (row["value"] for row in results.rows(**at, step=layer) if row["metric"].startswith("load ")),
                reverse=True,
            )
            axis.plot(range(1, len(loads) + 1), loads, "o-", color=colour, markersize=3, label=f"layer {layer + 1}")
        axis.axhline(1 / 16, color="black", linewidth=0.8)
        axis.set_title(f"{words} the balance loss", fontsize="medium")
        axis.set(xlabel="expert, by rank", ylabel="share of assignments", ylim=(0, None))
        axis.legend(frameon=False, fontsize="small")
    return figure
