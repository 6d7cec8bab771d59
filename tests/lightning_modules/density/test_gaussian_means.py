"""The population's losses of the Gaussian mean family, against plain quadrature and the figures of a prototype."""

import math

import numpy as np
import pytest

from lightning_modules.density.gaussian_means import GaussianMeanProblem
from lightning_modules.errors import InputError


def apart(*distances):
    means = np.array(distances, float)[:, None]
    return GaussianMeanProblem(means, np.zeros_like(means))


def quadrature(loss, mu_star, mu_noise, tau, points=20001):
    """Loss, gradient and Hessian in one dimension by a fine sum over x; computed from densities."""
    x = np.linspace(min(mu_star, mu_noise) - 14, max(mu_star, mu_noise) + 14, points)
    normal = [np.exp(-((x - mu) ** 2) / 2) / math.sqrt(2 * math.pi) for mu in (mu_star, mu_noise)]
    r = tau[0] * x - tau[1] - mu_noise * x + mu_noise**2 / 2
    extended = np.stack([x, -np.ones_like(x)])
    if loss == "nce":
        s = 1 / (1 + np.exp(-r))
        value, slope, curve = (
            normal[0] * np.log1p(np.exp(-r)) + normal[1] * np.log1p(np.exp(r)),
            normal[1] * s - normal[0] * (1 - s),
            (normal[0] + normal[1]) * s * (1 - s),
        )
    else:
        a, b = normal[0] * np.exp(-r / 2), normal[1] * np.exp(r / 2)
        value, slope, curve = a + b, (b - a) / 2, (a + b) / 4
    h = (x[1] - x[0]) / 2
    return h * value.sum(), h * extended @ slope, h * (extended * curve) @ extended.T


KNOWN = {
    "ence": (0.262500965, [-0.14438099, -0.00655706], [[0.21049924, -0.06185493], [-0.06185493, 0.06562524]]),
    "nce": (0.1016911147, [-0.05808341, -0.00597454], [[0.14612144, -0.05479193], [-0.05479193, 0.05978335]]),
}


