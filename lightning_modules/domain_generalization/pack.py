"""A pack: K trials of one shape trained at once as one Lightning module.

The trials share method, dataset, network, batch size, number of training environments and budget; they may differ in
seed, splits, held-out environments and every other hyperparameter. Each member sees the batches, the initial weights
and the optimiser it would have alone, so its numbers equal its solo run up to the order of floating-point sums.
A member that fails, or that its watch ends, leaves: everything stacked shrinks to the others, which go on faster.
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
    build_method,
    finite,
    fit,
    metric_rows,
    readings,
    scores,
    training_environments,
)
from lightning_modules.errors import InputError
from lightning_modules.fitting.keeping import LongRun
from lightning_modules.fitting.spread import Spread
from lightning_modules.lightning_import import pl
from lightning_modules.stacked import FunctionalStep, StackedAdam, StackedNetwork
from lightning_modules.watching import MetricRow, Stopped, Watch

_EVALUATION_LOGITS = 1 << 16


@dataclass(frozen=True)
class Member:
    """One trial of a pack: its hyperparameters, its splits, what it holds out, its random streams, and who watches."""

    hyperparameters: Mapping[str, Any]
    split: SplitDataset
    held_out: Sequence[str]
    stream: Callable[[str], int]
    watch: Watch | None = None


class Pack(pl.LightningModule):
    """K methods of one class as one module; the loss is the sum of theirs, so each has its own gradient.

    Over several processes each sends its part of every mini-batch through the networks; the objective, which need not be
    a mean over examples, is computed from all parts, the same in every process.

    Args:
        methods: K modules of one method, as they would train alone.
        spread: over which processes.
    """

    def __init__(self, methods: Sequence[MethodModule], spread: Spread | None = None) -> None:
        super().__init__()
        self.spread = spread or Spread()
        self._method = methods[0].method
        self._each = [method.hyperparameters for method in methods]
        self._methods = [(m.noise_generator, m.shapes, m.hyperparameters) for m in methods]
        self.network = StackedNetwork([method.network for method in methods])
        self._numbers, self._fixed = _stack_hyperparameters(self._each, self._method.structural)
        self._resets = [self._method.optimizer_reset_step(h) for h in self._each]
        self._state: State = {n: torch.stack([m.state[n] for m in methods]) for n in methods[0].state_names}
        self._updates = 0
        self._places = list(range(len(methods)))  # of the members in the next batch

    def keep(self, models: Sequence[int]) -> None:
        """Go on with some of the members, in this order, as if the others had never been there."""
        self._places = [self._places[k] for k in models]
        self._each = [self._each[k] for k in models]
        self._methods = [self._methods[k] for k in models]
        self._resets = [self._resets[k] for k in models]
        self._numbers = {name: value[list(models)] for name, value in self._numbers.items()}
        self._state = {name: value[list(models)] for name, value in self._state.items()}
        self.network.keep(models)
        if isinstance(self.adam, StackedAdam):
            self.adam.keep(models)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor | None:
        """Sum of the members' losses, from inputs [K, E, B, ...] and labels [K, E, B]; or every member's whole step."""
        inputs, labels = batch
        if len(labels) > self.network.size:  # Lightning fetches a batch ahead: this one is from before members left
            inputs, labels = inputs[self._places], labels[self._places]
        self._places = list(range(self.network.size))
        numbers = {name: value.to(self.device) for name, value in self._numbers.items()}
        step = torch.tensor(self._updates, device=self.device)
        noise = self._noise()
        if self._method.gives("update"):
            self._update(inputs, labels, noise, numbers, step)
            return None
        if noise:
            inputs = torch.func.vmap(self._method.augment)(inputs, noise)
        if inputs.shape[2] == labels.shape[2]:
            inputs = inputs[:, :, self.spread.part(labels.shape[2])]
        layers, logits = self.network(inputs.flatten(1, 2))
        # In one layout for every size of the pack: what a product rounds to depends on its operands' strides.
        shape = inputs.shape[:3]
        layers = tuple(self._whole(layer.contiguous().view(*shape, -1), labels) for layer in layers)
        logits = self._whole(logits.contiguous().view(*shape, -1), labels)

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

    def _whole(self, values: Tensor, labels: Tensor) -> Tensor:
        return self.spread.gather(values, 2, labels.shape[2])

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

    def snapshot(self) -> dict[str, Any]:
        """Return what is neither a parameter nor the optimiser's."""
        generators = [generator.bit_generator.state for generator, _, _ in self._methods]
        return {"state": dict(self._state), "updates": self._updates, "generators": generators}

    def rewind(self, snapshot: Mapping[str, Any]) -> None:
        """Take a snapshot back."""
        self._state, self._updates = dict(snapshot["state"]), int(snapshot["updates"])
        for (generator, _, _), state in zip(self._methods, snapshot["generators"], strict=True):
            generator.bit_generator.state = state

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the snapshot."""
        checkpoint["pack"] = self.snapshot()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        self.rewind(checkpoint["pack"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam for each member, or the method's own step."""
        self._state = {name: value.to(self.device) for name, value in self._state.items()}
        self.adam: StackedAdam | FunctionalStep
        if self._method.gives("update"):
            self.adam = FunctionalStep(list(self.network.parameters()))
            return self.adam
        lr, weight_decay = [h.lr for h in self._each], [h.weight_decay for h in self._each]
        self.adam = StackedAdam(list(self.network.parameters()), lr, weight_decay)
        return self.adam


