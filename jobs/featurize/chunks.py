"""Pieces of what is to be encoded: each is kept when it is done, so that a command that was stopped resumes."""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.trial import Scalar, Trial
from jobs.featurize.rows import Source

# A chunk is what an interruption costs a worker, and 64 of them keep many workers busy to the end.
_SMALLEST_CHUNK, _LARGEST_CHUNK, _CHUNKS = 64, 512, 64


@dataclass(frozen=True)
class Chunk:
    """Items that are encoded together: its trial, which items, how many numbers each gets, and where they are kept."""

    trial: Trial
    items: slice
    dimension: int
    file: Path

    @property
    def size(self) -> int:
        """Items in it."""
        return int(self.items.stop - self.items.start)

    def read(self) -> np.ndarray | None:
        """Map the features [size, dimension]; None where they are not there yet, or not whole."""
        try:
            features: np.ndarray = np.load(self.file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return features if features.shape == (self.size, self.dimension) else None

    def write(self, features: np.ndarray) -> None:
        """Keep the features; the file appears whole or not at all."""
        unfinished = self.file.with_suffix(f".{uuid.uuid4().hex[:8]}.tmp")
        try:
            with open(unfinished, "wb") as sink:
                np.save(sink, features)
            os.replace(unfinished, self.file)
        finally:
            unfinished.unlink(missing_ok=True)


def cut(sources: Sequence[Source], batch_size: int | None, parts: Path) -> tuple[tuple[Chunk, ...], ...]:
    """Cut the items of each source into chunks; the same items, encoder and batch size give the same chunks."""
    return tuple(tuple(_cut(number, source, batch_size, parts)) for number, source in enumerate(sources))


def _cut(number: int, source: Source, batch_size: int | None, parts: Path) -> list[Chunk]:
    total, encoder = len(source.items), source.encoder
    size = max(batch_size or 1, _SMALLEST_CHUNK, min(_LARGEST_CHUNK, math.ceil(total / _CHUNKS)))
    chunks = []
    for start in range(0, total, size):
        items = slice(start, min(start + size, total))
        about: dict[str, Scalar] = {"source": number, "encoder": encoder.sha256, "start": start, "stop": items.stop}
        trial = Trial.create(encoder.name, f"{source.dataset}@{source.key(items)}", (), about)
        chunks.append(Chunk(trial, items, encoder.dimension, parts / f"{trial.trial_id}.npy"))
    return chunks
