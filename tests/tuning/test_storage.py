"""Studies in databases: everything gets there once, in whatever order the server dies, and asking never waits for it."""

import contextlib
import math
import random
import re
import select
import socket
import threading
import time

import numpy as np
import optuna
import pyarrow.fs as pafs
import pytest
import sqlalchemy
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from cluster.errors import InputError
from cluster.storage import Location
from tests.tuning.postgres import PASSWORD, postgresql
from tuning.mirror import MirroredStorage
from tuning.storage import hide_password, open_storage
from tuning.study import quiet_optuna

RUN = Location.resolve("nowhere")


@pytest.fixture(autouse=True)
def _quiet():
    with quiet_optuna():
        yield


@pytest.fixture(scope="module")
def server():
    with postgresql() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/studies.db"
    return request.getfixturevalue("server").empty()


@contextlib.contextmanager
def opened(url):
    storage = open_storage(url, RUN)
    yield storage.optuna
    assert storage.close(60) == ""


def create(storage, name="s", **more):
    sampler = optuna.samplers.RandomSampler(seed=0)
    return optuna.create_study(study_name=name, storage=storage, sampler=sampler, load_if_exists=True, **more)


def stored(url, name="s"):
    """The study as Optuna alone finds it in the database."""
    backend = RDBStorage(url.replace("postgresql:", "postgresql+psycopg:"))
    study = optuna.load_study(study_name=name, storage=backend)
    found = study.trials, study.user_attrs, study.directions
    backend.engine.dispose()
    return found


def contents(trials, times=True):
    """All that trials hold but their ids, as text: NaN is not equal to itself."""
    keys = ("number", "state", "values", "params", "distributions", "intermediate_values", "user_attrs", "system_attrs")
    orderless = ("params", "distributions", "intermediate_values", "user_attrs", "system_attrs")
    return [
        [repr(sorted(getattr(t, k).items()) if k in orderless else getattr(t, k)) for k in keys]
        + ([t.datetime_start] if times else [])
        for t in trials
    ]


def run_trial(study, step=lambda: None):
    """Ask, report and tell one trial, with a pause wherever the caller wants one."""
    trial = study.ask()
    step()
    x = trial.suggest_float("x", 1e-3, 1, log=True)
    trial.suggest_int("n", 1, 9)
    step()
    trial.suggest_categorical("c", ["a", "b", None])
    trial.report(math.nan, 0)
    step()
    trial.report(x, 1)
    trial.set_user_attr("sizes", [1, 2.5, None, trial.number])
    study._storage.set_trial_system_attr(trial._trial_id, "kind", {"a": True})
    step()
    state = [TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED][trial.number % 3]
    study.tell(trial, x if state == TrialState.COMPLETE else None, state)
    return trial


def test_a_database_gets_all_that_memory_has(url):
    with opened(url) as storage:
        study = create(storage, directions=["maximize"])
        study.set_user_attr("about", {"method": "ERM"})
        for number in range(20 if "sqlite" in url else 100):
            # Some are written change by change, some whole.
            run_trial(study, (lambda: storage.flush(10)) if number < 3 else lambda: None)
        assert storage.flush(60)
        assert storage.waiting == 0
        assert storage.trouble is None
        trials, attributes, directions = stored(url)
        assert len(trials) == number + 1
        assert contents(trials) == contents(study.trials)
        assert attributes == {"about": {"method": "ERM"}}
        assert directions == study.directions


def test_an_outage_of_the_server_stalls_and_loses_nothing(server):
    url = server.empty()
    slowest, troubles, waiting = 0.0, set(), 0
    with opened(url) as storage:
        study = create(storage)
        for _ in range(3):
            run_trial(study)
        server.stop_hard()
        restart = threading.Timer(5, server.start)
        restart.start()
        while restart.is_alive():
            begun = time.perf_counter()
            run_trial(study)
            slowest = max(slowest, time.perf_counter() - begun)
            waiting = max(waiting, storage.waiting)
            troubles.add((storage.trouble or "").split(" since ")[0])
            time.sleep(0.1)
        print(f"slowest trial {slowest:.3f} s, up to {waiting} waited")
        assert slowest < 1  # not even a connection's timeout
        assert waiting > 20
        assert "storage does not answer" in troubles
        for _ in range(3):
            run_trial(study)
        assert storage.flush(30)
        assert storage.trouble is None
        assert contents(stored(url)[0]) == contents(study.trials)


