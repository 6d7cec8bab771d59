"""The figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.claims import NamedFigure, Results
from jobs.drawing import panels
from jobs.papers.self_reflective_vae.names import (
    BITS_A_ROW,
    DRAWN,
    FULL,
    MNIST,
    MORE_ARMS,
    RESTRICTED,
    SAMPLES,
    SPLIT,
    SWEEP,
    TRAINED,
    VIEWS,
    WORDS,
)
from jobs.papers.self_reflective_vae.names import MNIST_ARMS as ARMS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
    "#7f7f7f",
    "#999933",
    "#882255",
)


def figures(results: Results) -> list[NamedFigure]:
    """Draw gaps, importance bounds, digits' bounds and KL by layer, the sweep, and sampled digits."""
    drawn = []
    if results.rows(experiment=SPLIT) and results.rows(experiment=RESTRICTED):
        words = (
            "Scalar chain, exact. Left: one and the same p(x, z), a part of whose transition is a shift in the bijection. "
            "Right: the best posterior by what it sees."
        )
        drawn.append(NamedFigure("Distance of the best ELBO from log p(x)", words, _gaps(results)))
    if results.rows(experiment=TRAINED):
        words = (
            "Trained posteriors, generator frozen. One sample is the ELBO; mean-field weights have infinite variance."
        )
        drawn.append(NamedFigure("Importance bounds against the number of samples", words, _bounds(results)))
    for experiment, name in ((MNIST, "5,000 MNIST digits"), (FULL, "All of MNIST")):
        if results.rows(experiment=experiment):
            words = (
                "Left: importance bound of test digits. Right: nats of KL in every layer; a layer near 0 is not used."
            )
            drawn.append(NamedFigure(f"{name}: bounds and layers", words, _digit_bounds(results, experiment)))
            words = "Test digits, binarised, and ancestral samples: each block of rows is drawn after the one above it."
            drawn.append(NamedFigure(f"{name}: samples", words, _samples(results, experiment)))
    if results.rows(experiment=SWEEP):
        words = "ELBO and importance bound of the self-reflective autoencoder, 5,000 MNIST digits."
        drawn.append(NamedFigure("Blocks and latents", words, _sweep(results)))
    return drawn


def _gaps(results: Results) -> Figure:
    figure, (left, right) = panels(2)
    for metric, colour in (("mean-field gap", _COLOURS[1]), ("self-reflective gap", _COLOURS[0])):
        left.plot(*results.curve(metric, "shift", experiment=SPLIT), marker="o", color=colour, label=metric)
    left.set_xlabel("part of z_{l-1} that the bijection adds")
    left.set_ylabel("nats")
    left.grid()
    left.legend(fontsize="small")
    names = [
        evidence.replace("_", " ") + ("" if family == "self_reflective" else ", no z") for family, evidence in VIEWS
    ]
    values = [results.mean("gap", experiment=RESTRICTED, method=f, evidence=e) for f, e in VIEWS]
    right.barh(names, values, color=_COLOURS[0])
    right.invert_yaxis()
    right.set_xlabel("nats")
    return figure


def _bounds(results: Results) -> Figure:
    figure, axes = panels(2)
    for panel, chain in zip(axes, ("scalar", "vector"), strict=True):
        for family, colour in (("self_reflective", _COLOURS[0]), ("independent", _COLOURS[1])):
            at = {"experiment": TRAINED, "method": family, "chain": chain, "evidence": "all", "net": "linear"}
            y = [results.mean(f"bound {k}", **at) for k in SAMPLES]
            panel.plot(SAMPLES, y, marker="o", color=colour, label=family.replace("_", "-"))
        panel.set_xscale("log")
        panel.set_title(f"{chain} chain", fontsize="medium")
        panel.set_xlabel("importance samples")
        panel.grid()
        panel.legend(fontsize="small")
    axes[0].set_ylabel("bound minus log p(x), nats")
    return figure


def _arms(results: Results, experiment: str) -> list[str]:
    return [arm for arm in (*ARMS, *MORE_ARMS) if results.rows(experiment=experiment, method=arm)]


def _digit_bounds(results: Results, experiment: str) -> Figure:
    figure, (left, right) = panels(2)
    for arm, colour in zip(_arms(results, experiment), _COLOURS, strict=False):
        at = {"experiment": experiment, "method": arm}
        found = {row["metric"] for row in results.rows(**at) if row["metric"].startswith("bound ")}
        counts = sorted(int(name.split()[1]) for name in found)
        left.plot(
            counts, [results.mean(f"bound {k}", **at) for k in counts], marker="o", color=colour, label=WORDS[arm]
        )
        layers, nats = results.curve("kl", "step", **at)
        right.plot([layer + 1 for layer in layers], nats, marker="o", color=colour, label=WORDS[arm])
    left.set_xscale("log")
    left.set_xlabel("importance samples")
    left.set_ylabel("nats")
    left.grid()
    left.legend(fontsize="x-small")
    right.set_xlabel("layer")
    right.set_ylabel("KL, nats")
    right.grid()
    return figure


def _images(results: Results, experiment: str, arm: str, environment: str) -> list[list[int]]:
    """Stored binary images, a list of pixels each."""
    images: dict[int, dict[int, str]] = {}
    for row in results.rows(experiment=experiment, method=arm, environment=environment, seed=0):
        start = int(row["metric"].split()[1])
        images.setdefault(row["step"], {})[start] = format(int(row["value"]), f"0{BITS_A_ROW}b")
    return [[int(bit) for _, bits in sorted(parts.items()) for bit in bits] for _, parts in sorted(images.items())]


def _samples(results: Results, experiment: str) -> Figure:
    from matplotlib.figure import Figure

    arms = _arms(results, experiment)
    lines = [("data", _images(results, experiment, arms[0], "data"))]
    lines += [(WORDS[arm], _images(results, experiment, arm, "samples")) for arm in arms]
    figure = Figure(figsize=(8.5, 0.72 * len(lines)), layout="constrained")
    strips = figure.subplots(len(lines), 1, squeeze=False)[:, 0]
    for panel, (name, images) in zip(strips, lines, strict=True):
        side = BITS_A_ROW
        strip = [[bit for image in images[:DRAWN] for bit in image[side * i : side * (i + 1)]] for i in range(side)]
        panel.imshow(strip, cmap="gray_r", vmin=0, vmax=1)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_ylabel(name, rotation=0, ha="right", va="center", fontsize="small")
    return figure


def _sweep(results: Results) -> Figure:
    figure, both = panels(2)
    for panel, (metric, title) in zip(both, (("elbo", "ELBO"), ("bound 200", "importance bound of 200")), strict=True):
        for latents, colour in zip((4, 8, 16), _COLOURS, strict=False):
            x, y = results.curve(metric, "blocks", experiment=SWEEP, latents=latents)
            panel.plot(x, y, marker="o", color=colour, label=f"{latents} latents a layer")
        panel.set_title(title, fontsize="medium")
        panel.set_xlabel("blocks")
        panel.grid()
        panel.legend(fontsize="small")
    return figure
