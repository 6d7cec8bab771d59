"""A critic that is a whole network: for classifiers whose features are not to be trusted, at the price of looser bounds."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.error_bounds.critics import Critics, Training
from lightning_modules.error_bounds.discrepancy import DisagreementDiscrepancy, DiscrepancyResult, result_of
from lightning_modules.error_bounds.evidence import Array, Evidence
from lightning_modules.error_bounds.losses import agreement_loss, disagreement_loss
from lightning_modules.errors import InputError
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import pl, quiet_lightning
from lightning_modules.networks import as_floats

_EVALUATION_ROWS = 1024


class NetworkCritic(pl.LightningModule):
    """One network trained to agree with a classifier on the source and to disagree with it on the target.

    Args:
        network: maps inputs [b, ...] to logits [b, K]; trained as it is, all of its parameters.
        source: (inputs [n, ...], predictions [n]) of the training half.
        target: the same.
        validation: the two validation halves, alike.
        training: how; restarts are for who makes several.
        generator: of the orders of rows.
    """

    def __init__(
        self,
        network: nn.Module,
        source: tuple[Tensor, Tensor],
        target: tuple[Tensor, Tensor],
        validation: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]],
        training: Training,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = network
        self._training_halves, self._validation = (source, target), validation
        self._training, self._generator = training, generator
        self.agreements: list[tuple[float, float]] = []

    @property
    def steps(self) -> int:
        """Updates of the whole training."""
        shorter = min(len(half[0]) for half in self._training_halves)
        return self._training.epochs * math.ceil(shorter / self._training.batch_size)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, as for linear critics."""
        return torch.optim.AdamW(
            self.network.parameters(), lr=self._training.lr, weight_decay=self._training.weight_decay
        )

    def train_dataloader(self) -> list[int]:
        """One batch an epoch."""
        return [0]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Go through the rows once and measure agreement on the validation halves."""
        values, optimizer = self._training, self.optimizers()
        orders = [torch.randperm(len(half[0]), generator=self._generator) for half in self._training_halves]
        for start in range(0, min(map(len, orders)), values.batch_size):
            losses = []
            for agrees, (inputs, predictions), order in zip((True, False), self._training_halves, orders, strict=True):
                rows = order[start : start + values.batch_size]
                logits, target = self.network(self._floats(inputs[rows])), predictions[rows].to(self.device)
                if agrees:
                    losses.append(agreement_loss(logits, target, values.normalize).mean())
                else:
                    losses.append(disagreement_loss(logits, target, values.loss, values.normalize).mean())
            optimizer.zero_grad()  # type: ignore[union-attr]
            self.manual_backward((losses[0] + losses[1]) / 2)
            optimizer.step()  # type: ignore[union-attr]
        source, target_agreement = (self._agreement(*half) for half in self._validation)
        self.agreements.append((source, target_agreement))

    @torch.no_grad()
    def _agreement(self, inputs: Tensor, predictions: Tensor) -> float:
        self.network.eval()
        agreed = 0
        for start in range(0, len(inputs), _EVALUATION_ROWS):
            part = slice(start, start + _EVALUATION_ROWS)
            found = self.network(self._floats(inputs[part])).argmax(1).cpu()
            agreed += int((found == predictions[part]).sum())
        self.network.train()
        return agreed / len(inputs)

    def _floats(self, inputs: Tensor) -> Tensor:
        return as_floats(inputs.to(self.device))


def bound_with_networks(
    method: DisagreementDiscrepancy,
    evidence: Evidence,
    source_inputs: Array,
    target_inputs: Array,
    make_network: Callable[[torch.Generator], nn.Module],
) -> DiscrepancyResult:
    """Bound the error with critics that are whole networks.

    Args:
        method: its feature space does not count.
        evidence: logits and labels; its features are not used.
        source_inputs: [n_S, ...] what the networks take.
        target_inputs: [n_T, ...].
        make_network: builds a critic before its training, from a generator; a copy of the classifier, or a new network of its
            kind.

    Returns:
        The result; its critics' `weight` and `bias` are empty.

    Raises:
        InputError: for numbers of inputs that do not fit.
    """
    for side, inputs, logits in (
        ("source", source_inputs, evidence.source_logits),
        ("target", target_inputs, evidence.target_logits),
    ):
        if len(inputs) != len(logits):
            raise InputError(f"{side}: {len(inputs)} inputs, {len(logits)} rows of logits; make them equal")
    source, target = method.halves(evidence)
    curves = []
    for restart in range(method.training.restarts):
        generator = torch.Generator().manual_seed(
            int(np.random.SeedSequence([method.seed, 1, restart]).generate_state(1)[0])
        )
        parts = []
        for inputs, logits, rows in (
            (source_inputs, evidence.source_logits, source),
            (target_inputs, evidence.target_logits, target),
        ):
            predictions = torch.from_numpy(logits.argmax(axis=1))
            parts.append([(torch.from_numpy(np.ascontiguousarray(inputs[half])), predictions[half]) for half in rows])
        critic = NetworkCritic(
            copy.deepcopy(make_network(generator)),
            parts[0][0],
            parts[1][0],
            (parts[0][1], parts[1][1]),
            method.training,
            generator,
        )
        with quiet_lightning():
            make_trainer(critic.steps, []).fit(critic)
        curves.append(torch.tensor(critic.agreements, dtype=torch.double))
    agreement = torch.stack(curves, 1)  # [E, R, 2]
    gaps = agreement[..., 0] - agreement[..., 1]
    epoch, restart = divmod(int(gaps.argmax()), method.training.restarts)
    critics = Critics(agreement[..., 0], agreement[..., 1], restart, epoch, torch.empty(0), torch.empty(0))
    return result_of(method, evidence, source, target, critics, "network")