class PackEvaluation(pl.Callback):
    """Evaluates every member on both splits of every environment, and lets members leave the pack.

    Args:
        members: of the pack; their examples are the same.
        training: indices of the environments that each member trains on.
        budget: "steps" and "checkpoint_every".
        batches: what the pack trains on.
        spread: over which processes the work is dealt out.
    """

    def __init__(
        self,
        members: Sequence[Member],
        training: Sequence[Sequence[int]],
        budget: Mapping[str, Any],
        batches: EnvironmentBatches,
        spread: Spread | None = None,
    ) -> None:
        self._members, self._training, self._batches = members, training, batches
        self._spread = spread or Spread()
        self._every, self._steps = int(budget["checkpoint_every"]), int(budget["steps"])
        self._rows: list[list[MetricRow]] = [[] for _ in members]
        self._ended: dict[int, Exception] = {}
        self._present = list(range(len(members)))

    @property
    def present(self) -> list[int]:
        """Members that have not left, in the order of the pack's stacks."""
        return self._present

    @property
    def rows(self) -> list[MetricRow]:
        """The evaluations of a pack of one."""
        (rows,) = self._rows
        return rows

    @property
    def results(self) -> list[list[MetricRow] | Exception]:
        """For each member its evaluations, or what ended it early."""
        return [self._ended.get(k, rows) for k, rows in enumerate(self._rows)]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate where it is due; a member that is not finite, or that its watch stops, leaves."""
        assert isinstance(pl_module, Pack)
        step = trainer.global_step
        self._ask(pl_module, step)
        if self._present and (step % self._every == 0 or step == self._steps):
            self._measure(pl_module, step)
            self._ask(pl_module, step)
        trainer.should_stop = not self._present

    @torch.no_grad()
    def _measure(self, pack: Pack, step: int) -> None:
        splits = [self._members[k].split for k in self._present]
        outcomes = _evaluate(pack, splits, [self._training[k] for k in self._present], self._spread)
        for place, k in enumerate(self._present):
            try:
                rows = finite(metric_rows(splits[place], *outcomes(place), step))
            except (FloatingPointError, InputError) as error:
                self._ended[k] = error
                continue
            self._rows[k] += rows
            watch = self._members[k].watch
            if watch is not None:
                watch.report(step, rows)

    def _ask(self, pack: Pack, step: int) -> None:
        for k in self._present:
            watch = self._members[k].watch
            if watch is not None and k not in self._ended and step < self._steps and watch.stopped():
                self._ended[k] = Stopped(self._rows[k])
        staying = [place for place, k in enumerate(self._present) if k not in self._ended]
        if 0 < len(staying) < len(self._present):
            pack.keep(staying)
            self._batches.keep(staying)
        self._present = [self._present[place] for place in staying]


def _evaluate(
    pack: Pack, splits: Sequence[SplitDataset], training: Sequence[Sequence[int]], spread: Spread
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Make a function from a member to correctness and cross-entropy of every example, [N] each."""
    split, readout = splits[0], pack.method.readout if pack.method.gives("readout") else None
    rows, count = max(256, _EVALUATION_LOGITS // pack.network.size), len(split.labels)
    own = spread.part(count)
    correct, losses, features = [], [], []
    for start in range(own.start, own.stop, rows):
        chunk = slice(start, min(start + rows, own.stop))
        labels = split.labels[chunk].to(pack.device)
        layers, logits = pack.network(split.inputs[chunk].to(pack.device), shared=True)
        if readout is not None:
            features.append(layers[-1].expand(len(logits), -1, -1).cpu())
            continue
        many = labels.expand(len(logits), -1)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), many.flatten(), reduction="none")
        losses.append(loss.view(many.shape).double().cpu())
        correct.append((logits.argmax(-1) == labels).double().cpu())
    if readout is None:
        every = tuple(spread.gather(torch.cat(part, 1).to(pack.device), 1, count).cpu() for part in (correct, losses))
        return lambda model: (every[0][model], every[1][model])
    gathered = spread.gather(torch.cat(features, 1).to(pack.device), 1, count).cpu()

    def read(model: int) -> tuple[Tensor, Tensor]:
        logits = readout(gathered[model], readings(splits[model], training[model]), pack.hyperparameters_of(model))
        return scores(logits, split.labels)

    return read


def train_pack(
    method: str,
    members: Sequence[Member],
    budget: Mapping[str, Any],
    keep: Callable[[int, dict[str, Tensor]], None] | None = None,
    long: LongRun | None = None,
) -> list[list[MetricRow] | Exception]:
    """Train K trials at once.

    Args:
        method: name.
        members: the trials; see the module's docstring for what they must share.
        budget: "steps" and "checkpoint_every".
        keep: is given the number and the trained network's weights of each member that came to the end.
        long: how the training of a pack of one is spread, saved and continued.

    Returns:
        For each member its evaluations, or what ended it early: an error, or `Stopped` where its watch said so.
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

    spread, kind = long.spread if long is not None else Spread(), methods[0].method
    sizes = {m.hyperparameters.batch_size for m in methods}
    if min(sizes) < spread.world:
        raise InputError(f"batch_size: {min(sizes)} cannot be dealt out to {spread.world} workers; give fewer workers")
    # A step or an augmentation that mixes examples needs all of them.
    whole = spread.alone or kind.gives("update") or kind.gives("augment")
    part = None if whole else spread.part(min(sizes))
    batches = EnvironmentBatches(members[0].split, streams, part, long.position.batches if long is not None else 0)
    evaluation = PackEvaluation(members, training, budget, batches, spread)
    pack = Pack(methods, spread)
    replicated, unused = kind.gives("update"), kind.gives("readout")
    fit(pack, batches, budget, evaluation, long, replicated=replicated, unused_parameters=unused)
    for place, number in enumerate(evaluation.present if keep is not None else ()):
        assert keep is not None
        keep(number, {name: stack[place].detach().cpu().clone() for name, stack in pack.network.named_stacks().items()})
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
