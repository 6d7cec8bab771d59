"""The linear invariance and the moment restriction, against independent computations in float64."""

import numpy as np
import pytest
import torch

from lightning_modules.causal.rep4ex.scm import InterventionSCM
from lightning_modules.causal.rep4ex.statistics import (
    factored_restriction,
    gram,
    linear_invariance,
    linearity_ratio,
    median_distance,
    mmr_statistic,
    moment_restriction,
    projected_factor,
    projected_trace,
    random_factor,
)
from lightning_modules.errors import InputError

WIDTH = 0.4


@pytest.fixture
def drawn():
    generator = np.random.default_rng(0)
    a = generator.uniform(-1, 1, (300, 3)) + 0.5
    phi = np.sin(3 * a[:, :2]) + a[:, 1:] ** 2 + 0.3 * generator.standard_normal((300, 2))
    return phi, a


def by_pairs(phi, a, width):
    """Q by two loops."""
    design = np.c_[a, np.ones(len(a))]
    psi = phi - design @ np.linalg.solve(design.T @ design, design.T @ phi)
    total = 0.0
    for i in range(len(a)):
        for j in range(len(a)):
            total += psi[i] @ psi[j] * np.exp(-((a[i] - a[j]) ** 2).sum() / (2 * width**2))
    return total / len(a) ** 2


def test_the_invariance_is_the_regression_with_intercept(drawn):
    phi, a = drawn
    w, c, residual = linear_invariance(phi, a)
    assert w.shape == (3, 2)
    assert c.shape == (2,)
    assert np.allclose(phi, a @ w + c + residual, atol=1e-12)
    assert np.abs(residual.mean(0)).max() < 1e-12
    assert np.abs(a.T @ residual).max() < 1e-9
    assert np.allclose(w, np.linalg.solve(np.cov(a.T), np.cov(a.T, phi.T)[:3, 3:]), atol=1e-10)


def test_q_is_the_sum_over_pairs_and_all_coordinates(drawn):
    phi, a = drawn
    q = mmr_statistic(phi, a, WIDTH, whiten=False)
    assert q == pytest.approx(by_pairs(phi, a, WIDTH), rel=1e-10)
    single = [mmr_statistic(phi[:, [j]], a, WIDTH, whiten=False) for j in (0, 1)]
    assert q == pytest.approx(sum(single), rel=1e-10)
    assert min(single) > 0.1 * q


def test_affine_functions_of_actions_have_none(drawn):
    _, a = drawn
    generator = np.random.default_rng(1)
    affine = a @ generator.standard_normal((3, 2)) + generator.standard_normal(2)
    assert 0 <= mmr_statistic(affine, a, WIDTH, whiten=False) < 1e-20


def test_adding_an_affine_function_of_actions_changes_nothing(drawn):
    phi, a = drawn
    moved = phi + a @ np.random.default_rng(2).standard_normal((3, 2)) + 5
    before, after = (mmr_statistic(values, a, WIDTH, whiten=False) for values in (phi, moved))
    assert after == pytest.approx(before, rel=1e-10)


def test_the_projected_factor_gives_the_same(drawn):
    phi, a = (torch.from_numpy(values) for values in drawn)
    kernel = gram(a, torch.tensor(WIDTH, dtype=torch.double))
    factor = torch.linalg.cholesky(kernel + 1e-13 * torch.eye(len(a)))
    by_factor = float(factored_restriction(phi, projected_factor(a, factor)))
    assert by_factor == pytest.approx(mmr_statistic(*drawn, WIDTH, whiten=False), rel=1e-10)
    features = random_factor(a, WIDTH, 20000, torch.Generator().manual_seed(0))
    assert (features @ features.mT - kernel).abs().max() < 0.06
    near = float(factored_restriction(phi, projected_factor(a, features)))
    assert near == pytest.approx(by_factor, rel=0.05)
    assert float(projected_trace(kernel, a)) == pytest.approx(
        float(projected_factor(a, factor).square().sum()), rel=1e-9
    )


