"""Contrastive estimation of an unnormalised model as a Lightning module, also over several workers.

    shiftlab train --method lightning_modules.density.estimator:ContrastiveEstimator \\
        --dataset lightning_modules.density.data:DigitVectors --hyperparameters.optimizer ngd --steps 1500 --run runs/density
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_modules.density import models
from lightning_modules.density.losses import LOSSES, log_terms
from lightning_modules.density.models import EnergyModel, ExponentialFamilyModel, GaussianNoise, UnnormalisedModel
from lightning_modules.density.optimizers import NewtonDescent, NormalizedGradientDescent
from lightning_modules.errors import InputError
from lightning_modules.fitting.spread import Spread
from lightning_modules.hyperparameters import Choice, IntLogUniform, LogUniform, When
from lightning_modules.lightning_import import pl

OPTIMIZERS = ("gd", "gd_log", "ngd", "newton", "adam")
MODELS = ("mean", "gaussian", "mlp", "conv")


class ContrastiveEstimator(pl.LightningModule):
    """Tells data from noise, and so learns the data's log density, normaliser included.

    A batch is data [B, d], noise [B, v, d] and the noise's log density of both, as the data modules in `data.py` make. The loss is
    half the mean over data plus half the mean over noise. What is minimised is its logarithm, but for `gd`: log L is no mean
    over rows, so over several workers the classes' sums are put together first, and every worker's gradient is its rows' part
    of the whole gradient; DDP's average, and the one norm taken after it, are those of a single process.

    Training starts at the noise's own parameters, p = q.

    Args:
        loss: "nce" or "ence".
        optimizer: gd (on L, which eNCE cannot always represent), gd_log (on log L), ngd, newton (exponential families), adam (on
            log L).
        lr: step size; of ngd the length of a step.
        model: "mean": theta . x, with the noise's covariance; "gaussian": x and its squares; "mlp" or "conv": an energy network.
        dimension: d, the same as the data's.
        width: units of a layer, or channels of the first.
        depth: hidden layers.
        channels: of images, whose side is sqrt(d / channels).
        tilt: whether a network's density is the noise's times exp(f), so that training starts at p = q.
        noise_law: as the data's, which it says the shape of: "full" has a matrix.
        normalizer_samples: samples of noise for the log-partition at every validation.
        seed: of the first weights.

    Raises:
        InputError: for a value out of range, and Newton's method on a network.

    Source: arXiv 2110.11271.
    """

    def __init__(
        self,
        loss: Annotated[str, Choice(("nce", "ence"))] = "ence",
        optimizer: Annotated[str, Choice(("gd", "gd_log", "ngd", "adam"))] = "ngd",
        lr: Annotated[float, LogUniform(1e-3, 1.0)] = 0.1,
        model: Annotated[str, Choice(("gaussian", "mlp"))] = "mlp",
        dimension: int = 16,
        width: Annotated[int, IntLogUniform(16, 257), When("model", "mlp", "conv")] = 64,
        depth: int = 2,
        channels: int = 1,
        tilt: bool = True,
        noise_law: Annotated[str, Choice(("standard", "diagonal", "full"))] = "standard",
        normalizer_samples: int = 20_000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("loss", loss, LOSSES),
            ("optimizer", optimizer, OPTIMIZERS),
            ("model", model, MODELS),
            ("noise_law", noise_law, ("standard", "diagonal", "full")),
        ):
            if value not in known:
                raise InputError(f"{name}: unknown {name} {value!r}; choose from {', '.join(known)}")
        if not lr > 0:
            raise InputError(f"lr: {lr} is not above 0; give a step size like 0.1")
        sizes = (dimension, width, depth, channels, normalizer_samples)
        for name, size in zip(("dimension", "width", "depth", "channels", "normalizer_samples"), sizes, strict=True):
            if size < 1:
                raise InputError(f"{name}: {size} is below 1; give 1 or more")
        if optimizer == "newton" and model not in ("mean", "gaussian"):
            raise InputError(f"optimizer: newton needs the Hessian of an exponential family, not {model}; take ngd")
        self.loss, self.optimizer, self.lr = loss, optimizer, lr
        self._normalizer_samples = normalizer_samples
        self.noise_mean: Tensor
        self.noise_scale: Tensor
        self.register_buffer("noise_mean", torch.zeros(dimension))
        self.register_buffer("noise_scale", torch.eye(dimension) if noise_law == "full" else torch.ones(dimension))
        self.tau_star: Tensor | None = None
        self.spread = Spread()
        self._hessian: Tensor | None = None
        self._generator = torch.Generator().manual_seed(seed)
        self._seen: list[tuple[Tensor, ...]] = []
        self.model = self._build(model, dimension, width, depth, channels, tilt)

    def _build(self, model: str, d: int, width: int, depth: int, channels: int, tilt: bool) -> UnnormalisedModel:
        if model in ("mean", "gaussian"):
            k = d if model == "mean" else 2 * d

            def statistics(x: Tensor) -> Tensor:
                return x if model == "mean" else torch.cat([x, -x.square() / 2], 1)

            def log_base(x: Tensor) -> Tensor:
                return GaussianNoise(torch.zeros_like(self.noise_mean), self.noise_scale).log_prob(x)

            return ExponentialFamilyModel(statistics, log_base, torch.zeros(k))
        if model == "mlp":
            network = models.mlp(d, width, depth, self._generator)
        else:
            side = math.isqrt(d // channels)
            if channels * side * side != d:
                raise InputError(
                    f"channels: {channels} square images do not make {d} numbers; give channels and dimension"
                )
            network = models.convolutions(channels, side, width, depth, self._generator)
        return EnergyModel(network, (lambda x: self.noise.log_prob(x)) if tilt else None)

    @property
    def noise(self) -> GaussianNoise:
        """The noise."""
        return GaussianNoise(self.noise_mean, self.noise_scale)

    def setup(self, stage: str) -> None:
        """Take over the noise of the data module, and start at its parameters.

        Raises:
            InputError: its shape is another.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        noise = getattr(data, "noise", None)
        if stage != "fit" or not isinstance(noise, GaussianNoise):
            return
        for name, mine, theirs in (
            ("dimension", self.noise_mean, noise.mean),
            ("noise_law", self.noise_scale, noise.scale),
        ):
            if mine.shape != theirs.shape:
                raise InputError(
                    f"{name}: the data's noise has {list(theirs.shape)}, the module {list(mine.shape)}; agree"
                )
            mine.copy_(theirs)
        if isinstance(self.model, ExponentialFamilyModel):
            d, natural = noise.dimension, noise.natural()
            with torch.no_grad():
                self.model.theta[:d] = natural
                self.model.log_partition.copy_(natural @ noise.mean / 2)
            star = getattr(data, "tau_star", None)
            if star is not None and len(star) == len(self.model.tau):
                self.tau_star = star

    def on_fit_start(self) -> None:
        """Learn how many workers there are."""
        self.spread = Spread(rank=self.global_rank, world=self.trainer.world_size)

    def snapshot(self) -> None:
        """Nothing is kept beside parameters and buffers: a step can be computed again."""

    def rewind(self, snapshot: None) -> None:
        """Nothing to put back."""

    def log_density(self, x: Tensor) -> Tensor:
        """Return log p [n] of x [n, d], minus the learnt log-partition."""
        return self.model.log_density(x)

    def log_ratios(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return r of data [B] and of noise [B v], from one evaluation of the model."""
        x, noise, log_x, log_noise = batch
        both = torch.cat([x, noise.flatten(0, 1)])
        r = self.model.log_ratio(both, torch.cat([log_x, log_noise.flatten()]))
        return r[: len(x)], r[len(x) :]

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """Return log L, or L for `gd`, of the whole batch; its gradient here is that of this worker's rows.

        L is the mean of a mean over data and one over noise. log L is no mean over rows, so the weights by which workers' losses
        are averaged are divided out.
        """
        r_data, r_noise = self.log_ratios(batch)
        own = torch.stack(
            [torch.logsumexp(log_terms(self.loss, sign * r), 0) for sign, r in ((-1, r_data), (1, r_noise))]  # type: ignore[arg-type]
        )
        sums, counts = self._everyone(own, torch.tensor([len(r_data), len(r_noise)], device=own.device))
        log_means = torch.logsumexp(sums, 0) - counts.sum(0).log() - math.log(2)  # [2]
        log_loss = torch.logsumexp(log_means, 0)
        weight = counts[self.spread.rank, 0] / counts[:, 0].sum()  # this worker's share of the batch
        # The gradient of this worker's terms over L is its part of the gradient of log L.
        part = (own - counts.sum(0).log() - math.log(2) - log_loss).exp().sum() / weight
        value = log_loss
        if self.optimizer == "gd":
            part, value = part * log_loss.exp(), log_loss.exp()
        if self.optimizer == "newton":
            self._hessian = self._curvature(batch, r_data, r_noise, log_loss)
        self.log("train_log_loss", log_loss)
        return part - part.detach() + value

    def _everyone(self, own: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Collect every worker's log sums [W, 2] and numbers of rows [W, 2], by the parts of the batch."""
        mine = torch.stack([own.detach().double(), count.double()])
        world, shift = self.spread.world, self.spread.shift
        if self.spread.alone:
            found = mine[None]
        else:
            everyone = [torch.empty_like(mine) for _ in range(world)]
            dist.all_gather(everyone, mine)
            found = torch.stack([everyone[(part + shift) % world] for part in range(world)])
        return found[:, 0].to(own.dtype), found[:, 1].to(own.dtype)

    @torch.no_grad()
    def _curvature(self, batch: tuple[Tensor, ...], r_data: Tensor, r_noise: Tensor, log_loss: Tensor) -> Tensor:
        """Return the Hessian of L over L [k+1, k+1], of all workers' rows."""
        assert isinstance(self.model, ExponentialFamilyModel)
        total = None
        for sign, x, r in ((-1, batch[0], r_data), (1, batch[1].flatten(0, 1), r_noise)):
            t, u = self.model.extended(x).double(), sign * r.double()
            plus, minus = (torch.nn.functional.softplus(s * u) for s in (1, -1))
            log_w = -plus - minus if self.loss == "nce" else u / 2 - math.log(4)
            rows = torch.tensor([len(r)], dtype=torch.double, device=r.device)
            part = (log_w - log_loss.double()).exp() @ (t[:, :, None] * t[:, None, :]).flatten(1)
            if not self.spread.alone:
                dist.all_reduce(rows)
                dist.all_reduce(part)
            total = part / (2 * rows) if total is None else total + part / (2 * rows)
        assert total is not None
        size = len(self.model.tau)
        return total.view(size, size)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norm of the gradient of what is minimised."""
        norms = torch.stack(list(torch._foreach_norm([p.grad for p in self.parameters() if p.grad is not None])))
        self.log("train_gradient_norm", norms.norm())

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        """Keep the log ratios; the loss is one of all rows together."""
        r_data, r_noise = self.log_ratios(batch)
        self._seen.append((r_data.double(), r_noise.double(), batch[2].double() + r_data.double()))

    def on_validation_epoch_end(self) -> None:
        """Log loss, log loss, accuracy, log-partition, NLL with its effective sample size, and the distance where known."""
        data, noise, densities = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        means = torch.stack(
            [
                torch.logsumexp(log_terms(self.loss, sign * r), 0) - math.log(len(r))  # type: ignore[arg-type]
                for sign, r in ((-1, data), (1, noise))
            ]
        )
        log_loss = float(torch.logsumexp(means, 0)) - math.log(2)
        log_z, effective = self.model.log_normalizer(self.noise, self._normalizer_samples)
        found = {
            "val_loss": math.exp(min(log_loss, 700.0)),
            "val_log_loss": log_loss,
            "val_accuracy": float((data > 0).double().mean() + (noise < 0).double().mean()) / 2,
            "val_log_partition": float(self.model.log_partition),
            "val_nll": log_z - float(densities.mean()),
            "val_effective_samples": effective,
        }
        if self.tau_star is not None and isinstance(self.model, ExponentialFamilyModel):
            found["val_distance"] = float((self.model.tau - self.tau_star.to(self.device)).norm())
        self.log_dict(found)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimizer over all parameters."""
        if self.optimizer == "ngd":
            return NormalizedGradientDescent(self.parameters(), self.lr)
        if self.optimizer == "adam":
            return torch.optim.Adam(self.parameters(), self.lr)
        if self.optimizer == "newton":
            assert isinstance(self.model, ExponentialFamilyModel)

            def hessian() -> Tensor:
                assert self._hessian is not None
                return self._hessian

            return NewtonDescent([self.model.theta, self.model.log_partition], self.lr, hessian)
        return torch.optim.SGD(self.parameters(), self.lr)
