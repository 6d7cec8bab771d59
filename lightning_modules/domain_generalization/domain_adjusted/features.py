"""A store of features: extracted once per dataset, held-out environments and trial, memory-mapped ever after."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from lightning_modules.data.environments import Dataset
from lightning_modules.data.splits import split_environment
from lightning_modules.errors import InputError


@dataclass(frozen=True)
class Features:
    """What one extraction holds: features [n, d] float32, label [n], environment [n], split [n], index [n].

    `features` is a read-only view of the file where that lies on a local disk; `index` is the row within the
    environment.
    """

    features: np.ndarray
    label: np.ndarray
    environment: np.ndarray
    split: np.ndarray
    index: np.ndarray


class FeatureStore:
    """A folder of Arrow files, one per (dataset, held-out environments, seed); each is also a feature table.

    Args:
        folder: where the files lie; made when needed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def path(self, dataset: str, held_out: Sequence[str], seed: int) -> Path:
        """File of a dataset's identity, held-out environments and trial seed."""
        key = hashlib.sha256(json.dumps([dataset, sorted(held_out), seed]).encode()).hexdigest()[:8]
        stem = f"{dataset}-{'+'.join(sorted(held_out))}-{seed}"
        return self.folder / f"{''.join(c if c.isalnum() or c in '+-_' else '_' for c in stem)[:80]}-{key}.arrow"

    @torch.no_grad()
    def extract(
        self, featurizer: nn.Module, dataset: Dataset, held_out: Sequence[str], seed: int, batch_size: int = 1024
    ) -> Path:
        """Compute the features of every example and store them, unless they are stored already; returns the file.

        The featurizer runs in eval mode (no dropout, fixed batch-norm statistics) and gets its mode back.

        Args:
            featurizer: [n, ...] float32 inputs to features [n, d], trained without the held-out environments. It runs
                on the device of its parameters.
            dataset: the examples; each environment is split by the seed as in a sweep.
            held_out: environments that were kept out of training.
            seed: trial seed.
            batch_size: examples at once.
        """
        path = self.path(dataset.identity, held_out, seed)
        if path.is_file():
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        parameter = next(featurizer.parameters(), torch.empty(0))
        modes = [(module, module.training) for module in featurizer.modules()]
        featurizer.eval()
        writer = None
        try:
            with open(unfinished, "wb") as sink:
                for number, environment in enumerate(dataset.environments):
                    is_out = np.zeros(len(environment), dtype=bool)
                    is_out[split_environment(environment, seed, number)[1]] = True
                    for start in range(0, len(environment), batch_size):
                        rows = slice(start, start + batch_size)
                        inputs = torch.tensor(environment.inputs[rows])
                        inputs = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs
                        features = featurizer(inputs.to(parameter.device)).flatten(1).float().cpu().numpy()
                        batch = pa.record_batch(
                            {
                                "features": pa.FixedSizeListArray.from_arrays(features.reshape(-1), features.shape[1]),
                                "label": pa.array(environment.labels[rows]),
                                "environment": pa.array([environment.name] * len(features)),
                                "split": pa.array(np.where(is_out[rows], "out", "in")),
                                "index": pa.array(np.arange(start, start + len(features))),
                            }
                        )
                        writer = writer or pa.ipc.new_file(sink, batch.schema)
                        writer.write_batch(batch)
                if writer is not None:
                    writer.close()
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
            for module, mode in modes:
                module.training = mode
        return path

    def load(self, dataset: str, held_out: Sequence[str], seed: int) -> Features:
        """Open an extraction; features of a file of one batch are not copied.

        Raises:
            InputError: nothing was extracted under that key.
        """
        path = self.path(dataset, held_out, seed)
        if not path.is_file():
            raise InputError(
                f"{path}: no features of {dataset}, held out {', '.join(held_out)}, seed {seed}; extract them"
            )
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        chunks = [c.flatten().to_numpy().reshape(len(c), -1) for c in table["features"].chunks]
        return Features(
            chunks[0] if len(chunks) == 1 else np.concatenate(chunks),
            table["label"].to_numpy(),
            np.array(table["environment"].to_pylist()),
            np.array(table["split"].to_pylist()),
            table["index"].to_numpy(),
        )
