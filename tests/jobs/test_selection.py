"""The three selection rules: by hand on a small record set, and against a plain re-implementation on random ones."""

import itertools
import random

import pyarrow as pa
import pytest

from cluster.schemas import METRICS, TRIALS
from cluster.trial import Trial
from jobs.report.selection import LEAVE_ONE_OUT, RULES, TEST_DOMAIN, TRAINING_DOMAIN, best_checkpoints, measure, select

BUDGET = {"steps": 200, "checkpoint_every": 100}


class Recorder:
    """Collects trials and their accuracies as a run's two tables."""

    def __init__(self):
        self.trials, self.metrics = [], []

    def add(self, held_out, accuracies, method="ERM", lr=0.1, seed=0, budget=None, dataset="D", status="completed"):
        """Add a trial; `accuracies` maps step to {environment: (in, out)}; None leaves a measurement out."""
        hyperparameters = {"lr": lr, "network": "mlp"}
        trial = Trial.create(method, dataset, held_out, hyperparameters, seed, budget or BUDGET)
        spec = (trial.method, trial.dataset, list(trial.held_out), trial.hyperparameters, trial.seed, trial.budget)
        self.trials.append((trial.trial_id, *spec, status, None, 1, "node", "cpu", None, 1.0, "{}"))
        for step, by_environment in accuracies.items():
            for environment, values in by_environment.items():
                for split, value in zip(("in", "out"), values, strict=True):
                    if value is not None:
                        self.metrics.append((trial.trial_id, step, environment, split, "accuracy", value))
                        self.metrics.append((trial.trial_id, step, environment, split, "loss", 5 - value))
        return trial.trial_id

    def tables(self):
        return to_table(self.trials, TRIALS), to_table(self.metrics, METRICS)

    def select(self, rule):
        """Map (method, environment, seed) to what the rule selects."""
        rows = select(measure(*self.tables()), rule).to_pylist()
        return {(row["method"], row["environment"], row["seed"]): row for row in rows}


def to_table(rows, schema):
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def test_training_domain_rule_takes_the_best_step_of_the_best_draw_by_the_training_environments():
    runs = Recorder()
    # a is held out; b and c train. Step 100 is the better one for training, step 200 for the test environment.
    runs.add(
        "a",
        {100: {"a": (0.3, 0.1), "b": (0, 0.9), "c": (0, 0.7)}, 200: {"a": (0.9, 0.9), "b": (1, 0.8), "c": (1, 0.7)}},
    )
    runs.add("a", {100: {"a": (0.8, 0.9), "b": (1, 0.7), "c": (1, 0.7)}}, lr=0.2)
    chosen = runs.select(TRAINING_DOMAIN)["ERM", "a", 0]
    assert (chosen["step"], chosen["accuracy"], chosen["draws"]) == (100, 0.3, 2)
    assert chosen["score"] == pytest.approx(0.8)


def test_oracle_rule_reads_the_last_step_only():
    runs = Recorder()
    runs.add("a", {100: {"a": (0.7, 0.99), "b": (1, 1)}, 200: {"a": (0.4, 0.5), "b": (1, 1)}})
    runs.add("a", {100: {"a": (0.6, 0.2), "b": (0, 0)}, 200: {"a": (0.2, 0.6), "b": (0, 0)}}, lr=0.2)
    chosen = runs.select(TEST_DOMAIN)["ERM", "a", 0]
    assert (chosen["step"], chosen["score"], chosen["accuracy"]) == (200, 0.6, 0.2)


def test_oracle_rule_skips_a_trial_whose_last_step_lacks_the_test_accuracy():
    runs = Recorder()
    runs.add("a", {100: {"a": (0.7, 0.9), "b": (1, 1)}, 200: {"b": (1, 1)}})
    assert runs.select(TEST_DOMAIN) == {}


def leave_one_out_runs(leave_out_pair=None, **changed):
    runs = Recorder()
    single = {100: {"a": (0.31, 0.9), "b": (1, 1), "c": (1, 1)}, 200: {"a": (0.32, 0.9), "b": (1, 1), "c": (1, 1)}}
    pairs = {
        "b": {100: {"a": (0.99, 0), "b": (0.5, 0.99), "c": (1, 1)}, 200: {"a": (0.99, 0), "b": (0.6, 0), "c": (1, 1)}},
        "c": {100: {"a": (0.99, 0), "b": (1, 1), "c": (0.9, 0)}, 200: {"a": (0.99, 0), "b": (1, 1), "c": (0.7, 0.99)}},
    }
    runs.add("a", single)
    for other, accuracies in pairs.items():
        if other != leave_out_pair:
            runs.add(["a", other], accuracies, **(changed if other == "c" else {}))
    return runs


