"""Updates that each descent needs, all figures those of a prototype."""

import math

import numpy as np
import pytest

from lightning_modules.density.descent import (
    descend,
    guarantee_step,
    landscape_grid,
    newton_direction,
    steps_to_tolerance,
)
from lightning_modules.density.gaussian_means import GaussianMeanProblem
from lightning_modules.errors import InputError


def apart(*distances):
    means = np.array(distances, float)[:, None]
    return GaussianMeanProblem(means, np.zeros_like(means))


def test_gradient_descent_stalls():
    nce = descend(apart(2, 3, 4), "nce", "gd", 1.0, max_steps=4000).steps
    assert nce == pytest.approx([88, 479, 3022], rel=0.02)
    assert nce[2] / nce[1] > nce[1] / nce[0]
    far = descend(apart(16), "nce", "gd", 1.0, max_steps=2000)
    assert far.steps[0] == -1
    assert far.final[0] > 120.6
    assert far.best[0] == far.final[0]
    ence = descend(apart(2, 3, 4, 5), "ence", "gd", 1.0, max_steps=4000).steps
    assert ence == pytest.approx([53, 176, 670, 3029], rel=0.02)


def test_normalised_gradient_descent_on_ence_is_polynomial():
    steps = descend(apart(2, 4, 8, 16), "ence", "ngd", 0.1, max_steps=16_000).steps
    assert steps[:3] == pytest.approx([29, 92, 973], abs=2)
    assert steps[3] == pytest.approx(14826, rel=0.01)
    assert 3.2 < math.log(steps[3] / steps[1]) / math.log(4) < 4.2
    assert descend(apart(6), "ence", "ngd", 0.3).best[0] > 0.1  # a fixed step ends at a distance of its order


def test_normalised_gradient_descent_on_nce_is_slower():
    steps = descend(apart(2, 4, 8), "nce", "ngd", 0.1, max_steps=6000).steps
    assert steps == pytest.approx([29, 152, 4861], rel=0.05)


def test_rotation_does_not_matter_and_translation_does():
    axis = np.zeros((1, 16))
    axis[0, 3] = 8
    flat = np.full((1, 16), 2.0)
    for mean in (axis, flat):
        assert descend(GaussianMeanProblem(mean, 0 * mean), "ence", "ngd", 0.1).steps[0] == pytest.approx(973, abs=2)
    centred = GaussianMeanProblem([[8.0]], [[-8.0]])
    assert descend(centred, "ence", "ngd", 0.1).steps[0] == pytest.approx(160, abs=2)
    assert descend(centred, "nce", "gd", 1.0, max_steps=500).best[0] == pytest.approx(12.0, abs=0.1)


def test_newtons_full_step_converges_and_its_guarantee_is_useless():
    assert descend(apart(4, 16), "nce", "newton", 1.0).steps == pytest.approx([7, 43], abs=1)
    assert descend(apart(4, 16), "ence", "newton", 1.0).steps == pytest.approx([5, 37], abs=1)
    assert guarantee_step(apart(4, 16), "nce") == pytest.approx([4.3e-4, 8.3e-21], rel=0.02)


def test_cells_do_not_depend_on_each_other():
    problem, rates = apart(3, 3, 5), [0.1, 0.3, 0.1]
    for loss, optimizer in (("ence", "ngd"), ("nce", "adam"), ("ence", "gd_log"), ("nce", "newton")):
        together = descend(problem, loss, optimizer, rates, max_steps=300)
        for number, rate in enumerate(rates):
            alone = descend(problem.take([number]), loss, optimizer, rate, max_steps=300)
            assert alone.steps[0] == together.steps[number]
            assert alone.final[0] == pytest.approx(together.final[number], rel=1e-6)


def test_one_problem_is_counted_to_the_update():
    problem = GaussianMeanProblem([4.0], [0.0])
    steps, best = steps_to_tolerance(problem, "ence", "ngd", 0.1)
    assert steps == 92
    assert best <= 0.1
    steps, best = steps_to_tolerance(problem, "ence", "ngd", 0.1, max_steps=91)
    assert steps is None
    assert 0.1 < best < 0.2


def test_descent_on_the_loss_and_on_its_logarithm_are_different():
    plain = descend(apart(4), "ence", "gd", 0.1, max_steps=2000)
    log = descend(apart(4), "ence", "gd_log", 0.1, max_steps=2000)
    assert log.steps[0] == pytest.approx(1048, rel=0.02)
    assert plain.steps[0] == -1


def test_what_diverges_is_marked_and_leaves_the_rest_alone():
    found = descend(apart(4, 4), "nce", "gd", [1e5, 1.0], max_steps=3100)
    assert found.steps.tolist() == [-1, pytest.approx(3022, rel=0.02)]
    assert not np.isfinite(found.final[0])
    assert found.best[0] <= np.linalg.norm(apart(4).tau_star)


def test_marks_are_the_best_so_far():
    found = descend(apart(6), "ence", "ngd", 0.3, max_steps=100, stop_within=False, marks=(10, 50, 100))
    assert len(found.marks) == 3
    assert found.marks[0][0] > found.marks[1][0] >= found.marks[2][0] == found.best[0]
    assert found.best[0] <= found.final[0]


def test_a_grid_has_its_least_loss_at_the_data():
    table = landscape_grid(
        GaussianMeanProblem([4.0], [0.0]), "nce", np.linspace(0, 8, 9), np.linspace(0, 16, 9)
    ).to_pydict()
    least = int(np.argmin(table["log_loss"]))
    assert (table["theta"][least], table["alpha"][least], table["distance"][least]) == (4.0, 8.0, 0.0)
    assert table["log_gradient_norm"][least] < -25
    assert len(table["theta"]) == 81


def test_bad_settings_are_refused():
    for words, more in (
        ("lr: 0 is not above 0", {"lr": 0}),
        ("unknown optimizer 'sgd'", {"optimizer": "sgd"}),
        ("delta: -1 is not above 0", {"delta": -1}),
        ("max_steps: 0 updates", {"max_steps": 0}),
    ):
        with pytest.raises(InputError, match=words):
            descend(apart(2), "nce", **{"optimizer": "gd", "lr": 1.0, **more})
    with pytest.raises(InputError, match="one leading axis"):
        descend(GaussianMeanProblem([1.0], [0.0]), "nce", "gd", 1.0)
    with pytest.raises(InputError, match=r"a grid needs \[1\]"):
        landscape_grid(GaussianMeanProblem([1.0, 2.0], [0.0, 0.0]), "nce", np.zeros(2), np.zeros(2))
    singular = newton_direction(np.stack([np.zeros((2, 2)), np.eye(2)]), np.ones((2, 2)))
    assert np.isnan(singular[0]).all()
    assert (singular[1] == 1).all()
