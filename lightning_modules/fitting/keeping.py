"""Checkpoints of a running training, from which it goes on as if nothing had happened, on as many processes or others.

A checkpoint is Lightning's, with what Lightning leaves out: the state of every process's random numbers, the place in
the data, and the evaluations so far. It is taken between two steps, loads with `weights_only`, and the whole training
is a function of it: nothing that was random before it is drawn anew.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from lightning_modules.dynamics.catalog import make_probe
from lightning_modules.errors import InputError
from lightning_modules.fitting.following import Follower, Paused
from lightning_modules.fitting.random_state import random_state, set_random_state
from lightning_modules.fitting.spread import Spread
from lightning_modules.fitting.trainer import weigh, weight_of
from lightning_modules.fitting.verification import Verification
from lightning_modules.lightning_import import pl
from lightning_modules.watching import MetricRow

KEY = "shiftlab"
_PAUSE_SECONDS = 0.5
_LOG_SECONDS = 1.0


@dataclass(frozen=True)
class Position:
    """A place in the training data: passes over them that ended, and batches of the current one that were used."""

    epoch: int = 0
    batches: int = 0


class Evaluation(Protocol):
    """The callback that measures; its rows are what the run has shown so far."""

    rows: list[MetricRow]


class Weights(Protocol):
    """Data that know what each batch's own part weighs."""

    def next_weight(self) -> float:
        """Return the weight of the next batch, in their order."""


class Saved:
    """A checkpoint that was loaded.

    Args:
        content: what `Keeper` handed to `Follower.save`.

    Raises:
        InputError: if it is damaged or holds what would have to be unpickled.
    """

    def __init__(self, content: bytes) -> None:
        self._bytes = content
        try:
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            self._about: Mapping[str, Any] = loaded[KEY]
            self.step = int(self._about["step"])
            self.position = Position(*self._about["position"])
        except Exception as error:  # a damaged file can fail anywhere in torch's reader
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"checkpoint: cannot be read ({type(error).__name__}: {reason}); delete it") from error

    @property
    def rows(self) -> list[MetricRow]:
        """Evaluations until then."""
        return [tuple(row) for row in self._about["rows"]]

    def restore_random(self, rank: int) -> bool:
        """Put the global random numbers where they were; False where the process was not there then."""
        states = self._about["random"]
        if rank >= len(states):
            return False
        set_random_state(states[rank])
        return True

    def path(self, folder: str) -> str:
        """Write it into a folder, for Lightning to read."""
        path = Path(folder, "resume.ckpt")
        path.write_bytes(self._bytes)
        return str(path)


@dataclass(frozen=True)
class LongRun:
    """A training run that is followed, saved, paused and continued.

    Args:
        spread: over which processes.
        follower: hears of it.
        save_every: steps between checkpoints.
        saved: the checkpoint that it goes on from; None: it begins.
        verify_every: steps between checks that two processes compute the same; None: none.
        probes: that measure it, by name and options.
    """

    spread: Spread
    follower: Follower
    save_every: int
    saved: Saved | None = None
    verify_every: int | None = None
    probes: tuple[str, ...] = ()

    @property
    def position(self) -> Position:
        """Where in the data it goes on."""
        return self.saved.position if self.saved is not None else Position()

    def verification(self) -> Verification | None:
        """Make what checks it."""
        if self.verify_every is None or self.spread.alone:
            return None
        return Verification(self.follower, self.spread, self.verify_every)

    def probing(self) -> list[pl.Callback]:
        """Make the probes; they measure in the first process alone, the others wait for it at the next step."""
        found = [make_probe(words) for words in self.probes if self.spread.rank == 0]
        for probe in found:
            probe.listen(self.follower.probed)
        return list[pl.Callback](found)

    def keeper(self, evaluation: Evaluation, weights: Weights | None = None, global_loss: bool = False) -> Keeper:
        """Make the callback that keeps it."""
        return Keeper(self, evaluation, weights, global_loss)


