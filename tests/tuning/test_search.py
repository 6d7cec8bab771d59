"""A study on its way: replicates, pruning, duplicates, failures, and everything that an earlier launch can leave."""

import json
import math
import warnings

import optuna
import pytest
from optuna.trial import TrialState

from cluster.trial import Trial
from cluster.worker import Report
from tuning.convergence import Convergence
from tuning.search import Ended, Search
from tuning.search_space import build_space
from tuning.study import open_study, quiet_optuna
from tuning.tables import SUGGESTIONS

STEPS = 10


@pytest.fixture(autouse=True)
def _quiet():
    with quiet_optuna():
        yield


class Loss:
    """The mean of what an evaluation measured; of a trial, that of its last one."""

    names = ["loss"]
    directions = ["minimize"]

    def final(self, trial, rows, seconds):
        return [rows[-1][4]]

    def at_step(self, trial, rows):
        return sum(row[4] for row in rows) / len(rows)


class LossAndSeconds(Loss):
    names = ["loss", "seconds"]
    directions = ["minimize", "minimize"]

    def final(self, trial, rows, seconds):
        return [rows[-1][4], seconds]


FLOATS = {"x": {"low": -5.0, "high": 5.0}, "y": {"low": -5.0, "high": 5.0}}
FINITE = {"x": {"low": -2.0, "high": 2.0, "step": 1.0}}


def make_search(
    trials=20,
    ranges=FLOATS,
    storage=None,
    sampler=None,
    pruner=None,
    objective=None,
    **more,
):
    space = build_space({}, ranges, {"x": 0.0, "y": 0.0}, {}, "me")
    objective = objective or Loss()
    storage = storage or optuna.storages.InMemoryStorage()
    study = open_study("s", storage, objective.directions, space, {"method": "me"})
    study.sampler = sampler or optuna.samplers.RandomSampler(seed=len(study.trials))
    study.pruner = pruner or optuna.pruners.NopPruner()

    def make(parameters, replicate):
        return Trial.create("me", "d", (), parameters, replicate, {"steps": STEPS})

    return Search(study, space, objective, make, trials, steps=STEPS, **more)


def loss(trial):
    """What the trial's last evaluation measures."""
    values = json.loads(trial.hyperparameters)
    return float(values["x"] ** 2 + values.get("y", 0.0) ** 2 + 0.1 * trial.seed)


def rows_of(trial, until=STEPS):
    """Evaluations at steps 2, 4, ...: they come down to the trial's loss."""
    return [(step, "env", "out", "loss", loss(trial) + (STEPS - step)) for step in range(2, until + 1, 2)]


def work(search, trial):
    """Run a trial as a worker does: report, and end where it is told to."""
    for row in rows_of(trial):
        if search.decide([Report(trial.trial_id, row[0], [row])]) and row[0] < STEPS:
            search.take(trial, Ended("pruned", rows_of(trial, row[0]), 1.0))
            return
    search.take(trial, Ended("completed", rows_of(trial), 1.0))


def run(search, limit=10_000):
    """Run a search alone to its end; returns the trials that ran."""
    ran = []
    while not search.done:
        trial = search.next()
        assert trial is not None
        ran.append(trial)
        work(search, trial)
        if len(ran) >= limit:
            break
    return ran


def as_dicts(rows):
    return [dict(zip(SUGGESTIONS.names, row, strict=True)) for row in rows]


def test_a_study_asks_runs_and_tells():
    search = make_search(20)
    ran = run(search)
    assert len(ran) == search.completed == search.finished == 20
    study = search.study
    assert [t.number for t in study.trials] == list(range(20))
    for ours, theirs in zip(ran, study.trials, strict=True):
        assert theirs.value == loss(ours)
        assert theirs.user_attrs["trial_ids"] == [ours.trial_id]
        assert theirs.intermediate_values == {row[0]: row[4] for row in rows_of(ours)}
    assert search.best == min(map(loss, ran))
    rows = as_dicts(search.rows())
    assert [r["number"] for r in rows] == list(range(20))
    assert rows[3]["values"] == [loss(ran[3])]
    assert json.loads(rows[3]["parameters"]) == json.loads(ran[3].hyperparameters)
    assert search.rows() == []