def test_a_connection_that_died_unseen_is_replaced(server):
    with opened(server.empty()) as storage:
        create(storage)
        assert storage.flush(10)
        server.stop_hard()
        server.start()
        assert optuna.get_all_study_names(storage) == ["s"]


class LossyProxy:
    """Forwards to a server, and cuts some connections when a commit got there but its answer did not come back."""

    def __init__(self, port, share):
        self._server, self._random, self.share = ("127.0.0.1", port), random.Random(0), share
        self.lost = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client):
        with client, socket.create_connection(self._server) as server:
            while True:
                for source in select.select([client, server], [], [])[0]:
                    if not (data := source.recv(65536)):
                        return
                    (server if source is client else client).sendall(data)
                    if source is client and b"COMMIT" in data and self._random.random() < self.share:
                        server.recv(65536)  # it is done
                        self.lost += 1
                        return

    def close(self):
        self._listener.close()


def test_an_answer_that_was_lost_makes_nothing_twice(server):
    url = server.empty()
    with contextlib.closing(LossyProxy(server.port, share=0.0)) as proxy:
        with opened(url.replace(f":{server.port}/", f":{proxy.port}/")) as storage:
            proxy.share = 0.3
            study = create(storage)
            study.enqueue_trial({"x": 0.5}, user_attrs={"first": True})
            for number in range(8):
                run_trial(study, (lambda: storage.flush(30)) if number < 4 else lambda: None)
            for x in np.linspace(0.1, 0.9, 9):  # NumPy's numbers come back as Python's
                law = FloatDistribution(1e-3, 1, log=True)
                study.add_trial(create_trial(value=x, params={"x": x}, distributions={"x": law}))
                storage.flush(30)
            assert storage.flush(60)
        assert proxy.lost > 5
    trials = stored(url)[0]
    assert contents(trials[:8], times=False) == contents(study.trials[:8], times=False)
    assert [(t.state, t.params, t.values) for t in trials] == [(t.state, t.params, t.values) for t in study.trials]


def test_a_server_that_hangs_stalls_nothing(server):
    url = server.empty()
    with opened(url) as storage:
        study = create(storage)
        run_trial(study)
        assert storage.flush(10)
        server.pause()
        begun = time.perf_counter()
        run_trial(study)
        assert time.perf_counter() - begun < 1
        assert not storage.flush(0.2)
        assert storage.waiting > 0
        server.resume()
        assert storage.flush(10)
    assert contents(stored(url)[0]) == contents(study.trials)


def test_a_study_is_taken_up_with_what_ran_and_waited(url):
    with opened(url) as storage:
        study = create(storage)
        for _ in range(4):
            run_trial(study)
        begun = study.ask()
        begun.suggest_float("x", 1e-3, 1, log=True)
        begun.report(0.5, 3)
        study.enqueue_trial({"x": 0.25}, user_attrs={"retry_of": 1})
        study.set_user_attr("about", [1])
    with opened(url) as storage:
        again = create(storage)
        assert contents(again.trials) == contents(study.trials)
        assert [t.state for t in again.trials[4:]] == [TrialState.RUNNING, TrialState.WAITING]
        assert again.user_attrs == {"about": [1]}
        assert again.best_value == study.best_value
        with pytest.raises(ValueError, match="log configuration"):  # as the database would say, but at once
            again.ask().suggest_float("x", 1e-3, 1)
        with pytest.raises(ValueError, match="distribution kind"):
            again.add_trial(create_trial(value=1.0, params={"n": 1.0}, distributions={"n": FloatDistribution(0, 2)}))
        # What ran goes on, what waited was asked for just now.
        assert again.trials[5].state == TrialState.RUNNING
        again.tell(4, 0.125)
        storage.set_trial_state_values(again.trials[5]._trial_id, TrialState.WAITING)
        assert run_trial(again).number == 5
        assert run_trial(again).number == 6
        again.add_trial(create_trial(value=1.0, params={"n": 1}, distributions={"n": IntDistribution(1, 9)}))
        assert storage.flush(30)
        assert contents(stored(url)[0], times=False) == contents(again.trials, times=False)
        assert stored(url)[0][5].params["x"] == 0.25


