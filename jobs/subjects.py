"""What `tune` and `train` train: a method on environments, with everything about it that can be asked beforehand."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError
from cluster.trial import Scalar, Trial
from cluster.worker import Setup
from jobs.objectives import EvaluationObjective, LoggedObjective
from jobs.sweep import held_out_settings
from jobs.training import check_trainable, complete, setup, setup_module, shape
from lightning_modules.data.catalog import load_dataset
from lightning_modules.imports import import_folder, is_import_path, source_fingerprint

if TYPE_CHECKING:
    from lightning_modules.data.environments import Dataset
    from lightning_modules.domain_generalization.method import Method

_CHECKPOINT_EVERY = 100
"""Steps between evaluations of a module with data of its own."""

ENVIRONMENT_OF_MODULES = "all"


@dataclass(frozen=True)
class Subject:
    """A method and its data.

    Args:
        method: its name, as trials carry it.
        dataset: identity of the data, as trials carry it.
        title: of the data, for people.
        environments: names, in order; one that stands for all where the data have none.
        has_environments: whether they have.
        laws: by hyperparameter, its range as plain data.
        defaults: every hyperparameter's default.
        kinds: every hyperparameter's type.
        checkpoint_every: steps between evaluations where nothing else is asked for.
        complete: checks hyperparameters and fills in the defaults.
        check: refuses hyperparameters that cannot be trained when so many environments are left.
        objective: what is optimised, by names.
        setup: prepares a worker.
        shared: what `setup` takes.
        shape: what trials must share to train as one pack.
        is_module: whether it is a person's own LightningModule.
    """

    method: str
    dataset: str
    title: str
    environments: tuple[str, ...]
    has_environments: bool
    laws: Mapping[str, Mapping[str, Any]]
    defaults: Mapping[str, Scalar]
    kinds: Mapping[str, type]
    checkpoint_every: int
    complete: Callable[[Mapping[str, Any]], dict[str, Scalar]]
    check: Callable[[Mapping[str, Any], int], None]
    objective: Callable[[Sequence[str]], EvaluationObjective]
    setup: Setup
    shared: tuple[Any, ...]
    shape: Callable[[Trial], Hashable] | None
    is_module: bool = False

    def settings(self, words: Sequence[str] | None) -> list[tuple[str, ...]]:
        """Held-out settings from the words of --held_out; null holds out the last environment, "none" nothing.

        Raises:
            InputError: for a name that the data do not have, or a setting that leaves nothing to train on.
        """
        if not self.has_environments:
            if words not in (None, ["none"]):
                raise InputError(f"held_out: {self.title} has no environments; leave it out")
            return [()]
        if words is None:
            if len(self.environments) == 1:
                raise InputError(f"held_out: {self.title} has one environment; say --held_out none to train on it")
            words = self.environments[-1:]
        rest = [word for word in words if word != "none"]
        none = [()] if len(rest) < len(words) else list[tuple[str, ...]]()
        return none + held_out_settings(rest, self.environments, self.title)

    def trial(
        self, values: Mapping[str, Any], held_out: Sequence[str], seed: int, budget: Mapping[str, Scalar]
    ) -> Trial:
        """Build a trial from some hyperparameters."""
        return Trial.create(self.method, self.dataset, list(held_out), self.complete(values), seed, budget)


def find_subject(method: str, dataset: str | None, image_size: int, wait: float = 0.0, threads: int = 1) -> Subject:
    """Find what is to be trained.

    Args:
        method: name of a method or of one of our Lightning modules, or module:Class.
        dataset: as on the command line; None takes a Lightning module's own data.
        image_size: side of a folder's images in pixels.
        wait: seconds that an evaluation waits for an answer to its report.
        threads: of a worker.

    Raises:
        InputError: for names that do not exist and for data that are not sound.
    """
    from lightning_modules.domain_generalization.catalog import find_method
    from lightning_modules.named_modules import MODULES

    if method in MODULES:
        named = MODULES[method]
        return _module_subject(named.module, dataset or named.data, image_size, wait, threads)
    if is_import_path(method):
        from lightning_modules.user_modules import is_user_module

        if is_user_module(method):
            return _module_subject(method, dataset, image_size, wait, threads)
    found = find_method(method)
    if dataset is None:
        raise InputError(f"dataset: {method} needs one; give --dataset ColoredMNIST, a folder or a feature table")
    return _method_subject(method, found, load_dataset(dataset, image_size), wait, threads)


def _module_subject(spec: str, data: str | None, image_size: int, wait: float, threads: int) -> Subject:
    from lightning_modules.user_modules import read_user_module

    environments = data is not None and not is_import_path(data)
    datasets: dict[str, Dataset] = {}
    module = read_user_module(spec, None if environments else data, environments)
    names: tuple[str, ...] = (ENVIRONMENT_OF_MODULES,)
    title, every = data or "its own data", _CHECKPOINT_EVERY
    identity = f"{data or spec}@{module.fingerprint}"
    if environments:
        assert data is not None
        dataset = load_dataset(data, image_size)
        identity = f"{dataset.identity}@{module.fingerprint}"
        datasets[identity] = dataset
        names, title, every = tuple(dataset.environment_names), dataset.name, dataset.checkpoint_every
    laws = {field: law.spec() for field, law in module.search_space().items()}
    for field, (other, values) in module.conditions().items():
        if field in laws:
            laws[field]["when"] = {other: list(values)}
    defaults = {name: module.defaults().get(name) for name in module.kinds()}
    return Subject(
        method=spec,
        dataset=identity,
        title=title,
        environments=names,
        has_environments=environments,
        laws=laws,
        defaults=defaults,
        kinds=module.kinds(),
        checkpoint_every=every,
        complete=module.complete,
        check=lambda values, left: module.check(values),
        objective=EvaluationObjective if environments else LoggedObjective,
        setup=setup_module,
        shared=(threads, module, datasets, wait),
        shape=None,
        is_module=True,
    )


def _method_subject(name: str, method: type[Method], dataset: Dataset, wait: float, threads: int) -> Subject:
    from lightning_modules.hyperparameters import conditions, search_space

    kind: Any = method.Hyperparameters
    identity, folder = dataset.identity, None
    if is_import_path(name):  # code is part of what a trial is: a method that was changed trains anew
        folder = import_folder(name)
        identity += f"@{source_fingerprint([name], folder)}"
    laws = {field: law.spec() for field, law in search_space(kind).items()}
    for field, (other, values) in conditions(kind).items():
        laws[field]["when"] = {other: list(values)}
    defaults = complete(method, name, {}, dataset.network)

    def check(values: Mapping[str, Any], left: int) -> None:
        network = str(complete(method, name, values, dataset.network)["network"])
        check_trainable(method, name, network, dataset, left)

    return Subject(
        method=name,
        dataset=identity,
        title=dataset.name,
        environments=tuple(dataset.environment_names),
        has_environments=True,
        laws=laws,
        defaults=defaults,
        kinds={k: v for k, v in typing.get_type_hints(kind).items() if k in {f.name for f in dataclasses.fields(kind)}},
        checkpoint_every=dataset.checkpoint_every,
        complete=lambda values: complete(method, name, values, dataset.network),
        check=check,
        objective=EvaluationObjective,
        setup=setup,
        shared=(threads, {identity: dataset}, wait, folder),
        shape=shape,
    )
