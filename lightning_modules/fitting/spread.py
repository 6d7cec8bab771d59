"""How one training run is spread over processes: which of them this one is, and the part of every batch that is its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

STRATEGIES = ("ddp", "fsdp")
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true")


@dataclass(frozen=True)
class Spread:
    """A process among those that train one model together; the default is a process alone.

    Args:
        rank: of this process, from 0.
        world: number of processes, W.
        address: host of rank 0, where the processes meet.
        port: free port of that host.
        strategy: "ddp", or "fsdp" for models that a GPU cannot hold whole.
        precision: Lightning's name for it.
        shift: by how many places processes have changed parts, where one computes what another has computed: part q is
            then with process q + shift.
    """

    rank: int = 0
    world: int = 1
    address: str = "127.0.0.1"
    port: int = 0
    strategy: str = "ddp"
    precision: str = "32-true"
    shift: int = 0

    @property
    def alone(self) -> bool:
        """Whether there is nobody else."""
        return self.world == 1

    def part(self, rows: int) -> slice:
        """Rows of a batch that are this process's own: contiguous, their number differs by one at most."""
        return self.parts(rows)[self.rank]

    def parts(self, rows: int) -> list[slice]:
        """Every process's rows of a batch, by rank."""
        bounds = [rows * rank // self.world for rank in range(self.world + 1)]
        return [slice(start, stop) for start, stop in zip(bounds, bounds[1:], strict=False)]

    def gather(self, values: Tensor, dim: int, rows: int) -> Tensor:
        """Put every process's part of a batch together, with gradients.

        Every process must compute the same loss from the result. Its own part's gradient is then that of the whole loss,
        times W, because what trains the processes together averages over them.

        Args:
            values: this process's part; along `dim` as many as `part(rows)` says.
            dim: of the batch.
            rows: of the whole batch.
        """
        if self.alone:
            return values
        gathered: Tensor = _Gather.apply(values, dim, rows, self)  # type: ignore[no-untyped-call]
        return gathered

    def everyone(self, value: Any) -> list[Any]:
        """Collect a picklable value of every process, by rank."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:
        """Return rank 0's value, a small whole number."""
        if self.alone:
            return value
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        tensor = torch.tensor([value], dtype=torch.int64, device=device)
        dist.broadcast(tensor, 0)
        return int(tensor)

    def mean(self, values: Sequence[float]) -> list[float]:
        """Average numbers over the processes."""
        if self.alone or not values:
            return list(values)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor / self.world]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, dim: int, rows: int, spread: Spread) -> Tensor:
        ctx.own, ctx.dim, ctx.world = spread.part(rows), dim, spread.world
        sizes = [part.stop - part.start for part in spread.parts(rows)]
        padded = values
        if values.shape[dim] < max(sizes):  # collectives want equal shapes
            shape = list(values.shape)
            shape[dim] = max(sizes) - values.shape[dim]
            padded = torch.cat([values, values.new_zeros(shape)], dim)
        padded = padded.contiguous()
        gathered = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(gathered, padded)
        places = [(part + spread.shift) % spread.world for part in range(spread.world)]
        return torch.cat([gathered[p].narrow(dim, 0, size) for p, size in zip(places, sizes, strict=True)], dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        own = gradient.narrow(ctx.dim, ctx.own.start, ctx.own.stop - ctx.own.start)
        return own * ctx.world, None, None, None
