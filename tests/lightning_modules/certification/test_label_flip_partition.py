import itertools

import numpy as np
import pytest

from lightning_modules.certification.label_flips import (
    LabelFlipCertifier,
    PartitionEnsemble,
    certified_accuracy_curve,
    median_flips,
)
from lightning_modules.certification.label_flips.partition import _Learners, _white_box_flips
from lightning_modules.errors import InputError
from tests.lightning_modules.certification.label_flip_data import all_labels, one_and_seven, radius, ten_digits


def answers_to_all_labels(features, test, k, lam, classes):
    """The ensemble's predictions for every label vector [m, K^n], by one solve a part, in lexicographic order."""
    n = len(features)
    order = sorted(range(n), key=lambda i: tuple(features[i]))
    extended, points = (np.hstack([a - features.mean(0), np.ones((len(a), 1))]) for a in (features, test))
    labels = all_labels(n, classes)
    votes = np.zeros((len(test), len(labels), classes), int)
    for j in range(k):
        part = order[j::k]
        gram = extended[part].T @ extended[part] + lam * np.eye(extended.shape[1])
        alpha = points @ np.linalg.solve(gram, extended[part].T)
        scores = np.stack([alpha @ (labels[:, part] == c).T for c in range(classes)], -1)
        votes += scores.argmax(-1)[..., None] == np.arange(classes)
    return votes.argmax(-1)


def small(n, classes, seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, size=n, p=[0.8, *[0.2 / (classes - 1)] * (classes - 1)])
    labels[:classes] = np.arange(classes)
    centers = 1.5 * rng.normal(size=(classes, 2))
    return centers[labels] + rng.normal(size=(n, 2)), labels, centers.mean(0) + rng.normal(size=(12, 2))


@pytest.mark.parametrize(("classes", "n", "k"), [(2, 12, 5), (2, 13, 3), (3, 9, 4), (3, 10, 3), (3, 10, 2), (4, 7, 2)])
def test_certificates_against_every_label_vector(classes, n, k):
    """Vote counts are never above the truth; costs are the truth for two classes, and never below vote counts."""
    gained = tight = count = 0
    for seed in range(4):
        features, labels, test = small(n, classes, seed)
        counted = PartitionEnsemble(k, 10).fit(features, labels).certify(test)
        costed = PartitionEnsemble(k, 10, white_box=True).fit(features, labels).certify(test)
        answers = answers_to_all_labels(features, test, k, 10, classes)
        true = np.minimum(radius(answers, np.tile(labels, (len(test), 1)), classes), n)
        here = (all_labels(n, classes) == labels).all(1).argmax()
        np.testing.assert_array_equal(counted.prediction, answers[:, here])
        np.testing.assert_array_equal(costed.prediction, answers[:, here])
        assert (counted.flips <= costed.flips).all()
        assert (costed.flips <= true).all()
        if classes == 2:
            np.testing.assert_array_equal(costed.flips, true)
        gained += (costed.flips > counted.flips).sum()
        tight += (costed.flips == true).sum()
        count += len(true)
    assert gained > 0 or n < 4 * k or classes == 4
    assert tight >= 0.9 * count


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_the_cheapest_attack_on_the_votes_is_that_of_a_search_over_all_of_them(classes):
    parts, points = 5, 60
    rng = np.random.default_rng(classes)
    each = rng.choice(classes, size=(parts, points), p=[0.6, *[0.4 / (classes - 1)] * (classes - 1)])
    costs = rng.integers(1, 9, size=(parts, points, classes))
    np.put_along_axis(costs, each[..., None], 0, -1)
    votes = (each[..., None] == np.arange(classes)).sum(0)
    best = np.full(points, 10**6)
    for targets in itertools.product(range(classes), repeat=parts):
        price = costs[np.arange(parts), :, targets].sum(0)
        turned = np.bincount(targets, minlength=classes).argmax() != votes.argmax(1)
        best = np.where(turned, np.minimum(best, price), best)
    np.testing.assert_array_equal(_white_box_flips(each, costs, votes), best - 1)


@pytest.mark.parametrize(("classes", "size"), [(2, 6), (3, 6)])
def test_what_a_vote_costs_is_that_of_a_search_over_all_labels(classes, size):
    """With the identity as features a point is its own coefficients (halved), and whole numbers make ties."""
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=size)
    points = rng.integers(-2, 5, size=(40, size)).astype(float)
    (votes,), (costs,) = _Learners(np.eye(size)[None], labels[None], 1.0, classes)(points, True)
    vectors = all_labels(size, classes)
    answers = np.stack([points @ (vectors == c).T for c in range(classes)], -1).argmax(-1)
    distance = (vectors != labels).sum(1)
    true = np.stack([np.where(answers == c, distance, size + 1).min(1) for c in range(classes)], 1)
    np.testing.assert_array_equal(votes, answers[:, distance.argmin()])
    assert (costs <= true).all()
    others = np.arange(classes) != votes[:, None]
    np.testing.assert_array_equal(costs.min(1, where=others, initial=99), true.min(1, where=others, initial=99))
    if classes == 2:
        np.testing.assert_array_equal(costs, true)
    assert (costs == true).mean() > 0.9


