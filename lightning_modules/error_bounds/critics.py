"""Linear critics on frozen features: R restarts of each of P problems, trained together as one Lightning module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.error_bounds.losses import Kind, agreement_gradient, disagreement_gradient
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import pl, quiet_lightning

_EVALUATION_ROWS = 1024
"""Rows of one product in evaluations: its result stays in a core's cache."""

_PADDED_WIDTH = 64
"""Up to this width problems of different widths train together, padded with zeros: products cost little there."""

_PACK_NUMBERS = 1 << 25
"""Features that a pack holds twice at most (128 MiB)."""


@dataclass(frozen=True)
class Side:
    """One domain's rows of a problem.

    Args:
        train: [n, d] float32 features that critics train on.
        train_target: [n] what the classifier predicts there.
        validation: [m, d] features that discrepancies are measured on.
        validation_target: [m].
    """

    train: Tensor
    train_target: Tensor
    validation: Tensor
    validation_target: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows."""
        return len(self.train), len(self.validation)


@dataclass(frozen=True)
class Problem:
    """What a set of critics is trained for: one source, one target, one feature space.

    Args:
        source: critics agree with the classifier here.
        target: and disagree with it here.
        classes: K.
        seed: of the first weights and the orders of rows; critics depend on nothing else.
    """

    source: Side
    target: Side
    classes: int
    seed: int

    @property
    def width(self) -> int:
        """Number of features."""
        return int(self.source.train.shape[1])


@dataclass(frozen=True)
class Training:
    """How critics are trained; the defaults are those of the paper's experiments, from its code.

    Args:
        restarts: critics of a problem.
        epochs: passes over the shorter of the two domains.
        lr: AdamW's learning rate.
        weight_decay: AdamW's.
        batch_size: rows of each domain in a step.
        loss: for the target, see `losses.disagreement_loss`.
        normalize: with the constants 1 / log K and 1 / log 2.
    """

    restarts: int = 30
    epochs: int = 50
    lr: float = 3e-3
    weight_decay: float = 5e-4
    batch_size: int = 256
    loss: Kind = "dis2"
    normalize: bool = False


@dataclass(frozen=True)
class Critics:
    """Trained critics of one problem, at their best.

    Args:
        source_agreement: [epochs, R] share of source validation rows where critic and classifier agree.
        target_agreement: [epochs, R].
        best_restart: of the largest difference of the two.
        best_epoch: of it, from 0.
        weight: [K, d] of that critic at that epoch.
        bias: [K].
    """

    source_agreement: Tensor
    target_agreement: Tensor
    best_restart: int
    best_epoch: int
    weight: Tensor
    bias: Tensor

    @property
    def discrepancy(self) -> float:
        """The largest validation discrepancy over restarts and epochs."""
        at = self.best_epoch, self.best_restart
        return float(self.source_agreement[at] - self.target_agreement[at])


class CriticEnsemble(pl.LightningModule):
    """P problems' R critics each, as stacked parameters; exactly P R independent runs, since AdamW acts by coordinate.

    A Lightning batch is an epoch's orders of rows; its steps are taken here, with gradients in closed form. Classes come first
    in every product, so that softmax and margins run along contiguous restarts and rows: several times as fast as along ten
    classes.

    Args:
        problems: of equal numbers of rows and classes; narrower ones are padded with zeros, which keeps them what they are.
        training: how.
    """

    def __init__(self, problems: Sequence[Problem], training: Training) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._problems, self._training = list(problems), training
        self._generators = [torch.Generator().manual_seed(problem.seed) for problem in problems]
        self._width = max(problem.width for problem in problems)
        starts = [self._start(problem, g) for problem, g in zip(problems, self._generators, strict=True)]
        self.weight = nn.Parameter(torch.stack([weight for weight, _ in starts]))  # [P, K R, d]
        self.bias = nn.Parameter(torch.stack([bias for _, bias in starts]))  # [P, K R, 1]
        self.agreements: list[tuple[Tensor, Tensor]] = []
        self._best = [-math.inf] * len(problems)
        self._kept: list[tuple[int, int, Tensor, Tensor]] = [(0, 0, self.weight[0], self.bias[0])] * len(problems)
        classes = problems[0].classes
        self._source = _Stacked([problem.source for problem in problems], self._width, classes)
        self._target = _Stacked([problem.target for problem in problems], self._width, classes)
        self._sides = (self._source, self._target)
        self._shorter = min(side.count for side in self._sides)

    def _start(self, problem: Problem, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw weights [K R, d] and biases [K R, 1] from U(-1, 1) / sqrt d."""
        rows, bound = problem.classes * self._training.restarts, 1 / math.sqrt(problem.width)
        weight = torch.zeros(rows, self._width)
        weight[:, : problem.width] = torch.empty(rows, problem.width).uniform_(-bound, bound, generator=generator)
        return weight, torch.empty(rows, 1).uniform_(-bound, bound, generator=generator)

    @property
    def steps(self) -> int:
        """Updates of the whole training."""
        return self._training.epochs * math.ceil(self._shorter / self._training.batch_size)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the stacks."""
        values = self._training
        return torch.optim.AdamW([self.weight, self.bias], lr=values.lr, weight_decay=values.weight_decay, fused=True)

    def train_dataloader(self) -> list[int]:
        """One batch an epoch: its rows are drawn here, from each problem's own generator."""
        return [0]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Go through the rows once, in new orders, and measure agreement on the validation rows."""
        optimizer: Any = self.optimizers()
        size = self._training.batch_size
        orders = [self._orders(side.count) for side in self._sides]
        self.weight.grad, self.bias.grad = torch.empty_like(self.weight), torch.empty_like(self.bias)
        for start in range(0, self._shorter, size):
            with torch.no_grad():
                for number, (side, order) in enumerate(zip(self._sides, orders, strict=True)):
                    rows = order[:, start : start + size]
                    self._add_gradient(side, rows, agrees=number == 0)
            optimizer.step()
        self.weight.grad = self.bias.grad = None
        self._evaluate()

    def _orders(self, count: int) -> Tensor:
        drawn = [torch.randperm(count, generator=generator) for generator in self._generators]
        return torch.stack(drawn).to(self.weight.device)

    def _add_gradient(self, side: _Stacked, rows: Tensor, agrees: bool) -> None:
        """Put half the mean loss's gradient over `rows` [P, B] into .grad, in place of what was there if `agrees`."""
        values, batch = self._training, rows.shape[1]
        x = side.take(rows)  # [P, B, d]
        onehot = side.onehot.gather(3, rows[:, None, None].expand(-1, side.onehot.shape[1], 1, -1))
        logits = self._logits(x)
        scale = 0.5 / batch
        if agrees:
            classes = logits.shape[1]
            gradient = agreement_gradient(logits, onehot, scale / (math.log(classes) if values.normalize else 1))
        else:
            gradient = disagreement_gradient(
                logits, onehot, values.loss, scale / (math.log(2) if values.normalize else 1)
            )
        flat = gradient.flatten(1, 2)  # [P, K R, B]
        assert self.weight.grad is not None
        assert self.bias.grad is not None
        if agrees:
            torch.bmm(flat, x, out=self.weight.grad)
            torch.sum(flat, 2, keepdim=True, out=self.bias.grad)
        else:
            self.weight.grad.baddbmm_(flat, x)
            self.bias.grad += flat.sum(2, keepdim=True)

    def _logits(self, x: Tensor) -> Tensor:
        """Logits [P, K, R, B] of features [P, B, d]."""
        flat = torch.baddbmm(self.bias, self.weight, x.mT)
        return flat.view(len(x), -1, self._training.restarts, x.shape[1])

    @torch.no_grad()
    def _evaluate(self) -> None:
        found = [self._agreement(side) for side in self._sides]  # [P, R] each
        self.agreements.append((found[0].cpu(), found[1].cpu()))
        best, restart = (found[0] - found[1]).cpu().max(1)
        for number, (value, r) in enumerate(zip(best.tolist(), restart.tolist(), strict=True)):
            if value > self._best[number]:
                self._best[number] = value
                rows = slice(r, None, self._training.restarts)
                width = self._problems[number].width
                weight, bias = self.weight[number, rows, :width].cpu().clone(), self.bias[number, rows, 0].cpu().clone()
                self._kept[number] = (r, len(self.agreements) - 1, weight, bias)

    def _agreement(self, side: _Stacked) -> Tensor:
        """Share [P, R] of validation rows where the critic's largest logit is the classifier's prediction."""
        agreed = torch.zeros(
            len(self._problems), self._training.restarts, device=self.weight.device, dtype=torch.double
        )
        for start in range(0, side.validation.shape[1], _EVALUATION_ROWS):
            part = slice(start, start + _EVALUATION_ROWS)
            logits = self._logits(side.validation[:, part])
            target = side.validation_target[:, None, None, part].expand(-1, 1, logits.shape[2], -1)
            chosen = logits.gather(1, target).squeeze(1)
            # Where two logits are equal to the last bit, either is the prediction.
            agreed += (chosen >= logits.amax(1)).sum(2)
        return agreed / side.validation.shape[1]

    def critics(self) -> list[Critics]:
        """Give each problem's critics, after training."""
        curves = [torch.stack(side) for side in zip(*self.agreements, strict=True)]  # [E, P, R]
        return [
            Critics(curves[0][:, number], curves[1][:, number], restart, epoch, weight, bias)
            for number, (restart, epoch, weight, bias) in enumerate(self._kept)
        ]


