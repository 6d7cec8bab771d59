"""A gang of workers: it goes on from the last checkpoint when it loses one, grows again, pauses, fails and accuses."""

import os
import signal
import time

import pytest

from cluster.errors import InputError
from cluster.training.gang import Gang, GangSettings
from cluster.training.rank import Mailbox, Message, is_broken_connection
from cluster.trial import Trial
from tests.cluster import gang_tasks as tasks


class Desk:
    """Keeps what a training gives to the driver; calls `then` after every message."""

    def __init__(self, then=lambda desk: None):
        self.messages, self.events, self.saved, self.rewound, self._then = [], [], None, 0, then

    def hear(self, message, workers):
        self.messages.append((message, workers))
        if message.kind == "checkpoint":
            self.saved = (message.step, message.content[0])
        self._then(self)

    def checkpoint(self):
        return self.saved

    def rewind(self):
        self.rewound += 1

    def event(self, kind, step, node, detail):
        self.events.append((kind, step, node, detail))

    def waiting(self, ready, wanted):
        pass

    @property
    def kinds(self):
        return [kind for kind, *_ in self.events]


@pytest.fixture
def gang(ray_session, tmp_path):
    gangs = []

    def make(setup=tasks.setup_counting, shared=None, workers=2, least=1):
        settings = GangSettings(workers, least)
        gangs.append(Gang(ray_session, setup, [str(tmp_path)] if shared is None else shared, settings))
        return gangs[-1]

    yield make
    for each in gangs:
        each.close()


def trial(steps, pause=0.0):
    return Trial.create("count", "numbers", budget={"steps": steps, "pause": pause})


def never():
    return False


def slowly():
    """Never stop, but take longer to say so than a training needs."""
    time.sleep(1.0)
    return False


def test_a_driver_that_is_busy_until_after_the_end_hears_everything(gang):
    """The answer that waits for it holds what was said until then; what came after must be asked for."""
    workers = gang()
    for _ in range(2):
        desk = Desk()
        ended = workers.train(trial(12, pause=0.02), desk, slowly)
        assert ended.kind == "done"
        assert [m.step for m, _ in desk.messages if m.kind == "log"] == list(range(1, 13))


def test_a_training_ends_with_what_rank_0_measured_and_every_message_is_heard(gang):
    desk = Desk()
    workers = gang()
    for number in range(3):  # the same workers, one training after the other
        desk.messages.clear()
        desk.saved = None
        ended = workers.train(trial(12), desk, never)
        assert ended.kind == "done", number
        assert ended.tables == {"metrics": [(12, "worlds [2]", "out", "value", 12.0)]}
        assert [m.step for m, _ in desk.messages if m.kind == "log"] == list(range(1, 13))
        assert [m.step for m, _ in desk.messages if m.kind == "checkpoint"] == [5, 10]
        assert {workers for _, workers in desk.messages} == {2}
    assert desk.events == []


def test_a_lost_worker_costs_the_steps_since_the_checkpoint_and_comes_back(gang, tmp_path):
    killed = []

    def kill(desk):
        if not killed and desk.saved is not None and desk.saved[0] == 20:
            pids = sorted(int(path.name[4:]) for path in tmp_path.glob("pid-*"))
            (tmp_path / f"die-{pids[0]}").touch()
            killed.append(time.monotonic())

    class Forgetting(Desk):
        def event(self, kind, step, node, detail):
            super().event(kind, step, node, detail)
            # Who is left must not think that yet another one dies.
            for path in tmp_path.glob("die-*"):
                path.unlink()

    desk = Forgetting(kill)
    ended = gang().train(trial(200, pause=0.05), desk, never)
    assert ended.kind == "done"
    (row,) = ended.tables["metrics"]
    assert row[1] == "worlds [2, 1, 2]"
    assert desk.kinds == ["worker_lost", "resized", "resized"]
    assert [detail for kind, _, _, detail in desk.events if kind == "resized"] == ["2 to 1 workers", "1 to 2 workers"]
    steps = [m.step for m, _ in desk.messages if m.kind == "log"]
    assert sorted(set(steps)) == list(range(1, 201))
    assert len(steps) - len(set(steps)) <= 5  # no more is done twice than what was not saved


def test_a_training_that_is_stopped_is_saved(gang):
    asked = []
    desk = Desk(lambda d: asked.append(True) if len(d.messages) > 10 else None)
    ended = gang().train(trial(100_000, pause=0.01), desk, lambda: bool(asked))
    assert ended.kind == "paused"
    assert desk.saved[0] == ended.step
    assert desk.events == []


def test_a_failure_of_the_trainings_own_is_no_lost_worker(gang, tmp_path):
    desk = Desk(lambda d: (tmp_path / "fail").touch() if len(d.messages) == 3 else None)
    ended = gang().train(trial(1000, pause=0.01), desk, never)
    assert ended.kind == "failed"
    assert ended.error.startswith("ValueError: planned failure")
    assert desk.events == []


def test_who_is_to_blame_is_taken_out_of_service_with_the_node(gang):
    desk = Desk()
    stops = []

    def stop():
        if desk.events and not stops:
            stops.append(time.monotonic() + 5)
        return bool(stops) and time.monotonic() > stops[0]

    ended = gang(tasks.setup_accusing, [(1,)]).train(trial(1), desk, stop)
    assert ended.kind == "paused"  # there is no other node: nobody came to accuse again until somebody stopped waiting
    ((kind, step, node, detail),) = desk.events
    assert (kind, step) == ("corrupted", 7)
    assert node
    assert "is taken out of service" in detail
    assert desk.rewound == 1


def test_an_undecided_accusation_takes_nobody_out_of_service_and_ends_when_it_repeats(gang):
    desk = Desk()
    ended = gang(tasks.setup_accusing, [(0, 1)]).train(trial(1), desk, never)
    assert ended.kind == "failed"
    assert "a gradient differed" in ended.error
    assert desk.kinds == ["corrupted"] * desk.rewound
    assert all("undecided" in detail for _, _, _, detail in desk.events)


def test_workers_that_cannot_be_set_up_are_one_line(gang):
    with pytest.raises(InputError, match="workers: none could be set up: .*no such library here"):
        gang(tasks.setup_broken).train(trial(1), Desk(), never)


def test_a_killed_process_is_noticed_while_the_others_wait_for_it(gang, tmp_path):
    """Nobody raises here: the survivor would wait for ever, and is started anew."""
    killed = []

    def kill(desk):
        if not killed and desk.saved is not None:
            pids = sorted(int(path.name[4:]) for path in tmp_path.glob("pid-*"))
            os.kill(pids[-1], signal.SIGKILL)
            killed.append(pids[-1])

    desk = Desk(kill)
    ended = gang(least=2).train(trial(30, pause=0.05), desk, never)
    assert ended.kind == "done"
    assert set(desk.kinds) == {"worker_lost", "worker_restarted"}


def test_what_is_put_before_the_end_is_taken_and_nothing_of_the_next_training():
    mailbox = Mailbox()
    mailbox.put(Message("log", 1, {}))
    mailbox.close()
    assert [m.step for m in mailbox.take(10)] == [1]
    began = time.monotonic()
    assert mailbox.take(10) == []
    assert time.monotonic() - began < 5
    mailbox.pause()
    assert mailbox.pausing
    mailbox.open()
    assert not mailbox.pausing


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:14488"), True),
        (RuntimeError("NCCL communicator was aborted"), True),
        (ValueError("the loss is NaN"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_a_broken_connection_is_told_from_other_errors(error, broken):
    assert is_broken_connection(error) is broken
