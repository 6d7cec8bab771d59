"""`shiftlab train` on a real Ray of several nodes: a node dies, comes, is taken away in order, or computes wrongly."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.store import Run
from tests.cluster.fault_works import NETS
from tests.cluster.nodes import Nodes
from tests.jobs.test_train import metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# A bit of the loss flips in what is computed on one node: once, or in every step.
FLIPPING = (
    NETS
    + """
import os
import ray

class Flipping(Small):
    def __init__(self, lr: float = 1e-2, pause: float = 0.05, step: int = 0, marker: str = "", always: bool = False):
        super().__init__(lr, pause)
        self.step, self.marker, self.always, self.calls = step, marker, always, 0
    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        if self.trainer.global_step < self.step or os.path.exists(self.marker + ".done"):
            return loss
        node = ray.get_runtime_context().get_node_id()
        if not os.path.exists(self.marker) and self.global_rank == 0:  # its node is the bad one
            with open(self.marker + ".new", "w") as file:
                file.write(node)
            os.replace(self.marker + ".new", self.marker)
        if not os.path.exists(self.marker) or open(self.marker).read() != node:
            return loss
        self.calls += 1
        if not self.always and self.calls == 2:
            open(self.marker + ".done", "w").close()
        if not self.always and self.calls != 2:
            return loss
        bits = loss.detach().clone().view(torch.int32)
        bits ^= 1
        return loss + (bits.view(torch.float32) - loss.detach()) * sum(p.sum() for p in self.parameters())
"""
)


@pytest.fixture
def nodes():
    with Nodes(2) as found:
        yield found


@pytest.fixture
def start(nodes, tmp_path):
    (tmp_path / "nets.py").write_text(FLIPPING)
    processes = []

    def begin(*words, run="run", method="Small"):
        command = [sys.executable, "-m", "jobs.train", f"--method=nets:{method}", "--dataset=nets:Data"]
        command += ["--checkpoint_every=20", "--save_every=10", f"--address={nodes.address}", f"--run={tmp_path}/{run}"]
        processes.append(
            subprocess.Popen([*command, *words], cwd=tmp_path, env=nodes.environment, stderr=subprocess.PIPE, text=True)
        )
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def last(run):
    """(step, workers) of the latest row of the log."""
    if not (Path(run) / "run.json").exists():
        return 0, 0
    rows = Run(str(run)).read("training").sort_by("at")
    return (rows["step"][-1].as_py(), rows["workers"][-1].as_py()) if rows.num_rows else (0, 0)


def wait_until(reached, process):
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def events(run):
    return [row["kind"] for row in Run(str(run)).read("events").sort_by("at").to_pylist()]


def test_a_training_shrinks_when_a_node_dies_and_grows_when_one_comes(nodes, start, tmp_path):
    process = start("--steps=500", "--workers=2", "--min_workers=1")
    wait_until(lambda: last(tmp_path / "run")[0] > 60, process)
    began, reached = time.monotonic(), last(tmp_path / "run")[0]
    nodes.kill_node(0)
    wait_until(lambda: last(tmp_path / "run")[1] == 1, process)
    assert time.monotonic() - began < 40
    assert last(tmp_path / "run")[0] >= reached - 20
    nodes.add_node()
    wait_until(lambda: last(tmp_path / "run")[1] == 2, process)
    assert process.wait(120) == 0
    kinds = events(tmp_path / "run")
    assert kinds[0] in ("node_lost", "worker_lost")
    assert kinds.count("resized") == 2
    whole = start("--steps=500", "--workers=0", run="whole")
    assert whole.wait(120) == 0
    for key, value in metrics(tmp_path / "whole").items():
        assert metrics(tmp_path / "run")[key] == pytest.approx(value, abs=1e-5, rel=1e-5)


def test_a_training_leaves_a_node_that_is_taken_away_before_it_is_gone(nodes, start, tmp_path):
    process = start("--steps=300", "--workers=2", "--min_workers=1")
    wait_until(lambda: last(tmp_path / "run")[0] > 30, process)
    nodes.drain_node(0)
    wait_until(lambda: last(tmp_path / "run")[1] == 1, process)
    assert "node_draining" in events(tmp_path / "run")
    assert "node_lost" not in events(tmp_path / "run")
    assert process.wait(120) == 0
    log = Run(str(tmp_path / "run")).read("training").sort_by("at")["step"].to_pylist()
    assert log == sorted(log), "steps were lost though there was time to save them"


def test_a_node_that_errs_once_is_taken_out_of_service_and_its_step_taken_again(nodes, start, tmp_path):
    words = ["--steps=200", "--workers=2", "--min_workers=1", "--verify_every=10"]
    values = json.dumps({"step": 50, "marker": f"{tmp_path}/marker"})
    process = start(*words, f"--hyperparameters={values}", method="Flipping")
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    found = Run(str(tmp_path / "run")).read("events").sort_by("at").to_pylist()
    (corrupted,) = [row for row in found if row["kind"] == "corrupted"]
    assert corrupted["node"] == (tmp_path / "marker").read_text()
    assert corrupted["step"] == 50
    (rewound,) = [row for row in found if row["kind"] == "rewound"]
    assert rewound["step"] == 40
    assert "2 to 1 workers" in [row["detail"] for row in found]
    assert Path(tmp_path, "marker.done").exists()  # so nothing flips any more
    clean = start("--steps=200", "--workers=0", f"--hyperparameters={values}", run="clean", method="Flipping")
    assert clean.wait(100) == 0
    for key, value in metrics(tmp_path / "clean").items():
        assert metrics(tmp_path / "run")[key] == pytest.approx(value, abs=1e-5, rel=1e-5)
