"""Searches that lose a worker, their driver, or their database: nothing counted twice, lost, or left running."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from cluster.store import Run
from jobs.objectives import EvaluationObjective
from tests.tuning.postgres import postgresql
from tuning.tables import SUGGESTIONS

ROOT = Path(__file__).resolve().parents[2]
TRIALS = 40
WORDS = ["--method=ERM", "--dataset=GaussianSEM:n=200", "--steps=60", "--checkpoint_every=6", "--pack=1"]
STUDY = re.compile(r"^(.*): (.*)$", re.MULTILINE)


def start(run, *words, trials=TRIALS, workers=2):
    words = [f"--trials={trials}", f"--run={run}", f"--workers={workers}", *words]
    command = [sys.executable, "-m", "jobs.tune", *WORDS, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process, code=0):
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, out + err
    return out, err


def wait_for(process, run, done):
    """Wait until a number of suggestions have ended."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if Path(run, "run.json").exists() and Run(str(run)).read("suggestions", SUGGESTIONS).num_rows >= done:
            return
        time.sleep(0.05)
    raise TimeoutError


def workers(process):
    return [p for p in psutil.Process(process.pid).children(recursive=True) if "ray::Worker" in " ".join(p.cmdline())]


def check(run, study, trials=TRIALS):
    """Check a finished study against the run's tables: every suggestion once, every value what its trial measured."""
    found = study.trials
    assert [t.number for t in found] == list(range(trials))
    assert {t.state for t in found} <= {TrialState.COMPLETE, TrialState.PRUNED}
    rows = Run(str(run)).read("suggestions", SUGGESTIONS).to_pylist()
    assert Counter(r["number"] for r in rows) == Counter(range(trials))
    stored = {t["trial_id"]: t for t in Run(str(run)).read("trials").to_pylist()}
    metrics = Run(str(run)).read("metrics").to_pylist()
    assert len(Counter((m["trial_id"], m["step"], m["environment"], m["split"], m["metric"]) for m in metrics)) == len(
        metrics
    )
    objective = EvaluationObjective(["validation"])
    for row in rows:
        trial, (trial_id,) = found[row["number"]], row["trial_ids"]
        assert stored[trial_id]["status"] == {"complete": "completed", "pruned": "pruned"}[row["state"]]
        assert json.loads(stored[trial_id]["hyperparameters"])["lr"] == trial.params["lr"]
        assert row["values"] == trial.values
        if trial.state == TrialState.COMPLETE:
            measured = [
                (m["step"], m["environment"], m["split"], m["metric"], m["value"])
                for m in metrics
                if m["trial_id"] == trial_id
            ]
            held = type("Trial", (), {"held_out": tuple(stored[trial_id]["held_out"])})
            assert objective.final(held, measured, 0.0) == trial.values
    assert len(stored) == trials


def load(storage):
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def journal(run):
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(Path(run, "study.journal"))))


def test_killed_workers_cost_only_what_they_were_doing(tmp_path):
    process = start(tmp_path)
    for done in (3, 12, 20):
        wait_for(process, tmp_path, done)
        os.kill(workers(process)[0].pid, signal.SIGKILL)
    out, _ = finish(process)
    assert f"{TRIALS} trials: " in out
    assert ", 0 failed" in out
    check(tmp_path, load(journal(tmp_path)))


def test_a_killed_driver_goes_on_where_it_was(tmp_path):
    process = start(tmp_path)
    wait_for(process, tmp_path, 5)
    process.kill()
    process.communicate()
    states = Counter(t.state for t in load(journal(tmp_path)).trials)
    assert states[TrialState.RUNNING] >= 1  # what Optuna alone would leave for ever
    out, err = finish(start(tmp_path))
    assert re.search(r"\d cut short, run again", err), err
    assert f"{TRIALS} trials: " in out
    check(tmp_path, load(journal(tmp_path)))


def test_a_stopped_search_leaves_nothing_running(tmp_path):
    process = start(tmp_path, workers=0)
    wait_for(process, tmp_path, 5)
    process.send_signal(signal.SIGINT)
    _, err = finish(process, 130)
    assert re.search(rf"stopped: \d+ of {TRIALS} trials are stored; resume with\n  shiftlab tune ", err), err
    assert TrialState.RUNNING not in {t.state for t in load(journal(tmp_path)).trials}
    finish(start(tmp_path, workers=0))
    check(tmp_path, load(journal(tmp_path)))


def test_a_lost_journal_is_made_anew_from_the_run(tmp_path):
    process = start(tmp_path, trials=12, workers=0)
    finish(process)
    before = load(journal(tmp_path)).trials
    Path(tmp_path, "study.journal").unlink()
    _, err = finish(start(tmp_path, trials=14, workers=0))
    assert "12 put back into the study from the run" in err
    after = load(journal(tmp_path))
    assert [(t.params, t.values, t.intermediate_values) for t in after.trials[:12]] == [
        (t.params, t.values, t.intermediate_values) for t in before
    ]
    check(tmp_path, after, 14)


def test_two_drivers_do_not_search_in_one_study(tmp_path):
    process = start(tmp_path, trials=400, workers=0)
    wait_for(process, tmp_path, 1)
    _, err = finish(start(tmp_path, workers=0), 2)
    assert f"is being searched by process {process.pid} on " in err
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_database_that_is_down_for_20_seconds_stalls_and_loses_nothing(tmp_path):
    trials = 70
    with postgresql() as server:
        url = server.url
        words = [f"--storage={url}", "--steps=300", "--checkpoint_every=30", "--pruner=none"]
        process = start(tmp_path, *words, trials=trials)
        wait_for(process, tmp_path, 10)
        server.stop_hard()
        before = Run(str(tmp_path)).read("suggestions", SUGGESTIONS).num_rows
        time.sleep(20)
        during = Run(str(tmp_path)).read("suggestions", SUGGESTIONS).num_rows - before
        assert process.poll() is None, "the search must outlast the outage for this test to say anything"
        server.start()
        _, err = finish(process)
        print(f"{during} suggestions ended while the database was down")
        assert during > 20
        assert "storage does not answer since" in err
        check(tmp_path, load(optuna.storages.RDBStorage(url.replace("postgresql://", "postgresql+psycopg://"))), trials)


@pytest.mark.slow
def test_a_driver_that_is_killed_while_the_database_is_down_loses_nothing(tmp_path):
    with postgresql() as server:
        url = server.url
        process = start(tmp_path, f"--storage={url}")
        wait_for(process, tmp_path, 5)
        server.stop_hard()
        wait_for(process, tmp_path, 15)
        process.kill()
        process.communicate()
        server.start()
        out, err = finish(start(tmp_path, f"--storage={url}"))
        assert re.search(r"\d+ put back into the study from the run", err), err
        check(tmp_path, load(optuna.storages.RDBStorage(url.replace("postgresql://", "postgresql+psycopg://"))))
