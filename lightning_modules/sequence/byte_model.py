"""A language model of bytes, for a person's own text with no other setting than sizes."""

from __future__ import annotations

from typing import Annotated

from lightning_modules.hyperparameters import Choice, LogUniform
from lightning_modules.sequence.language_model import LanguageModel
from lightning_modules.sequence.transformer import Positions


class ByteLM(LanguageModel):
    """`LanguageModel` of the 256 bytes, dense or with experts; train it on `TextData` (vocabulary "byte") of the same context.

    Args:
        context: bytes of a window.
        layers: blocks of the transformer.
        width: of its residual stream.
        heads: of attention.
        hidden: of its feed-forward networks; 0: 4 width.
        init_std: of its first weights.
        lr: of AdamW after the warm-up, constant.
        weight_decay: of AdamW, on all parameters.
        warmup_steps: over which the learning rate rises.
        seed: of the first weights.
        positions: "learned", "rotary" or "none".
        taps: positions that are mixed before attention, a position's own and those before it; 1: no mixing.
        experts: feed-forward networks of a block; 1: a dense one.
        per_token: experts that a byte goes through; each has hidden / per_token hidden units.
        capacity_factor: of experts in training; 0: no limit.
        balance_weight: of the balance loss of each layer of experts.
        z_weight: of the z-loss of each; 1e-3 is usual.

    Raises:
        InputError: a value out of range.

    Example:
        shiftlab train --method lightning_modules.sequence.byte_model:ByteLM
        --dataset lightning_modules.sequence.text:TextData
        --hyperparameters '{path: articles/, experts: 8}' --run runs/sparse
    """

    def __init__(
        self,
        context: int = 64,
        layers: int = 2,
        width: int = 64,
        heads: int = 4,
        hidden: int = 0,
        init_std: float = 0.1,
        lr: Annotated[float, LogUniform(1e-5, 1e-2)] = 1e-3,
        weight_decay: Annotated[float, LogUniform(1e-3, 1.0)] = 0.1,
        warmup_steps: int = 100,
        seed: int = 0,
        positions: Positions = "learned",
        taps: int = 1,
        experts: Annotated[int, Choice((1, 4, 8, 16))] = 1,
        per_token: Annotated[int, Choice((1, 2))] = 2,
        capacity_factor: float = 1.25,
        balance_weight: Annotated[float, LogUniform(1e-4, 1.0)] = 0.01,
        z_weight: float = 0.0,
    ) -> None:
        super().__init__(
            256, context, 1, layers, width, heads, hidden, init_std, lr, weight_decay, warmup_steps, seed,
            positions, taps, experts, per_token, capacity_factor, balance_weight, z_weight,
        )  # fmt: skip
