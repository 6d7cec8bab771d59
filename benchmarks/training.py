"""Training on several workers: steps per second against plain Lightning DDP, a warm gang's first step, a lost node."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python benchmarks/training.py` has only this folder

from benchmarks.harness import Figure, alternate, quick_asked, ratio, scratch_folder, show
from cluster.session import connect
from cluster.store import Run
from cluster.training.gang import Gang, GangSettings
from cluster.training.rank import Message
from jobs.subjects import find_subject
from jobs.training import LongOptions, setup_rank

ROOT = Path(__file__).resolve().parents[1]
WARM_STEPS = 50
MODULE = '''
import os
import time
from pathlib import Path
import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(pl.LightningModule):
    """Writes when its first, its 50th and its last step were done."""
    def __init__(self, width: int = 256, steps: int = 500, times: str = "", pause: float = 0.0):
        super().__init__()
        self.steps, self.times, self.pause = steps, times, pause
        self.net = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))
    def training_step(self, batch, _):
        time.sleep(self.pause)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])
    def on_train_batch_end(self, *_):
        if self.times and self.global_rank == 0 and self.global_step in (1, 50, self.steps):
            with open(self.times, "a") as file:
                print(self.global_step, time.time(), file=file)
    def validation_step(self, batch, _):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

class Data(pl.LightningDataModule):
    def __init__(self, batch_size: int = 128):
        super().__init__()
        self.batch_size = batch_size
    def setup(self, stage=None):
        g = torch.Generator().manual_seed(0)
        self.rows = TensorDataset(torch.randn(6400, 784, generator=g), torch.randint(10, (6400,), generator=g))
    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=self.batch_size, shuffle=True)
    def val_dataloader(self):
        return DataLoader(TensorDataset(*self.rows[:64]), batch_size=64)
'''
PLAIN = """
import sys
import lightning.pytorch as pl
import torch
from nets import Data, Net
torch.set_num_threads(1)
width, steps, times = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
trainer = pl.Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", devices=2, strategy="ddp", logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0)
trainer.fit(Net(width, steps, times), Data(64))
"""


class Desk:
    """Takes what a training says and keeps nothing of it."""

    def hear(self, message: Message, workers: int) -> None:
        """Take a message."""

    def checkpoint(self) -> tuple[int, bytes] | None:
        """Begin anew."""
        return None

    def rewind(self) -> None:
        """Forget nothing."""

    def event(self, kind: str, step: int | None, node: str, detail: str) -> None:
        """Take note."""

    def waiting(self, ready: int, wanted: int) -> None:
        """Hear of waiting."""


def rate(times: Path) -> float:
    """Steps per second between the 50th and the last, from the file that the module writes."""
    marks = [line.split() for line in times.read_text().splitlines()]
    (first, began), (last, ended) = ((int(step), float(at)) for step, at in (marks[-2], marks[-1]))
    times.unlink()
    return (last - first) / (ended - began)


def plain(folder: Path, width: int, steps: int) -> float:
    """Plain Lightning DDP with two processes; returns steps per second."""
    times = folder / "times"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    words = [sys.executable, "plain.py", str(width), str(steps), str(times)]
    subprocess.run(words, cwd=folder, env=environment | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    return rate(times)


def ours(gang: Gang, subject: Any, folder: Path, width: int, steps: int) -> tuple[float, float]:
    """A training of a warm gang of two; returns steps per second, and seconds from the call to the first step's end."""
    times = folder / "times"
    budget = {"steps": steps, "checkpoint_every": steps}
    trial = subject.trial({"width": width, "steps": steps, "times": str(times)}, (), 0, budget)
    began = time.time()
    ended = gang.train(trial, Desk(), lambda: False)
    assert ended.kind == "done", ended.error
    first = float(times.read_text().split()[1]) - began
    return rate(times), first


