"""The journal of a study: any Optuna opens it, and neither a killed writer, a full disk nor a second writer harms it."""

import io
import json
import math
import signal
import subprocess
import sys
import textwrap
import wsgiref.util
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from cluster.errors import InputError
from tuning.journal import OwnedJournal
from tuning.study import quiet_optuna

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _quiet():
    with quiet_optuna():
        yield


def create(path):
    journal = OwnedJournal(path)
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(study_name="s", storage=JournalStorage(journal), sampler=sampler, load_if_exists=True)
    return study, journal


def load(path):
    return optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(path))))


def run_trial(study, state=TrialState.COMPLETE):
    trial = study.ask()
    x = trial.suggest_float("x", 1e-3, 1, log=True)
    trial.suggest_int("n", 1, 9)
    trial.suggest_categorical("c", ["a", "b", None])
    trial.report(math.nan, 0)
    trial.report(x, 1)
    trial.set_user_attr("about", {"size": (1, 2), 3: "três\nlines"})
    study.tell(trial, x if state == TrialState.COMPLETE else None, state)


def contents(study):
    """All that a study holds, as text: NaN is not equal to itself."""
    return [repr(vars(trial)) for trial in study.trials], repr(study.user_attrs)


def test_any_reader_sees_the_same_study_while_it_is_written_and_afterwards(tmp_path):
    study, journal = create(tmp_path / "runs" / "study.journal")
    study.set_user_attr("about", {"method": "ERM"})
    study.enqueue_trial({"x": 0.5})
    for state in (TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED, TrialState.COMPLETE):
        run_trial(study, state)
        study.ask()
        assert contents(load(journal.path)) == contents(study)
    assert study.trials[0].params["x"] == 0.5
    before = contents(study)
    journal.close()
    assert contents(load(journal.path)) == before
    study, journal = create(journal.path)
    assert contents(study) == before
    assert journal.repaired == 0
    run_trial(study)
    assert contents(load(journal.path)) == contents(study)


def test_a_dashboard_opens_the_file_while_it_is_written(tmp_path):
    dashboard = pytest.importorskip("optuna_dashboard")
    study, journal = create(tmp_path / "j")
    run_trial(study)
    app = dashboard.wsgi(JournalStorage(JournalFileBackend(str(journal.path))))
    run_trial(study)
    request = {"PATH_INFO": "/api/studies/0", "QUERY_STRING": "after=0", "wsgi.input": io.BytesIO()}
    wsgiref.util.setup_testing_defaults(request)
    answer = json.loads(b"".join(app(request, lambda *_: None)))
    assert [trial["number"] for trial in answer["trials"]] == [0, 1]


def test_a_line_that_was_cut_off_is_taken_away(tmp_path):
    study, journal = create(tmp_path / "j")
    run_trial(study)
    whole = journal.path.read_bytes()
    study.ask()
    journal.close()
    torn = journal.path.read_bytes()[:-9]

    journal.path.write_bytes(torn)
    optunas = load(journal.path)
    with pytest.raises((AttributeError, ValueError)):  # what Optuna's own backend makes of it
        for _ in range(3):
            optunas.ask()

    journal.path.write_bytes(torn)
    journal = OwnedJournal(journal.path)
    study = optuna.load_study(study_name="s", storage=JournalStorage(journal))
    assert journal.repaired == len(torn) - len(whole)
    assert [t.number for t in study.trials] == [0]
    assert journal.path.read_bytes() == torn  # whoever only looks changes nothing
    run_trial(study)
    assert [t.state for t in load(journal.path).trials] == [TrialState.COMPLETE] * 2
    assert journal.path.read_bytes().startswith(whole)


def test_a_study_whose_first_line_was_cut_off_begins_anew(tmp_path):
    (tmp_path / "j").write_bytes(b'{"op_code":0,"work')
    study, journal = create(tmp_path / "j")
    assert journal.repaired == 18
    run_trial(study)
    assert contents(load(journal.path)) == contents(study)


