"""Checkpoints in a run: the last few, the best and the last verified stay, and what is named can be read."""

import json
import os

import pytest

from cluster.errors import InputError
from cluster.storage import Location
from jobs.checkpoints import Checkpoints


@pytest.fixture
def location(tmp_path):
    return Location.resolve(str(tmp_path))


def content(step):
    return f"weights at {step}".encode()


def saved(location, scores, keep=2):
    checkpoints = Checkpoints(location, "abc", keep)
    for step, score in scores:
        checkpoints.save(step, content(step), score)
    return checkpoints


def files(tmp_path):
    return sorted(name for name in os.listdir(tmp_path / "checkpoints/abc") if name != "index.json")


def test_the_last_few_and_the_best_stay(location, tmp_path):
    checkpoints = saved(location, [(10, 0.5), (20, 0.9), (30, 0.7), (40, 0.8), (50, 0.6)])
    assert [entry.step for entry in checkpoints.entries] == [20, 40, 50]
    assert files(tmp_path) == [entry.file for entry in checkpoints.entries]
    assert checkpoints.best.step == 20
    again = Checkpoints(location, "abc", 2)
    assert again.entries == checkpoints.entries
    entry, found = again.latest()
    assert (entry.step, found) == (50, content(50))


def test_of_equal_scores_the_latest_is_best_and_what_has_none_is_never(location):
    assert saved(location, [(10, 0.5), (20, 0.5), (30, None), (40, float("nan"))]).best.step == 20
    assert Checkpoints(location, "other", 2).best is None


def test_a_damaged_checkpoint_is_passed_over(location, tmp_path):
    checkpoints = saved(location, [(10, None), (20, None), (30, None)], keep=3)
    (tmp_path / "checkpoints/abc" / checkpoints.entries[-1].file).write_bytes(b"weights at 3")
    (tmp_path / "checkpoints/abc" / checkpoints.entries[-2].file).unlink()
    entry, found = Checkpoints(location, "abc", 3).latest()
    assert (entry.step, found) == (10, content(10))


def test_what_the_index_does_not_name_is_swept(location, tmp_path):
    saved(location, [(10, None)])
    (tmp_path / "checkpoints/abc/step-000000020-0.ckpt").write_bytes(b"half")
    Checkpoints(location, "abc", 2)
    assert len(files(tmp_path)) == 1


def test_a_rewind_leaves_what_was_verified(location, tmp_path):
    checkpoints = saved(location, [(10, 0.1)])
    checkpoints.verify(15)
    for step in (20, 30, 40):
        checkpoints.save(step, content(step), 0.2)
    assert [e.step for e in checkpoints.entries] == [10, 30, 40]  # the verified one is old and kept
    assert checkpoints.rewind() == 10
    assert len(files(tmp_path)) == 1
    assert checkpoints.latest()[0].verified
    checkpoints.save(20, b"another past", 0.3)
    assert [e.step for e in checkpoints.entries] == [10, 20]


def test_without_anything_verified_a_rewind_begins_anew(location):
    checkpoints = saved(location, [(10, 0.1), (20, 0.2)])
    assert checkpoints.rewind() == 0
    assert checkpoints.latest() is None


def test_an_unreadable_index_is_one_line(location, tmp_path):
    saved(location, [(10, None)])
    path = tmp_path / "checkpoints/abc/index.json"
    path.write_text(json.dumps([{"step": 10}]))
    with pytest.raises(
        InputError, match="run: checkpoints/abc/index.json cannot be read .*; delete checkpoints/abc to begin anew"
    ):
        Checkpoints(location, "abc", 2)