class Keeper(pl.Callback):
    """Saves a training run at intervals, and lets it be paused. To be called before any other callback.

    Args:
        long: the run.
        evaluation: whose rows belong to the checkpoint.
        weights: of the batches; None where all weigh the same.
        global_loss: whether every process has the loss of the whole batch, not of its part.
    """

    def __init__(
        self, long: LongRun, evaluation: Evaluation, weights: Weights | None = None, global_loss: bool = False
    ) -> None:
        self._follower, self._spread, self._every = long.follower, long.spread, long.save_every
        self._evaluation, self._saved, self._weights = evaluation, long.saved, weights
        self._global_loss = global_loss
        self._verification = long.verification()
        self._last = long.saved.step if long.saved else 0
        self._told = 0
        self._last_look, self._next_look = self._last, self._last + 1
        self._looked_at = self._logged_at = time.monotonic()
        self._logged_step = self._last
        self._losses: list[torch.Tensor] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Go on with the evaluations of the checkpoint."""
        if self._saved is not None:
            self._evaluation.rows[:] = self._saved.rows
            self._told = len(self._evaluation.rows)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on with its random numbers."""
        if self._verification is not None:
            self._verification.listen(trainer, pl_module)
        if self._saved is not None:
            self._saved.restore_random(self._spread.rank)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is due, and pause where it is asked for.

        Raises:
            Paused: after saving.
        """
        step = trainer.global_step
        if step > self._last:
            if self._verification is not None:
                self._verification.finish(trainer, pl_module)
            self._tell(step)
            due = step % self._every == 0
            pausing = step >= self._next_look and self._agree(step)
            self._last = step
            if due or pausing:
                self._save(trainer, step)
            if pausing:
                raise Paused(step)
        if self._weights is not None:
            weight = self._weights.next_weight()
            weigh(trainer, weight)
            if self._verification is not None:
                self._verification.weight = weight
        if self._verification is not None:
            self._verification.begin(trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember the loss."""
        if isinstance(outputs, dict) and isinstance(outputs.get("loss"), torch.Tensor):
            self._losses.append(outputs["loss"].detach() * weight_of(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hand over what the end brought; the end may be the best."""
        if self._verification is not None:
            self._verification.finish(trainer, pl_module)
        self._tell(trainer.global_step)
        self._log(trainer.global_step)
        self._save(trainer, trainer.global_step)

    def _agree(self, step: int) -> bool:
        """Let rank 0 decide about a pause, and about the step of the next decision: about twice a second."""
        now = time.monotonic()
        seconds = (now - self._looked_at) / max(1, step - self._last_look)
        ahead = max(1, min(10_000, int(_PAUSE_SECONDS / max(seconds, 1e-6))))
        decision = self._spread.from_first(-1 if self._spread.rank == 0 and self._follower.pausing() else ahead)
        self._looked_at, self._last_look = now, step
        self._next_look = step + abs(decision)
        self._log(step)
        return bool(decision < 0)

    def _tell(self, step: int) -> None:
        rows = self._evaluation.rows
        if self._spread.rank == 0 and len(rows) > self._told:
            self._follower.evaluated(rows[-1][0], rows[self._told :])
        self._told = len(rows)

    def _log(self, step: int) -> None:
        """Hand over the mean loss since the last time, of the whole batch."""
        if step == self._logged_step:
            return
        losses = [float(torch.stack(self._losses).mean())] if self._losses else []
        if not self._global_loss:
            losses = self._spread.mean(losses)
        now = time.monotonic()
        values = {"steps_per_second": (step - self._logged_step) / max(now - self._logged_at, 1e-9)}
        if losses:
            values["loss"] = losses[0]
        if self._spread.rank == 0:
            self._follower.log(step, values)
        self._logged_step, self._logged_at, self._losses = step, now, []

    def _save(self, trainer: pl.Trainer, step: int) -> None:
        content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)  # every process, for FSDP
        states = self._spread.everyone(random_state())
        if self._spread.rank:
            return
        position = _rewind_counters(content)
        content[KEY] = {
            "step": step,
            "position": (position.epoch, position.batches),
            "random": states,
            "rows": [list(row) for row in self._evaluation.rows],
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        self._follower.save(step, buffer.getvalue(), list(self._evaluation.rows))


def _rewind_counters(content: Mapping[str, Any]) -> Position:
    """Take back the batch that was fetched but not used: Lightning then goes on with it, without a second validation."""
    loop = content["loops"]["fit_loop"]
    batches = loop["epoch_loop.batch_progress"]
    for scope in ("total", "current"):
        done = batches[scope]["completed"]
        batches[scope] = dict.fromkeys(batches[scope], done)
    epochs = loop["epoch_progress"]["current"]["processed"]
    return Position(int(epochs), int(batches["current"]["completed"]))


def fit(trainer: pl.Trainer, module: pl.LightningModule, saved: Saved | None = None, **data: Any) -> None:
    """Train, from a checkpoint if there is one."""
    if saved is None:
        trainer.fit(module, **data)
        return
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit(module, ckpt_path=saved.path(folder), weights_only=True, **data)
