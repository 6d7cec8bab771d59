"""Digits in the splits that the figures of the label-flip tests belong to, and noise laws by enumeration."""

import itertools
from functools import lru_cache

import numpy as np

from lightning_modules.certification.label_flips import FeatureMap
from lightning_modules.data.digits import load_digits


@lru_cache
def digits(classes, train, test):
    """Training pixels, features, labels, then test features and labels: PCA-50 of the training pixels."""
    images, labels = load_digits()
    chosen = np.flatnonzero(np.isin(labels, classes))
    order = chosen[np.random.default_rng(0).permutation(len(chosen))]
    pixels = images[order].reshape(len(order), -1) / 255
    y = np.searchsorted(classes, labels[order])
    pca = FeatureMap.parse("pca:50").fit(pixels[:train])
    features = pca(pixels[: train + test])
    return pixels[:train], features[:train], y[:train], features[train:], y[train : train + test]


def one_and_seven():
    return digits((1, 7), 800, 200)


def ten_digits():
    return digits(tuple(range(10)), 4000, 300)


@lru_cache
def all_labels(n, classes):
    """Every label vector, [K^n, n], in the order of an array with n axes of length K."""
    return np.array(list(itertools.product(range(classes), repeat=n)))


def under_noise(values, n, classes, q):
    """E values(noisy labels) for every vector of clean labels, [m, K^n] each."""
    kernel = np.full((classes, classes), q / (classes - 1))
    np.fill_diagonal(kernel, 1 - q)
    array = values.reshape(-1, *[classes] * n).astype(float)
    for axis in range(1, n + 1):
        array = np.moveaxis(np.tensordot(array, kernel, axes=(axis, 0)), -1, axis)
    return array.reshape(len(values), -1)


def scores_of_all(alpha, classes):
    """S_c of every label vector, [m, K^n, K]."""
    vectors = all_labels(alpha.shape[1], classes)
    return np.stack([alpha @ (vectors == c).T for c in range(classes)], -1)


def smoothed_of_all(alpha, classes, q):
    """The smoothed rule of every label vector [m, K^n]: the class that wins all comparisons, -1 where none does."""
    scores = scores_of_all(alpha, classes)
    answer = np.full(scores.shape[:2], -1)
    n = alpha.shape[1]
    for c in range(classes):
        wins = np.ones(scores.shape[:2], bool)
        for d in set(range(classes)) - {c}:
            beats = scores[..., c] >= scores[..., d] if c < d else scores[..., c] > scores[..., d]
            wins &= under_noise(beats, n, classes, q) > 0.5
        answer[wins] = c
    return answer


def radius(answers, labels, classes):
    """The largest r such that all label vectors within r changes of the labels have the answer of the labels, [m]."""
    vectors = all_labels(labels.shape[1], classes)
    distance = (vectors[None] != labels[:, None]).sum(-1)
    own = np.take_along_axis(answers, distance.argmin(1)[:, None], 1)
    return np.where(answers != own, distance, labels.shape[1] + 1).min(1) - 1


def random_points(count, n, classes, seed):
    """Coefficients and labels, each point with its own, that mostly agree: certificates of 0 would test nothing."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=(count, n))
    labels[:, :classes] = np.arange(classes)
    alpha = rng.uniform(0.1, 1, size=(count, n)) * np.where(
        labels == 0, 1, -1 if classes == 2 else rng.choice([0.2, -0.6])
    )
    alpha[:, n // 2 :] += 0.3 * rng.normal(size=(count, n - n // 2))
    return alpha, labels
