"""A teacher's next-token distributions, of which only the k largest probabilities are kept, and what a student loses by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_modules.errors import InputError

Tail = Literal["renorm", "uniform"]
TAILS: tuple[Tail, ...] = get_args(Tail)


@dataclass(frozen=True)
class KSparseTargets:
    """The k largest of V probabilities for each of N tokens.

    Two readings of what was not kept, with kept mass m = sum of the kept p_i: "renorm" takes q_i = p_i / m for the kept tokens
    and 0 for others; "uniform" takes q_i = p_i for the kept tokens and (1 - m) / (V - k) for each of the others. A renormalised
    target pushes all other probabilities of the student towards 0: with few tokens kept it can be worse than hard labels.

    Args:
        ids: of the kept tokens [N, k], most likely first; int32 or int64.
        probabilities: the teacher's [N, k], of any floating type.
        mass: m [N], float32.
        vocabulary: V.
        tail: "renorm" or "uniform".

    Raises:
        InputError: shapes that do not fit together, k outside 1 to V, an unknown tail.

    Source: arXiv 2507.06261, section 2.3, keeps k of V probabilities; the two readings are field standard.
    """

    ids: Tensor
    probabilities: Tensor
    mass: Tensor
    vocabulary: int
    tail: Tail = "renorm"

    def __post_init__(self) -> None:
        if self.tail not in TAILS:
            raise InputError(f"tail: unknown {self.tail!r}; choose from {', '.join(TAILS)}")
        if self.ids.dim() != 2 or self.ids.shape != self.probabilities.shape or self.mass.shape != self.ids.shape[:1]:
            shapes = [list(part.shape) for part in (self.ids, self.probabilities, self.mass)]
            raise InputError(f"ids, probabilities, mass: have shapes {shapes}; give [N, k], [N, k] and [N]")
        _check_k(self.k, self.vocabulary)

    @classmethod
    def from_probs(cls, p: Tensor, k: int, tail: Tail = "renorm") -> KSparseTargets:
        """Keep the k largest of probabilities [N, V], which sum to 1.

        Raises:
            InputError: k outside 1 to V, rows that are no distributions, an unknown tail.
        """
        if p.dim() != 2 or not p.is_floating_point():
            raise InputError(f"p: is {p.dtype} of shape {list(p.shape)}; give floating-point numbers [N, V]")
        _check_k(k, p.shape[1])
        if not bool(torch.isfinite(p).all()) or bool((p < 0).any()) or bool(((p.sum(1) - 1).abs() > 1e-2).any()):
            raise InputError("p: has rows that are no distributions; give 0 or more in each place, and a sum of 1")
        kept, ids = p.topk(k, 1)
        return cls(ids.int(), kept, kept.sum(1).float(), p.shape[1], tail)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def k(self) -> int:
        """Probabilities kept for each token."""
        return self.ids.shape[1]

    def __getitem__(self, rows: slice | Tensor) -> KSparseTargets:
        """Those of some tokens."""
        return KSparseTargets(self.ids[rows], self.probabilities[rows], self.mass[rows], self.vocabulary, self.tail)

    def to(self, device: torch.device | str) -> KSparseTargets:
        """The same on a device."""
        ids, probabilities, mass = (part.to(device) for part in (self.ids, self.probabilities, self.mass))
        return KSparseTargets(ids, probabilities, mass, self.vocabulary, self.tail)

    def weights(self) -> tuple[Tensor, Tensor]:
        """q of the kept tokens [N, k] and of each other token [N], in float32 or more; together they sum to 1.

        Probabilities that were rounded for storage are scaled to their mass first.
        """
        kept = self.probabilities.to(torch.promote_types(self.probabilities.dtype, torch.float32))
        total = kept.sum(1)
        if self.tail == "renorm" or self.k == self.vocabulary:
            return kept / total[:, None], torch.zeros_like(total)
        # The mass says how much the rounded probabilities should sum to; exact ones, of a wider type, say it themselves.
        mass = self.mass.to(kept.dtype).clamp(max=1) if kept.dtype == torch.float32 else total.clamp(max=1)
        return kept * (mass / total)[:, None], (1 - mass) / (self.vocabulary - self.k)

    def dense(self) -> Tensor:
        """The target distributions [N, V]."""
        kept, other = self.weights()
        return other[:, None].expand(-1, self.vocabulary).scatter(1, self.ids.long(), kept)

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """-sum_i q_i log p_i [N] in nats, p = softmax of logits [N, V], without making q dense.

        Raises:
            InputError: logits of another shape.
        """
        if logits.shape != (len(self), self.vocabulary):
            raise InputError(f"logits: have shape {list(logits.shape)}; give {[len(self), self.vocabulary]}")
        logs = logits.log_softmax(-1)
        kept, other = self.weights()
        loss = -((kept - other[:, None]) * logs.gather(1, self.ids.long())).sum(1)
        return loss - other * logs.sum(1)


def bytes_per_token(k: int, precision: Literal[16, 32] = 16) -> int:
    """Bytes that a token's targets take: k ids of 4, k probabilities of 2 or 4, and the mass's 4.

    Against them stand 4 V (or 2 V) for all probabilities, and 4 for a hard label.
    """
    return k * (4 + precision // 8) + 4


def _check_k(k: int, vocabulary: int) -> None:
    if not 1 <= k <= vocabulary:
        raise InputError(f"k: is {k}; give 1 to {vocabulary}, the size of the vocabulary")
