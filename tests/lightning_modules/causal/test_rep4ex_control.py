"""The second stage: two-stage least squares, invariance, effects inside the support, and bad input."""

import numpy as np
import pytest

from lightning_modules.causal.rep4ex.control import AdditiveControlFunction
from lightning_modules.causal.rep4ex.features import FourierFeatures, Monomials
from lightning_modules.causal.rep4ex.regression import RegressionTraining, fit_least_squares, fit_networks
from lightning_modules.causal.rep4ex.scm import InterventionSCM
from lightning_modules.errors import InputError


def linear_rows(n=500, k=2, seed=0):
    generator = np.random.default_rng(seed)
    a, v = generator.uniform(-1, 1, (n, k)), generator.standard_normal((n, 2))
    z = 2 * a @ np.linalg.qr(generator.standard_normal((k, 2)))[0] + v
    y = z @ np.array([1.0, -2.0]) + v @ np.array([0.8, 0.5]) + 0.3 * generator.standard_normal(n)
    return z, a, y


@pytest.mark.parametrize("k", [2, 3])
def test_the_linear_case_is_two_stage_least_squares(k):
    z, a, y = linear_rows(k=k)
    control = AdditiveControlFunction("polynomial", penalty=0.0, degree=1).fit(z, a, y)
    design = np.c_[a, np.ones(len(a))]
    instruments = design @ np.linalg.solve(design.T @ design, design.T @ z)
    stages = np.linalg.lstsq(np.c_[instruments, np.ones(len(a))], y, rcond=None)[0]
    assert np.abs(control.coefficients - stages[:2]).max() < 1e-10
    assert control.coefficients == pytest.approx([1, -2], abs=0.12)
    assert np.abs(fit_least_squares(z, y)[:2] - [1, -2]).max() > 0.15  # confounded
    line = np.array([[5.0] * k]) @ control.w + control.c
    assert control.predict_do(np.array([[5.0] * k])) == pytest.approx(line @ stages[:2] + stages[2], abs=1e-8)


@pytest.mark.parametrize("kind", ["polynomial", "ridge"])
def test_predictions_do_not_depend_on_an_affine_map_of_the_latents(kind):
    world = InterventionSCM(seed=1)
    a, z, _, y = world.sample(800)
    targets = np.random.default_rng(5).uniform(-2, 2, (20, 2))
    # Whitening leaves a rotation: monomials do not see it, random features do, so they get triangular maps.
    b = np.array([[2.0, 0.7], [-0.4, 0.5]]) if kind == "polynomial" else np.diag([3.0, 0.2])
    fitted = [
        AdditiveControlFunction(kind, penalty=float(kind == "ridge")).fit(latents, a, y)
        for latents in (z, z @ b + [4.0, -7.0])
    ]
    assert np.abs(fitted[0].predict_do(targets) - fitted[1].predict_do(targets)).max() < 1e-8
    rows = (z[:20], z[:20] @ b + [4.0, -7.0])
    both = [one.predict_conditional(latents, targets) for one, latents in zip(fitted, rows, strict=True)]
    assert np.abs(both[0] - both[1]).max() < 1e-8
    if kind == "ridge":  # the box follows the latents' own axes
        assert (fitted[0].outside(targets) == fitted[1].outside(targets)).all()


def test_inside_the_support_the_effect_is_the_regression_on_actions():
    world = InterventionSCM(1, 1, 5, 1.0, 1.2, "curve")
    a, z, _, y = world.sample(10000)
    grid = np.linspace(-1.2, 1.2, 25)[:, None]
    control = AdditiveControlFunction().fit(z, a, y)
    assert ((control.predict_do(grid) - world.do_mean(grid)) ** 2).mean() < 0.02
    beyond = np.linspace(1.5, 2.5, 11)[:, None]
    assert ((control.predict_do(beyond) - world.do_mean(beyond)) ** 2).mean() < 0.1
    confounded = AdditiveControlFunction(control=False).fit(z, a, y)
    assert ((confounded.predict_do(grid) - world.do_mean(grid)) ** 2).mean() > 0.5


@pytest.mark.parametrize("seed", range(6))
def test_the_conditional_prediction(seed):
    world = InterventionSCM(1, 1, 5, 1.0, 1.2, "curve", seed=seed)
    a, z, _, y = world.sample(10000)
    control = AdditiveControlFunction().fit(z, a, y)
    fresh = world.sample(2000, 1)
    moved = fresh.z - fresh.a + 2.0
    truth = world.conditional_mean(moved, np.array([[2.0]]))
    error = ((control.predict_conditional(moved, np.array([[2.0]])) - truth) ** 2).mean()
    assert error < 0.3 < 0.1 * truth.var()
    each = control.predict_conditional(moved[:3], np.full((3, 1), 2.0))
    assert each == pytest.approx(control.predict_conditional(moved[:3], np.array([[2.0]])))


