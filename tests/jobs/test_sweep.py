"""The sweep end to end on real digits: resumable, exact, honest about failures."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.store import Run, Store
from jobs.sweep import Sweep, held_out_settings, main

SMALL = ["--dataset", "ColoredMNIST", "--held_out", "each", "--steps", "6", "--checkpoint_every", "3"]


def sweep(run, *words, workers=0):
    return main([*SMALL, "--run", str(run), "--workers", str(workers), *words])


def stored(run):
    """Everything a run holds of its trials but when and where they ran."""
    run = Run(str(run))
    metrics = run.read("metrics").sort_by(
        [(k, "ascending") for k in ("trial_id", "step", "environment", "split", "metric")]
    )
    return run.read("trials"), metrics


def test_the_job_runs_stores_and_reports_then_runs_only_what_is_missing(tmp_path, capsys):
    run = tmp_path / "run"
    assert sweep(run, "--methods", "ERM", "IRM", "VREx", "GroupDRO", "CORAL", "--seeds", "2") == 0
    out = capsys.readouterr().out
    trials, metrics = stored(run)
    assert trials.num_rows == 5 * 3 * 2
    assert metrics.num_rows == trials.num_rows * 2 * 3 * 2 * 2
    assert "30 trials: 30 completed, 0 failed, 30 run now" in out
    assert "report: " in out
    page = Path(out.split("report: ")[1].splitlines()[0])
    assert page.is_file()
    row = trials.to_pylist()[0]
    assert json.loads(row["hyperparameters"])["network"] == "mlp"
    assert json.loads(row["budget"]) == {"checkpoint_every": 3, "steps": 6}
    assert json.loads(row["versions"])["torch"]
    assert row["seconds"] > 0

    assert sweep(run, "--methods", "ERM", "IRM", "VREx", "GroupDRO", "CORAL", "--seeds", "2") == 0
    assert "30 completed, 0 failed, 0 run now" in capsys.readouterr().out
    assert sweep(run, "--methods", "ERM", "IRM", "--draws", "2", "--seeds", "2") == 0
    assert "24 completed, 0 failed, 12 run now" in capsys.readouterr().out
    after, _ = stored(run)
    assert after.num_rows == 42  # nothing overwritten
    ids = pads.dataset(run / "trials").to_table()["trial_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 42


def test_a_trial_gives_the_same_metrics_on_ray_in_process_alone_in_any_order_and_after_a_retry(ray_session, tmp_path):
    methods = ["ERM", "IRM", "VREx", "GroupDRO", "CORAL"]
    assert sweep(tmp_path / "ray", "--methods", *methods, "--draws", "2", workers=2) == 0
    assert sweep(tmp_path / "here", "--methods", *methods[::-1], "--draws", "2") == 0
    _, on_ray = stored(tmp_path / "ray")
    _, here = stored(tmp_path / "here")
    assert on_ray.num_rows == 30 * 24
    assert on_ray.equals(here)  # to the last bit
    for method in ("IRM", "CORAL"):  # a sweep of one
        assert sweep(tmp_path / method, "--methods", method, "--held_out", "+80%") == 0
        trials, alone = stored(tmp_path / method)
        (trial_id,) = trials["trial_id"].to_pylist()
        chosen = here.filter(np.array(here["trial_id"].to_pylist()) == trial_id)
        assert alone.num_rows == 24
        assert alone.equals(chosen)


def test_packs_change_no_number(tmp_path):
    words = ("--methods", "ERM", "CORAL", "--seeds", "2")
    assert sweep(tmp_path / "alone", *words, "--pack", "1") == 0
    assert sweep(tmp_path / "pack", *words, "--pack", "5") == 0
    assert stored(tmp_path / "alone")[1].equals(stored(tmp_path / "pack")[1])


def test_failures_are_tried_again_stored_counted_and_the_sweep_goes_on(tmp_path, capsys):
    words = (
        "--methods",
        "ERM",
        "IRM",
        "--hyperparameters.irm_lambda",
        "1e300",
        "--hyperparameters.irm_anneal_steps",
        "1",
    )
    assert sweep(tmp_path, *words, "--retries", "2") == 1
    captured = capsys.readouterr()
    trials = {(r["method"], tuple(r["held_out"])): r for r in Run(str(tmp_path)).read("trials").to_pylist()}
    assert len(trials) == 6
    for (method, _), row in trials.items():
        assert row["status"] == ("failed" if method == "IRM" else "completed")
        assert row["attempts"] == (3 if method == "IRM" else 1)
    error = trials["IRM", ("+90%",)]["error"]
    assert error.startswith("FloatingPointError: loss of environment")
    assert "6 trials: 3 completed, 3 failed" in captured.out
    assert "FloatingPointError" in captured.err
    assert "--retry_failed" in captured.err
    assert not set(Run(str(tmp_path)).read("metrics")["trial_id"].to_pylist()) & {
        r["trial_id"] for r in trials.values() if r["status"] == "failed"
    }
    assert sweep(tmp_path, *words) == 1
    assert "3 failed, 0 run now" in capsys.readouterr().out
    assert sweep(tmp_path, *words, "--retry_failed", "true") == 1
    assert "3 failed, 3 run now" in capsys.readouterr().out


def test_a_trial_that_takes_too_long_is_failed(tmp_path):
    assert sweep(tmp_path, "--steps", "100000", "--held_out", "+90%", "--trial_timeout", "0.5", "--retries", "0") == 1
    (row,) = Run(str(tmp_path)).read("trials").to_pylist()
    assert row["error"].startswith("TrialTimeoutError: outlived --trial_timeout 0.5 s")


COMMAND = [sys.executable, "-m", "jobs.sweep", *SMALL, "--methods", "ERM", "CORAL", "--draws", "60"]


def start(run, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMAND, "--run", str(run), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def wait_for_parts(run):
    """Wait until results are there as Parquet while the sweep runs."""
    deadline = time.monotonic() + 90
    while not list(Path(run).glob("trials/part-*.parquet")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "code", "workers"), [(signal.SIGINT, 130, "0"), (signal.SIGTERM, 143, "0"), (signal.SIGTERM, 143, "2")]
)
def test_a_signal_leaves_whole_rows_and_prints_the_command_that_resumes(tmp_path, number, code, workers):
    process = start(tmp_path, "--workers", workers)
    wait_for_parts(tmp_path)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "of 360 trials are stored; resume with" in err
    assert "Traceback" not in err
    trials, metrics = stored(tmp_path)
    assert 0 < trials.num_rows < 360
    assert metrics.num_rows == 24 * trials.num_rows
    resume = shlex.split(err.split("resume with\n")[1].splitlines()[0])
    assert resume[:2] == ["shiftlab", "sweep"]
    assert Sweep(["ColoredMNIST"], str(tmp_path), ["ERM", "CORAL"], draws=60, steps=6).draws == 60
    assert str(tmp_path) in resume
    assert resume[resume.index("--draws") + 1] == "60"


def test_a_killed_driver_loses_nothing_it_had_acknowledged_and_a_rerun_completes_the_plan(tmp_path):
    process = start(tmp_path, "--workers", "0", "--draws", "10")
    wait_for_parts(tmp_path)
    time.sleep(0.7)
    process.kill()
    process.wait()
    before = Run(str(tmp_path)).trial_status()
    assert 0 < len(before) < 60
    assert sweep(tmp_path, "--methods", "ERM", "CORAL", "--draws", "10") == 0
    ids = pads.dataset(tmp_path / "trials").to_table()["trial_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 60
    assert set(before) <= set(ids)
    assert pads.dataset(tmp_path / "metrics").to_table().num_rows == 60 * 24


def test_own_folders_and_tables_are_swept(tmp_path):
    rng = np.random.default_rng(0)
    for environment in "ab":
        for label in ("cat", "dog"):
            folder = tmp_path / "photos" / environment / label
            folder.mkdir(parents=True)
            for i in range(6):
                Image.fromarray(rng.integers(0, 255, (12, 10, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    np.savez(
        tmp_path / "features.npz",
        features=rng.normal(size=(60, 4)).astype(np.float32),
        label=np.arange(60) % 3,
        environment=np.repeat(["x", "y", "z"], 20),
    )
    words = ["--dataset", str(tmp_path / "photos"), str(tmp_path / "features.npz"), "--image_size", "8", "--steps", "2"]
    assert main([*words, "--run", str(tmp_path / "run"), "--workers", "0"]) == 0
    rows = Run(str(tmp_path / "run")).read("trials").to_pylist()
    assert {(r["dataset"].split("@")[0], json.loads(r["hyperparameters"])["network"]) for r in rows} == {
        ("photos", "cnn"),
        ("features", "linear"),
    }
    assert len(rows) == 5


def test_held_out_words_become_settings():
    names = ("a", "b", "c,d")
    assert held_out_settings(["each"], names, "D") == [("a",), ("b",), ("c,d",)]
    assert held_out_settings(["pairs"], names, "D") == [("a", "b"), ("a", "c,d"), ("b", "c,d")]
    assert held_out_settings(["b,a", "a", "c,d", "a,b"], names, "D") == [("a", "b"), ("a",), ("c,d",)]


def write_table(path, **changes):
    table = {
        "features": [[0.0, 1.0]] * 8,
        "label": [0, 1] * 4,
        "environment": ["a"] * 4 + ["b"] * 4,
    }
    import pyarrow as pa

    pq.write_table(pa.table({**table, **changes}), path)
    return str(path)


BAD = {
    "unknown method": (["--methods", "IRN"], "unknown method 'IRN'; did you mean 'IRM'?"),
    "unknown dataset": (["--dataset", "ColoredMNITS"], "ColoredMNIST"),
    "held-out name": (
        ["--held_out", "+70%"],
        "held_out: dataset ColoredMNIST has no environment '+70%'; it has +90%, +80%, -90%",
    ),
    "all held out": (["--held_out", "+90%,+80%,-90%"], "leaves nothing of ColoredMNIST to train on"),
    "too few left": (["--methods", "VREx", "--held_out", "pairs"], "VREx trains on 2 environments or more"),
    "steps": (["--steps", "0"], "steps: 0 is too small; give 1 or more"),
    "steps below": (["--steps", "-3"], "steps: -3 is too small"),
    "draws": (["--draws", "0"], "draws: 0 is too small"),
    "timeout": (["--trial_timeout", "0"], "trial_timeout: 0.0 is not above 0"),
    "pack": (["--pack", "0"], "pack: 0 is not above 0"),
    "repeated method": (["--methods", "ERM", "ERM"], "methods: ERM, ERM repeats one"),
    "no method": (["--methods", "[]"], "methods: is empty"),
    "hyperparameter": (["--hyperparameters.lrr", "1"], "none of ERM has 'lrr'; they have batch_size, lr"),
    "nothing to draw": (
        ["--draws", "2", "--hyperparameters", '{"lr": 0.1, "batch_size": 8}'],
        "leave nothing of ERM to draw",
    ),
    "network": (["--hyperparameters.network", "resnet"], "network: unknown 'resnet'"),
    "unknown option": (["--stepz", "3"], "unknown option 'stepz'; did you mean 'steps'?"),
    "scheme": (["--run", "ftp://host/run"], "cannot open 'ftp://host/run'"),
    "gpus": (["--workers", "2", "--gpus_per_worker", "64"], "gpus_per_worker: 64 asked for, this machine has"),
    "address": (["--workers", "2", "--address", "127.0.0.1:9"], "no Ray answers at '127.0.0.1:9'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_before_anything_starts(case, tmp_path, capsys):
    words, message = BAD[case]
    began = time.monotonic()
    run = tmp_path / "run"
    assert main([*SMALL, "--run", str(run), "--workers", "0", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("shiftlab sweep: error: ")
    assert error.count("\n") == 1
    assert not list(run.glob("*/*.parquet"))
    assert time.monotonic() - began < 15


def test_bad_data_is_one_line_that_names_it(tmp_path, capsys):
    def message(spec):
        assert main(["--dataset", str(spec), "--run", str(tmp_path / "run"), "--workers", "0"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty" in message(empty)
    for name in ("one/a/cat", "bad/a/cat", "bad/b/cat"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / "0.png")
    assert "at least two environments" in message(tmp_path / "one")
    (tmp_path / "bad/b/cat/1.png").write_bytes(b"not an image")
    assert "1.png" in message(tmp_path / "bad")
    nan = [[0.0, 1.0]] * 7 + [[float("nan"), 0.0]]
    assert "NaN" in message(write_table(tmp_path / "nan.parquet", features=nan))
    assert "environment 'a'" in message(write_table(tmp_path / "miss.parquet", label=[0] * 4 + [0, 1] * 2))
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_schema_version_or_one_that_cannot_be_written_is_refused(tmp_path, capsys):
    Store(str(tmp_path / "old")).close()
    (tmp_path / "old" / "run.json").write_text('{"schema_version": 0}')
    assert sweep(tmp_path / "old") == 2
    assert "schema version 0" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert sweep(tmp_path / "file" / "run") == 2
    assert "cannot write to" in capsys.readouterr().err


def test_a_full_disk_keeps_what_was_stored_and_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    append = Store.append
    calls = []

    def full(self, tables):
        calls.append(tables)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        append(self, tables)

    monkeypatch.setattr(Store, "append", full)
    assert sweep(tmp_path) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "resume with shiftlab sweep --dataset ColoredMNIST" in error
    assert len(Run(str(tmp_path)).trial_status()) == 2
