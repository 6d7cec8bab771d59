"""Trials that report while they run, plans that depend on outcomes, and trials that are told to end."""

import collections
import os
import signal
import time

import pytest

from cluster.executor import execute
from cluster.plan import Settings
from cluster.signals import StopRequest
from cluster.trial import Trial
from cluster.worker import Channel, Report
from tests.cluster.tasks import setup_reporting, setup_scripted


@pytest.fixture(params=[0, 2], ids=["here", "ray"])
def ray(request):
    return None if request.param == 0 else request.getfixturevalue("ray_session")


def trials(count, pause=0.0, method="report"):
    return [Trial.create(method, "data", seed=n, budget={"pause": pause}) for n in range(count)]


def run(plan, ray, decide=None, setup=setup_reporting, shared=(), **settings):
    settings = Settings(workers=0 if ray is None else 2, **settings)
    outcomes = []
    for batch, _ in execute(plan, setup, shared, settings=settings, stop=StopRequest(), ray=ray, decide=decide):
        outcomes += batch
    return outcomes


def test_every_report_is_heard_once_and_in_order(ray):
    heard = collections.defaultdict(list)

    def decide(reports):
        for report in reports:
            heard[report.trial_id].append((report.step, tuple(report.rows)))
        return []

    outcomes = run(trials(6, 0.01), ray, decide)
    assert [o.status for o in outcomes] == ["completed"] * 6
    for outcome in outcomes:
        rows = [tuple(row) for row in outcome.tables["metrics"]]
        # The last reports of a trial may still be under way when it ends: its rows tell them all the same.
        assert heard[outcome.trial.trial_id] == [(row[0], (row,)) for row in rows][: len(heard[outcome.trial.trial_id])]
        assert len(heard[outcome.trial.trial_id]) >= 8


def test_a_trial_that_is_told_to_end_is_pruned_with_what_it_had_measured_and_the_others_go_on(ray):
    plan = trials(6, 0.05)
    doomed = {plan[1].trial_id, plan[4].trial_id}

    def decide(reports):
        return [r.trial_id for r in reports if r.trial_id in doomed and r.step == 3]

    outcomes = {o.trial.trial_id: o for o in run(plan, ray, decide)}
    for trial in plan:
        outcome = outcomes[trial.trial_id]
        steps = [row[0] for row in outcome.tables["metrics"]]
        if trial.trial_id in doomed:
            assert (outcome.status, outcome.error, outcome.attempts) == ("pruned", None, 1)
            assert steps in ([1, 2, 3], [1, 2, 3, 4])  # within one evaluation of the decision
        else:
            assert (outcome.status, steps) == ("completed", list(range(1, 11)))


def test_members_of_a_pack_are_pruned_one_by_one(ray):
    plan = trials(4, 0.03)
    limit = {trial.trial_id: 2 * n + 2 for n, trial in enumerate(plan)}

    def decide(reports):
        return [r.trial_id for r in reports if r.step >= limit[r.trial_id]]

    outcomes = {o.trial.seed: o for o in run([plan], ray, decide)}
    lengths = [len(outcomes[n].tables["metrics"]) for n in range(4)]
    assert [outcomes[n].status for n in range(4)] == ["pruned"] * 4
    assert all(2 * n + 2 <= length <= 2 * n + 3 for n, length in enumerate(lengths)), lengths


def test_a_trial_can_wait_for_the_answer(ray):
    """Then it ends at the very report that the decision is about, however short its steps are."""

    def decide(reports):
        return [r.trial_id for r in reports if r.step == 4]

    outcomes = run(trials(4), ray, decide, shared=(30.0,), acknowledge=True)
    assert [len(o.tables["metrics"]) for o in outcomes] == [4] * 4


def test_a_plan_may_wait_for_outcomes(ray):
    """Each trial is given only when the one before has ended."""
    ended = []

    def plan():
        for trial in trials(4):
            yield trial
            while trial.trial_id not in ended:
                yield None

    stop, order = StopRequest(), []
    settings = Settings(workers=0 if ray is None else 2)
    for batch, running in execute(plan(), setup_reporting, settings=settings, stop=stop, ray=ray):
        assert running <= 1
        ended += [o.trial.trial_id for o in batch]
        order += [o.trial.seed for o in batch]
    assert order == [0, 1, 2, 3]


def test_max_batch_bounds_what_is_asked_for_ahead(ray_session):
    """Two calls of one trial each for each of two workers: no more than four are on their way."""
    given, ended = 0, 0

    def plan():
        nonlocal given
        for trial in trials(60):
            given += 1
            assert given - ended <= 4
            yield trial

    settings = Settings(workers=2, max_batch=1)
    for batch, _ in execute(plan(), setup_reporting, settings=settings, stop=StopRequest(), ray=ray_session):
        ended += len(batch)
    assert ended == 60


def test_a_lost_worker_reports_again_from_its_replacement(ray_session, tmp_path):
    plan = [Trial.create("die:1", "data", seed=1, budget={"pause": 0}), *trials(2)]
    heard = []
    outcomes = run(
        plan, ray_session, lambda reports: heard.extend(reports) or [], setup=setup_scripted, shared=(str(tmp_path),)
    )
    assert sorted(o.status for o in outcomes) == ["completed"] * 3


def test_killing_a_reporting_worker_costs_only_an_attempt(ray_session):
    """kill -9 in the middle of a reporting trial: it runs again, reports again, and completes."""
    killed, reports = [], collections.Counter()

    def decide(some):
        for report in some:
            reports[report.trial_id] += 1
            if not killed and report.step == 3:
                killed.append(int(report.rows[0][1].removeprefix("pid ")))
                os.kill(killed[0], signal.SIGKILL)
        return []

    outcomes = run(trials(2, 0.1), ray_session, decide)
    assert killed
    assert sorted(o.status for o in outcomes) == ["completed", "completed"]
    assert sorted(o.attempts for o in outcomes) == [1, 2]
    assert max(reports.values()) > 10


def test_a_channel_forgets_trials_that_have_ended():
    channel = Channel()
    channel.report("a", 1, [])
    assert channel.take(0) == [Report("a", 1, [])]
    assert channel.take(0) == []
    channel.answer({"a": 1}, ["a"])
    assert channel.stopped("a")
    assert channel.wait("a", 1, 0)
    channel.forget(["a"])
    assert not channel.stopped("a")
    assert not channel.wait("a", 1, 0)


def test_a_report_does_not_wait_for_whoever_decides(ray_session):
    """The decision takes 0.3 s a report; ten reports of a trial with nothing else to do take far less than 3 s."""

    def decide(reports):
        time.sleep(0.3)
        return []

    (outcome,) = run(trials(1), ray_session, decide)
    assert outcome.seconds < 0.3
