"""Submitting jobs to a real head: the log arrives, the exit code is the job's, and what stays behind stays behind."""

import importlib
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.errors import InputError
from jobs import submit
from jobs.cli import COMMANDS
from tests.jobs.ray_head import ROOT, clean_environment, ray_head

__all__ = ["ray_head"]

# Imports this repository's submit whatever the folder that is to travel holds. A test run in the background of a shell ignores
# Ctrl-C, and so would what it starts.
LAUNCHER = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.path.insert(0, sys.argv.pop(1)); from jobs.submit import main; "
    "os.chdir(sys.argv.pop(1)); sys.exit(main(sys.argv[1:]))"
)

# Stands in for a command: says what the job sees, sleeps as told and exits as told.
PROBE = """
import os, sys, time
for folder, _, names in os.walk("."):
    for name in names:
        print("sees", os.path.join(folder, name)[2:])
print("arguments", sys.argv[1:], flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def project(tmp_path):
    """A folder with a package `jobs`, whose `query` is the probe, and with things that should stay behind."""
    for name, text in {
        "jobs/__init__.py": "",
        "jobs/query.py": PROBE,
        "conf/sweep.yaml": "run: /data/run\n",
        "conf/relative.yaml": "run: runs/first\n",
        ".gitignore": "secret.txt\n",
        "secret.txt": "token",
        ".venv/lib/big.py": "x" * 1000,
        "venv/lib/big.py": "x" * 1000,
        ".git/objects/pack": "x" * 1000,
        ".pytest_cache/v": "x",
        "jobs/__pycache__/query.pyc": "x",
        "shiftlab.egg-info/PKG-INFO": "x",
        "runs/first/part.parquet": "x" * 30_000_000,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def start(folder, words, environment):
    command = [sys.executable, "-c", LAUNCHER, str(ROOT), str(folder), *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(process, timeout=90):
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err


def test_a_job_runs_in_a_copy_without_what_should_stay_behind_and_its_exit_code_comes_back(ray_head, project):
    arguments = ["0", "7", "two words; echo $HOME", "--config", str(project / "conf" / "sweep.yaml")]
    words = ["--address", ray_head.dashboard, "--submission_id", "probe", "--", "query", *arguments]
    environment = ray_head.environment | {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}  # --address wins
    code, out, err = outcome(start(project, words, environment))
    assert code == 7, out + err
    assert sorted(re.findall(r"^sees (.*)$", out, re.MULTILINE)) == [
        ".gitignore",
        "conf/relative.yaml",
        "conf/sweep.yaml",
        "jobs/__init__.py",
        "jobs/query.py",
    ]
    assert "arguments ['0', '7', 'two words; echo $HOME', '--config', 'conf/sweep.yaml']" in out
    assert err == "job probe failed with exit code 7\n"

    code, out, err = outcome(start(project, words, ray_head.environment))
    assert code == 2
    assert err.startswith(
        "shiftlab submit: error: submission_id: 'probe' was used before in this cluster; choose another"
    )
    assert err.count("\n") == 1


def test_a_real_command_runs_from_this_repository_and_ends_well(ray_head, tmp_path):
    process = start(ROOT, ["--", "doctor", "--skip_ray", "--run", str(tmp_path)], ray_head.environment)
    code, out, err = outcome(process)
    assert code == 0, out + err
    assert re.search(r"^ok +python ", out, re.MULTILINE), out
    assert re.fullmatch(r"job \S+ succeeded", out.splitlines()[-1])
    assert err == ""


def test_ctrl_c_stops_following_not_the_job(ray_head, project):
    words = ["--submission_id", "long", "--", "query", "60", "0"]
    process = start(project, words, ray_head.environment)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("arguments"):
            break
    process.send_signal(signal.SIGINT)
    code, _, err = outcome(process, timeout=60)
    assert code == 130
    assert "job long keeps running" in err
    assert f"ray job logs long --follow --address {ray_head.dashboard}" in err
    assert f"ray job stop long --address {ray_head.dashboard}" in err

    def ray(*words):
        command = [Path(sys.executable).with_name("ray"), "job", *words, "long", "--address", ray_head.dashboard]
        return subprocess.run(command, env=ray_head.environment, capture_output=True, text=True, timeout=60)

    status = ray("status")
    assert "RUNNING" in status.stdout + status.stderr
    assert ray("stop").returncode == 0


@pytest.mark.parametrize(
    ("end", "code", "line"),
    [
        ({"status": "STOPPED", "message": "Job was\nstopped."}, 1, "job j stopped: Job was stopped.\n"),
        ({"status": "FAILED", "message": "No such\n image"}, 1, "job j failed: No such image\n"),
        ({"status": "FAILED", "driver_exit_code": -15}, 143, "job j failed with exit code -15\n"),
        (
            {"status": "FAILED", "driver_exit_code": 1, "message": "python: No module named jobs"},
            1,
            "job j failed with exit code 1\n"
            "the head's `python` lacks shiftlab: activate its environment before `ray start`\n",
        ),
    ],
)
def test_every_way_a_job_can_end_has_its_exit_code_and_line(capsys, end, code, line):
    from ray.job_submission import JobDetails

    assert submit._report("j", JobDetails(type="SUBMISSION", entrypoint="x", **end)) == code
    assert capsys.readouterr().err == line


def test_the_access_token_is_asked_for_in_one_line(ray_head, project):
    words = ["--address", ray_head.dashboard, "--", "query"]
    wrong = ray_head.environment | {"RAY_AUTH_TOKEN": "0123456789abcdef"}
    mends = {"set RAY_AUTH_MODE=token": clean_environment(), "check the token": wrong}
    running = {mend: start(project, words, environment) for mend, environment in mends.items()}
    for mend, process in running.items():
        code, _, err = outcome(process)
        assert code == 2
        assert f"the Ray cluster at '{ray_head.dashboard}' wants its access token; {mend}" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_joining_the_head_itself_works_with_its_token_and_says_so_without(ray_head, scheme):
    address = scheme + (ray_head.client if scheme else ray_head.address)
    code = (
        f"from cluster.session import connect\nwith connect({address!r}) as ray: print(ray.cluster_resources()['CPU'])"
    )
    wrong = ray_head.environment | {"RAY_AUTH_TOKEN": "0123456789abcdef"}
    environments = {"": ray_head.environment, "set RAY_AUTH_MODE=token": clean_environment(), "check the token": wrong}
    if (
        scheme
    ):  # Ray's own client server starts a process for each client, too slowly on a busy machine to wait for here
        del environments[""]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for mend, process in {
        mend: subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes)
        for mend, environment in environments.items()
    }.items():
        _, out, err = outcome(process)
        if mend:
            wants = f"InputError: address: the Ray cluster at '{address}' wants its access token; {mend}"
            assert wants in err.splitlines()[-1]
        else:
            assert out == "2.0\n", err


def test_an_address_where_no_dashboard_answers_is_refused_in_seconds(ray_head, project, monkeypatch):
    monkeypatch.chdir(project)
    silent = socket.create_server(("127.0.0.1", 0))  # accepts, and never says a word
    for address, words in {
        "http://127.0.0.1:9": "nothing answers at 'http://127.0.0.1:9' (Connection refused); start a head with `ray start",
        f"http://{ray_head.address}": "is no Ray dashboard; give http://HOST:PORT",
        f"http://127.0.0.1:{silent.getsockname()[1]}": "is no Ray dashboard",
        "auto": "'auto' is not a dashboard's; give http://HOST:8265",
        "127.0.0.1:8265": "is not a dashboard's",
        "http://host:port": "is not a dashboard's",
        "http://no-such-host.invalid:8265": "nothing answers at",
    }.items():
        began = time.monotonic()
        with pytest.raises(InputError, match=re.escape(words)) as caught:
            submit.run(submit.Submit(["query"], address))
        assert "\n" not in str(caught.value)
        assert time.monotonic() - began < 15
    silent.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "command: write it after --"),
        (["--", "qery"], "unknown command 'qery'; did you mean 'query'?"),
        (
            ["--", "zzz"],
            "unknown command 'zzz'; the commands are sweep, tune, train, reproduce, certify, bound, shifts",
        ),
        (["query"], "unknown option 'query'"),
        (["--", "sweep", "--config", "absent.yaml"], "config: there is no file 'absent.yaml'"),
        (["--", "sweep", "--config"], "config: there is no file ''"),
        (["--", "sweep", "--config=../outside.yaml"], "config: '../outside.yaml' lies outside"),
        (
            ["--", "sweep", "--config", "runs/kept.yaml"],
            "config: 'runs/kept.yaml' lies in runs/, which does not travel",
        ),
        (["--", "sweep", "--config", "conf/relative.yaml"], "run: 'runs/first' would be written into the job's copy"),
        (
            ["--", "sweep", "--config", "conf/sweep.yaml", "--run", "here"],
            "run: 'here' would be written into the job's",
        ),
        (
            ["--", "sweep", "--run", "/data", "--config", "conf/relative.yaml"],
            "run: 'runs/first' would be written into",
        ),
        (["--", "reproduce", "dare"], "run: reproduce would write to runs/ in the job's copy of this folder"),
        (["--", "sweep", "--run=here"], "run: 'here' would be written into the job's copy"),
        (["--entrypoint_num_cpus", "-1", "--", "query"], "entrypoint_num_cpus: -1.0 is too small"),
    ],
)
def test_what_cannot_work_is_said_before_anything_travels(project, monkeypatch, capsys, words, message):
    (project.parent / "outside.yaml").write_text("run: /data\n")
    (project / "runs" / "kept.yaml").write_text("run: /data\n")
    monkeypatch.chdir(project)
    assert submit.main(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_run_on_an_absolute_path_or_in_a_bucket_passes_and_the_line_is_quoted(project, monkeypatch):
    monkeypatch.chdir(project)
    words = ["sweep", "--config=conf/relative.yaml", "--run", "s3://bucket/a b", "x;y", ""]
    assert (
        submit._entrypoint(words) == "python -m jobs.sweep --config conf/relative.yaml --run 's3://bucket/a b' 'x;y' ''"
    )


def test_every_command_is_a_module_that_can_be_submitted(project, monkeypatch):
    monkeypatch.chdir(project)
    for name in COMMANDS:
        module = submit._entrypoint([name, "--run", "/data"]).split()[2]
        assert callable(importlib.import_module(module).main)
