"""Figures over shifts, and estimates made more careful by what other groups needed."""

import numpy as np
import pytest

from lightning_modules.error_bounds.summary import leave_one_group_out_adjustment, summarise_estimates
from lightning_modules.errors import InputError


def test_summary():
    found = summarise_estimates([0.3, 0.1, 0.5], [0.2, 0.3, 0.5])
    assert found.mae == pytest.approx(0.1)
    assert found.coverage == pytest.approx(2 / 3)
    assert found.overestimation == pytest.approx(0.2)
    assert summarise_estimates([0.5], [0.5]).overestimation == 0
    for wrong in (([], []), ([0.1], [0.1, 0.2]), ([np.nan], [0.1])):
        with pytest.raises(InputError):
            summarise_estimates(*wrong)


@pytest.mark.parametrize("by", ["shift", "scale"])
@pytest.mark.parametrize("coverage", [0.9, 0.95, 0.99])
def test_the_other_groups_are_covered_as_asked_and_no_more(by, coverage):
    generator = np.random.default_rng(0)
    true = generator.uniform(0.1, 0.6, 300)
    predicted = np.clip(true + generator.normal(-0.05, 0.05, 300), 0, 0.95)
    groups = np.repeat(["a", "b", "c"], 100)
    adjusted = leave_one_group_out_adjustment(predicted, true, list(groups), coverage, by)
    for name in "abc":
        others = groups != name
        if by == "shift":
            added = adjusted[~others][0] - predicted[~others][0]
            again = predicted[others] + added
        else:
            factor = (1 - adjusted[~others][0]) / (1 - predicted[~others][0])
            again = 1 - (1 - predicted[others]) * factor
        covered = (true[others] <= again + 1e-12).mean()
        assert coverage <= covered <= coverage + 0.006
    assert summarise_estimates(adjusted, true).coverage > summarise_estimates(predicted, true).coverage
    changed = true.copy()
    changed[groups == "a"] = 0.99
    again = leave_one_group_out_adjustment(predicted, changed, list(groups), coverage, by)
    assert (again[groups == "a"] == adjusted[groups == "a"]).all()  # its own truth counts for nothing
    assert (again[groups == "b"] != adjusted[groups == "b"]).any()


def test_bad_adjustments():
    for arguments in (
        ([0.1], [0.1], ["a"], 0.9),
        ([0.1, 0.2], [0.1], ["a", "b"], 0.9),
        ([0.1, 0.2], [0.1, 0.2], ["a", "b"], 0),
    ):
        with pytest.raises(InputError):
            leave_one_group_out_adjustment(*arguments)
