"""The same paths with the graph in the input: a fresh star in every example, whose edges are listed before the question."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import Choice, IntLogUniform, LogUniform
from lightning_modules.lightning_import import pl
from lightning_modules.sequence.decoders import Mixer, make_decoder
from lightning_modules.sequence.decoding import decode
from lightning_modules.sequence.schedules import Shape
from lightning_modules.sequence.training import check_numbers, warmed_up
from lightning_modules.sequence.transformer import TransformerConfig

_VALIDATION_STEP = 2**31
_VALIDATED = 250


class InContextDataset(IterableDataset[Tensor]):
    """Endless batches of path stars on random labels: `u v` of every edge in random order, `[Q] root leaf`, then the path.

    Labels are 0 to N - 1, then come Q and a dummy. Edges are written away from the root. Batch k comes from (seed, k) alone.

    Args:
        arms: d.
        length: l, nodes of an arm, the root counted; the answer has as many.
        labels: N, which nodes are called by.
        reverse: whether the path is written from the leaf to the root.
        teacherless: whether the answer is hidden from the model: its inputs are dummies, and all of it is told at once.
        batch_size: examples of a batch.
        seed: of the draws.

    Raises:
        InputError: fewer than 2 arms or 3 nodes, or fewer labels than nodes.

    Source: arXiv 2403.06963.
    """

    def __init__(
        self,
        arms: int = 2,
        length: int = 5,
        labels: int = 12,
        reverse: bool = False,
        teacherless: bool = False,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        if arms < 2 or length < 3:
            raise InputError(f"arms, length: {arms} arms of {length} nodes; give 2 or more of 3 or more")
        nodes = 1 + arms * (length - 1)
        if labels < nodes:
            raise InputError(f"labels: {labels} for {nodes} nodes; give {nodes} or more")
        if batch_size < 1:
            raise InputError(f"batch_size: is {batch_size}; give 1 or more")
        self.arms, self.length, self.labels, self.nodes = arms, length, labels, nodes
        self.reverse, self.teacherless = reverse, teacherless
        self.question, self.dummy, self.vocabulary = labels, labels + 1, labels + 2
        self.prefix = 2 * (nodes - 1) + 3
        self.context = self.prefix + length
        self._size, self._seed = batch_size, seed
        own = torch.arange(1, nodes).view(arms, length - 1)
        self._arms = torch.cat([torch.zeros(arms, 1, dtype=torch.int64), own], 1)  # [d, l]

    def __iter__(self) -> Iterator[Tensor]:
        """Begin with batch 0."""
        step = 0
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int, size: int | None = None) -> Tensor:
        """Batch `step`: [B, prefix + l] tokens, of `size` examples if that is given."""
        count = size or self._size
        state = int(np.random.SeedSequence([self._seed, step]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(state)
        label = torch.rand(count, self.labels, generator=generator).argsort(1)[:, : self.nodes]
        paths = label[:, self._arms]  # [B, d, l]
        edges = torch.stack([paths[..., :-1], paths[..., 1:]], -1).flatten(1, 2)  # [B, E, 2]
        order = torch.rand(edges.shape[:2], generator=generator).argsort(1)
        shuffled = edges.gather(1, order[..., None].expand_as(edges)).flatten(1)
        goal = paths[:, 0]  # labels are random, so that the first arm is any arm
        asked = torch.stack([torch.full_like(goal[:, 0], self.question), goal[:, 0], goal[:, -1]], 1)
        return torch.cat([shuffled, asked, goal.flip(1) if self.reverse else goal], 1)


class InContextData(pl.LightningDataModule):
    """Fresh graphs to train on, and 1,000 others to validate on.

    Args:
        arms: see `InContextDataset`, as for the others.
        length: of an arm.
        labels: for the nodes.
        reverse: whether paths are written backwards.
        teacherless: whether the answer is hidden from the model.
        batch_size: examples of a batch.
        validation: number of graphs to validate on.
        seed: of the draws.

    Raises:
        InputError: a value out of range.
    """

    def __init__(
        self,
        arms: int = 2,
        length: int = 5,
        labels: int = 12,
        reverse: bool = False,
        teacherless: bool = False,
        batch_size: Annotated[int, IntLogUniform(16, 512)] = 64,
        validation: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if validation < 1:
            raise InputError(f"validation: is {validation}; give 1 or more")
        self.dataset = InContextDataset(arms, length, labels, reverse, teacherless, batch_size, seed)
        self._validation = validation

    def train_dataloader(self) -> InContextDataset:
        """Endless batches of fresh graphs."""
        return self.dataset

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Graphs that no training step draws."""
        return DataLoader(cast(Any, self.validation), batch_size=_VALIDATED)

    @property
    def validation(self) -> Tensor:
        """These [n, T]."""
        return self.dataset.batch(_VALIDATION_STEP, self._validation)


