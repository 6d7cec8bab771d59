"""Every method by name, behind one signature: evidence in, estimates out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from lightning_modules.error_bounds.confidence import (
    average_confidence,
    average_thresholded_confidence,
    calibrated,
    difference_of_confidences,
    disagreement_of_two,
)
from lightning_modules.error_bounds.discrepancy import DisagreementDiscrepancy, estimate_many, spaces_of
from lightning_modules.error_bounds.evidence import Estimate, Evidence
from lightning_modules.error_bounds.transport import confidence_optimal_transport
from lightning_modules.error_bounds.weighting import importance_weighting

BASELINES: dict[str, Callable[[Evidence], Estimate]] = {
    "AC": average_confidence,
    "DoC": difference_of_confidences,
    "ATC-MC": average_thresholded_confidence,
    "ATC-NE": lambda evidence: average_thresholded_confidence(evidence, "negative_entropy"),
    "COT": confidence_optimal_transport,
    "IW": importance_weighting,
    "GDE": disagreement_of_two,
}
"""What the bound is compared with; each is given logits calibrated on the source. GDE needs a second classifier."""


def baselines(evidence: Evidence) -> list[Estimate]:
    """All baselines that the evidence allows."""
    scaled = calibrated(evidence)
    return [method(scaled) for name, method in BASELINES.items() if name != "GDE" or evidence.second is not None]


def assess(
    targets: Sequence[Evidence], method: DisagreementDiscrepancy, spaces: Sequence[str] = ("logits",)
) -> list[list[Estimate]]:
    """Bounds in several feature spaces, the same without concentration, and every baseline, for each target.

    The critics of all targets and spaces train together; each result is what it would be alone.

    Args:
        targets: what is known of each.
        method: how bounds are made; its own feature space does not count.
        spaces: see `DisagreementDiscrepancy`; projections that leave fewer than four directions are left out.
    """
    tasks = [
        (replace(method, feature_space=space), number)
        for number, evidence in enumerate(targets)
        for space in spaces_of(evidence.source_features.shape[1], spaces)
    ]
    results = estimate_many([(task, targets[number]) for task, number in tasks])
    found: list[list[Estimate]] = [[] for _ in targets]
    for (_, number), result in zip(tasks, results, strict=True):
        found[number] += result.estimates()
    for number, evidence in enumerate(targets):
        found[number] += baselines(evidence)
    return found
