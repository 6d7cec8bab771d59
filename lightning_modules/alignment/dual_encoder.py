"""How images and texts are brought into one space, whichever parts of the two towers are trained."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.alignment.losses import duplicates_floor, first_log_scale, hold_scale, info_nce
from lightning_modules.alignment.pairs import PairsData, PairTensors
from lightning_modules.alignment.retrieval import retrieval_recall
from lightning_modules.errors import InputError
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import pl, quiet_lightning
from lightning_modules.sequence.schedules import lightning_schedule, warmup_schedule

RECALLED = (1, 5, 10)
"""k of the recalls that a validation logs."""
_ROWS = 1024


class DualEncoder(pl.LightningModule):
    """min over towers and t:  info_nce(image tower, text tower, t), trained on `PairsData`.

    AdamW with weight decay on all but t; the learning rate rises and falls once. Both sides of the pairs are kept on the module's
    device while it trains. Where several processes share a batch, each tells its own part of it apart.

    Args:
        temperature: at the start; it is learned, at 0.01 or above.
        lr: largest learning rate.
        weight_decay: AdamW's.
        warmup: share of the steps over which the rate rises.
        seed: of what a tower draws while it trains.

    Raises:
        InputError: a value out of range; at the start of a training, data that are no `PairsData`.

    Source: arXiv 2210.03927; optimiser and schedule are ours.
    """

    def __init__(self, temperature: float, lr: float, weight_decay: float, warmup: float, seed: int) -> None:
        super().__init__()
        if not 0 < lr < float("inf"):
            raise InputError(f"lr: is {lr}; give a number above 0")
        if not 0 <= weight_decay < float("inf"):
            raise InputError(f"weight_decay: is {weight_decay}; give 0 or more")
        if not 0 <= warmup < 1:
            raise InputError(f"warmup: is {warmup}; give a share of the steps, 0 or more and below 1")
        self._lr, self._decay, self._warmup, self._seed = lr, weight_decay, warmup, seed
        self.log_scale = first_log_scale(temperature)
        self._training: PairTensors | None = None
        self._validation: PairTensors | None = None
        self._found: list[tuple[Tensor, Tensor]] = []

    @abstractmethod
    def image_vectors(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Vectors [n, D] of images; with a generator as in training."""

    @abstractmethod
    def text_vectors(self, texts: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Vectors [n, D] of texts; with a generator as in training."""

    @property
    def scale(self) -> float:
        """e^t, the factor of the cosines."""
        return float(self.log_scale.detach().exp())

    def embed_images(self, images: Tensor | np.ndarray) -> Tensor:
        """Unit vectors [n, D] of images, on the CPU."""
        return self._embed(self.image_vectors, images)

    def embed_texts(self, texts: Tensor | np.ndarray) -> Tensor:
        """Unit vectors [n, D] of texts, on the CPU."""
        return self._embed(self.text_vectors, texts)

    def setup(self, stage: str) -> None:
        """Look at the data module."""
        if not isinstance(getattr(self.trainer, "datamodule", None), PairsData):
            raise InputError("data: are no pairs of images and captions; give PairsData")

    def on_fit_start(self) -> None:
        """Bring the pairs to where they are needed, once."""
        data = cast(PairsData, self.trainer.datamodule)  # type: ignore[attr-defined]
        self._training = data.training.to(self.device)
        self._validation = None if data.validation is None else data.validation.to(self.device)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """The loss of the pairs with these row numbers."""
        assert self._training is not None
        pairs = self._training
        state = np.random.SeedSequence([self._seed, self.global_step, self.global_rank]).generate_state(1)
        generator = torch.Generator(self.device).manual_seed(int(state[0]))
        images = self.image_vectors(pairs.images[batch], generator)
        loss = info_nce(images, self.text_vectors(pairs.texts[batch], generator), self.log_scale)
        self.log("train_loss", loss.detach())
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update, and keep the temperature in its range."""
        super().optimizer_step(*args, **kwargs)
        hold_scale(self.log_scale)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log the loss as val_loss, and as val_floor the least that it can be with these captions."""
        assert self._validation is not None
        pairs = self._validation
        images, texts = self.image_vectors(pairs.images[batch]), self.text_vectors(pairs.texts[batch])
        if len(batch) > 1:
            self.log("val_loss", info_nce(images, texts, self.log_scale), batch_size=len(batch))
            self.log("val_floor", duplicates_floor(pairs.captions[batch].tolist()), batch_size=len(batch))
        self._found.append((images, texts))

    def on_validation_epoch_end(self) -> None:
        """Log recall at 1, 5 and 10 among all validation pairs: val_image_to_text_K and val_text_to_image_K."""
        images, texts = (torch.cat(side) for side in zip(*self._found, strict=True))
        self._found.clear()
        recall = retrieval_recall(images, texts, RECALLED)
        for k in RECALLED:
            self.log(f"val_image_to_text_{k}", recall.image_to_text[k])
            self.log(f"val_text_to_image_{k}", recall.text_to_image[k])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What AdamW trains, with each group's learning rate; frozen parameters are left out, t is not decayed."""
        trained = [p for p in self.parameters() if p.requires_grad and p is not self.log_scale]
        groups = [{"params": trained, "lr": self._lr, "weight_decay": self._decay}] if trained else []
        return [*groups, {"params": [self.log_scale], "lr": self._lr, "weight_decay": 0.0}]

    def configure_optimizers(self) -> Any:
        """AdamW, with a learning rate that rises over the warm-up and then falls to 0 along half a cosine."""
        optimizer = torch.optim.AdamW(self.parameter_groups(), fused=True)
        steps = max(1, int(self.trainer.max_steps))
        schedule = warmup_schedule(optimizer, round(self._warmup * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": lightning_schedule(schedule)}

    @torch.no_grad()
    def _embed(self, tower: Any, inputs: Tensor | np.ndarray) -> Tensor:
        # Cached features are mapped read-only, which torch's tensors cannot be.
        given = inputs if isinstance(inputs, Tensor) else torch.from_numpy(np.require(inputs, requirements="W"))
        parts = torch.split(given, _ROWS)
        return F.normalize(torch.cat([tower(part.to(self.device)) for part in parts]), dim=1).cpu()


class Frozen(nn.Module):
    """An encoder that is not trained: no gradient, no dropout, no batch statistics, whatever mode it is asked for.

    Args:
        encoder: stays as it is; its parameters no longer ask for gradients.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Tensor:
        """What the encoder gives, without gradient."""
        found: Tensor = self.encoder(*inputs)
        return found


def fit(
    module: DualEncoder,
    pairs: PairTensors,
    steps: int,
    batch_size: int = 256,
    seed: int = 0,
    callbacks: Sequence[pl.Callback] = (),
) -> None:
    """Train in place, without validation; on a GPU where there is one.

    Args:
        module: what is trained; it is on the CPU, in evaluation mode, afterwards.
        pairs: what it learns.
        steps: parameter updates.
        batch_size: pairs of a batch.
        seed: of the batches.
        callbacks: that watch.

    Raises:
        InputError: steps below 1, or too few pairs.
    """
    if steps < 1:
        raise InputError(f"steps: is {steps}; give 1 or more")
    data = PairsData(pairs, batch_size=batch_size, seed=seed)
    with quiet_lightning():
        trainer = make_trainer(steps, list(callbacks), num_sanity_val_steps=0, limit_val_batches=0)
        trainer.fit(module, datamodule=data)
    module.cpu().eval()
    module._training = None  # the features may be large, and the module may be kept
