"""What was found: against the truth of a simulated world, and without it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from lightning_modules.causal.contrastive.environments import InterventionalDataset, World
from lightning_modules.causal.contrastive.losses import CHANCE
from lightning_modules.causal.contrastive.module import ContrastiveCRLModule
from lightning_modules.causal.metrics import (
    edge_auroc,
    linear_r2,
    mean_correlation_coefficient,
    structural_hamming_distance,
)

Array = np.ndarray

THRESHOLD = 0.3
"""The fixed threshold of standardised weights."""


def held_out_cross_entropy(module: ContrastiveCRLModule, data: InterventionalDataset) -> Array:
    """Cross-entropy [d] of each interventional environment against the observational one; 2 log 2 is chance."""
    against = np.logaddexp(0, -module.log_odds(data.x_obs)).mean(0)
    own = [np.logaddexp(0, module.log_odds(rows)[:, t]).mean() for t, rows in enumerate(data.x_int)]
    found: Array = against + np.array(own)
    return found


def recovery(module: ContrastiveCRLModule, world: World) -> dict[str, float]:
    """Compare latents and graph with a simulated world's, on its fresh observational rows.

    Returns:
        "MCC", "MCC held-out" (matched on one half, measured on the other), "R2"; with a parametric head also "SHD" (as many edges as
        the truth, by `edge_scores`), "SHD raw" (by raw |A|), "SHD threshold" (standardised weights above 0.3), "SHD best" (the best
        threshold: an oracle), "AUROC", "weight error" (largest error of a true edge's standardised |weight|) and "edges".
    """
    z_hat = module.transform(world.x_test)
    found = latents_found(world, z_hat)
    if module.head.kind != "parametric":
        return found
    truth, weights = world.weights, module.adjacency()
    found |= graph_found(world, module.edge_scores())
    error = np.abs(np.abs(truth) - np.abs(weights))[truth != 0]
    return found | {
        "SHD raw": structural_hamming_distance(truth, module.adjacency(scaled=False), n_edges=int(found["edges"])),
        "SHD threshold": structural_hamming_distance(truth, weights, threshold=THRESHOLD),
        "weight error": float(error.max(initial=0.0)),
    }


def graph_found(world: World, scores: Array) -> dict[str, float]:
    """Get "SHD", "SHD best", "AUROC" and "edges" (see `recovery`) of edge scores [d, d]."""
    truth = world.weights
    edges, most = int((truth != 0).sum()), truth.size - len(truth)
    return {
        "SHD": structural_hamming_distance(truth, scores, n_edges=edges),
        "SHD best": min(structural_hamming_distance(truth, scores, n_edges=n) for n in range(most + 1)),
        "AUROC": edge_auroc(truth, scores),
        "edges": edges,
    }


def latents_found(world: World, z_hat: Array) -> dict[str, float]:
    """MCC, held-out MCC and R^2 of estimated latents [m, d] of the world's fresh rows."""
    return {
        "MCC": mean_correlation_coefficient(world.z_test, z_hat),
        "MCC held-out": mean_correlation_coefficient(world.z_test, z_hat, held_out=True),
        "R2": linear_r2(world.z_test, z_hat),
    }


@dataclass(frozen=True)
class Findings:
    """What can be said without the truth.

    Args:
        latents: [n, d] encodings of the observational rows.
        edge_scores: [d, d], [i, j] of the edge i -> j, node t being what environment t intervenes on.
        cross_entropy: [d] on these rows. At 2 log 2 an environment cannot be told from the observational one, and its latent and its
            edges are not to be believed.
    """

    latents: Array
    edge_scores: Array
    cross_entropy: Array

    @property
    def told_apart(self) -> Array:
        """[d] share of the way from chance (2 log 2) to certainty (0) that the cross-entropy has gone."""
        found: Array = 1 - self.cross_entropy / CHANCE
        return found

    def tables(self) -> dict[str, pa.Table]:
        """The tables "latents" (z_1 ... z_d), "edges" (cause, effect, score, highest first), "environments" (cross-entropy)."""
        d = len(self.cross_entropy)
        pairs = [(i, j) for i in range(d) for j in range(d) if i != j]
        pairs.sort(key=lambda pair: -self.edge_scores[pair])
        names = [f"env_{t + 1}" for t in range(d)]
        return {
            "latents": pa.table({f"z_{t + 1}": self.latents[:, t] for t in range(d)}),
            "edges": pa.table(
                {
                    "cause": [names[i] for i, _ in pairs],
                    "effect": [names[j] for _, j in pairs],
                    "score": [float(self.edge_scores[pair]) for pair in pairs],
                }
            ),
            "environments": pa.table(
                {
                    "environment": names,
                    "cross_entropy": self.cross_entropy,
                    "chance": np.full(d, CHANCE),
                    "told_apart": self.told_apart,
                }
            ),
        }


def find(module: ContrastiveCRLModule, held_out: InterventionalDataset) -> Findings:
    """Encode rows that were not trained on, and score edges and environments."""
    scores = module.edge_scores()
    return Findings(module.transform(held_out.x_obs), scores, held_out_cross_entropy(module, held_out))
