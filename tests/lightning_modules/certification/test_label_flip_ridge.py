import numpy as np
import pytest

from lightning_modules.certification.label_flips import (
    FeatureMap,
    FlipCertificates,
    LabelFlipCertifier,
    RidgeSystem,
    certified_accuracy_curve,
    certify_alpha,
    median_flips,
    worst_case_flips,
)
from lightning_modules.errors import InputError
from tests.lightning_modules.certification.label_flip_data import one_and_seven, ten_digits


def data(n=240, width=7, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    centers = 0.6 * rng.normal(size=(classes, width))
    return 5 + rng.normal(size=(n, width)) + centers[labels], labels, 5 + rng.normal(size=(30, width)) + centers[0]


def cut(features, labels, sizes=(50, 1, 0, 120)):
    ends = np.cumsum(sizes)
    return list(zip(np.split(features, ends), np.split(labels, ends), strict=True))


def assert_same(ours, other):
    np.testing.assert_array_equal(ours.prediction, other.prediction)
    np.testing.assert_allclose(ours.log_wrong_prob, other.log_wrong_prob, rtol=1e-9, atol=1e-9)
    for name in ("flips_kl", "flips_np", "flips_exact", "abstain"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(other, name))


# Sums


def test_the_sums_of_chunks_are_those_of_the_whole():
    features, labels, _ = data(classes=3)
    centred = features - features.mean(0)
    system = RidgeSystem()
    for chunk in cut(features, labels):
        system.update(*chunk)
    assert system.count == len(labels)
    np.testing.assert_allclose(system.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(system.scatter, centred.T @ centred, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(system.label_counts, np.bincount(labels))
    means = np.stack([features[labels == c].mean(0) for c in range(3)])
    np.testing.assert_allclose(system.class_means, means, rtol=1e-12)


def test_sums_merge_in_any_order():
    features, labels, test = data(classes=3)
    order = np.argsort(labels)  # so that parts lack classes
    parts = cut(features[order], labels[order])
    merged = []
    for sequence in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        total = RidgeSystem()
        for i in sequence:
            total.merge(RidgeSystem().update(*parts[i]))
        merged.append(total)
    np.testing.assert_allclose(merged[0].scatter, merged[1].scatter, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(merged[0].scores(test, 3.0), merged[1].scores(test, 3.0), rtol=1e-10, atol=1e-12)


def test_sums_far_from_zero_lose_nothing():
    features, labels, _ = data()
    system = RidgeSystem()
    for chunk in cut(features + 1e7, labels):
        system.update(*chunk)
    centred = features - features.mean(0)
    np.testing.assert_allclose(system.scatter, centred.T @ centred, rtol=1e-6, atol=1e-5)


def test_coefficients_solve_ridge_regression_with_a_constant_column():
    features, labels, test = data()
    lam, constant = 3.0, 1.5
    system = RidgeSystem(constant).update(features, labels)
    extended = np.hstack([features - features.mean(0), np.full((len(labels), 1), constant)])
    points = np.hstack([test - features.mean(0), np.full((len(test), 1), constant)])
    gram = extended.T @ extended + lam * np.eye(extended.shape[1])
    expected = points @ np.linalg.solve(gram, extended.T)
    np.testing.assert_allclose(system.factor(lam).alpha(features, test), expected, rtol=1e-10, atol=1e-13)
    scores = np.stack([expected[:, labels == c].sum(1) for c in (0, 1)], 1)
    np.testing.assert_allclose(system.scores(test, lam), scores, rtol=1e-10, atol=1e-12)
    assert system.label_free_lam(0.1) == pytest.approx(0.1 * ((features - features.mean(0)) ** 2).sum() / 7)


def test_a_new_chunk_is_seen_after_factoring():
    features, labels, test = data()
    system = RidgeSystem().update(features[:100], labels[:100])
    system.factor(1.0)
    system.update(features[100:], labels[100:])
    whole = RidgeSystem().update(features, labels)
    np.testing.assert_allclose(system.scores(test, 1.0), whole.scores(test, 1.0), rtol=1e-10)


# The certifier


@pytest.mark.parametrize(("classes", "task"), [(2, "binary"), (3, "multiclass")])
def test_a_stream_gives_what_memory_gives(classes, task):
    features, labels, test = data(classes=classes)
    memory = LabelFlipCertifier(30.0, 0.05, task).fit(features, labels).certify(test)
    assert memory.flips_exact.max() > 0
    chunks = cut(features, labels)
    assert_same(LabelFlipCertifier(30.0, 0.05, task).fit_stream(chunks).certify(test), memory)
    assert_same(LabelFlipCertifier(30.0, 0.05, task).fit_stream(lambda: iter(chunks)).certify(test, block=8), memory)
    total = RidgeSystem()
    for chunk in reversed(chunks):
        total.merge(RidgeSystem().update(*chunk))
    by_workers = LabelFlipCertifier(30.0, 0.05, task).fit_stream(chunks, total)
    assert_same(by_workers.certify(test), memory)


@pytest.mark.parametrize("classes", [2, 3])
def test_certificates_are_those_of_the_coefficients(classes):
    features, labels, test = data(classes=classes)
    certifier = LabelFlipCertifier(30.0, 0.05, "multiclass").fit(features, labels)
    alpha = certifier.system.factor(30.0).alpha(features, test)
    (expected,) = certify_alpha(alpha, labels, [0.05], classes)
    ours = certifier.certify(test)
    assert_same(ours, expected)
    scores = np.stack([alpha[:, labels == c].sum(1) for c in range(classes)], 1)
    np.testing.assert_array_equal(ours.prediction, scores.argmax(1))
    np.testing.assert_array_equal(certifier.predict(test), scores.argmax(1))


def test_a_sweep_gives_what_single_certifiers_give():
    features, labels, test = data()
    sweep = LabelFlipCertifier(1.0, 0.1).fit(features, labels).sweep(test, [5.0, 50.0], [0.05, 0.2], block=9)
    assert set(sweep) == {(lam, q) for lam in (5.0, 50.0) for q in (0.05, 0.2)}
    for (lam, q), ours in sweep.items():
        assert_same(ours, LabelFlipCertifier(lam, q).fit(features, labels).certify(test))


@pytest.mark.parametrize("n", [20, 41])
def test_more_features_than_examples_use_the_dual_form(n):
    """The width is 40: one case on either side."""
    features, labels, test = data(n, 40)
    lam = 2.0
    centred = features - features.mean(0)
    alpha = np.linalg.solve(centred @ centred.T + lam * np.eye(n), centred @ (test - features.mean(0)).T).T
    (expected,) = certify_alpha(alpha + 1 / (n + lam), labels, [0.05])
    certifier = LabelFlipCertifier(lam, 0.05).fit(features, labels)
    assert certifier.system.width == min(n - 1, 40)
    assert_same(certifier.certify(test), expected)


@pytest.mark.parametrize(("classes", "task"), [(2, "binary"), (4, "multiclass")])
@pytest.mark.parametrize("stream", [False, True])
def test_the_worst_attack_turns_the_prediction_and_one_flip_less_does_not(classes, task, stream):
    features, labels, test = data(classes=classes)
    certifier = LabelFlipCertifier(30.0, 0.05, task)
    certifier = certifier.fit_stream(cut(features, labels)) if stream else certifier.fit(features, labels)
    ours = certifier.certify(test)
    for h, prediction, exact in zip(test, ours.prediction, ours.flips_exact, strict=True):
        for r in (exact + 1, exact):
            attack = certifier.worst_case_flips(h, None if r > exact else r)
            assert len(attack.indices) <= r
            attacked = labels.copy()
            attacked[attack.indices] = attack.labels
            assert (attacked != labels).sum() == len(attack.indices)
            turned = RidgeSystem().update(features, attacked).scores(h[None], 30.0).argmax() != prediction
            assert turned == (r > exact)


def test_the_worst_attack_turns_every_prediction_on_ones_and_sevens():
    _, features, labels, test, _ = one_and_seven()
    certifier = LabelFlipCertifier(100, 0.05).fit(features, labels)
    ours = certifier.certify(test)
    attacked = []
    for h in test:
        attack = certifier.worst_case_flips(h)
        y = labels.copy()
        y[attack.indices] = attack.labels
        attacked.append(RidgeSystem().update(features, y).scores(h[None], 100).argmax())
    assert (np.array(attacked) != ours.prediction).sum() == 200


def test_a_prediction_no_label_alters_has_no_attack():
    with pytest.raises(InputError, match="r: no attack alters this prediction"):
        worst_case_flips(np.zeros(3), np.array([0, 1, 1]))
    with pytest.raises(InputError, match="r: 4 is outside 0..3"):
        worst_case_flips(np.ones(3), np.array([0, 1, 1]), r=4)


def test_no_test_points_give_empty_certificates():
    features, labels, test = data()
    ours = LabelFlipCertifier(1.0, 0.1).fit(features, labels).certify(test[:0])
    assert ours.prediction.shape == ours.flips_np.shape == ours.log_wrong_prob.shape == (0,)


def test_labels_of_the_training_data_enter_no_coefficient():
    features, labels, test = data()
    certifier = LabelFlipCertifier(3.0, 0.1).fit(features, labels)
    other = LabelFlipCertifier(3.0, 0.1).fit(features, np.roll(labels, 3))
    ours, theirs = (c.system.factor(3.0).alpha(features, test) for c in (certifier, other))
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-13)


def fitted(**values):
    features, labels, _ = data()
    return LabelFlipCertifier(**{"lam": 1.0, "q": 0.1, **values}).fit(features, labels)


FEATURES, LABELS, TEST = data()
BROKEN = FEATURES.copy()
BROKEN[3, 2] = np.nan


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LabelFlipCertifier(0.0, 0.1), "lam: 0.0 is not positive"),
        (lambda: LabelFlipCertifier(np.inf, 0.1), "lam: inf is not positive"),
        (lambda: LabelFlipCertifier(1.0, 0.5), "q: 0.5 is outside"),
        (lambda: LabelFlipCertifier(1.0, 1.0, "multiclass"), r"q: 1.0 is outside \(0, 1\)"),
        (lambda: LabelFlipCertifier(1.0, 0.1, "other"), "task: unknown 'other'; choose binary or multiclass"),
        (lambda: LabelFlipCertifier(1.0, 0.1, radius="l2"), "radius: unknown 'l2'; choose kl or np"),
        (lambda: LabelFlipCertifier(1.0, 0.1, constant=np.nan), "constant: nan is not finite"),
        (lambda: fitted(q=0.6, task="multiclass"), r"q: 0.6 is outside \(0, 0.5\) for 2 classes"),
        (lambda: fitted().fit(FEATURES, LABELS + 1), "labels: go up to 2; use 0 and 1|labels: none is 0"),
        (lambda: fitted().fit(FEATURES, 2 * LABELS), "labels: none is 1, the largest is 2"),
        (lambda: fitted().fit(FEATURES, LABELS - 1), "labels: -1 is negative"),
        (lambda: fitted().fit(FEATURES, 0 * LABELS), "labels: are all 0"),
        (lambda: fitted().fit(FEATURES, LABELS + 0.5), "labels: are of type float64, not integers"),
        (lambda: fitted().fit(FEATURES, LABELS[:-1]), "labels: have shape"),
        (lambda: fitted().fit(FEATURES, np.arange(240) % 3), "labels: go up to 2; use 0 and 1, or task multiclass"),
        (lambda: fitted().fit(FEATURES[:0], LABELS[:0]), "F: has no rows"),
        (lambda: fitted().fit(BROKEN, LABELS), "F: has NaN or infinite features, first in row 3"),
        (lambda: fitted().fit(FEATURES[0], LABELS), "F: is float64 of shape"),
        (lambda: fitted().certify(TEST[:, :-1]), "H: has 6 features, the training data 7"),
        (lambda: fitted().certify(BROKEN), "H: has NaN"),
        (lambda: fitted().certify(TEST, block=0), "block: 0 is less than 1"),
        (lambda: fitted().sweep(TEST, lams=[-1.0]), "lam: -1.0 is not positive"),
        (lambda: fitted().sweep(TEST, qs=[0.7]), "q: 0.7 is outside"),
        (lambda: LabelFlipCertifier(1.0, 0.1).certify(TEST), "F: there is no training data yet; call fit"),
        (lambda: fitted().fit_stream(iter([(FEATURES, LABELS)])), "chunks: can be read only once"),
        (lambda: fitted().fit_stream([(FEATURES, LABELS), (TEST[:, :-1], LABELS[:30])]), "F: has 6 features"),
        (lambda: RidgeSystem().merge(RidgeSystem(2.0)), "constant: is 2.0 here and 1.0 there"),
        (lambda: RidgeSystem().factor(1.0), "F: has no rows"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_stream_that_changes_is_noticed():
    for change, message in ((slice(0, -1), "fewer"), ([*range(240), 0], "more")):
        passes = iter([slice(None), change])
        certifier = LabelFlipCertifier(1.0, 0.1).fit_stream(
            lambda passes=passes: (lambda rows: [(FEATURES[rows], LABELS[rows])])(next(passes))
        )
        with pytest.raises(InputError, match=f"chunks: hold {message} examples of a class than before"):
            certifier.certify(TEST)


# What comes out


def test_curves_and_medians_count_wrong_and_abstained_as_not_certified():
    predictions, labels = np.array([0, 1, 1, 0, 1]), np.array([0, 1, 0, 0, 1])
    flips = np.array([3, 0, 9, -1, 5])
    np.testing.assert_allclose(
        certified_accuracy_curve(predictions, flips, labels, [0, 1, 3, 4, 6]), [0.6, 0.4, 0.4, 0.2, 0]
    )
    assert median_flips(predictions, flips, labels) == 0
    assert certified_accuracy_curve(predictions, flips, labels, []).shape == (0,)
    with pytest.raises(InputError, match="r_values"):
        certified_accuracy_curve(predictions, flips, labels, [-1])
    with pytest.raises(InputError, match="predictions, flips, labels: have shapes"):
        median_flips(predictions, flips[:2], labels)


def test_the_radius_asked_for_is_the_one_given():
    tight, closed = fitted().certify(TEST), fitted(radius="kl").certify(TEST)
    np.testing.assert_array_equal(tight.flips, tight.flips_np)
    np.testing.assert_array_equal(closed.flips, tight.flips_kl)
    assert (tight.flips > closed.flips).any()
    both = FlipCertificates.concatenate([closed, closed])
    assert both.radius == "kl"
    np.testing.assert_array_equal(both.flips, np.tile(closed.flips, 2))
    with pytest.raises(InputError, match="parts: are none or of different radius"):
        FlipCertificates.concatenate([tight, closed])


# Features


def test_principal_components_are_those_of_the_training_inputs():
    rng = np.random.default_rng(0)
    for n, d in ((40, 6), (8, 20)):
        inputs = rng.normal(size=(n, d)) * rng.uniform(0.1, 3, d) + 2
        features = FeatureMap.parse("pca:5").fit(inputs)
        left, size, right = np.linalg.svd(inputs - inputs.mean(0), full_matrices=False)
        expected = left[:, :5] * size[:5]
        ours = features(inputs)
        np.testing.assert_allclose(np.abs(ours), np.abs(expected), atol=1e-9)
        test = rng.normal(size=(3, d))
        np.testing.assert_allclose(np.abs(features(test)), np.abs((test - inputs.mean(0)) @ right[:5].T), atol=1e-9)


def test_random_features_approximate_the_gaussian_kernel_and_depend_on_the_seed():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(60, 3))
    features = FeatureMap.parse("fourier:20000", seed=1).fit(inputs)
    ours = features(inputs)
    assert ours.shape == (60, 20000)
    squares = ((inputs[:, None] - inputs[None]) ** 2).sum(-1)
    kernel = ours @ ours.T
    width = np.median(np.sqrt(squares[~np.eye(60, dtype=bool)]))
    np.testing.assert_allclose(kernel, np.exp(-squares / (2 * width**2)), atol=0.06)
    again = FeatureMap("fourier", 20000, seed=1).fit(inputs)
    np.testing.assert_array_equal(again(inputs), ours)
    assert np.abs(FeatureMap("fourier", 20000, seed=2).fit(inputs)(inputs) - ours).max() > 0.01


def test_feature_maps_say_what_they_are():
    assert [FeatureMap.parse(text).describe() for text in ("raw", "pca:50")] == ["raw", "pca:50"]
    assert FeatureMap.parse("fourier:9", seed=3).describe() == "fourier:9,seed=3"
    inputs = np.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(FeatureMap.parse("raw").fit(inputs)(inputs[:2]), inputs[:2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FeatureMap.parse("simclr"), "features: unknown 'simclr'; choose raw, pca:NUMBER or fourier:NUMBER"),
        (lambda: FeatureMap.parse("pca"), "features: pca needs a number of features"),
        (lambda: FeatureMap.parse("pca:"), "features: '' in 'pca:' is no number"),
        (lambda: FeatureMap.parse("pca:0"), "features: pca needs a number"),
        (lambda: FeatureMap.parse("pca:-3"), "features: '-3' in 'pca:-3' is no number"),
        (lambda: FeatureMap.parse("raw:3"), "features: raw takes no number"),
        (lambda: FeatureMap.parse("pca:3")(TEST), "features: are not fitted"),
        (lambda: FeatureMap.parse("pca:8").fit(TEST), "features: pca:8 is more than the 7 components"),
        (lambda: FeatureMap.parse("raw").fit(TEST)(TEST[:, 1:]), "X: has 6 features, the training data 7"),
        (lambda: FeatureMap.parse("fourier:4").fit(BROKEN), "X: has NaN"),
        (lambda: FeatureMap.parse("raw").fit(TEST[:0]), "X: has no rows"),
    ],
)
def test_wrong_features_are_named(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_ten_digits_in_a_stream_are_certified_as_in_memory():
    _, features, labels, test, _ = ten_digits()
    memory = LabelFlipCertifier(100, 0.05, "multiclass").fit(features, labels).certify(test[:40])
    chunks = [(features[i : i + 700], labels[i : i + 700]) for i in range(0, 4000, 700)]
    assert_same(LabelFlipCertifier(100, 0.05, "multiclass").fit_stream(chunks).certify(test[:40]), memory)
