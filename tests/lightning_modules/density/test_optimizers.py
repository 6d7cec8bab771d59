"""One norm over everything, and Newton's step."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_modules.density.gaussian_means import GaussianMeanProblem
from lightning_modules.density.losses import ence_loss
from lightning_modules.density.optimizers import NewtonDescent, NormalizedGradientDescent
from lightning_modules.errors import InputError


def parameters(*gradients):
    made = []
    for gradient in gradients:
        gradient = torch.tensor(gradient)
        p = nn.Parameter(torch.zeros_like(gradient))
        p.grad = gradient
        made.append(p)
    return made


def test_the_norm_is_one_over_all_tensors_and_groups():
    a, b = parameters([3.0], [[0.0, 4.0]])
    NormalizedGradientDescent([a, b], lr=0.5).step()
    assert torch.allclose(a, torch.tensor([-0.3]))
    assert torch.allclose(b, torch.tensor([[0.0, -0.4]]))
    a, b = parameters([3.0], [4.0])
    NormalizedGradientDescent([{"params": [a]}, {"params": [b], "lr": 1.0}], lr=0.5).step()
    assert (a.item(), b.item()) == (pytest.approx(-0.3), pytest.approx(-0.8))


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e30])
def test_the_length_of_a_step_does_not_depend_on_the_gradients(scale):
    a, b = parameters([3 * scale], [4 * scale])
    NormalizedGradientDescent([a, b], lr=0.1).step()
    assert (a.item(), b.item()) == (pytest.approx(-0.06), pytest.approx(-0.08))


def test_no_gradient_no_step():
    (a,) = parameters([0.0, 0.0])
    unused = nn.Parameter(torch.ones(1))
    NormalizedGradientDescent([a, unused], lr=0.1).step()
    assert a.tolist() == [0, 0]
    assert unused.item() == 1
    assert NormalizedGradientDescent([unused], lr=0.1).step(lambda: 3.0) == 3.0


def test_it_walks_as_the_populations_does():
    problem = GaussianMeanProblem([2.0], [0.0])
    tau = nn.Parameter(torch.zeros(2, dtype=torch.double))
    optimizer = NormalizedGradientDescent([tau], lr=0.1)
    walked = problem.tau_noise.copy()
    for _ in range(20):
        tau.grad = torch.from_numpy(problem.log_ence(tau.detach().numpy())[1])
        optimizer.step()
        slope = problem.ence(walked)[1]
        walked -= 0.1 * slope / np.linalg.norm(slope)
    assert np.allclose(tau.detach().numpy(), walked, atol=1e-12)


def test_newton_solves_a_quadratic_in_one_step():
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(()))
    h = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]])
    goal = torch.tensor([1.0, -2.0, 3.0])
    gradient = h @ (torch.zeros(3) - goal)
    a.grad, b.grad = gradient[:2], gradient[2]
    NewtonDescent([a, b], 1.0, lambda: h).step()
    assert torch.allclose(torch.cat([a, b[None]]), goal, atol=1e-5)


def test_the_logs_direction_is_the_losses_own():
    data, noise = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    shift = torch.zeros(2, dtype=torch.double, requires_grad=True)
    slopes = [
        torch.autograd.grad(ence_loss(data * (1 + shift[0]) - shift[1], noise * (1 + shift[0]) - shift[1], log), shift)[
            0
        ]
        for log in (True, False)
    ]
    assert float(torch.cosine_similarity(*slopes, dim=0)) == pytest.approx(1, abs=1e-12)
    assert not math.isclose(float(slopes[0].norm()), float(slopes[1].norm()), rel_tol=1e-3)


def test_bad_settings_are_refused():
    (a,) = parameters([1.0])
    for lr in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="lr: .* is not above 0"):
            NormalizedGradientDescent([a], lr)
        with pytest.raises(ValueError, match="lr: .* is not above 0"):
            NewtonDescent([a], lr, lambda: torch.eye(1))
    with pytest.raises(InputError, match="eps: 0"):
        NormalizedGradientDescent([a], 0.1, eps=0)
