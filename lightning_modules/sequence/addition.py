"""Addition as a language: "047+958=1005", most significant digit first, with losses on the answer alone.

Each answer token is named by its place, and carries into each place are known: they are the skills that training has to acquire.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import IntLogUniform, LogUniform
from lightning_modules.lightning_import import pl
from lightning_modules.sequence.language_model import LanguageModel

Array = np.ndarray

PLUS, EQUALS = 10, 11
VOCABULARY = 12
"""Tokens 0 to 9 are digits."""
_MOST_DIGITS = 9


def addition_tokens(a: Array, b: Array, digits: int) -> Tensor:
    """Tokens [n, 3 digits + 3] of "a+b=sum": a and b zero-padded to `digits`, the sum to one more.

    Args:
        a: [n], below 10^digits.
        b: [n], below 10^digits.
        digits: of a and b.

    Raises:
        InputError: numbers that do not fit.
    """
    if not 1 <= digits <= _MOST_DIGITS:
        raise InputError(f"digits: is {digits}; give 1 to {_MOST_DIGITS}")
    a, b = np.asarray(a), np.asarray(b)
    if len(a) != len(b) or np.any((a < 0) | (b < 0) | (a >= 10**digits) | (b >= 10**digits)):
        raise InputError(f"addition: give as many a as b, each from 0 to {10**digits - 1}")
    signs = np.full((len(a), 1), PLUS), np.full((len(a), 1), EQUALS)
    parts = [_digits(a, digits), signs[0], _digits(b, digits), signs[1], _digits(a + b, digits + 1)]
    return torch.from_numpy(np.concatenate(parts, 1))


def _digits(numbers: Array, count: int) -> Array:
    return numbers[:, None] // 10 ** np.arange(count - 1, -1, -1) % 10


def places(digits: int) -> list[str]:
    """Names of the answer's tokens in their order: of three digits 1000s, 100s, 10s, 1s."""
    return [f"{10**power}s" for power in range(digits, -1, -1)]


def carries(tokens: Tensor, digits: int) -> Tensor:
    """Whether a carry arrives at each answer token [n, digits + 1] of sequences [n, 3 digits + 3]; never at the 1s.

    The first answer token is the carry itself.
    """
    rows = tokens.numpy().astype(np.int64)
    powers = 10 ** np.arange(digits - 1, -1, -1)
    a, b = rows[:, :digits] @ powers, rows[:, digits + 1 : 2 * digits + 1] @ powers
    below = 10 ** np.arange(digits, -1, -1)
    return torch.from_numpy(a[:, None] % below + b[:, None] % below >= below)


class AdditionLM(LanguageModel):
    """The small transformer on sums of two numbers; with three digits and the defaults it has 101,632 parameters.

    Args:
        digits: of each number.
        layers: blocks of the transformer.
        width: of its residual stream.
        heads: of attention.
        hidden: of its feed-forward networks; 0: 4 width.
        init_std: of its first weights.
        lr: of AdamW after the warm-up, constant.
        weight_decay: of AdamW, on all parameters.
        warmup_steps: over which the learning rate rises.
        seed: of the first weights.

    Raises:
        InputError: a value out of range.

    Example:
        >>> module = AdditionLM(digits=3)
        >>> sum(p.numel() for p in module.parameters())
        101632
        >>> module.token_losses(addition_tokens(np.array([47]), np.array([958]), 3)).shape
        torch.Size([1, 4])
    """

    def __init__(
        self,
        digits: int = 3,
        layers: int = 2,
        width: int = 64,
        heads: int = 4,
        hidden: int = 0,
        init_std: float = 0.1,
        lr: Annotated[float, LogUniform(1e-5, 1e-2)] = 1e-3,
        weight_decay: Annotated[float, LogUniform(1e-3, 1.0)] = 0.1,
        warmup_steps: int = 100,
        seed: int = 0,
    ) -> None:
        if not 1 <= digits <= _MOST_DIGITS:
            raise InputError(f"digits: is {digits}; give 1 to {_MOST_DIGITS}")
        super().__init__(
            VOCABULARY,
            3 * digits + 3,
            2 * digits + 2,
            layers,
            width,
            heads,
            hidden,
            init_std,
            lr,
            weight_decay,
            warmup_steps,
            seed,
        )


class AdditionData(pl.LightningDataModule):
    """Random sums for training, others for validation; no problem is in both.

    Args:
        digits: of each number.
        train: problems for training; as many as there are where there are fewer.
        validation: problems for validation, at most half of all.
        batch_size: problems in a step.
        seed: of the problems and of the batches.

    Raises:
        InputError: a value out of range.
    """

    def __init__(
        self,
        digits: int = 3,
        train: int = 200_000,
        validation: int = 1250,
        batch_size: Annotated[int, IntLogUniform(16, 513)] = 128,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 1 <= digits <= _MOST_DIGITS:
            raise InputError(f"digits: is {digits}; give 1 to {_MOST_DIGITS}")
        for name, value in {"train": train, "validation": validation, "batch_size": batch_size}.items():
            if value < 1:
                raise InputError(f"{name}: is {value}; give 1 or more")
        self.digits, self.batch_size, self.seed = digits, batch_size, seed
        self._train, self._validation = train, validation
        self._drawn: tuple[Tensor, Tensor] | None = None

    @property
    def train_tokens(self) -> Tensor:
        """Training problems [n, 3 digits + 3]."""
        return self._tokens()[0]

    @property
    def validation_tokens(self) -> Tensor:
        """Validation problems [n, 3 digits + 3]."""
        return self._tokens()[1]

    def _tokens(self) -> tuple[Tensor, Tensor]:
        if self._drawn is None:
            whole = 10 ** (2 * self.digits)
            held_out = min(self._validation, whole // 2)
            count = min(self._train + held_out, whole)
            numbers = np.random.default_rng(self.seed).choice(whole, count, replace=False)
            tokens = addition_tokens(numbers // 10**self.digits, numbers % 10**self.digits, self.digits)
            self._drawn = tokens[held_out:], tokens[:held_out]
        return self._drawn

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of tokens [B, 3 digits + 3] in a random order."""
        return token_loader(self.train_tokens, self.batch_size, self.seed)

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches of validation problems."""
        return token_loader(self.validation_tokens, 1024)

    def probe_batches(self, count: int) -> list[Any]:
        """The first training problems, for probes."""
        return [[part] for part in torch.split(self.train_tokens[:count], 1000)]


def token_loader(tokens: Tensor, batch_size: int, seed: int | None = None) -> DataLoader[Any]:
    """Batches of rows of tokens [n, T], as lists of one tensor; shuffled where there is a seed."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(tokens), batch_size, shuffle=seed is not None, generator=generator, drop_last=False)
