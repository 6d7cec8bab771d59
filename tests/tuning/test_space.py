"""Draws depend on what is drawn alone."""

import numpy as np
import pytest

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


def test_a_draw_leaves_out_what_does_not_matter_and_changes_nothing_else():
    space = {"network": Choice(("mlp", "cnn")), "width": Uniform(1, 9), "depth": Uniform(1, 9), "lr": Uniform(0, 1)}
    conditions = {"width": ("network", ("mlp", "linear")), "depth": ("kind", ("deep",))}
    for number in range(20):
        everything = draw(space, "ERM", number)
        assert draw(space, "ERM", number, conditions={}) == everything
        idle = {"width"} if everything["network"] == "cnn" else set()
        for kind, more in (("deep", set()), ("flat", {"depth"})):
            drawn = draw(space, "ERM", number, conditions=conditions, fixed={"kind": kind, "network": "cnn"})
            assert drawn == {k: v for k, v in everything.items() if k not in idle | more}
    assert "depth" not in draw(space, "ERM", 0, conditions=conditions)
    assert {len(draw(space, "ERM", n, conditions=conditions)) for n in range(20)} == {2, 3}


def test_what_hangs_on_something_left_out_is_judged_by_its_fixed_value():
    space = {"network": Choice(("cnn",)), "width": Choice((8,)), "shape": Choice(("wide",))}
    conditions = {"shape": ("width", (8,)), "width": ("network", ("mlp",))}
    assert draw(space, "ERM", 0, conditions=conditions, fixed={"width": 4}) == {"network": "cnn"}
    assert draw(space, "ERM", 0, conditions=conditions, fixed={"width": 8}) == {"network": "cnn", "shape": "wide"}
    conditions["width"] = ("network", ("cnn",))
    assert draw(space, "ERM", 0, conditions=conditions, fixed={"width": 4}) == {
        "network": "cnn",
        "width": 8,
        "shape": "wide",
    }


def test_draws_of_stored_trials_stay_as_they_are():
    mldg, fishr = (search_space(find_method(name).Hyperparameters) for name in ("MLDG", "Fishr"))
    assert draw(mldg, "MLDG", 1, 0) == {
        "batch_size": 41,
        "lr": pytest.approx(0.00041562688551410924, rel=1e-12),
        "mldg_beta": pytest.approx(1.4130941703850823, rel=1e-12),
        "mldg_meta_test": 1,
    }
    drawn = draw(fishr, "Fishr", 3, 2)
    assert (drawn["batch_size"], drawn["fishr_anneal_steps"]) == (89, 989)
    assert drawn["fishr_ema"] == pytest.approx(0.9214742347741167, rel=1e-12)
