"""Runs on a real S3 server that throttles, stalls, cuts uploads and goes away: nothing is lost or doubled."""

import datetime as dt
import threading
import time

import pytest

from cluster import retrying
from cluster.errors import InputError
from cluster.retrying import is_final, persist
from cluster.storage import Location
from cluster.store import Run, Store
from tests.cluster.object_store import FaultProxy, object_store  # noqa: F401 - a fixture

CONTENT = bytes(range(256)) * 400


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(retrying, "_warned_at", float("-inf"))


@pytest.fixture
def proxy(object_store):  # noqa: F811
    with FaultProxy(object_store.port) as found:
        yield found


@pytest.fixture
def location(object_store, proxy):  # noqa: F811
    return Location.resolve(object_store.uri("run", proxy))


def rows(first, count):
    now = dt.datetime(2026, 1, 1)
    return [
        (f"t{i}", "m", "d", [], "{}", i, "{}", "completed", None, 1, "n", "cpu", now, 1.0, "{}")
        for i in range(first, first + count)
    ]


def test_throttling_now_and_then_is_not_noticed(location, proxy):
    proxy.fail_every = 2
    for number in range(6):
        location.write(CONTENT, "table", f"{number}")
    assert proxy.failed >= 3
    assert location.list_files("table") == [str(n) for n in range(6)]
    assert all(location.read("table", str(n)) == CONTENT for n in range(6))


def test_a_store_that_keeps_throttling_is_given_up_with_its_own_word(location, proxy):
    proxy.fail_every = 1
    began = time.monotonic()
    with pytest.raises(OSError, match="(?i)slow|503|reduce your request rate"):
        location.write(CONTENT, "file", budget=3)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("verbs", [("GET",), ("HEAD",)])
def test_reads_are_tried_again(location, proxy, verbs):
    location.write(CONTENT, "folder", "file")
    proxy.verbs, proxy.fail_every = verbs, 2
    for _ in range(3):
        assert location.read("folder", "file") == CONTENT
        assert location.exists("folder", "file")
        assert location.list_files("folder") == ["file"]


def test_an_upload_that_is_cut_is_written_again_whole(location, proxy):
    proxy.cuts = 1
    location.write(CONTENT, "file")
    assert proxy.failed == 1
    assert location.read("file") == CONTENT


def test_half_an_object_is_seen_even_when_the_store_says_that_all_is_well(location, proxy):
    proxy.halves = 1
    location.write(CONTENT, "file")
    assert proxy.failed == 1
    assert location.read("file") == CONTENT


def test_throttling_for_longer_than_the_library_waits_is_waited_out_and_said(location, proxy, capsys):
    proxy.fail_every = 1
    threading.Timer(9.0, lambda: setattr(proxy, "fail_every", 0)).start()
    location.write(CONTENT, "file")
    assert location.read("file") == CONTENT
    assert "trying again" in capsys.readouterr().err


def test_a_connection_that_breaks_is_made_again(location, proxy):
    proxy.away = True
    threading.Timer(1.0, lambda: setattr(proxy, "away", False)).start()
    location.write(CONTENT, "file")
    assert location.read("file") == CONTENT


def test_what_a_store_refuses_for_good_is_not_tried_again(object_store):  # noqa: F811
    uri = object_store.same("s3://no-such-bucket-here/run")
    began = time.monotonic()
    with pytest.raises(InputError, match="run: cannot write to 's3://no-such-bucket-here/run"):
        Location.resolve(uri).check_writable()
    assert time.monotonic() - began < 10
    assert is_final(OSError("When reading: AWS Error ACCESS_DENIED during PutObject operation: No"))
    assert not is_final(OSError("AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate."))
    assert not is_final(
        OSError("AWS Error NETWORK_CONNECTION during PutObject operation: curlCode: 28, Timeout was reached")
    )


def test_pauses_grow_and_warnings_are_few(capsys, monkeypatch):
    pauses, fails = [], [OSError("busy")] * 7
    monkeypatch.setattr(retrying.time, "sleep", pauses.append)

    def operation():
        if fails:
            raise fails.pop()
        return "done"

    assert persist(operation, "writing s3://b") == "done"
    assert len(pauses) == 7
    assert 0.05 <= pauses[0] <= 0.15
    assert all(1.6 <= pause <= 7.5 for pause in pauses[5:])
    assert capsys.readouterr().err == "storage: writing s3://b failed (busy); trying again (1)\n"


def test_a_run_is_written_while_every_fifth_write_fails(object_store, proxy):  # noqa: F811
    uri = object_store.uri("run", proxy)
    proxy.fail_every = 5
    with Store(uri) as store:
        for first in range(0, 200, 10):
            store.append({"trials": rows(first, 10)})
            store.seal()
    assert proxy.failed >= 4
    stored = Run(object_store.same(uri)).read("trials")["trial_id"].to_pylist()
    assert sorted(stored) == sorted(f"t{i}" for i in range(200))


def test_a_bucket_that_is_away_costs_no_row_and_does_not_end_the_work(object_store, proxy, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr("cluster.store._PATIENCE_S", 0.5)
    monkeypatch.setattr("cluster.store._FIRST_SEAL_S", 0.0)
    uri = object_store.uri("run", proxy)
    store = Store(uri)
    store.append({"trials": rows(0, 10)})
    proxy.away = True
    time.sleep(0.2)
    store.append({"trials": rows(10, 10)})  # a seal is due, and fails
    store.append({"trials": rows(20, 10)})
    assert "rows stay in" in capsys.readouterr().err
    proxy.away = False
    store.append({"trials": rows(30, 10)})
    store.close()
    stored = Run(object_store.same(uri)).read("trials")["trial_id"].to_pylist()
    assert sorted(stored) == sorted(f"t{i}" for i in range(40))


def test_what_could_not_be_sealed_at_the_end_is_sealed_by_the_next_launch(object_store, proxy, monkeypatch):  # noqa: F811
    monkeypatch.setattr("cluster.store.BUDGET_S", 0.5)
    uri = object_store.uri("run", proxy)
    store = Store(uri)
    store.append({"trials": rows(0, 10)})
    proxy.away = True
    with pytest.raises(OSError, match="run"):
        store._seal(0.5)
    store._lock.close()  # the process ends
    proxy.away = False
    with Store(uri) as again:
        assert again.recovered == 10
    assert len(Run(object_store.same(uri)).read("trials")) == 10


@pytest.mark.parametrize("part", ["../other", "/etc/passwd", "a/../../b", "..", "a\\b", "a\0b"])
def test_names_do_not_lead_out_of_a_run(tmp_path, part):
    location = Location.resolve(str(tmp_path / "run"))
    with pytest.raises(InputError, match="is no name within a run"):
        location.write(b"", part)
    with pytest.raises(InputError, match="is no name within a run"):
        location.read("trials", part)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_does_not_answer_is_asked_again(location, proxy):
    proxy.stall, proxy.stalls = 25.0, 1
    began = time.monotonic()
    location.write(CONTENT, "file")
    assert proxy.failed == 1
    assert time.monotonic() - began < 20
    assert location.read("file") == CONTENT
