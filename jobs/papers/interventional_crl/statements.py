"""The claims: what is exact, and what is recovered."""

from __future__ import annotations

from typing import Any

from jobs.claims import Claim, Results, Scale, least, most
from jobs.papers.interventional_crl.claim_parts import PROTOTYPE, claim, share
from jobs.papers.interventional_crl.limits import broken, overfitting, paper_sizes, sizes
from jobs.papers.interventional_crl.names import CONTRASTIVE, EXACT, LBFGS, LINEAR, NETWORK
from jobs.papers.interventional_crl.rivals import rivals

_DERIVED = "derived"


def claims(results: Results, scale: Scale) -> list[Claim]:
    """State the claims; measured over whatever seeds the scale has."""
    made = [*_identities(results), *_linear(results), *_network(results), *rivals(results), *overfitting(results)]
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
    at: dict[str, Any] = {"experiment": LINEAR, "method": LBFGS, "rows": 10000}
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
            f"{words}: that error at the exact optimum, in standard errors",
            3.0,
            most(values("weight error in standard errors", **at)),
            "ours",
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
