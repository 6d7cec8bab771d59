"""The one place that makes a Lightning trainer."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, Strategy

from lightning_modules.errors import InputError
from lightning_modules.fitting.spread import Spread
from lightning_modules.lightning_import import pl

_MEETING_S = 30.0


class _Meeting(ClusterEnvironment):
    """Processes that exist already and know each other's number."""

    def __init__(self, spread: Spread) -> None:
        super().__init__()
        self._spread = spread

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self._spread.address

    @property
    def main_port(self) -> int:
        return self._spread.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._spread.world

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return self._spread.rank

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return 0  # every process sees its own device only

    def node_rank(self) -> int:
        return self._spread.rank


class _Prompt(DDPStrategy):
    """Data-parallel training whose processes meet without delay, and listen on the address of their meeting alone.

    By itself torch listens on every interface, and tries again only after half a second where rank 0 is not there yet.
    """

    def setup_distributed(self) -> None:
        if self.cluster_environment is not None and not dist.is_initialized():
            self._meet(self.cluster_environment)
        super().setup_distributed()  # finds the processes together

    def _meet(self, environment: ClusterEnvironment) -> None:
        address, port = environment.main_address, environment.main_port
        rank, world = environment.global_rank(), environment.world_size()
        listening: dict[str, Any] = {}
        if address.startswith("127."):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # nobody else need reach a run within one machine
        if rank == 0:
            listening["master_listen_fd"] = socket.create_server((address, port)).detach()
        else:
            _wait_for(address, port)
        make_store: Any = dist.TCPStore  # type: ignore[attr-defined]
        timeout = timedelta(seconds=_MEETING_S)
        store = make_store(address, port, world, rank == 0, timeout=timeout, wait_for_workers=False, **listening)
        device = self.root_device if self.root_device.type != "cpu" else None
        dist.init_process_group(
            self._get_process_group_backend(),
            timeout=self._timeout,
            world_size=world,
            rank=rank,
            store=store,
            device_id=device,
        )


def _wait_for(address: str, port: int) -> None:
    deadline = time.monotonic() + _MEETING_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=_MEETING_S):
            return
        time.sleep(0.002)


class _Weighted(_Prompt):
    """Data-parallel training that weighs a process's mean loss by its share of the batch."""

    weight = 1.0

    def backward(self, closure_loss: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.weight != 1.0:
            closure_loss = closure_loss * self.weight
        return super().backward(closure_loss, *args, **kwargs)


class _Replicated(_Prompt):
    """Every process takes the whole step by itself: for steps that are no gradient of one loss."""

    def configure_ddp(self) -> None:
        pass


def weigh(trainer: pl.Trainer, weight: float) -> None:
    """Say what this process's part of the next batch weighs: its share of the batch, times the number of processes."""
    if isinstance(trainer.strategy, _Weighted):
        trainer.strategy.weight = weight


def weight_of(trainer: pl.Trainer) -> float:
    """What this process's part of the current batch weighs."""
    return trainer.strategy.weight if isinstance(trainer.strategy, _Weighted) else 1.0


def make_trainer(
    steps: int,
    callbacks: Sequence[pl.Callback],
    spread: Spread | None = None,
    *,
    replicated: bool = False,
    unused_parameters: bool = False,
    **more: Any,
) -> pl.Trainer:
    """Make a trainer without the files and messages of a run that people watch.

    Args:
        steps: parameter updates, after which it ends.
        callbacks: in the order in which they are called.
        spread: over which processes; None: this one alone.
        replicated: whether every process takes the whole step by itself.
        unused_parameters: whether some parameters may have no part in the loss.
        **more: flags of Lightning's.

    Raises:
        InputError: for FSDP without a GPU.
    """
    spread = spread or Spread()
    devices: dict[str, Any] = {"devices": 1}
    if not spread.alone:
        devices |= {"num_nodes": spread.world, "strategy": _strategy(spread, replicated, unused_parameters)}
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="auto",
        precision=spread.precision,  # type: ignore[arg-type]
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **devices,
        **more,
    )
    # Signals are for who started the process, who pauses a training or gives it up; Lightning would exit.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    if not spread.alone:
        # Lightning asks every process at every step whether one got a signal. Ours agree on pauses, more rarely.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer


def _strategy(spread: Spread, replicated: bool, unused_parameters: bool) -> Strategy:
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    together: dict[str, Any] = {"cluster_environment": _Meeting(spread), "process_group_backend": backend}
    if spread.strategy == "fsdp":
        if backend == "gloo":
            raise InputError("strategy: fsdp needs GPUs, this machine has none; give --strategy ddp")
        return FSDPStrategy(**together, state_dict_type="full")
    if replicated:
        return _Replicated(**together)
    return _Weighted(**together, find_unused_parameters=unused_parameters, gradient_as_bucket_view=True)
