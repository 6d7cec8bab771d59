"""The works of the fault matrix: how each is started, how far it is, and what of it must be equal to an undisturbed run."""

import json
import math
import subprocess
import sys
from dataclasses import dataclass

import pytest

from cluster.store import Run
from tuning.tables import SUGGESTIONS

DATA = "GaussianSEM:n=400"
NETS = """
import time
import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Small(pl.LightningModule):
    def __init__(self, lr: float = 1e-2, pause: float = 0.05):
        super().__init__()
        self.lr, self.pause = lr, pause
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    def training_step(self, batch, _):
        time.sleep(self.pause)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])
    def validation_step(self, batch, _):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)

class Data(pl.LightningDataModule):
    def setup(self, stage=None):
        x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
        y = (x[:, 0] * x[:, 1] > 0).long()
        self.fit, self.val = TensorDataset(x[:300], y[:300]), TensorDataset(x[300:], y[300:])
    def train_dataloader(self):
        return DataLoader(self.fit, batch_size=20, shuffle=True)
    def val_dataloader(self):
        return DataLoader(self.val, batch_size=50)
"""


@dataclass(frozen=True)
class Work:
    """A kind of work.

    Args:
        name: of it.
        words: module and options of its command, without --run, --workers and --address.
        trials: rows that its table `trials` must have in the end.
        total: what `done` counts up to.
    """

    name: str
    words: tuple[str, ...]
    trials: int
    total: int

    def prepare(self, folder):
        """Make what the command needs."""

    def done(self, run):
        """How much of it is stored."""
        return _count(run, "trials")

    def results(self, run):
        """What must be equal: every number that was measured, by what it was measured of."""
        rows = run.read("metrics").to_pylist()
        return {(r["trial_id"], r["step"], r["environment"], r["split"], r["metric"]): r["value"] for r in rows}

    def compare(self, run, found, reference):
        """Hold results against those of an undisturbed run, to the last bit."""
        assert_equal(found, reference)


class Certification(Work):
    """Radii of a small classifier, an example a trial."""

    def prepare(self, folder):
        words = [
            sys.executable,
            "-m",
            "jobs.certify.train",
            "--data=Digits",
            "--sigma=0.5",
            "--epochs=1",
            "--out=digits.ckpt",
        ]
        if not (folder / "digits.ckpt").exists():
            subprocess.run(words, cwd=folder, check=True, capture_output=True, env=_environment())

    def results(self, run):
        rows = run.read("certificates").to_pylist()
        return {row["trial_id"]: {k: v for k, v in row.items() if k != "seconds"} for row in rows}


class Study(Work):
    """A search; what it suggests depends on the order in which trials end, what a suggestion is worth does not."""

    def results(self, run):
        rows = [row for row in run.read("suggestions", SUGGESTIONS).to_pylist() if row["state"] == "complete"]
        return {row["number"]: (row["parameters"], row["values"], row["trial_ids"]) for row in rows}

    def compare(self, run, found, reference):
        """Numbers 0..N-1, each once, and each trial's measurements and value as computed anew."""
        if sorted(found) != sorted(reference) or sorted(found) != list(range(self.trials)):
            raise AssertionError(f"suggestions {sorted(found)}")
        stored = super().results(run)
        expected = recompute(run.read("trials").to_pylist())
        assert_equal(stored, expected)
        for number, (_, values, (trial_id,)) in found.items():
            scores = {}
            for (trial, step, environment, split, metric), value in stored.items():
                if (trial, split, metric) == (trial_id, "out", "accuracy") and environment != HELD_OUT:
                    scores.setdefault(step, []).append(value)
            best = max(math.fsum(some) / len(some) for some in scores.values())
            if values != [pytest.approx(best)]:
                raise AssertionError(f"suggestion {number} has the value {values}, its measurements give {best}")


class Training(Work):
    """One training; how many workers rounded its sums shows in the last digits."""

    def prepare(self, folder):
        (folder / "nets.py").write_text(NETS)

    def done(self, run):
        try:
            steps = Run(run).read("training")["step"].to_pylist()
        except Exception:  # it has not begun
            return 0
        return max(steps, default=0)

    def results(self, run):
        rows = run.read("metrics").to_pylist()
        return {(r["step"], r["metric"]): r["value"] for r in rows}

    def compare(self, run, found, reference):
        if found.keys() != reference.keys():
            raise AssertionError(f"evaluations at {sorted(found)}, expected {sorted(reference)}")
        for key, value in reference.items():
            if found[key] != pytest.approx(value, abs=1e-5, rel=1e-5):
                raise AssertionError(f"{key} is {found[key]}, undisturbed {value}")


HELD_OUT = "flipped"
_BUDGET = ("--steps=60", "--checkpoint_every=20")
WORKS = {
    work.name: work
    for work in (
        Work(
            "sweep",
            *(
                (
                    "jobs.sweep",
                    f"--dataset={DATA}",
                    "--methods=[ERM,IRM]",
                    "--held_out=[each]",
                    "--draws=25",
                    "--pack=1",
                    *_BUDGET,
                ),
            ),
            trials=200,
            total=200,
        ),
        Study(
            "study",
            (
                "jobs.tune",
                "--method=IRM",
                f"--dataset={DATA}",
                f"--held_out=[{HELD_OUT}]",
                "--trials=60",
                "--sampler=random",
            )
            + ("--pruner=none", "--steps=150", "--checkpoint_every=50"),
            trials=60,
            total=60,
        ),
        Certification(
            "certify",
            (
                "jobs.certify.smoothing",
                "--model=digits.ckpt",
                "--data=Digits",
                "--sigma=[0.5]",
                "--limit=80",
                "--n=40000",
            )
            + ("--pack=1",),
            trials=80,
            total=80,
        ),
        Training(
            "train",
            ("jobs.train", "--method=nets:Small", "--dataset=nets:Data", "--steps=200", "--checkpoint_every=20")
            + ("--save_every=10", "--min_workers=1"),
            trials=1,
            total=200,
        ),
    )
}


def assert_equal(found, expected):
    """Raise where two mappings are not equal to the last bit, naming the first difference."""
    if missing := expected.keys() - found.keys():
        raise AssertionError(f"{len(missing)} results are missing, e.g. {next(iter(missing))}")
    if more := found.keys() - expected.keys():
        raise AssertionError(f"{len(more)} results too many, e.g. {next(iter(more))}")
    for key, value in expected.items():
        if found[key] != value:
            raise AssertionError(f"{key} is {found[key]}, undisturbed {value}")


def recompute(rows):
    """Train the trials of such rows again, in this process; returns their metrics by key."""
    from cluster.trial import Trial
    from jobs.training import setup
    from lightning_modules.data.catalog import load_dataset

    dataset = load_dataset(DATA)
    task, metrics = setup(1, {dataset.identity: dataset}), {}
    for row in rows:
        trial = Trial.create(
            row["method"],
            row["dataset"],
            row["held_out"],
            json.loads(row["hyperparameters"]),
            row["seed"],
            json.loads(row["budget"]),
        )
        assert trial.trial_id == row["trial_id"]
        for step, environment, split, metric, value in task(trial)["metrics"]:
            metrics[trial.trial_id, step, environment, split, metric] = value
    return metrics


def _count(run, table):
    try:
        return len(Run(run).read(table))
    except Exception:  # it has not begun
        return 0


def _environment():
    import os

    from tests.cluster.nodes import ROOT

    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return clean | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
