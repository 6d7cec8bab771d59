"""What the method is compared with; `linear_disentanglement.py` has what is solved in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lightning_modules.causal.contrastive.autoencoders import GraphAutoencoder, VariationalAutoencoder
from lightning_modules.causal.contrastive.data import GivenData
from lightning_modules.causal.contrastive.environments import InterventionalDataset, World
from lightning_modules.causal.contrastive.fits import fit_module
from lightning_modules.causal.contrastive.pack import Fit, Trained, Training, train_pack
from lightning_modules.causal.contrastive.recovery import held_out_cross_entropy

Array = np.ndarray

_CODE = 25
"""Latents of the autoencoder whose code is contrasted, more than there are: the authors' number."""


def fit_autoencoder(
    data: InterventionalDataset, steps: int = 1500, seed: int = 0, dim_z: int | None = None, batch_size: int = 256
) -> VariationalAutoencoder:
    """Train a plain autoencoder on all environments, rows as `split(0.2, seed)` takes them; images by convolution.

    Args:
        data: the environments.
        steps: parameter updates.
        seed: of everything.
        dim_z: latents; None: as many as there are interventional environments.
        batch_size: rows of each environment in a step.
    """
    training, held_out = data.split(0.2, seed)
    encoder = "conv" if data.is_image else "mlp"
    module = VariationalAutoencoder(data.dx, data.d if dim_z is None else dim_z, encoder, seed=seed)
    fit_module(module, GivenData(training, held_out, batch_size, seed), steps, steps)
    return module.cpu().eval()


def fit_graph_autoencoder(data: InterventionalDataset, steps: int = 1500, seed: int = 0) -> Trained:
    """Train an autoencoder with the graph in its latents; arguments as `fit_autoencoder`."""
    training, held_out = data.split(0.2, seed)
    module = GraphAutoencoder(data.dx, data.d, seed=seed)
    taken = fit_module(module, GivenData(training, held_out, 256, seed), steps)
    value = float(held_out_cross_entropy(module.cpu().eval(), held_out).mean())
    return Trained(module, value, taken, training, held_out)


def contrast_code(world: World, training: Training, seed: int = 0) -> tuple[World, Trained]:
    """Train an autoencoder first, then the contrast on its code; returns the world seen through the code, and what was trained on it.

    The code has 25 latents, whatever d. The autoencoder takes as many steps as the contrast, from batches of the same size.
    """
    coder = fit_autoencoder(world.data, training.steps, seed, max(_CODE, world.data.d), training.batch_size)
    coded = InterventionalDataset(coder.transform(world.data.x_obs), [coder.transform(x) for x in world.data.x_int])
    (trained,) = train_pack([Fit(coded, seed)], replace(training, encoder="mlp"))
    return replace(world, data=coded, x_test=coder.transform(world.x_test)), trained


def principal_components(data: InterventionalDataset, x: Array) -> Array:
    """The first d principal components [n, d] of the rows of all environments, of rows x."""
    mean, spread = data.scales
    rows = (np.concatenate([data.x_obs, *data.x_int]) - mean) / spread
    _, directions = np.linalg.eigh(np.cov(rows, rowvar=False))
    found: Array = ((x - mean) / spread) @ directions[:, ::-1][:, : data.d]
    return found
