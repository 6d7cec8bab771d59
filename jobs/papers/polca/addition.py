"""What the cells of addition compute: one training, taken apart along several bases in two orders."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from jobs.claims import MetricRow, scalar_rows
from jobs.papers.polca.names import (
    ELIGIBLE_SHARE,
    EXACT_DIRECTIONS,
    EXACT_INTERVALS,
    EXACT_ROWS,
    PLACES,
)
from lightning_modules.dynamics.baselines import exact_loss_curves, fisher_clusters, loss_change_curves
from lightning_modules.dynamics.basis import (
    AxisBasis,
    Basis,
    MakesBasis,
    RandomBasis,
    TrajectoryPCABasis,
    orthonormality_error,
)
from lightning_modules.dynamics.breakthroughs import breakthrough, hidden_fraction
from lightning_modules.dynamics.clusters import Cluster, clusters_of, f1, find_clusters, precision, recall
from lightning_modules.dynamics.flat import LossesAt, losses_at
from lightning_modules.dynamics.hessian_basis import HessianBasis
from lightning_modules.dynamics.polca import Projected, polca_bases, polca_intervals
from lightning_modules.dynamics.recorder import CheckpointRecorder, Checkpoints
from lightning_modules.dynamics.token_losses import TokenLossesAt
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import quiet_lightning
from lightning_modules.sequence.addition import AdditionData, AdditionLM, carries

_LARGE = 60
"""Tokens (of 1,000) of an exact-loss cluster from which its carry share is looked at."""
_DELTA_STEPS = 100


def addition(
    size: str,
    seed: int,
    steps: int,
    lr: float,
    batch: int,
    every: int,
    basis_every: int,
    directions: int,
    problems: int,
) -> list[MetricRow]:
    """Train, take apart, cluster."""
    full = size == "full"
    shape: dict[str, Any] = {"layers": 3, "width": 512, "heads": 4, "hidden": 2048, "init_std": 0.02} if full else {}
    module = AdditionLM(**shape, lr=lr, seed=seed)
    data = AdditionData(train=steps * batch if full else 200_000, validation=1250, batch_size=batch, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        recorder = CheckpointRecorder(every, folder if full else "")
        with quiet_lightning():
            make_trainer(steps, [recorder], limit_val_batches=0, num_sanity_val_steps=0).fit(module, datamodule=data)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        module.to(device)
        module.eval()
        held_out = data.validation_tokens[:problems]
        losses = [TokenLossesAt(module, part) for part in torch.split(held_out.to(device), 625)]
        training = [losses_at(module, part) for part in torch.split(data.train_tokens[:problems].to(device), 625)]
        checkpoints = recorder.checkpoints().to(device=device)
        skill = carries(held_out, 3).numpy().reshape(-1)
        delta = max(1, min(_DELTA_STEPS // every, (len(checkpoints) - 1) // 2))
        reading = _Reading(skill, delta, 1000.0 if full else steps / 2)
        few = TokenLossesAt(module, held_out[:EXACT_ROWS].to(device))
        return _bases(checkpoints, losses, training, few, reading, _makers(seed, basis_every, directions, full))


def _makers(seed: int, every: int, directions: int, full: bool) -> dict[str, MakesBasis]:
    """The paper's comparisons at its size; else one seed has them all."""
    makers: dict[str, MakesBasis] = {"hessian": HessianBasis(1, every, directions)}
    if not full:
        makers["pca"] = TrajectoryPCABasis(directions)
    if full or seed == 0:
        makers |= {"random": RandomBasis(directions, seed), "axis": AxisBasis(directions)}
    if full:
        makers["shuffled"] = HessianBasis(1, every, directions, shuffle=seed)
    return makers


class _Reading:
    """What is read off clusters: carries in them, and when they break."""

    def __init__(self, skill: np.ndarray, delta: int, tau: float) -> None:
        self._skill, self._delta, self._tau = skill, delta, tau
        self._place = np.arange(len(skill)) % len(PLACES)

    def rows(self, projected: Projected, clusters: list[Cluster], name: str) -> list[MetricRow]:
        """Of clusters along directions, or of curves that have none."""
        values: dict[str, float] = {"clusters": len(clusters)}
        eligible = [c for c in clusters if self._eligible(c)]
        values["eligible clusters"] = len(eligible)
        if eligible:
            best = max(eligible, key=lambda c: precision(c, self._skill))
            values["carry homogeneity"] = precision(best, self._skill)
            values["carry recall"] = recall(best, self._skill, clusters)
            values["carry f1"] = f1(best, self._skill, clusters)
        large = [precision(c, self._skill) for c in clusters if len(c.members) >= _LARGE * len(self._skill) / 1000]
        if large:
            values["largest carry share"] = max(large)
        if all(c.direction >= 0 for c in clusters):
            values["hidden"] = hidden_fraction(projected, clusters, self._tau, self._delta)
        else:
            curves = exact_loss_curves(projected)
            late = [self._late(projected, curves[c.members]) for c in clusters]
            values["hidden"] = sum(late) / len(late)
        return scalar_rows(values, environment=name)

    def _late(self, projected: Projected, curves: np.ndarray) -> bool:
        return float(np.asarray(projected.steps)[breakthrough(curves, self._delta)].mean()) > self._tau

    def _eligible(self, cluster: Cluster) -> bool:
        carrying = cluster.members[self._skill[cluster.members]]
        middle = np.isin(self._place[carrying], (1, 2))
        return len(carrying) > 0 and float(middle.mean()) > ELIGIBLE_SHARE


