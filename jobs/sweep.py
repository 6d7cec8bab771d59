"""`shiftlab sweep`: compare methods across environments by DomainBed's protocol."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.errors import InputError
from cluster.trial import Scalar, Trial
from jobs.command import command
from jobs.launch import Execution, Plan, Work, launch
from jobs.training import check_trainable, complete, setup, shape
from lightning_modules.data.catalog import load_dataset
from lightning_modules.imports import import_folder, is_import_path
from tuning.space import draw

if TYPE_CHECKING:
    from lightning_modules.data.environments import Dataset

EXAMPLES = """
shiftlab sweep --dataset ColoredMNIST --methods ERM IRM VREx --held_out each --draws 4 --seeds 2 --steps 300 --run runs/colored
shiftlab sweep --dataset photos/ features.parquet --held_out each pairs --run runs/mine   # a folder and a feature table
shiftlab sweep --config sweep.yaml --run s3://bucket/sweep --address auto                 # on a running cluster
shiftlab sweep --dataset ColoredMNIST --workers 0 --steps 10 --run /tmp/try               # no Ray, for a debugger
"""


@dataclass
class Sweep(Execution):
    """Compare methods across environments: every method, held-out setting, draw and seed is one trial.

    What is stored in the run already is not run again: the same command resumes, a larger one adds to it.

    Args:
        dataset: built-in names (ColoredMNIST, RotatedMNIST, NoisyColoredMNIST, GaussianSEM, GaussianEnvironments,
            DomainAdjustedSEM; NAME:key=value,... sets parameters), folders ROOT/environment/class/image, or
            feature tables (.parquet, .arrow, .npz).
        run: where results go: a directory, s3://... or gs://...
        methods: names of methods.
        held_out: settings to test on: each (every environment in turn), pairs (every two), or names; a comma joins
            environments held out together.
        draws: hyperparameter draws a method; draw 0 has the defaults.
        seeds: repetitions of everything, each with its own splits and draws.
        seed: first of these seeds.
        steps: parameter updates a trial.
        checkpoint_every: steps between evaluations; null takes DomainBed's for the dataset.
        hyperparameters: values fixed in all draws, by name; each must belong to at least one of the methods.
        image_size: side in pixels to which images of a folder are resized.
        pack: trials of equal shape that train at once in one worker; null chooses, 1 trains each alone.
    """

    dataset: list[str]
    run: str
    methods: list[str] = field(default_factory=lambda: ["ERM"])
    held_out: list[str] = field(default_factory=lambda: ["each"])
    draws: int = 1
    seeds: int = 1
    seed: int = 0
    steps: int = 1000
    checkpoint_every: int | None = None
    hyperparameters: dict[str, int | float | str | bool] = field(default_factory=dict)
    image_size: int = 64
    pack: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"draws": 1, "seeds": 1, "seed": 0, "steps": 1, "image_size": 1}
        self.require(least, above_zero=("checkpoint_every", "pack"))
        for name in ("dataset", "methods", "held_out"):
            values = getattr(self, name)
            if not values:
                raise InputError(f"{name}: is empty; name at least one")
            if len(set(values)) < len(values):
                raise InputError(f"{name}: {', '.join(values)} repeats one; name each once")


def run(options: Sweep) -> int:
    """Run the sweep; 0 if every trial of the plan is completed, 1 if some failed, 130 or 143 if it was stopped."""

    def summarise(_: object) -> None:
        from jobs.report import write_report

        write_report(options.run)

    return launch("shiftlab sweep", options, options.run, lambda: _prepare(options), summarise)


def _prepare(options: Sweep) -> Work:
    datasets = _load(options)
    return Work(
        _total(options, datasets),
        lambda: _plan(options, datasets),
        setup,
        (1, datasets, 0.0, next(filter(None, map(import_folder, filter(is_import_path, options.methods))), None)),
        shape,
        options.pack,
        plan_first=bool(options.hyperparameters),
    )


def _load(options: Sweep) -> dict[str, Dataset]:
    """Check everything that can be checked before anything starts; returns the datasets by identity."""
    from lightning_modules.domain_generalization.catalog import check_method_name

    datasets = {d.identity: d for d in (load_dataset(spec, options.image_size) for spec in options.dataset)}
    _settings(options, datasets)
    for name in options.methods:
        check_method_name(name)
    return datasets


def held_out_settings(words: Sequence[str], names: Sequence[str], dataset: str) -> list[tuple[str, ...]]:
    """Turn the words of --held_out into settings, each the environments held out together.

    Raises:
        InputError: for a name the dataset does not have, or a setting that leaves nothing to train on.
    """
    settings: list[tuple[str, ...]] = []
    for word in words:
        if word == "each":
            settings += [(name,) for name in names]
        elif word == "pairs":
            settings += list(itertools.combinations(names, 2))
        else:
            settings.append((word,) if word in names else tuple(word.split(",")))
    for setting in settings:
        for name in setting:
            if name not in names:
                raise InputError(
                    f"held_out: dataset {dataset} has no environment {name!r}; it has {', '.join(names)} "
                    "(or say each, pairs)"
                )
        if len(set(setting)) >= len(names):
            raise InputError(f"held_out: {','.join(setting)} leaves nothing of {dataset} to train on; hold out fewer")
    return list(dict.fromkeys(tuple(sorted(set(setting))) for setting in settings))


def _settings(options: Sweep, datasets: Mapping[str, Dataset]) -> dict[str, list[tuple[str, ...]]]:
    """Held-out settings by dataset."""
    return {i: held_out_settings(options.held_out, d.environment_names, d.name) for i, d in datasets.items()}


def _total(options: Sweep, datasets: Mapping[str, Dataset]) -> int:
    """Count the trials of the plan."""
    settings = sum(map(len, _settings(options, datasets).values()))
    return options.draws * options.seeds * len(options.methods) * settings


def _plan(options: Sweep, datasets: Mapping[str, Dataset]) -> Plan:
    """Return a function that lists the trials; early ones cover every method.

    Raises:
        InputError: for hyperparameters that no method has or that leave nothing to draw, and for methods that need
            more training environments than a setting leaves.
    """
    from lightning_modules.domain_generalization.catalog import find_method
    from lightning_modules.hyperparameters import build, conditions, search_space

    methods = {name: find_method(name) for name in options.methods}
    fields = {name: {f.name for f in dataclasses.fields(m.Hyperparameters)} for name, m in methods.items()}
    for key in options.hyperparameters:
        if not any(key in names for names in fields.values()):
            known = ", ".join(sorted(set().union(*fields.values())))
            raise InputError(f"hyperparameters: none of {', '.join(methods)} has {key!r}; they have {known}")
    fixed = {n: {k: v for k, v in options.hyperparameters.items() if k in fields[n]} for n in methods}
    spaces = {}
    for name, method in methods.items():
        build(method.Hyperparameters, fixed[name], name)
        spaces[name] = {k: law for k, law in search_space(method.Hyperparameters).items() if k not in fixed[name]}
        if options.draws > 1 and not spaces[name]:
            raise InputError(f"draws: --hyperparameters leave nothing of {name} to draw; give --draws 1")
    settings = _settings(options, datasets)
    for identity, d in datasets.items():
        left = min(len(d.environments) - len(setting) for setting in settings[identity])
        for name, method in methods.items():
            network = str(fixed[name].get("network", "auto"))
            network = d.network if network == "auto" else network
            check_trainable(method, name, network, d, left)

    def values(name: str, number: int, seed: int, network: str) -> dict[str, Scalar]:
        defaults = complete(methods[name], name, fixed[name], network)
        kinds = conditions(methods[name].Hyperparameters)
        drawn = draw(spaces[name], name, number, seed, conditions=kinds, fixed=defaults) if number else {}
        return complete(methods[name], name, {**drawn, **fixed[name]}, network)

    def trials() -> Iterator[Trial]:
        seeds = range(options.seed, options.seed + options.seeds)
        for number, seed, (identity, dataset) in itertools.product(range(options.draws), seeds, datasets.items()):
            budget = {"steps": options.steps, "checkpoint_every": options.checkpoint_every or dataset.checkpoint_every}
            drawn = {name: values(name, number, seed, dataset.network) for name in methods}
            for setting, name in itertools.product(settings[identity], methods):
                yield Trial.create(name, identity, setting, drawn[name], seed, budget)

    return trials


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return command(Sweep, run, argv, prog="shiftlab sweep", examples=EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())
