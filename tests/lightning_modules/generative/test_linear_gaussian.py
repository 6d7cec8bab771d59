"""Hierarchies whose posterior is known: closed forms, exact weights, restricted evidence, stochastic training."""

import math

import pytest
import torch

from lightning_modules.errors import InputError
from lightning_modules.generative.linear_gaussian import LinearGaussianHierarchy, vector_chain
from lightning_modules.generative.posterior import LinearPosterior, NeuralPosterior
from lightning_modules.generative.training import fit

S, T = LinearGaussianHierarchy(), vector_chain()

EXACT = {
    2: ([-1.3284, 0.3432, 0.7456, 0.1302, 0.0237], 0.171598),
    3: ([-1.3276, 0.0, 0.3448, 0.7586, 0.1379], 0.172414),
    4: ([-1.3, 0.0, 0.0, 0.4, 0.8], 0.2),
}


def some(model, n=20, seed=0):
    return model.sample(n, torch.Generator().manual_seed(seed))


def test_closed_forms():
    assert -S.entropy() == pytest.approx(-6.349486, abs=1e-5)
    assert S.log_prob(torch.zeros(1, 4)).item() == pytest.approx(-4.349486, abs=1e-5)
    assert S.log_prob(torch.tensor([[0.5, -1.0, 0.0, 2.0]])).item() == pytest.approx(-7.066364, abs=1e-5)
    assert S.gap("mean_field") == pytest.approx(2.668035, abs=1e-5)
    assert S.gap("self_reflective") == pytest.approx(0, abs=1e-5)
    assert -T.entropy() == pytest.approx(-12.133614, abs=1e-5)
    assert T.log_prob(torch.zeros(1, 9)).item() == pytest.approx(-7.633614, abs=1e-5)
    assert T.gap("mean_field") == pytest.approx(1.225808, abs=1e-5)
    assert T.gap("self_reflective") == pytest.approx(0.691467, abs=1e-5)


@pytest.mark.parametrize("layer", [2, 3, 4])
def test_the_exact_posterior(layer):
    coefficients, covariance = S.exact_conditional(layer)
    assert coefficients[0].tolist() == pytest.approx(EXACT[layer][0], abs=1e-4)
    assert covariance.item() == pytest.approx(EXACT[layer][1], abs=1e-6)


def test_with_the_exact_posterior_every_weight_is_the_likelihood():
    model = S.with_posterior(S.exact_posterior())
    x = 3 * torch.randn(20, 4, dtype=torch.double, generator=torch.Generator().manual_seed(1))  # any x
    weights = model.log_weights(x, 50, torch.Generator().manual_seed(0))
    assert (weights - S.log_prob(x)).abs().max() < 1e-9
    single = model.float().log_weights(x.float(), 50, torch.Generator().manual_seed(0))
    assert (single - S.log_prob(x)).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("family", "evidence", "gap"),
    [
        ("self_reflective", "all", 0.0),
        ("self_reflective", "from_previous", 0.0),
        ("self_reflective", "without_previous", 0.336837),
        ("self_reflective", "previous_and_own", 0.246570),
        ("self_reflective", "block", 0.694612),
        ("independent", "all", 2.668035),
    ],
)
def test_the_best_posterior_of_restricted_evidence(family, evidence, gap):
    assert S.restricted_gap(family, evidence) == pytest.approx(gap, abs=1e-3)


@pytest.mark.parametrize(("family", "name"), [("self_reflective", "self_reflective"), ("independent", "mean_field")])
def test_two_ways_to_the_gap_of_a_vector_chain_agree(family, name):
    """L-BFGS on the expected ELBO, and the precisions' determinants."""
    assert T.restricted_gap(family) == pytest.approx(T.gap(name), abs=1e-6)