def test_studies_are_created_found_and_deleted(url):
    with opened(url) as storage:
        for name in ("a", "b"):
            run_trial(create(storage, name))
    with opened(url) as storage:
        with pytest.raises(DuplicatedStudyError):
            storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "a")
        with pytest.raises(KeyError):
            storage.get_study_id_from_name("z")
        assert optuna.get_all_study_names(storage) == ["a", "b"]
        optuna.delete_study(study_name="a", storage=storage)
        assert run_trial(create(storage, "a")).number == 0  # another of that name
        run_trial(optuna.load_study(study_name="b", storage=storage))
        unnamed = storage.create_new_study([optuna.study.StudyDirection.MINIMIZE])
        assert storage.flush(10)
        assert storage.get_study_id_from_name(storage.get_study_name_from_id(unnamed)) == unnamed
        storage.delete_study(unnamed)
    with opened(url) as storage:
        assert [(s.study_name, s.n_trials) for s in optuna.get_all_study_summaries(storage)] == [("b", 2), ("a", 1)]


def test_attributes_are_what_a_database_gives_back(url):
    with opened(url) as storage:
        study = create(storage)
        value = {"size": (1, 2)}
        study.set_user_attr("a", value)
        trial = study.ask()
        trial.set_user_attr("a", value)
        value["size"] = "changed later"
        assert study.user_attrs == study.trials[0].user_attrs == {"a": {"size": [1, 2]}}
        trial.set_user_attr("b", 1)
        assert storage.flush(10)
        trial.set_user_attr("b", True)
        with pytest.raises(TypeError):
            trial.set_user_attr("c", object())
    assert repr(stored(url)[0][0].user_attrs) == "{'a': {'size': [1, 2]}, 'b': True}"


def test_what_the_database_refuses_is_raised(server):
    storage = open_storage(server.empty(), RUN)
    study = create(storage.optuna, "long" * 200)
    with pytest.raises(StorageInternalError) as raised:
        storage.optuna.flush(30)
    assert "value too long" in str(raised.value.__cause__)
    with pytest.raises(StorageInternalError):
        study.ask()
    with pytest.raises(StorageInternalError):
        storage.close(1)


def test_another_process_that_adds_trials_is_told(url):
    storage = open_storage(url, RUN)
    study = create(storage.optuna)
    assert storage.optuna.flush(10)
    optuna.load_study(study_name="s", storage=url.replace("postgresql:", "postgresql+psycopg:")).enqueue_trial({})
    study.ask()
    with pytest.raises(InputError, match="^storage: another process adds trials to 's'; end it, then launch again$"):
        storage.optuna.flush(10)
    with pytest.raises(InputError, match="another process"):
        storage.close(1)


def test_what_did_not_get_there_is_told_at_the_end(server):
    url = server.empty()
    storage = open_storage(url, RUN)
    study = create(storage.optuna)
    assert storage.optuna.flush(10)
    server.stop_hard()
    try:
        for _ in range(3):
            run_trial(study)
        begun = time.perf_counter()
        told = storage.close(0.5)
        assert time.perf_counter() - begun < 2
    finally:
        server.start()
    assert re.match(r"3 changes are not in it yet, storage does not answer since [01] s \(connection failed: ", told)
    assert not any(thread.name == "storage" for thread in threading.enumerate())
    assert stored(url)[0] == []


def refused(spec):
    with pytest.raises(InputError) as raised:
        open_storage(spec, RUN)
    message = str(raised.value)
    assert "\n" not in message
    assert PASSWORD not in message
    return message


def test_what_is_no_database_is_refused(tmp_path, monkeypatch):
    assert refused("nosuch://host/x") == (
        "storage: nobody knows the kind of database of 'nosuch://host/x'; take postgresql or sqlite"
    )
    assert refused(f"postgresql://u:{PASSWORD}@h:port/x") == (
        "storage: 'postgresql://u:***@h:port/x' is no URL of a database; write e.g. postgresql://user@host/name"
    )
    assert refused("sqlite://") == "storage: 'sqlite://' keeps nothing; give a file, sqlite:///FILE"
    assert "(unable to open database file)" in refused(f"sqlite:///{tmp_path}/nowhere/x.db")
    (tmp_path / "text").write_text("no database, but long enough to be read as one" * 100)
    assert "(file is not a database)" in refused(f"sqlite:///{tmp_path}/text")
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)  # as where it is not installed
    assert refused(f"postgresql://u:{PASSWORD}@h/x").endswith("; pip install 'shiftlab[postgresql]'")
    assert refused("oracle+oracledb://h/x").endswith("; install the driver oracledb")


