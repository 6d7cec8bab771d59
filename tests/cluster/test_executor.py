"""The executor: every trial exactly once, whatever workers and trials do, here and on Ray alike."""

import numpy as np
import pytest

from cluster.errors import InputError
from cluster.executor import execute
from cluster.plan import Settings
from cluster.signals import StopRequest
from cluster.trial import Trial
from tests.cluster import tasks


def plan(methods):
    return [Trial.create(method, "D", seed=i) for i, method in enumerate(methods)]


def run(trials, setup, shared=(), ray=None, **settings):
    settings = Settings(**{"workers": 2 if ray else 0, "retries": 1, **settings})
    outcomes = [
        o for batch, _ in execute(trials, setup, shared, settings=settings, stop=StopRequest(), ray=ray) for o in batch
    ]
    assert sorted(o.trial.trial_id for o in outcomes) == sorted(t.trial_id for t in trials)  # each exactly once
    return {o.trial.seed: o for o in outcomes}


@pytest.fixture(params=["here", "ray"])
def ray(request):
    return request.getfixturevalue("ray_session") if request.param == "ray" else None


def test_a_plan_runs_to_its_end_and_values_depend_on_the_trial_alone(ray):
    trials = plan(["m"] * 300)
    first = run(trials, tasks.setup_plain, ray=ray)
    again = run(trials[::-1], tasks.setup_plain)
    assert {k: o.tables for k, o in first.items()} == {k: o.tables for k, o in again.items()}
    assert all(o.status == "completed" and o.attempts == 1 and o.node and o.device for o in first.values())


def test_shared_objects_reach_the_workers(ray):
    outcomes = run(plan(["m"] * 5), tasks.setup_shared, [np.arange(5.0)], ray=ray)
    assert [outcomes[i].tables["metrics"][0][-1] for i in range(5)] == [0, 1, 2, 3, 4]


def test_a_trial_that_raises_or_gives_nan_is_tried_again_then_failed(ray, tmp_path):
    methods = ["m", "raise:1", "raise", "nan:1", "nan", "m"]
    outcomes = run(plan(methods), tasks.setup_scripted, [str(tmp_path)], ray=ray)
    assert [outcomes[i].status for i in range(6)] == [
        "completed",
        "completed",
        "failed",
        "completed",
        "failed",
        "completed",
    ]
    assert [outcomes[i].attempts for i in range(6)] == [1, 2, 2, 2, 2, 1]
    assert outcomes[2].error.startswith("ValueError: planned failure\n")
    assert "Traceback" in outcomes[2].error
    assert outcomes[4].error.startswith("NaN: value of environment 'env' (in) is NaN at step 0")
    assert outcomes[2].tables == {}


def test_a_trial_that_outlives_its_limit_is_failed_and_the_rest_goes_on(ray, tmp_path):
    outcomes = run(
        plan(["m", "hang", "hang:1", "m"]), tasks.setup_scripted, [str(tmp_path)], ray=ray, trial_timeout=1.0
    )
    assert [outcomes[i].status for i in range(4)] == ["completed", "failed", "completed", "completed"]
    assert outcomes[1].error.splitlines()[0] == "TrialTimeoutError: outlived --trial_timeout 1 s"
    # An attempt in a batch counts for nobody, and whether it was in one depends on which worker was ready first.
    assert outcomes[2].attempts in (1, 2)


def test_a_lost_worker_costs_only_its_own_trial_even_out_of_a_batch(ray_session, tmp_path):
    methods = ["m"] * 200 + ["die"] + ["m"] * 50 + ["die:1"] + ["m"] * 50
    outcomes = run(plan(methods), tasks.setup_scripted, [str(tmp_path)], ray=ray_session)
    failed = [i for i, o in outcomes.items() if o.status == "failed"]
    assert failed == [200]
    assert outcomes[200].error.startswith("WorkerLost: ")
    assert outcomes[200].attempts == 2
    assert outcomes[251].status == "completed"


def test_no_retries_means_one_attempt(ray_session, tmp_path):
    outcomes = run(plan(["raise", "die", "m"]), tasks.setup_scripted, [str(tmp_path)], ray=ray_session, retries=0)
    assert [outcomes[i].attempts for i in range(3)] == [1, 1, 1]
    assert [outcomes[i].status for i in range(3)] == ["failed", "failed", "completed"]


def test_workers_that_cannot_be_set_up_are_one_line_not_an_endless_loop(ray_session):
    with pytest.raises(InputError, match="workers: none could be set up: RuntimeError: no such library here"):
        run(plan(["m"]), tasks.setup_broken, ray=ray_session)


def test_a_stop_ends_the_plan_at_once(ray, tmp_path):
    stop = StopRequest()
    settings = Settings(workers=2 if ray else 0)
    seen = []
    for outcomes, _ in execute(
        plan(["m"] * 5 + ["sleep:0.05"] * 2000),
        tasks.setup_scripted,
        [str(tmp_path)],
        settings=settings,
        stop=stop,
        ray=ray,
    ):
        seen += outcomes
        if len(seen) >= 5:
            stop.request()
    assert 5 <= len(seen) < 100


def test_the_plan_is_read_lazily(ray):
    read = []

    def lazy():
        for trial in plan(["m"] * 100_000):
            read.append(trial)
            yield trial

    stop = StopRequest()
    for outcomes, _ in execute(
        lazy(), tasks.setup_plain, settings=Settings(workers=2 if ray else 0), stop=stop, ray=ray
    ):
        if outcomes:
            stop.request()
    assert 0 < len(read) < 5000
