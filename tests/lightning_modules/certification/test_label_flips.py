import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from lightning_modules.certification.label_flips import (
    LabelFlipCertifier,
    certify_alpha,
    chernoff_log_bound,
    exact_flips,
    kl_per_flip,
    median_flips,
    np_flips,
)
from lightning_modules.certification.label_flips.chernoff import rival_log_bounds
from lightning_modules.errors import InputError
from tests.lightning_modules.certification.label_flip_data import (
    all_labels,
    one_and_seven,
    radius,
    random_points,
    scores_of_all,
    smoothed_of_all,
    ten_digits,
    under_noise,
)


@pytest.fixture(scope="module")
def sweep():
    _, features, labels, test, truth = one_and_seven()
    certifier = LabelFlipCertifier(100, 0.05).fit(features, labels)
    return certifier.sweep(test, [100, 1e4], [0.05, 0.1, 0.3, 0.45]), truth


# The probability bound


def test_the_bound_is_above_the_probability_of_every_noise_pattern():
    alpha, labels = random_points(200, 10, 2, 0)
    for q in (0.05, 0.3):
        sign = np.where(all_labels(10, 2) == 1, 1, -1)
        ones = under_noise((alpha @ sign.T > 0).astype(float), 10, 2, q)
        for a, y, p_one in zip(alpha, labels, ones, strict=True):
            score = a @ np.where(y == 1, 1, -1)
            p_one = p_one[int("".join(map(str, y)), 2)]
            wrong = p_one if score <= 0 else 1 - p_one
            assert chernoff_log_bound(a[None], y, q)[0] >= math.log(wrong)


def test_the_bounds_of_all_rivals_are_above_the_probabilities():
    n, classes = 7, 3
    for seed in range(3):
        alpha, labels = random_points(40, n, classes, seed)
        labels.sort(axis=1)
        for q in (0.05, 0.3):
            scores = scores_of_all(alpha, classes)
            for i, (a, y) in enumerate(zip(alpha, labels, strict=True)):
                here = np.flatnonzero((all_labels(n, classes) == y).all(1))[0]
                leader = scores[i, here].argmax()
                starts = np.searchsorted(y, range(classes + 1))
                bounds = rival_log_bounds(a[None], starts, q)[0]
                for d in set(range(classes)) - {leader}:
                    wrong = under_noise((scores[i, :, d] >= scores[i, :, leader])[None], n, classes, q)[0, here]
                    assert bounds[d] >= math.log(wrong)
                assert bounds[leader] == -np.inf


def best_log_bound(alpha, labels, q, classes):
    """max over rivals of min over t of the exponent, every one found by a bounded search."""
    e = q / (classes - 1)
    scores = [alpha[labels == c].sum() for c in range(classes)]
    leader = int(np.argmax(scores))
    worst = -np.inf
    for d in set(range(classes)) - {leader}:

        def exponent(log_t, d=d):
            x = math.exp(log_t) * alpha
            up = np.where(labels == leader, e, np.where(labels == d, 1 - q, e))
            down = np.where(labels == leader, 1 - q, e)
            rest = 1 - up - down
            return np.logaddexp(np.logaddexp(np.log(up) + x, np.log(down) - x), np.log(np.maximum(rest, 1e-300))).sum()

        mean = (1 - q - e) * (scores[leader] - scores[d])
        guess = math.log(mean / (alpha**2).sum())
        found = minimize_scalar(exponent, bounds=(guess - 3, guess + 12), method="bounded", options={"xatol": 1e-4})
        worst = max(worst, found.fun)
    return min(worst, 0.0)


def assert_close_to_best(alpha, labels, qs, classes, rows):
    for q in qs:
        ours = chernoff_log_bound(alpha, labels, q, classes)
        for i in rows:
            best = best_log_bound(alpha[i], labels, q, classes)
            assert ours[i] >= best - 1e-5 * abs(best) - 1e-7
            assert -ours[i] >= 0.99 * -best - 1e-7


def digit_alphas(data, lam):
    _, features, labels, test, _ = data
    system = LabelFlipCertifier(lam, 0.05, task="multiclass").fit(features, labels).system
    return system.factor(lam).alpha(features, test), labels


def test_the_chosen_t_loses_less_than_a_hundredth_on_two_digits():
    for lam in (100, 1e4):
        alpha, labels = digit_alphas(one_and_seven(), lam)
        assert_close_to_best(alpha, labels, (0.05, 0.3), 2, range(0, 200, 4))


def test_the_chosen_t_loses_less_than_a_hundredth_on_ten_digits():
    alpha, labels = digit_alphas(ten_digits(), 100)
    assert_close_to_best(alpha[:30], labels, (0.0125,), 10, range(0, 30, 3))


