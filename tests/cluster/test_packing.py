"""Packs group equal shapes, lose nothing, and wait for nobody for ever."""

from cluster.packing import packs
from cluster.trial import Trial


def plan(count, shapes):
    return [Trial.create(f"m{i % shapes}", "D", seed=i) for i in range(count)]


def test_trials_of_equal_shape_are_grouped_and_each_comes_once():
    trials = plan(100, 3)
    groups = list(packs(iter(trials), lambda t: t.method, 8))
    assert sorted(t.seed for group in groups for t in group) == list(range(100))
    assert all(len({t.method for t in group}) == 1 for group in groups)
    assert sorted(map(len, groups)) == [1, 1, 2] + [8] * 12


def test_a_size_of_one_is_every_trial_alone():
    assert [len(group) for group in packs(plan(5, 1), lambda t: t.method, 1)] == [1] * 5


def test_few_trials_wait_however_many_shapes_there_are():
    read = []

    def lazy():
        for trial in plan(20_000, 20_000):
            read.append(trial)
            yield trial

    first = next(packs(lazy(), lambda t: t.method, 32))
    assert len(first) == 1
    assert len(read) < 5000


def test_a_trial_of_no_key_goes_alone_and_at_once():
    plan = [Trial.create("m", "d", (), {"x": x}) for x in range(6)]
    grouped = list(packs(iter(plan), lambda t: None if t in plan[1::2] else "even", 3))
    assert grouped == [(plan[1],), (plan[3],), (plan[0], plan[2], plan[4]), (plan[5],)]
