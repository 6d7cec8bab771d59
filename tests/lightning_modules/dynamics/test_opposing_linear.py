import numpy as np
import pytest

from lightning_modules.dynamics.loss_changes import opposition_rate
from lightning_modules.dynamics.opposing_linear import OpposingLinearModel, Point
from lightning_modules.errors import InputError

SIZES = np.array([0.5, 1.0, 2.0, 4.0, 8.0])
DIRECTION = np.array([3.0, -1.0, 2.0, 0.5, 1.0]) / np.linalg.norm([3.0, -1.0, 2.0, 0.5, 1.0])
POINT = Point(np.array([[0.4, -0.3]]), np.array([[0.2, 0.5, -0.1]]), np.array([0.7]))


def small():
    return OpposingLinearModel(np.array([1.0, 0.5]), k=3, alpha=7.0, gamma=0.8, share=0.3)


def packed(point):
    return np.concatenate([point.b[0], point.o[0], point.c])


def unpacked(row):
    return Point(row[None, :2], row[None, 2:5], row[5:])


def numeric(function, row, h=1e-5):
    return np.stack([(function(row + h * e) - function(row - h * e)) / (2 * h) for e in np.eye(len(row))])


def test_gradient_and_hessian_are_those_of_the_loss():
    model, row = small(), packed(POINT)
    slope = numeric(lambda at: model.loss(unpacked(at))[0], row)
    np.testing.assert_allclose(packed(model.gradient(POINT)), slope, atol=1e-8)
    curvature = numeric(lambda at: packed(model.gradient(unpacked(at))), row)
    np.testing.assert_allclose(model.hessian(POINT)[0], curvature, atol=1e-8)
    assert model.sharpness(POINT)[0] == pytest.approx(np.linalg.eigvalsh(curvature)[-1], rel=1e-7)


def test_population_loss_and_group_losses_are_those_of_simulated_examples():
    model = small()
    x, signal, y = model.simulate(400_000, 1)
    error = POINT.c[0] * (x @ POINT.b[0] + signal @ POINT.o[0]) - y
    assert 0.5 * (error**2).mean() == pytest.approx(model.loss(POINT)[0], rel=0.03)
    sign = signal @ model.u
    # Beside the signal an example's error is that of x alone, the same in both groups.
    rest = 0.5 * (error[sign == 0] ** 2).mean()
    for group, found in zip((sign > 0, sign < 0), model.group_losses(POINT), strict=True):
        assert 0.5 * (error[group] ** 2).mean() == pytest.approx(found[0] + rest, rel=0.03)


def test_sharpness_falls_first_and_ends_where_the_closed_form_says():
    model = OpposingLinearModel(SIZES[:, None] * DIRECTION)
    start = model.start()
    flow = model.gradient_flow(start, 20_000, 20, 1e-3)
    sharpness = model.sharpness(flow.points)
    assert (sharpness.min(0) < sharpness[0]).all()
    assert (sharpness.min(0) < 0.8 * sharpness[0])[:2].all()
    np.testing.assert_allclose(sharpness[-1], model.limit_sharpness(start), rtol=1e-3)
    drift = np.abs(model.invariant(flow.points) - model.invariant(start))
    assert drift.max() < 4e-3
    assert np.abs(sharpness[-1] / (20 * SIZES) - 1).max() < 0.1


def test_above_the_threshold_groups_take_turns_and_the_step_size_bounds_the_sharpness():
    factors = np.array([0.6, 0.9, 1.1, 1.6])
    model = OpposingLinearModel(np.tile(2 * DIRECTION, (4, 1)), k=1, alpha=20.0, share=1.0)
    start = model.start()
    limit = model.limit_sharpness(start)
    path = model.gradient_descent(start, factors * 2 / limit, 4000)
    ratio = model.sharpness(path.points) * factors / limit
    assert (ratio.max(0)[:2] < 1).all()
    assert (ratio.max(0)[2:] > 1).all()
    assert (ratio[-1] <= 1).all()
    z = path.points.c * (path.points.o @ model.u)
    for run in (2, 3):
        above = ratio[:-1, run] > 1
        flips = z[1:, run] * z[:-1, run] < 0
        assert flips[above].mean() >= 0.97
    up, down = model.group_losses(path.points)
    for run in range(4):
        assert opposition_rate(np.diff(up[:, run]).tolist(), np.diff(down[:, run]).tolist(), 1e-6) == 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": 0.0}, "alpha: is"),
        ({"beta": np.zeros(3)}, "beta: is"),
        ({"k": 0}, "k, share: are 0 and 0.2"),
        ({"share": 1.5}, "k, share: are 4 and 1.5"),
    ],
)
def test_values_out_of_range_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        OpposingLinearModel(**({"beta": np.ones(3)} | options))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_divergence_is_said():
    model = OpposingLinearModel(np.ones(3))
    with pytest.raises(InputError, match="diverges by step"):
        model.gradient_descent(model.start(), 50.0, 100)
