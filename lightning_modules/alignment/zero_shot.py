"""Classifying images by what is written about the classes."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.errors import InputError


class Aligner(Protocol):
    """Brings vectors of both encoders into one space: a trained `DualEncoder`, or a `RidgeAligner`."""

    def embed_images(self, images: Tensor | np.ndarray) -> Tensor:
        """Unit vectors [n, D]."""

    def embed_texts(self, texts: Tensor | np.ndarray) -> Tensor:
        """Unit vectors [n, D]."""


class ZeroShotClassifier:
    """argmax over classes k of <w, z_k>, w the image's unit vector and z_k that of the class's prompts.

    Args:
        classes: their names.
        weights: [C, D] z_k.
        aligner: takes images to w.
        scale: factor of the cosines in the logits.

    Source: Radford et al., 2021 (CLIP), as in arXiv 2210.03927.
    """

    def __init__(self, classes: Sequence[str], weights: Tensor, aligner: Aligner, scale: float = 100.0) -> None:
        self.classes, self.weights = tuple(classes), weights
        self._aligner, self._scale = aligner, scale

    @classmethod
    def from_prompts(
        cls,
        classes: Sequence[str],
        templates: Sequence[str],
        encode: Callable[[list[str]], Tensor | np.ndarray],
        aligner: Aligner,
        scale: float = 100.0,
    ) -> ZeroShotClassifier:
        """Write every class into every template; a class's vector is the mean of its prompts' unit vectors, at unit length.

        Args:
            classes: names, as they stand in a sentence.
            templates: sentences with `{}` where the name goes.
            encode: the text encoder, n texts to [n, d_text]: an encoder's method `encode`.
            aligner: trained on vectors of that encoder.
            scale: factor of the cosines in the logits.

        Raises:
            InputError: no classes or templates, an empty name, a template without `{}`, prompts that cancel out.

        Warns:
            UserWarning: two classes have the same prompts, so that only one of them is ever predicted.
        """
        if not classes:
            raise InputError("classes: there are none; give their names")
        if not templates:
            raise InputError("templates: there are none; give one, such as 'a photo of a {}'")
        for name in classes:
            if not name.strip():
                raise InputError("classes: one has an empty name; write it out")
        for template in templates:
            if template.count("{}") != 1:
                raise InputError(f"templates: {template!r} must have one {{}} where the class goes; add it")
        name, count = Counter(" ".join(name.casefold().split()) for name in classes).most_common(1)[0]
        if count > 1:
            warnings.warn(f"classes: {count} are called {name!r}; only one of them is ever predicted", stacklevel=2)
        prompts = [template.replace("{}", name.strip()) for name in classes for template in templates]
        vectors = aligner.embed_texts(encode(prompts)).view(len(classes), len(templates), -1).mean(1)
        lengths = vectors.norm(dim=1)
        if bool((lengths < 1e-6).any()):
            name = classes[int(lengths.argmin())]
            raise InputError(f"templates: the prompts of {name!r} cancel out; give other ones")
        return cls(classes, F.normalize(vectors, dim=1), aligner, scale)

    def logits(self, images: Tensor | np.ndarray) -> Tensor:
        """Logits [n, C] of vectors [n, d_image] of the image encoder."""
        return self._scale * self._aligner.embed_images(images) @ self.weights.T

    def predict(self, images: Tensor | np.ndarray) -> np.ndarray:
        """Numbers [n] of the most likely classes."""
        found: np.ndarray = self.logits(images).argmax(1).numpy()
        return found

    def accuracy(self, images: Tensor | np.ndarray, labels: np.ndarray) -> float:
        """Share of images whose class is predicted.

        Raises:
            InputError: as many labels as images are wanted, numbers of classes.
        """
        if len(labels) != len(images):
            raise InputError(f"labels: {len(labels)} for {len(images)} images; give one an image")
        return float(np.mean(self.predict(images) == np.asarray(labels)))
