"""slurm.sh, with Slurm's commands played by small scripts and a real Ray of two nodes on this machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.store import Run
from tests.jobs.ray_head import clean_environment

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {
    # Everything runs here; what begins with -- is for Slurm.
    "srun": 'while [[ $1 == --* ]]; do shift; done\necho "$@" >> "$CALLS"\nexec "$@"\n',
    "scontrol": 'echo "scontrol $@" >> "$CALLS"\n[[ $1 == show ]] && printf "one\\ntwo\\n"\nexit 0\n',
}
SWEEP = [
    "sweep",
    "--dataset=GaussianSEM:n=400",
    "--methods=ERM",
    "--held_out=each",
    "--pack=1",
    "--checkpoint_every=100",
]


@pytest.fixture
def slurm(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in SCRIPTS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}")
        (folder / name).chmod(0o755)
    (tmp_path / "activate").write_text("")
    environment = clean_environment()
    environment |= {
        "PATH": f"{folder}:{environment['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "SHIFTLAB_ENVIRONMENT": str(tmp_path / "activate"),
        "SLURM_JOB_NODELIST": "[one,two]",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_CPUS_PER_TASK": "1",
    }

    def start(*words):
        return subprocess.Popen(
            ["bash", str(ROOT / "slurm.sh"), *words],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    processes = []
    yield lambda *words: processes.append(start(*words)) or processes[-1]
    for process in processes:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        process.wait()


def calls(tmp_path):
    return (tmp_path / "calls").read_text().splitlines()


def test_it_is_sound_and_tells_slurm_what_it_needs():
    subprocess.run(["bash", "-n", str(ROOT / "slurm.sh")], check=True)
    text = (ROOT / "slurm.sh").read_text()
    assert "#SBATCH --signal=B:TERM@120" in text
    assert "#SBATCH --requeue" in text
    assert "--dashboard-host=127.0.0.1" in text
    assert "RAY_AUTH_MODE=token" in text


@pytest.mark.slow
def test_a_sweep_runs_on_all_nodes_and_ray_goes_with_it(slurm, tmp_path):
    process = slurm(*SWEEP, "--draws=4", "--steps=100", f"--run={tmp_path}/run")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    statuses = Run(str(tmp_path / "run")).trial_status()
    assert list(statuses.values()) == ["completed"] * 16
    started = [call for call in calls(tmp_path) if call.startswith("ray start")]
    assert len(started) == 2
    assert "--head" in started[0]
    assert not any("requeue" in call for call in calls(tmp_path))
    deadline = time.monotonic() + 40
    while _listens(started[0]) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not _listens(started[0])


@pytest.mark.slow
def test_the_end_of_the_time_drains_and_queues_again(slurm, tmp_path):
    words = [*SWEEP, "--draws=50", "--steps=300", f"--run={tmp_path}/run"]
    process = slurm(*words)
    deadline = time.monotonic() + 150
    while _stored(tmp_path / "run") < 5:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)  # Slurm's, to the batch script alone
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 143, output
    assert "of 200 trials are stored; resume with" in output
    assert any(call.startswith("scontrol requeue") for call in calls(tmp_path))
    assert 5 <= _stored(tmp_path / "run") < 200
    assert {*Run(str(tmp_path / "run")).trial_status().values()} == {"completed"}


def _stored(run):
    return len(Run(str(run)).read("trials")) if (run / "run.json").exists() else 0


def _listens(command):
    port = next(word.split("=")[1] for word in command.split() if word.startswith("--port="))
    address = next(word.split("=")[1] for word in command.split() if word.startswith("--node-ip-address="))
    code = f"import socket; socket.create_connection(('{address}', {port}), 1)"
    return subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == 0