class _Stacked(nn.Module):
    """One side of P problems: features of rows [P, n, d] and what the classifier predicts."""

    def __init__(self, sides: Sequence[Side], width: int, classes: int) -> None:
        super().__init__()
        self.count = len(sides[0].train)
        self.train_features: Tensor
        self.validation: Tensor
        self.validation_target: Tensor
        self.onehot: Tensor

        def padded(name: str) -> Tensor:
            if len(sides) == 1:
                return getattr(sides[0], name)[None]  # type: ignore[no-any-return]
            first: Tensor = getattr(sides[0], name)
            stack = torch.zeros(len(sides), len(first), width)
            for number, side in enumerate(sides):
                features: Tensor = getattr(side, name)
                stack[number, :, : features.shape[1]] = features
            return stack

        self.register_buffer("train_features", padded("train"), persistent=False)
        self.register_buffer("validation", padded("validation"), persistent=False)
        targets = torch.stack([side.validation_target for side in sides])
        self.register_buffer("validation_target", targets, persistent=False)
        predictions = torch.stack([side.train_target for side in sides])
        onehot = nn.functional.one_hot(predictions, classes).mT[:, :, None].float().contiguous()  # [P, K, 1, n]
        self.register_buffer("onehot", onehot, persistent=False)

    def take(self, rows: Tensor) -> Tensor:
        """Features [P, B, d] of rows [P, B]."""
        if len(rows) == 1:
            return self.train_features[0].index_select(0, rows[0])[None]
        problems = torch.arange(len(rows), device=rows.device)[:, None]
        return self.train_features[problems, rows]


def train_critics(problems: Sequence[Problem], training: Training) -> list[Critics]:
    """Train every problem's critics, those of equal shapes together; each comes out as it would alone.

    Args:
        problems: any.
        training: how.
    """
    found: dict[int, Critics] = {}
    for group in _packs(problems):
        module = CriticEnsemble([problems[number] for number in group], training)
        with quiet_lightning():
            make_trainer(module.steps, []).fit(module)
        found.update(zip(group, module.critics(), strict=True))
    return [found[number] for number in range(len(problems))]


def _packs(problems: Sequence[Problem]) -> list[list[int]]:
    """Part problems into those that train together."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, problem in enumerate(problems):
        width = problem.width if problem.width > _PADDED_WIDTH else _PADDED_WIDTH
        groups.setdefault((problem.source.shape, problem.target.shape, problem.classes, width), []).append(number)
    packs = []
    for (source, target, _, width), members in groups.items():
        size = max(1, _PACK_NUMBERS // ((sum(source) + sum(target)) * width))
        packs += [members[start : start + size] for start in range(0, len(members), size)]
    return packs
