"""What the self-reflective autoencoder is compared with, by name, all with the same number of latents."""

from __future__ import annotations

from typing import Any

from lightning_modules.errors import InputError
from lightning_modules.generative.hierarchy import self_reflective
from lightning_modules.generative.iaf import InverseAutoregressiveVAE
from lightning_modules.generative.ladder import LadderVAE
from lightning_modules.generative.latent_variable_model import LatentVariableModel
from lightning_modules.generative.partition import BlockPartition

_HIERARCHIES: dict[str, dict[str, Any]] = {
    "self_reflective": {},
    "independent": {"posterior": "independent"},
    "deep_latent_gaussian": {"posterior": "independent", "prior": "standard"},
    "no_coupling": {"data_coupling": False},
    "independent_no_coupling": {"posterior": "independent", "data_coupling": False},
    "identity": {"bijector": "identity"},
    "block_evidence": {"evidence": "block"},
}

ARMS = (*_HIERARCHIES, "one_layer", "ladder", "iaf")
"""Self-reflective; its posterior without z_{l-1}, mean-field over layers; that with N(0, I) priors at every layer; without x_{l-1}
in the decoder, both posteriors; with z = eps; with encoders that see their own block only; a plain autoencoder of one layer;
the ladder; one layer with an inverse autoregressive posterior (needs the extra `flows`)."""


def ladder_sizes(blocks: int, latents: int) -> list[int]:
    """Deal blocks * latents out to the ladder's layers, half of what is left to each from the data up: x sees the first alone."""
    total, sizes = blocks * latents, list[int]()
    for _ in range(min(blocks, 5) - 1):
        sizes.append((total - sum(sizes)) // 2)
    sizes.append(total - sum(sizes))
    return sizes if min(sizes) > 0 else [latents] * blocks


def build_arm(
    name: str,
    pixels: int,
    blocks: int,
    latents: int,
    width: int = 64,
    seed: int = 0,
    depth: int = 2,
    correction: int = 0,
) -> LatentVariableModel:
    """Make one of the arms for binary x.

    Args:
        name: in `ARMS`.
        pixels: D.
        blocks: L; layers of the ladder, which has 5 at most.
        latents: N of a layer; a model of one layer has L N, and so has the ladder in all.
        width: of the hidden layers.
        seed: of the first weights.
        depth: number of hidden layers.
        correction: of the posteriors of hierarchies, see `self_reflective`; the ladder and "iaf" have no such net.

    Raises:
        InputError: for an unknown name, or sizes out of range.
    """
    if name not in ARMS:
        raise InputError(f"arm: unknown {name!r}; choose one of {', '.join(ARMS)}")
    if min(latents, width, depth) < 1:
        raise InputError(f"latents, width, depth: {latents}, {width}, {depth}; give 1 or more of each")
    partition, hidden = BlockPartition.raster(pixels, blocks), (width,) * depth
    if name == "one_layer":
        whole = BlockPartition([pixels])
        return self_reflective(whole, [blocks * latents], hidden, bijector="identity", seed=seed, correction=correction)
    if name == "ladder":
        return LadderVAE(pixels, ladder_sizes(blocks, latents), hidden, seed)
    if name == "iaf":
        return InverseAutoregressiveVAE(pixels, blocks * latents, hidden, seed=seed)
    return self_reflective(
        partition, [latents] * blocks, hidden, seed=seed, correction=correction, **_HIERARCHIES[name]
    )
