"""Draws depend on what is drawn alone."""

import numpy as np

from lightning_modules.domain_generalization.catalog import find_method
from lightning_modules.hyperparameters import Choice, LogUniform, Uniform, search_space
from tuning.space import draw


def test_a_draw_is_the_same_whatever_else_is_drawn():
    space = {"lr": LogUniform(1e-5, 1e-1), "dropout": Choice((0.0, 0.1, 0.5))}
    larger = {"aaa": Uniform(0, 1), **space}
    assert draw(space, "ERM", 1, 0).items() <= draw(larger, "ERM", 1, 0).items()
    assert draw(space, "ERM", 1, 0) == draw(space, "ERM", 1, 0)


def test_draws_differ_between_methods_numbers_and_seeds():
    space = search_space(find_method("IRM").Hyperparameters)
    keys = [("IRM", 1, 0), ("IRM", 2, 0), ("IRM", 1, 1), ("VREx", 1, 0)]
    assert len({draw(space, *key)["lr"] for key in keys}) == 4


def test_draws_follow_the_law():
    law = LogUniform(1e-4, 1e-2)
    logs = np.log10([draw({"lr": law}, "ERM", i)["lr"] for i in range(3000)])
    assert abs(logs.mean() + 3) < 3 * (2 / np.sqrt(12)) / np.sqrt(3000)
    assert logs.min() >= -4
    assert logs.max() <= -2
