"""The store: whole rows only, nothing acknowledged lost, nothing twice, readable while it is written."""

import datetime as dt
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from cluster.errors import InputError
from cluster.schemas import METRICS, TRIALS
from cluster.store import Run, Store


def trial_row(trial_id, status="completed", started=0.0):
    when = dt.datetime.fromtimestamp(1_700_000_000 + started, dt.UTC)
    return (trial_id, "ERM", "D", ["a"], "{}", 0, "{}", status, None, 1, "node", "cpu", when, 1.0, "{}")


def metric_rows(trial_id, n=3):
    return [(trial_id, step, "a", "in", "accuracy", step / 10) for step in range(n)]


def test_rows_come_back_and_any_reader_sees_them_while_the_store_is_open(tmp_path):
    with Store(str(tmp_path)) as store:
        store.append({"trials": [trial_row("t1")], "metrics": metric_rows("t1")})
        live = Run(str(tmp_path))
        assert live.read("metrics").num_rows == 3  # from the log
        store.seal()
        assert pads.dataset(tmp_path / "metrics").to_table().num_rows == 3
        assert duckdb.sql(f"select count(*) from '{tmp_path}/trials/*.parquet'").fetchall() == [(1,)]
        store.append({"trials": [trial_row("t2")], "metrics": metric_rows("t2")})
    run = Run(str(tmp_path))
    assert run.read("trials").schema.equals(TRIALS)
    assert run.read("metrics").schema.equals(METRICS)
    assert run.trial_status() == {"t1": "completed", "t2": "completed"}
    assert run.read("metrics").num_rows == 6
    assert run.tables() == ["metrics", "trials"]
    assert not list((tmp_path / "_log").iterdir())


def test_a_completed_row_replaces_a_failed_one_and_the_latest_failure_an_earlier(tmp_path):
    with Store(str(tmp_path)) as store:
        rows = [
            ("a", "completed", 0),
            ("a", "failed", 5),
            ("b", "failed", 1),
            ("b", "failed", 0),
            ("c", "completed", 0),
        ]
        for trial_id, status, started in rows:
            store.append({"trials": [trial_row(trial_id, status, started)]})
    trials = Run(str(tmp_path)).read("trials")
    assert trials["trial_id"].to_pylist() == ["a", "b", "c"]
    assert trials["status"].to_pylist() == ["completed", "failed", "completed"]
    assert trials["started_at"].to_pylist()[1].timestamp() == 1_700_000_001


def test_metrics_of_one_trial_run_by_two_launches_count_once(tmp_path):
    for _ in range(2):
        with Store(str(tmp_path)) as store:
            store.append({"trials": [trial_row("t")], "metrics": metric_rows("t")})
    assert pads.dataset(tmp_path / "metrics").to_table().num_rows == 6
    assert Run(str(tmp_path)).read("metrics").num_rows == 3


WRITER = """
import sys
sys.path.insert(0, {root!r})
from tests.cluster.test_store import metric_rows, trial_row
from cluster.store import Store
store = Store({run!r})
for i in range(10**9):
    store.append({{"trials": [trial_row(f"{tag}-{{i}}")], "metrics": metric_rows(f"{tag}-{{i}}")}})
    print(i, flush=True)
"""


def test_nothing_acknowledged_is_lost_when_the_writer_is_killed(tmp_path):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    acknowledged = set()
    for k in range(3):
        code = WRITER.format(root=root, run=str(tmp_path), tag=f"w{k}")
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
        deadline = None
        for line in process.stdout:
            acknowledged.add(f"w{k}-{int(line)}")
            deadline = deadline or time.monotonic() + 1.3
            if time.monotonic() > deadline:
                process.send_signal(signal.SIGKILL)
                break
        rest = process.stdout.read().split("\n")
        acknowledged |= {f"w{k}-{int(line)}" for line in rest[:-1]}
        process.wait()
    Store(str(tmp_path)).close()  # recovers
    stored = pads.dataset(tmp_path / "trials").to_table()["trial_id"].to_pylist()
    assert acknowledged <= set(stored)
    assert len(stored) == len(set(stored))
    metrics = pads.dataset(tmp_path / "metrics").to_table()
    assert metrics.num_rows == 3 * len(stored)


def test_a_log_cut_in_mid_row_loses_that_row_only(tmp_path):
    store = Store(str(tmp_path))
    for i in range(5):
        store.append({"trials": [trial_row(f"t{i}")], "metrics": metric_rows(f"t{i}")})
    log = next((tmp_path / "_log").glob("*.trials.arrow"))
    os.truncate(log, log.stat().st_size - 40)
    store._lock.close()  # as if the process had died
    with Store(str(tmp_path)) as again:
        assert again.recovered == 4 + 12
    run = Run(str(tmp_path))
    assert sorted(run.trial_status()) == ["t0", "t1", "t2", "t3"]
    assert run.read("metrics").num_rows == 12


