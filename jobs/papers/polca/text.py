"""What the cell of a person's own text computes."""

from __future__ import annotations

import tempfile

import torch

from jobs.claims import MetricRow, scalar_rows
from lightning_modules.dynamics.breakthroughs import hidden_fraction
from lightning_modules.dynamics.clusters import filter_directions, find_clusters
from lightning_modules.dynamics.flat import losses_at
from lightning_modules.dynamics.hessian_basis import HessianBasis
from lightning_modules.dynamics.polca import polca
from lightning_modules.dynamics.recorder import CheckpointRecorder
from lightning_modules.dynamics.token_losses import TokenLossesAt
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import quiet_lightning
from lightning_modules.sequence.language_model import LanguageModel
from lightning_modules.sequence.text import TextData

_CONTEXT = 64
_SAMPLE = 1000
"""Windows that the Hessian is of."""
_DELTA = 1
"""Checkpoints to either side of a breakthrough: with records every 200 steps the paper's 100 steps are less than one."""


def text(
    data: str,
    seed: int,
    steps: int,
    lr: float,
    batch: int,
    every: int,
    basis_every: int,
    directions: int,
    tokens: int,
    width: int = 512,
    layers: int = 3,
    size: int = 20_000,
) -> list[MetricRow]:
    """Train on text, take held-out tokens' losses apart, and count what was found."""
    windows = TextData(data, "word", size, _CONTEXT, batch_size=batch, seed=seed)
    heads = max(1, width // 128)
    module = LanguageModel(size, _CONTEXT, layers=layers, width=width, heads=heads, lr=lr, seed=seed)
    held_out = windows.validation_tokens[: max(1, tokens // (_CONTEXT - 1))]
    with tempfile.TemporaryDirectory() as folder:
        recorder = CheckpointRecorder(every, folder)
        with quiet_lightning():
            trainer = make_trainer(steps, [recorder], limit_val_batches=0, num_sanity_val_steps=0)
            trainer.fit(module, datamodule=windows)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        module.to(device)
        module.eval()
        losses = [TokenLossesAt(module, part) for part in torch.split(held_out.to(device), 25)]
        sample = windows.train_tokens[:_SAMPLE].to(device)
        training = [losses_at(module, part) for part in torch.split(sample, 25)]
        checkpoints = recorder.checkpoints().to(device=device)
        # A direction every so many steps, at recorded ones: the paper's 750 are no multiple of its 200.
        spaced = max(1, round(basis_every / every)) * every
        basis = HessianBasis(1, spaced, directions).fit(checkpoints, training)
        found = polca(losses, checkpoints, basis)
    clusters = find_clusters(found)
    kept = filter_directions(found.values.sum(0))
    return scalar_rows(
        {
            "directions": len(basis),
            "directions kept": len(kept),
            "directions with clusters": len({cluster.direction for cluster in clusters}),
            "clusters": len(clusters),
            "hidden": hidden_fraction(found, clusters, steps / 2, _DELTA),
            "captured": found.captured,
            "total": found.total,
        }
    )
