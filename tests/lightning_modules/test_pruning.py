"""A watch follows a training and ends it early; who stays in a pack does not notice who left."""

import dataclasses

import pytest
import torch

from lightning_modules.data.catalog import load_dataset
from lightning_modules.data.tensors import EnvironmentBatches, RowStream, split_dataset
from lightning_modules.domain_generalization.catalog import all_methods
from lightning_modules.domain_generalization.pack import Pack, PackEvaluation, train_pack
from lightning_modules.domain_generalization.training import build_method, fit, train
from lightning_modules.watching import Stopped
from tests.lightning_modules.test_pack import members

ROWS = 3 * 2 * 2  # of one evaluation of ColoredMNIST: environments, splits, metrics


class Watcher:
    """Writes down what it hears, and says stop from the n-th question on, or from the report of a step on."""

    def __init__(self, question=None, report=None, log=None):
        self._question, self._report = question, report
        self.questions, self.reports, self.log = 0, [], [] if log is None else log

    def report(self, step, rows):
        self.reports.append((step, list(rows)))
        self.log.append((step, self))

    def stopped(self):
        self.questions += 1
        late = self._question is not None and self.questions >= self._question
        return late or (self._report is not None and any(step >= self._report for step, _ in self.reports))

    @property
    def rows(self):
        return [row for _, rows in self.reports for row in rows]


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("ColoredMNIST")


def watched(pack, **watchers):
    """The members, those named m0, m1, ... with a watch."""
    return [dataclasses.replace(m, watch=watchers.get(f"m{k}")) for k, m in enumerate(pack)]


def solo(member, budget, watch=None, name="ERM"):
    return train(name, member.hyperparameters, member.split, member.held_out, budget, member.stream, watch)


BUDGET = {"steps": 20, "checkpoint_every": 5}


def test_a_watch_that_never_stops_hears_every_row_in_order_and_changes_nothing(dataset):
    pack = members(dataset, all_methods()["ERM"])
    log = []
    watchers = [Watcher(log=log) for _ in pack]
    expected = train_pack("ERM", pack, BUDGET)
    assert train_pack("ERM", watched(pack, **{f"m{k}": w for k, w in enumerate(watchers)}), BUDGET) == expected
    assert log == [(step, w) for step in (5, 10, 15, 20) for w in watchers]
    for watcher, rows in zip(watchers, expected, strict=True):
        assert watcher.rows == rows
        assert all({row[0] for row in heard} == {step} for step, heard in watcher.reports)
        assert watcher.questions == 19 + 3  # every step but the last, and again after the reports before it

    alone = Watcher()
    rows = solo(pack[0], BUDGET, alone)
    assert rows == solo(pack[0], BUDGET) == alone.rows
    assert [step for step, _ in alone.reports] == [5, 10, 15, 20]
    assert alone.questions == 19 + 3


@pytest.mark.parametrize(
    ("question", "report", "evaluations", "questions"),
    [
        (1, None, 0, 1),  # at the first step
        (9, None, 1, 9),  # at step 8: the evaluation of step 5 asked twice
        (11, None, 1, 11),  # at step 10: its evaluation is spared
        (12, None, 2, 12),  # right after the evaluation of step 10
        (None, 10, 2, 12),
        (None, 15, 3, 18),
    ],
)
def test_a_trial_ends_at_the_step_at_which_it_is_told_to(dataset, question, report, evaluations, questions):
    pack = members(dataset, all_methods()["ERM"])
    complete = solo(pack[0], BUDGET)
    alone = Watcher(question, report)
    with pytest.raises(Stopped) as stopped:
        solo(pack[0], BUDGET, alone)
    assert stopped.value.rows == complete[: ROWS * evaluations] == alone.rows
    assert alone.questions == questions

    inside = Watcher(question, report)
    complete = train_pack("ERM", pack, BUDGET)
    results = train_pack("ERM", watched(pack, m2=inside), BUDGET)
    assert isinstance(results[2], Stopped)
    assert results[2].rows == complete[2][: ROWS * evaluations] == inside.rows
    assert inside.questions == questions
    assert results[:2] + results[3:] == complete[:2] + complete[3:]


@pytest.mark.parametrize("late", [{"question": 23}, {"report": 20}])
def test_a_trial_that_has_done_its_last_step_is_complete_whatever_the_watch_says(dataset, late):
    pack = members(dataset, all_methods()["ERM"])[:2]
    assert solo(pack[0], BUDGET, Watcher(**late)) == solo(pack[0], BUDGET)
    assert train_pack("ERM", watched(pack, m1=Watcher(**late)), BUDGET) == train_pack("ERM", pack, BUDGET)


