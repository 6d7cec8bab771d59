"""Trains and evaluates one trial: a Lightning fit on in-memory environments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_modules.data.tensors import EnvironmentBatches, RowStream, SplitDataset
from lightning_modules.domain_generalization.catalog import check_method_network, find_method
from lightning_modules.domain_generalization.method import Readings, Shapes
from lightning_modules.domain_generalization.module import MethodModule
from lightning_modules.errors import InputError
from lightning_modules.fitting import keeping
from lightning_modules.fitting.keeping import Evaluation, LongRun
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.hyperparameters import build
from lightning_modules.lightning_import import pl, quiet_lightning
from lightning_modules.networks import build_network, check_network
from lightning_modules.watching import MetricRow, Stopped, Watch

_EVALUATION_ROWS = 8192


class EnvironmentEvaluation(pl.Callback):
    """Evaluates a method on "in" and "out" of every environment, in one pass over the data.

    Args:
        split: the data.
        training: indices of the environments trained on.
        budget: "steps" and "checkpoint_every"; the last step is evaluated whatever the interval.
        watch: hears of every evaluation, and may end the trial at any step but the last.
    """

    def __init__(
        self,
        split: SplitDataset,
        training: Sequence[int],
        budget: Mapping[str, Any],
        watch: Watch | None = None,
    ) -> None:
        self._split, self._training, self._watch = split, training, watch
        self._every, self._steps = int(budget["checkpoint_every"]), int(budget["steps"])
        self.rows: list[MetricRow] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate where it is due.

        Raises:
            FloatingPointError: when the loss is not finite; such a trial is not scored.
            Stopped: when the watch says so.
        """
        step = trainer.global_step
        self._ask(step)
        if step % self._every == 0 or step == self._steps:
            assert isinstance(pl_module, MethodModule)
            rows = finite(evaluate(pl_module, self._split, self._training, step))
            self.rows += rows
            if self._watch is not None:
                self._watch.report(step, rows)
                self._ask(step)

    def _ask(self, step: int) -> None:
        if self._watch is not None and step < self._steps and self._watch.stopped():
            raise Stopped(self.rows)


@torch.no_grad()
def evaluate(module: MethodModule, split: SplitDataset, training: Sequence[int], step: int) -> list[MetricRow]:
    """Accuracy and mean cross-entropy on both splits of every environment."""
    was_training = module.training
    module.eval()
    features, logits = [], []
    for start in range(0, len(split.labels), _EVALUATION_ROWS):
        layers, found = module.network(split.inputs[start : start + _EVALUATION_ROWS].to(module.device))
        logits.append(found.cpu())
        if module.method.gives("readout"):
            features.append(layers[-1].cpu())
    module.train(was_training)
    final = torch.cat(logits)
    if module.method.gives("readout"):
        final = module.method.readout(torch.cat(features), readings(split, training), module.hyperparameters)
    return metric_rows(split, *scores(final, split.labels), step)


