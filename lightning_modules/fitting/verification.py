"""Finds silent data corruption: now and then another process computes a process's gradient again, and bits are compared.

Every `every` steps each process computes, before its own step, the gradient of its neighbour's part of the batch, from
the same parameters and random numbers. What the neighbour then really sends to be averaged must be the same, bit for
bit, and after the step all parameters must be the same everywhere. Where they are not, the step is computed again by
everybody concerned, and who came to another result than the majority is to blame.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from lightning_modules.errors import InputError
from lightning_modules.fitting.following import Corrupted, Follower, Mismatch
from lightning_modules.fitting.random_state import random_state, set_random_state
from lightning_modules.fitting.spread import Spread
from lightning_modules.lightning_import import pl


@runtime_checkable
class Rewindable(Protocol):
    """A module that keeps more than parameters and buffers, or computes together with the other processes."""

    spread: Spread

    def snapshot(self) -> Any:
        """Return what `rewind` needs."""

    def rewind(self, snapshot: Any) -> None:
        """Be as it was then."""


class Verification:
    """Checks steps, as `Keeper` asks it to.

    Args:
        follower: hears of checks that were passed.
        spread: over which processes.
        every: steps between checks.

    Attributes:
        weight: of this process's part of the coming batch.
    """

    def __init__(self, follower: Follower, spread: Spread, every: int) -> None:
        self._follower, self._spread, self._every = follower, spread, every
        self.weight = 1.0
        self._sent: dict[int, str] | None = None
        self._check: _Check | None = None
        self._names: dict[int, int] = {}

    def listen(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to what this process sends to be averaged.

        Raises:
            InputError: for a module whose steps cannot be computed again.
        """
        if not pl_module.automatic_optimization:
            raise InputError("verify_every: a module that steps its optimizers itself cannot be checked; leave it out")
        if trainer.precision == "16-mixed":
            raise InputError("verify_every: losses are scaled with 16-mixed; take bf16-mixed or 32-true")
        model = trainer.strategy.model
        if isinstance(model, DistributedDataParallel):
            self._names = {id(parameter): n for n, parameter in enumerate(pl_module.parameters())}
            # DDP reads annotations, and cannot read ours, which are strings.
            model.register_comm_hook(dist.group.WORLD, lambda group, bucket: self._send(group, bucket))

    def _send(self, group: Any, bucket: Any) -> torch.futures.Future[Tensor]:
        if self._sent is not None:
            for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
                self._sent[self._names[id(parameter)]] = _digest([gradient])
        return allreduce_hook(group, bucket)

    def begin(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin a check where it is due, before the step; the last one is always checked.

        Raises:
            Corrupted: in every process, when their parameters differ.
        """
        step = trainer.global_step
        if step % self._every and step != trainer.max_steps - 1:
            return
        self._same_parameters(module, step)
        check = _Check(trainer, module, batch, batch_idx, self.weight, step)
        self._check = check
        if self._names:
            check.replayed = check.compute(self._spread, 1)
            self._sent = {}

    def finish(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """End the check of the step that was taken, if there is one.

        Raises:
            Corrupted: in every process, when they did not agree.
        """
        check, sent = self._check, self._sent
        self._check = self._sent = None
        if check is None:
            return
        if sent is not None:
            own = hashlib.sha256("".join(sent[n] for n in sorted(sent)).encode()).hexdigest()
            found = self._spread.everyone((own, check.replayed))
            world = self._spread.world
            wrong = [role for role in range(world) if found[role][0] != found[(role + 1) % world][1]]
            if wrong:
                raise Corrupted(Mismatch(check.step, self._blame(check, found, wrong), "a gradient"))
        self._same_parameters(module, check.step)
        if self._spread.rank == 0:
            self._follower.verified(check.step + 1)

    def _same_parameters(self, module: pl.LightningModule, step: int) -> None:
        digests = self._spread.everyone(_digest(list(module.parameters())))
        if len(set(digests)) > 1:
            votes = [(rank, digest) for rank, digest in enumerate(digests)]
            raise Corrupted(Mismatch(step, _minority(votes), "parameters"))

    def _blame(self, check: _Check, found: Sequence[tuple[str, str]], wrong: Sequence[int]) -> tuple[int, ...]:
        """Compute the step again, everyone its own, its neighbour's and, of three or more, the next one's too."""
        world = self._spread.world
        again = {shift: self._spread.everyone(check.compute(self._spread, shift)) for shift in range(min(3, world))}
        suspects: set[int] = set()
        for role in wrong:
            votes = [(role, found[role][0]), ((role + 1) % world, found[(role + 1) % world][1])]
            votes += [((role + shift) % world, digests[(role + shift) % world]) for shift, digests in again.items()]
            suspects.update(_minority(votes))
        return tuple(sorted(suspects))


class _Check:
    """A step that is checked: everything that it is computed from."""

    def __init__(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int, weight: float, step: int
    ) -> None:
        self._trainer, self._module, self._batch, self._batch_idx = trainer, module, batch, batch_idx
        self._weight, self.step = weight, step
        self._state = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self._more = module.snapshot() if isinstance(module, Rewindable) else None
        self._random = random_state()
        self.replayed = ""

    def compute(self, spread: Spread, shift: int) -> str:
        """Compute the gradient of the part of the process `shift` places before this one; returns its digest."""
        given = spread.everyone((self._batch, self._random, self._weight))
        role = (spread.rank - shift) % spread.world
        batch, random, weight = given[role]
        with self._as_it_was():
            set_random_state(random)
            if isinstance(self._module, Rewindable):
                self._module.spread = replace(spread, rank=role, shift=shift)
            with self._trainer.precision_plugin.train_step_context():
                output = cast(Any, self._module).training_step(batch, self._batch_idx)
            loss = output["loss"] if isinstance(output, Mapping) else output
            if weight != 1.0:
                loss = loss * weight
            parameters = [p for p in self._module.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        digests = [
            _digest([torch.zeros_like(p) if g is None else g]) for p, g in zip(parameters, gradients, strict=True)
        ]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    @contextlib.contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """Be before the step, unseen; and as now afterwards."""
        module, now = self._module, random_state()
        state = {name: value.detach().clone() for name, value in module.state_dict().items()}
        more = module.snapshot() if isinstance(module, Rewindable) else None
        spread = module.spread if isinstance(module, Rewindable) else None
        _load(module, self._state)
        if isinstance(module, Rewindable):
            module.rewind(self._more)
        silent = cast(Any, module)
        silent.log = silent.log_dict = lambda *args, **kwargs: None
        try:
            with torch.enable_grad():
                yield
        finally:
            del silent.log, silent.log_dict
            _load(module, state)
            if isinstance(module, Rewindable):
                assert spread is not None
                module.rewind(more)
                module.spread = spread
            set_random_state(now)


def _minority(votes: Sequence[tuple[int, str]]) -> tuple[int, ...]:
    """Ranks that ever came to another result than most computations did; all of them where none is the most."""
    counts = Counter(digest for _, digest in votes).most_common()
    if len(counts) > 1 and counts[0][1] == counts[1][1]:
        return tuple(sorted({rank for rank, _ in votes}))
    return tuple(sorted({rank for rank, digest in votes if digest != counts[0][0]}))


@torch.no_grad()
def _load(module: pl.LightningModule, state: Mapping[str, Tensor]) -> None:
    for name, value in module.state_dict().items():
        value.copy_(state[name])


def _digest(tensors: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        content = tensor.detach().contiguous().cpu().view(-1)
        digest.update(content.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
