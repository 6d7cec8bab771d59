"""What every method is given: labelled source rows, unlabelled target rows, a head. And what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from lightning_modules.errors import InputError

Array = np.ndarray

_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class LinearHead:
    """The last layer of a classifier.

    Args:
        weight: [K, d].
        bias: [K].

    Raises:
        InputError: shapes that do not fit, fewer than two classes, or NaN.
    """

    weight: Array
    bias: Array

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:
            shapes = f"{list(self.weight.shape)} and {list(self.bias.shape)}"
            raise InputError(f"head: weight and bias have shapes {shapes}; give [classes, features] and [classes]")
        if len(self.bias) < 2:
            raise InputError("head: has one class; a classifier tells at least two apart")
        if not (np.isfinite(self.weight).all() and np.isfinite(self.bias).all()):
            raise InputError("head: holds NaN or infinite numbers; save it anew")

    def __call__(self, features: Array) -> Array:
        """Compute logits [n, K] of features [n, d].

        Raises:
            InputError: for features of another width.
        """
        width = self.weight.shape[1]
        if features.ndim != 2 or features.shape[1] != width:
            raise InputError(
                f"head: takes {width} features, the table has {features.shape[-1]}; give the head they go with"
            )
        logits: Array = features @ self.weight.T.astype(features.dtype) + self.bias.astype(features.dtype)
        return logits


@dataclass(frozen=True)
class Evidence:
    """What may be used to say how wrong a classifier is in the target: no label of the target is in it.

    Args:
        source_features: [n_S, d] of held-out source rows; the classifier was not trained on them.
        source_logits: [n_S, K] of the classifier.
        source_labels: [n_S] in 0..K-1.
        target_features: [n_T, d].
        target_logits: [n_T, K].
        second: (source [n_S, K], target [n_T, K]) logits of a second classifier, trained independently of the first.

    Raises:
        InputError: naming the field and the mend, for fewer than two classes, lengths or widths that do not fit, NaN,
            labels out of range, or fewer rows than classes.
    """

    source_features: Array
    source_logits: Array
    source_labels: Array
    target_features: Array
    target_logits: Array
    second: tuple[Array, Array] | None = None

    def __post_init__(self) -> None:
        for side, features, logits in (
            ("source", self.source_features, self.source_logits),
            ("target", self.target_features, self.target_logits),
        ):
            for name, array in (("features", features), ("logits", logits)):
                if array.ndim != 2:
                    raise InputError(f"{side} {name}: has shape {list(array.shape)}, not [rows, columns]; reshape it")
                bad = ~np.isfinite(array).all(axis=1)
                if bad.any():
                    raise InputError(
                        f"{side} {name}: {bad.sum()} rows have NaN or infinite numbers, first row {bad.argmax()}; drop them"
                    )
            if len(features) != len(logits):
                raise InputError(f"{side}: {len(features)} rows of features, {len(logits)} of logits; make them equal")
            if len(features) < max(2, logits.shape[1]):
                raise InputError(
                    f"{side}: {len(features)} rows for {logits.shape[1]} classes are too few; give more rows"
                )
        classes = self.classes
        if classes < 2:
            raise InputError("logits: have one column; a classifier tells at least two classes apart")
        if self.target_logits.shape[1] != classes:
            raise InputError(
                f"target logits: {self.target_logits.shape[1]} classes, the source has {classes}; make them equal"
            )
        if self.source_features.shape[1] != self.target_features.shape[1]:
            widths = f"{self.target_features.shape[1]} columns, the source has {self.source_features.shape[1]}"
            raise InputError(f"target features: {widths}; take both from the same encoder")
        check_labels("source labels", self.source_labels, len(self.source_features), classes)
        if self.second is not None:
            for side, ours, theirs in (
                ("source", self.source_logits, self.second[0]),
                ("target", self.target_logits, self.second[1]),
            ):
                if theirs.shape != ours.shape:
                    raise InputError(f"second: {side} logits have shape {list(theirs.shape)}, not {list(ours.shape)}")

    @property
    def classes(self) -> int:
        """Number of classes, K."""
        return int(self.source_logits.shape[1])


def check_labels(name: str, labels: Array, count: int, classes: int) -> None:
    """Raise InputError unless labels are `count` integers in 0..classes-1."""
    if labels.shape != (count,):
        raise InputError(f"{name}: have shape {list(labels.shape)}, not [{count}]; give one a row")
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{name}: are {labels.dtype}, not integers; number the classes from 0")
    bad = (labels < 0) | (labels >= classes)
    if bad.any():
        row = int(bad.argmax())
        raise InputError(f"{name}: {labels[row]} in row {row} is outside 0 to {classes - 1}; number the classes from 0")


def logits_of_probabilities(probabilities: Array, name: str = "probabilities") -> Array:
    """Turn probabilities [n, K] into logits, their logarithms (of at least 1e-12).

    Raises:
        InputError: for NaN, negative entries, or rows that do not sum to one within 0.001.
    """
    if not np.isfinite(probabilities).all():
        row = int((~np.isfinite(probabilities).all(axis=1)).argmax())
        raise InputError(f"{name}: row {row} has NaN or infinite numbers; drop it")
    if (probabilities < 0).any():
        row = int((probabilities < 0).any(axis=1).argmax())
        raise InputError(
            f"{name}: row {row} has a negative probability; give logits as logits, or probabilities of 0 to 1"
        )
    sums = probabilities.sum(axis=1)
    if (off := np.abs(sums - 1) > _SUM_TOLERANCE).any():
        row = int(off.argmax())
        raise InputError(
            f"{name}: row {row} sums to {sums[row]:.4g}, not to 1; give probabilities, or logits as logits"
        )
    logits: Array = np.log(np.maximum(probabilities, 1e-12))
    return logits


@dataclass(frozen=True)
class Estimate:
    """What a method says of the target.

    Args:
        method: its name, see `catalog.ESTIMATORS`.
        error: predicted 0-1 error, in [0, 1].
        kind: "bound" holds with probability 1 - delta under the method's assumption; "estimate" promises nothing.
        delta: of a bound, else None.
        details: further figures by name.
    """

    method: str
    error: float
    kind: Literal["bound", "estimate"]
    delta: float | None = None
    details: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        assert 0 <= self.error <= 1, self.error  # False for NaN, too


def estimate(method: str, error: float, **details: float) -> Estimate:
    """Make an estimate that promises nothing, cut to [0, 1]."""
    return Estimate(method, min(1.0, max(0.0, float(error))), "estimate", None, tuple(details.items()))


def error_rate(logits: Array, labels: Array) -> float:
    """Share of rows [n, K] whose largest logit is not the label's."""
    return float((logits.argmax(axis=1) != labels).mean())


def softmax(logits: Array) -> Array:
    """Probabilities [n, K] in double precision."""
    found: Array = torch.from_numpy(np.asarray(logits, np.float64)).softmax(1).numpy()
    return found