def scores(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Correctness and cross-entropy [N] of logits [N, C], in double precision."""
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return (logits.argmax(1) == labels).double(), losses.double()


def readings(split: SplitDataset, training: Sequence[int]) -> Readings:
    """What a readout may use of a split dataset."""
    environments = range(len(split.rows_in))
    return Readings(
        split.labels,
        tuple(split.rows_in[e] for e in training),
        tuple(torch.nonzero(split.group // 2 == e).squeeze(1) for e in environments),
        split.rows_in,
        len(split.dataset.classes),
        tuple(e in training for e in environments),
    )


def finite(rows: list[MetricRow]) -> list[MetricRow]:
    """Return the rows, or raise FloatingPointError where one is not finite."""
    for step, environment, part, metric, value in rows:
        if not math.isfinite(value):
            raise FloatingPointError(f"{metric} of environment {environment!r} ({part}) is {value} at step {step}")
    return rows


def metric_rows(split: SplitDataset, correct: torch.Tensor, losses: torch.Tensor, step: int) -> list[MetricRow]:
    """Average per-example results [N] over each environment's splits."""
    groups = 2 * len(split.rows_in)
    sizes = torch.bincount(split.group, minlength=groups).double()
    accuracy = torch.zeros(groups, dtype=torch.float64).index_add_(0, split.group, correct) / sizes
    loss = torch.zeros(groups, dtype=torch.float64).index_add_(0, split.group, losses) / sizes
    rows: list[MetricRow] = []
    for index, name in enumerate(split.dataset.environment_names):
        for offset, part in enumerate(("in", "out")):
            rows.append((step, name, part, "accuracy", float(accuracy[2 * index + offset])))
            rows.append((step, name, part, "loss", float(loss[2 * index + offset])))
    return rows


def build_method(
    name: str, values: Mapping[str, Any], split: SplitDataset, environments: int, stream: Callable[[str], int]
) -> MethodModule:
    """Build a method with its network, initialised from the trial's stream "init"; it draws from "method".

    Raises:
        InputError: for hyperparameters it does not have, and for a network or a number of environments it cannot use.
    """
    method = find_method(name)
    hyperparameters = build(method.Hyperparameters, values, name)
    network = split.dataset.network if hyperparameters.network == "auto" else hyperparameters.network
    generator = torch.Generator().manual_seed(stream("init"))
    dataset = split.dataset
    check_network(network, dataset.input_shape)
    check_method_network(method, network)
    built = build_network(network, dataset.input_shape, len(dataset.classes), generator)
    shapes = Shapes(environments, hyperparameters.batch_size, built.classifier.in_features, len(dataset.classes))
    return MethodModule(method, built, hyperparameters, shapes, stream("method"))


def train(
    method: str,
    hyperparameters: Mapping[str, Any],
    split: SplitDataset,
    held_out: Sequence[str],
    budget: Mapping[str, Any],
    stream: Callable[[str], int],
    watch: Watch | None = None,
) -> list[MetricRow]:
    """Train one trial and return its evaluations.

    Args:
        method: name.
        hyperparameters: by name; missing ones take their defaults.
        split: the data with the splits of the trial's seed.
        held_out: names of the environments not trained on.
        budget: "steps" and "checkpoint_every".
        stream: maps a name to the seed of one of the trial's random streams.
        watch: follows the trial and may end it.

    Raises:
        FloatingPointError: when the loss stops being finite.
        Stopped: when the watch ended it before its last step.
    """
    training = training_environments(split.dataset.environment_names, held_out)
    module = build_method(method, hyperparameters, split, len(training), stream)
    batch_size = module.hyperparameters.batch_size
    batches = EnvironmentBatches(split, lambda: RowStream(split, training, batch_size, stream("batches")))
    evaluation = EnvironmentEvaluation(split, training, budget, watch)
    fit(module, batches, budget, evaluation)
    return evaluation.rows


def fit(
    module: pl.LightningModule,
    batches: EnvironmentBatches,
    budget: Mapping[str, Any],
    evaluation: pl.Callback,
    long: LongRun | None = None,
    *,
    replicated: bool = False,
    unused_parameters: bool = False,
) -> None:
    """Run Lightning for the budget's steps.

    Args:
        module: a method, or a pack of them.
        batches: what it trains on.
        budget: "steps" is read.
        evaluation: the callback that measures.
        long: how the training is spread, saved and continued; its evaluation has `rows`.
        replicated: whether every process takes the whole step by itself.
        unused_parameters: whether some parameters may have no part in the loss.
    """
    callbacks, spread = [evaluation], None
    if long is not None:
        callbacks, spread = [long.keeper(cast(Evaluation, evaluation), global_loss=True), evaluation], long.spread
    with quiet_lightning():
        trainer = make_trainer(
            int(budget["steps"]), callbacks, spread, replicated=replicated, unused_parameters=unused_parameters
        )
        # A loader draws a seed for workers it does not have; the generator keeps that draw off the global one.
        loader = DataLoader(batches, batch_size=None, generator=torch.Generator())
        keeping.fit(trainer, module, long.saved if long is not None else None, train_dataloaders=loader)


def training_environments(names: Sequence[str], held_out: Sequence[str]) -> list[int]:
    """Indices of the environments that are trained on.

    Raises:
        InputError: for an unknown held-out name, or when nothing is left to train on.
    """
    unknown = [name for name in held_out if name not in names]
    if unknown:
        raise InputError(f"held_out: no environment {unknown[0]!r}; the dataset has {', '.join(names)}")
    training = [index for index, name in enumerate(names) if name not in held_out]
    if not training:
        raise InputError(f"held_out: {', '.join(held_out)} leaves no environment to train on; hold out fewer")
    return training
