"""`shiftlab train`: the same curve on one and two workers, resumed after kills, paused, verified, logged; bad input."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from cluster.store import Run
from cluster.training.gang import Gang, GangSettings
from jobs.train import main as train
from jobs.training import LongOptions, setup_rank
from tests.cluster.test_gang import Desk

# Two workers round sums of float32 in another order than one does. After 20 steps of Adam metrics still agree to 1e-6.
TOLERANCE = 1e-6

NETS = '''
import os
import time
from pathlib import Path
import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Small(pl.LightningModule):
    def __init__(self, lr: float = 1e-2, dropout: float = 0.0, pause: float = 0.0, flip: str = ""):
        super().__init__()
        self.lr, self.pause, self.flip, self.calls = lr, pause, flip, 0
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 2))
    def training_step(self, batch, _):
        time.sleep(self.pause)
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss + self.corrupted(loss)
    def corrupted(self, loss):
        """A bit flips once, in the way that `flip` says: at which rank's which call at which step."""
        if not self.flip:
            return 0.0
        rank, step, call, marker = self.flip.split(",")
        if self.trainer.global_step != int(step) or self.global_rank != int(rank) or os.path.exists(marker):
            return 0.0
        self.calls += 1
        if self.calls != int(call):
            return 0.0
        Path(marker).touch()
        bits = loss.detach().clone().view(torch.int32)
        bits ^= 1
        return (bits.view(torch.float32) - loss.detach()) * sum(p.sum() for p in self.parameters())
    def validation_step(self, batch, _):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.9), "interval": "epoch"}]

class Data(pl.LightningDataModule):
    def setup(self, stage=None):
        x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
        y = (x[:, 0] * x[:, 1] > 0).long()
        self.fit, self.val = TensorDataset(x[:310], y[:310]), TensorDataset(x[310:], y[310:])
    def train_dataloader(self):
        return DataLoader(self.fit, batch_size=25, shuffle=True)
    def val_dataloader(self):
        return DataLoader(self.val, batch_size=64)