def _bases(
    checkpoints: Checkpoints,
    losses: Sequence[LossesAt],
    training: Sequence[LossesAt],
    few: LossesAt,
    reading: _Reading,
    makers: dict[str, MakesBasis],
) -> list[MetricRow]:
    bases = {name: maker.fit(checkpoints, training) for name, maker in makers.items()}
    rows: list[MetricRow] = []
    for name, (first, trapezoid) in polca_bases(losses, checkpoints, bases, (1, "trapezoid")).items():
        basis = bases[name]
        figures = {"captured, order 1": first.captured, "captured": trapezoid.captured, "total": trapezoid.total}
        figures |= {"orthonormal": orthonormality_error(basis.vectors)}
        rows += scalar_rows(figures, environment=name)
        rows += reading.rows(first, find_clusters(first), f"{name}, order 1")
        rows += reading.rows(trapezoid, find_clusters(trapezoid), name)
        if name == "hessian":
            rows += reading.rows(trapezoid, clusters_of(exact_loss_curves(trapezoid)), "exact loss")
            rows += reading.rows(trapezoid, clusters_of(loss_change_curves(trapezoid)), "loss change")
            rows += reading.rows(trapezoid, fisher_clusters(trapezoid), "fisher")
            rows += _places(trapezoid) + _eigenvalues(basis)
            rows += _second_order(checkpoints, few, basis.vectors[:EXACT_DIRECTIONS])
    return rows


def _places(projected: Projected) -> list[MetricRow]:
    """Mean loss of each answer token by step, the step by which it is half of what it was, and the largest at the end."""
    by_place = projected.losses.reshape(len(projected.steps), -1, len(PLACES)).mean(1).cpu()
    rows: list[MetricRow] = []
    for t, step in enumerate(projected.steps):
        rows += scalar_rows(dict(zip(PLACES, by_place[t].tolist(), strict=True)), step, "place")
    halved = [projected.steps[int((by_place[:, k] <= by_place[0, k] / 2).int().argmax())] for k in range(len(PLACES))]
    steps = {f"{place} halved": float(step) for place, step in zip(PLACES, halved, strict=True)}
    in_order = halved[0] < halved[1] < min(halved[2:])
    return rows + scalar_rows(
        {**steps, "in order": float(in_order), "largest at the end": float(by_place[-1].max())}, environment="training"
    )


def _eigenvalues(basis: Basis) -> list[MetricRow]:
    values: Iterable[tuple[int, float]] = zip(basis.steps, basis.values.tolist(), strict=True)
    return [row for step, value in values for row in scalar_rows({"eigenvalue": value}, step, "basis")]


def _second_order(checkpoints: Checkpoints, losses: LossesAt, vectors: torch.Tensor) -> list[MetricRow]:
    """Root mean square of the second-order term by ratio and by trapezoid minus the exact one, and of the exact one itself."""
    parts: dict[str, list[torch.Tensor]] = {"exact": [], "ratio": [], "trapezoid": []}
    for t in np.linspace(0, len(checkpoints) - 2, EXACT_INTERVALS).astype(int):
        pair = Checkpoints(checkpoints.steps[t : t + 2], [checkpoints[t], checkpoints[t + 1]], device=vectors.device)
        interval = next(polca_intervals([losses], pair, vectors, curvature=True))
        first = interval.contributions("1")
        exact = interval.contributions("exact") - first
        parts["exact"].append(exact)
        parts["ratio"].append(interval.contributions("ratio") - first - exact)
        parts["trapezoid"].append(interval.contributions("trapezoid") - first - exact)
    roots = {name: float(torch.stack(each).double().square().mean().sqrt()) for name, each in parts.items()}
    return scalar_rows(roots, environment="second order")
