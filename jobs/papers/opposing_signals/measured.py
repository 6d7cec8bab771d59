"""What the cells measure: probes on trainings of small networks, and the linear model in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.claims import MetricRow, scalar_rows
from jobs.papers.opposing_signals.names import BETAS, CROSSED, FACTORS, LATE, RATES, A, B
from lightning_modules.dynamics.curvature import HessianProduct
from lightning_modules.dynamics.flat import FlatParameters, losses_at
from lightning_modules.dynamics.full_batch import FullBatchModule
from lightning_modules.dynamics.full_batch_data import FullBatchData
from lightning_modules.dynamics.lanczos import WarmLanczos
from lightning_modules.dynamics.loss_changes import alternation_rate, opposition_rate
from lightning_modules.dynamics.opposing_linear import OpposingLinearModel
from lightning_modules.dynamics.opposing_probe import OpposingSignalsProbe
from lightning_modules.dynamics.probe import Probe, ProbeRows, per_example_losses
from lightning_modules.dynamics.selectors import example_scores
from lightning_modules.dynamics.sharpness_probe import SharpnessProbe
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import pl, quiet_lightning

Settings = Mapping[str, Any]

_D, _ETA, _TOP, _ALL = 5, 0.2, 20, 100_000
_EVERY = 5
"""Steps between looks at the curvature."""


def _model(sizes: Sequence[float], alpha: float, k: int = 4, share: float = 0.2) -> OpposingLinearModel:
    direction = np.random.default_rng(7).standard_normal(_D)
    direction /= np.linalg.norm(direction)
    return OpposingLinearModel(np.array(sizes)[:, None] * direction, k, alpha, share=share)


def flow(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Sharpness along the gradient flow of the linear model, for every |beta|."""
    model = _model(BETAS, values["alpha"])
    start = model.start(seed=seed)
    path = model.gradient_flow(start, values["steps"], 20)
    sharpness, limit = model.sharpness(path.points), model.limit_sharpness(start)
    drift = np.abs(model.invariant(path.points) - model.invariant(start)).max(0)
    rows: list[MetricRow] = []
    for number, size in enumerate(BETAS):
        curve = sharpness[:, number]
        found = {
            "final": curve[-1],
            "final over the closed form": curve[-1] / limit[number],
            "final over alpha |beta|": curve[-1] / (values["alpha"] * size),
            "least over the start": curve.min() / curve[0],
            "drift": drift[number],
        }
        rows += scalar_rows(found, environment=f"beta={size:g}")
        rows += [
            (int(step), f"beta={size:g}", "test", "sharpness", float(value))
            for step, value in zip(path.steps[::50], curve[::50], strict=True)
        ]
    return rows