@pytest.mark.parametrize("classes", [2, 3])
def test_the_chosen_t_is_good_for_many_examples_with_heavy_tails(classes):
    """So many that t is first sought on a sample of them."""
    rng = np.random.default_rng(0)
    n = 20000
    labels = rng.integers(classes, size=n)
    alpha = 0.02 * rng.standard_t(2.1, size=(5, n)) + 0.01 * (labels == 0) - 0.005 * (labels == 1)
    alpha[3:] = 1e-3 * np.where(labels == 0, 1, -1)
    alpha[3, 17] *= -1000  # at the best t these two would overflow exp
    alpha[4, 17] *= 1000
    assert_close_to_best(alpha, labels, (0.05, 0.3), classes, range(5))


def test_the_rival_that_counts_is_found_where_another_seems_closer():
    rng = np.random.default_rng(0)
    classes, q = 4, 0.1
    labels = np.sort(rng.integers(classes, size=60))
    alpha = rng.standard_t(2.1, size=(60, 60)) + 1.5 * (labels == 0)
    starts = np.searchsorted(labels, range(classes + 1))
    e = q / (classes - 1)
    misled = 0
    for i, a in enumerate(alpha):
        assert_close_to_best(a[None], labels, (q,), classes, [0])
        scores, squares = (np.add.reduceat(v, starts[:-1]) for v in (a, a * a))
        c = scores.argmax()
        inside = squares + squares[c]
        variance = (1 - q + e - (1 - q - e) ** 2) * inside + 2 * e * (squares.sum() - inside)
        seems = -((1 - q - e) ** 2) * (scores[c] - scores) ** 2 / (2 * variance)
        seems[c] = -np.inf
        misled += seems.argmax() != rival_log_bounds(alpha[i : i + 1], starts, q)[0].argmax()
    assert misled > 0


# Validity of the certificates


def test_no_certificate_is_above_the_true_radius_of_two_classes():
    n = 10
    alpha, labels = random_points(200, n, 2, 1)
    means = {}
    for q in (0.05, 0.2):
        sign = np.where(all_labels(n, 2) == 1, 1, -1)
        p_one = under_noise((alpha @ sign.T > 0).astype(float), n, 2, q)
        true = radius((p_one > 0.5).astype(int), labels, 2)
        here = labels @ (2 ** np.arange(n)[::-1])
        own = p_one[np.arange(200), here]
        sharp = np_flips(np.log(np.minimum(own, 1 - own)), q)
        for i in range(200):
            (ours,) = certify_alpha(alpha[i : i + 1], labels[i], [q])
            if not ours.abstain[0]:
                assert ours.prediction[0] == (own[i] > 0.5)
            assert ours.flips_kl[0] <= ours.flips_np[0] <= sharp[i] <= true[i]
        means[q] = sharp.mean(), true.mean()
    assert means[0.05][0] > 1
    assert means[0.05][0] > 0.4 * means[0.05][1]


@pytest.mark.parametrize(("classes", "n"), [(2, 9), (3, 7)])
def test_all_label_vectors_within_the_certificate_keep_the_smoothed_prediction(classes, n):
    certified = []
    for seed, q in enumerate((0.02, 0.05, 0.2)):
        alpha, labels = random_points(100, n, classes, 10 + seed)
        answers = smoothed_of_all(alpha, classes, q)
        true = radius(answers, labels, classes)
        here = (all_labels(n, classes)[None] == labels[:, None]).all(-1).argmax(1)
        for i in range(100):
            (ours,) = certify_alpha(alpha[i : i + 1], labels[i], [q], classes)
            if not ours.abstain[0]:
                assert answers[i, here[i]] == ours.prediction[0]
                assert ours.flips_kl[0] <= ours.flips_np[0] <= true[i]
            certified.append(ours.flips_np[0])
    assert max(certified) >= (2 if classes == 2 else 1)


@pytest.mark.parametrize(("classes", "n"), [(2, 10), (3, 7)])
@pytest.mark.parametrize("whole", [False, True])
def test_exact_flips_are_those_of_a_search_over_all_label_vectors(classes, n, whole):
    """Small integers as coefficients make many ties."""
    alpha, labels = random_points(150, n, classes, 2)
    if whole:
        alpha = np.round(3 * alpha)
    scores = scores_of_all(alpha, classes)
    expected = np.minimum(radius(scores.argmax(-1), labels, classes), n)
    ours = np.array([exact_flips(a[None], y, classes)[0] for a, y in zip(alpha, labels, strict=True)])
    np.testing.assert_array_equal(ours, expected)
    certifier = [certify_alpha(a[None], y, [0.05], classes)[0] for a, y in zip(alpha, labels, strict=True)]
    np.testing.assert_array_equal([c.flips_exact[0] for c in certifier], expected)
    assert len(set(expected.tolist())) > 2


