"""A user's own LightningModule by import path: its hyperparameters, and one training run of it that can be repeated.

Its data come from a LightningDataModule of the user's, from its own loaders, or from the environments of a dataset of
ours. Hyperparameters are what the constructors take by name; `Hyperparameters`, a dataclass in the class, or annotations
of the constructor give types, defaults and random laws:

    class Small(pl.LightningModule):
        def __init__(self, lr: Annotated[float, LogUniform(1e-4, 1e-1)] = 1e-2, width: int = 32) -> None: ...
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_modules.data.tensors import EnvironmentBatches, RowStream, SplitDataset
from lightning_modules.domain_generalization.method import Hyperparameters, Method
from lightning_modules.domain_generalization.training import finite, metric_rows, scores, training_environments
from lightning_modules.errors import InputError
from lightning_modules.fitting import keeping
from lightning_modules.fitting.keeping import LongRun, Position
from lightning_modules.fitting.loaders import DealtLoader
from lightning_modules.fitting.spread import Spread
from lightning_modules.fitting.trainer import make_trainer, weight_of
from lightning_modules.hyperparameters import Law, typed
from lightning_modules.imports import find_class, import_folder, is_import_path, source_fingerprint, unknown_name
from lightning_modules.lightning_import import pl, quiet_lightning
from lightning_modules.networks import as_floats
from lightning_modules.user_classes import REQUIRED, UserClass
from lightning_modules.watching import MetricRow, Stopped, Watch

ENVIRONMENT = "all"
"""What rows call the data of a module that brings its own."""

_EVALUATION_ROWS = 8192


@dataclass(frozen=True)
class Fitted:
    """A training run that came to its end.

    Args:
        rows: of its evaluations.
        module: what was trained, on the CPU.
        arguments: what its constructor was given.
        weights: of a model that no process held whole; None: the module's.
    """

    rows: list[MetricRow]
    module: pl.LightningModule
    arguments: Mapping[str, Any]
    weights: Mapping[str, Any] | None = None

    def checkpoint(self) -> dict[str, Any]:
        """What Lightning's `load_from_checkpoint` of the module's class reads, for torch.save."""
        content = {
            "pytorch-lightning_version": pl.__version__,  # type: ignore[attr-defined]
            "state_dict": self.module.state_dict() if self.weights is None else dict(self.weights),
            "hyper_parameters": dict(self.arguments),
        }
        self.module.on_save_checkpoint(content)
        return content


@dataclass(frozen=True)
class UserModule:
    """A LightningModule of a user's with its data; `read_user_module` makes one. It can be pickled.

    Args:
        spec: import path of the module's class.
        data: import path of the class of a LightningDataModule; None: the module has loaders, or trains on environments.
        folder: where the classes are imported from; None: Python finds them by itself.
        environments: whether it trains on the environments of a dataset: its `training_step` gets inputs [E, B, ...] and
            labels [E, B], B the hyperparameter `batch_size`, and it maps inputs [n, ...] to logits [n, C].
    """

    spec: str
    data: str | None = None
    folder: str | None = None
    environments: bool = False

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the code of the classes and of what they import from their folder."""
        return source_fingerprint([part.path for part in self._classes], self.folder)

    def search_space(self) -> dict[str, Law]:
        """Random laws by hyperparameter in alphabetical order; where both classes have one, the module's."""
        laws: dict[str, Law] = {}
        for part in reversed(self._classes):
            laws |= part.laws
        return dict(sorted(laws.items()))

    def conditions(self) -> dict[str, tuple[str, tuple[Any, ...]]]:
        """By hyperparameter, another one and its values under which the first matters."""
        found: dict[str, tuple[str, tuple[Any, ...]]] = {}
        for part in reversed(self._classes):
            found |= part.conditions
        return found

    def defaults(self) -> dict[str, Any]:
        """Defaults by hyperparameter in alphabetical order, of those that have one, the same in both classes."""
        found = {}
        for name in self._names:
            values = [
                part.defaults[name] for part in self._classes if part.defaults.get(name, REQUIRED) is not REQUIRED
            ]
            if not values and self.environments and name == "batch_size":
                values = [Hyperparameters.batch_size]
            if values and all(type(v) is type(values[0]) and v == values[0] for v in values):
                found[name] = values[0]
        return found

    def kinds(self) -> dict[str, type]:
        """Types by hyperparameter in alphabetical order: the first of those annotated, or that of the default."""
        return {name: next((p.kind(name) for p in self._classes if name in p.defaults), int) for name in self._names}

    def check(self, values: Mapping[str, Any]) -> None:
        """Check hyperparameters, all or some of them.

        Raises:
            InputError: for a name that neither constructor takes, naming the nearest, and for a value of the wrong type
                or one that the class's own `Hyperparameters` refuses.
        """
        self._typed(values)

    def complete(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Check hyperparameters and fill in the defaults.

        Raises:
            InputError: as `check` does, and for a hyperparameter that has no value.
        """
        given = {**self.defaults(), **self._typed(values)}
        for name in self._names:
            if name not in given:
                defaults = {p.path: p.defaults[name] for p in self._classes if name in p.defaults}
                why = " and ".join(f"{value!r} in {path}" for path, value in defaults.items() if value is not REQUIRED)
                why = f"{name} is {why} by default" if why else f"{self} needs {name}"
                raise InputError(f"hyperparameters: {why}; give it a value")
        return self._typed(given)

    def fit(
        self,
        values: Mapping[str, Any],
        budget: Mapping[str, Any],
        stream: Callable[[str], int],
        watch: Watch | None = None,
        split: SplitDataset | None = None,
        held_out: Sequence[str] = (),
        long: LongRun | None = None,
    ) -> Fitted:
        """Train once.

        The global random numbers of torch, NumPy and Python come from the streams "init" (for the constructor),
        "batches" (for the data) and "method" (in training), and are afterwards what they were before. Data that are split
        at random are therefore split anew in every trial, unless the split has a seed of its own.

        Args:
            values: hyperparameters by name; missing ones have their defaults.
            budget: "steps" (parameter updates) and "checkpoint_every" (batches between two evaluations); the end is
                evaluated whatever the interval.
            stream: maps a name to the seed of one of the trial's random streams.
            watch: follows the trial and may end it.
            split: what a module that trains on environments trains on.
            held_out: names of the environments not trained on.
            long: how the training is spread, saved and continued. A batch of the loaders is dealt out, so that it and
                what is learned from it do not depend on the number of processes, as far as the loss is a mean over it.

        Returns:
            Rows and the trained module. Rows are (step, "all", "out", metric, value) for every metric that has been
            logged, "in" for those named train...; on environments they are those of the methods.

        Raises:
            InputError: for hyperparameters as `complete` does, for classes that cannot be made from them, for empty data,
                a validation that logs nothing, and logits of a wrong shape.
            FloatingPointError: for a metric that is not finite.
            Stopped: when the watch ended it before its last step.
        """
        assert (split is not None) == self.environments
        if held_out and split is None:
            raise InputError(f"held_out: the data of {self} have no environments; leave it out")
        given = self.complete(values)
        spread, position = (long.spread, long.position) if long is not None else (Spread(), Position())
        evaluation = _Evaluation(self.spec, budget, watch, split, spread)
        module_class, *data_classes = self._classes
        weights: keeping.Weights | None = None
        with _random_numbers(), quiet_lightning():
            _seed(stream("init"))
            arguments = module_class.arguments_among(given, self._names)
            module: pl.LightningModule = module_class.make(arguments)
            _seed(stream("batches"))
            data: dict[str, Any] = {}
            if split is not None:
                training, size = training_environments(split.dataset.environment_names, held_out), given["batch_size"]
                if size < spread.world:
                    raise InputError(
                        f"batch_size: {size} cannot be dealt out to {spread.world} workers; give fewer workers"
                    )
                batches = EnvironmentBatches(
                    split, lambda: RowStream(split, training, size, stream("batches")), start=position.batches
                )
                weights = _Floats(batches, spread)
                data["train_dataloaders"] = DataLoader(weights, batch_size=None)
            for part in data_classes:
                data["datamodule"] = part.make(part.arguments_among(given, self._names))
            if split is None:
                what = f"{(data_classes or [module_class])[0].path}.train_dataloader"
                weights = _Dealing(data.get("datamodule", module), spread, stream("batches"), position, what)
            _seed(stream("method") + spread.rank)
            whole = _Whole() if spread.strategy == "fsdp" and not spread.alone else None
            callbacks: list[pl.Callback] = [evaluation] if whole is None else [evaluation, whole]
            if long is not None:
                callbacks.insert(0, long.keeper(evaluation, weights))
                callbacks += long.probing()
            trainer = make_trainer(
                int(budget["steps"]),
                callbacks,
                spread,
                val_check_interval=int(budget["checkpoint_every"]),
                check_val_every_n_epoch=None,
                limit_val_batches=None if split is None else 0,
                num_sanity_val_steps=0,
            )
            keeping.fit(trainer, module, long.saved if long is not None else None, **data)
        if not evaluation.rows:
            raise InputError(f"{(data_classes or [module_class])[0].path}: its training data are empty")
        return Fitted(evaluation.rows, module, arguments, None if whole is None else whole.weights)

    def __str__(self) -> str:
        """For messages."""
        return " with ".join(path for path in (self.spec, self.data) if path is not None)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the classes behind: where this is unpickled they are imported from the folder."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @cached_property
    def _classes(self) -> list[UserClass]:
        """The module's class, and the data module's if there is one."""
        module = UserClass(self.spec, self.folder, pl.LightningModule)
        return [module] if self.data is None else [module, UserClass(self.data, self.folder, pl.LightningDataModule)]

    @cached_property
    def _names(self) -> list[str]:
        """Hyperparameters in alphabetical order."""
        names = {name for part in self._classes for name in part.defaults}
        return sorted(names | ({"batch_size"} if self.environments else set()))

    def _typed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        given = dict(values)
        for name in given:
            if name not in self._names and not any(part.any_name for part in self._classes):
                raise unknown_name(name, self._names, str(self), "hyperparameters")
        for part in self._classes:
            given |= part.typed(given)
        if self.environments and "batch_size" in given:
            size = typed("batch_size", given["batch_size"], int, str(self))
            if size < 1:
                raise InputError(f"hyperparameters: batch_size is {size}; give 1 or more")
        return given


class _Floats(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches with pixels as floats in [0, 1], of every environment this process's part."""

    def __init__(self, batches: EnvironmentBatches, spread: Spread) -> None:
        self._batches, self._spread = batches, spread
        self._weight = 1.0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, labels in self._batches:
            part = self._spread.part(labels.shape[1])
            self._weight = (part.stop - part.start) * self._spread.world / labels.shape[1]
            yield as_floats(inputs[:, part]), labels[:, part]

    def next_weight(self) -> float:
        """Return what every batch's part weighs."""
        return self._weight


class _Dealing:
    """Puts a dealt loader in the place of a user's when Lightning asks for it, after the user's own preparations."""

    def __init__(self, source: Any, spread: Spread, seed: int, start: Position, what: str) -> None:
        self._loader: DealtLoader | None = None
        loaders = source.train_dataloader

        def train_dataloader() -> Any:
            found = loaders()
            if spread.alone and isinstance(found, dict | list | tuple):  # several loaders at once stay as they are
                return found
            self._loader = DealtLoader(found, spread, seed, start, what)
            return self._loader

        source.train_dataloader = train_dataloader

    def next_weight(self) -> float:
        """Return the weight of the next batch."""
        return self._loader.next_weight() if self._loader is not None else 1.0


class _Whole(pl.Callback):
    """Puts the shards of a model together at the end, in rank 0."""

    def __init__(self) -> None:
        self.weights: dict[str, Any] = {}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather; every process takes part."""
        self.weights = trainer.strategy.lightning_module_state_dict()


class _Evaluation(pl.Callback):
    """Collects the rows of every evaluation, hands them to the watch, and ends the trial where it says so."""

    def __init__(
        self,
        spec: str,
        budget: Mapping[str, Any],
        watch: Watch | None,
        split: SplitDataset | None,
        spread: Spread,
    ) -> None:
        self._spec, self._watch, self._split, self._spread = spec, watch, split, spread
        self._every, self._steps = int(budget["checkpoint_every"]), int(budget["steps"])
        self.rows: list[MetricRow] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a training whose worth nobody would measure."""
        if self._split is None and not sum(trainer.num_val_batches):
            raise InputError(f"{self._spec}: its validation data are empty")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask the watch; evaluate environments where it is due, and see to an evaluation at the end."""
        step = trainer.global_step
        self._ask(step)
        if self._split is None:
            trainer.should_stop = trainer.should_stop or step >= self._steps  # Lightning validates before it stops
        elif step % self._every == 0 or step >= self._steps:
            self._take(step, _environment_rows(pl_module, self._split, step, self._spec))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collect what has been logged."""
        step = trainer.global_step
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        training, weight = sorted(name for name in logged if name.startswith("train")), weight_of(trainer)
        # Of a batch that was dealt out every process has logged its part, whereas all have validated on everything.
        means = self._spread.mean([logged[name] * weight for name in training])
        logged |= dict(zip(training, means, strict=True))
        rows = [(step, ENVIRONMENT, "in" if name in training else "out", name, v) for name, v in logged.items()]
        if not any(split == "out" for _, _, split, _, _ in rows):
            raise InputError(f"{self._spec}: its validation logs nothing; call self.log in validation_step")
        self._take(step, rows)

    def _take(self, step: int, rows: list[MetricRow]) -> None:
        self.rows += finite(rows)
        if self._watch is not None:
            self._watch.report(step, rows)
            self._ask(step)

    def _ask(self, step: int) -> None:
        if self._watch is not None and step < self._steps and self._watch.stopped():
            raise Stopped(self.rows)


def is_user_module(spec: str) -> bool:
    """Whether an import path names a LightningModule; False for a domain-generalization method.

    Raises:
        InputError: there is no such class, or it is neither.
    """
    found = find_class(spec, import_folder(spec))
    if isinstance(found, type) and issubclass(found, pl.LightningModule | Method):
        return issubclass(found, pl.LightningModule)
    raise InputError(
        f"{spec}: is neither a LightningModule nor a method; derive its class from lightning.pytorch.LightningModule or "
        f"{Method.__module__}.Method"
    )


def read_user_module(spec: str, data: str | None = None, environments: bool = False) -> UserModule:
    """Find a user's module and its data, in the working directory first.

    Args:
        spec: import path "package.module:Class" of a LightningModule.
        data: import path of a LightningDataModule; None: the module has loaders of its own, or trains on environments.
        environments: whether it trains on the environments of a dataset.

    Raises:
        InputError: a class does not exist, cannot be imported, is of another kind, or lacks what is needed to train and
            validate it.
    """
    for path in (spec, data):
        if path is not None and not is_import_path(path):
            raise InputError(f"{path}: is no module:Class; write e.g. nets:Small for the class Small in nets.py")
    folders = [import_folder(path) for path in (spec, data) if path is not None]
    user = UserModule(spec, data, next((f for f in folders if f is not None), None), environments)
    module, *rest = user._classes
    module.require(("training_step", "configure_optimizers"), "Lightning cannot train without it")
    if environments:
        module.require(("forward",), "it must map inputs [n, ...] to logits [n, C]")
        return user
    module.require(("validation_step",), "what a trial is worth is measured there; log a metric in it")
    source, mend = module, "add it, or give data: a dataset, or module:Class of a LightningDataModule"
    if rest:
        source, mend = rest[0], "it needs loaders for training and for validation"
    source.require(("train_dataloader", "val_dataloader"), mend)
    return user


@torch.no_grad()
def _environment_rows(module: pl.LightningModule, split: SplitDataset, step: int, spec: str) -> list[MetricRow]:
    """Accuracy and mean cross-entropy on both splits of every environment."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    logits = []
    for start in range(0, len(split.labels), _EVALUATION_ROWS):
        inputs = as_floats(split.inputs[start : start + _EVALUATION_ROWS].to(module.device))
        found, shape = module(inputs), [len(inputs), len(split.dataset.classes)]
        if not isinstance(found, Tensor) or list(found.shape) != shape:
            what = f"shape {list(found.shape)}" if isinstance(found, Tensor) else f"type {type(found).__name__}"
            raise InputError(f"{spec}: its forward gives an output of {what}; it must be logits {shape}")
        logits.append(found.float().cpu())
    for child, mode in modes:
        child.training = mode
    return metric_rows(split, *scores(torch.cat(logits), split.labels), step)


@contextmanager
def _random_numbers() -> Iterator[None]:
    """Put the global random numbers back afterwards, whatever happens."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what users' modules draw from
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
