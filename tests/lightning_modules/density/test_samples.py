"""Finite samples: the minimiser's covariance, and where there is none."""

import numpy as np
import pytest
import torch

from lightning_modules.density.descent import descend
from lightning_modules.density.gaussian_means import GaussianMeanProblem
from lightning_modules.density.losses import log_loss
from lightning_modules.density.samples import SampleProblem, maximum_likelihood, minimise, warn_separated
from lightning_modules.errors import InputError


@pytest.mark.parametrize("loss", ["nce", "ence"])
def test_values_are_those_of_the_torch_losses(loss):
    problem = GaussianMeanProblem([2.0, 1.0], [0.5, -1.0])
    data, noise = problem.sample(30, 0)
    tau = torch.tensor([0.3, -0.4, 1.2], dtype=torch.double, requires_grad=True)

    def value(t):
        step = t[:2] - torch.from_numpy(problem.mu_noise)
        a = t[2] - (problem.mu_noise**2).sum() / 2
        return log_loss(loss, *(torch.from_numpy(x) @ step - a for x in (data, noise[:20])))

    found = value(tau)
    (slope,) = torch.autograd.grad(found, tau)
    second = torch.autograd.functional.hessian(lambda t: value(t).exp(), tau.detach()) / found.detach().exp()
    mine = SampleProblem(problem, data[None], noise[None, :20]).scaled(loss, tau.detach().numpy()[None], True)
    for a, b in zip(mine, (found.detach(), slope, second), strict=True):
        assert np.allclose(a[0], b, rtol=1e-9)


@pytest.mark.parametrize("loss", ["nce", "ence"])
def test_the_minimisers_covariance_is_the_asymptotic_one(loss):
    problem = GaussianMeanProblem([1.0], [0.0])
    data, noise = GaussianMeanProblem(np.ones((400, 1)), np.zeros((400, 1))).sample(2000, 0)
    tau, sure = minimise(SampleProblem(problem, data, noise), loss)
    assert sure.all()
    ratio = 2000 * np.cov(tau.T) / problem.asymptotic_covariance(loss)
    assert np.abs(ratio - 1).max() < 0.2


def test_separable_samples_run_away_with_a_warning():
    problem = GaussianMeanProblem([16.0], [0.0])
    data, noise = problem.sample(1000, 0)
    sample = SampleProblem(problem, data[None], noise[None])
    found = descend(sample, "ence", "ngd", 0.1, max_steps=3000, stop_within=False)
    assert found.best[0] < 2.7
    assert found.final[0] > 50
    with pytest.warns(RuntimeWarning, match="1 of 1 samples of data and noise are linearly separable"):
        assert warn_separated(sample, found.tau) == 1
    near = GaussianMeanProblem([1.0], [0.0])
    mixed = SampleProblem(near, *(x[None] for x in near.sample(1000, 0)))
    assert warn_separated(mixed, mixed.tau_star) == 0


def test_the_likelihoods_mean_is_nearer_than_both():
    problem = GaussianMeanProblem([1.0], [0.0])
    data, noise = GaussianMeanProblem(np.ones((200, 1)), np.zeros((200, 1))).sample(500, 1)
    likely = np.linalg.norm(maximum_likelihood(data) - problem.tau_star, axis=1).mean()
    for loss in ("nce", "ence"):
        tau, _ = minimise(SampleProblem(problem, data, noise), loss)
        assert np.linalg.norm(tau - problem.tau_star, axis=1).mean() > likely


def test_bad_samples_are_refused():
    problem = GaussianMeanProblem([1.0], [0.0])
    good = np.zeros((1, 3, 1))
    with pytest.raises(InputError, match=r"noise: has the shape \[3, 1\]; give \[P, n, 1\]"):
        SampleProblem(problem, good, good[0])
    with pytest.raises(InputError, match="data: has NaN"):
        SampleProblem(problem, good * np.nan, good)
