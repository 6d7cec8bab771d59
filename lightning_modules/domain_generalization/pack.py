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
from lightning_modules.domain_generalization.method import Outputs, State
from lightning_modules.domain_generalization.module import MethodModule
from lightning_modules.domain_generalization.training import (
    MetricRow,
    build_method,
    finite,
    fit,
    metric_rows,
    training_environments,
)
from lightning_modules.lightning_import import pl
from lightning_modules.stacked import StackedAdam, StackedNetwork

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
        self.network = StackedNetwork([method.network for method in methods])
        self._hyperparameters = _stack_hyperparameters(self._each)
        self._resets = [self._method.optimizer_reset_step(h) for h in self._each]
        self._state: State = {
            name: torch.stack([getattr(m, f"state_{name}") for m in methods]) for name in methods[0].state_names
        }
        self._updates = 0

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Sum of the members' losses, from inputs [K, E, B, ...] and labels [K, E, B]."""
        inputs, labels = batch
        features, logits = self.network(inputs.flatten(1, 2))
        outputs = features.view(*labels.shape, -1), logits.view(*labels.shape, -1)
        names, values = list(self._hyperparameters), list(self._hyperparameters.values())
        stacked = {n: v.to(self.device) for n, v in zip(names, values, strict=True) if isinstance(v, Tensor)}
        fixed = {n: v for n, v in zip(names, values, strict=True) if not isinstance(v, Tensor)}
        step = torch.tensor(self._updates, device=self.device)

        def objective(
            features: Tensor, logits: Tensor, labels: Tensor, numbers: dict[str, Tensor], state: State
        ) -> tuple[Tensor, State]:
            hyperparameters = SimpleNamespace(**fixed, **numbers)
            return self._method.objective(Outputs(features, logits), labels, hyperparameters, state, step)

        losses, state = torch.func.vmap(objective)(*outputs, labels, stacked, self._state)
        self._state = {name: value.detach() for name, value in state.items()}
        total: Tensor = losses.sum()
        return total

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let a member's Adam forget its moments where its loss changes."""
        for model, step in enumerate(self._resets):
            if step == self._updates:
                self.adam.reset(model)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the update."""
        self._updates += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam for each member."""
        self._state = {name: value.to(self.device) for name, value in self._state.items()}
        lr, weight_decay = [h.lr for h in self._each], [h.weight_decay for h in self._each]
        self.adam = StackedAdam(list(self.network.parameters()), lr, weight_decay)
        return self.adam

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Keep the gradients' memory, of which the optimiser holds slices."""
        self.adam.zero_grad()


class PackEvaluation(pl.Callback):
    """Evaluates every member on both splits of every environment; a member that is not finite leaves the pack.

    Args:
        splits: of each member; their examples are the same.
        budget: "steps" and "checkpoint_every".
    """

    def __init__(self, splits: Sequence[SplitDataset], budget: Mapping[str, Any]) -> None:
        self._splits = splits
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
        correct, losses = _evaluate(pl_module, self._splits[0])
        for model, split in enumerate(self._splits):
            rows = self.results[model]
            if isinstance(rows, Exception):
                continue
            try:
                rows += finite(metric_rows(split, correct[model], losses[model], step))
            except FloatingPointError as error:
                self.results[model] = error
                pl_module.adam.active[model] = False
        trainer.should_stop = not any(pl_module.adam.active)


def _evaluate(pack: Pack, split: SplitDataset) -> tuple[Tensor, Tensor]:
    """Correctness and cross-entropy of every example under every member, [K, N] each."""
    rows = max(256, _EVALUATION_LOGITS // pack.network.size)
    correct, losses = [], []
    for start in range(0, len(split.labels), rows):
        labels = split.labels[start : start + rows].to(pack.device)
        logits = pack.network(split.inputs[start : start + rows].to(pack.device), shared=True)[1]
        many = labels.expand(len(logits), -1)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), many.flatten(), reduction="none")
        losses.append(loss.view(many.shape).double().cpu())
        correct.append((logits.argmax(-1) == labels).double().cpu())
    return torch.cat(correct, 1), torch.cat(losses, 1)


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

    evaluation = PackEvaluation([member.split for member in members], budget)
    fit(Pack(methods), EnvironmentBatches(members[0].split, streams), budget, evaluation)
    return evaluation.results


def _stack_hyperparameters(each: Sequence[Any]) -> dict[str, Any]:
    """Numbers as tensors [K], everything else (the same in all members) as it is."""
    stacked: dict[str, Any] = {}
    for field in dataclasses.fields(each[0]):
        values = [getattr(h, field.name) for h in each]
        numeric = isinstance(values[0], int | float) and not isinstance(values[0], bool)
        stacked[field.name] = torch.tensor(values) if numeric else values[0]
    return stacked
