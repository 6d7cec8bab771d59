"""Next-token prediction with the small transformer, as a Lightning module whose every token's loss can be asked for."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import LogUniform
from lightning_modules.lightning_import import pl
from lightning_modules.sequence.decoders import make_decoder
from lightning_modules.sequence.experts import ExpertsConfig, router_loss, watched
from lightning_modules.sequence.schedules import adamw, lightning_schedule, warmup_schedule
from lightning_modules.sequence.transformer import Positions, TransformerConfig


class LanguageModel(pl.LightningModule):
    """Cross-entropy of each token given those before it, from token number `answer_start` on.

    Batches are tokens [B, T], or tuples whose first part they are. With experts the training loss also has their balance loss,
    summed over layers; the losses of tokens have not.

    Args:
        vocabulary: V.
        context: T at most.
        answer_start: the first token that is predicted for a loss.
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
        per_token: experts that a token goes through; each has hidden / per_token hidden units.
        capacity_factor: of experts in training; 0: no limit.
        balance_weight: of the balance loss of each layer of experts.
        z_weight: of the z-loss of each; 1e-3 is usual.

    Raises:
        InputError: a value out of range.

    Example:
        >>> module = LanguageModel(experts=8, per_token=2)
        >>> module.transformer.blocks[0].feed_forward.up.shape
        torch.Size([8, 64, 128])
    """

    def __init__(
        self,
        vocabulary: int = 256,
        context: int = 64,
        answer_start: int = 1,
        layers: int = 2,
        width: int = 64,
        heads: int = 4,
        hidden: int = 0,
        init_std: float = 0.02,
        lr: Annotated[float, LogUniform(1e-5, 1e-2)] = 1e-3,
        weight_decay: Annotated[float, LogUniform(1e-3, 1.0)] = 0.1,
        warmup_steps: int = 100,
        seed: int = 0,
        positions: Positions = "learned",
        taps: int = 1,
        experts: int = 1,
        per_token: int = 2,
        capacity_factor: float = 1.25,
        balance_weight: Annotated[float, LogUniform(1e-4, 1.0)] = 0.01,
        z_weight: float = 0.0,
    ) -> None:
        super().__init__()
        numbers = {"lr": lr, "weight_decay": weight_decay, "warmup_steps": warmup_steps}
        for name, value in {**numbers, "balance_weight": balance_weight, "z_weight": z_weight}.items():
            if not (value >= 0 and math.isfinite(value)) or (name == "lr" and value == 0):
                raise InputError(f"{name}: is {value}; give {'a positive number' if name == 'lr' else '0 or more'}")
        if not 1 <= answer_start < context:
            raise InputError(f"answer_start: is {answer_start}; give 1 to {context - 1}, a place within the context")
        self.save_hyperparameters()
        self._answer_start = answer_start
        config = TransformerConfig(
            vocabulary, context, layers, width, heads, hidden or None, positions, taps, init_std=init_std
        )
        sparse = None if experts == 1 else ExpertsConfig(experts, per_token, None, capacity_factor or None)
        self._router_weights = (balance_weight, z_weight) if sparse else None
        self.transformer = make_decoder(config, seed=seed, experts=sparse)

    def setup(self, stage: str) -> None:
        """Compare the vocabulary with that of the data module.

        Raises:
            InputError: the data have more tokens.
        """
        size = getattr(getattr(self.trainer, "datamodule", None), "vocabulary_size", 0)
        if size > self.transformer.config.vocabulary:
            raise InputError(
                f"vocabulary: is {self.transformer.config.vocabulary}, the data have {size}; make them equal"
            )

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of each next token."""
        found: Tensor = self.transformer(tokens)
        return found

    def token_losses(self, batch: Any) -> Tensor:
        """Loss of every token [B, T - answer_start], in nats.

        Raises:
            InputError: tokens outside the vocabulary, or sequences too short to have any.
        """
        return self._scored(tokens_of(batch))[0]

    def per_example_losses(self, batch: Any) -> Tensor:
        """Mean loss of every sequence's tokens [B]."""
        return self.token_losses(batch).mean(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Mean loss of the batch's tokens; with experts, plus what keeps their loads even."""
        with watched(self.transformer) as routings:
            loss: Tensor = self.token_losses(batch).mean()
        self.log("train_loss", loss.detach())
        if self._router_weights is None:
            return loss
        every = [routing.statistics() for routing in routings]
        self.log_dict({f"train_{name}": torch.stack([one[name] for one in every]).mean() for name in every[0]})
        return loss + router_loss(routings, *self._router_weights)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the mean loss and the share of tokens, and of whole sequences, that are predicted right."""
        tokens = tokens_of(batch)
        losses, logits = self._scored(tokens)
        right = logits.argmax(-1) == tokens[:, self._answer_start :]
        rows = len(tokens)
        self.log("val_loss", losses.mean(), batch_size=rows)
        self.log("val_accuracy", right.float().mean(), batch_size=rows)
        self.log("val_sequence_accuracy", right.all(1).float().mean(), batch_size=rows)

    def configure_optimizers(self) -> Any:
        """AdamW with betas (0.9, 0.95), a linear warm-up and then a constant learning rate."""
        options: Any = self.hparams
        optimizer = adamw(self, options.lr, options.weight_decay, (0.9, 0.95))
        schedule = warmup_schedule(optimizer, options.warmup_steps, 0, shape="constant")
        return {"optimizer": optimizer, "lr_scheduler": lightning_schedule(schedule)}

    def _scored(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [B, T - answer_start] and their logits [B, T - answer_start, V]."""
        start = self._answer_start
        if tokens.dim() != 2 or tokens.shape[1] <= start:
            raise InputError(f"tokens: have shape {list(tokens.shape)}; give [sequences, more than {start}]")
        features = self.transformer.features(tokens[:, :-1])
        logits = self.transformer.logits(features[:, start - 1 :])
        targets = tokens[:, start:]
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return losses.view(targets.shape), logits


class TokenLosses(nn.Module):
    """A language model whose examples are tokens: `per_example_losses` [B (T - answer_start)], sequence by sequence.

    Its parameters are the model's own, in the same order.

    Args:
        module: has `token_losses(batch)` of any shape.

    Raises:
        InputError: it has not.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if not callable(getattr(module, "token_losses", None)):
            raise InputError(
                f"{type(module).__name__} has no token_losses(self, batch); add the method, which returns the loss of every "
                "token of a batch [sequences, tokens]"
            )
        self.module = module

    def per_example_losses(self, batch: Any) -> Tensor:
        """Losses of all tokens, one after the other."""
        losses: Any = self.module.token_losses
        found: Tensor = losses(batch)
        return found.flatten()


def tokens_of(batch: Any) -> Tensor:
    """The tokens of a batch: it, or its first part."""
    found: Tensor = batch[0] if isinstance(batch, list | tuple) else batch
    return found