def test_vote_counts_give_the_formula_of_ss_dpa():
    """Each part is one example and votes for its label."""
    features = np.arange(8.0)[:, None]
    for votes in itertools.product(range(3), repeat=5):
        labels = np.array([*votes, 0, 1, 2])
        ours = PartitionEnsemble(8, 1e-6).fit(features, labels).certify(np.full((1, 1), 3.5))
        counts = np.bincount(labels)
        np.testing.assert_array_equal(ours.votes[0], counts)
        c = int(counts.argmax())
        margin = counts[c] - max(counts[d] + (d < c) for d in range(3) if d != c)
        assert ours.prediction[0] == c
        assert ours.flips[0] == margin // 2


@pytest.mark.parametrize(
    ("k", "accuracy", "counted", "costed"),
    [(25, 0.950, 12, 43), (100, 0.945, 49, 79), (200, 0.940, 96, 96), (400, 0.935, 170, 170)],
)
def test_medians_on_ones_and_sevens(k, accuracy, counted, costed):
    pixels, features, labels, test, truth = one_and_seven()
    for white_box, median in ((False, counted), (True, costed)):
        ours = PartitionEnsemble(k, 100, white_box).fit(features, labels, pixels).certify(test)
        assert (ours.prediction == truth).mean() == pytest.approx(accuracy)
        assert median_flips(ours.prediction, ours.flips, truth) == pytest.approx(median, abs=1)
        assert (ours.votes.sum(1) == k).all()


@pytest.mark.parametrize(("k", "accuracy", "median"), [(50, 0.823, 17), (200, 0.803, 32), (400, 0.763, 36)])
def test_medians_on_ten_digits(k, accuracy, median):
    pixels, features, labels, test, truth = ten_digits()
    ours = PartitionEnsemble(k, 100).fit(features, labels, pixels).certify(test)
    assert (ours.prediction == truth).mean() == pytest.approx(accuracy, abs=5e-4)
    assert median_flips(ours.prediction, ours.flips, truth) == pytest.approx(median, abs=1)


def test_costs_on_ten_digits_are_never_below_vote_counts():
    pixels, features, labels, test, _ = ten_digits()
    counted, costed = (
        PartitionEnsemble(20, 100, w).fit(features, labels, pixels).certify(test[:50]) for w in (False, True)
    )
    assert (costed.flips >= counted.flips).all()
    assert (costed.flips > 2 * counted.flips).any()


def test_many_parts_survive_more_than_smoothing():
    pixels, features, labels, test, truth = one_and_seven()
    smoothed = LabelFlipCertifier(100, 0.05).fit(features, labels).certify(test)
    voted = PartitionEnsemble(400, 100).fit(features, labels, pixels).certify(test)
    medians = [median_flips(c.prediction, c.flips, truth) for c in (smoothed, voted)]
    assert medians[0] < 15 < 160 < medians[1]
    curves = [certified_accuracy_curve(c.prediction, c.flips, truth, [0, 100]) for c in (smoothed, voted)]
    assert curves[0][1] == 0
    assert curves[1][1] > 0.7


def test_the_order_of_the_file_does_not_matter():
    features, labels, test = small(30, 3, 0)
    ours = PartitionEnsemble(4, 0.5, True).fit(features, labels).certify(test)
    order = np.random.default_rng(0).permutation(30)
    again = PartitionEnsemble(4, 0.5, True).fit(features[order], labels[order]).certify(test)
    np.testing.assert_array_equal(again.prediction, ours.prediction)
    np.testing.assert_array_equal(again.flips, ours.flips)


def test_negative_zero_is_zero():
    with pytest.raises(InputError, match="row 1 is there more than once"):
        PartitionEnsemble(2, 1.0).fit(np.array([[0.0], [-0.0], [1.0]]), np.array([0, 1, 1]))


X, Y, T = small(10, 2, 0)
TWICE = np.vstack([X[:9], X[4:5]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PartitionEnsemble(0, 1.0), "k: 0 is less than 1"),
        (lambda: PartitionEnsemble(2, 0.0), "lam: 0.0 is not positive"),
        (lambda: PartitionEnsemble(11, 1.0).fit(X, Y), "k: 11 parts are more than the 10 training examples"),
        (lambda: PartitionEnsemble(2, 1.0).fit(TWICE, Y), "inputs: row [49] is there more than once; drop duplicates"),
        (lambda: PartitionEnsemble(2, 1.0).fit(X, Y, TWICE), "inputs: row [49] is there more than once"),
        (lambda: PartitionEnsemble(2, 1.0).fit(X, 0 * Y), "labels: have .10. examples of classes"),
        (lambda: PartitionEnsemble(2, 1.0).fit(X, 2 * Y), "labels: have .* examples of classes"),
        (lambda: PartitionEnsemble(2, 1.0).fit(X, Y[:-1]), "labels: have shape"),
        (lambda: PartitionEnsemble(2, 1.0).fit(X * np.inf, Y), "F: has NaN or infinite"),
        (lambda: PartitionEnsemble(2, 1.0).certify(T), "F: there is no training data yet"),
        (lambda: PartitionEnsemble(2, 1.0).fit(X, Y).certify(T[:, :1]), "H: has 1 features, the training data 2"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
