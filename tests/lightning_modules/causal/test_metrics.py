"""Measures of recovered latents and graphs: on transformations whose effect is known."""

import numpy as np
import pytest

from lightning_modules.causal.metrics import (
    edge_auroc,
    linear_r2,
    mean_correlation_coefficient,
    structural_hamming_distance,
)
from lightning_modules.errors import InputError


def latents(n=20_000, d=4, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


@pytest.mark.parametrize("held_out", [False, True])
def test_order_sign_scale_and_shift_cost_nothing(held_out):
    z = latents()
    z_hat = (z * [-3, 0.1, 5, -1] + [7, 0, -2, 1])[:, [2, 0, 3, 1]]
    assert mean_correlation_coefficient(z, z_hat, held_out) == pytest.approx(1, abs=1e-9)
    assert linear_r2(z, z_hat) == pytest.approx(1, abs=1e-9)


def test_a_rotation_costs_mcc_and_not_r2():
    z, c = latents(d=2), 0.5**0.5
    z_hat = z @ np.array([[c, c], [-c, c]])
    assert mean_correlation_coefficient(z, z_hat) == pytest.approx(0.707, abs=0.01)
    assert linear_r2(z, z_hat) == pytest.approx(1, abs=1e-9)


def test_matching_is_the_best_one_to_one_not_the_largest_of_each_row():
    z = latents(d=2)
    z_hat = np.stack([z[:, 0] + 0.5 * z[:, 1], z[:, 0] + 0.1 * z[:, 1]], 1)  # both like z_0 best
    pairs = np.abs(np.corrcoef(z.T, z_hat.T)[:2, 2:])
    assert mean_correlation_coefficient(z, z_hat) == pytest.approx((pairs[0, 1] + pairs[1, 0]) / 2)
    assert mean_correlation_coefficient(z, z_hat) < pairs.max(1).mean()


def test_the_held_out_half_is_not_fooled_by_chance():
    """Of unrelated latents it is the mean |correlation| of 20 rows, sqrt(2 / (19 pi)); matching on the same rows finds more."""
    pairs = [(latents(40, 8, seed), latents(40, 8, seed + 100)) for seed in range(40)]
    held = np.mean([mean_correlation_coefficient(*pair, held_out=True) for pair in pairs])
    assert held == pytest.approx((2 / (19 * np.pi)) ** 0.5, abs=0.015)
    assert np.mean([mean_correlation_coefficient(*pair) for pair in pairs]) > held + 0.04


def test_r2_is_the_explained_share_of_the_variance():
    z = latents(100_000, 1)
    noisy = z + np.random.default_rng(5).standard_normal(z.shape)
    assert linear_r2(z, noisy) == pytest.approx(0.5, abs=0.01)
    assert linear_r2(z, latents(100_000, 3, 7)) == pytest.approx(0, abs=0.001)


def test_a_reversed_edge_counts_two_and_the_diagonal_nothing():
    weights = np.array([[0, 0.5, 0], [0, 0, -0.7], [0, 0, 0]])
    assert structural_hamming_distance(weights, -weights + 9 * np.eye(3), n_edges=2) == 0
    assert structural_hamming_distance(weights, weights.T, n_edges=2) == 4
    extra = np.array([[0, 0.5, 0.4], [0, 0, 0.2], [0, 0, 0]])
    assert structural_hamming_distance(weights, extra, threshold=0.3) == 2  # one extra, one missing
    assert structural_hamming_distance(weights, extra, threshold=0.1) == 1
    assert structural_hamming_distance(weights, 0 * weights, n_edges=0) == 2


def test_auroc_counts_ordered_pairs():
    weights = np.array([[0, 1.0, 0], [0, 0, 1.0], [0, 0, 0]])
    scores = np.array([[9, 0.9, 0.5], [0.1, 9, 0.3], [0.1, 0.3, 9]])
    assert edge_auroc(weights, scores) == pytest.approx((4 + 2.5) / 8)  # 0.3 loses to 0.5 and ties with 0.3
    assert np.isnan(edge_auroc(0 * weights, scores))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: mean_correlation_coefficient(z, z[:, :2]), "z_hat: has 2 coordinates, z 4"),
        (lambda z: mean_correlation_coefficient(z, z[:9]), "equally many rows"),
        (lambda z: mean_correlation_coefficient(z, np.where(z > 0, z, np.nan)), "NaN"),
        (lambda z: structural_hamming_distance(z[:4], z[:4]), "n_edges: give either it or threshold"),
        (lambda z: structural_hamming_distance(z[:4], z[:4], n_edges=1, threshold=1.0), "n_edges"),
        (lambda z: structural_hamming_distance(z[:4], z[:5], n_edges=1), "estimate: has shape"),
        (lambda z: structural_hamming_distance(z[:4], z[:4], n_edges=13), "n_edges: is 13; give 0 to 12"),
        (lambda z: structural_hamming_distance(z[:4], z[:4], n_edges=-1), "n_edges: is -1"),
        (
            lambda z: structural_hamming_distance(z[:4], np.nan * z[:4], threshold=0.3),
            "has NaN; edges cannot be ranked",
        ),
        (lambda z: edge_auroc(z[:4], np.nan * z[:4]), "has NaN; edges cannot be ranked"),
        (lambda z: edge_auroc(z[:4], z[:5]), "estimate: has shape"),
    ],
)
def test_what_does_not_fit_is_said(call, message):
    with pytest.raises(InputError, match=message):
        call(latents(50))
