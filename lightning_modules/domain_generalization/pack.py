"""A pack: K trials of one shape trained at once as one Lightning module.

The trials share method, dataset, network, batch size, number of training environments and budget; they may differ in
seed, splits, held-out environments and every other hyperparameter. Each member sees the batches, the initial weights
and the optimiser it would have alone, so its numbers equal its solo run up to the order of floating-point sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lightning_modules.data.tensors import EnvironmentBatches, RowStream, SplitDataset
from lightning_modules.domain_generalization.method import Batch, Method, Outputs, Parameters, State
from lightning_modules.domain_generalization.module import MethodModule
from lightning_modules.domain_generalization.training import (
    MetricRow,
    build_method,
    finite,
    fit,
    metric_rows,
    readings,
    scores,
    training_environments,
)
from lightning_modules.errors import InputError
from lightning_modules.lightning_import import pl
from lightning_modules.stacked import FunctionalStep, StackedAdam, StackedNetwork

_EVALUATION_LOGITS = 1 << 16


@dataclass(frozen=True)
class Member:
    """One trial of a pack: its hyperparameters, its splits, what it holds out, and its random streams."""

    hyperparameters: Mapping[str, Any]
    split: SplitDataset
    held_out: Sequence[str]
    stream: Callable[[str], int]


class Pack(pl.LightningModule):
    """K methods of one class as one module; the loss is the sum of theirs, so each has its own gradient.

    Args:
        methods: K modules of one method, as they would train alone.
    """

    def __init__(self, methods: Sequence[MethodModule]) -> None:
        super().__init__()
        self._method = methods[0].method
        self._each = [method.hyperparameters for method in methods]
        self._methods = [(m.noise_generator, m.shapes, m.hyperparameters) for m in methods]
        self.network = StackedNetwork([method.network for method in methods])
        self._numbers, self._fixed = _stack_hyperparameters(self._each, self._method.structural)
        self._resets = [self._method.optimizer_reset_step(h) for h in self._each]
        self._state: State = {n: torch.stack([m.state[n] for m in methods]) for n in methods[0].state_names}
        self._updates = 0

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor | None:
        """Sum of the members' losses, from inputs [K, E, B, ...] and labels [K, E, B]; or every member's whole step."""
        inputs, labels = batch
        numbers = {name: value.to(self.device) for name, value in self._numbers.items()}
        step = torch.tensor(self._updates, device=self.device)
        noise = self._noise()
        if self._method.gives("update"):
            self._update(inputs, labels, noise, numbers, step)
            return None
        if noise:
            inputs = torch.func.vmap(self._method.augment)(inputs, noise)
        layers, logits = self.network(inputs.flatten(1, 2))
        # In one layout for every size of the pack: what a product rounds to depends on its operands' strides.
        layers = tuple(layer.contiguous().view(*labels.shape, -1) for layer in layers)
        logits = logits.contiguous().view(*labels.shape, -1)

        def objective(
            layers: tuple[Tensor, ...],
            logits: Tensor,
            weight: Tensor,
            bias: Tensor,
            noise: dict[str, Tensor],
            labels: Tensor,
            numbers: dict[str, Tensor],
            state: State,
        ) -> tuple[Tensor, State]:
            outputs = Outputs(layers[-1], logits, weight, bias, layers, noise)
            hyperparameters = SimpleNamespace(**self._fixed, **numbers)
            return self._method.objective(outputs, labels, hyperparameters, state, step)

        losses, state = torch.func.vmap(objective)(
            layers, logits, *self.network.classifiers(), noise, labels, numbers, self._state
        )
        self._remember(state)
        total: Tensor = losses.sum()
        return total

    def _noise(self) -> dict[str, Tensor]:
        if not self._method.gives("noise"):
            return {}
        drawn = [self._method.noise(*method) for method in self._methods]
        return {name: torch.stack([d[name] for d in drawn]).to(self.device) for name in drawn[0]}

    def _update(
        self,
        inputs: Tensor,
        labels: Tensor,
        noise: dict[str, Tensor],
        numbers: dict[str, Tensor],
        step: Tensor,
    ) -> None:
        def update(
            parameters: Parameters,
            inputs: Tensor,
            labels: Tensor,
            noise: dict[str, Tensor],
            numbers: dict[str, Tensor],
            state: State,
        ) -> tuple[Parameters, State]:
            hyperparameters = SimpleNamespace(**self._fixed, **numbers)
            batch = Batch(inputs, labels, noise)
            return self._method.update(self.network.single, parameters, batch, hyperparameters, state, step)

        parameters = {name: value.detach() for name, value in self.network.named_stacks().items()}
        with torch.no_grad():
            moved, state = torch.func.vmap(update)(parameters, inputs, labels, noise, numbers, self._state)
        assert isinstance(self.adam, FunctionalStep)
        self.adam.following = [moved[name] for name in parameters]
        self._remember(state)

    def _remember(self, state: State) -> None:
        self._state = {**self._state, **{name: value.detach() for name, value in state.items()}}

    @property
    def method(self) -> type[Method]:
        """What the members train by."""
        return self._method

    def hyperparameters_of(self, model: int) -> Any:
        """A member's hyperparameters."""
        return self._each[model]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let a member's Adam forget its moments where its loss changes."""
        for model, step in enumerate(self._resets):
            if step == self._updates and isinstance(self.adam, StackedAdam):
                self.adam.reset(model, self._method.learning_rate_after_reset(self._each[model]))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the update."""
        self._updates += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam for each member, or the method's own step."""
        self._state = {name: value.to(self.device) for name, value in self._state.items()}
        self.adam: StackedAdam | FunctionalStep
        if self._method.gives("update"):
            self.adam = FunctionalStep(list(self.network.parameters()))
            self.adam.active = [True] * self.network.size
            return self.adam
        lr, weight_decay = [h.lr for h in self._each], [h.weight_decay for h in self._each]
        self.adam = StackedAdam(list(self.network.parameters()), lr, weight_decay)
        return self.adam