def test_sealing_twice_after_a_crash_between_the_two_steps_duplicates_nothing(tmp_path):
    store = Store(str(tmp_path))
    store.append({"trials": [trial_row("t")], "metrics": metric_rows("t")})
    logs = {path: path.read_bytes() for path in (tmp_path / "_log").glob("*.arrow")}
    store.seal()
    for path, content in logs.items():
        path.write_bytes(content)  # the crash left the log behind
    assert Run(str(tmp_path)).read("metrics").num_rows == 3
    store._lock.close()
    Store(str(tmp_path)).close()
    assert pads.dataset(tmp_path / "metrics").to_table().num_rows == 3
    assert pads.dataset(tmp_path / "trials").to_table().num_rows == 1


def test_a_living_writers_log_is_left_alone(tmp_path):
    first = Store(str(tmp_path))
    first.append({"trials": [trial_row("t")]})
    second = Store(str(tmp_path))
    assert second.recovered == 0
    second.append({"trials": [trial_row("u")]})
    second.close()
    first.close()
    assert set(Run(str(tmp_path)).trial_status()) == {"t", "u"}


def test_columns_added_later_read_as_null_in_older_parts_and_are_not_dropped(tmp_path):
    with Store(str(tmp_path)) as store:
        store.append({"trials": [trial_row("t")]})
    table = pq.read_table(next((tmp_path / "trials").glob("*.parquet")))
    newer = table.set_column(0, "trial_id", pa.array(["u"])).append_column("cost", pa.array([2.5]))
    pq.write_table(newer, tmp_path / "trials" / "part-zz.parquet")
    read = Run(str(tmp_path)).read("trials").sort_by("trial_id")
    assert read["cost"].to_pylist() == [None, 2.5]


def test_tables_of_a_job_travel_with_their_own_schema(tmp_path):
    schema = pa.schema([("index", pa.int64()), ("radius", pa.float64())])
    with Store(str(tmp_path), {"radii": schema}) as store:
        store.append({"radii": pa.table({"radius": [0.5, 1.5], "index": pa.array([0, 1], pa.int32())})})
    assert Run(str(tmp_path)).read("radii").to_pydict() == {"index": [0, 1], "radius": [0.5, 1.5]}


def test_parts_stay_few_however_often_rows_come(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cluster.store.time.monotonic", lambda: clock[0])
    with Store(str(tmp_path)) as store:
        for i in range(2000):
            clock[0] += 18.0  # 10 hours in all
            store.append({"metrics": metric_rows(f"t{i}", 1), "trials": [trial_row(f"t{i}")]})
    assert len(list((tmp_path / "trials").iterdir())) < 350


def test_another_schema_version_is_refused(tmp_path):
    Store(str(tmp_path)).close()
    (tmp_path / "run.json").write_text(json.dumps({"schema_version": 999}))
    for opener in (Store, Run):
        with pytest.raises(InputError, match="schema version 999.*choose another --run"):
            opener(str(tmp_path))


def test_an_unwritable_run_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="run: cannot write to .*choose another --run"):
        Store(str(tmp_path / "file" / "run"))
    with pytest.raises(InputError, match="cannot open 'ftp://x/y'"):
        Store("ftp://x/y")
    with pytest.raises(InputError, match="nothing found at"):
        Run(str(tmp_path / "absent"))


def test_100_000_metric_rows_survive_the_round_trip_exactly(tmp_path):
    with Store(str(tmp_path)) as store:
        for i in range(1000):
            store.append({"trials": [trial_row(f"{i:016x}")], "metrics": metric_rows(f"{i:016x}", 100)})
    metrics = Run(str(tmp_path)).read("metrics")
    assert metrics.num_rows == 100_000
    assert metrics["value"].to_pylist()[:3] == [0.0, 0.1, 0.2]


def test_a_new_run_that_an_error_ends_before_its_first_row_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), Store(str(tmp_path / "run")):
        raise RuntimeError("refused")
    assert not (tmp_path / "run").exists()
    with pytest.raises(RuntimeError), Store(str(tmp_path / "run")), Store(str(tmp_path / "run")):
        raise RuntimeError("another writer is at it")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    with pytest.raises(RuntimeError), Store(str(tmp_path / "mine")):
        raise RuntimeError("refused")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    with Store(str(tmp_path / "run")):
        pass
    with pytest.raises(RuntimeError), Store(str(tmp_path / "run")):
        raise RuntimeError("an old run stays")
    assert (tmp_path / "run" / "run.json").exists()
