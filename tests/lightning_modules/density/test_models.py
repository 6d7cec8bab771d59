"""Models, noise, and the estimate of the normaliser."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from lightning_modules.density.models import EnergyModel, ExponentialFamilyModel, GaussianNoise, convolutions, mlp
from lightning_modules.errors import InputError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("diagonal", [True, False])
def test_noise_is_fitted_sampled_and_evaluated(diagonal):
    mix = torch.tensor([[2.0, 0.0], [1.0, 0.5]])
    x = torch.randn(20_000, 2, generator=generator()) @ mix.mT + torch.tensor([1.0, -3.0])
    noise = GaussianNoise.fit(x, diagonal)
    covariance = noise.scale @ noise.scale.mT if noise.scale.dim() == 2 else noise.scale.square().diag()
    expected = torch.cov(x.mT, correction=0)
    assert torch.allclose(covariance, expected.diag().diag() if diagonal else expected, rtol=1e-3, atol=1e-3)
    law = MultivariateNormal(noise.mean, covariance)
    points = torch.randn(4, 3, 2, generator=generator(1))
    assert torch.allclose(noise.log_prob(points), law.log_prob(points), rtol=1e-4)
    drawn = noise.sample(20_000, generator(2))
    assert torch.allclose(drawn.mean(0), noise.mean, atol=0.05)
    assert torch.allclose(torch.cov(drawn.mT), covariance, atol=0.15)
    assert torch.allclose(noise.natural(), torch.linalg.solve(covariance, noise.mean), rtol=1e-3)


def test_a_constant_coordinate_does_no_harm():
    x = torch.randn(100, 2, generator=generator())
    x[:, 1] = 5
    for diagonal in (True, False):
        assert torch.isfinite(GaussianNoise.fit(x, diagonal).log_prob(x)).all()
    with pytest.raises(InputError, match="1 rows"):
        GaussianNoise.fit(x[:1])
    with pytest.raises(InputError, match="finite"):
        GaussianNoise.fit(x * math.inf)


def test_the_normaliser_of_a_known_family():
    noise = GaussianNoise.standard(2)
    theta = torch.tensor([0.6, -0.3])
    model = ExponentialFamilyModel(lambda x: x, noise.log_prob, theta, 0.2)
    log_z, effective = model.log_normalizer(noise, 50_000)
    assert log_z == pytest.approx(float(theta @ theta) / 2 - 0.2, abs=0.02)
    assert effective == pytest.approx(50_000 * math.exp(-float(theta @ theta)), rel=0.05)
    x = torch.randn(5, 2, generator=generator())
    assert torch.allclose(model.log_density(x), x @ theta - 0.2 + noise.log_prob(x))
    assert torch.allclose(model.extended(x), torch.cat([x, -torch.ones(5, 1)], 1))
    assert model.tau.tolist() == pytest.approx([0.6, -0.3, 0.2])
    exact, all_of_them = ExponentialFamilyModel(lambda x: x, noise.log_prob, 0 * theta).log_normalizer(noise, 1000)
    assert (exact, all_of_them) == (pytest.approx(0, abs=1e-6), pytest.approx(1000))
    with pytest.raises(InputError, match="n: 0 samples"):
        model.log_normalizer(noise, 0)


def test_energies_start_at_the_noise_and_are_shifted_by_their_log_partition():
    noise, x = GaussianNoise.standard(16), torch.randn(7, 16, generator=generator())
    for network in (mlp(16, 8, 2, generator()), convolutions(1, 4, 4, 2, generator())):
        model = EnergyModel(network, noise.log_prob)
        assert torch.allclose(model.log_density(x), noise.log_prob(x))
        assert (model.log_ratio(x, noise.log_prob(x)) == 0).all()
        with torch.no_grad():
            model.log_partition += 2
            nn.init.ones_(list(network.parameters())[-2])
        assert torch.allclose(
            model.log_ratio(x, noise.log_prob(x)), model.log_density(x) - noise.log_prob(x), atol=1e-4
        )
        free = EnergyModel(network)
        with torch.no_grad():
            free.log_partition += 2
        assert torch.allclose(free.log_density(x), model.log_density(x) - noise.log_prob(x), atol=1e-4)
        assert torch.allclose(free.log_ratio(x, noise.log_prob(x)), free.log_density(x) - noise.log_prob(x))


def test_weights_come_from_the_generator_alone():
    state = torch.get_rng_state()
    a, b, c = (mlp(4, 8, 2, generator(seed)) for seed in (0, 0, 1))
    assert (torch.get_rng_state() == state).all()
    weights = [next(iter(net.parameters())) for net in (a, b, c)]
    assert (weights[0] == weights[1]).all()
    assert not (weights[0] == weights[2]).any()
    assert float(weights[0].detach().abs().max()) <= 0.5
