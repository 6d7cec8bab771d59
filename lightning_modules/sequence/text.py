"""A person's own text as tokens: a UTF-8 file, or a folder of them, in bytes or in words."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import IntLogUniform
from lightning_modules.lightning_import import pl
from lightning_modules.sequence.addition import token_loader

_WORD = re.compile(r"\w+|[^\w\s]")
UNKNOWN = 0
"""The token of words that are not among the most frequent ones."""


class TextData(pl.LightningDataModule):
    """Windows of `context` tokens that follow each other; the last ones are held out.

    Args:
        path: a UTF-8 file, or a folder whose *.txt files are read in the order of their names.
        vocabulary: "byte", 256 tokens, or "word": words and punctuation marks, the most frequent ones of the part for training.
        size: of a vocabulary of words, with the unknown one.
        context: tokens of a window; give the model the same.
        validation: share of the windows that is held out.
        batch_size: windows in a step.
        seed: of the batches.

    Raises:
        InputError: a value out of range.

    Example:
        >>> data = TextData(path="articles/", vocabulary="word", size=10_000, context=64)
    """

    def __init__(
        self,
        path: str = "",
        vocabulary: str = "byte",
        size: int = 10_000,
        context: int = 64,
        validation: float = 0.1,
        batch_size: Annotated[int, IntLogUniform(16, 513)] = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not path:
            raise InputError("path: is empty; give a UTF-8 file or a folder of *.txt files")
        if vocabulary not in ("byte", "word"):
            raise InputError(f"vocabulary: unknown {vocabulary!r}; choose from byte, word")
        for name, value in {"size": size - 1, "context": context - 1, "batch_size": batch_size}.items():
            if value < 1:
                raise InputError(f"{name}: is too small; give {1 if name == 'batch_size' else 2} or more")
        if not 0 < validation < 1:
            raise InputError(f"validation: is {validation}; give a share between 0 and 1")
        self.vocabulary_size = 256 if vocabulary == "byte" else size
        self._path, self._kind, self._context = path, vocabulary, context
        self._validation, self._batch_size, self._seed = validation, batch_size, seed
        self._parts: tuple[Tensor, Tensor] | None = None
        self._words: list[str] = []

    @property
    def train_tokens(self) -> Tensor:
        """Windows to learn from [n, context]."""
        return self._windows()[0]

    @property
    def validation_tokens(self) -> Tensor:
        """Windows held out [n, context]."""
        return self._windows()[1]

    @property
    def words(self) -> list[str]:
        """The vocabulary of words, by token; of bytes none."""
        self._windows()
        return self._words

    def spelled(self, token: int) -> str:
        """What a token stands for: a word, or a byte as Python writes it."""
        if self._kind == "byte":
            return repr(bytes([token]))[2:-1]
        return self.words[token] if token < len(self.words) else "?"

    def _windows(self) -> tuple[Tensor, Tensor]:
        if self._parts is None:
            text = read_text(self._path)
            pieces: Any = np.frombuffer(text.encode(), np.uint8) if self._kind == "byte" else _WORD.findall(text)
            count = len(pieces) // self._context
            held_out = max(1, round(self._validation * count))
            if count - held_out < 1:
                raise InputError(
                    f"{self._path}: has {len(pieces)} tokens, windows of {self._context} need twice as many; give more text"
                )
            border = (count - held_out) * self._context
            if self._kind == "word":
                common = Counter(pieces[:border]).most_common(self.vocabulary_size - 1)
                self._words = ["?", *(word for word, _ in common)]
                numbers = {word: number for number, word in enumerate(self._words)}
                pieces = np.array([numbers.get(word, UNKNOWN) for word in pieces])
            tokens = torch.from_numpy(np.array(pieces[: count * self._context], np.int64)).view(count, self._context)
            self._parts = tokens[: count - held_out], tokens[count - held_out :]
        return self._parts

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of windows [B, context] in a random order."""
        return token_loader(self.train_tokens, self._batch_size, self._seed)

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches of the windows held out."""
        return token_loader(self.validation_tokens, self._batch_size)

    def probe_batches(self, count: int) -> list[Any]:
        """The first windows of the training part, for probes."""
        return [[part] for part in torch.split(self.train_tokens[:count], 250)]


def read_text(path: str) -> str:
    """All of a UTF-8 file, or of the *.txt files of a folder and the folders in it.

    Raises:
        InputError: nothing there, or bytes that are no UTF-8.
    """
    root = Path(path)
    files = sorted(root.rglob("*.txt")) if root.is_dir() else [root]
    if not files or not all(file.is_file() for file in files):
        raise InputError(f"{path}: there is no text; give a UTF-8 file or a folder of *.txt files")
    parts = []
    for file in files:
        try:
            parts.append(file.read_text("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: is not UTF-8 (byte {error.start}); convert it, e.g. with iconv") from error
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
    return "\n".join(parts)
