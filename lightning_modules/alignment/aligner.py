"""The Lightning module that aligns two frozen encoders, and the data module that reads their features."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lightning_modules.alignment.dual_encoder import DualEncoder
from lightning_modules.alignment.heads import AlignmentHead, check_head
from lightning_modules.alignment.pairs import PairsData
from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import Choice, IntLogUniform, LogUniform, Uniform, When

_SAVED = "alignment"
_DEEP = When("layers", 2, 3, 4, 5, 6)


class ContrastiveAligner(DualEncoder):
    """min over phi and t:  info_nce(v, phi(u), t) for vectors v of a frozen image encoder and u of a frozen text encoder.

    The encoders are no part of it: it is trained on their vectors, computed once. Widths come from the data module, or from
    `connect`.

    Args:
        layers: of the head phi, see `AlignmentHead`; 1 is a linear map. With about 1,300 pairs more layers do not help.
        width: of its hidden layers.
        dropout: on them.
        image_head: whether a linear map of the image vectors is trained too, from the identity on.
        temperature: at the start.
        lr: largest learning rate.
        weight_decay: on the head, not on t.
        warmup: share of the steps over which the rate rises.
        seed: of the first weights and of dropout.

    Raises:
        InputError: a value out of range; vectors of another width than those it was made for.

    Source: arXiv 2210.03927. The defaults are ours.
    """

    def __init__(
        self,
        layers: Annotated[int, Choice((1, 2, 3, 4, 6))] = 1,
        width: Annotated[int, IntLogUniform(256, 4096), _DEEP] = 1024,
        dropout: Annotated[float, Uniform(0.0, 0.6), _DEEP] = 0.3,
        image_head: bool = False,
        temperature: Annotated[float, LogUniform(0.02, 0.3)] = 0.07,
        lr: Annotated[float, LogUniform(1e-4, 1e-2)] = 1e-3,
        weight_decay: Annotated[float, LogUniform(1e-3, 1.0)] = 0.1,
        warmup: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(temperature, lr, weight_decay, warmup, seed)
        check_head(layers, width, dropout)
        self.save_hyperparameters()
        self.text_head: AlignmentHead | None = None
        self.image_map: nn.Linear | None = None

    @property
    def head(self) -> AlignmentHead:
        """phi.

        Raises:
            InputError: no data have said yet how wide it is.
        """
        if self.text_head is None:
            raise InputError("module: has seen no features yet; train it, call `connect`, or load a checkpoint")
        return self.text_head

    def connect(self, d_text: int, d_image: int) -> None:
        """Make the head for encoders of these widths, if there is none yet.

        Raises:
            InputError: there is one of other widths.
        """
        options: Any = self.hparams
        if self.text_head is None:
            generator = torch.Generator().manual_seed(options["seed"])
            sizes = {name: options[name] for name in ("layers", "width", "dropout")}
            self.text_head = AlignmentHead(d_text, d_image, **sizes, generator=generator).to(self.device)
            if options["image_head"]:
                self.image_map = nn.Linear(d_image, d_image, bias=False).to(self.device)
                nn.init.eye_(self.image_map.weight)
        elif (self.head.d_text, self.head.d_image) != (d_text, d_image):
            raise InputError(
                f"encoders: have widths {d_text} (text) and {d_image} (image), the head {self.head.d_text} and "
                f"{self.head.d_image}; use the encoders it was made for"
            )

    def setup(self, stage: str) -> None:
        """Make the head for the data module's features."""
        super().setup(stage)
        data: PairsData = self.trainer.datamodule  # type: ignore[attr-defined]
        for name, side in (("images", data.training.images), ("texts", data.training.texts)):
            if side.dim() != 2 or not side.is_floating_point():
                raise InputError(f"{name}: are no vectors [n, D] but {list(side.shape)}; encode them first")
        self.connect(data.training.texts.shape[1], data.training.images.shape[1])

    def image_vectors(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The image encoder's vectors [n, D], mapped where there is an image head.

        Raises:
            InputError: they have another width.
        """
        if images.dim() != 2 or images.shape[1] != self.head.d_image:
            raise InputError(
                f"images: have shape {list(images.shape)}, the head takes [B, {self.head.d_image}]; use the encoder it was made for"
            )
        return images if self.image_map is None else self.image_map(images)

    def text_vectors(self, texts: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """phi [n, D] of the text encoder's vectors [n, d_text]."""
        found: Tensor = self.head(texts, generator)
        return found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the widths."""
        if self.text_head is not None:
            checkpoint[_SAVED] = {"d_text": self.head.d_text, "d_image": self.head.d_image}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the head that the weights are of."""
        if _SAVED in checkpoint:
            self.connect(**checkpoint[_SAVED])
