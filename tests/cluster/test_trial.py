"""A trial's identity and streams depend on its content alone."""

import subprocess
import sys

import pytest

from cluster.trial import Trial, derive_seed


def make(**changes):
    values = {
        "method": "IRM",
        "dataset": "D",
        "held_out": ("b", "a"),
        "hyperparameters": {"lr": 0.1, "k": 2},
        "seed": 3,
    }
    return Trial.create(**{**values, "budget": {"steps": 10}, **changes})


def test_the_id_is_stable_across_processes_and_spelling():
    code = "from tests.cluster.test_trial import make; print(make().trial_id)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert make().trial_id == other == "e01ca75fa03a2501"  # a change here breaks every stored run: raise SCHEMA_VERSION
    assert make(held_out=("a", "b"), hyperparameters={"k": 2, "lr": 0.1}) == make()
    assert hash(make()) == hash(make())


@pytest.mark.parametrize(
    "change",
    [
        {"method": "ERM"},
        {"dataset": "E"},
        {"held_out": ("a",)},
        {"hyperparameters": {"lr": 0.1, "k": 3}},
        {"seed": 4},
        {"budget": {"steps": 11}},
    ],
)
def test_any_change_of_content_changes_the_id_and_the_streams(change):
    assert make(**change).trial_id != make().trial_id
    assert make(**change).stream("init") != make().stream("init")


def test_streams_are_independent_by_name_and_fit_every_generator():
    seeds = {make().stream(name) for name in ("init", "batches", "noise")}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed("a", 1) != derive_seed("a1")


def test_nan_has_no_identity():
    with pytest.raises(ValueError):
        make(hyperparameters={"lr": float("nan")})
