"""The report of a long training: its curve without what was undone, its workers, and what happened."""

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.schemas import TABLES
from cluster.store import Run, Store
from jobs.report import write_report
from jobs.report.trainings import _without_undone, training_sections, what_happened

BEGAN = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)


@pytest.fixture
def run(tmp_path):
    """A training that loses a worker at step 30, goes on from step 20 with one, and is back at two by step 50."""
    path = [(10, 2), (20, 2), (30, 2), (25, 1), (35, 1), (50, 2), (60, 2)]
    rows = []
    for second, (step, workers) in enumerate(path):
        at = BEGAN + dt.timedelta(seconds=second)
        rows += [("t1", at, step, workers, "loss", 1 / step), ("t1", at, step, workers, "steps_per_second", 7.0)]
    events = [
        ("t1", BEGAN + dt.timedelta(seconds=3), "node_lost", None, "n2", "on host-2 (its node has died)"),
        ("t1", BEGAN + dt.timedelta(seconds=3), "resized", 20, "", "2 to 1 workers"),
        ("t1", BEGAN + dt.timedelta(seconds=5), "resized", 40, "", "1 to 2 workers"),
        ("other", BEGAN, "resized", 1, "", "of another training"),
    ]
    with Store(str(tmp_path / "run")) as store:
        store.append({"training": rows, "events": events})
    return str(tmp_path / "run")


def test_steps_that_were_taken_again_count_once(run):
    log = Run(run).read("training").to_pylist()
    kept = [(row["step"], row["workers"]) for row in _without_undone(log) if row["metric"] == "loss"]
    assert kept == [(10, 2), (20, 2), (25, 1), (35, 1), (50, 2), (60, 2)]


def test_a_training_that_goes_on_is_reported(run, capsys):
    write_report(run)
    out = capsys.readouterr().out
    assert "Training t1: step 60, not finished, 1 to 2 workers, 7 steps/s (median), 3 events" in out
    assert "2026-05-01 12:00:03  node lost: on host-2 (its node has died)" in out
    assert "at step 20  resized: 2 to 1 workers" in out
    page = Path(run, "_report/report.html").read_text()
    assert '<a href="#trainings">Trainings</a>' in page
    assert "training loss and workers" in page
    assert "of another training" not in page


def test_a_finished_training_says_what_it_was(run):
    trial = ("t1", "IRM", "ColoredMNIST@ab12", [], "{}", 0, '{"checkpoint_every":10,"steps":60}', "completed")
    trials = pa.Table.from_pylist(
        [dict(zip(TABLES["trials"].names, trial + (None, 1, "n", "cpu", BEGAN, 1.0, "{}"), strict=True))],
        TABLES["trials"],
    )
    (section,) = training_sections(Run(run), trials)
    assert section.title == "IRM on ColoredMNIST"
    assert section.facts.startswith("step 60 of 60, ")


def test_a_run_without_trainings_has_no_section(tmp_path):
    with Store(str(tmp_path)) as store:
        store.append({"events": [(None, BEGAN, "node_lost", None, "n", "somewhere")]})
    assert training_sections(Run(str(tmp_path)), TABLES["trials"].empty_table()) == []
    assert what_happened(Run(str(tmp_path))) == "1 x node lost"
