"""Samplers and pruners by name: each does its work, and is refused where it cannot."""

import optuna
import pytest

from cluster.errors import InputError
from tuning.samplers import PRUNERS, SAMPLERS, build_pruner, build_sampler
from tuning.search_space import build_space
from tuning.study import quiet_optuna

DEFAULTS = {"x": 0.0, "y": 0.0, "k": "a"}
NUMBERS = {"x": {"low": -5, "high": 5}, "y": {"low": -5, "high": 5}}
CHOICES = {"k": {"choices": ["a", "b"]}}
FINITE = {"x": {"low": -5, "high": 5, "step": 1}, **CHOICES}


def space(ranges):
    return build_space({}, ranges, DEFAULTS, {}, "me")


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_searches_and_is_seeded(name):
    built = space(FINITE if name in ("grid", "brute-force") else {**NUMBERS, **CHOICES})

    def search():
        with quiet_optuna():
            study = optuna.create_study(sampler=build_sampler(name, {}, built, 1, seed=3))
            values = []
            for _ in range(20):
                trial = study.ask()
                found = built.suggest(trial)
                values.append((found["x"], found["k"]))
                study.tell(trial, found["x"] ** 2 + (found["k"] == "b"))
            return values

    first = search()
    assert len(set(first)) >= 15
    if name != "gp":  # its optimiser's last digits depend on threads
        assert search() == first


@pytest.mark.parametrize("name", ["tpe", "gp", "nsga-ii", "nsga-iii", "qmc", "random"])
def test_samplers_serve_several_objectives(name):
    built = space(NUMBERS)
    with quiet_optuna():
        study = optuna.create_study(
            directions=["minimize"] * 2, sampler=build_sampler(name, {"seed": 0}, built, 2, seed=3)
        )
        for _ in range(13):
            trial = study.ask()
            found = built.suggest(trial)
            study.tell(trial, [found["x"] ** 2, (found["x"] - 1) ** 2])
    assert len(study.best_trials) >= 1


def test_arguments_reach_the_sampler():
    sampler = build_sampler("TPESampler", {"n_startup_trials": 3, "constant_liar": False}, space(NUMBERS), 1, 0)
    assert sampler._n_startup_trials == 3
    assert not sampler._constant_liar
    assert build_sampler("tpe", {}, space(NUMBERS), 1, 0)._constant_liar


@pytest.mark.parametrize(
    ("name", "arguments", "ranges", "objectives", "message"),
    [
        ("tpee", {}, NUMBERS, 1, "unknown sampler 'tpee'; did you mean 'tpe'?"),
        (
            "tpe",
            {"n_startup": 3},
            NUMBERS,
            1,
            "sampler_args: tpe takes no 'n_startup'; did you mean 'n_startup_trials'?",
        ),
        ("cma-es", {}, CHOICES, 1, "cma-es needs two numbers to search, and the space has 0 of them"),
        ("cma-es", {}, {"x": NUMBERS["x"], **CHOICES}, 1, "the space has 1 of them (x)"),
        ("cma-es", {}, NUMBERS, 2, "cma-es serves one objective"),
        ("qmc", {}, CHOICES, 1, "qmc spreads numbers, and the space has categories only"),
        ("qmc", {"qmc_type": "golden"}, NUMBERS, 1, "sampler_args: qmc refuses them"),
        ("grid", {}, NUMBERS, 1, "a grid needs a finite list of values"),
    ],
)
def test_a_sampler_that_cannot_serve_is_one_line(name, arguments, ranges, objectives, message):
    with pytest.raises(InputError) as caught:
        build_sampler(name, arguments, space(ranges), objectives, 0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_can_be_asked(name):
    arguments = {"percentile": {"percentile": 25.0}, "threshold": {"upper": 5.0}, "patient": {"patience": 1}}
    with quiet_optuna():
        pruner = build_pruner(name, arguments.get(name, {}), 1, seeds=3, steps=10, every=2)
        study = optuna.create_study(pruner=pruner)
        for number in range(8):
            trial = study.ask()
            for step in range(2, 11, 2):
                trial.report(float(10 * number + step), step)
                trial.should_prune()
            study.tell(trial, float(number))
        assert isinstance(pruner, PRUNERS[name])


def test_hyperband_counts_in_steps():
    pruner = build_pruner("hyperband", {}, 1, seeds=2, steps=90, every=10)
    assert (pruner._min_resource, pruner._max_resource) == (10, 180)


def test_a_patient_pruner_wraps_another():
    pruner = build_pruner("patient", {"wrapped": "median", "patience": 2}, 1, 1, 10, 1)
    assert isinstance(pruner._wrapped_pruner, optuna.pruners.MedianPruner)


@pytest.mark.parametrize(
    ("name", "arguments", "objectives", "seeds", "message"),
    [
        ("medain", {}, 1, 1, "unknown pruner 'medain'; did you mean 'median'?"),
        ("median", {}, 2, 1, "median compares one objective, the study has 2; take --pruner none"),
        ("wilcoxon", {}, 1, 1, "wilcoxon compares replicates, and there are 1; give --seeds 3 or more"),
        ("percentile", {}, 1, 1, "pruner_args: percentile refuses them"),
        ("threshold", {}, 1, 1, "pruner_args: threshold refuses them"),
        ("median", {"warmup": 3}, 1, 1, "median takes no 'warmup'"),
    ],
)
def test_a_pruner_that_cannot_serve_is_one_line(name, arguments, objectives, seeds, message):
    with pytest.raises(InputError) as caught:
        build_pruner(name, arguments, objectives, seeds, 10, 1)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
