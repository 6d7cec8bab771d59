"""Probes: losses and directional derivatives of 1,000 examples at once, against a loop over examples; rows streamed in bounded memory."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python benchmarks/probes.py` has only this folder

from benchmarks.harness import Figure, alternate, quick_asked, ratio, show
from cluster.store import Run, Store
from jobs.probes import SCHEMAS, probe_tables
from lightning_modules.dynamics.flat import FlatParameters, directional_derivatives, losses_at, projected_gradients
from lightning_modules.sequence.transformer import Transformer, TransformerConfig

EXAMPLES, DIRECTIONS, STEPS, ROWS = 1000, 10, 10_000, 1000


class Adder(nn.Module):
    """The small decoder of additions, with the mean loss of a sequence's answer."""

    def __init__(self) -> None:
        super().__init__()
        config = TransformerConfig(vocabulary=12, context=12, init_std=0.1)
        self.decoder = Transformer(config, torch.Generator().manual_seed(0))

    def per_example_losses(self, batch: Tensor) -> Tensor:
        """Losses [n] of sequences [n, 12]."""
        logits = self.decoder(batch[:, :-1])[:, -4:]
        return nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, -4:], reduction="none").mean(1)


class Network(nn.Module):
    """The network of the experiments with opposing signals, or another of dense layers."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1])

    def per_example_losses(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Losses [n] of pixels and labels."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1], reduction="none")


def one_of(batch: Tensor | tuple[Tensor, ...], row: int) -> Tensor | tuple[Tensor, ...]:
    """A batch of one example."""
    return batch[row : row + 1] if isinstance(batch, Tensor) else tuple(part[row : row + 1] for part in batch)


def measures(module: nn.Module, batch: Tensor | tuple[Tensor, ...]) -> dict[str, Callable[[], Tensor]]:
    """Both ways to the losses [n] and to the derivatives [K, n] along K directions."""
    flat = FlatParameters(module)
    losses: Callable[[Tensor | tuple[Tensor, ...]], Tensor] = module.per_example_losses  # type: ignore[assignment]
    directions = torch.randn(DIRECTIONS, len(flat), generator=torch.Generator().manual_seed(1))
    directions = torch.linalg.qr(directions.T).Q.T.contiguous()

    @torch.no_grad()
    def losses_at_once() -> Tensor:
        return losses(batch)

    @torch.no_grad()
    def losses_one_by_one() -> Tensor:
        return torch.cat([losses(one_of(batch, row)) for row in range(EXAMPLES)])

    def derivatives_at_once() -> Tensor:
        return projected_gradients(module, batch, directions)

    def derivatives_one_by_one() -> Tensor:
        found = []
        for row in range(EXAMPLES):
            loss = losses(one_of(batch, row))[0]
            found.append(directions @ flat.join(torch.autograd.grad(loss, flat.tensors())))
        return torch.stack(found, 1)

    def derivatives_one_by_one_forward() -> Tensor:
        parts = (losses_at(module, one_of(batch, row)) for row in range(EXAMPLES))
        return torch.cat([directional_derivatives(part, flat.vector(), directions) for part in parts], 1)

    return {
        "losses": losses_at_once,
        "losses, loop": losses_one_by_one,
        "derivatives": derivatives_at_once,
        "derivatives, loop": derivatives_one_by_one,
        "derivatives, loop of forward mode": derivatives_one_by_one_forward,
    }


def compare(name: str, module: nn.Module, batch: Tensor | tuple[Tensor, ...], rounds: int) -> list[Figure]:
    """Examples a second of both ways, which must agree."""
    module.eval()
    ways = measures(module, batch)
    for what in ways:
        torch.testing.assert_close(ways[what](), ways[what.split(",")[0]](), rtol=1e-3, atol=1e-5)

    def clocked(call: Callable[[], Tensor]) -> Callable[[], float]:
        def measure() -> float:
            began = time.perf_counter()
            call()
            return EXAMPLES / (time.perf_counter() - began)

        return measure

    taken = alternate({what: clocked(call) for what, call in ways.items()}, rounds)
    ours = taken["derivatives"]
    return [
        ratio(f"{name}: examples' losses a second", taken["losses"], taken["losses, loop"], 20),
        ratio(f"{name}: examples' derivatives a second", ours, taken["derivatives, loop of forward mode"], 20),
        ratio(f"{name}: the same, loop of gradients", ours, taken["derivatives, loop"], 20),
    ]


def stream(steps: int) -> list[Figure]:
    """Rows of 1,000 examples at each of so many steps into a run: rows a second, and how much memory grows."""
    process, peaks, done = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peaks[0] = max(peaks[0], process.memory_info().rss)

    numbers = np.arange(ROWS, dtype=np.int32)
    values = np.random.default_rng(0).standard_normal((16, ROWS)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder, Store(folder, SCHEMAS) as store:
        # One seal first, so that what Arrow loads once is not counted.
        store.append(probe_tables("trial", 0, "warm", [], [("loss", 0, numbers, values[0])]))
        store.seal()
        before, began = process.memory_info().rss, time.perf_counter()
        watcher = threading.Thread(target=watch)
        watcher.start()
        for step in range(steps):
            store.append(probe_tables("trial", step, "opposing-signals", [], [("loss", 0, numbers, values[step % 16])]))
        store.seal()
        seconds = time.perf_counter() - began
        done.set()
        watcher.join()
        stored = Run(folder).read("probe_examples").num_rows
        size = sum(path.stat().st_size for path in Path(folder, "probe_examples").iterdir())
    assert stored == ROWS * (steps + 1)
    rows = ROWS * steps
    return [
        Figure(f"{rows:,} rows of examples: rows a second", rows / seconds, "rows/s", None, rows / seconds),
        Figure(
            "the same: memory it grew by, MB",
            (peaks[0] - before) / 1e6,
            "MB",
            200,
            (peaks[0] - before) / 1e6,
            at_most=True,
        ),
        Figure("the same: bytes a row on disk", size / rows, "B", None, size / rows),
    ]


def main() -> None:
    """Measure."""
    quick = quick_asked(__doc__)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    rounds = 1 if quick else 5
    labels = torch.randint(10, (EXAMPLES,), generator=generator)
    small, large = (torch.rand(EXAMPLES, width, generator=generator) for width in (64, 784))
    figures = [
        *compare("64-64-64-10", Network(64, 64, 64, 10), (small, labels), rounds),
        *compare("784-256-10", Network(784, 256, 10), (large, labels), rounds),
        *compare("decoder", Adder(), torch.randint(12, (EXAMPLES, 12), generator=generator), rounds),
        *stream(STEPS // 10 if quick else STEPS),
    ]
    show(
        "Probes, one thread",
        figures,
        [
            f"{EXAMPLES:,} examples at once against one at a time; derivatives are along {DIRECTIONS} directions",
            "loops: a forward pass an example; forward mode along the directions, or a gradient and its products with them",
        ],
    )


if __name__ == "__main__":
    main()
