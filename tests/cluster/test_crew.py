"""A crew gives the results of its items in their order, whoever computed them and whoever was lost."""

import os
import signal
from pathlib import Path

import pytest

from cluster.crew import Crew, WorkersLostError, deal
from cluster.errors import InputError


def make_adder(offset):
    return lambda common, item: (common * item + offset, os.getpid())


def make_fragile(folder):
    """Item 3 kills its worker while there are fewer than `common` marks of it."""

    def task(common, item):
        marks = list(Path(folder).iterdir())
        if item == 3 and len(marks) < common:
            Path(folder, str(len(marks))).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    return task


def make_failing():
    def task(common, item):
        if item == 2:
            raise ValueError("item 2 cannot be computed")
        return item

    return task


def test_items_are_dealt_round_in_order():
    assert deal([4, 5, 6, 7, 8], [2, 9]) == {2: [4, 6, 8], 9: [5, 7]}
    assert deal([4], [2, 9]) == {2: [4]}
    with pytest.raises(WorkersLostError):
        deal([1], [])


def test_in_this_process():
    with Crew(make_adder, [1], workers=3, in_process=True) as crew:
        assert crew.in_process
        assert [value for value, _ in crew.run(10, [1, 2, 3])] == [11, 21, 31]
        assert {pid for _, pid in crew.run(1, range(4))} == {os.getpid()}
        assert crew.run(1, []) == []
        assert crew.join() == 3
        crew.lose(1)
        assert crew.members == [0, 2, 3]
        with pytest.raises(InputError, match="no worker 1 is left; there are 0, 2, 3"):
            crew.lose(1)


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="workers: is 0"):
        Crew(make_adder, [1], workers=0, in_process=True)


def test_on_actors_results_come_in_order_from_several_processes(ray_session):
    with Crew(make_adder, [1], workers=2) as crew:
        assert not crew.in_process
        found = crew.run(10, [1, 2, 3, 4])
        assert [value for value, _ in found] == [11, 21, 31, 41]
        pids = [pid for _, pid in found]
        assert len(set(pids)) == 2
        assert os.getpid() not in pids
        assert [pid for _, pid in crew.run(1, [0, 0, 0, 0])] == pids  # the same processes serve the next call


def test_a_worker_that_dies_is_replaced_and_its_items_are_computed_by_others(ray_session, tmp_path):
    with Crew(make_fragile, [str(tmp_path)], workers=2) as crew:
        assert crew.run(1, [1, 2, 3, 4, 5]) == [1, 2, 3, 4, 5]
        assert len(crew.members) == 2
        assert max(crew.members) == 2


def test_an_item_that_takes_every_worker_down_ends_the_call(ray_session, tmp_path):
    with Crew(make_fragile, [str(tmp_path)], workers=2) as crew:
        with pytest.raises(WorkersLostError, match="took 3 workers down"):
            crew.run(99, [3])


def test_what_a_task_raises_is_raised_here(ray_session):
    for in_process in (True, None):
        with Crew(make_failing, workers=2, in_process=in_process) as crew:
            with pytest.raises(ValueError, match="item 2 cannot be computed"):
                crew.run(None, [1, 2, 3])


def test_a_setup_that_fails_is_said_in_a_line(ray_session):
    with Crew(make_adder, [], workers=1) as crew:
        with pytest.raises(InputError, match="workers: cannot be set up: .*offset"):
            crew.run(1, [1])