@pytest.mark.parametrize(("c", "gap"), [(1.5, 2.668), (1.0, 1.156), (0.5, 0.162), (0.2, 0.0008), (0.0, 0.046)])
def test_the_split_of_prior_and_shift_moves_the_mean_field_gap_alone(c, gap):
    model = LinearGaussianHierarchy(prior=1 - c, shift=c)
    assert model.gap("mean_field") == pytest.approx(gap, abs=5e-4)
    assert model.gap("self_reflective") == pytest.approx(0, abs=1e-9)
    assert model.entropy() == pytest.approx(S.entropy(), abs=1e-9)


def test_samples_have_the_covariance():
    expected = torch.tensor(
        [
            [1.25, 0.375, 0.8125, 0.5938],
            [0.375, 1.5625, 0.7188, 1.1406],
            [0.8125, 0.7188, 2.1406, 1.1797],
            [0.5938, 1.1406, 1.1797, 2.5352],
        ],
        dtype=torch.double,
    )
    assert torch.allclose(S.covariance, expected, atol=1e-4)
    model = S.with_posterior(S.exact_posterior())
    drawn = {
        "map of noises": some(S, 200_000),
        "ancestral": model.sample(200_000, torch.Generator().manual_seed(0))[0],
    }
    for x in drawn.values():
        assert ((x.T @ x / len(x) / expected) - 1).abs().max() < 0.03


def trained(model, posterior, steps, seed=0):
    hierarchy = model.with_posterior(posterior).float()
    fit(hierarchy, lambda n, g: model.sample(n, g).float(), steps, 64, 3e-2, warmup=0.0, seed=seed)
    x = some(model, 3000, 1).float()
    generator = torch.Generator().manual_seed(2)
    truth = model.log_prob(x)
    bounds = {
        k: (hierarchy.log_likelihood(x, k, generator=generator).double() - truth).mean().item() for k in (1, 10, 100)
    }
    with torch.no_grad():
        bounds[0] = (hierarchy.log_weights(x, 8, generator).double() - truth).mean().item()
    return bounds


def test_trained_posteriors_reach_the_gap_of_their_family():
    """600 steps of small batches each; 1,500 of larger ones are a cell of the paper."""
    bounds = trained(S, LinearPosterior(S.partition, [1] * 4), 600)
    assert -0.001 < -bounds[0] < 0.02
    assert abs(bounds[10]) < 0.002
    mean_field = trained(S, LinearPosterior(S.partition, [1] * 4, "independent"), 600)
    assert -mean_field[0] == pytest.approx(2.668, abs=0.08)
    assert mean_field[0] < mean_field[10] < mean_field[100] < -0.5  # its weights have infinite variance


def test_importance_bounds_rise_with_k_and_stay_below_the_likelihood():
    bounds = trained(T, LinearPosterior(T.partition, [2] * 3), 600)
    assert -bounds[0] == pytest.approx(0.691, abs=0.04)
    assert bounds[1] < bounds[10] < bounds[100] < 0.005
    assert bounds[10] == pytest.approx(-0.210, abs=0.03)
    assert bounds[100] == pytest.approx(-0.063, abs=0.02)


def test_a_perceptron_finds_the_exact_posterior_too():
    bounds = trained(S, NeuralPosterior(S.partition, [1] * 4, (32,), activation="tanh"), 600)
    assert -0.001 < -bounds[0] < 0.08


def test_bad_chains_are_refused():
    for settings in ({"L": 0}, {"r": 0.0}, {"s": -1.0}, {"M": 0.0}, {"W": [[1.0, 2.0]]}, {"prior": [[1.0, 2.0]]}):
        with pytest.raises(InputError, match="give"):
            LinearGaussianHierarchy(**settings)
    with pytest.raises(InputError, match="layer: 5; give 1 to 4"):
        S.exact_conditional(5)
    with pytest.raises(InputError, match="family: unknown 'full'"):
        S.gap("full")
    with pytest.raises(InputError, match="NaN"):
        S.log_prob(torch.tensor([[0.0, math.nan, 0.0, 0.0]]))
