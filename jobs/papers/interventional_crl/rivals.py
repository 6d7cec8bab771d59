"""The claims on what the method is compared with."""

from __future__ import annotations

from typing import Any

from jobs.claims import Claim, Results, least, most
from jobs.papers.interventional_crl.claim_parts import PROTOTYPE, claim
from jobs.papers.interventional_crl.names import (
    BALLS,
    CLOSED,
    CODE,
    CONTRASTIVE,
    COVARIANCES,
    FREE_HEAD,
    GRAPH_VAE,
    HARDER,
    LINEAR,
    LINEAR_ENCODER,
    NETWORK,
    PCA,
    SHIFTS,
    VAE,
)

_FIRST = ("seed 0", "seed 1")


def rivals(results: Results) -> list[Claim]:
    """Of linear encoders, autoencoders and closed forms."""
    return [*_on_networks(results), *_autoencoders(results), *_closed_forms(results)]


def _on_networks(results: Results) -> list[Claim]:
    def mcc(method: str, experiment: str = NETWORK) -> float:
        return results.mean("MCC", experiment=experiment, method=method, environment=_FIRST)

    def everywhere(method: str, experiment: str) -> float:
        return results.mean("MCC", experiment=experiment, method=method)

    ours, words = mcc(CONTRASTIVE), "network mixing, seeds 0 and 1"
    made = [
        claim(f"{words}: MCC, {name}", figure, mcc(name), PROTOTYPE, "equals", 0.08)
        for name, figure in ((LINEAR_ENCODER, 0.895), (VAE, 0.70), (FREE_HEAD, 0.625), (PCA, 0.565))
    ]
    gap = everywhere(CONTRASTIVE, HARDER) - everywhere(LINEAR_ENCODER, HARDER)
    all_seeds = everywhere(CONTRASTIVE, NETWORK) - everywhere(LINEAR_ENCODER, NETWORK)
    return [
        *made,
        claim(f"{words}: MCC above the VAE", 0.2, ours - mcc(VAE), PROTOTYPE, "at least"),
        claim(f"{words}: MCC above the linear encoder", 0.03, ours - mcc(LINEAR_ENCODER), PROTOTYPE, "at least"),
        claim("network mixing, all seeds: MCC above the linear encoder", 0.03, all_seeds, PROTOTYPE, "at least"),
        claim("network of width 32, which bends more: MCC above the linear encoder", 0.03, gap, "ours", "at least"),
        claim(
            f"{words}: R2 of the VAE, which says nothing of MCC",
            0.9,
            results.mean("R2", experiment=NETWORK, method=VAE, environment=_FIRST),
            PROTOTYPE + ": 0.935",
            "at least",
        ),
    ]


def _autoencoders(results: Results) -> list[Claim]:
    def gap(metric: str, experiment: str, method: str) -> float:
        ours = results.mean(metric, experiment=experiment, method=CONTRASTIVE, environment=_FIRST)
        return ours - results.mean(metric, experiment=experiment, method=method, environment=_FIRST)

    at: dict[str, Any] = {"experiment": NETWORK, "method": GRAPH_VAE}
    words = "network mixing, seeds 0 and 1"
    return [
        claim(f"{words}: MCC above the VAE with a graph", 0.15, gap("MCC", NETWORK, GRAPH_VAE), "ours", "at least"),
        claim(
            f"{words}: SHD of the VAE with a graph above ours", 4.0, -gap("SHD", NETWORK, GRAPH_VAE), "ours", "at least"
        ),
        claim(f"{words}: R2 of the VAE with a graph", 0.85, results.mean("R2", **at), "ours", "at least"),
        claim(
            "two balls, 32 x 32: MCC above the contrast on a VAE's code",
            0.05,
            gap("MCC", BALLS, CODE),
            "ours",
            "at least",
        ),
    ]


def _closed_forms(results: Results) -> list[Claim]:
    def values(method: str, rows: int, metric: str = "MCC") -> list[float]:
        return results.values(metric, experiment=LINEAR, method=method, rows=rows)

    def on_networks(method: str) -> float:
        return results.mean("MCC", experiment=NETWORK, method=method)

    exact, words = results.values("error", experiment=CLOSED), "linear mixing, closed form"
    return [
        claim(f"{words}, exact moments: largest error of latents and graph", 1e-8, most(exact), "derived", "at most"),
        claim(
            f"{words} by covariances, 10,000 rows: least MCC",
            0.98,
            least(values(COVARIANCES, 10_000)),
            "ours",
            "at least",
        ),
        claim(
            f"{words} by covariances, a million rows: least MCC",
            0.98,
            least(values(COVARIANCES, 1_000_000)),
            "ours",
            "at least",
        ),
        claim(f"{words} by means too, 10,000 rows: least MCC", 0.98, least(values(SHIFTS, 10_000)), "ours", "at least"),
        claim(f"{words} by means too, 10,000 rows: SHD, largest", 0.0, most(values(SHIFTS, 10_000, "SHD")), "ours"),
        claim(
            "network mixing: MCC of the closed form by covariances", 0.75, on_networks(COVARIANCES), "ours", "at most"
        ),
        claim("network mixing: MCC of the closed form by means too", 0.9, on_networks(SHIFTS), "ours", "at most"),
        claim(
            "network mixing: MCC that means add to the closed form",
            0.1,
            on_networks(SHIFTS) - on_networks(COVARIANCES),
            "ours",
            "at least",
        ),
    ]
