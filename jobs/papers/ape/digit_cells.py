"""Cells on digits: ten classes told apart by prompts that were never trained, also under shift."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from jobs.claims import MetricRow, scalar_rows
from jobs.papers.ape.features import (
    DigitData,
    colours,
    encode_digits,
    encode_texts,
    held_out_digits,
    training_digits,
)
from jobs.papers.ape.icon_cells import train
from jobs.papers.ape.names import (
    CLIP,
    CURATION_STEPS,
    DIGIT_ARMS,
    LINEAR,
    LIT,
    MEANS,
    PLAIN,
    PROBE,
    SHIFTS,
    SHUFFLED,
    STEPS,
    TEST_TEMPLATES,
    WORDS,
)
from lightning_modules.alignment.pairs import PairTensors, make_pairs
from lightning_modules.alignment.references import linear_probe, nearest_class_mean
from lightning_modules.alignment.towers import bags_of_words, vocabulary_of
from lightning_modules.alignment.zero_shot import Aligner, ZeroShotClassifier
from lightning_modules.encoders import minilm_tower

_RELEVANT = 5
"""Digits below are what curation is for."""


def align(method: str, seed: int, steps: int = STEPS) -> list[MetricRow]:
    """Accuracy by a method on digits as they are, and shifted."""
    digits = training_digits()
    environments = (PLAIN, *SHIFTS)
    if method in (PROBE, MEANS):
        reference = linear_probe if method == PROBE else nearest_class_mean
        rows = []
        for environment in environments:
            images, labels = held_out_digits(environment)
            accuracy = reference(digits.vectors(), digits.labels, encode_digits(images), labels)
            rows += scalar_rows({"accuracy": accuracy}, environment=environment)
        return rows
    encode, read = readers(method, digits)
    pairs = make_pairs(read(digits.training), encode(digits.captions), digits.captions)
    aligner, cost = train(method, pairs.shuffled(seed) if method == SHUFFLED else pairs, seed, steps)
    classifier = prompted(aligner, encode)
    figures = {"parameters": cost.parameters, "pairs": cost.pairs, "seconds": cost.seconds}
    rows = scalar_rows(figures, environment="cost")
    for environment in environments:
        images, labels = held_out_digits(environment)
        rows += scalar_rows({"accuracy": classifier.accuracy(read(images), labels)}, environment=environment)
    return rows


Reader = Callable[..., torch.Tensor]


def readers(method: str, digits: DigitData) -> tuple[Reader, Reader]:
    """What a method's text side makes of texts, and its image side of images [n, 32, 32]."""
    if method == CLIP:
        known = vocabulary_of(digits.captions)
        return (
            lambda texts: bags_of_words(texts, known),
            lambda images: torch.from_numpy(colours(images)).permute(0, 3, 1, 2),
        )
    tokenizer = minilm_tower()[1] if method == LIT else None

    def encode(texts: list[str]) -> torch.Tensor:
        return torch.tensor(encode_texts(texts)) if tokenizer is None else tokenizer(list(texts))[0]

    return encode, lambda images: torch.tensor(encode_digits(images))


def prompted(
    aligner: Aligner,
    encode: Callable[[list[str]], torch.Tensor | np.ndarray] = encode_texts,
    words: tuple[str, ...] = WORDS,
) -> ZeroShotClassifier:
    """The classifier of digit words in templates that are not in training."""
    return ZeroShotClassifier.from_prompts(words, TEST_TEMPLATES, encode, aligner)


def vector_pairs() -> tuple[PairTensors, np.ndarray]:
    """The training digits as vectors with their captions, and labels."""
    digits = training_digits()
    return make_pairs(digits.vectors().copy(), encode_texts(digits.captions), digits.captions), digits.labels


def unseen(seed: int, classes: str) -> list[MetricRow]:
    """Ten-way accuracy on two digits that no training pair shows, and on the others."""
    pairs, labels = vector_pairs()
    hidden = [int(label) for label in classes.split()]
    aligner, _ = train(LINEAR, pairs.take(np.flatnonzero(~np.isin(labels, hidden))), seed, STEPS)
    images, truth = held_out_digits()
    right = prompted(aligner).predict(encode_digits(images)) == truth
    held = np.isin(truth, hidden)
    return scalar_rows({"unseen": right[held].mean(), "seen": right[~held].mean()})


def curate(seed: int) -> list[MetricRow]:
    """Five-way accuracy on digits below 5, by the pairs that were trained on."""
    pairs, labels = vector_pairs()
    order = np.random.default_rng(seed).permutation(len(labels))
    relevant, irrelevant = order[labels[order] < _RELEVANT], order[labels[order] >= _RELEVANT]
    images, truth = held_out_digits()
    wanted = truth < _RELEVANT
    test = encode_digits(images)[wanted]
    rows: list[MetricRow] = []
    for name, chosen in zip(DIGIT_ARMS, (relevant[:100], irrelevant, order), strict=True):
        aligner, _ = train(LINEAR, pairs.take(chosen), seed, CURATION_STEPS)
        accuracy = prompted(aligner, words=WORDS[:_RELEVANT]).accuracy(test, truth[wanted])
        rows += scalar_rows({"accuracy": accuracy, "trained_on": len(chosen)}, environment=name)
    return rows