class PackEvaluation(pl.Callback):
    """Evaluates every member on both splits of every environment; a member that is not finite leaves the pack.

    Args:
        splits: of each member; their examples are the same.
        training: indices of the environments that each member trains on.
        budget: "steps" and "checkpoint_every".
    """

    def __init__(
        self, splits: Sequence[SplitDataset], training: Sequence[Sequence[int]], budget: Mapping[str, Any]
    ) -> None:
        self._splits, self._training = splits, training
        self._every, self._steps = int(budget["checkpoint_every"]), int(budget["steps"])
        self.results: list[list[MetricRow] | Exception] = [[] for _ in splits]

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate where it is due."""
        step = trainer.global_step
        if step % self._every and step != self._steps:
            return
        assert isinstance(pl_module, Pack)
        outcomes = _evaluate(pl_module, self._splits, self._training)
        for model, split in enumerate(self._splits):
            rows = self.results[model]
            if isinstance(rows, Exception):
                continue
            try:
                rows += finite(metric_rows(split, *outcomes(model), step))
            except (FloatingPointError, InputError) as error:
                self.results[model] = error
                pl_module.adam.active[model] = False
        trainer.should_stop = not any(pl_module.adam.active)


def _evaluate(
    pack: Pack, splits: Sequence[SplitDataset], training: Sequence[Sequence[int]]
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Make a function from a member to correctness and cross-entropy of every example, [N] each."""
    split, readout = splits[0], pack.method.readout if pack.method.gives("readout") else None
    rows = max(256, _EVALUATION_LOGITS // pack.network.size)
    correct, losses, features = [], [], []
    for start in range(0, len(split.labels), rows):
        labels = split.labels[start : start + rows].to(pack.device)
        layers, logits = pack.network(split.inputs[start : start + rows].to(pack.device), shared=True)
        if readout is not None:
            features.append(layers[-1].expand(len(logits), -1, -1).cpu())
            continue
        many = labels.expand(len(logits), -1)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), many.flatten(), reduction="none")
        losses.append(loss.view(many.shape).double().cpu())
        correct.append((logits.argmax(-1) == labels).double().cpu())
    if readout is None:
        every = torch.cat(correct, 1), torch.cat(losses, 1)
        return lambda model: (every[0][model], every[1][model])
    gathered = torch.cat(features, 1)

    def read(model: int) -> tuple[Tensor, Tensor]:
        logits = readout(gathered[model], readings(splits[model], training[model]), pack.hyperparameters_of(model))
        return scores(logits, split.labels)

    return read


def train_pack(method: str, members: Sequence[Member], budget: Mapping[str, Any]) -> list[list[MetricRow] | Exception]:
    """Train K trials at once.

    Args:
        method: name.
        members: the trials; see the module's docstring for what they must share.
        budget: "steps" and "checkpoint_every".

    Returns:
        For each member its evaluations, or the error that ended it.
    """
    names = members[0].split.dataset.environment_names
    training = [training_environments(names, member.held_out) for member in members]
    methods = [
        build_method(method, member.hyperparameters, member.split, len(environments), member.stream)
        for member, environments in zip(members, training, strict=True)
    ]

    def streams() -> list[RowStream]:
        return [
            RowStream(member.split, environments, m.hyperparameters.batch_size, member.stream("batches"))
            for member, environments, m in zip(members, training, methods, strict=True)
        ]

    evaluation = PackEvaluation([member.split for member in members], training, budget)
    fit(Pack(methods), EnvironmentBatches(members[0].split, streams), budget, evaluation)
    return evaluation.results


def _stack_hyperparameters(each: Sequence[Any], structural: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Numbers as tensors [K], and everything that is the same in all members as it is."""
    numbers: dict[str, Tensor] = {}
    fixed: dict[str, Any] = {}
    for field in dataclasses.fields(each[0]):
        values = [getattr(h, field.name) for h in each]
        numeric = isinstance(values[0], int | float) and not isinstance(values[0], bool)
        if numeric and field.name not in structural:
            numbers[field.name] = torch.tensor(values)
        else:
            fixed[field.name] = values[0]
    return numbers, fixed
