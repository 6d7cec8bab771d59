"""Distillation: a small transformer learns next tokens from a teacher's k-sparse distributions, or from the tokens alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import Choice, IntLogUniform, LogUniform
from lightning_modules.lightning_import import pl
from lightning_modules.sequence.schedules import Shape
from lightning_modules.sequence.sparse_targets import KSparseTargets, Tail
from lightning_modules.sequence.target_files import StoredTargets
from lightning_modules.sequence.training import check_numbers, warmed_up
from lightning_modules.sequence.transformer import Transformer, TransformerConfig

Targets = KSparseTargets | Tensor
"""Of N tokens: the k largest probabilities, or all of them [N, V]."""
Batch = tuple[Tensor, Targets | None]
"""Tokens [B, T], and the teacher's targets of the tokens after each of the first T - 1, sequence by sequence."""


class DistillationData(pl.LightningDataModule):
    """Sequences of tokens with a teacher's targets; without targets the tokens themselves are learned.

    Args:
        tokens: [n, T].
        targets: of n (T - 1) tokens: what the teacher says after each token but a sequence's last, as k-sparse targets or as
            probabilities [n (T - 1), V]. Those of a file are read batch by batch.
        batch_size: sequences in a step.
        seed: of the batches.

    Raises:
        InputError: another number of targets than tokens.
    """

    def __init__(
        self,
        tokens: Tensor,
        targets: Targets | StoredTargets | None = None,
        batch_size: Annotated[int, IntLogUniform(4, 513)] = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if tokens.dim() != 2 or tokens.shape[1] < 2:
            raise InputError(f"tokens: have shape {list(tokens.shape)}; give sequences of 2 tokens or more")
        if batch_size < 1:
            raise InputError(f"batch_size: is {batch_size}; give 1 or more")
        wanted = len(tokens) * (tokens.shape[1] - 1)
        if targets is not None and len(targets) != wanted:
            raise InputError(f"targets: are of {len(targets)} tokens; give those of {wanted}")
        self._tokens, self._targets, self._size, self._seed = tokens, targets, batch_size, seed

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches in a random order."""
        numbers = TensorDataset(torch.arange(len(self._tokens)))
        generator = torch.Generator().manual_seed(self._seed)
        return DataLoader(numbers, self._size, shuffle=True, generator=generator, collate_fn=self._collate)

    def _collate(self, examples: list[tuple[Tensor]]) -> Batch:
        numbers = torch.stack([example[0] for example in examples])
        length = self._tokens.shape[1] - 1
        rows = (numbers[:, None] * length + torch.arange(length)).flatten()
        if isinstance(self._targets, StoredTargets):
            return self._tokens[numbers], self._targets.rows(rows)
        return self._tokens[numbers], None if self._targets is None else self._targets[rows]


class DistillationModule(pl.LightningModule):
    """min over students of -sum_i q_i log p_i, q the teacher's k-sparse distribution, p the student's, mean over tokens.

    Args:
        vocabulary: V.
        context: T - 1.
        layers: of the student.
        width: of its residual stream.
        heads: of attention.
        hidden: of its feed-forward networks; 0: 4 width.
        init_std: of its first weights.
        lr: peak learning rate.
        weight_decay: AdamW's.
        warmup: steps in which the rate rises.
        final_share: of the peak rate, at the end.
        schedule: "cosine" or "constant" after the warm-up.
        seed: of the first weights.

    Raises:
        InputError: a value out of range.

    Source: arXiv 2507.06261, section 2.3, for the k-sparse teacher; arXiv 1503.02531 for the loss.
    """

    def __init__(
        self,
        vocabulary: int = 64,
        context: int = 50,
        layers: Annotated[int, Choice((1, 2, 3, 4))] = 1,
        width: Annotated[int, Choice((32, 64, 128))] = 32,
        heads: int = 4,
        hidden: int = 0,
        init_std: Annotated[float, LogUniform(0.01, 0.3)] = 0.1,
        lr: Annotated[float, LogUniform(1e-4, 1e-2)] = 5e-3,
        weight_decay: Annotated[float, LogUniform(1e-4, 1.0)] = 0.01,
        warmup: Annotated[int, IntLogUniform(10, 1000)] = 50,
        final_share: float = 0.05,
        schedule: Shape = "cosine",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_numbers({"lr": lr, "init_std": init_std}, {"weight_decay": weight_decay})
        self.save_hyperparameters()
        config = TransformerConfig(vocabulary, context, layers, width, heads, hidden=hidden or None, init_std=init_std)
        self.model = Transformer(config, torch.Generator().manual_seed(seed))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of each next token."""
        found: Tensor = self.model(tokens)
        return found

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of the batch's tokens."""
        tokens, targets = batch
        logits = self(tokens[:, :-1]).flatten(0, 1)
        if targets is None:
            loss = nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
        elif isinstance(targets, Tensor):
            loss = nn.functional.cross_entropy(logits, targets)
        else:
            loss = targets.cross_entropy(logits).mean()
        self.log("train_loss", loss.detach())
        return loss

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move the tokens and the targets."""
        tokens, targets = batch
        return tokens.to(device), None if targets is None else targets.to(device)

    def configure_optimizers(self) -> Any:
        """AdamW, warmed up."""
        return warmed_up(self)

    @torch.no_grad()
    def probabilities(self, tokens: Tensor) -> Tensor:
        """What the student says [n (T - 1), V] after each token of [n, T] but a sequence's last."""
        training = self.training
        self.eval()
        found: Tensor = self(tokens[:, :-1].to(self.device)).softmax(-1).flatten(0, 1).cpu()
        self.train(training)
        return found


def teach(
    teacher: DistillationModule, tokens: Tensor, k: int, tail: Tail = "renorm", sequences: int = 64
) -> Iterator[KSparseTargets]:
    """A teacher's k-sparse targets for tokens [n, T], some sequences at a time, as `write_targets` stores them."""
    for part in torch.split(tokens, sequences):
        yield KSparseTargets.from_probs(teacher.probabilities(part), k, tail)


def divergence(truth: Tensor, found: Tensor) -> float:
    """Mean KL(truth || found) in nats of distributions [N, V], summed in float64; what is impossible in truth adds nothing."""
    truth, found = truth.double(), found.double()
    terms = torch.special.xlogy(truth, truth) - torch.special.xlogy(truth, found)
    return float(terms.sum(-1).mean())
