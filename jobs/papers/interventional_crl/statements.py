"""The claims: what is exact, what is recovered, and how baselines fare."""

from __future__ import annotations

from typing import Any

from jobs.claims import Claim, Results, Scale
from jobs.papers.interventional_crl.claim_parts import PROTOTYPE, claim, least, most, share
from jobs.papers.interventional_crl.limits import broken, overfitting, paper_sizes, sizes
from jobs.papers.interventional_crl.names import (
    CONTRASTIVE,
    EXACT,
    FREE_HEAD,
    HARDER,
    LINEAR,
    LINEAR_ENCODER,
    NETWORK,
    PCA,
    VAE,
)

_DERIVED = "derived"
_FIRST = ("seed 0", "seed 1")


def claims(results: Results, scale: Scale) -> list[Claim]:
    """State the claims; measured over whatever seeds the scale has."""
    made = [*_identities(results), *_linear(results), *_network(results), *_baselines(results), *overfitting(results)]
    made += [*broken(results), *sizes(results)]
    return [*made, *paper_sizes(results)] if scale == "paper" else made


def _identities(results: Results) -> list[Claim]:
    at = {"experiment": EXACT}
    return [
        claim(
            "log-odds against Gaussian log-densities, largest error",
            1e-10,
            results.mean("log-odds error", **at),
            _DERIVED,
            "at most",
        ),
        claim(
            "the precisions' difference is rank one minus rank one, largest error",
            1e-12,
            results.mean("precision error", **at),
            _DERIVED,
            "at most",
        ),
        claim("its rank is 1 without parents, else 2: exceptions", 0.0, results.mean("wrong ranks", **at), _DERIVED),
    ]


def _linear(results: Results) -> list[Claim]:
    at: dict[str, Any] = {"experiment": LINEAR, "rows": 10000}
    values = results.values
    gaps = [abs(a - b) for a, b in zip(values("held-out CE", **at), values("Bayes", **at), strict=True)]
    words = "linear mixing, linear encoder by L-BFGS"
    return [
        claim(f"{words}: least MCC", 0.995, least(values("MCC", **at)), PROTOTYPE, "at least"),
        claim(f"{words}: |cross-entropy - Bayes|, largest", 0.003, most(gaps), PROTOTYPE, "at most"),
        claim(
            f"{words}: error of a true edge's standardised |weight|, largest",
            0.1,
            most(values("weight error", **at)),
            PROTOTYPE,
            "at most",
        ),
        claim(
            f"{words}: the same from 60,000 rows",
            0.05,
            most(values("weight error", experiment=LINEAR, rows=60000)),
            "ours",
            "at most",
        ),
        claim(f"{words}: SHD by scores that know no scale, largest", 0.0, most(values("SHD", **at)), PROTOTYPE),
        claim(
            f"{words}: SHD by raw |A|, largest: the trap",
            2.0,
            most(values("SHD raw", **at)),
            PROTOTYPE + ": 4",
            "at least",
        ),
    ]


def _network(results: Results) -> list[Claim]:
    at: dict[str, Any] = {"experiment": NETWORK, "method": CONTRASTIVE}
    mcc, words = results.values("MCC", **at), "network mixing"
    ahead = [a - b for a, b in zip(results.values("held-out CE", **at), results.values("Bayes", **at), strict=True)]
    return [
        claim(f"{words}: mean MCC", 0.97, results.mean("MCC", **at), PROTOTYPE, "equals", 0.015),
        claim(f"{words}: least MCC", 0.94, least(mcc), PROTOTYPE + ": 0.962", "at least"),
        claim(
            f"{words}: mean of MCC matched on one half and measured on the other",
            0.955,
            results.mean("MCC held-out", **at),
            "ours",
            "at least",
        ),
        claim(f"{words}: least R2", 0.92, least(results.values("R2", **at)), PROTOTYPE + ": 0.929", "at least"),
        claim(
            f"{words}: mean SHD, as many edges as the truth",
            1.0,
            results.mean("SHD", **at),
            PROTOTYPE + ": 0.4",
            "at most",
        ),
        claim(f"{words}: mean area under the edges' ROC curve", 0.97, results.mean("AUROC", **at), "ours", "at least"),
        claim(
            f"{words}: held-out cross-entropy above that of the exact log-odds, largest",
            0.05,
            most(ahead),
            "ours",
            "at most",
        ),
        claim(
            f"{words}: the best validation is before the last step, share of seeds",
            0.5,
            share([s < 1500 for s in results.values("best step", **at)]),
            "ours",
            "at least",
        ),
    ]


def _baselines(results: Results) -> list[Claim]:
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