def test_the_whitened_statistic_does_not_depend_on_an_invertible_map(drawn):
    phi, a = drawn
    for seed in range(5):
        mapped = phi @ np.random.default_rng(seed).standard_normal((2, 2)) * 10.0 ** (seed - 2) + seed
        assert mmr_statistic(mapped, a, WIDTH) == pytest.approx(mmr_statistic(phi, a, WIDTH), rel=1e-5)
        assert linearity_ratio(mapped, a) == pytest.approx(linearity_ratio(phi, a), rel=1e-5)
    assert mmr_statistic(0.1 * phi, a, WIDTH, whiten=False) < 0.02 * mmr_statistic(phi, a, WIDTH, whiten=False)


def test_the_expectation_under_independence_and_the_sign_of_the_u_statistic():
    n, generator = 400, np.random.default_rng(3)
    a = generator.uniform(-1, 1, (n, 2))
    width = 0.3 * median_distance(a)
    draws = [generator.standard_normal((n, 2)) for _ in range(200)]
    v = np.array([mmr_statistic(phi, a, width, whiten=False) for phi in draws])
    at = torch.from_numpy(a)
    expected = 2 * float(projected_trace(gram(at, torch.tensor(width)), at)) / n**2
    assert abs(v.mean() - expected) < 3 * v.std(ddof=1) / np.sqrt(len(v))
    u = np.array([mmr_statistic(phi, a, width, "u", whiten=False) for phi in draws])
    assert v.min() > 0
    assert (u < 0).mean() > 0.5  # the residuals are fitted
    ratios = [linearity_ratio(phi, a, width) for phi in draws]
    assert np.mean(ratios) == pytest.approx(1, abs=0.05)


def test_a_stack_is_each_alone_and_gradients_flow(drawn):
    phi, a = (torch.from_numpy(values) for values in drawn)
    stack = torch.stack([phi, phi.square()]).requires_grad_()
    widths = torch.tensor([0.4, 0.8], dtype=torch.double)
    q = moment_restriction(stack, torch.stack([a, a]), widths).detach()
    for k in range(2):
        assert float(q[k]) == pytest.approx(mmr_statistic(stack[k].detach().numpy(), drawn[1], float(widths[k])))
    assert torch.autograd.gradcheck(
        lambda x: moment_restriction(x, a[:12], widths[0]), phi[:12].clone().requires_grad_()
    )


def test_a_collapsed_latent_gives_finite_gradients():
    a = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    phi = torch.zeros(50, 2, requires_grad=True)
    q = moment_restriction(phi, a, torch.tensor(0.3))
    q.backward()
    assert phi.grad is not None
    assert q.isfinite()
    assert phi.grad.isfinite().all()


@pytest.mark.parametrize(
    ("phi", "a", "words"),
    [
        (np.zeros((3, 1)), np.eye(3)[:, :2], "3 rows do not determine a regression on 2 actions"),
        (np.zeros((9, 1)), np.c_[np.arange(9), np.ones(9)], "a: column 1 is constant"),
        (np.zeros((9, 1)), np.c_[np.arange(9), 2.0 * np.arange(9) + 1], r"collinear \(rank 1\)"),
        (np.zeros((8, 1)), np.arange(9.0), "phi: has 8 rows, a 9"),
        (np.array([0, np.nan] + [1] * 7), np.arange(9.0), "phi: row 1 has NaN"),
        (np.zeros((9, 1)), np.array([0, np.inf] + [1] * 7), "a: row 1 has NaN or infinite"),
        (np.zeros((9, 1, 1)), np.arange(9.0), r"phi: has shape \[9, 1, 1\]"),
    ],
)
def test_bad_input_is_named(phi, a, words):
    with pytest.raises(InputError, match=words):
        mmr_statistic(phi, a, WIDTH)


def test_bad_kernels_are_named(drawn):
    with pytest.raises(InputError, match="bandwidth: is 0"):
        mmr_statistic(*drawn, 0.0)
    with pytest.raises(InputError, match="estimator: unknown 'w'"):
        mmr_statistic(*drawn, WIDTH, "w")


