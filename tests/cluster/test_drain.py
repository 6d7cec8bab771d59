"""SIGTERM and the end of the hours: nothing new starts, what runs may end within the grace, and a second signal ends that."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from cluster.executor import execute
from cluster.plan import Settings
from cluster.signals import Interrupted, StopRequest
from cluster.store import Run
from cluster.trial import Trial
from tests.cluster import tasks
from tests.cluster.nodes import Nodes


def plan(seconds, count):
    return (Trial.create(f"sleep:{seconds}", "d", seed=seed) for seed in range(count))


def send(number=signal.SIGTERM, after=0.0):
    threading.Timer(after, os.kill, (os.getpid(), number)).start()


def send_once_started(folder, number=signal.SIGTERM):
    """Send a signal when a trial runs: on a busy machine workers take their time."""

    def wait():
        while not started(folder):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()


@pytest.fixture(params=["here", "ray"])
def ray(request):
    return request.getfixturevalue("ray_session") if request.param == "ray" else None


def started(folder):
    return len(list(folder.iterdir()))


def go_through(stop, ray, tmp_path, seconds=0.4, count=50):
    ended = []
    settings = Settings(workers=2 if ray else 0)
    for outcomes, _ in execute(
        plan(seconds, count), tasks.setup_scripted, [str(tmp_path)], settings=settings, stop=stop, ray=ray
    ):
        ended += outcomes
        if outcomes and stop.signal is None:
            send()
            time.sleep(0.1)
    return ended


def test_what_runs_ends_and_nothing_new_starts(ray, tmp_path):
    began = time.monotonic()
    with StopRequest(grace=30) as stop:
        ended = go_through(stop, ray, tmp_path)
        assert stop.draining
        assert not stop.requested
    assert time.monotonic() - began < 20
    assert stop.exit_code == 143
    assert 1 <= len(ended) == started(tmp_path) < 50  # none that was started is lost
    assert {outcome.status for outcome in ended} == {"completed"}


def test_what_outlives_the_grace_is_given_up(ray, tmp_path):
    began = time.monotonic()
    with StopRequest(grace=0.5) as stop:
        send_once_started(tmp_path)
        with pytest.raises(Interrupted) if ray is None else contextlib.nullcontext():
            list(
                execute(
                    plan(60, 5),
                    tasks.setup_scripted,
                    [str(tmp_path)],
                    settings=Settings(workers=2 if ray else 0),
                    stop=stop,
                    ray=ray,
                )
            )
        assert stop.requested
    assert time.monotonic() - began < 20


def test_without_grace_and_at_ctrl_c_everything_ends_at_once(ray, tmp_path):
    for grace, number in ((0.0, signal.SIGTERM), (30.0, signal.SIGINT)):
        began = time.monotonic()
        with StopRequest(grace=grace) as stop:
            send(number, after=1.0)
            with pytest.raises(Interrupted) if ray is None else contextlib.nullcontext():
                list(
                    execute(
                        plan(30, 5),
                        tasks.setup_scripted,
                        [str(tmp_path)],
                        settings=Settings(workers=2 if ray else 0),
                        stop=stop,
                        ray=ray,
                    )
                )
        assert time.monotonic() - began < 15


def test_a_second_signal_does_not_wait_for_the_grace():
    with StopRequest(grace=60) as stop:
        send()
        time.sleep(0.2)
        assert stop.draining
        assert not stop.requested
        with pytest.raises(Interrupted):
            send()
            time.sleep(5)
        assert stop.requested


def test_the_hours_end_like_a_signal(ray, tmp_path):
    with StopRequest(grace=30, hours=1.5 / 3600) as stop:
        ended = []
        for outcomes, _ in execute(
            plan(0.3, 100),
            tasks.setup_scripted,
            [str(tmp_path)],
            settings=Settings(workers=2 if ray else 0),
            stop=stop,
            ray=ray,
        ):
            ended += outcomes
    assert stop.signal is None
    assert stop.draining
    assert len(ended) == started(tmp_path) < 100


def test_no_work_is_given_to_a_node_that_is_being_drained(ray_session, tmp_path, monkeypatch):
    """Ray's word for it is planted: one node cannot be drained without ending the session's cluster."""
    notes, draining = [], {}
    monkeypatch.setattr("ray._private.state.state.get_draining_nodes", lambda: draining)
    stop, ended = StopRequest(), []
    for outcomes, _ in execute(
        plan(0.2, 30),
        tasks.setup_scripted,
        [str(tmp_path)],
        settings=Settings(workers=2),
        stop=stop,
        ray=ray_session,
        note=lambda event: (notes.append(event), draining.clear()),
    ):
        ended += outcomes
        if len(ended) == 4 and not notes:
            (node,) = (info["NodeID"] for info in ray_session.nodes() if info["Alive"])
            draining[node] = 0
    assert len(ended) == 30
    assert {outcome.attempts for outcome in ended} == {1}
    assert {event.kind for event in notes} == {"node_draining"}


SWEEP = ["--dataset=GaussianSEM:n=400", "--methods=ERM", "--held_out=each", "--draws=15", "--steps=300", "--pack=1"]


@pytest.mark.slow
def test_a_sweep_leaves_a_node_that_is_being_taken_away_and_loses_no_trial(tmp_path):
    with Nodes(3) as nodes:
        words = [
            sys.executable,
            "-m",
            "jobs.sweep",
            *SWEEP,
            "--workers=2",
            f"--address={nodes.address}",
            f"--run={tmp_path}/run",
        ]
        process = subprocess.Popen(
            words, env=nodes.environment, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            deadline = time.monotonic() + 100
            while not (tmp_path / "run/run.json").exists() or len(Run(f"{tmp_path}/run").read("trials")) < 5:
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            busy = next(number for number, found in nodes.workers().items() if found)
            nodes.drain_node(busy)
            assert process.wait(120) == 0
        finally:
            process.kill()
            process.wait()
    trials = Run(f"{tmp_path}/run").read("trials").to_pylist()
    assert len(trials) == 60
    assert {(row["status"], row["attempts"]) for row in trials} == {("completed", 1)}
    events = Run(f"{tmp_path}/run").read("events").to_pylist()
    assert {row["kind"] for row in events} == {"node_draining"}
