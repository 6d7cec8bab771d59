"""What the bound is compared with, against definitions computed another way."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from lightning_modules.error_bounds.catalog import BASELINES, assess, baselines
from lightning_modules.error_bounds.confidence import (
    average_thresholded_confidence,
    calibrated,
    difference_of_confidences,
    disagreement_of_two,
    fit_temperature,
)
from lightning_modules.error_bounds.critics import Training
from lightning_modules.error_bounds.discrepancy import DisagreementDiscrepancy
from lightning_modules.error_bounds.evidence import Evidence, error_rate, softmax
from lightning_modules.error_bounds.transport import confidence_optimal_transport, transport_cost
from lightning_modules.error_bounds.weighting import density_ratios, importance_weighting
from lightning_modules.errors import InputError


def clouds(seed=0, count=400, classes=4, width=6, shift=0.5, scale=1.0):
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((width, classes))
    source = generator.standard_normal((count, width))
    target = generator.standard_normal((count - 50, width)) + shift
    labels = (source @ weight + generator.gumbel(size=(count, classes))).argmax(1)
    return Evidence(source, scale * source @ weight, labels, target, scale * target @ weight)


def test_the_temperature_is_undone():
    # Labels are drawn from the softmax of the logits (Gumbel noise), so a factor on them is found again.
    assert fit_temperature(clouds(count=20_000).source_logits, clouds(count=20_000).source_labels) == pytest.approx(
        1, abs=0.05
    )
    evidence = clouds(count=20_000, scale=4.0)
    assert fit_temperature(evidence.source_logits, evidence.source_labels) == pytest.approx(0.25, abs=0.02)
    scaled = calibrated(evidence)
    assert (scaled.target_logits.argmax(1) == evidence.target_logits.argmax(1)).all()
    # Separable data have an infinite factor: the search ends where confidence is total.
    z = np.eye(3)[np.arange(60) % 3]
    assert softmax(z * fit_temperature(z, np.arange(60) % 3)).max(1).min() > 1 - 1e-9


def test_the_temperature_minimises_the_source_cross_entropy_alone():
    evidence = clouds(scale=3.0)
    factor = fit_temperature(evidence.source_logits, evidence.source_labels)

    def loss(value):
        z = torch.from_numpy(evidence.source_logits * value)
        return float(torch.nn.functional.cross_entropy(z, torch.from_numpy(evidence.source_labels)))

    assert loss(factor) <= min(loss(factor * 0.99), loss(factor * 1.01))
    assert calibrated(replace(evidence, target_logits=-evidence.target_logits)).source_logits[0, 0] == pytest.approx(
        evidence.source_logits[0, 0] * factor
    )


def test_confidences_and_their_difference():
    evidence = clouds()
    confidence = [softmax(z).max(1).mean() for z in (evidence.source_logits, evidence.target_logits)]
    assert BASELINES["AC"](evidence).error == pytest.approx(1 - confidence[1])
    source_error = error_rate(evidence.source_logits, evidence.source_labels)
    assert difference_of_confidences(evidence).error == pytest.approx(source_error + confidence[0] - confidence[1])
    assert {e.kind for e in baselines(evidence)} == {"estimate"}


@pytest.mark.parametrize("score", ["max_confidence", "negative_entropy"])
def test_the_threshold_leaves_as_many_source_rows_below_as_are_wrong(score):
    evidence = clouds()
    found = average_thresholded_confidence(evidence, score)
    threshold = dict(found.details)["threshold"]
    p = softmax(evidence.source_logits)
    scores = p.max(1) if score == "max_confidence" else (p * np.log(p)).sum(1)
    assert (scores < threshold).mean() == error_rate(evidence.source_logits, evidence.source_labels)
    q = softmax(evidence.target_logits)
    target_scores = q.max(1) if score == "max_confidence" else (q * np.log(q)).sum(1)
    assert found.error == pytest.approx(1 - (target_scores >= threshold).mean(), abs=1 / 350)
    # On the source itself it gives the source's error.
    same = replace(evidence, target_logits=evidence.source_logits, target_features=evidence.source_features)
    assert average_thresholded_confidence(same, score).error == error_rate(
        evidence.source_logits, evidence.source_labels
    )


def test_thresholds_at_the_ends():
    evidence = clouds()
    perfect = replace(evidence, source_labels=evidence.source_logits.argmax(1))
    assert average_thresholded_confidence(perfect).error < 0.1
    hopeless = replace(evidence, source_labels=(evidence.source_logits.argmax(1) + 1) % 4)
    assert average_thresholded_confidence(hopeless).error == 1
    with pytest.raises(InputError, match="score: unknown 'entropy'"):
        average_thresholded_confidence(evidence, "entropy")


def test_transport_equals_the_linear_program_and_brute_force():
    generator = np.random.default_rng(0)
    cost = generator.random((6, 3))
    best = min(
        np.mean([cost[i, k] for i, k in enumerate(choice)])
        for choice in itertools.product(range(3), repeat=6)
        if sorted(np.bincount(choice, minlength=3)) == [2, 2, 2]
    )
    assert transport_cost(cost, np.full(3, 1 / 3)) == pytest.approx(best, abs=1e-9)
    cost, marginal = generator.random((150, 7)), generator.dirichlet(np.ones(7))
    rows, columns = np.kron(np.eye(150), np.ones(7)), np.kron(np.ones(150), np.eye(7))
    plan = linprog(
        cost.reshape(-1), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([np.full(150, 1 / 150), marginal])
    )
    exact = transport_cost(cost, marginal)
    assert exact == pytest.approx(plan.fun, abs=1e-6)
    assert transport_cost(cost, marginal, exact=False) == pytest.approx(exact, abs=0.01)
    empty = np.concatenate([marginal, [0.0]])  # a class without source rows gets nothing, however cheap
    assert transport_cost(np.c_[cost, np.zeros(150)], empty) == pytest.approx(exact, abs=1e-9)
    with pytest.raises(InputError, match="marginal"):
        transport_cost(cost, marginal * 2)


def test_transport_of_one_hot_predictions_is_the_distance_of_the_label_shares():
    logits = 60.0 * np.eye(3)[[0] * 50 + [1] * 30 + [2] * 20]
    labels = np.array([0] * 50 + [1] * 30 + [2] * 20)
    other = 60.0 * np.eye(3)[[0] * 20 + [1] * 30 + [2] * 50]
    evidence = Evidence(np.zeros((100, 1)), logits, labels, np.zeros((100, 1)), other)
    assert confidence_optimal_transport(evidence).error == pytest.approx(0.3, abs=1e-6)
    # Two classes' labels exchanged in 10 + 10 rows: the shares stay, and confidence exceeds accuracy by 0.2.
    exchanged = labels.copy()
    exchanged[:10], exchanged[50:60] = 1, 0
    assert confidence_optimal_transport(replace(evidence, source_labels=exchanged)).error == pytest.approx(
        0.5, abs=1e-6
    )


def test_importance_weights_recover_a_covariate_shift():
    generator = np.random.default_rng(0)
    source, target = generator.standard_normal((20_000, 2)), generator.standard_normal((20_000, 2)) + [0.7, 0]
    weights = density_ratios(source, target, l2=1e-6)
    truth = np.exp(0.7 * source[:, 0])
    assert np.corrcoef(weights, truth)[0, 1] > 0.999
    # The classifier errs where x1 > 0, whatever the domain: its error rises from 0.5 to P(N(0.7, 1) > 0) = 0.758.
    labels = (source[:, 0] > 0).astype(np.int64)
    evidence = Evidence(source, np.tile([1.0, 0.0], (20_000, 1)), labels, target, np.tile([1.0, 0.0], (20_000, 1)))
    assert importance_weighting(evidence).error == pytest.approx(0.758, abs=0.02)
    assert difference_of_confidences(evidence).error == pytest.approx(0.5, abs=0.02)
    uneven = density_ratios(source[:5_000], target, l2=1e-6)  # numbers of rows do not count
    assert np.allclose(uneven, weights[:5_000] / weights[:5_000].mean(), rtol=0.1, atol=0.05)


def test_two_classifiers():
    evidence = clouds()
    with pytest.raises(InputError, match="second: is missing"):
        disagreement_of_two(evidence)
    other = evidence.target_logits.copy()
    other[:35] = -other[:35]
    both = replace(evidence, second=(evidence.source_logits, other))
    assert disagreement_of_two(both).error == pytest.approx(0.1)
    assert [e.method for e in baselines(both)] == list(BASELINES)
    assert "GDE" not in [e.method for e in baselines(evidence)]
    with pytest.raises(InputError, match="second: target logits"):
        replace(evidence, second=(evidence.source_logits, other[:3]))


def test_one_signature_for_all():
    targets = [clouds(seed, shift=s) for seed, s in ((0, 0.2), (0, 1.0))]
    method = DisagreementDiscrepancy(training=Training(3, 3), delta=0.05)
    found = assess(targets, method, ("logits", "features", "pca:4"))
    names = [e.method for e in found[0]]
    assert names[:4] == ["Dis2 logits", "Dis2 logits w/o delta", "Dis2 features", "Dis2 features w/o delta"]
    assert names[4:] == [name for name in BASELINES if name != "GDE"]  # pca:4 of 6 features leaves one direction
    for estimates in found:
        assert all(0 <= e.error <= 1 for e in estimates)
        assert [e.delta for e in estimates] == [0.05 if e.kind == "bound" else None for e in estimates]
    assert found[1][0].error != found[0][0].error
