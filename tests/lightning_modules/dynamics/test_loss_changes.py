import math

import pytest
import torch

from lightning_modules.dynamics.groups import group_statistics, labels_of, outlier_groups
from lightning_modules.dynamics.loss_changes import LossChangeTracker, alternation_rate, opposition_rate, overlap
from lightning_modules.errors import InputError


def reports(*losses, k=1):
    tracker = LossChangeTracker(k)
    return [tracker.update(torch.tensor(row), step) for step, row in enumerate(losses)]


def test_the_largest_changes_are_listed_whatever_the_losses():
    first, second = reports([9.0, 1.0, 1.0, 1.0, 1.0], [9.0, 1.5, 0.2, 1.1, 0.9], k=2)
    assert first is None
    assert second.up.tolist() == [1, 3]
    assert second.down.tolist() == [2, 4]
    torch.testing.assert_close(second.change, torch.tensor([0.0, 0.5, -0.8, 0.1, -0.1]))
    assert second.fraction_up == pytest.approx(2 / 5)
    assert second.step == 1


def test_a_step_that_was_not_seen_gives_no_change():
    tracker = LossChangeTracker(1)
    assert tracker.update(torch.zeros(2), 4) is None
    assert tracker.update(torch.ones(2), 6) is None
    assert tracker.update(torch.ones(2), 7) is not None


def test_losses_that_were_given_may_be_overwritten():
    tracker, losses = LossChangeTracker(1), torch.zeros(2)
    tracker.update(losses, 0)
    losses += 1
    assert tracker.update(losses, 1).fraction_up == 1.0


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        (torch.zeros(3), "top: is 2, of 3 examples; give 1 or less"),
        (torch.zeros(6), "losses: of 6 examples, before of 4"),
        (torch.tensor([0.0, math.nan, 0.0, 0.0]), "that of example 1 is nan; lower the learning rate"),
        (torch.zeros(4, 1), r"losses: have shape \[4, 1\]"),
    ],
)
def test_losses_that_do_not_fit_are_refused(losses, words):
    tracker = LossChangeTracker(2)
    tracker.update(torch.zeros(4), 0)
    with pytest.raises(InputError, match=words):
        tracker.update(losses, 1)


def test_a_list_without_examples_is_refused():
    with pytest.raises(InputError, match="top: is 0; give 1 or more"):
        LossChangeTracker(0)


def test_rates_of_series():
    assert alternation_rate([1.0, -1.0, 2.0, -0.5]) == 1.0
    assert alternation_rate([1.0, 1.0, -1.0]) == 0.5
    assert math.isnan(alternation_rate([1.0]))
    assert opposition_rate([1.0, -1.0, 1.0, 0.0], [-2.0, 3.0, 1.0, 1.0]) == pytest.approx(2 / 3)
    assert opposition_rate([1e-9, 1.0], [1e-9, -1.0], least=1e-6) == 1.0
    assert overlap(torch.tensor([1, 2, 3, 4]), torch.tensor([9, 4, 1, 7])) == 0.5


def test_groups_keep_their_names_while_they_take_turns():
    labels = torch.tensor([3, 3, 3, 8, 8, 8, 0, 0])
    rise = [0.9, 0.8, 0.7, -0.9, -0.8, -0.7, 0.0, 0.0]
    groups = None
    for sign in (1, -1, 1, -1):
        tracker = LossChangeTracker(3)
        tracker.update(torch.zeros(8), 0)
        groups = outlier_groups(tracker.update(sign * torch.tensor(rise), 1), labels, groups)
        assert sorted(groups.first.tolist()) == [0, 1, 2]
        assert sorted(groups.second.tolist()) == [3, 4, 5]
        assert groups.labels == (3, 8)


def test_a_group_has_the_most_frequent_label_of_its_list_or_all_of_it():
    tracker = LossChangeTracker(3)
    tracker.update(torch.zeros(6), 0)
    report = tracker.update(torch.tensor([5.0, 4.0, 3.0, -3.0, -4.0, -5.0]), 1)
    assert outlier_groups(report, torch.tensor([7, 1, 7, 2, 2, 9])).by_name()["A"].tolist() == [0, 2]
    assert outlier_groups(report, None).first.tolist() == [0, 1, 2]


def test_labels_are_read_from_pairs_only():
    x, y = torch.zeros(3, 2), torch.tensor([1, 2, 3])
    assert labels_of([(x, y), (x, y)]).tolist() == [1, 2, 3, 1, 2, 3]
    for other in ([x], [(x, x[:, 0])], [(x, x.long())], [(x, y, y)], []):
        assert labels_of(other) is None


def test_statistics_of_groups_are_those_of_their_mean_gradients():
    a = torch.tensor([[1.0, 0.0], [1.0, 2.0], [-3.0, 0.0], [0.0, 5.0]])
    theta = torch.tensor([2.0, 1.0])
    whole = group_statistics(
        lambda t: a @ t,
        theta,
        {"one": torch.tensor([0, 1]), "two": torch.tensor([2]), "three": torch.tensor([3])},
        torch.tensor([0.0, 2.0]),
    )
    assert whole.losses.tolist() == [3.0, -6.0, 5.0]
    torch.testing.assert_close(whole.cosine[0], torch.tensor([1.0, -(0.5**0.5), 0.5**0.5]))
    torch.testing.assert_close(whole.alignment, torch.tensor([0.5**0.5, 0.0, 1.0]))
    parts = group_statistics([lambda t: a[:1] @ t, lambda t: a[1:] @ t], theta, {"one": torch.tensor([0, 1])})
    assert parts.losses.tolist() == [3.0]
    assert math.isnan(parts.alignment[0])
    for members, words in (([], "has no examples"), ([4], "has example 4 of 4; give 0 to 3")):
        with pytest.raises(InputError, match=words):
            group_statistics(lambda t: a @ t, theta, {"g": torch.tensor(members, dtype=torch.long)})