def test_worlds_are_what_they_say():
    world = InterventionSCM(alpha=1.5, gamma=0.5, seed=3)
    a, z, x, y = world.sample(4000)
    assert [part.shape for part in (a, z, x, y)] == [(4000, 2), (4000, 2), (4000, 10), (4000,)]
    assert np.abs(a).max() < 0.5
    w, c, v = linear_invariance(z, a)
    assert np.allclose(w, 1.5 * world.effect, atol=0.2)
    assert np.allclose(world.effect.T @ world.effect, np.eye(2))
    assert np.allclose(np.cov(v.T), np.eye(2), atol=0.1)
    assert (x == world.mix(z)).all()
    assert (world.sample(4000)[2] == x).all()
    assert not np.isclose(world.sample(4000, 1)[2], x).any()
    assert (InterventionSCM(alpha=1.5, gamma=0.5, seed=4).sample(10)[0] != a[:10]).all()
    noisy = InterventionSCM(alpha=1.5, gamma=0.5, seed=3, noise_x=0.1).sample(4000)
    assert ((noisy.x - x).std(0) / x.std(0)) == pytest.approx(np.full(10, 0.1), abs=0.02)
    confounded = np.corrcoef(v[:, 0], y - world.effect_on_y(z))[0, 1]
    assert confounded > 0.4
    free = InterventionSCM(alpha=1.5, gamma=0.5, seed=3, confounding=0.0).sample(4000)
    assert np.std(free.y - world.effect_on_y(free.z)) == pytest.approx(0.3, abs=0.02)


def test_a_sprite_stands_where_its_latent_says():
    world = InterventionSCM(dim_x=400, mixing="sprites", noise_x=0.1)
    z = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, -3.0], [0.37, 1.21]])
    pictures = world.mix(z)
    assert pictures.dtype == world.sample(5).x.dtype == np.uint8
    ink = pictures.reshape(-1, 20, 20).astype(float)
    at = np.arange(20)
    middles = np.c_[ink.sum(2) @ at, ink.sum(1) @ at] / ink.sum((1, 2))[:, None]
    assert middles - middles[0] == pytest.approx(z / 2, abs=0.02)  # pixels are rounded
    assert ink.sum((1, 2)) == pytest.approx(ink[0].sum(), rel=0.01)
    whole = world.mix(np.array([[0.0, 0.0], [4.0, -2.0]])).reshape(-1, 20, 20)  # whole pixels: nothing is interpolated
    assert (whole[1, 2:, :-1] == whole[0, :-2, 1:]).all()


def test_the_effect_of_an_action_has_a_closed_form():
    world = InterventionSCM(1, 1, 5, 1.0, 1.2, "curve")
    grid = np.linspace(-2.5, 2.5, 51)
    exact = 2 * np.exp(-0.5) * np.sin(grid) + 0.3 * (grid**2 + 1)
    assert world.do_mean(grid[:, None], 200_000) == pytest.approx(exact, abs=0.02)
    assert exact.var() == pytest.approx(1.20, abs=0.01)
    plane = InterventionSCM(alpha=2.0, seed=1)
    actions = np.array([[1.0, -0.5]])
    centre = 2 * actions @ plane.effect
    exact = (2 * np.exp(-0.5) * np.sin(centre) + 0.3 * (centre**2 + 1)).sum() / np.sqrt(2)
    assert plane.do_mean(actions, 200_000)[0] == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"dim_a": 1}, "dim_a: 1 actions cannot move 2 latents"),
        ({"dim_x": 1}, "dim_x: 1 features cannot hold 2 latents"),
        ({"mixing": "curve"}, "mixing: curve is for one latent"),
        ({"mixing": "cube"}, "mixing: unknown 'cube'"),
        ({"outcome": "cube"}, "outcome: unknown 'cube'"),
        ({"mixing": "sprites"}, "dim_x: sprites are square pictures of 16 x 16 pixels or more, got 10; give 400"),
        ({"mixing": "sprites", "dim_x": 401}, "got 401"),
        ({"mixing": "sprites", "dim_x": 400, "dim_a": 3, "dim_z": 3}, "mixing: sprites have two latents"),
        ({"gamma": 0.0}, "gamma: is 0"),
        ({"alpha": -1.0}, "alpha: is -1"),
        ({"dim_z": 0}, "dim_z: is 0"),
    ],
)
def test_impossible_worlds_are_refused(values, words):
    with pytest.raises(InputError, match=words):
        InterventionSCM(**values)
    with pytest.raises(InputError, match="a: has 3 columns"):
        InterventionSCM().do_mean(np.zeros((1, 3)))