@pytest.mark.parametrize("loss", ["nce", "ence"])
def test_value_gradient_and_hessian(loss):
    tau = np.array([0.7, 2.1])
    found = getattr(GaussianMeanProblem([3.0], [-1.0]), loss)(tau)
    for mine, known, plain in zip(found, KNOWN[loss], quadrature(loss, 3.0, -1.0, tau), strict=True):
        assert np.allclose(mine, known, atol=1e-6, rtol=0)
        assert np.allclose(mine, plain, atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize("loss", ["nce", "ence"])
@pytest.mark.parametrize("tau", [[3.0, 1.0], [-9.0, 20.0], [12.0, -3.0], [0.0, 0.0]])
def test_it_is_exact_far_from_the_optimum_too(loss, tau):
    tau = np.array(tau)
    found = getattr(GaussianMeanProblem([5.0], [0.5]), loss)(tau)
    for mine, plain in zip(found, quadrature(loss, 5.0, 0.5, tau), strict=True):
        assert np.allclose(mine, plain, atol=0, rtol=1e-7)


def test_values_at_the_noise_and_at_the_data():
    problem = apart(4, 8)
    assert np.allclose(problem.nce(problem.tau_noise)[0], math.log(2), rtol=1e-14)
    assert (problem.ence(problem.tau_noise)[0] == 1).all()
    for loss in ("nce", "ence"):
        value, gradient, _ = getattr(problem, loss)(problem.tau_star)
        assert (np.abs(gradient) < 1e-12 * value[:, None]).all()
    assert np.allclose(problem.ence(problem.tau_star)[0], np.exp([-2.0, -8.0]), rtol=1e-12)
    assert np.allclose(problem.bhattacharyya(), np.exp([-2.0, -8.0]), rtol=1e-12)
    assert np.allclose(problem.nce(problem.tau_star)[0], [6.0427e-2, 9.3535e-5], rtol=1e-4)


def test_the_loss_is_flat_and_its_condition_polynomial():
    problem = apart(4, 8, 16)
    assert np.allclose(problem.condition_number("ence"), [34.0, 322.0, 4354.0], rtol=1e-3)
    assert np.allclose(problem.condition_number("nce"), [87.5, 2424.6, 117880.0], rtol=1e-3)
    assert np.allclose(problem.smallest_eigenvalue("nce"), [1.03e-3, 1.73e-7, 2.69e-19], rtol=5e-3)
    m = np.array([2.0, 4.0, 8.0])
    closed = ((2 + m**2 + m * np.sqrt(m**2 + 4)) / 2) ** 2
    assert np.allclose(problem.condition_number("ence"), closed, rtol=1e-9)
    assert GaussianMeanProblem([8.0], [-8.0]).condition_number("ence") == pytest.approx(1)


def test_nothing_underflows():
    far = GaussianMeanProblem(np.array([100.0], np.float32), np.array([0.0], np.float32))
    assert np.exp(np.float64(-1250.0)) == 0
    for log_loss, expected in ((far.log_ence, -1250.0), (far.log_nce, None)):
        value, gradient = log_loss(far.tau_star)
        assert value == pytest.approx(expected if expected is not None else value, abs=1e-9)
        assert np.isfinite(value)
        assert value < -1200
        assert np.abs(gradient).max() < 1e-9
        value, gradient = log_loss(far.tau_star - np.array([1.0, 30.0]))
        assert np.isfinite(value)
        assert np.abs(gradient).max() > 1


@pytest.mark.parametrize("loss", ["nce", "ence"])
def test_the_logarithms_gradient_points_the_same_way(loss):
    problem, tau = GaussianMeanProblem([3.0, 1.0], [-1.0, 0.5]), np.array([0.7, -0.2, 2.1])
    plain, log_slope = getattr(problem, loss)(tau)[1], getattr(problem, f"log_{loss}")(tau)[1]
    assert plain @ log_slope / np.linalg.norm(plain) / np.linalg.norm(log_slope) == pytest.approx(1, abs=1e-12)
    step = 1e-6 * np.eye(3)
    numeric = [
        (getattr(problem, f"log_{loss}")(tau + e)[0] - getattr(problem, f"log_{loss}")(tau - e)[0]) / 2e-6 for e in step
    ]
    assert np.allclose(log_slope, numeric, atol=1e-7)


@pytest.mark.parametrize("loss", ["nce", "ence"])
def test_the_hessian_is_the_gradients_slope(loss):
    problem, tau = GaussianMeanProblem([3.0, 1.0, 0.2], [-1.0, 0.5, 0.0]), np.array([0.7, -0.2, 1.0, 2.1])
    hessian = getattr(problem, loss)(tau)[2]
    numeric = [
        (getattr(problem, loss)(tau + e)[1] - getattr(problem, loss)(tau - e)[1]) / 2e-5 for e in 1e-5 * np.eye(4)
    ]
    assert np.allclose(hessian, numeric, atol=1e-8)


def test_a_loss_below_every_float_has_its_logarithm():
    problem = GaussianMeanProblem([1000.0], [0.0])
    # Both classes are so far on their sides that softplus(u) is e^u: log L = -m + D^2 / 2.
    value, gradient = problem.log_nce(np.array([50.0, 25_000.0]))
    assert value == pytest.approx(-25_000 + 1250, abs=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("loss", ["nce", "ence"])
def test_rotations_and_leading_axes_change_nothing(loss):
    generator = np.random.default_rng(0)
    turn = np.linalg.qr(generator.standard_normal((5, 5)))[0]
    means, tau = generator.standard_normal((2, 3, 5)), generator.standard_normal((3, 6))
    problem = GaussianMeanProblem(*means)
    value, gradient, hessian = getattr(problem, loss)(tau)
    whole = np.eye(6)
    whole[:5, :5] = turn
    turned = getattr(GaussianMeanProblem(*(means @ turn.T)), loss)(tau @ whole.T)
    assert np.allclose(turned[0], value, rtol=1e-12)
    assert np.allclose(turned[1], gradient @ whole.T, rtol=1e-10, atol=1e-13)
    assert np.allclose(turned[2], whole @ hessian @ whole.T, rtol=1e-10, atol=1e-13)
    alone = getattr(problem.take(1), loss)(tau[1])
    for mine, one in zip((value[1], gradient[1], hessian[1]), alone, strict=True):
        assert np.allclose(mine, one, rtol=1e-12)
    samples = generator.standard_normal((2, 400_000, 5))  # and an integral by plain sampling
    data, noise = samples[0] + means[0, 1], samples[1] + means[1, 1]
    r = [x @ (tau[1, :5] - means[1, 1]) - tau[1, 5] + (means[1, 1] ** 2).sum() / 2 for x in (data, noise)]
    if loss == "nce":
        drawn = (np.log1p(np.exp(-r[0])).mean() + np.log1p(np.exp(r[1])).mean()) / 2
        assert drawn == pytest.approx(value[1], rel=0.01)


def test_asymptotic_covariances():
    near, far = GaussianMeanProblem([1.0], [0.0]), GaussianMeanProblem([3.0], [0.0])
    for loss, (tt, ta, aa) in {"nce": (3.045, 1.523, 1.274), "ence": (3.210, 1.605, 1.371)}.items():
        assert np.allclose(near.asymptotic_covariance(loss), [[tt, ta], [ta, aa]], atol=1e-3)
    assert np.trace(far.asymptotic_covariance("nce")) == pytest.approx(85.4, rel=1e-3)
    assert np.trace(far.asymptotic_covariance("ence")) == pytest.approx(217, rel=5e-3)


def test_samples_repeat_and_have_the_means():
    problem = GaussianMeanProblem([[2.0, 0.0], [-1.0, 3.0]], [[0.0, 1.0], [0.0, 0.0]])
    data, noise = problem.sample(50_000, 3)
    assert data.shape == (2, 50_000, 2)
    assert np.allclose(data.mean(1), problem.mu_star, atol=0.02)
    assert np.allclose(noise.mean(1), problem.mu_noise, atol=0.02)
    assert (problem.sample(50_000, 3)[1] == noise).all()
    assert not (problem.sample(50_000, 4)[1] == noise).any()


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match=r"mu_star: has the shape \[2\], mu_noise \[1\]"):
        GaussianMeanProblem([1.0, 2.0], [1.0])
    with pytest.raises(InputError, match="not finite"):
        GaussianMeanProblem([math.inf], [1.0])
    problem = apart(1)
    with pytest.raises(InputError, match="unknown loss 'kl'"):
        problem.scaled("kl", problem.tau_noise)
    with pytest.raises(InputError, match=r"tau: has the shape \[3\]; give \[..., 2\]"):
        problem.nce(np.zeros(3))
    with pytest.raises(InputError, match="n: 0 examples"):
        problem.sample(0, 0)
    assert np.isnan(problem.nce(np.array([[501.0, 0.0]]))[0]).all()  # beyond what the grid resolves
    assert np.isfinite(problem.nce(np.array([[400.0, 0.0]]))[0]).all()