@pytest.mark.parametrize("name", all_methods())
def test_who_stays_has_the_numbers_of_training_alone_to_the_last_bit(dataset, name):
    """Members leave at two steps in a row, or before and after one evaluation; the Adam of one that stays restarts."""
    pack = members(dataset, all_methods()[name])
    budget = {"steps": 12, "checkpoint_every": 4}
    results = train_pack(name, watched(pack, m0=Watcher(question=2), m2=Watcher(question=3)), budget)
    assert [type(result) for result in results] == [Stopped, list, Stopped, list]
    alone = [train_pack(name, [member], budget)[0] for member in pack]
    assert (results[1], results[3]) == (alone[1], alone[3])

    results = train_pack(name, watched(pack, m0=Watcher(question=4), m1=Watcher(report=4)), budget)
    assert (results[0].rows, results[1].rows) == ([], alone[1][:ROWS])
    assert results[2:] == alone[2:]


def test_a_long_training_goes_on_over_many_blocks_of_rows_while_members_leave(dataset):
    for name in ("ERM", "Mixup"):
        pack = members(dataset, all_methods()[name])
        budget = {"steps": 150, "checkpoint_every": 75}
        leaving = {"m0": Watcher(question=30), "m1": Watcher(question=64), "m2": Watcher(report=75)}
        results = train_pack(name, watched(pack, **leaving), budget)
        assert results[3] == train_pack(name, pack[3:], budget)[0]


def test_a_member_that_is_not_finite_leaves_as_an_error_and_is_not_reported(dataset):
    pack = members(dataset, all_methods()["ERM"])
    watch = Watcher(report=5)
    bad = dataclasses.replace(pack[1], hyperparameters={**pack[1].hyperparameters, "lr": 1e30}, watch=watch)
    good = train_pack("ERM", pack, BUDGET)
    results = train_pack("ERM", [pack[0], bad, *watched(pack[2:], m0=Watcher(question=7))], BUDGET)
    assert isinstance(results[1], FloatingPointError)
    assert watch.reports == []
    assert watch.questions == 5  # none once it has failed
    assert isinstance(results[2], Stopped)
    assert (results[0], results[3]) == (good[0], good[3])


class Sized(EnvironmentBatches):
    """Writes down how many members its batches are for."""

    def __iter__(self):
        self.sizes = []
        for inputs, labels in super().__iter__():
            self.sizes.append(len(labels))
            yield inputs, labels


@pytest.mark.parametrize("name", ["GroupDRO", "Fish", "DANN"])
def test_everything_stacked_shrinks(dataset, name):
    pack = watched(members(dataset, all_methods()[name]), m0=Watcher(question=3), m3=Watcher(question=5))
    training = [[e for e in range(3) if dataset.environment_names[e] not in m.held_out] for m in pack]
    methods = [build_method(name, m.hyperparameters, m.split, 2, m.stream) for m in pack]
    batches = Sized(
        pack[0].split,
        lambda: [RowStream(m.split, t, 16, m.stream("batches")) for m, t in zip(pack, training, strict=True)],
    )
    module, budget = Pack(methods), {"steps": 8, "checkpoint_every": 8}
    evaluation = PackEvaluation(pack, training, budget, batches)
    fit(module, batches, budget, evaluation)
    assert [type(result) for result in evaluation.results] == [Stopped, list, list, Stopped]
    # One batch is fetched ahead of the step it is for.
    assert batches.sizes[:8] == [4, 4, 4, 4, 3, 3, 2, 2]
    stacks = [p for group in module.adam.param_groups for p in group["params"]]
    assert [id(p) for p in stacks] == [id(p) for p in module.network.parameters()]
    held = [*stacks, *module._state.values(), *module._numbers.values()]
    if name == "GroupDRO":
        held += [*module.adam._averages, *module.adam._squares, module.adam._counts]
    assert {len(tensor) for tensor in held} == {2}
    assert module.network.size == 2


def test_batches_go_on_with_the_streams_that_are_kept(dataset):
    split = split_dataset(dataset, 0)

    def batches_of(*seeds):
        return EnvironmentBatches(split, lambda: [RowStream(split, [0, 2], 3, seed) for seed in seeds])

    some = batches_of(5, 6, 7)
    ours, theirs = iter(some), [iter(batches_of(seed)) for seed in (5, 6, 7)]
    present = [0, 1, 2]
    for step in range(140):
        if step == 10:
            some.keep([2, 0])
            present = [2, 0]
        if step == 63:
            some.keep([0, 1])
            some.keep([1])
            present = [0]
        inputs, labels = next(ours)
        expected = [next(iterator) for iterator in theirs]
        assert torch.equal(inputs, torch.cat([expected[k][0] for k in present]))
        assert torch.equal(labels, torch.cat([expected[k][1] for k in present]))


@pytest.mark.timeout(60)
def test_training_ends_when_everybody_has_left(dataset):
    pack = members(dataset, all_methods()["ERM"])
    budget = {"steps": 10**6, "checkpoint_every": 4}
    log = []
    watchers = {f"m{k}": Watcher(question=3 + 2 * k, log=log) for k in range(4)}
    results = train_pack("ERM", watched(pack, **watchers), budget)
    assert [len(result.rows) // ROWS for result in results] == [0, 1, 1, 1]
    assert [w.questions for w in watchers.values()] == [3, 5, 7, 9]