def test_the_result_is_that_of_plain_optuna():
    """The same sampler, one at a time: the same points in the same order."""
    search = make_search(30, sampler=optuna.samplers.TPESampler(seed=5))
    ran = run(search)
    plain = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=5))
    plain.optimize(lambda t: t.suggest_float("x", -5, 5) ** 2 + t.suggest_float("y", -5, 5) ** 2, n_trials=30)
    assert [json.loads(t.hyperparameters) for t in ran] == [t.params for t in plain.trials]
    assert search.best == plain.best_value


def test_pruning_reaches_into_a_trial_and_is_optunas_own():
    search = make_search(30, pruner=optuna.pruners.MedianPruner(n_startup_trials=3))
    run(search)
    plain = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=0), pruner=optuna.pruners.MedianPruner(n_startup_trials=3)
    )

    def objective(trial):
        value = trial.suggest_float("x", -5, 5) ** 2 + trial.suggest_float("y", -5, 5) ** 2
        for step in range(2, STEPS + 1, 2):
            trial.report(value + (STEPS - step), step)
            if trial.should_prune() and step < STEPS:
                raise optuna.TrialPruned
        return value

    plain.optimize(objective, n_trials=30)
    assert 5 < search.pruned < 30
    ours = [(t.number, t.state, t.intermediate_values) for t in search.study.trials]
    assert ours == [(t.number, t.state, t.intermediate_values) for t in plain.trials]


def test_replicates_run_one_after_the_other_and_are_averaged():
    search = make_search(4, seeds=3)
    ran = run(search)
    assert [t.seed for t in ran] == [0, 1, 2] * 4
    assert len({t.hyperparameters for t in ran}) == 4
    for number, trial in enumerate(search.study.trials):
        scores = [loss(t) for t in ran[3 * number : 3 * number + 3]]
        assert trial.value == pytest.approx(sum(scores) / 3)
        assert trial.user_attrs["scores"] == [[s] for s in scores]
        # One axis: replicates stand behind each other, each value the estimate of the mean so far.
        assert sorted(trial.intermediate_values) == list(range(2, 3 * STEPS + 1, 2))
        assert trial.intermediate_values[STEPS + 4] == pytest.approx((scores[0] + scores[1] + 6) / 2)


