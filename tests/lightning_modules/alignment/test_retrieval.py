"""Recall against sorting, its direction, ties, and chunks."""

import numpy as np
import pytest
import torch

from lightning_modules.alignment.retrieval import retrieval_recall
from lightning_modules.errors import InputError


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_recall_is_what_sorting_gives():
    images = normal(50, 6)
    texts = images + 0.8 * normal(50, 6, seed=1)
    found = retrieval_recall(images, texts, (1, 3, 10), chunk=7)
    w, z = (side.double() / side.double().norm(dim=1, keepdim=True) for side in (images, texts))
    cosines = (w @ z.T).numpy()
    for k in (1, 3, 10):
        by_image = np.mean([i in np.argsort(-cosines[i])[:k] for i in range(50)])
        by_text = np.mean([i in np.argsort(-cosines[:, i])[:k] for i in range(50)])
        assert found.image_to_text[k] == pytest.approx(by_image)
        assert found.text_to_image[k] == pytest.approx(by_text)
    assert found.chance(3) == 3 / 50
    assert found.chance(80) == 1


def test_the_two_directions_are_not_mixed_up():
    # Every image is nearest its own text, but all texts are nearest the first image.
    images = torch.tensor([[1.0, 0.0], [1.0, 0.5], [1.0, 1.0]])
    texts = torch.tensor([[1.0, 0.05], [1.0, 0.1], [1.0, 0.2]])
    found = retrieval_recall(images, texts, (1,))
    assert found.text_to_image[1] == pytest.approx(1 / 3)
    assert found.image_to_text[1] == pytest.approx(2 / 3)
    swapped = retrieval_recall(texts, images, (1,))
    assert swapped.image_to_text == found.text_to_image


def test_vectors_that_are_all_equal_find_nothing():
    same = normal(1, 5).repeat(20, 1)
    found = retrieval_recall(same, 2 * same, (1, 5, 19, 20), chunk=6)
    for shares in (found.image_to_text, found.text_to_image):
        assert shares == {1: 0, 5: 0, 19: 0, 20: 1}


def test_equal_captions_count_against_each_other():
    vectors = torch.eye(4)
    texts = vectors.clone()
    texts[1] = texts[0]
    found = retrieval_recall(vectors, texts, (1, 2))
    assert found.image_to_text[1] == 0.5


@pytest.mark.parametrize("chunk", [1, 13, 1000])
def test_chunks_change_nothing(chunk):
    images, texts = normal(40, 5), normal(40, 5, seed=1)
    assert retrieval_recall(images, texts, chunk=chunk) == retrieval_recall(images, texts)


def test_arrays_do_as_well_as_tensors():
    images, texts = normal(10, 5), normal(10, 5, seed=1)
    assert retrieval_recall(images.numpy(), texts.numpy()) == retrieval_recall(images, texts)


def test_wrong_inputs_are_named():
    good = normal(4, 3)
    bad, zero = good.clone(), good.clone()
    bad[2, 1], zero[3] = float("nan"), 0
    for images, texts, message in (
        (good, normal(5, 3), "give one text an image"),
        (bad, good, "images: row 2 is not finite"),
        (good, zero, "texts: row 3 is zero"),
        (good[:0], good[:0], "images: have shape"),
    ):
        with pytest.raises(InputError, match=message):
            retrieval_recall(images, texts)
    with pytest.raises(InputError, match="ks, chunk"):
        retrieval_recall(good, good, (0,))