def test_exact_flips_of_many_examples_need_no_full_sort():
    """More columns than are looked at first; the second half of the points needs to look further."""
    rng = np.random.default_rng(4)
    n = 6000
    for classes in (2, 4):
        labels = rng.integers(classes, size=n)
        alpha = rng.normal(size=(12, n)) + np.linspace(0.05, 3, 12)[:, None] * np.where(labels == 1, 1, -1)
        scores = np.stack([alpha[:, labels == c].sum(1) for c in range(classes)], 1)
        leader = scores.argmax(1)
        expected = np.full(12, n)
        for i in range(12):
            for d in set(range(classes)) - {leader[i]}:
                c, a = leader[i], alpha[i]
                to_rival = np.where(labels == d, 0, np.where(labels == c, 2, 1)) * np.maximum(a, 0)
                to_leader = np.where(labels == c, 0, np.where(labels == d, 2, 1)) * np.maximum(-a, 0)
                sums = np.cumsum(np.sort(to_rival + to_leader)[::-1])
                expected[i] = min(expected[i], (sums <= scores[i, c] - scores[i, d]).sum())
        np.testing.assert_array_equal(exact_flips(alpha, labels, classes), expected)
        ours = certify_alpha(alpha, labels, [0.05], classes)[0]
        np.testing.assert_array_equal(ours.flips_exact, expected)
        assert expected.min() < 300
        assert expected.max() > 1100


# Figures of real digits


@pytest.mark.parametrize(
    ("lam", "accuracy", "exact", "by_q"),
    [
        (100, 0.960, 23, {0.05: (6, 12), 0.1: (5, 11), 0.3: (2, 4), 0.45: (-1, -1)}),
        (1e4, 0.940, 119, {0.05: (45, 89), 0.1: (42, 83), 0.3: (34, 66), 0.45: (7, 12)}),
    ],
)
def test_medians_on_ones_and_sevens(sweep, lam, accuracy, exact, by_q):
    certificates, truth = sweep
    assert certificates[100, 0.45].abstain.all()
    for q, (closed, tight) in by_q.items():
        ours = certificates[lam, q]
        assert (ours.prediction == truth).mean() == pytest.approx(accuracy)
        assert median_flips(ours.prediction, ours.flips_exact, truth) == pytest.approx(exact, abs=1)
        assert median_flips(ours.prediction, ours.flips_kl, truth) == pytest.approx(closed, abs=1)
        assert median_flips(ours.prediction, ours.flips_np, truth) == pytest.approx(tight, abs=1)


def test_no_smoothed_certificate_beats_the_exact_one(sweep):
    certificates, _ = sweep
    largest = 0.0
    for (_, q), ours in certificates.items():
        exact = ours.flips_exact
        assert (-ours.log_wrong_prob <= (exact + 1) * kl_per_flip(q)).all()
        assert (ours.flips_kl <= (exact + 1) / 2).all()
        assert (ours.flips_np <= exact).all()
        largest = max(largest, (ours.flips_np / np.maximum(exact, 1)).max())
    assert largest == pytest.approx(0.82, abs=0.005)


def test_medians_on_ten_digits():
    _, features, labels, test, truth = ten_digits()
    certifier = LabelFlipCertifier(100, 0.05, task="multiclass").fit(features, labels)
    certificates = certifier.sweep(test, [100, 1e4], [0.0125, 0.05])
    figures = {(100, 0.0125): (8, 17), (100, 0.05): (6, 12), (1e4, 0.0125): (12, 24)}
    for (lam, q), (closed, tight) in figures.items():
        ours = certificates[lam, q]
        assert (ours.prediction == truth).mean() == pytest.approx({100: 0.857, 1e4: 0.810}[lam], abs=5e-4)
        assert median_flips(ours.prediction, ours.flips_exact, truth) == pytest.approx({100: 23, 1e4: 32}[lam], abs=1)
        assert median_flips(ours.prediction, ours.flips_kl, truth) == pytest.approx(closed, abs=1)
        assert median_flips(ours.prediction, ours.flips_np, truth) == pytest.approx(tight, abs=1)
    for (_, q), ours in certificates.items():
        assert (-ours.log_wrong_prob <= (ours.flips_exact + 1) * kl_per_flip(q, 10)).all()
        assert (ours.flips_np <= ours.flips_exact).all()