def speed(folder: Path, rounds: int, steps: int) -> list[Figure]:
    """Steps per second at two workers, and the first step of a gang that is warm."""
    os.chdir(folder)
    subject = find_subject("nets:Net", "nets:Data", 64)
    figures, firsts = [], []
    with connect(cpus=2) as ray:
        shared = (subject.setup, LongOptions(save_every=steps), *subject.shared)
        gang = Gang(ray, setup_rank, shared, GangSettings(2, 2))
        ours(gang, subject, folder, 64, 60)  # starts the workers

        def measure(width: int) -> float:
            found, first = ours(gang, subject, folder, width, steps)
            firsts.append(first)
            return found

        for width in (64, 1024):
            measures: dict[str, Callable[[], float]] = {
                "plain": lambda width=width: plain(folder, width, steps),  # type: ignore[misc]
                "ours": lambda width=width: measure(width),  # type: ignore[misc]
            }
            taken = alternate(measures, rounds)
            figures.append(ratio(f"steps/s at 2 workers, 784-{width}-10", taken["ours"], taken["plain"], 0.95))
        gang.close()
    first = statistics.median(firsts)
    return [*figures, Figure("first step of a warm gang", first, "s", 0.2, first, at_most=True)]


def loss_of_a_node(folder: Path) -> list[Figure]:
    """Seconds from a node's death to the next step with the worker left, and from a node's coming to a step with both."""
    from ray.cluster_utils import Cluster

    checks = {"initial_delay_ms": 500, "period_ms": 200, "timeout_ms": 500, "failure_threshold": 3}
    memory = {"object_store_memory": 80 * 2**20}
    head = {
        **memory,
        "num_cpus": 0,
        "include_dashboard": False,
        "_system_config": {f"health_check_{name}": value for name, value in checks.items()},
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(num_cpus=1, **memory)
        node = cluster.add_node(num_cpus=1, **memory)
        run = folder / "elastic"
        words = ["--method=nets:Net", "--dataset=nets:Data", "--steps=100000", "--checkpoint_every=50", f"--run={run}"]
        words += ["--hyperparameters={pause: 0.02}", "--workers=2", "--min_workers=1", f"--address={cluster.address}"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        words = [sys.executable, "-m", "jobs.train", *words]
        training = subprocess.Popen(words, cwd=folder, env=environment, **quiet)  # type: ignore[call-overload]
        try:
            _wait(run, lambda step, workers: step > 100)
            began = time.monotonic()
            os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
            _wait(run, lambda step, workers: workers == 1)
            shrunk = time.monotonic() - began
            began = time.monotonic()
            cluster.add_node(num_cpus=1, **memory)
            _wait(run, lambda step, workers: workers == 2)
            grown = time.monotonic() - began
        finally:
            training.terminate()
            training.wait(60)
    finally:
        cluster.shutdown()
    return [
        Figure("a node dies: training again", shrunk, "s", 40, shrunk, at_most=True),
        Figure("a node comes: training with it", grown, "s", None, grown, at_most=True),
    ]


def _wait(run: Path, reached: Callable[[int, int], bool]) -> None:
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        if (run / "run.json").exists():
            rows = Run(str(run)).read("training")
            if rows.num_rows and reached(rows["step"][-1].as_py(), rows["workers"][-1].as_py()):
                return
        time.sleep(0.1)
    raise TimeoutError("the training did not get there")


def main() -> None:
    """Measure and print."""
    quick = quick_asked(__doc__)
    with scratch_folder(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "nets.py").write_text(MODULE)
        (folder / "plain.py").write_text(PLAIN)
        lost = loss_of_a_node(folder)  # first: an embedded Ray sets switches that a cluster's nodes should not have
        figures = [*speed(folder, 1 if quick else 5, 300 if quick else 1000), *lost]
    notes = [
        "two workers on two cores, gloo; both sides train on the same rows, 64 a worker and step; the peer is "
        "pl.Trainer(devices=2, strategy='ddp') in two processes; the first 50 steps are left out",
        "the node is killed with SIGKILL to its raylet; health checks are tuned as docs/reliability.md says",
    ]
    show("Training on several workers", figures, notes)


if __name__ == "__main__":
    main()
