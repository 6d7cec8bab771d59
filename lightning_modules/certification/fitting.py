"""A Lightning fit over tensors in memory that stops on time, keeps a checkpoint and goes on from it."""

from __future__ import annotations

import math
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_modules.certification.noisy_module import NoisyModule, stream_seed
from lightning_modules.errors import InputError
from lightning_modules.lightning_import import pl, quiet_lightning


def fit(
    module: NoisyModule,
    tensors: tuple[Tensor, ...],
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    max_seconds: float | None,
    progress: bool,
    checkpoint: str | Path | None,
    accelerator: str,
) -> None:
    """Run Lightning over tensors in memory, without the files and messages of a run that people watch.

    Arguments and errors are those of `fit_classifier`; each step gets the same rows of every tensor.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name}: {value} is not positive; give 1 or more")
    if max_seconds is not None and not max_seconds > 0:
        raise InputError(f"max_seconds: {max_seconds} is not positive; give more, or leave it out")
    if accelerator not in ("cpu", "auto"):
        raise InputError(f"accelerator: unknown {accelerator!r}; choose cpu or auto")
    path = None if checkpoint is None else Path(checkpoint)
    watch = _Watch(max_seconds, path, {"batch_size": batch_size, "seed": seed, "examples": len(tensors[0])})
    with quiet_lightning():
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator=accelerator,
            devices=1,
            callbacks=[watch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=progress,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        watch.batches = _Batches([t.to(trainer.strategy.root_device) for t in tensors], batch_size, seed)
        start = path if path is not None and path.exists() else None
        module.train()
        if start is None or not watch.resume(start, module, epochs):
            trainer.fit(module, watch.batches, ckpt_path=start, weights_only=True)
    module.trainer = None  # it holds the examples
    module.eval()


class _Batches:
    """Mini-batches of tensors, each epoch in an order of its own; knows its place and can go on from there."""

    def __init__(self, tensors: Sequence[Tensor], batch_size: int, seed: int) -> None:
        self._tensors, self._batch_size, self._seed = tensors, batch_size, seed
        self.epoch = self.batch = 0

    def __len__(self) -> int:
        return -(-len(self._tensors[0]) // self._batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        if self.batch == len(self):
            self.epoch, self.batch = self.epoch + 1, 0
        generator = torch.Generator().manual_seed(stream_seed(self._seed, 2, self.epoch))
        order = torch.randperm(len(self._tensors[0]), generator=generator).to(self._tensors[0].device)
        while self.batch < len(self):
            rows = order[self.batch * self._batch_size : (self.batch + 1) * self._batch_size]
            self.batch += 1
            yield tuple(tensor.index_select(0, rows) for tensor in self._tensors)


class _Watch(pl.Callback):
    """Stops on time and when the loss is not finite, and keeps the checkpoint."""

    batches: _Batches

    def __init__(self, max_seconds: float | None, path: Path | None, fit: dict[str, Any]) -> None:
        self._seconds = math.inf if max_seconds is None else max_seconds
        self._path, self._fit = path, fit

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end = time.monotonic() + self._seconds

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if time.monotonic() >= self._end:
            trainer.should_stop = True
            self._save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.batches.batch == len(self.batches):
            self._save(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["shiftlab_fit"] = self._fit
        checkpoint["shiftlab_place"] = {"epoch": self.batches.epoch, "batch": self.batches.batch}

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write the checkpoint whole or not at all, and not where the loss is lost."""
        assert isinstance(module, NoisyModule)
        loss = module.epoch_means()["train_loss"]
        if not math.isfinite(loss):
            raise FloatingPointError(f"train_loss is {loss} in epoch {trainer.current_epoch}; give a lower lr")
        if self._path is not None:
            part = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
            try:
                trainer.save_checkpoint(part)
                part.replace(self._path)
            finally:
                part.unlink(missing_ok=True)

    def resume(self, path: Path, module: NoisyModule, epochs: int) -> bool:
        """Take the place of a checkpoint of the same training; returns whether nothing is left to do."""
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
            raise InputError(f"checkpoint: {path} is not a checkpoint; delete it or name another file") from error
        for key, mine in (("shiftlab_training", module.settings()), ("shiftlab_fit", self._fit)):
            for name, value in mine.items():
                found = saved.get(key, {}).get(name)
                if found != value:
                    raise InputError(f"checkpoint: {path} has {name} {found}, not {value}; name another file")
        place = saved["shiftlab_place"]
        self.batches.epoch, self.batches.batch = place["epoch"], place["batch"]
        if place["epoch"] >= epochs:
            raise InputError(
                f"checkpoint: {path} has more than {epochs} epochs; name another file, or give more epochs"
            )
        finished: bool = place["epoch"] + 1 == epochs and place["batch"] == len(self.batches)
        if finished:
            module.load_state_dict(saved["state_dict"])
            module.on_load_checkpoint(saved)
        return finished


def checked_inputs(inputs: Tensor, input_shape: Sequence[int] | None = None) -> Tensor:
    """Return examples [n, ...] as uint8 or float32, or raise InputError where they cannot be trained on."""
    shape = tuple(inputs.shape[1:])
    if not len(inputs) or (input_shape is not None and shape != tuple(input_shape)):
        expected = "..." if input_shape is None else ", ".join(map(str, input_shape))
        raise InputError(f"inputs: have shape {list(inputs.shape)}; give [n, {expected}], n of 1 or more")
    if inputs.dtype == torch.uint8:
        return inputs
    if not inputs.is_floating_point():
        raise InputError(f"inputs: are {inputs.dtype}; give uint8 pixels, or floats in their original scale")
    if not bool(inputs.isfinite().all()):
        raise InputError("inputs: some are NaN or infinite; clean or drop them")
    return inputs.float()
