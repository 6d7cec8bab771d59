"""Search spaces: built from ranges and what a person puts over them, suggested under conditions, refused where empty."""

import json

import optuna
import pytest

from cluster.errors import InputError
from tuning.search_space import build_space

DEFAULTS = {"lr": 1e-3, "batch_size": 64, "network": "mlp", "width": 32, "flag": False, "decay": 0.0}
KINDS = {"lr": float, "batch_size": int, "network": str, "width": int, "flag": bool, "decay": float}
LAWS = {
    "lr": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
    "batch_size": {"type": "int", "low": 8, "high": 512, "log": True},
}


def space(overrides=None, laws=LAWS):
    return build_space(laws, overrides or {}, DEFAULTS, KINDS, "ERM")


def suggestions(built, count=200, seed=0):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [built.suggest(study.ask()) for _ in range(count)]


def test_declared_ranges_are_searched():
    values = suggestions(space())
    assert {frozenset(v) for v in values} == {frozenset({"lr", "batch_size"})}
    assert all(1e-5 <= v["lr"] <= 1e-2 and 8 <= v["batch_size"] <= 512 for v in values)
    assert sum(v["lr"] < 10**-3.5 for v in values) == pytest.approx(100, abs=30)  # half the decades, half the draws
    assert all(isinstance(v["batch_size"], int) for v in values)


def test_a_person_overrides_fixes_and_adds():
    built = space({"lr": 0.01, "decay": {"low": 0.0, "high": 1.0, "step": 0.25}, "flag": {"choices": [True, False]}})
    values = suggestions(built)
    assert {v["lr"] for v in values} == {0.01}
    assert {v["decay"] for v in values} == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert {v["flag"] for v in values} == {True, False}
    assert built.describe() == {
        "batch_size": "8 to 512, log",
        "decay": "0 to 1 in steps of 0.25",
        "flag": "one of True, False",
        "lr": "fixed at 0.01",
    }


def test_whole_numbers_keep_their_step():
    built = space({"batch_size": {"low": 16, "high": 64, "step": 16}, "lr": 0.1})
    assert {v["batch_size"] for v in suggestions(built)} == {16, 32, 48, 64}
    assert built.grid() == {"batch_size": [16, 32, 48, 64]}


def test_a_conditional_parameter_is_suggested_only_under_its_condition():
    overrides = {
        "width": {"low": 4, "high": 8, "when": {"network": "mlp"}},  # before what it depends on
        "network": {"choices": ["mlp", "linear"]},
    }
    built = space(overrides, laws={})
    assert [p.name for p in built.parameters] == ["network", "width"]
    values = suggestions(built)
    assert {v["network"] for v in values} == {"mlp", "linear"}
    assert all(("width" in v) == (v["network"] == "mlp") for v in values)
    assert built.conditional == ["width"]


def test_a_condition_may_name_a_value_that_is_not_searched():
    built = space({"width": {"low": 4, "high": 8, "when": {"network": ["linear", "cnn"]}}})
    assert all("width" not in v for v in suggestions(built, 5))
    built = space({"width": {"low": 4, "high": 8, "when": {"network": "mlp"}}})
    assert all("width" in v for v in suggestions(built, 5))
    built = space({"network": "cnn", "width": {"low": 4, "high": 8, "when": {"network": ["linear", "cnn"]}}})
    assert all("width" in v for v in suggestions(built, 5))


def test_what_lies_within():
    built = space({"network": {"choices": ["mlp", "linear"]}})
    assert built.within({"lr": 1.0, "batch_size": 64, "network": "cnn", "decay": 1.0}) == {"batch_size": 64}
    assert built.within(DEFAULTS) == {"lr": 1e-3, "batch_size": 64, "network": "mlp"}
    assert built.ends()["batch_size"] == [8, 512]


def test_what_can_come_twice():
    assert not space().finite
    assert space({"lr": 0.1}).finite
    assert space({"lr": {"low": 0.0, "high": 1.0, "step": 0.5}}).finite


def test_distributions_survive_json():
    built = space({"network": {"choices": ["mlp", "linear"]}})
    stored = json.loads(built.to_json(only={"lr", "network"}))
    assert set(stored) == {"lr", "network"}
    read = optuna.distributions.json_to_distribution(json.dumps(stored["network"]))
    assert read == optuna.distributions.CategoricalDistribution(("mlp", "linear"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lrr": 0.1}, "space: ERM has no hyperparameter 'lrr'; did you mean 'lr'?"),
        ({"lr": {"low": 1.0, "high": 0.1}}, "range of lr is empty: low 1 is above high 0.1"),
        ({"lr": {"choices": []}}, "lr has no choices"),
        ({"lr": [0.1, 0.2]}, "lr is a list; write lr: {choices: [0.1, 0.2]}"),
        ({"lr": {"low": 0, "high": 1, "log": True}}, "searched in logarithm from 0"),
        ({"lr": {"low": 0.1}}, "lr needs a number as high"),
        ({"lr": {"low": 0.1, "high": "much"}}, "lr needs a number as high, or choices; 'much' is none"),
        ({"lr": {"low": 0.1, "high": 1, "base": 2}}, "lr has no key 'base'"),
        ({"lr": {"low": 0.0, "high": 1.0, "step": 2.0}}, "step 2.0 of lr does not fit"),
        ({"lr": {"low": 0.0, "high": 1.0, "step": 0}}, "step 0 of lr does not fit"),
        ({"lr": {"low": 0.1, "high": 1.0, "step": 0.1, "log": True}}, "lr has log and step"),
        ({"batch_size": {"low": 1.5, "high": 3}}, "batch_size is a whole number"),
        ({"lr": {"low": 0.1, "high": 1, "when": {"depth": 3}}}, "lr depends on 'depth'"),
        ({"lr": 0.1, "batch_size": 32}, "nothing of ERM is left to search"),
        (
            {
                "lr": {"low": 0.1, "high": 1, "when": {"decay": 0.5}},
                "decay": {"low": 0, "high": 1, "when": {"lr": 0.1}},
            },
            "the conditions of decay, lr go in a circle",
        ),
    ],
)
def test_what_cannot_be_searched_is_one_line(overrides, message):
    with pytest.raises(InputError) as caught:
        space(overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({}, "a grid needs a finite list of values, and lr goes from 1e-05 to 0.01, log"),
        ({"lr": 1.0, "batch_size": {"choices": [1], "when": {"network": "mlp"}}}, "a grid has no conditions"),
    ],
)
def test_no_grid_without_a_list_of_values(overrides, message):
    with pytest.raises(InputError, match=message):
        space(overrides).grid()
