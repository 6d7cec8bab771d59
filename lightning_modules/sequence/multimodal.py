"""A Lightning module that answers questions about images, batches of text and images of any number, and sums of digits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import IntLogUniform, LogUniform
from lightning_modules.lightning_import import pl
from lightning_modules.sequence.decoders import make_decoder
from lightning_modules.sequence.patches import Array, Interleaved, PatchDecoder, patches_of
from lightning_modules.sequence.schedules import adamw, lightning_schedule, warmup_schedule
from lightning_modules.sequence.transformer import Positions, TransformerConfig


class MultimodalBatch(NamedTuple):
    """Sequences of text and images, padded.

    Args:
        tokens: [B, T].
        patches: [B, P, D], a sequence's patches first, then whatever fills it up.
        counts: patches of each sequence [B].
        scored: [B, T], whether a token is predicted for a loss.
    """

    tokens: Tensor
    patches: Tensor
    counts: Tensor
    scored: Tensor

    def flat_patches(self) -> Tensor:
        """The patches of all sequences, one after the other [n, D]."""
        real = torch.arange(self.patches.shape[1], device=self.counts.device) < self.counts[:, None]
        return self.patches[real]


def batch_of(questions: Sequence[Interleaved], answers: Sequence[Sequence[int]], padding: int = 0) -> MultimodalBatch:
    """Put questions and their answers into one batch; answers alone are scored.

    Args:
        questions: of text and images.
        answers: tokens of each, at least one.
        padding: the token behind shorter sequences; not the placeholder.

    Raises:
        InputError: not as many answers as questions, an empty one, or patches of different sizes.
    """
    if len(questions) != len(answers) or not len(questions):
        raise InputError(f"answers: there are {len(answers)} for {len(questions)} questions; give one each")
    if not all(len(answer) for answer in answers):
        raise InputError("answers: one is empty; give a token or more")
    sizes = {question.patches.shape[1] for question in questions if len(question.patches)}
    if len(sizes) > 1:
        raise InputError(
            f"questions: have patches of {sorted(sizes)} numbers; give images alike in channels and size of patch"
        )
    longest = max(len(q.tokens) + len(a) for q, a in zip(questions, answers, strict=True))
    counts = torch.tensor([len(question.patches) for question in questions])
    tokens = torch.full((len(questions), longest), padding)
    scored = torch.zeros(tokens.shape, dtype=torch.bool)
    patches = torch.zeros(len(questions), int(counts.max()), max(sizes, default=0))
    for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        start, end = len(question.tokens), len(question.tokens) + len(answer)
        tokens[row, :start], tokens[row, start:end] = question.tokens, torch.as_tensor(answer)
        scored[row, start:end] = True
        if len(question.patches):
            patches[row, : counts[row]] = question.patches
    return MultimodalBatch(tokens, patches, counts, scored)


class MultimodalModel(pl.LightningModule):
    """Cross-entropy of the scored tokens of a `MultimodalBatch`, each given the text and the images before it.

    Args:
        vocabulary: V, the placeholder with it.
        context: longest sequence, patches with it.
        patch: D, numbers in a patch.
        placeholder: the token that stands for a patch.
        layers: blocks of the transformer.
        width: of its residual stream.
        heads: of attention.
        positions: "learned", "rotary" or "none".
        init_std: of the first weights.
        lr: of AdamW after the warm-up, constant.
        weight_decay: of AdamW, on all parameters.
        warmup_steps: over which the learning rate rises.
        seed: of the first weights.

    Raises:
        InputError: a value out of range.
    """

    def __init__(
        self,
        vocabulary: int = 22,
        context: int = 10,
        patch: int = 16,
        placeholder: int = 21,
        layers: int = 2,
        width: int = 64,
        heads: int = 4,
        positions: Positions = "learned",
        init_std: float = 0.1,
        lr: Annotated[float, LogUniform(1e-5, 1e-2)] = 3e-3,
        weight_decay: Annotated[float, LogUniform(1e-4, 1.0)] = 0.01,
        warmup_steps: int = 50,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        config = TransformerConfig(vocabulary, context, layers, width, heads, positions=positions, init_std=init_std)
        decoder = make_decoder(config, seed=seed)
        self.model = PatchDecoder(decoder, patch, placeholder, torch.Generator().manual_seed(seed))

    def logits(self, batch: MultimodalBatch) -> tuple[Tensor, Tensor]:
        """Logits [n, V] of the scored tokens, and these tokens [n], sequence by sequence."""
        features = self.model.features(batch.tokens[:, :-1], batch.flat_patches())
        scored = batch.scored[:, 1:]
        return self.model.decoder.logits(features[scored]), batch.tokens[:, 1:][scored]

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Mean loss of the scored tokens."""
        loss = nn.functional.cross_entropy(*self.logits(MultimodalBatch(*batch)))
        self.log("train_loss", loss.detach(), batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Log the mean loss and the share of scored tokens that are predicted right."""
        logits, targets = self.logits(MultimodalBatch(*batch))
        self.log("val_loss", nn.functional.cross_entropy(logits, targets), batch_size=len(targets))
        self.log("val_accuracy", (logits.argmax(-1) == targets).float().mean(), batch_size=len(targets))

    def configure_optimizers(self) -> Any:
        """AdamW, a linear warm-up and then a constant learning rate."""
        options: Any = self.hparams
        optimizer = adamw(self, options["lr"], options["weight_decay"])
        schedule = warmup_schedule(optimizer, options["warmup_steps"], 0, shape="constant")
        return {"optimizer": optimizer, "lr_scheduler": lightning_schedule(schedule)}


PLUS, EQUALS, PATCH = 19, 20, 21
"""Tokens of questions about digits; those below are the sums 0 to 18."""
_SIDE = 4


class DigitSums(pl.LightningDataModule):
    """The sum of two handwritten digits: four patches, plus, four patches, equals, and the sum as one token.

    Images are scikit-learn's 8 by 8 digits; those of training and of validation are others.

    Args:
        train: questions for training.
        validation: questions for validation.
        held_out: share of the images that is in validation questions alone.
        batch_size: questions in a step.
        seed: of the split, the questions and the batches.

    Raises:
        InputError: a value out of range.
    """

    vocabulary_size = 22

    def __init__(
        self,
        train: int = 60_000,
        validation: int = 1000,
        held_out: float = 0.2,
        batch_size: Annotated[int, IntLogUniform(16, 513)] = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in {"train": train, "validation": validation, "batch_size": batch_size}.items():
            if value < 1:
                raise InputError(f"{name}: is {value}; give 1 or more")
        if not 0.01 <= held_out <= 0.99:
            raise InputError(f"held_out: is {held_out}; give 0.01 to 0.99")
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        patches = np.stack([patches_of(image.reshape(8, 8) / 16, _SIDE) for image in images])
        generator = np.random.default_rng(seed)
        order = generator.permutation(len(labels))
        border = round(held_out * len(labels))
        self._seed, self._batch_size = seed, batch_size
        self.train = _sums(patches, labels, generator.choice(order[border:], (train, 2)))
        self.validation = _sums(patches, labels, generator.choice(order[:border], (validation, 2)))

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches in a random order."""
        generator = torch.Generator().manual_seed(self._seed)
        return DataLoader(TensorDataset(*self.train), self._batch_size, shuffle=True, generator=generator)

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches of questions about unseen images."""
        return DataLoader(TensorDataset(*self.validation), 1000)


def _sums(patches: Array, labels: Array, pairs: Array) -> MultimodalBatch:
    """Questions about pairs of images [n, 2]."""
    squares = patches.shape[1]
    image = np.full((len(pairs), squares), PATCH)
    plus, equals = (np.full((len(pairs), 1), token) for token in (PLUS, EQUALS))
    tokens = np.concatenate([image, plus, image, equals, labels[pairs].sum(1)[:, None]], 1)
    scored = torch.zeros(tokens.shape, dtype=torch.bool)
    scored[:, -1] = True
    shown = torch.from_numpy(patches[pairs].reshape(len(pairs), 2 * squares, -1))
    return MultimodalBatch(torch.from_numpy(tokens), shown, torch.full((len(pairs),), 2 * squares), scored)
