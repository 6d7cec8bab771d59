"""Draws Gaussian noise, adds it and counts a classifier's answers in large batches, on the device of the classifier."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.errors import InputError

Noise = Literal["independent", "shared"]
Precision = Literal["float32", "bf16", "fp16"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# torch fills normal numbers in groups of 16: pieces of 16 examples leave the stream the same however it is cut on a CPU.
_GROUP = 16


class NoisyCounter:
    """Counts the classes that a classifier gives to noisy copies of examples.

    Samples of many examples share a batch; noise is drawn into the batch in place, the examples are added, and the
    answers are counted, all on the classifier's device and without looking at a single sample from Python.

    Args:
        model: maps [B, ...] to logits [B, C], each row by itself.
        num_classes: C.
        sigma: standard deviation of the noise.
        batch_size: samples a forward pass, rounded to a multiple of 16. Counts do not depend on it on a CPU (but for the
            rounding of the classifier's own sums); on a GPU the stream of noise does.
        precision: "bf16" or "fp16" run the classifier under autocast: it is then another classifier, which the
            certificate is about.
        channels_last: lay images out channels last, which many convolutions are faster with.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        sigma: float,
        batch_size: int = 400,
        precision: Precision = "float32",
        channels_last: bool = False,
    ) -> None:
        self._model, self._classes, self._sigma = model, num_classes, sigma
        self._batch = max(_GROUP, batch_size // _GROUP * _GROUP)
        self._piece = max(_GROUP, self._batch // 4 // _GROUP * _GROUP)
        self._precision, self._channels_last = precision, channels_last
        first = next(iter([*model.parameters(), *model.buffers()]), None)
        self.device = first.device if first is not None else torch.device("cpu")
        self._buffer = torch.empty(0)

    @torch.inference_mode()
    def count(self, inputs: Tensor, generators: Sequence[torch.Generator], amount: int) -> np.ndarray:
        """Count answers to `amount` noisy copies of each example, every example with its own stream of noise.

        Args:
            inputs: [A, ...] float32 on the device.
            generators: A of them, on the device; their state moves on.
            amount: samples of each example.

        Returns:
            Counts [A, C + 1] int64; the last column counts answers with a NaN or infinite logit.
        """
        buffer = self._space(inputs)
        totals = torch.zeros(len(inputs) * (self._classes + 1), dtype=torch.int64, device=self.device)
        owners: list[int] = []
        sizes: list[int] = []
        filled = 0

        def flush() -> None:
            nonlocal filled
            if filled:
                owner = torch.repeat_interleave(
                    torch.tensor(owners, device=self.device),
                    torch.tensor(sizes, device=self.device),
                    output_size=filled,
                )
                self._tally(totals, buffer[:filled], owner)
            owners.clear()
            sizes.clear()
            filled = 0

        for example, (x, generator) in enumerate(zip(inputs, generators, strict=True)):
            left = amount
            while left:
                size = min(left, self._piece)
                if filled + size > self._batch:
                    flush()
                piece = buffer[filled : filled + size]
                piece.normal_(generator=generator)
                torch.add(x, piece, alpha=self._sigma, out=piece)
                owners.append(example)
                sizes.append(size)
                filled += size
                left -= size
        flush()
        return totals.view(len(inputs), -1).cpu().numpy()

    @torch.inference_mode()
    def count_shared(self, inputs: Tensor, generator: torch.Generator, amount: int) -> np.ndarray:
        """Count as `count` does, with one block of noise for all examples: each sees the same `amount` draws.

        Drawing costs one example's worth instead of A. For each example by itself the draws are independent, so its
        certificate is as good; the examples' certificates are no longer independent of each other.
        """
        buffer = self._space(inputs)
        totals = torch.zeros(len(inputs) * (self._classes + 1), dtype=torch.int64, device=self.device)
        noise = torch.empty((min(self._piece, amount), *inputs.shape[1:]), device=self.device)
        for start in range(0, amount, self._piece):
            block = noise[: min(self._piece, amount - start)]
            block.normal_(generator=generator)
            together = self._batch // len(block)
            for first in range(0, len(inputs), together):
                some = inputs[first : first + together]
                filled = len(some) * len(block)
                batch = buffer[:filled].view(len(some), *block.shape)
                torch.add(some.unsqueeze(1), block, alpha=self._sigma, out=batch)
                owner = torch.arange(first, first + len(some), device=self.device).repeat_interleave(len(block))
                self._tally(totals, batch.flatten(0, 1), owner)
        return totals.view(len(inputs), -1).cpu().numpy()

    def _space(self, inputs: Tensor) -> Tensor:
        shape = (self._batch, *inputs.shape[1:])
        if self._buffer.shape != shape:
            self._buffer = torch.empty(shape, device=self.device)
        return self._buffer

    def _tally(self, totals: Tensor, batch: Tensor, owner: Tensor) -> None:
        """Add the answers to a batch [B, ...] of samples that belong to examples `owner` [B]."""
        logits = self.logits(batch)
        # NaN and infinity make a sum NaN or infinite: one number a row tells whether all are finite.
        answer = torch.where(logits.sum(1).isfinite(), logits.argmax(1), self._classes)
        totals += torch.bincount(owner * (self._classes + 1) + answer, minlength=len(totals))

    def logits(self, batch: Tensor) -> Tensor:
        """Run the classifier on [B, ...]; logits [B, C] float32.

        Raises:
            InputError: when it does not return [B, num_classes].
        """
        if self._channels_last and batch.dim() == 4:
            batch = batch.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            logits: Tensor = self._model(batch)
        if not isinstance(logits, Tensor) or logits.shape != (len(batch), self._classes):
            found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(
                f"model: returned {found} for {len(batch)} examples, not logits [{len(batch)}, {self._classes}]; "
                "give a classifier of the data's classes"
            )
        return logits.float()

    @contextlib.contextmanager
    def _autocast(self):  # type: ignore[no-untyped-def]
        if self._precision == "float32":
            yield
            return
        with warnings.catch_warnings(), torch.autocast(self.device.type, _DTYPES[self._precision]):
            yield


def generator_on(device: torch.device, seed: int) -> torch.Generator:
    """Make a generator on a device from a 63-bit seed."""
    return torch.Generator(device=device).manual_seed(seed)
