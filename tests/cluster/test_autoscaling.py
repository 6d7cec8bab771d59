"""A sweep takes a real autoscaler from no worker to as many as it asks for, and leaves it to go back to none."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.store import Run
from tests.cluster.autoscaler import IDLE_S, autoscaled, run  # noqa: F401 - a fixture

ROOT = Path(__file__).resolve().parents[2]
WATCH = """
import json, sys, time
from cluster.session import connect
with connect(sys.argv[1]) as ray:
    while True:
        alive = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
        print(json.dumps([time.time(), len(alive), any(n["Resources"].get("GPU") for n in alive)]), flush=True)
        time.sleep(0.5)
"""
FEASIBLE = """
import json, sys
from cluster.errors import InputError
from cluster.feasibility import check_feasible, node_types
from cluster.session import connect
with connect(sys.argv[1]) as ray:
    found = {"types": node_types(ray)}
    for name, demand in {"cpu": {"CPU": 1}, "gpu": {"CPU": 1, "GPU": 2}, "many": {"CPU": 1, "GPU": 8}, "big": {"CPU": 64}}.items():
        try:
            check_feasible(ray, demand)
            found[name] = ""
        except InputError as error:
            found[name] = str(error)
    print(json.dumps(found))
"""


def sweep(cluster, run_folder, *more):
    words = [sys.executable, "-m", "jobs.sweep", "--dataset=GaussianSEM:n=400", "--methods=ERM", "--held_out=each"]
    words += ["--draws=15", "--steps=300", "--checkpoint_every=100", "--pack=1", f"--address={cluster.address}"]
    environment = cluster.environment | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*words, f"--run={run_folder}", *more],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=run_folder.parent,
    )


@pytest.mark.slow
def test_what_a_cluster_could_ever_run_is_told_from_what_it_could_not(autoscaled):  # noqa: F811
    found = json.loads(run(autoscaled, FEASIBLE, cwd=ROOT).splitlines()[-1])
    assert found["types"] == {"cpu": {"CPU": 1.0}, "gpu": {"CPU": 1.0, "GPU": 2.0}}
    assert found["cpu"] == found["gpu"] == ""  # of types that have no node yet
    assert found["many"] == (
        "gpus_per_worker: a worker needs 1 CPU and 8 GPU on one node, and no node type can ever hold that "
        "(cpu: 1 CPU; gpu: 1 CPU, 2 GPU); ask for less, or add such a type to cluster.yaml"
    )
    assert found["big"].startswith("cpus_per_worker: a worker needs 64 CPU on one node")


@pytest.mark.slow
def test_a_sweep_that_no_node_type_can_run_is_refused_before_it_starts(autoscaled, tmp_path):  # noqa: F811
    process = sweep(autoscaled, tmp_path / "run", "--workers=2", "--gpus_per_worker=8")
    _, error = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "gpus_per_worker: a worker needs 1 CPU and 8 GPU on one node" in error


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_workers_come_on_demand_and_go_when_idle(autoscaled, tmp_path):  # noqa: F811
    environment = autoscaled.environment | {"PYTHONPATH": str(ROOT)}
    watcher = subprocess.Popen(
        [sys.executable, "-c", WATCH, autoscaled.address], env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        _, before, _ = json.loads(watcher.stdout.readline())
        assert before == 0
        process = sweep(autoscaled, tmp_path / "run", "--workers=3")
        _, error = process.communicate(timeout=240)
        assert process.returncode == 0, error
        ended, counts = time.time(), []
        deadline = time.monotonic() + 120
        for line in watcher.stdout:
            moment, nodes, gpus = json.loads(line)
            counts.append(nodes)
            assert not gpus, "a node with GPUs was started for work that wants none"
            if moment > ended and nodes == 0:
                break
            assert time.monotonic() < deadline, f"nodes are left: {counts}"
        assert max(counts) == 3
        assert moment - ended < IDLE_S + 60
        statuses = Run(str(tmp_path / "run")).trial_status()
        assert set(statuses.values()) == {"completed"}
        assert len(statuses) == 60
    finally:
        watcher.kill()
        watcher.wait()
