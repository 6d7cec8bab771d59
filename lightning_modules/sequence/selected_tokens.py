"""Next-token prediction of some tokens only: traces without their prompts, or without what a budget forced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import Choice, IntLogUniform, LogUniform
from lightning_modules.lightning_import import pl
from lightning_modules.sequence.draws import generator_of
from lightning_modules.sequence.schedules import Shape
from lightning_modules.sequence.training import check_numbers, warmed_up
from lightning_modules.sequence.transformer import Transformer, TransformerConfig

Batch = tuple[Tensor, Tensor]
"""Tokens [B, T], and what each is worth in the loss [B, T], 0 or more."""
Draw = Callable[[int, torch.Generator], Batch]
"""Draws a batch of a size."""


class SelectedTokensData(pl.LightningDataModule):
    """Endless batches of fresh examples; batch k comes from (seed, k) alone.

    Args:
        draw: makes a batch of a size with a generator.
        batch_size: examples of a batch.
        seed: of the draws.

    Raises:
        InputError: a batch size below 1.
    """

    def __init__(self, draw: Draw, batch_size: Annotated[int, IntLogUniform(16, 513)] = 128, seed: int = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"batch_size: is {batch_size}; give 1 or more")
        self._draw, self._size, self._seed = draw, batch_size, seed

    def batch(self, step: int) -> Batch:
        """Batch `step`."""
        return self._draw(self._size, generator_of(self._seed, step))

    def train_dataloader(self) -> _Batches:
        """The batches, from number 0 on."""
        return _Batches(self)


class _Batches(IterableDataset[Batch]):
    def __init__(self, data: SelectedTokensData) -> None:
        self._data = data

    def __iter__(self) -> Iterator[Batch]:
        step = 0
        while True:
            yield self._data.batch(step)
            step += 1


class SelectedTokensModule(pl.LightningModule):
    """min over decoders of sum of w_t * cross-entropy of token t given those before it / sum of w_t.

    Args:
        vocabulary: V.
        context: T at most.
        layers: of the decoder.
        width: of its residual stream.
        heads: of attention.
        init_std: of its first weights.
        lr: peak learning rate.
        weight_decay: AdamW's.
        warmup: steps in which the rate rises.
        final_share: of the peak rate, at the end.
        schedule: "cosine" or "constant" after the warm-up.
        seed: of the first weights.

    Raises:
        InputError: a value out of range.

    Source: field standard.
    """

    def __init__(
        self,
        vocabulary: int = 9,
        context: int = 21,
        layers: Annotated[int, Choice((1, 2, 3, 4))] = 2,
        width: Annotated[int, Choice((32, 64, 128))] = 64,
        heads: int = 4,
        init_std: Annotated[float, LogUniform(0.01, 0.3)] = 0.1,
        lr: Annotated[float, LogUniform(1e-4, 1e-2)] = 3e-3,
        weight_decay: Annotated[float, LogUniform(1e-4, 1.0)] = 0.01,
        warmup: Annotated[int, IntLogUniform(10, 1000)] = 50,
        final_share: float = 0.05,
        schedule: Shape = "cosine",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_numbers({"lr": lr, "init_std": init_std}, {"weight_decay": weight_decay})
        self.save_hyperparameters()
        config = TransformerConfig(vocabulary, context, layers, width, heads, init_std=init_std)
        self.model = Transformer(config, torch.Generator().manual_seed(seed))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of each next token."""
        found: Tensor = self.model(tokens)
        return found

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Weighted mean loss of the batch."""
        tokens, weights = batch
        losses = nn.functional.cross_entropy(
            self(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        )
        wanted = weights[:, 1:].flatten()
        loss = (losses * wanted).sum() / wanted.sum().clamp(min=1)
        self.log("train_loss", loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW, warmed up."""
        return warmed_up(self)