def test_a_suggestion_is_pruned_between_replicates():
    search = make_search(
        2, seeds=3, pruner=optuna.pruners.ThresholdPruner(upper=10.0), enqueue=[{"x": 0, "y": 0}, {"x": 4, "y": 4}]
    )
    good = [search.next() for _ in range(2)]
    assert good[1] is not None
    search.take(good[0], Ended("completed", rows_of(good[0]), 1.0))
    search.take(good[1], Ended("completed", rows_of(good[1]), 1.0))  # its reports came too late to end it
    ran = run(search)
    assert [t.seed for t in ran] == [1, 2]
    assert [t.state for t in search.study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert as_dicts(search.rows())[0]["state"] == "pruned"


def test_wilcoxon_compares_replicates():
    pruner = optuna.pruners.WilcoxonPruner(p_threshold=0.2, n_startup_steps=2)
    search = make_search(2, seeds=8, pairwise=True, pruner=pruner, enqueue=[{"x": 0.0, "y": 0.0}, {"x": 3.0, "y": 3.0}])
    ran = run(search)
    first, second = search.study.trials
    assert (first.state, second.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert sorted(first.intermediate_values) == list(range(8))
    assert len(second.intermediate_values) < 8
    assert len(ran) == 8 + len(second.intermediate_values)


def test_several_objectives_have_no_pruning_and_a_front():
    search = make_search(15, objective=LossAndSeconds(), pruner=optuna.pruners.MedianPruner(n_startup_trials=1))
    run(search)
    assert search.completed == 15
    assert all(t.values[1] == 1.0 for t in search.study.trials)
    assert search.best is None
    assert len(search.study.best_trials) >= 1


def test_a_failed_trial_fails_its_suggestion_and_the_study_goes_on():
    search = make_search(5, seeds=2)
    trial = search.next()
    search.take(trial, Ended("failed", [], 1.0, "ValueError: no"))
    run(search)
    states = [t.state for t in search.study.trials]
    assert states == [TrialState.FAIL] + [TrialState.COMPLETE] * 4
    assert (search.failed, search.completed, search.first_error) == (1, 4, "ValueError: no")
    assert search.study.trials[0].user_attrs["error"] == "ValueError: no"
    assert as_dicts(search.rows())[0]["error"] == "ValueError: no"


def test_a_score_that_is_not_finite_is_a_failure():
    search = make_search(1)
    trial = search.next()
    search.take(trial, Ended("completed", [(2, "env", "out", "loss", math.inf)], 1.0))
    assert search.study.trials[0].state == TrialState.FAIL


def test_failed_suggestions_are_tried_again_when_asked():
    storage = optuna.storages.InMemoryStorage()
    search = make_search(3, storage=storage)
    bad = search.next()
    search.take(bad, Ended("failed", [], 1.0, "ValueError: no"))
    run(search)
    again = make_search(
        3,
        storage=storage,
        retry_failed=True,
        stored=lambda key: Ended("failed", [], 1.0) if key == bad.trial_id else None,
    )
    (retried,) = run(again)
    assert retried.hyperparameters == bad.hyperparameters
    assert [t.state for t in again.study.trials] == [TrialState.FAIL] + [TrialState.COMPLETE] * 3
    assert again.study.trials[3].user_attrs["retry_of"] == 0
    assert make_search(3, storage=storage, retry_failed=True).done  # once


def test_a_trial_that_is_tried_again_reports_again_without_a_word():
    """Its worker died after three evaluations: the second attempt reports them once more."""
    search = make_search(1)
    trial = search.next()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for row in [*rows_of(trial)[:3], *rows_of(trial)]:
            search.decide([Report(trial.trial_id, row[0], [row])])
        search.take(trial, Ended("completed", rows_of(trial), 1.0))
    assert search.study.trials[0].intermediate_values == {row[0]: row[4] for row in rows_of(trial)}


def test_a_point_that_is_suggested_twice_runs_once():
    search = make_search(40, FINITE)
    ran = []
    while not search.done:
        some = [trial for _ in range(4) if (trial := search.next()) is not None]
        ran += some
        for trial in some:
            work(search, trial)
    assert len(ran) == len({t.trial_id for t in ran}) == 5
    assert search.completed == 40
    assert {t.value for t in search.study.trials} == {0.0, 1.0, 4.0}
    assert all(t.value == t.params["x"] ** 2 for t in search.study.trials)


def test_what_the_run_holds_is_not_run_again():
    search = make_search(1, enqueue=[{"x": 1.0, "y": 2.0}], stored=lambda key: Ended("completed", STORED, 1.0))
    assert search.next() is None
    assert search.done
    assert search.study.trials[0].value == 7.0


STORED = [(STEPS, "env", "out", "loss", 7.0)]


def test_a_grid_ends_when_all_is_tried():
    space = {"x": [-2.0, -1.0, 0.0, 1.0, 2.0]}
    search = make_search(100, FINITE, sampler=optuna.samplers.GridSampler(space, seed=0))
    ran = run(search)
    assert len(ran) == 5
    assert search.exhausted
    assert search.done


def test_known_good_points_come_first():
    search = make_search(3, enqueue=[{"x": 1.0, "y": -1.0}, {"x": 0.5}])
    ran = [json.loads(t.hyperparameters) for t in run(search)]
    assert ran[0] == {"x": 1.0, "y": -1.0}
    assert ran[1]["x"] == 0.5
    assert make_search(5, storage=search.study._storage, enqueue=[{"x": 1.0}]).study.trials[-1].number == 2  # once


# What an earlier launch left


def test_a_study_that_was_killed_goes_on_with_what_was_running():
    """As after SIGKILL: the storage holds two trials that run, one of them between its suggestions."""
    storage = optuna.storages.InMemoryStorage()
    search = make_search(6, storage=storage)
    done, cut = search.next(), search.next()
    work(search, done)
    for row in rows_of(cut)[:2]:
        search.decide([Report(cut.trial_id, row[0], [row])])
    half = search.study.ask()
    half.suggest_float("x", -5, 5)

    again = make_search(6, storage=storage, rows=as_dicts(search.rows()))
    assert str(again.recovered) == "2 cut short, run again"
    ran = run(again)
    assert ran[0] == cut
    assert json.loads(ran[1].hyperparameters)["x"] == half.params["x"]
    assert len(ran) == 5
    trials = again.study.trials
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 6
    assert [t.number for t in trials] == list(range(6))
    assert trials[1].intermediate_values == {row[0]: row[4] for row in rows_of(cut)}


def test_a_trial_that_was_stored_but_not_told_is_told():
    storage = optuna.storages.InMemoryStorage()
    first = make_search(2, storage=storage).next()
    stored = {first.trial_id: Ended("completed", rows_of(first), 1.0)}
    again = make_search(2, storage=storage, stored=stored.get)
    assert str(again.recovered) == "1 already measured, now told"
    assert len(run(again)) == 1
    assert again.study.trials[0].value == loss(first)


def test_a_stopped_search_gives_back_what_it_ran():
    storage = optuna.storages.InMemoryStorage()
    search = make_search(3, storage=storage)
    cut = search.next()
    search.decide([Report(cut.trial_id, 2, rows_of(cut)[:1])])
    search.stop()
    assert [t.state for t in search.study.trials] == [TrialState.WAITING]
    again = make_search(3, storage=storage)
    assert str(again.recovered) == "1 cut short, run again"
    assert run(again)[0] == cut
    assert [t.state for t in again.study.trials] == [TrialState.COMPLETE] * 3


def test_a_storage_that_lost_its_end_is_filled_from_the_run():
    """As when a mirror is cut off: the storage knows trials 0 and 1, the run 0 to 3 and 5; 4 was running."""
    whole = make_search(6)
    first = [whole.next() for _ in range(6)]
    for number in (0, 1, 2, 3, 5):
        work(whole, first[number])
    rows = as_dicts(whole.rows())

    storage = optuna.storages.InMemoryStorage()
    part = make_search(6, storage=storage)
    for trial in whole.study.trials[:2]:
        part.study.add_trial(trial)
    again = make_search(7, storage=storage, rows=rows)
    assert str(again.recovered) == "3 put back into the study from the run, 1 cut short, run again"
    assert again.completed == 5
    ran = run(again)
    assert len(ran) == 2  # number 4 anew, and number 6
    trials = again.study.trials
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 7
    for number in (0, 1, 2, 3, 5):
        assert trials[number].value == loss(first[number])
        assert trials[number].params == json.loads(first[number].hyperparameters)
        assert trials[number].distributions == whole.study.trials[number].distributions
        assert trials[number].datetime_start == whole.study.trials[number].datetime_start


def test_what_the_run_knows_better_is_told():
    """As when a mirror is cut off in the middle of a trial: the storage has it running, without its last parameter."""
    whole = make_search(1)
    run(whole)
    (row,) = as_dicts(whole.rows())
    storage = optuna.storages.InMemoryStorage()
    part = make_search(1, storage=storage)
    part.study.ask().suggest_float("x", -5, 5)
    part.study._storage.get_trial(0).params["x"] = whole.study.trials[0].params["x"]
    again = make_search(2, storage=storage, rows=[row])
    assert str(again.recovered) == "1 already measured, now told"
    assert again.rows() == []  # its row is there
    ours, theirs = again.study.trials[0], whole.study.trials[0]
    assert (ours.state, ours.values, ours.params) == (theirs.state, theirs.values, theirs.params)
    assert ours.intermediate_values == theirs.intermediate_values
    assert len(run(again)) == 1


def test_rows_that_the_run_lacks_are_written_from_the_study():
    storage = optuna.storages.InMemoryStorage()
    search = make_search(3, storage=storage)
    run(search)
    rows = as_dicts(search.rows())
    again = make_search(3, storage=storage, rows=rows[:1])
    assert [r["number"] for r in as_dicts(again.rows())] == [1, 2]
    assert again.done


def test_a_study_goes_on_to_more_trials():
    storage = optuna.storages.InMemoryStorage()
    run(make_search(3, storage=storage))
    search = make_search(5, storage=storage)
    assert (search.finished, len(run(search)), search.finished) == (3, 2, 5)


def test_a_study_ends_when_it_has_converged():
    search = make_search(
        200,
        sampler=optuna.samplers.TPESampler(seed=0),
        convergence=Convergence("stagnation", {"max_stagnation_trials": 15}, 1, False, 0),
    )
    while not search.done:
        work(search, search.next())
        search._convergence.wait()
    assert search.converged
    assert 20 < search.finished < 200
    best = min(search.study.trials, key=lambda t: t.value)
    assert search.finished - best.number >= 15


def test_convergence_by_a_gaussian_process():
    convergence = Convergence("emmr", {"error": 1e9}, 1, False, 0)
    search = make_search(40, convergence=convergence)
    while not search.done:
        work(search, search.next())
        convergence.wait()
    assert search.finished == 20  # any gain is below such an error, as soon as enough is known