'''
MODULE = ["--method=nets:Small", "--dataset=nets:Data", "--steps=40", "--checkpoint_every=7"]
METHOD = ["--method=VREx", "--dataset=ColoredMNIST", "--steps=20", "--checkpoint_every=5"]


@pytest.fixture
def nets(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("nets", None)


def metrics(run):
    rows = Run(str(run)).read("metrics").to_pylist()
    return {(r["step"], r["environment"], r["split"], r["metric"]): r["value"] for r in rows}


def steps_kept(run):
    (index,) = Path(run, "checkpoints").glob("*/index.json")
    return [entry["step"] for entry in json.loads(index.read_text())]


def launch(words, **more):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "jobs.train", *words]
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more)


def wait_for_step(run, step):
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if list(Path(run).glob("checkpoints/*/index.json")) and steps_kept(run)[-1] >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not saved")


@pytest.mark.parametrize("words", [MODULE, METHOD], ids=["module", "method"])
def test_two_workers_learn_what_one_process_does(words, nets, ray_session, capsys):
    assert train([*words, "--run=one"]) == 0
    assert train([*words, "--run=two", "--workers=2", "--verify_every=8"]) == 0
    one, two = metrics("one"), metrics("two")
    assert one.keys() == two.keys()
    assert max(step for step, *_ in one) == int(words[2].split("=")[1])
    for key, value in one.items():
        assert two[key] == pytest.approx(value, abs=TOLERANCE, rel=TOLERANCE), key
    (first,), (second,) = (Run(run).read("trials").to_pylist() for run in ("one", "two"))
    assert first["trial_id"] == second["trial_id"]
    log = Run("two").read("training").to_pylist()
    assert {row["workers"] for row in log} == {2}
    assert {"loss", "steps_per_second"} <= {row["metric"] for row in log}
    (index,) = Path("two/checkpoints").glob("*/index.json")
    assert json.loads(index.read_text())[-1]["verified"]  # the last step is always checked
    weights = [
        torch.load(next(Path(run, "models").iterdir()), weights_only=True)["state_dict"] for run in ("one", "two")
    ]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-4, rtol=1e-4)


def test_a_training_that_is_killed_and_stopped_goes_on_to_the_last_bit(nets, capsys):
    words = [*MODULE, "--hyperparameters={dropout: 0.3, pause: 0.05}", "--save_every=5"]
    assert train([*words, "--run=whole"]) == 0
    process = launch([*words, "--run=cut"])
    wait_for_step("cut", 10)
    process.kill()
    process.communicate()
    process = launch([*words, "--run=cut"])
    wait_for_step("cut", 20)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    step = int(re.search(r"stopped: saved at step (\d+) of 40; resume with", said)[1])
    assert step == steps_kept("cut")[-1]
    assert "going on from step" in said
    assert train([*words, "--run=cut"]) == 0
    assert metrics("cut") == metrics("whole")
    states = [
        torch.load(next(Path(run, "models").iterdir()), weights_only=True)["state_dict"] for run in ("whole", "cut")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    capsys.readouterr()
    assert train([*words, "--run=cut"]) == 0
    assert "trained before: nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("words", [MODULE, METHOD], ids=["module", "method"])
def test_a_training_that_was_killed_between_its_last_step_and_its_row_is_finished(words, nets, capsys):
    assert train([*words, "--run=run"]) == 0
    before, (path,) = metrics("run"), Path("run/models").iterdir()
    weights = torch.load(path, weights_only=True)["state_dict"]
    for folder in ("trials", "metrics", "models"):
        shutil.rmtree(Path("run", folder))
    assert train([*words, "--run=run"]) == 0
    assert "0 steps in" in capsys.readouterr().out
    assert metrics("run") == before
    again = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(again[name], value) for name, value in weights.items())


@pytest.mark.parametrize(("flip", "blamed"), [("0,8,2", 0), ("1,8,2", 1), ("1,8,1", 1)])
def test_a_flipped_bit_is_found_and_the_right_worker_blamed(nets, ray_session, flip, blamed):
    """Call 1 at a checked step computes the neighbour's part, call 2 the worker's own."""
    from jobs.subjects import find_subject

    subject = find_subject("nets:Small", "nets:Data", 64)
    shared = (subject.setup, LongOptions(save_every=3, verify_every=4), *subject.shared)
    gang = Gang(ray_session, setup_rank, shared, GangSettings(2, 2))
    judged = []
    gang._quarantine = lambda this, ended, handler: (
        judged.append(ended.suspects),
        Gang._quarantine(gang, this, ended, handler),
    )
    budget = {"steps": 20, "checkpoint_every": 5}
    desk = Desk()
    try:
        trial = subject.trial({"flip": f"{flip},{nets}/flipped"}, (), 0, budget)
        gang.train(trial, desk, lambda: bool(desk.events))
    finally:
        gang.close()
    assert Path(nets, "flipped").exists()
    assert judged == [(blamed,)]  # both are on one node here, so the event does not tell
    ((kind, step, node, detail),) = desk.events
    assert (kind, step, desk.rewound) == ("corrupted", 8, 1)
    assert "a gradient differed" in detail
    assert "is taken out of service" in detail
    assert [m.step for m, _ in desk.messages if m.kind == "verified"] == [1, 5]


def test_workers_on_one_machine_meet_on_the_loopback_alone(nets):
    process = launch([*MODULE, "--run=run", "--workers=2", "--hyperparameters={pause: 0.2}"])
    try:
        wait_for_step("run", 7)
        everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        ranks = [p for p in everyone if p.name().startswith("ray::Rank")]
        assert len(ranks) == 2
        listening = [
            (p.name(), c.laddr.ip.removeprefix("::ffff:"))
            for p in everyone
            for c in p.net_connections(kind="inet")
            if c.status == psutil.CONN_LISTEN
        ]
        assert {ip for _, ip in listening} == {"127.0.0.1"}, listening
    finally:
        process.kill()
        process.communicate()


def test_loggers_write_files_beside_the_tables(nets, monkeypatch):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    names = ["tensorboard", *(name for name in ("wandb", "mlflow") if importlib.util.find_spec(name))]
    assert train([*MODULE, "--run=run", f"--logger={names}"]) == 0
    (trial_id,) = (r["trial_id"] for r in Run("run").read("trials").to_pylist())
    log = event_accumulator.EventAccumulator(f"run/logs/{trial_id}")
    log.Reload()
    seen = {(scalar.step, round(scalar.value, 5)) for scalar in log.Scalars("val_loss/all/out")}
    stored = metrics("run")
    assert seen == {(key[0], round(value, 5)) for key, value in stored.items() if key[3] == "val_loss"}
    if "mlflow" in names:
        import mlflow

        client = mlflow.tracking.MlflowClient("sqlite:///run/logs/mlflow.db")
        (logged,) = client.search_runs([client.get_experiment_by_name("shiftlab").experiment_id])
        history = client.get_metric_history(logged.info.run_id, "val_loss/all/out")
        assert {(point.step, round(point.value, 5)) for point in history} == seen
        assert logged.data.params["lr"] == "0.01"
    if "wandb" in names:
        assert list(Path("run/logs/wandb").glob("offline-run-*/*.wandb"))


def test_the_best_checkpoint_is_best_by_what_is_monitored(nets, capsys):
    assert train([*MODULE, "--run=run", "--monitor=val_loss:min", "--hyperparameters={lr: 0.3}"]) == 0
    values = {step: value for (step, _, _, metric), value in metrics("run").items() if metric == "val_loss"}
    best = min(values, key=values.get)
    path = re.search(r"best checkpoint: (.*)", capsys.readouterr().out)[1]
    assert f"step-{best:09d}" in path
    assert torch.load(path, weights_only=True)["global_step"] == best


def test_the_hours_end_a_training_in_order(nets, capsys):
    words = [*MODULE, "--run=run", "--hyperparameters={pause: 0.05}"]
    assert train([*words, f"--max_hours={1 / 3600}"]) == 1
    said = capsys.readouterr().err
    step = int(
        re.search(r"stopped after 0.000277778 h \(--max_hours\): saved at step (\d+) of 40; resume with", said)[1]
    )
    assert 0 < step == steps_kept("run")[-1] < 40
    assert train(words) == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ray_train_learns_the_same_and_starts_lost_workers_again(nets):
    words = [
        *MODULE,
        "--run=two",
        "--workers=2",
        "--engine=ray_train",
        "--save_every=5",
        "--hyperparameters={pause: 0.1}",
    ]
    assert train([*MODULE, "--run=one", "--hyperparameters={pause: 0.1}"]) == 0
    process = launch(words)
    wait_for_step("two", 10)
    worker = next(
        p for p in psutil.Process(process.pid).children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())
    )
    worker.kill()
    _, said = process.communicate(timeout=250)
    assert process.returncode == 0, said
    one = metrics_of("one", "two")
    for key, value in metrics("two").items():
        assert one[key] == pytest.approx(value, abs=TOLERANCE, rel=TOLERANCE), key
    assert "worker_lost" in [row["kind"] for row in Run("two").read("events").to_pylist()]


def metrics_of(run, other):
    """A run's metrics of the trial that another run holds."""
    (trial_id,) = Run(other).trial_status()
    rows = [r for r in Run(run).read("metrics").to_pylist() if r["trial_id"] == trial_id]
    return {(r["step"], r["environment"], r["split"], r["metric"]): r["value"] for r in rows}


def test_a_failure_is_stored_and_tried_again_when_asked(nets, capsys):
    words = [*MODULE, "--run=run", "--hyperparameters={lr: 1e30}", "--retries=0"]
    assert train(words) == 1
    (row,) = Run("run").read("trials").to_pylist()
    assert row["status"] == "failed"
    assert "FloatingPointError" in row["error"]
    assert train(words) == 1
    assert "run the same command with --retry_failed true" in capsys.readouterr().err
    assert Run("run").read("trials").to_pylist()[0]["started_at"] == row["started_at"]
    assert train([*words, "--retry_failed=true"]) == 1
    assert Run("run").read("trials").to_pylist()[0]["started_at"] > row["started_at"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers=2", "--min_workers=3"], "min_workers: 3 is more than --workers 2; give fewer"),
        (["--verify_every=5"], "verify_every: one worker has nobody to compare with; give --workers 2 or more"),
        (
            ["--workers=2", "--verify_every=5", "--strategy=fsdp"],
            "verify_every: with fsdp no two workers compute the same",
        ),
        (["--strategy=zero"], "strategy: unknown strategy 'zero'; choose from ddp, fsdp"),
        (["--precision=8"], "precision: unknown precision '8'; choose from 32-true"),
        (["--engine=horovod"], "engine: unknown engine 'horovod'; choose from gang, ray_train"),
        (["--logger=[excel]"], "logger: unknown logger 'excel'; choose from tensorboard, mlflow, wandb"),
        (["--keep=0"], "keep: 0 is too small; give 1 or more"),
        (["--save_every=0"], "save_every: 0 is not above 0"),
        (["--monitor=val_loss"], "objective: 'val_loss' has no direction"),
        (["--monitor=nothing:min"], "monitor: nothing:min is not measured; the module logs train_loss, val_loss"),
    ],
)
def test_bad_input_is_one_line(nets, capsys, words, message):
    assert train([*MODULE, "--run=run", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error


def test_gpus_that_this_machine_lacks_are_refused_not_waited_for(nets, ray_session, capsys):
    assert train([*MODULE, "--run=run", "--workers=2", "--gpus_per_worker=99"]) == 2
    assert "gpus_per_worker: 2 workers of 99 are asked for, this machine has" in capsys.readouterr().err


def test_a_method_is_not_sharded_and_a_batch_not_smaller_than_the_workers(nets, ray_session, capsys):
    assert train([*METHOD, "--run=run", "--workers=2", "--strategy=fsdp"]) == 2
    assert "strategy: VREx trains networks that every GPU holds whole; use --strategy ddp" in capsys.readouterr().err
