"""The checkpoints of one training run: recorded while it trains, or read from a folder of one's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.dynamics.flat import FlatParameters
from lightning_modules.errors import InputError
from lightning_modules.lightning_import import pl
from lightning_modules.state_dicts import find_state_dict, load_tensors, load_weights

_SUFFIXES = (".npy", ".pt", ".pth", ".ckpt", ".safetensors")


class Checkpoints:
    """The weights of a module at T steps of its training, each a vector [D] in the order of `FlatParameters`.

    Args:
        steps: T of them, rising.
        weights: [T, D], or T functions that each load one vector [D], for what memory does not hold.
        dtype: that vectors are given in; float64 where identities are to hold.
        device: that they are given on.

    Raises:
        InputError: fewer than 2, steps that do not rise, vectors of differing length, or numbers that are not finite.
    """

    def __init__(
        self,
        steps: Sequence[int],
        weights: Tensor | Sequence[Tensor] | Sequence[Callable[[], Tensor]],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.steps, self._weights, self._dtype, self._device = list(steps), list(weights), dtype, device
        if len(self.steps) != len(self._weights):
            raise InputError(
                f"checkpoints: {len(self.steps)} steps for {len(self._weights)} vectors; give one step each"
            )
        if len(self.steps) < 2:
            raise InputError(f"checkpoints: there are {len(self.steps)}; give 2 or more of one training")
        if any(a >= b for a, b in zip(self.steps, self.steps[1:], strict=False)):
            raise InputError("checkpoints: steps do not rise; give them in order, each once")
        first = self._load(0)
        self.size = len(first)
        self._check(first, 0)
        if not callable(self._weights[0]):
            for t in range(1, len(self.steps)):
                self._check(self._load(t), t)

    def __len__(self) -> int:
        """T."""
        return len(self.steps)

    def __getitem__(self, t: int) -> Tensor:
        """The weights [D] of the checkpoint number t."""
        found = self._load(t).to(self._device, self._dtype)
        self._check(found, t)
        return found

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Checkpoints:
        """The same in another precision or on another device."""
        return Checkpoints(self.steps, self._weights, dtype or self._dtype, device or self._device)

    def every(self, steps: int) -> Checkpoints:
        """Those among them that lie so many steps apart, from the first one on.

        Raises:
            InputError: fewer than 2 do.
        """
        if steps < 1:
            raise InputError(f"checkpoints: are asked for every {steps} steps; give 1 or more")
        kept = [t for t, step in enumerate(self.steps) if (step - self.steps[0]) % steps == 0]
        return Checkpoints([self.steps[t] for t in kept], [self._weights[t] for t in kept], self._dtype, self._device)

    def _load(self, t: int) -> Tensor:
        found: Any = self._weights[t]
        vector: Tensor = found() if callable(found) else found
        return vector

    def _check(self, vector: Tensor, t: int) -> None:
        if vector.dim() != 1 or len(vector) != self.size:
            raise InputError(
                f"checkpoints: the one of step {self.steps[t]} has {vector.numel()} weights, the first one {self.size}; "
                "give checkpoints of one training"
            )
        if not bool(vector.isfinite().all()):
            raise InputError(
                f"checkpoints: the one of step {self.steps[t]} has weights that are not finite; leave it out"
            )


class CheckpointRecorder(pl.Callback):
    """Records a module's weights while it trains, before the first step and then at every so many.

    Args:
        every: steps between records.
        folder: where each goes as step-N.npy; "": they stay in memory, T x D float32.

    Raises:
        InputError: `every` is below 1.

    Example:
        >>> recorder = CheckpointRecorder(every=20)
        >>> # trainer = make_trainer(1000, [recorder]); trainer.fit(module, data); recorder.checkpoints()
    """

    def __init__(self, every: int = 20, folder: str = "") -> None:
        if every < 1:
            raise InputError(f"every: is {every}; give 1 or more")
        self._every, self._folder = every, folder
        self._steps: list[int] = []
        self._found: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record what it begins, or goes on, with; a training that begins anew replaces what was recorded before."""
        if trainer.global_step == 0:
            self._steps, self._found = [], []
        self._record(trainer.global_step, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record where it is due."""
        if trainer.global_step % self._every == 0:
            self._record(trainer.global_step, pl_module)

    def checkpoints(self, dtype: torch.dtype = torch.float32) -> Checkpoints:
        """What was recorded.

        Raises:
            InputError: fewer than 2.
        """
        if self._folder:
            files = [_record_file(self._folder, step) for step in self._steps]
            return Checkpoints(self._steps, [_array_loader(file) for file in files], dtype)
        return Checkpoints(self._steps, self._found, dtype)

    def _record(self, step: int, module: pl.LightningModule) -> None:
        if self._steps and step <= self._steps[-1]:
            return
        vector = FlatParameters(module).vector().float().cpu()
        self._steps.append(step)
        if self._folder:
            file = _record_file(self._folder, step)
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, vector.numpy())
        else:
            self._found.append(vector)


def read_checkpoints(folder: str, module: nn.Module, dtype: torch.dtype = torch.float32) -> Checkpoints:
    """The checkpoints in a folder: what `CheckpointRecorder` wrote, or state dicts of one's own.

    Files are .npy (flat vectors), .pt, .pth, .ckpt (torch.save of a state dict, or of a dict that has one under "state_dict", as
    Lightning's checkpoints do) or .safetensors. The last number in a file's name is its step. Each is loaded when it is asked for.

    Args:
        folder: of the files.
        module: of the architecture that they belong to; it lends its shapes and stays as it is.
        dtype: that vectors are given in.

    Raises:
        InputError: no files, names without numbers, two of one step, weights of another architecture or that are not finite.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{folder}: is no folder; give one of checkpoints")
    found: dict[int, Path] = {}
    for file in sorted(root.iterdir()):
        if file.suffix not in _SUFFIXES:
            continue
        numbers = re.findall(r"\d+", file.stem)
        if not numbers:
            raise InputError(f"{file}: its name has no step; rename it, e.g. to step-100{file.suffix}")
        step = int(numbers[-1])
        if step in found:
            raise InputError(f"{file}: is of step {step} as {found[step].name} is; keep one of them")
        found[step] = file
    if not found:
        raise InputError(f"{folder}: has no checkpoints; give files like step-100.pt ({', '.join(_SUFFIXES)})")
    steps = sorted(found)
    return Checkpoints(steps, [_loader(found[step], module) for step in steps], dtype)


def _loader(file: Path, module: nn.Module) -> Callable[[], Tensor]:
    flat = FlatParameters(module)

    def load() -> Tensor:
        if file.suffix == ".npy":
            vector = _array_loader(file)()
            flat.split(vector)  # of this architecture
            return vector
        import copy

        filled = copy.deepcopy(module)
        load_weights(filled, find_state_dict(load_tensors(file.read_bytes(), str(file)), str(file)), str(file))
        return FlatParameters(filled).vector()

    return load


def _record_file(folder: str, step: int) -> Path:
    return Path(folder, f"step-{step:08d}.npy")


def _array_loader(file: Path) -> Callable[[], Tensor]:
    def load() -> Tensor:
        try:
            array = np.load(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: cannot be read as an array ({error}); record it anew") from error
        return torch.from_numpy(array)

    return load
