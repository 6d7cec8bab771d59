"""Shifted digits: dealt once, changed as their names say, and the same each time."""

import numpy as np
import pytest

from lightning_modules.data.catalog import load_dataset
from lightning_modules.data.digits import load_digits, rotate
from lightning_modules.data.shifted_digits import DealtDigits, DigitShift, affine, digit_shifts, training_digits
from lightning_modules.errors import InputError

SHIFTS = {shift.name: shift for shift in digit_shifts()}


@pytest.fixture(scope="module")
def dealt():
    return DealtDigits.deal(0)


def test_every_digit_is_dealt_once(dealt):
    parts = (dealt.training, dealt.source, dealt.target)
    assert [len(labels) for _, labels in parts] == [2000, 1500, 1500]
    rows = np.concatenate([(255 * images).round().astype(np.uint8).reshape(len(images), -1) for images, _ in parts])
    everything = load_digits()[0].reshape(5000, -1)
    assert sorted(map(bytes, rows)) == sorted(map(bytes, everything))
    assert (DealtDigits.deal(0).source[1] == dealt.source[1]).all()
    assert (DealtDigits.deal(1).source[1] != dealt.source[1]).any()


@pytest.mark.parametrize("name", SHIFTS)
def test_shifts_are_sound_and_repeat(dealt, name):
    images, labels = dealt.shifted(SHIFTS[name])
    assert images.dtype == np.float32
    assert images.shape == (len(labels), 28, 28)
    assert images.min() >= -1e-6
    assert images.max() <= 1 + 1e-6
    again = dealt.shifted(SHIFTS[name])
    assert (again[0] == images).all()
    original = dealt.target[0]
    if len(labels) == 1500:
        assert (labels == dealt.target[1]).all()
        assert (images == original).all() == (name == "none")


def test_shifts_do_what_their_names_say(dealt):
    original, labels = dealt.target

    def images(name):
        return dealt.shifted(SHIFTS[name])[0]

    assert images("contrast 0.25") == pytest.approx(original / 4)
    assert images("colour 1") == pytest.approx(1 - original, abs=1e-6)
    assert (images("rotate 30") == rotate(original, 30)).all()
    assert (images("patch 11") <= original).all()
    removed = (original > 0) & (images("patch 11") == 0)
    assert 0 < removed.sum((1, 2)).max() <= 121
    assert np.abs(np.diff(images("blur 2"), axis=2)).max() < np.abs(np.diff(original, axis=2)).max() / 2
    moved = images("translate 4")
    assert moved.sum() <= original.sum() + 1e-3
    assert (moved.max((1, 2)) > 0).all()
    ink = (original > 0.5).any(2).sum(1).mean()
    assert (
        (images("zoom 1.5") > 0.5).any(2).sum(1).mean()
        > 1.15 * ink
        > ink
        > (images("zoom 0.7") > 0.5).any(2).sum(1).mean()
    )
    assert np.abs(images("noise 0.6") - original).mean() > np.abs(images("noise 0.2") - original).mean()
    few = dealt.shifted(SHIFTS["label shift 0.2"])[1]
    assert (few < 5).sum() == pytest.approx(0.2 * (labels < 5).sum(), rel=0.25)
    assert (few >= 5).sum() == (labels >= 5).sum()


def test_groups_are_thirds_of_every_class(dealt):
    labels = dealt.target[1]
    found = {g: dealt.shifted(DigitShift(g, group=g)) for g in ("thin", "thick", "small", "large")}
    for images, chosen in found.values():
        assert (np.bincount(chosen) == np.bincount(labels) // 3).all()
        assert len(images) == len(chosen)
    assert found["thick"][0].mean() > 1.5 * found["thin"][0].mean()
    area = {g: ((i > 0.5).any(2).sum(1) * (i > 0.5).any(1).sum(1)).mean() for g, (i, _) in found.items()}
    assert area["large"] > 1.3 * area["small"]
    with pytest.raises(InputError, match="group: unknown 'round'"):
        dealt.shifted(DigitShift("round", group="round"))


def test_affine_moves_turns_and_zooms():
    image = np.zeros((1, 28, 28), np.float32)
    image[0, 10, 5] = 1
    zero, one = np.zeros(1), np.ones(1)
    assert affine(image, zero, one, np.zeros((1, 2))) == pytest.approx(image, abs=1e-5)
    moved = affine(image, zero, one, np.array([[3.0, 7.0]]))
    assert np.unravel_index(moved[0].argmax(), (28, 28)) == (13, 12)
    turned = affine(image, np.array([90.0]), one, np.zeros((1, 2)))
    assert np.unravel_index(turned[0].argmax(), (28, 28)) == np.unravel_index(rotate(image, 90)[0].argmax(), (28, 28))
    square = np.zeros((1, 28, 28), np.float32)
    square[0, 10:18, 10:18] = 1
    assert affine(square, zero, 2 * one, np.zeros((1, 2))).sum() == pytest.approx(4 * 64, rel=0.05)


def test_the_training_set_is_in_the_catalog():
    dataset = load_dataset("ShiftedDigits:copies=2")
    assert dataset.environment_names == ("plain", "turned 1", "turned 2")
    assert {len(e) for e in dataset.environments} == {2000}
    assert dataset.network == "small-cnn"
    plain = load_dataset("ShiftedDigits:augment=false")
    assert [len(e) for e in plain.environments] == [1000, 1000]
    assert (training_digits(1).environments[0].labels != dataset.environments[0].labels).any()
    with pytest.raises(InputError, match="copies is 0"):
        load_dataset("ShiftedDigits:copies=0")
