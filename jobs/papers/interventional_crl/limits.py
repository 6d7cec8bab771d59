"""The claims on what spoils or breaks the recovery, and on other sizes."""

from __future__ import annotations

import math
from typing import Any

from jobs.claims import Claim, Results, least, most
from jobs.papers.interventional_crl.claim_parts import PROTOTYPE, claim, difference
from jobs.papers.interventional_crl.names import (
    BALLS,
    BROKEN,
    CONTRASTIVE,
    LEARNING,
    NETWORK,
    NO_INTERVENTION,
    NOISE,
    ORIGINAL,
    OVERFIT,
    REORDERED,
    SETTINGS,
    SHUFFLED,
    SIZES,
    ZERO_SHIFT,
)

_PAGE = "paper (page)"
_CHANCE = 2 * math.log(2)


def overfitting(results: Results) -> list[Claim]:
    """Of training on past the best validation."""

    def value(metric: str, place: str) -> float:
        return results.mean(metric, experiment=OVERFIT, environment=place)

    words = "100 iterations of L-BFGS more"
    return [
        claim(
            f"{words}: training cross-entropy minus Bayes",
            0.0,
            value("train CE", "after") - value("Bayes", "after"),
            PROTOTYPE + ": -0.043",
            "at most",
        ),
        claim(
            f"{words}: MCC lost",
            0.02,
            value("MCC", "before") - value("MCC", "after"),
            PROTOTYPE + ": 0.029",
            "at least",
        ),
        claim(
            f"{words}, best validation kept: MCC lost",
            0.005,
            value("MCC", "before") - value("MCC", "kept"),
            "ours",
            "at most",
        ),
        claim(
            f"{words}, patience 2: share of the iterations run",
            0.5,
            value("steps", "kept") / value("steps", "after"),
            "ours",
            "at most",
        ),
    ]


def broken(results: Results) -> list[Claim]:
    """Of data that lack what identifies the latents."""

    def values(metric: str, method: str) -> list[float]:
        return results.values(metric, experiment=BROKEN, method=method)

    zero: dict[str, Any] = {"experiment": BROKEN, "method": ZERO_SHIFT}
    nothing = [abs(v - _CHANCE) for v in values("train CE", NO_INTERVENTION)]
    whole = results.values("MCC", experiment=NETWORK, method=CONTRASTIVE, environment="seed 0")
    return [
        claim(
            "no intervention: |training cross-entropy - 2 log 2|, largest",
            0.005,
            most(nothing),
            PROTOTYPE + ": 0.0001",
            "at most",
        ),
        claim("no intervention: MCC", 0.6, most(values("MCC", NO_INTERVENTION)), PROTOTYPE + ": 0.29", "at most"),
        claim(
            "no shift of means, five worlds: largest MCC",
            0.5,
            most(values("MCC", ZERO_SHIFT)),
            PROTOTYPE + ": 0.09",
            "at most",
        ),
        *(
            claim(
                f"no shift of means, {words}: MCC of absolute values above it",
                0.2,
                results.mean("absolute MCC", **at) - results.mean("MCC", **at),
                PROTOTYPE + ": 0.42",
                "at least",
            )
            for words, at in (("seed 0", {**zero, "environment": "seed 0"}), ("five worlds, mean", zero))
        ),
        claim(
            "no shift of means, five worlds: |training cross-entropy - Bayes|, largest",
            0.03,
            most(
                [abs(a - b) for a, b in zip(values("train CE", ZERO_SHIFT), values("Bayes", ZERO_SHIFT), strict=True)]
            ),
            PROTOTYPE + ": 0.017",
            "at most",
        ),
        claim(
            "interventional rows shuffled across environments: MCC lost",
            0.3,
            difference(whole, values("MCC", SHUFFLED)),
            PROTOTYPE + ": 0.69",
            "at least",
        ),
        claim(
            "environments in another order: MCC",
            0.94,
            least(values("MCC", REORDERED)),
            PROTOTYPE + ": 0.971",
            "at least",
        ),
        claim(
            "environments in another order: SHD, re-indexed by it",
            2.0,
            most(values("SHD", REORDERED)),
            PROTOTYPE + ": 0",
            "at most",
        ),
        claim(
            "environments in another order: SHD if that is forgotten",
            4.0,
            least(values("SHD not re-indexed", REORDERED)),
            PROTOTYPE + ": 8",
            "at least",
        ),
    ]


def sizes(results: Results) -> list[Claim]:
    """Of other sizes, pictures, learning rates and noise."""

    def mean(metric: str, **at: Any) -> float:
        return results.mean(metric, **at)

    two: dict[str, Any] = {"experiment": BALLS, "method": CONTRASTIVE, "side": 32}
    three, ten = {"experiment": SIZES, "d": 3}, {"experiment": SIZES, "d": 10, "degree": 4.0, "rows": 5000}
    head = mean("MCC", experiment=LEARNING, method="two rates") - mean("MCC", experiment=LEARNING, method="one rate")
    return [
        claim("two balls, 32 x 32: mean MCC", 0.92, mean("MCC", **two), PROTOTYPE, "equals", 0.04),
        claim("two balls, 32 x 32: mean R2", 0.87, mean("R2", **two), PROTOTYPE, "equals", 0.08),
        claim("two balls, 32 x 32: mean SHD", 2.0, mean("SHD", **two), PROTOTYPE + ": 0", "at most"),
        claim(
            "3 latents, 3000 rows, 800 steps: least MCC",
            0.94,
            least(results.values("MCC", **three)),
            PROTOTYPE + ": 0.96",
            "at least",
        ),
        claim("10 latents, degree 4, 100 features: MCC", 0.94, mean("MCC", **ten), PROTOTYPE, "equals", 0.03),
        claim("10 latents, degree 4, 100 features: SHD", 4.0, mean("SHD", **ten), PROTOTYPE + ": 2", "at most"),
        claim(
            "head's learning rate ten times the encoder's 5e-4: MCC gained",
            0.01,
            head,
            PROTOTYPE + ": 0.02",
            "at least",
        ),
        *_noise(results),
    ]


def _noise(results: Results) -> list[Claim]:
    at: dict[str, Any] = {"experiment": NOISE}
    mild = results.values("MCC", **at, noise=("laplace", "gumbel", "uniform"))
    lost = results.mean("MCC", **at, noise="exponential")
    return [
        claim("Laplace, Gumbel and uniform noise: least MCC", 0.85, least(mild), "ours", "at least"),
        claim("exponential noise, one-sided, breaks it: MCC", 0.8, lost, "ours", "at most"),
    ]


def paper_sizes(results: Results) -> list[Claim]:
    """Of the paper's sizes and the authors' settings."""
    made = []
    for d, degree, dx in SETTINGS:
        at = {"experiment": SIZES, "d": d, "degree": degree, "dx": dx, "rows": 10000}
        words = f"paper's size, d {d}, degree {degree:g}, dx {dx}"
        made += [
            claim(f"{words}: mean MCC", 0.97, results.mean("MCC", **at), _PAGE + ": 0.97 to 0.99", "at least"),
            claim(f"{words}: mean SHD", 3.6, results.mean("SHD", **at), _PAGE + ": 1.0 to 3.6", "at most"),
        ]
    at = {"experiment": ORIGINAL}
    return [
        *made,
        claim("authors' settings: mean MCC", 0.965, results.mean("MCC", **at), PROTOTYPE, "equals", 0.015),
        claim("authors' settings: mean R2", 0.935, results.mean("R2", **at), PROTOTYPE, "equals", 0.03),
    ]
