"""Estimates from the classifier's confidence: average confidence, difference of confidences, thresholds, agreement.

None of them is a bound. All take logits calibrated on the source (`calibrated`), never on the target.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from lightning_modules.error_bounds.evidence import Array, Estimate, Evidence, error_rate, estimate, softmax
from lightning_modules.errors import InputError

_LARGEST_LOG_SCALE = 12.0


def fit_temperature(logits: Array, labels: Array) -> float:
    """Find the factor exp(t) of logits that minimises the cross-entropy of labels; 1 / factor is the temperature.

    The loss is convex in the factor, so a bounded search over its logarithm finds the minimum. Of a classifier without an
    error it would be infinite; the search ends where the loss is zero to rounding.

    Args:
        logits: [n, K].
        labels: [n].

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv 1706.04599, section 4.2.
    """
    z, y = torch.from_numpy(np.asarray(logits, np.float64)), torch.from_numpy(labels)

    def loss(log_scale: float) -> float:
        return float(torch.nn.functional.cross_entropy(z * math.exp(log_scale), y))

    bounds = (-_LARGEST_LOG_SCALE, _LARGEST_LOG_SCALE)
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x)


def calibrated(evidence: Evidence) -> Evidence:
    """Scale the logits of both domains by the factor that fits the source; predictions stay as they are."""
    scale = fit_temperature(evidence.source_logits, evidence.source_labels)
    return replace(
        evidence,
        source_logits=np.asarray(evidence.source_logits, np.float64) * scale,
        target_logits=np.asarray(evidence.target_logits, np.float64) * scale,
    )


def average_confidence(evidence: Evidence) -> Estimate:
    """One minus the mean largest probability in the target (AC)."""
    return estimate("AC", 1 - _confidence(evidence.target_logits).mean())


def difference_of_confidences(evidence: Evidence) -> Estimate:
    """Source error plus what confidence falls by from source to target (DoC).

    Source: Guillory et al., "Predicting with Confidence on Unseen Distributions", 2021, arXiv 2107.03315.
    """
    fall = _confidence(evidence.source_logits).mean() - _confidence(evidence.target_logits).mean()
    return estimate("DoC", error_rate(evidence.source_logits, evidence.source_labels) + fall)


def average_thresholded_confidence(evidence: Evidence, score: str = "max_confidence") -> Estimate:
    """Share of target rows whose score is no higher than a threshold that as many source rows miss as are wrong (ATC).

    Args:
        evidence: of the target.
        score: "max_confidence" (ATC-MC) or "negative_entropy" (ATC-NE).

    Raises:
        InputError: for another score.

    Source: Garg et al., "Leveraging Unlabeled Data to Predict Out-of-Distribution Performance", 2022, arXiv 2201.04234.
    """
    scores = {"max_confidence": _confidence, "negative_entropy": _negative_entropy}
    if score not in scores:
        raise InputError(f"score: unknown {score!r}; choose one of {', '.join(scores)}")
    source, target = (scores[score](z) for z in (evidence.source_logits, evidence.target_logits))
    wrong = int((evidence.source_logits.argmax(axis=1) != evidence.source_labels).sum())
    name = "ATC-MC" if score == "max_confidence" else "ATC-NE"
    if wrong == len(source):
        return estimate(name, 1.0)
    # Exactly `wrong` source rows lie below the lowest score that is still above the threshold.
    threshold = np.sort(source)[wrong]
    return estimate(name, (target < threshold).mean(), threshold=float(threshold))


def disagreement_of_two(evidence: Evidence) -> Estimate:
    """Share of target rows where two independently trained classifiers predict different classes (GDE).

    Raises:
        InputError: without the second classifier.

    Source: Jiang et al., "Assessing Generalization of SGD via Disagreement", 2022, arXiv 2106.13799.
    """
    if evidence.second is None:
        raise InputError("second: is missing; GDE needs the logits of a second, independently trained classifier")
    return estimate("GDE", (evidence.target_logits.argmax(axis=1) != evidence.second[1].argmax(axis=1)).mean())


def _confidence(logits: Array) -> Array:
    found: Array = softmax(logits).max(axis=1)
    return found


def _negative_entropy(logits: Array) -> Array:
    z = torch.from_numpy(np.asarray(logits, np.float64))
    found: Array = (z.softmax(1) * z.log_softmax(1)).sum(1).numpy()
    return found
