"""What an alignment is compared with: ridge regression in closed form, and, where there are labels, a probe and class means."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.alignment.pairs import PairTensors
from lightning_modules.errors import InputError


class RidgeAligner:
    """min over A, b:  sum_i |w_i - A u_i - b|^2 + penalty |A|^2, w_i unit image vectors, u_i text vectors; in closed form.

    Args:
        penalty: above 0.

    Raises:
        InputError: a penalty out of range.

    Source: field standard.
    """

    def __init__(self, penalty: float = 1.0) -> None:
        if not 0 < penalty < float("inf"):
            raise InputError(f"penalty: is {penalty}; give a number above 0")
        self._penalty = penalty
        self._map: Tensor | None = None
        self._offset: Tensor | None = None

    def fit(self, pairs: PairTensors) -> RidgeAligner:
        """Solve for vectors of pairs; returns itself."""
        u, w = pairs.texts.double(), F.normalize(pairs.images.double(), dim=1)
        mean_u, mean_w = u.mean(0), w.mean(0)
        gram = (u - mean_u).T @ (u - mean_u) + self._penalty * torch.eye(u.shape[1], dtype=torch.float64)
        self._map = torch.linalg.solve(gram, (u - mean_u).T @ (w - mean_w))
        self._offset = mean_w - mean_u @ self._map
        return self

    @property
    def parameters(self) -> int:
        """Numbers that are fitted."""
        fitted, offset = self._fitted()
        return fitted.numel() + offset.numel()

    def embed_images(self, images: Tensor | np.ndarray) -> Tensor:
        """Unit vectors [n, D] of image vectors."""
        return F.normalize(self._checked("images", images, 1).float(), dim=1)

    def embed_texts(self, texts: Tensor | np.ndarray) -> Tensor:
        """Unit vectors [n, D] of the maps of text vectors [n, d_text]."""
        fitted, offset = self._fitted()
        return F.normalize(self._checked("texts", texts, 0).double() @ fitted + offset, dim=1).float()

    def _fitted(self) -> tuple[Tensor, Tensor]:
        if self._map is None or self._offset is None:
            raise InputError("ridge: is not fitted; call `fit`")
        return self._map, self._offset

    def _checked(self, name: str, vectors: Tensor | np.ndarray, side: int) -> Tensor:
        width, found = self._fitted()[0].shape[side], torch.as_tensor(vectors)
        if found.dim() != 2 or found.shape[1] != width:
            raise InputError(f"{name}: have shape {list(found.shape)}, the map has [n, {width}]; use its encoder")
        return found


def linear_probe(
    vectors: np.ndarray,
    labels: np.ndarray,
    test_vectors: np.ndarray,
    test_labels: np.ndarray,
    inverse_penalty: float = 100.0,
) -> float:
    """Accuracy of logistic regression on unit image vectors with labels: what the image encoder can give.

    Args:
        vectors: [n, D] of the training images.
        labels: [n].
        test_vectors: [m, D].
        test_labels: [m].
        inverse_penalty: scikit-learn's C.

    Source: field standard.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=inverse_penalty, max_iter=1000)
    model.fit(_unit(vectors), labels)
    return float(model.score(_unit(test_vectors), test_labels))


def nearest_class_mean(
    vectors: np.ndarray, labels: np.ndarray, test_vectors: np.ndarray, test_labels: np.ndarray
) -> float:
    """Accuracy of the class whose mean unit vector, at unit length, is nearest; arguments as of `linear_probe`.

    Source: field standard.
    """
    classes = np.unique(labels)
    unit = _unit(vectors)
    means = _unit(np.stack([unit[labels == label].mean(0) for label in classes]))
    return float(np.mean(classes[(_unit(test_vectors) @ means.T).argmax(1)] == test_labels))


def _unit(vectors: np.ndarray) -> np.ndarray:
    found: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found