class InContextModule(pl.LightningModule):
    """min over decoders: next-token cross-entropy on the path alone.

    Args:
        layers: of the decoder.
        width: of its residual stream.
        heads: of attention.
        mixer: of positions: "attention" or "mamba".
        init_std: of the first weights.
        lr: peak learning rate.
        weight_decay: AdamW's.
        warmup: steps in which the rate rises.
        final_share: of the peak rate, at the end of the cosine.
        schedule: "cosine" or "constant" after the warm-up.
        fused: whether attention uses torch's kernels.
        seed: of the first weights.

    Raises:
        InputError: a value out of range; at the start of a training, data that are no `InContextData`.

    Source: arXiv 2510.26745, section 2; arXiv 2403.06963.
    """

    def __init__(
        self,
        layers: Annotated[int, Choice((1, 2, 3, 4))] = 2,
        width: Annotated[int, Choice((32, 64, 128))] = 64,
        heads: int = 4,
        mixer: Annotated[Mixer, Choice(("attention", "mamba"))] = "attention",
        init_std: Annotated[float, LogUniform(0.01, 0.3)] = 0.12,
        lr: Annotated[float, LogUniform(1e-4, 1e-2)] = 2e-3,
        weight_decay: Annotated[float, LogUniform(1e-4, 1.0)] = 0.01,
        warmup: Annotated[int, IntLogUniform(10, 1000)] = 100,
        final_share: float = 0.05,
        schedule: Shape = "constant",
        fused: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_numbers({"lr": lr, "init_std": init_std}, {"weight_decay": weight_decay})
        self.save_hyperparameters()
        self.model: Any = None
        self._sizes: dict[str, int] = {}
        TransformerConfig(1, 1, layers, width, heads, init_std=init_std)  # says now what is wrong with the sizes

    def learn(self, dataset: InContextDataset) -> None:
        """Take the labels and lengths, and make the decoder if there is none yet."""
        names = ("vocabulary", "context", "prefix")
        hidden = dataset.dummy if dataset.teacherless else -1
        self._make({name: getattr(dataset, name) for name in names} | {"hidden": hidden})

    def setup(self, stage: str) -> None:
        """Make the decoder for the data module's examples."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, InContextData):
            raise InputError("data: are no stars to be read; give InContextData")
        self.learn(data.dataset)

    def per_example_losses(self, batch: Tensor) -> Tensor:
        """Losses [B] of examples [B, T], each the mean over its path."""
        logits, targets = self._told(batch)
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return losses.view_as(targets).mean(1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Mean loss."""
        loss = self.per_example_losses(batch).mean()
        self.log("train_loss", loss.detach())
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log val_loss, accuracy at each place of the path with what stands before it given, and of the whole path decoded."""
        self.log("val_loss", self.per_example_losses(batch).mean(), batch_size=len(batch))
        for name, value in self.measure(batch).items():
            self.log(f"val_{name}", value, batch_size=len(batch))

    @torch.no_grad()
    def measure(self, batch: Tensor) -> dict[str, float]:
        """Of examples [B, T]: token_0, token_1, ... with the path before them given, and full_path, decoded token by token."""
        logits, targets = self._told(batch)
        told = logits.argmax(-1)
        right = (told == targets).float().mean(0).tolist()
        if self._sizes["hidden"] < 0:
            told = decode(self.model, batch[:, : self._sizes["prefix"]], targets.shape[1])
        found = {f"token_{place}": value for place, value in enumerate(right)}
        return found | {"full_path": float((told == targets).all(1).float().mean())}

    def configure_optimizers(self) -> Any:
        """AdamW, warmed up."""
        return warmed_up(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save how large the examples were."""
        checkpoint["in_context"] = self._sizes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the decoder that the weights are of."""
        if checkpoint.get("in_context"):
            self._make(checkpoint["in_context"])

    def _make(self, sizes: dict[str, int]) -> None:
        if self.model is not None and self._sizes != sizes:
            raise InputError(f"data: need {sizes}, the decoder has {self._sizes}; make another module")
        self._sizes = sizes
        if self.model is None:
            names = ("layers", "width", "heads", "init_std", "fused")
            config = TransformerConfig(
                sizes["vocabulary"], sizes["context"], **{name: self.hparams[name] for name in names}
            )
            self.model = make_decoder(config, self.hparams["mixer"], seed=self.hparams["seed"]).to(self.device)

    def _told(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, l, V] of the path's tokens, and these [B, l]."""
        prefix, hidden = self._sizes["prefix"], self._sizes["hidden"]
        inputs, targets = batch[:, :-1], batch[:, prefix:]
        if hidden >= 0:
            inputs = torch.cat([inputs[:, :prefix], torch.full_like(targets[:, 1:], hidden)], 1)
        return self.model.logits(self.model.features(inputs)[:, prefix - 1 :]), targets
