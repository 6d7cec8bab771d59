"""A source of tokens whose next-token probabilities are known: what a student learned can be compared with the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.errors import InputError

_HIDDEN = 128


class TokenSource:
    """Tokens that depend on the two before them: p(. | a, b) = softmax(height * tanh(W tanh(U [e_a, e_b]))).

    The bound on the logits makes several tokens about equally likely, as in text, and all others rare.

    Args:
        vocabulary: V.
        height: half the range of the logits.
        sharpness: what the logits are multiplied by before they are bounded.
        width: of the random vectors e.
        seed: of the weights.

    Raises:
        InputError: a size below 1, or a number that is not above 0.

    Source: ours.
    """

    def __init__(
        self, vocabulary: int = 64, height: float = 6.0, sharpness: float = 0.6, width: int = 16, seed: int = 0
    ) -> None:
        for name, value in {
            "vocabulary": vocabulary - 1,
            "height": height,
            "sharpness": sharpness,
            "width": width,
        }.items():
            if not value > 0:
                raise InputError(f"{name}: is out of range; give a vocabulary of 2 or more, all else above 0")
        generator = torch.Generator().manual_seed(seed)
        self.vocabulary, self._height, self._sharpness = vocabulary, height, sharpness
        self._vectors = torch.randn(vocabulary, width, generator=generator)
        self._mix = torch.randn(2 * width, _HIDDEN, generator=generator) * 1.5 / (2 * width) ** 0.5
        self._out = torch.randn(_HIDDEN, vocabulary, generator=generator) / (_HIDDEN / 2) ** 0.5

    def after_each(self, tokens: Tensor) -> Tensor:
        """The truth [n (T - 1), V] after each token of [n, T] but a sequence's last, in float32."""
        return self._after(torch.cat([tokens[:, :1], tokens[:, :-1]], 1)).flatten(0, 1)

    def _after(self, tokens: Tensor) -> Tensor:
        pairs = torch.cat([self._vectors[tokens[:, :-1]], self._vectors[tokens[:, 1:]]], -1)
        logits = (pairs @ self._mix).tanh() @ self._out
        found: Tensor = (self._height * (self._sharpness * logits).tanh()).softmax(-1)
        return found

    def draw(self, sequences: int, length: int, generator: torch.Generator) -> Tensor:
        """Sequences [n, T]; the first token is uniform, and counts twice for the second one."""
        tokens = torch.randint(self.vocabulary, (sequences, 1), generator=generator)
        while tokens.shape[1] < length:
            p = self._after(tokens[:, [max(-2, -tokens.shape[1]), -1]])[:, 0]
            tokens = torch.cat([tokens, torch.multinomial(p, 1, generator=generator)], 1)
        return tokens