def test_leave_one_out_scores_the_other_environments_in_accuracy_of_the_pair_trials_at_the_same_step():
    chosen = leave_one_out_runs().select(LEAVE_ONE_OUT)["ERM", "a", 0]
    assert (chosen["step"], chosen["accuracy"]) == (100, 0.31)  # (0.5 + 0.9) / 2 beats (0.6 + 0.7) / 2
    assert chosen["score"] == pytest.approx(0.7)


@pytest.mark.parametrize(
    "change",
    [
        {"leave_out_pair": "c"},
        {"status": "failed"},
        {"lr": 0.2},
        {"seed": 1},
        {"budget": {"steps": 300}},
        {"method": "IRM"},
        {"dataset": "E"},
    ],
)
def test_leave_one_out_selects_nothing_unless_every_pair_is_there_with_everything_else_equal(change):
    assert ("ERM", "a", 0) not in leave_one_out_runs(**change).select(LEAVE_ONE_OUT)
    assert ("ERM", "a", 0) in leave_one_out_runs(**change).select(TRAINING_DOMAIN)


def test_pair_trials_are_never_reported():
    runs = Recorder()
    perfect = {100: dict.fromkeys("abc", (1.0, 1.0))}
    for pair in itertools.combinations("abc", 2):
        runs.add(pair, perfect)
    assert all(runs.select(rule) == {} for rule in RULES)
    low = {100: dict.fromkeys("abc", (0.1, 0.1))}
    for environment in "abc":
        runs.add(environment, low)
    for rule in RULES:
        assert [row["accuracy"] for row in runs.select(rule).values()] == [0.1] * 3


def test_a_checkpoint_that_lacks_a_training_environment_or_holds_nan_is_no_candidate():
    runs = Recorder()
    missing = {"a": (0.9, 0.9), "b": (0, 1.0), "c": (0, None)}
    broken = {"a": (0.9, 0.9), "b": (0, 1.0), "c": (0, float("nan"))}
    sound = {"a": (0.2, 0.9), "b": (0, 0.1), "c": (0, 0.1)}
    runs.add("a", {0: missing, 100: broken, 200: sound})
    chosen = runs.select(TRAINING_DOMAIN)["ERM", "a", 0]
    assert (chosen["step"], chosen["accuracy"]) == (200, 0.2)


def test_failed_and_pruned_trials_take_no_part():
    runs = Recorder()
    runs.add("a", {100: {"a": (0.9, 0.9), "b": (1, 1)}}, status="failed")
    runs.add("a", {100: {"a": (0.8, 0.9), "b": (1, 1)}}, lr=0.2, status="pruned")
    runs.add("a", {100: {"a": (0.1, 0.1), "b": (0, 0)}}, lr=0.3)
    for rule in (TRAINING_DOMAIN, TEST_DOMAIN):
        chosen = runs.select(rule)["ERM", "a", 0]
        assert (chosen["accuracy"], chosen["draws"]) == (0.1, 1)


def test_ties_go_to_the_earlier_step_even_when_the_sums_differ_in_their_last_bit():
    runs = Recorder()
    values = [0.1, 0.2, 0.3]
    assert sum(values) / 3 != sum(reversed(values)) / 3  # equal only up to rounding
    early = {"a": (0.5, 0), **{e: (0, v) for e, v in zip("bcd", reversed(values), strict=True)}}
    late = {"a": (0.6, 0), **{e: (0, v) for e, v in zip("bcd", values, strict=True)}}
    runs.add("a", {100: early, 200: late})
    assert runs.select(TRAINING_DOMAIN)["ERM", "a", 0]["step"] == 100
    swapped = Recorder()
    swapped.add("a", {100: late, 200: early})
    assert swapped.select(TRAINING_DOMAIN)["ERM", "a", 0]["step"] == 100


def test_environments_keep_the_order_in_which_a_trial_measured_them():
    runs = Recorder()
    runs.add(["+90%"], {0: {"+90%": (0, 0), "+80%": (0, 0), "-90%": (0, 0)}})
    runs.add("z", {}, dataset="nothing measured")
    assert measure(*runs.tables()).environments == {"D": ("+90%", "+80%", "-90%"), "nothing measured": ("z",)}