@pytest.mark.parametrize(
    "content",
    [
        b'{"a precious": "file"}',
        b'{"a": 1}\n{"b": 2}\n',
        b"SQLite format 3\0\n\xff\xfe",
        b"[1]\n",
        b"{\n",
        b"1,2\n3,4\n",
    ],
)
def test_another_file_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=r"^storage: '.*/file' is no journal of Optuna \(line 1\); choose another file$"
    ):
        OwnedJournal(path)
    assert path.read_bytes() == content


def test_a_damaged_line_is_named(tmp_path):
    study, journal = create(tmp_path / "j")
    run_trial(study)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(b"".join([*lines[:2], lines[2][:5], *lines[3:]]))
    with pytest.raises(InputError, match=r"\(line 3\)"):
        OwnedJournal(journal.path)


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(InputError, match=rf"^storage: cannot open the journal '{tmp_path}' \(Is a directory\); choose"):
        OwnedJournal(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=rf"'{tmp_path}/file/j' \((File exists|Not a directory)\)"):
        OwnedJournal(tmp_path / "file" / "j")


def test_logs_are_read_from_any_number_and_as_others_read_them(tmp_path):
    _, journal = create(tmp_path / "j")
    journal.append_logs([{"op_code": 2, "study_id": 0, "user_attr": {"a": (1, 2)}}, {"op_code": 10}])
    others = list(JournalFileBackend(str(journal.path)).read_logs(0))
    assert len(others) == 3
    for number in (0, 3, 1, 2, 0, 3):  # not in order either
        assert list(journal.read_logs(number)) == others[number:]
    with pytest.raises(TypeError):
        journal.append_logs([{"op_code": 10}, {"op_code": 2, "user_attr": {"a": object()}}])
    assert list(JournalFileBackend(str(journal.path)).read_logs(0)) == others


def test_what_others_append_meanwhile_is_taken_up_in_order(tmp_path):
    study, journal = create(tmp_path / "j")
    run_trial(study)
    other = load(journal.path)
    other.enqueue_trial({"x": 0.25})
    run_trial(study)  # its number must be the file's
    other.set_user_attr("note", "from outside")
    run_trial(study)  # what was enqueued has its turn
    assert study.trials[1].params["x"] == 0.25
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 3
    assert study.user_attrs == {"note": "from outside"}
    assert contents(load(journal.path)) == contents(study)


WRITER = """
import sys, optuna
from optuna.storages import JournalStorage
from tuning.journal import OwnedJournal
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study(study_name="s", storage=JournalStorage(OwnedJournal(sys.argv[1])), load_if_exists=True)
while True:
    trial = study.ask()
    trial.set_user_attr("long", "x" * 100_000)
    study.tell(trial, trial.suggest_float("x", 0, 1))
    print(trial.number, flush=True)
"""


def test_a_killed_writer_loses_nothing_acknowledged(tmp_path):
    path, told = tmp_path / "j", -1
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", WRITER, path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        before = told
        while told < before + 50:
            told = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        for line in process.communicate()[0].splitlines():
            told = int(line)
        study, journal = create(path)
        unfinished = [t.number for t in study.trials[: told + 1] if t.state != TrialState.COMPLETE]
        assert unfinished in ([], [before])  # the one that the first kill left
        assert len(study.trials) <= told + 3
        journal.close()
        told = len(study.trials) - 1  # what has an end, or never will


def test_a_full_disk_leaves_no_piece_behind(tmp_path):
    script = """
        import resource, sys
        from pathlib import Path
        from tests.tuning.test_journal import contents, create, load, run_trial
        study, journal = create(sys.argv[1])
        run_trial(study)
        limit = journal.path.stat().st_size + 40
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        before = journal.path.read_bytes()
        try:
            study.ask()
            sys.exit("nothing raised")
        except OSError as error:
            print(error)
        assert journal.path.read_bytes() == before
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        run_trial(study)
        assert [t.number for t in study.trials] == [0, 1]
        assert contents(load(journal.path)) == contents(study)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), tmp_path / "j"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "File too large" in done.stdout