def test_two_networks_do_what_the_closed_form_does():
    world = InterventionSCM(1, 1, 5, 1.0, 1.2, "curve")
    a, z, _, y = world.sample(5000)
    grid = np.linspace(-2.5, 2.5, 21)[:, None]
    training = RegressionTraining(steps=400)
    control = AdditiveControlFunction("mlp", training=training).fit(z, a, y)
    assert ((control.predict_do(grid) - world.do_mean(grid)) ** 2).mean() < 0.1
    on_actions = fit_networks([a], y, training=training).predict(grid)
    beyond = np.abs(grid[:, 0]) > 1.2
    assert ((on_actions - world.do_mean(grid)) ** 2)[beyond].mean() > 0.3
    assert ((on_actions - world.do_mean(grid)) ** 2)[~beyond].mean() < 0.1
    again = AdditiveControlFunction("mlp", training=training).fit(z, a, y)
    assert (again.predict_do(grid) == control.predict_do(grid)).all()


@pytest.mark.parametrize("features", [FourierFeatures(2, 30, 1.5, 0), Monomials(2, 3)])
def test_the_mean_over_shifts_is_the_mean_over_shifts(features):
    generator = np.random.default_rng(0)
    centres, v = generator.standard_normal((4, 2)), generator.standard_normal((50, 2)) + 0.3
    slow = np.stack([features(centre + v).mean(0) for centre in centres])
    assert features.shifted_mean(centres, v) == pytest.approx(slow, abs=1e-12)


def test_monomials_are_all_of_them():
    assert Monomials(2, 2)(np.array([[2.0, 3.0]])).tolist() == [[2, 3, 4, 6, 9]]


def test_coverage_falls_with_the_distance():
    world = InterventionSCM(1, 1, 5, 1.0, 1.2, "curve")
    a, z, _, y = world.sample(3000)
    control = AdditiveControlFunction().fit(z, a, y)
    outside = control.outside(np.array([[0.0], [2.0], [4.0], [20.0]]))
    assert (np.diff(outside) > 0).all()
    assert outside[0] < 0.02
    assert outside[3] == 1


def test_bad_input_is_named():
    z, a, y = linear_rows()
    control = AdditiveControlFunction()
    for call in (lambda: control.predict_do(a), lambda: control.predict_conditional(z, a), lambda: control.outside(a)):
        with pytest.raises(InputError, match="predict: nothing has been fitted; call fit first"):
            call()
    bad = [
        ((z, a[:, :1], y), "dim_a: 1 actions cannot move 2 latents"),
        ((z[:4], a[:4], y[:3]), "y: has 3 rows, z 4"),
        ((z[:3], a[:3], y[:3]), "a: 3 rows do not determine"),
        ((z, np.c_[a[:, 0], np.ones(500)], y), "a: column 1 is constant"),
        ((z, np.c_[a[:, 0], 3 * a[:, 0]], y), "collinear"),
        ((z, a, np.where(y > 0, y, np.nan)), "y: row"),
        ((np.c_[z[:, 0], z[:, 0]], a, y), "two are equal"),
        ((a, a, y), "z: actions determine"),
        ((z, a, np.c_[y, y]), "y: has 2 columns"),
    ]
    for given, words in bad:
        with pytest.raises(InputError, match=words):
            AdditiveControlFunction().fit(*given)
    control.fit(z, a, y)
    with pytest.raises(InputError, match="a_star: has 3 columns, was fitted with 2 actions"):
        control.predict_do(np.zeros((1, 3)))
    with pytest.raises(InputError, match="a_star: row 0 has NaN"):
        control.predict_do(np.array([[np.nan, 0]]))
    with pytest.raises(InputError, match="z: has 1 columns, was fitted with 2"):
        control.predict_conditional(z[:, :1], a)
    with pytest.raises(InputError, match="coefficients: only a polynomial of degree 1"):
        _ = control.coefficients
    for values, words in (
        ({"kind": "tree"}, "kind: unknown 'tree'"),
        ({"penalty": -1.0}, "penalty"),
        ({"degree": 0}, "degree 0"),
    ):
        with pytest.raises(InputError, match=words):
            AdditiveControlFunction(**values)