def test_the_bound_against_the_frequency_of_wrong_answers():
    _, features, labels, test, _ = one_and_seven()
    q, draws = 0.3, 20000
    certifier = LabelFlipCertifier(100, q).fit(features, labels)
    ours = certifier.certify(test[:20])
    alpha = certifier.system.factor(100).alpha(features, test[:20])
    rng = np.random.default_rng(0)
    noisy = np.where(rng.random((draws, len(labels))) < q, 1 - labels, labels)
    frequency = ((alpha @ (2 * noisy - 1).T > 0) != (ours.prediction == 1)[:, None]).mean(1)
    error = np.sqrt(np.maximum(frequency * (1 - frequency), 1 / draws) / draws)
    bound = np.exp(ours.log_wrong_prob)
    assert (bound >= frequency - 4 * error).all()
    least_certain = np.argsort(-bound)[:3]
    ratio = bound[least_certain] / frequency[least_certain]
    assert ((ratio > 2) & (ratio < 6)).all()


# Invariances


def test_swapping_the_classes_keeps_every_certificate():
    _, features, labels, test, _ = one_and_seven()
    ours = LabelFlipCertifier(100, 0.1).fit(features, labels).certify(test)
    swapped = LabelFlipCertifier(100, 0.1).fit(features, 1 - labels).certify(test)
    np.testing.assert_array_equal(swapped.prediction, 1 - ours.prediction)
    np.testing.assert_allclose(swapped.log_wrong_prob, ours.log_wrong_prob, rtol=1e-6)
    for name in ("flips_kl", "flips_np", "flips_exact"):
        np.testing.assert_array_equal(getattr(swapped, name), getattr(ours, name))


def test_scaling_features_and_lam_changes_nothing():
    _, features, labels, test, _ = one_and_seven()
    ours = LabelFlipCertifier(100, 0.1).fit(features, labels).certify(test)
    scaled = LabelFlipCertifier(100 * 64, 0.1, constant=8).fit(8 * features, labels).certify(8 * test)
    np.testing.assert_allclose(scaled.log_wrong_prob, ours.log_wrong_prob, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(scaled.flips_exact, ours.flips_exact)
    np.testing.assert_array_equal(scaled.flips_np, ours.flips_np)


def test_test_points_do_not_depend_on_each_other():
    _, features, labels, test, _ = one_and_seven()
    certifier = LabelFlipCertifier(100, 0.05).fit(features, labels)
    ours, blocks, some = certifier.certify(test), certifier.certify(test, block=7), certifier.certify(test[50:53])
    np.testing.assert_allclose(blocks.log_wrong_prob, ours.log_wrong_prob, rtol=1e-10)
    np.testing.assert_allclose(some.log_wrong_prob, ours.log_wrong_prob[50:53], rtol=1e-10)
    np.testing.assert_array_equal(blocks.flips_exact, ours.flips_exact)
    np.testing.assert_array_equal(some.prediction, ours.prediction[50:53])


def test_a_certain_point_has_finite_numbers():
    q, n = 0.05, 2410
    alpha, labels = np.ones((1, n + 1)), np.ones(n + 1, dtype=int)
    alpha[0, 0], labels[0] = 0, 0
    (ours,) = certify_alpha(alpha, labels, [q])
    assert ours.log_wrong_prob[0] == pytest.approx(n * math.log(2 * math.sqrt(q * (1 - q))), rel=1e-3)
    assert ours.log_wrong_prob[0] == pytest.approx(-2000, abs=2)
    assert ours.flips_np[0] == np_flips(ours.log_wrong_prob, q)[0] > 700
    assert 370 < ours.flips_kl[0] < ours.flips_np[0] < ours.flips_exact[0] == n // 2 - 1


def test_a_point_without_a_leader_abstains():
    (ours,) = certify_alpha(np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([0, 1]), [0.05])
    assert ours.prediction.tolist() == [0, 0]
    assert ours.abstain.all()
    assert (ours.flips == -1).all()
    assert ours.flips_exact.tolist() == [0, 2]  # the second point's prediction depends on no label at all


def test_two_classes_are_the_same_as_one_of_many():
    _, features, labels, test, _ = one_and_seven()
    alpha = LabelFlipCertifier(100, 0.1).fit(features, labels).system.factor(100).alpha(features, test)
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], [0, 1, 2])
    as_one_of_many = rival_log_bounds(alpha[:, order], starts, 0.1).max(1)
    np.testing.assert_allclose(as_one_of_many, chernoff_log_bound(alpha, labels, 0.1), rtol=0.005, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: chernoff_log_bound([[1.0, 2.0]], [0, 1, 1], 0.1), "alpha: has shape"),
        (lambda: chernoff_log_bound([[1.0, np.nan]], [0, 1], 0.1), "alpha: has NaN"),
        (lambda: chernoff_log_bound([[1.0, 2.0]], [0, 2], 0.1), "labels: 2 is not below num_classes 2"),
        (lambda: certify_alpha([[1.0, 2.0]], [1, 1], [0.1]), "labels: none is 0"),
        (lambda: certify_alpha([[1.0, 2.0]], [0.0, 1.0], [0.1]), "labels: are of type float64"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