def brute_force(trials, metrics, rule):
    """DomainBed's selection, written down plainly: {(dataset, budget, method, environment, seed): (accuracy, step)}."""
    names = TRIALS.names
    trials = [dict(zip(names, row, strict=True)) for row in trials]
    measured = {}
    for trial_id, step, environment, split, metric, value in metrics:
        if metric == "accuracy":
            measured.setdefault(trial_id, {}).setdefault(step, {})[environment, split] = value
    environments = {}
    for trial in trials:
        seen = environments.setdefault(trial["dataset"], set())
        seen.update(trial["held_out"], *({e for e, _ in at} for at in measured.get(trial["trial_id"], {}).values()))
    done = [t for t in trials if t["status"] == "completed"]

    def search(trial):
        return tuple(trial[key] for key in ("dataset", "method", "hyperparameters", "seed", "budget"))

    with_pair = {(frozenset(t["held_out"]), *search(t)): t["trial_id"] for t in done if len(t["held_out"]) == 2}
    searches = {}
    for trial in done:
        if len(trial["held_out"]) != 1:
            continue
        (test,) = trial["held_out"]
        others = sorted(environments[trial["dataset"]] - {test})
        steps = measured.get(trial["trial_id"], {})
        candidates = []
        for step, at in sorted(steps.items()):
            if (test, "in") not in at:
                continue
            if rule is TRAINING_DOMAIN:
                scores = [at.get((e, "out")) for e in others]
            elif rule is TEST_DOMAIN:
                scores = [at.get((test, "out"))] if step == max(steps) else [None]
            else:
                scores = []
                for other in others:
                    pair = with_pair.get((frozenset([test, other]), *search(trial)))
                    found = measured.get(pair, {}).get(step, {})
                    scores.append(found.get((other, "in")))
            if None not in scores:
                candidates.append((round(sum(scores) / len(scores), 12), at[test, "in"], step))
        if candidates:
            best = max(candidates, key=lambda candidate: candidate[0])
            key = (trial["dataset"], trial["budget"], trial["method"], test, trial["seed"])
            searches.setdefault(key, []).append((trial["hyperparameters"], best))
    chosen = {}
    for key, runs in searches.items():
        _, best = max(sorted(runs), key=lambda run: run[1][0])
        chosen[key] = (best[1], best[2])
    return chosen


@pytest.mark.parametrize("seed", range(4))
def test_all_rules_agree_with_a_plain_implementation_on_random_records(seed):
    dice = random.Random(seed)
    runs = Recorder()
    for dataset, names in {"D": "abc", "E@12": "pqrs"}.items():
        held_outs = [(), *[(e,) for e in names], *itertools.combinations(names, 2)]
        for held_out, method, lr, trial_seed, budget in itertools.product(
            held_outs, ("ERM", "IRM"), (0.1, 0.2, 0.3), range(2), ({"steps": 3}, {"steps": 2})
        ):
            if dice.random() < 0.04:
                continue
            # Few different values make many ties; some measurements are missing.
            accuracies = {
                step: {e: [dice.choice([None] + [i / 10 for i in range(10)] * 5) for _ in "io"] for e in names}
                for step in range(budget["steps"])
            }
            status = dice.choices(["completed", "failed"], [20, 1])[0]
            runs.add(held_out, accuracies, method, lr, trial_seed, budget, dataset, status)
    records = measure(*runs.tables())
    for rule in RULES:
        expected = brute_force(runs.trials, runs.metrics, rule)
        rows = select(records, rule).to_pylist()
        keys = ("dataset", "budget", "method", "environment", "seed")
        found = {tuple(row[key] for key in keys): (row["accuracy"], row["step"]) for row in rows}
        assert found == expected
        assert len(expected) > 10
        assert len(rows) == len(expected)


def test_best_checkpoints_gives_one_row_a_single_held_out_trial():
    runs = leave_one_out_runs()
    assert best_checkpoints(measure(*runs.tables()), TRAINING_DOMAIN).num_rows == 1


def test_a_run_without_trials_or_accuracies_selects_nothing():
    runs = Recorder()
    assert all(runs.select(rule) == {} for rule in RULES)
    runs.add("a", {})
    assert all(runs.select(rule) == {} for rule in RULES)
