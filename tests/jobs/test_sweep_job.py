"""A sweep as a job of a running Ray: plain progress in its log, its exit code, and a stop that leaves whole rows."""

import subprocess
import sys
import time
from pathlib import Path

from cluster.store import Run
from tests.jobs.ray_head import ROOT, ray_head

__all__ = ["ray_head"]

RAY = Path(sys.executable).with_name("ray")
WORDS = ["--config", "jobs/demo.yaml", "--dataset", "ColoredMNIST", "--steps", "6", "--checkpoint_every", "3"]


def job(head, *words, option=()):
    command = [RAY, "job", "submit", "--address", head.dashboard, "--working-dir", ".", *option, "--"]
    return subprocess.run(
        [*command, "python", "-m", "jobs.sweep", *WORDS, *words],
        cwd=ROOT,
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_a_sweep_runs_as_a_job_and_follows_its_log(ray_head, tmp_path):
    done = job(ray_head, "--methods", "ERM", "IRM", "--run", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "24/24 trials done, 0 running, 0 failed" in done.stdout
    assert "24 trials: 24 completed, 0 failed" in done.stdout
    assert "\x1b[" not in done.stdout.split("24/24")[0].splitlines()[-1]
    assert set(Run(str(tmp_path)).trial_status().values()) == {"completed"}


def test_a_job_with_failed_trials_fails_by_shiftlab_submit_too(ray_head, tmp_path):
    failing = [
        "--methods",
        "ERM",
        "--draws",
        "1",
        "--hyperparameters.lr",
        "1e30",
        "--retries",
        "0",
        "--run",
        str(tmp_path),
    ]
    words = ["submit", "--address", ray_head.dashboard, "--", "sweep", *WORDS, *failing]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *words],
        cwd=ROOT,
        env=ray_head.environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "6 trials: 0 completed, 6 failed" in done.stdout
    assert set(Run(str(tmp_path)).trial_status().values()) == {"failed"}


def test_job_stop_leaves_whole_rows(ray_head, tmp_path):
    started = job(ray_head, "--draws", "400", "--run", str(tmp_path), option=["--no-wait", "--submission-id", "long"])
    assert started.returncode == 0, started.stderr
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("trials/part-*.parquet")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    stop = [RAY, "job", "stop", "--address", ray_head.dashboard, "long"]
    subprocess.run(stop, env=ray_head.environment, check=True, capture_output=True, timeout=100)
    logs = [RAY, "job", "logs", "--address", ray_head.dashboard, "long"]
    text = subprocess.run(
        logs, env=ray_head.environment, check=True, capture_output=True, text=True, timeout=100
    ).stdout
    assert "of 12000 trials are stored; resume with" in text
    run = Run(str(tmp_path))
    trials, metrics = run.read("trials"), run.read("metrics")
    assert 0 < trials.num_rows < 12000
    assert metrics.num_rows == 24 * trials.num_rows
    assert not list((tmp_path / "_log").glob("*.arrow"))  # all of it sealed