def test_a_server_that_lets_nobody_in_is_told(server):
    for spec, why in (
        (server.url.replace(PASSWORD, "wrong"), "password authentication failed"),
        (server.url.replace("/postgres", "/nosuch"), 'database "nosuch" does not exist'),
        (server.url.replace(f":{server.port}/", ":1/"), "Connection refused"),
    ):
        message = refused(spec)
        assert message.startswith("storage: cannot open 'postgresql://shiftlab:***@127.0.0.1:")
        assert why in message
        assert message.endswith("; start the server, or mend the URL")
    for url in (server.socket_url, server.url.replace("postgresql:", "postgres:")):
        with opened(url) as storage:
            assert isinstance(storage, MirroredStorage)


def test_a_server_that_says_nothing_is_given_up():
    pytest.importorskip("psycopg")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        assert "timeout" in refused(f"postgresql://u:{PASSWORD}@127.0.0.1:{silent.getsockname()[1]}/x")
        assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("version", "mend"),
    [
        ("v2.6.0.a", "back it up, then run `optuna storage upgrade --storage "),
        ("v99.0.0.a", "install the Optuna that made it"),
    ],
)
def test_tables_of_another_optuna_are_refused(tmp_path, version, mend):
    url = f"sqlite:///{tmp_path}/old.db"
    RDBStorage(url).engine.dispose()
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text(f"update alembic_version set version_num = '{version}'"))
    engine.dispose()
    assert refused(url).startswith(f"storage: {url!r} has the tables of another Optuna; {mend}")


def test_passwords_are_hidden():
    for spec, shown in (
        ("postgresql://u:secret@h/x", "postgresql://u:***@h/x"),
        ("postgresql://u:se@cr:et@h:port/x", "postgresql://u:***@h:port/x"),
        ("postgresql://h/x?user=u&password=secret", "postgresql://h/x?password=***&user=u"),
        ("postgresql://u@h/x", "postgresql://u@h/x"),
        ("studies.journal", "studies.journal"),
    ):
        assert hide_password(spec) == shown


def load_journal(path):
    return optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(path)))).trials


def test_a_journal_is_in_the_run_or_where_it_is_wanted(tmp_path):
    for spec, path in ((None, tmp_path / "run" / "study.journal"), (str(tmp_path / "own"), tmp_path / "own")):
        storage = open_storage(spec, Location.resolve(str(tmp_path / "run")))
        study = create(storage.optuna)
        run_trial(study)
        assert storage.trouble is None
        assert storage.close(1) == ""
        assert contents(load_journal(path)) == contents(study.trials)


def test_the_journal_of_a_bucket_goes_on_on_another_machine(tmp_path, monkeypatch):
    bucket = Location("s3://bucket/run", pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "run")
    (tmp_path / "run").mkdir()
    for machine in ("one", "two", "one"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        storage = open_storage(None, bucket)
        study = create(storage.optuna)
        run_trial(study)
        storage.save()
        assert contents(load_journal(tmp_path / "run" / "study.journal")) == contents(study.trials)
        run_trial(study)
        assert storage.close(1) == ""
    assert len(load_journal(tmp_path / "run" / "study.journal")) == 6


def test_a_bucket_that_takes_nothing_is_trouble_and_no_end(tmp_path, monkeypatch):
    bucket = Location("s3://bucket/run", pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "run")
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    storage = open_storage(None, bucket)
    run_trial(create(storage.optuna))
    (tmp_path / "run").rename(tmp_path / "away")
    storage.save()
    assert "the bucket does not take study.journal" in storage.trouble
    (tmp_path / "away").rename(tmp_path / "run")
    storage.save()
    assert storage.trouble is None
    assert len(load_journal(tmp_path / "run" / "study.journal")) == 1
    assert storage.close(1) == ""