def simulated(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Population loss of the linear model over that of simulated rows."""
    model = _model((2.0,), 20.0)
    at = model.start(seed=seed)
    x, signal, y = model.simulate(values["rows"], seed)
    error = at.c[0] * (x @ at.b[0] + signal @ at.o[0]) - y
    return scalar_rows({"loss over the sample's": model.loss(at)[0] / (0.5 * (error**2).mean())})


def edge(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Gradient descent of the linear model with step sizes below and above 2 / the flow's final sharpness."""
    factors = np.array(FACTORS)
    model = _model([2.0] * len(factors), 20.0, k=1, share=1.0)
    start = model.start(seed=seed)
    limit = model.limit_sharpness(start)
    rate = factors * 2 / limit
    path = model.gradient_descent(start, rate, values["steps"])
    sharpness, excess = model.sharpness(path.points), model.excess(path.points)
    z = path.points.c * (path.points.o @ model.u)
    first, second = model.group_losses(path.points)
    rows: list[MetricRow] = []
    for number, factor in enumerate(FACTORS):
        above = sharpness[:-1, number] > 2 / rate[number]
        flips = z[1:, number] * z[:-1, number] < 0
        found = {
            "largest sharpness over 2/eta": sharpness[:, number].max() * rate[number] / 2,
            "final sharpness over 2/eta": sharpness[-1, number] * rate[number] / 2,
            "final sharpness over the flow's": sharpness[-1, number] / limit[number],
            "sign flips above": flips[above].mean() if above.any() else np.nan,
            "final excess loss": excess[-1, number],
            "groups oppose": opposition_rate(
                np.diff(first[:, number]).tolist(), np.diff(second[:, number]).tolist(), 1e-6
            ),
        }
        rows += scalar_rows(
            {name: value for name, value in found.items() if np.isfinite(value)}, environment=f"factor={factor:g}"
        )
    return rows


class _Scores(pl.Callback):
    """Scores examples by other selectors than the change of their loss, at one step."""

    def __init__(self, step: int) -> None:
        self._step = step
        self.scores: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Score."""
        if trainer.global_step != self._step:
            return
        batch = trainer.datamodule.probe_batches(_ALL)[0]  # type: ignore[attr-defined]
        flat = FlatParameters(pl_module)
        theta = flat.vector()
        with torch.enable_grad():
            top = WarmLanczos()(HessianProduct([losses_at(pl_module, batch)], theta), len(flat))
            self.scores = example_scores(pl_module, batch, top.vectors[0])


def _train(module: FullBatchModule, data: FullBatchData, steps: int, *callbacks: pl.Callback) -> list[ProbeRows]:
    """Train, and collect what probes say."""
    found: list[ProbeRows] = []
    for callback in callbacks:
        if isinstance(callback, Probe):
            callback.listen(found.append)
    with quiet_lightning():
        make_trainer(steps, list(callbacks), limit_val_batches=0, num_sanity_val_steps=0).fit(module, datamodule=data)
    return found


def _series(found: Sequence[ProbeRows], quantity: str, item: str = "") -> dict[int, float]:
    """Values of a quantity by step."""
    return {row.step: value for row in found for name, of, value in row.series if (name, of) == (quantity, item)}


def _after(series: Mapping[int, float], step: int) -> list[float]:
    return [value for at, value in series.items() if at > step]


def _mean(values: Sequence[float]) -> float:
    """NaN of none."""
    return float(np.mean(values)) if values else np.nan


def planted(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Full-batch descent on digits with a signal planted in two groups of images."""
    data = FullBatchData(mode=method, m=values["m"], magnitude=values["magnitude"], validation=0.0, seed=seed)
    data.setup()
    probe = OpposingSignalsProbe(examples=_ALL, top=_TOP, gradients_every=_EVERY)
    probe.watch(data.groups)
    scores = _Scores(min(2 * LATE, values["steps"]))
    found = _train(
        FullBatchModule(lr=_ETA, seed=seed), data, values["steps"], SharpnessProbe(_EVERY, _ALL), probe, scores
    )
    rows = _curves(found, (A, B))
    members = torch.cat(list(data.groups.values())).numpy()
    up, down = _precisions(found, members)
    first, second = (_after(_series(found, "group_change", name), CROSSED) for name in (A, B))
    loss, fraction = _series(found, "loss_change"), _series(found, "fraction_up")
    rising = [fraction[step] for step, change in loss.items() if change > 0 and step > CROSSED]
    measured = {
        "precision of the risers": up,
        "precision of the fallers": down,
        "groups oppose": opposition_rate(first, second),
        "groups alternate": alternation_rate(first),
        "overlap": _mean(_after(_series(found, "overlap"), CROSSED)),
        "fraction up when the loss rises": _mean(rising),
        "cosine of the groups": _mean(_after(_series(found, "cosine", f"{A} {B}"), LATE)),
        "alignment with the sharpest direction": _mean(_after(_series(found, "alignment", A), LATE)),
        "mass of the first layer": _mean(_after(_series(found, "mass", "net.1.weight"), LATE)),
    }
    rows += scalar_rows({name: value for name, value in measured.items() if np.isfinite(value)})
    for name, score in scores.scores.items():
        chosen = score.topk(2 * _TOP).indices.numpy()
        rows += scalar_rows({"precision": float(np.isin(chosen, members).mean())}, environment=name)
    return rows


def _precisions(found: Sequence[ProbeRows], members: np.ndarray) -> tuple[float, float]:
    """Shares of the planted examples in the lists of risers and of fallers."""
    up, down = [], []
    for row in found:
        for quantity, _, numbers, _ in row.examples:
            if quantity == "loss_change" and row.step > CROSSED:
                up.append(np.isin(numbers[:_TOP], members).mean())
                down.append(np.isin(numbers[_TOP:], members).mean())
    return _mean(up), _mean(down)


def _curves(found: Sequence[ProbeRows], groups: Sequence[str]) -> list[MetricRow]:
    """Loss, sharpness times eta / 2, and the groups' losses, by step."""
    curves = {("loss", ""): _series(found, "loss"), ("sharpness over 2/eta", ""): _series(found, "threshold_ratio")}
    curves |= {("group loss", name): _series(found, "group_loss", name) for name in groups}
    return [
        (step, name, "test", metric, value) for (metric, name), curve in curves.items() for step, value in curve.items()
    ]


def natural(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """The same without a planted signal: groups are those the probe finds."""
    data = FullBatchData(source=method, mode="none", validation=0.0, seed=seed)
    inputs = 784 if method == "MNIST" else 64
    module = FullBatchModule(inputs=inputs, loss="squared", lr=values["lr"], seed=seed)
    probe = OpposingSignalsProbe(examples=_ALL, top=_TOP)
    found = _train(module, data, values["steps"], SharpnessProbe(_EVERY, _ALL), probe)
    first, second = (_after(_series(found, "group_change", name), LATE) for name in "AB")
    loss, fraction = _series(found, "loss_change"), _series(found, "fraction_up")
    rising = [fraction[step] for step, change in loss.items() if change > 0 and step > CROSSED]
    measured = {
        "groups oppose": opposition_rate(first, second),
        "overlap": _mean(_after(_series(found, "overlap"), LATE)),
        "fraction up when the loss rises": _mean(rising),
        "fraction up": _mean(_after(fraction, LATE)),
    }
    return _curves(found, "AB") + scalar_rows({name: value for name, value in measured.items() if np.isfinite(value)})


class _Late(pl.Callback):
    """The mean loss over all examples after each of the last steps."""

    def __init__(self, steps: int, last: int = 20) -> None:
        self._from, self.losses = steps - last, list[float]()
        self.curve: dict[int, float] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Look."""
        step = trainer.global_step
        if step <= self._from and step % 20:
            return
        with torch.no_grad():
            batch = trainer.datamodule.probe_batches(_ALL)[0]  # type: ignore[attr-defined]
            loss = float(per_example_losses(pl_module, batch).mean())
        self.curve[step] = loss
        if step > self._from:
            self.losses.append(loss)


def optimizers(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Training loss that each setting of an optimizer ends with, in mini-batches of 128; the best one's curve."""
    kinds = {"SGD": "gd", "Adam": "adam", "sign-SGD": "sign_sgd", "SplitSGD": "split_sgd"}
    best: tuple[float, dict[int, float]] = (np.inf, {})
    rows: list[MetricRow] = []
    for extra, lr in RATES[method]:
        how: dict[str, Any] = {"lr": lr, "momentum": float(extra or 0)}
        if method == "SplitSGD":
            how = {"lr": lr, "sign_lr": float(extra), "momentum": 0.9, "dampening": 0.9}
        data = FullBatchData(mode=values["mode"], validation=0.0, batch_size=128, seed=seed)
        late = _Late(values["steps"])
        _train(FullBatchModule(optimizer=kinds[method], seed=seed, **how), data, values["steps"], late)
        final = float(np.mean(late.losses))
        if np.isfinite(final):
            rows += scalar_rows({"final": final}, environment=f"{extra} {lr:g}".strip())
            best = min(best, (final, late.curve), key=lambda one: one[0])
    rows += scalar_rows({"best": best[0]})
    return rows + [(step, "", "test", "loss", value) for step, value in best[1].items()]
