"""The Lightning module: an encoder and a head that tell interventional from observational rows."""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.causal.contrastive.losses import centering_penalty, contrastive_cross_entropy, graph_penalty
from lightning_modules.causal.contrastive.networks import ENCODERS, ContrastiveHead, StackedEncoder, one_cycle
from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import Choice, IntLogUniform, LogUniform
from lightning_modules.lightning_import import pl

Array = np.ndarray

_CUT, _WAIT = 0.3, 4
"""The plateau schedule: learning rates times 0.3 at the fourth validation in a row without a gain. The authors' code has torch's
ReduceLROnPlateau with a patience of 3, which waits for more than 3."""
_EVALUATION_ROWS, _EVALUATION_NUMBERS = 8192, 1 << 24


class ContrastiveCRLModule(pl.LightningModule):
    """min over encoder h and head g:  CE + eta sum |A_off| + mu (tr exp(A_off o A_off) - d) + kappa ||mean h(x_obs)||^2.

    CE = mean over t of [mean softplus(-g_t(h(x_obs))) + mean softplus(g_t(h(x_int_t)))]. A batch is a pair of observational rows
    [n, dx] and interventional rows [n, d, dx], not paired with each other; uint8 is taken for pixels. Rows are standardised inside,
    with scales from the data module (`standardise`) that are saved with the weights. What is kept is the model with the smallest
    cross-entropy on validation rows: training on goes below what the best classifier could have, and MCC falls.

    Args:
        dim_x: width of rows.
        dim_z: d, latents and interventional environments.
        encoder: "mlp", "linear" or "conv" (see `StackedEncoder`).
        head: "parametric" or "linear" (a baseline; see `ContrastiveHead`).
        width: of hidden layers.
        depth: their number.
        eta: weight of |A|.
        mu: of the acyclicity penalty.
        kappa: of the centering.
        lr: (largest) learning rate of the encoder.
        lr_head: of the head, which must move faster.
        optimizer: "adam", or "lbfgs" (for linear encoders; give the data module a batch_size of all rows).
        schedule: of Adam: "one_cycle" over the training's steps, or "plateau" (times 0.3 at every fourth validation in a row without gain).
        standardise_x: whether rows are standardised.
        keep_best: whether the weights at the end are those of the best validation; False: the last ones.
        patience: validations in a row without gain that end the training; 0: none do.
        seed: of the first weights.

    Raises:
        InputError: dx < d, d < 2, or a value out of range.

    Source: arXiv 2306.02235, section 4. Standardised rows, the head's own learning rate and the one-cycle schedule are ours.
    """

    mean: Tensor
    spread: Tensor
    latent_spread: Tensor

    def __init__(
        self,
        dim_x: int = 20,
        dim_z: int = 5,
        encoder: Annotated[str, Choice(ENCODERS[:2])] = "mlp",
        head: str = "parametric",
        width: Annotated[int, IntLogUniform(32, 1024)] = 128,
        depth: Annotated[int, Choice((1, 2, 3))] = 1,
        eta: Annotated[float, LogUniform(1e-6, 1e-2)] = 1e-4,
        mu: Annotated[float, LogUniform(1e-7, 1e-2)] = 1e-5,
        kappa: Annotated[float, LogUniform(1e-2, 1.0)] = 0.1,
        lr: Annotated[float, LogUniform(1e-4, 1e-2)] = 1e-3,
        lr_head: Annotated[float, LogUniform(1e-3, 1e-1)] = 1e-2,
        optimizer: str = "adam",
        schedule: str = "one_cycle",
        standardise_x: bool = True,
        keep_best: bool = True,
        patience: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if dim_z < 2 or dim_x < dim_z:
            raise InputError(
                f"dim_x: {dim_x} features for {dim_z} latents; give 2 latents or more and as many features"
            )
        positive: dict[str, float] = {"width": width, "depth": depth, "lr": lr, "lr_head": lr_head}
        for name, value in (positive | {"eta": eta, "mu": mu, "kappa": kappa, "patience": patience}).items():
            if not (value >= 0 and math.isfinite(value)) or (name in positive and value == 0):
                raise InputError(f"{name}: is {value}; give {'a positive number' if name in positive else '0 or more'}")
        for name, choice, known in (
            ("optimizer", optimizer, ("adam", "lbfgs")),
            ("schedule", schedule, ("one_cycle", "plateau")),
        ):
            if choice not in known:
                raise InputError(f"{name}: unknown {choice!r}; choose from {', '.join(known)}")
        self.save_hyperparameters()
        self.dim_x, self.dim_z = dim_x, dim_z
        self.encoder = StackedEncoder(encoder, dim_x, dim_z, width, depth, [seed])
        self.head = ContrastiveHead(dim_z, 1, head, [seed])
        self.register_buffer("mean", torch.zeros(dim_x))
        self.register_buffer("spread", torch.ones(dim_x))
        self.register_buffer("latent_spread", torch.ones(dim_z))
        self._validated: list[Tensor] = []
        self._least, self._waited, self._best = math.inf, 0, dict[str, Tensor]()

    def standardise(self, mean: Array, spread: Array) -> None:
        """Set what rows are standardised with, [dx] each."""
        if np.shape(mean) != (self.dim_x,):
            raise InputError(f"dim_x: is {self.dim_x}, the data have {len(mean)} features; make them equal")
        self.mean.copy_(torch.as_tensor(mean))
        self.spread.copy_(torch.as_tensor(spread))

    def setup(self, stage: str) -> None:
        """Take the rows' scales from the data module, and check that it has d environments."""
        data = getattr(self.trainer, "datamodule", None)
        if stage != "fit" or data is None or not hasattr(data, "training"):
            return
        if data.training.d != self.dim_z:
            raise InputError(f"dim_z: is {self.dim_z}, the data have {data.training.d} environments; make them equal")
        mean, spread = data.training.scales
        plain = not self.hparams["standardise_x"]
        self.standardise(np.zeros_like(mean) if plain else mean, np.ones_like(spread) if plain else spread)

    def forward(self, x: Tensor) -> Tensor:
        """Encodings [n, d] of rows [n, dx]."""
        if x.dtype == torch.uint8:
            x = x.float() / 255
        found: Tensor = self.encoder(((x - self.mean) / self.spread)[None])[0]
        return found

    @torch.no_grad()
    def transform(self, x: Array) -> Array:
        """Encodings [n, d] of rows [n, dx], float64: latents in the order of the environments, up to scale and shift.

        Raises:
            InputError: another width, or NaN.
        """
        x = np.asarray(x)
        if x.ndim != 2 or x.shape[1] != self.dim_x:
            raise InputError(f"x: has shape {list(x.shape)}; give [n, {self.dim_x}]")
        if x.dtype != np.uint8 and not np.isfinite(x).all():
            raise InputError("x: has NaN or infinite numbers; drop or fill these rows")
        rows = torch.from_numpy(x if x.dtype == np.uint8 else x.astype(np.float32))
        size = max(1, min(_EVALUATION_ROWS, _EVALUATION_NUMBERS // self.dim_x))
        parts = [self(part.to(self.mean.device)).cpu() for part in torch.split(rows, size)]
        found: Array = torch.cat(parts).numpy().astype(np.float64)
        return found

    @torch.no_grad()
    def log_odds(self, x: Array) -> Array:
        """g_t(h(x)) [n, d], the estimate of log p_obs(x) - log p_int(t)(x), of rows [n, dx]."""
        z = torch.from_numpy(self.transform(x)).to(self.mean)
        found: Array = self.head(z).cpu().numpy().astype(np.float64)
        return found

    def adjacency(self, scaled: bool = True) -> Array:
        """Estimated weights [d, d], [i, j] of the edge i -> j (node t is what environment t intervenes on): A^T.

        Args:
            scaled: in units of the latents' standard deviations, W[i, j] sd(z_i) / sd(z_j). The coordinates' scales are free, so
                that raw weights cannot be compared with each other; False gives them all the same.

        Raises:
            InputError: the head is linear and has no graph.
        """
        weights = self._parametric().parents[0].detach().cpu().double().numpy().T.copy()
        np.fill_diagonal(weights, 0)
        spread = self.latent_spread.cpu().double().numpy()
        found: Array = weights * spread[:, None] / spread if scaled else weights
        return found

    def edge_scores(self) -> Array:
        """|B_ji| sd(z_i) [d, d] for the edge i -> j: what to rank edges by.

        Of a node without parents only lam^2 - s^2 is identified: s may fall to 0 and its row of A be anything, at no cost. B = s A is
        not fooled by that.
        """
        b = self._parametric().b[0].detach().cpu().double().numpy()
        found: Array = np.abs(b.T) * self.latent_spread.cpu().double().numpy()[:, None]
        np.fill_diagonal(found, 0)
        return found

    def _parametric(self) -> ContrastiveHead:
        if self.head.kind != "parametric":
            raise InputError("head: a linear head has no graph; take the parametric one")
        return self.head

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of observational rows [n, dx] and interventional rows [n, d, dx]."""
        z_obs, cross_entropy = self._scored(batch)
        options: Any = self.hparams
        loss: Tensor = cross_entropy.mean() + options.kappa * self._centering(z_obs)
        if self.head.kind == "parametric":
            loss = loss + graph_penalty(self.head.parents, options.eta, options.mu).sum()
        self.log("train_loss", loss.detach())
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the cross-entropy (val_loss): 2 log 2 = 1.386 where nothing is told apart."""
        z_obs, cross_entropy = self._scored(batch)
        rows = torch.tensor([float(len(z_obs))], device=z_obs.device)
        parts = [rows, cross_entropy.mean()[None] * rows, z_obs.sum(0), z_obs.square().sum(0)]
        self._validated.append(torch.cat([part.double() for part in parts]))
        self.log("val_loss", cross_entropy.mean(), batch_size=len(z_obs))

    def on_validation_epoch_end(self) -> None:
        """Measure the latents' spread, keep the weights if they are the best, and see to the learning rate and the patience."""
        sums = torch.stack(self._validated).sum(0)
        self._validated = []
        mean, square = (sums[2:] / sums[0]).view(2, self.dim_z)
        self.latent_spread.copy_((square - mean.square()).clamp(min=1e-24).sqrt())
        options, value = self.hparams, float(sums[1] / sums[0])
        if self.trainer.state.fn != "fit" or self.trainer.sanity_checking:
            return
        if value < self._least:
            self._least, self._waited = value, 0
            if options["keep_best"]:
                self._best = {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}
            return
        self._waited += 1
        if options["patience"] and self._waited >= options["patience"]:
            self.trainer.should_stop = True
        if options["schedule"] == "plateau" and options["optimizer"] == "adam" and self._waited % _WAIT == 0:
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] *= _CUT

    def on_train_end(self) -> None:
        """Go back to the best weights."""
        if self._best:
            self.load_state_dict(self._best)
            self._best = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the best weights so far with the current ones."""
        if self._best:
            checkpoint["best"] = {"value": self._least, "waited": self._waited, "state": self._best}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back."""
        if "best" in checkpoint:
            best = checkpoint["best"]
            self._least, self._waited, self._best = best["value"], best["waited"], dict(best["state"])

    def configure_optimizers(self) -> Any:
        """Adam or full-batch L-BFGS."""
        options: Any = self.hparams
        if options.optimizer == "lbfgs":
            return torch.optim.LBFGS(
                self.parameters(), lr=1.0, max_iter=10, history_size=20, line_search_fn="strong_wolfe"
            )
        if options.schedule == "plateau":
            groups = [{"params": self.encoder.parameters(), "lr": options.lr}]
            return torch.optim.Adam([*groups, {"params": self.head.parameters(), "lr": options.lr_head}], fused=True)
        steps = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = one_cycle(self.encoder, self.head, options.lr, options.lr_head, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _scored(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Encodings [n, d] of the observational rows, and the cross-entropy [d]."""
        x_obs, x_int = batch
        if x_obs.shape[1] != self.dim_x or x_int.shape[1] != self.dim_z:
            raise InputError(
                f"dim_x: rows have {x_obs.shape[1]} features, {x_int.shape[1]} environments; make both equal"
            )
        z: Tensor = self(torch.cat([x_obs, x_int.transpose(0, 1).flatten(0, 1)]))
        z_obs, z_int = z[: len(x_obs)], z[len(x_obs) :].view(self.dim_z, len(x_int), self.dim_z)
        return z_obs, contrastive_cross_entropy(self.head(z_obs[None]), self.head.own(z_int[None]))[0]

    def _centering(self, z_obs: Tensor) -> Tensor:
        """||mean z||^2 over the rows of all processes, with the gradient of it once the processes' losses are averaged."""
        if self.trainer.world_size == 1:
            return centering_penalty(z_obs)
        sums = torch.cat([z_obs.detach().sum(0), torch.tensor([float(len(z_obs))], device=z_obs.device)])
        gathered = self.all_gather(sums)
        assert isinstance(gathered, Tensor)
        total = gathered.sum(0)
        mean = total[:-1] / total[-1]
        value: Tensor = 2 * (mean * z_obs.mean(0)).sum() - mean.square().sum()
        return value
