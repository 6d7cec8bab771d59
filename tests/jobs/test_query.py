"""SQL on a run: what it sees, how it prints, and that it can touch nothing."""

import csv
import io
import json
import os
import subprocess
import sys

import pyarrow as pa
import pytest

from cluster.errors import InputError
from cluster.schemas import table_schema
from cluster.store import Run, Store
from jobs.query import execute, main
from tests.jobs.test_report import record, store


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = store(
        record(methods=["ERM", "IRM"], skip=[("IRM", ("+90%",), 0)], pairs=False),
        tmp_path_factory.mktemp("query") / "run",
    )
    bounds = table_schema(("trial_id", pa.string()), ("bound", pa.float64()))
    with Store(path, {"bounds": bounds}) as sink:
        sink.append({"bounds": [("t", 0.25), ("u", float("nan"))]})
    return path


def test_plain_output_is_aligned_and_counts_its_rows(run, capsys):
    assert main([run, "select method, status, count(*) as n from trials group by all order by all"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "method  status      n",
        "ERM     completed  18",
        "IRM     completed  16",
        "IRM     failed      2",
        "3 rows",
    ]


def test_every_row_is_printed(run, capsys):
    assert main([run, "select * from metrics"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{Run(run).read('metrics').num_rows:,} rows"
    assert len(lines) == Run(run).read("metrics").num_rows + 2


def test_csv_comes_back_and_the_count_goes_to_standard_error(run, capsys):
    sql = "select trial_id, held_out, seconds, error, started_at from trials where status = 'failed' order by trial_id"
    assert main([run, sql, "--format", "csv"]) == 0
    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    stored = execute(Run(run), sql).to_pylist()
    assert [row["trial_id"] for row in rows] == [row["trial_id"] for row in stored]
    assert [json.loads(row["held_out"]) for row in rows] == [["+90%"]] * 2
    assert [float(row["seconds"]) for row in rows] == [row["seconds"] for row in stored]
    assert [row["error"] for row in rows] == [row["error"] for row in stored]
    assert [row["started_at"] for row in rows] == [row["started_at"].isoformat() for row in stored]
    assert captured.err == "2 rows\n"


def test_json_holds_lists_moments_and_null_for_nan(run, capsys):
    assert (
        main(
            [
                run,
                "select held_out, started_at, {'a': 1.5} as s, 'nan'::double as x from trials limit 2",
                "--format",
                "json",
            ]
        )
        == 0
    )
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 2
    assert rows[0]["held_out"] == ["+90%"]
    assert rows[0]["started_at"].startswith("2026-03-01T09:00:0")
    assert (rows[0]["s"], rows[0]["x"]) == ({"a": 1.5}, None)
    assert main([run, "select 1 where false", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main([run, "select 1 as a, 2 as a", "--format", "json"]) == 2


def test_every_table_of_the_run_is_a_view_even_an_empty_one(run):
    assert execute(Run(run), "select name from (show tables)")["name"].to_pylist() == [
        "bounds",
        "claims",
        "events",
        "metrics",
        "training",
        "trials",
    ]
    assert execute(Run(run), "select sum(bound) filter (not isnan(bound)) as s from bounds")["s"].to_pylist() == [0.25]
    assert execute(Run(run), "select count(*) as n from claims")["n"].to_pylist() == [0]


def test_a_trial_stored_twice_is_seen_once(tmp_path):
    runs = record(methods=["ERM"], seeds=1, draws=1, pairs=False)
    store(runs, tmp_path / "run")
    path = store(runs, tmp_path / "run")
    assert execute(Run(path), "select count(*) as n from trials")["n"].to_pylist() == [3]
    assert execute(Run(path), "select count(*) as n from metrics")["n"].to_pylist() == [len(runs.metrics)]


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("selct", "syntax error"),
        ("select nope from trials", '"nope" not found'),
        ("select * from nope", "nope does not exist"),
        ("select 'a'::int", "Could not convert"),
    ],
)
def test_wrong_sql_is_a_one_line_error_with_the_names_there_are(run, capsys, sql, reason):
    assert main([run, sql]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("shiftlab query: error: sql: ")
    assert reason in line
    assert "metrics(trial_id, step, environment, split, metric, value)" in line
    assert "bounds(trial_id, bound)" in line


@pytest.mark.parametrize(
    "sql",
    [
        "copy trials to '{folder}/out.csv'",
        "copy (select 1) to '.tmp/out.csv'",
        "export database '{folder}/out'",
        "attach '{folder}/out.db'",
        "install httpfs",
        "select * from read_text('{folder}/secret.txt')",
        "select * from '{folder}/secret.csv'",
        "set enable_external_access = true; select 1",
        "set lock_configuration = false",
        "insert into trials (trial_id) values ('x')",
        "delete from trials",
        "select * from source",
    ],
)
def test_a_query_reaches_no_file_no_setting_and_no_variable(run, tmp_path, monkeypatch, sql):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".tmp").mkdir()
    for name in ("secret.txt", "secret.csv"):
        (tmp_path / name).write_text("secret\n1\n")
    before = sorted(p for p in tmp_path.rglob("*"))
    trials = Run(run).read("trials")
    with pytest.raises(InputError, match="^sql: "):
        execute(Run(run), sql.format(folder=tmp_path))
    assert sorted(p for p in tmp_path.rglob("*")) == before
    assert Run(run).read("trials").equals(trials)


def test_a_missing_run_is_a_one_line_error(tmp_path, capsys):
    assert main([str(tmp_path / "none"), "select 1"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_reader_that_stops_early_is_no_error(run):
    sql = "select m.* from metrics m, range(200) order by all"
    words = [sys.executable, "-m", "jobs.query", run, sql, "--format", "csv"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "trial_id,step,environment,split,metric,value\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 0


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals on this system")
def test_a_terminal_gets_a_ruled_table(run):
    main_end, terminal = os.openpty()
    words = [sys.executable, "-m", "jobs.query", run, "select method, held_out from trials limit 1"]
    done = subprocess.run(words, stdout=terminal, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(terminal)
    text = os.read(main_end, 65536).decode()
    os.close(main_end)
    assert done.returncode == 0, done.stderr
    assert "───" in text
    assert "+90%" in text
    assert "1 row" in text
