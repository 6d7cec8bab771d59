"""The losses of log ratios, against float64 and against what they are often mistaken for."""

import math

import numpy as np
import pytest
import torch

from lightning_modules.density.losses import ence_loss, log_softplus, nce_loss
from lightning_modules.errors import InputError


def ratios(n, m, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(k, generator=generator, dtype=dtype) for k in (n, m)]


def test_values_are_those_of_the_definition():
    data, noise = ratios(5, 9)
    d, q = data.numpy(), noise.numpy()
    nce = 0.5 * np.log1p(np.exp(-d)).mean() + 0.5 * np.log1p(np.exp(q)).mean()
    ence = 0.5 * np.exp(-d / 2).mean() + 0.5 * np.exp(q / 2).mean()
    assert nce_loss(data, noise).item() == pytest.approx(nce, rel=1e-12)
    assert ence_loss(data, noise, log=False).item() == pytest.approx(ence, rel=1e-12)
    assert nce_loss(data, noise, log=True).item() == pytest.approx(math.log(nce), rel=1e-12)
    assert ence_loss(data, noise).item() == pytest.approx(math.log(ence), rel=1e-12)
    zero = torch.zeros(3)
    assert nce_loss(zero, zero).item() == pytest.approx(math.log(2))
    assert ence_loss(zero, zero, log=False).item() == pytest.approx(1)


def test_classes_of_different_sizes_count_equally():
    data, noise = ratios(4, 40)
    for loss in (nce_loss, ence_loss):
        twice = loss(data, torch.cat([noise, noise]), log=False)
        assert twice.item() == pytest.approx(loss(data, noise, log=False).item(), rel=1e-12)


@pytest.mark.parametrize("loss", [nce_loss, ence_loss])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_the_logarithm_and_its_gradient_are_finite_in_float32(loss, scale):
    for signs in ((1, 1), (1, -1), (-1, 1)):
        parts = [
            (sign * scale * torch.linspace(0.1, 1, 50)).requires_grad_() for sign in signs
        ]  # told apart, confused, and both on one side
        value = loss(*parts, log=True)
        value.backward()
        assert torch.isfinite(value)
        assert all(torch.isfinite(part.grad).all() for part in parts)
        exact = loss(*[part.detach().double() for part in parts], log=True)
        assert value.item() == pytest.approx(exact.item(), rel=1e-5)
        assert sum(float(part.grad.abs().sum()) for part in parts) > 0


def test_log_softplus_in_its_tails():
    u = torch.tensor([-1e4, -50.0, -15.001, -14.999, 0.0, 50.0, 1e4], dtype=torch.float64, requires_grad=True)
    # log(log1p(x)) with x = e^u below 1e-6 is log x - x / 2.
    expected = [-1e4, -50.0, *(math.log(math.log1p(math.exp(v))) for v in (-15.001, -14.999, 0.0, 50.0)), math.log(1e4)]
    found = log_softplus(u)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    (slope,) = torch.autograd.grad(found.sum(), u)
    assert slope[:4].tolist() == pytest.approx([1, 1, 1, 1], abs=1e-6)
    assert slope[4].item() == pytest.approx(0.5 / math.log(2))


@pytest.mark.parametrize("loss", [nce_loss, ence_loss])
def test_a_shift_of_the_log_partition_changes_the_loss(loss):
    data, noise = ratios(200, 200)
    data = data + 1
    before, after = loss(data, noise, log=True), loss(data - 3, noise - 3, log=True)
    assert abs(float(after - before)) > 0.1

    def product(shift):  # sum of the two logarithms: an error that is in public code
        return torch.logsumexp(-(data - shift) / 2, 0) + torch.logsumexp((noise - shift) / 2, 0)

    assert float(product(3.0) - product(0.0)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("loss", [nce_loss, ence_loss])
def test_bad_ratios_are_refused(loss):
    good = torch.zeros(2)
    for bad, words in (
        (torch.zeros(0), r"has the shape \[0\]; give \[n\]"),
        (torch.zeros(2, 1), r"has the shape \[2, 1\]"),
        (torch.tensor([0.0, math.nan]), "has NaN"),
    ):
        with pytest.raises(InputError, match=f"log_ratio_data: {words}"):
            loss(bad, good)
        with pytest.raises(ValueError, match=f"log_ratio_noise: {words}"):
            loss(good, bad)
