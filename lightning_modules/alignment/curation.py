"""Choosing the pairs that resemble what the alignment is for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from lightning_modules.errors import InputError

Rule = Literal["keyword", "similarity", "random"]
RULES = ("keyword", "similarity", "random")


def keyword_matches(captions: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Whether [n] captions name one of the classes as whole words, in any case.

    Raises:
        InputError: no classes, or one without a name.
    """
    _check_classes(classes)
    names = "|".join(re.escape(" ".join(name.casefold().split())) for name in classes)
    pattern = re.compile(rf"(?<!\w)(?:{names})(?!\w)")
    return np.array([bool(pattern.search(" ".join(caption.casefold().split()))) for caption in captions], dtype=bool)


def similarities(captions: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Largest cosine [n] of captions' vectors [n, d] with one of the classes' [C, d]."""
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (captions, classes)]
    found: np.ndarray = (unit[0] @ unit[1].T).max(1)
    return found


class CurationSampler:
    """Chooses n of the pairs by their captions.

    Args:
        budget: n.
        rule: "keyword": drawn from the captions that name a class; "similarity": those nearest a class, by the text encoder;
            "random": drawn from all, the control.
        seed: of the draws, and of the order among equals.

    Raises:
        InputError: a budget below 1, or an unknown rule.

    Source: arXiv 2210.03927 chooses pairs that resemble the downstream task; these rules are ours.
    """

    def __init__(self, budget: int, rule: Rule = "similarity", seed: int = 0) -> None:
        if budget < 1:
            raise InputError(f"budget: is {budget}; give 1 pair or more")
        if rule not in RULES:
            raise InputError(f"rule: unknown {rule!r}; choose from {', '.join(RULES)}")
        self._budget, self._rule, self._seed = budget, rule, seed

    def choose(
        self,
        captions: Sequence[str],
        classes: Sequence[str],
        encode: Callable[[list[str]], np.ndarray] | None = None,
    ) -> np.ndarray:
        """Row numbers [budget] of the chosen captions, in increasing order.

        Args:
            captions: of all pairs.
            classes: names of the downstream classes.
            encode: the text encoder, n texts to [n, d]; "similarity" needs it.

        Raises:
            InputError: no classes, fewer pairs that fit than the budget, no encoder.
        """
        _check_classes(classes)
        generator = np.random.default_rng(self._seed)
        order = generator.permutation(len(captions))
        if self._rule == "keyword":
            order = order[keyword_matches(captions, classes)[order]]
        elif self._rule == "similarity":
            if encode is None:
                raise InputError("encode: the rule similarity needs a text encoder; give its `encode`")
            scores = similarities(encode(list(captions)), encode(list(classes)))
            order = order[np.argsort(-scores[order], kind="stable")]
        if len(order) < self._budget:
            raise InputError(
                f"budget: {self._budget} pairs are asked for, {len(order)} fit; lower it or take another rule"
            )
        return np.sort(order[: self._budget])


def _check_classes(classes: Sequence[str]) -> None:
    if not classes or not all(name.strip() for name in classes):
        raise InputError("classes: there are none, or one has no name; give the names of the downstream classes")
