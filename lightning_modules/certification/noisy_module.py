"""What every training under noise shares: the noise's own generator, an optimizer with a schedule, epoch means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.certification.regularisers import resolve
from lightning_modules.errors import InputError
from lightning_modules.lightning_import import pl

_OPTIMIZERS: dict[str, dict[str, float | None]] = {
    "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "lr_step": 30, "lr_gamma": 0.1},
    "adam": {"lr": 1e-3, "weight_decay": 0.0, "lr_step": None, "lr_gamma": 0.1},
}


class NoisyModule(pl.LightningModule):
    """What every training under noise has: the noise's own generator, and an optimizer with a schedule.

    The generator stands on the module's device; its state goes into checkpoints and comes back from them. A checkpoint
    that continues on another kind of device starts a new stream there, since the two kinds draw different numbers.

    Args:
        sigma: standard deviation of the noise, in the inputs' units.
        seed: of all that the module draws.
        optimizer: "sgd" or "adam".
        options: lr, momentum, weight_decay, lr_step and lr_gamma; None takes the default.
        defaults: what differs from the optimizer's own defaults.

    Raises:
        InputError: for a value out of range, or an option that the optimizer does not have.
    """

    def __init__(
        self,
        sigma: float,
        seed: int,
        optimizer: str,
        options: Mapping[str, float | None],
        defaults: Mapping[str, float | None],
    ) -> None:
        super().__init__()
        if not 0 <= sigma < math.inf:
            raise InputError(f"sigma: {sigma} is not a standard deviation; give 0 (no noise) or more, e.g. 0.25")
        if optimizer not in _OPTIMIZERS:
            raise InputError(f"optimizer: unknown {optimizer!r}; choose one of {', '.join(_OPTIMIZERS)}")
        self.sigma, self.seed, self.optimizer_name = float(sigma), seed, optimizer
        self.optimizer_options = resolve(options, {**_OPTIMIZERS[optimizer], **defaults}, f"optimizer {optimizer!r}")
        if options.get("lr_gamma") is not None and self.optimizer_options["lr_step"] is None:
            raise InputError("lr_gamma: has no effect without lr_step; give lr_step too")
        self._generator: torch.Generator | None = None
        self._saved_state: tuple[str, Tensor] | None = None
        self._sums: dict[str, Tensor] = {}
        self._examples = 0

    def generator(self) -> torch.Generator:
        """The noise's generator, on the module's device."""
        device = self.device
        if self._generator is None or self._generator.device.type != device.type:
            self._generator = torch.Generator(device).manual_seed(stream_seed(self.seed, 1, self.global_step))
        if self._saved_state is not None:
            kind, state = self._saved_state
            if kind == device.type:
                self._generator.set_state(state)
            self._saved_state = None
        return self._generator

    def standard_normal(self, draws: int, inputs: Tensor) -> Tensor:
        """Draw [draws, *inputs.shape]."""
        shape = (draws, *inputs.shape)
        return torch.randn(shape, generator=self.generator(), dtype=inputs.dtype, device=inputs.device)

    def noisy(self, draws: int, inputs: Tensor) -> Tensor:
        """Add fresh noise: inputs [B, ...] to [draws, B, ...]. Nothing is cut off at the inputs' range."""
        if self.sigma == 0:
            return inputs.expand(draws, *inputs.shape)
        return self.standard_normal(draws, inputs).mul_(self.sigma).add_(inputs)

    def record(self, examples: int, **means: Tensor) -> None:
        """Add a step's means to the epoch's; they are logged once an epoch, as `log` takes a millisecond a call."""
        for name, value in means.items():
            self._sums[name] = self._sums.get(name, 0) + examples * value
        self._examples += examples

    def epoch_means(self) -> dict[str, float]:
        """What was recorded since the epoch began, averaged over its examples."""
        return {name: float(value) / self._examples for name, value in self._sums.items()}

    def on_train_epoch_start(self) -> None:
        """Forget the last epoch's means."""
        self._sums, self._examples = {}, 0

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means."""
        self.log_dict(self.epoch_means(), prog_bar=True)

    def settings(self) -> dict[str, Any]:
        """All that decides this training apart from the data, as plain values."""
        return {"sigma": self.sigma, "seed": self.seed, "optimizer": self.optimizer_name, **self.optimizer_options}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the settings, the generator's state and what the epoch has recorded."""
        checkpoint["shiftlab_training"] = self.settings()
        checkpoint["shiftlab_record"] = {"sums": dict(self._sums), "examples": self._examples}
        checkpoint["shiftlab_noise"] = {"device": self.device.type, "state": self.generator().get_state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the generator's state and the record back."""
        saved, record = checkpoint["shiftlab_noise"], checkpoint["shiftlab_record"]
        self._saved_state = (saved["device"], saved["state"])
        self._sums, self._examples = dict(record["sums"]), record["examples"]

    def configure_optimizers(self) -> Any:
        """SGD or Adam on whatever is trained, with the rate multiplied by lr_gamma every lr_step epochs."""
        values = dict(self.optimizer_options)
        every, gamma = values.pop("lr_step"), values.pop("lr_gamma")
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[self.optimizer_name]
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = kind(trained, fused=True, **values)
        if every is None:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, every, gamma)]


def stream_seed(seed: int, *path: int) -> int:
    """Derive the seed of one of several independent streams.

    Raises:
        InputError: for a negative seed.
    """
    if seed < 0:
        raise InputError(f"seed: {seed} is negative; give 0 or more")
    return int(np.random.SeedSequence((seed, *path)).generate_state(1, np.uint64)[0] >> np.uint64(1))
