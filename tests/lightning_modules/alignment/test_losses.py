"""The contrastive loss against loops, closed forms and its floor; the temperature's bound."""

import math

import pytest
import torch

from lightning_modules.alignment.losses import (
    LARGEST_SCALE,
    duplicates_floor,
    first_log_scale,
    hold_scale,
    info_nce,
)
from lightning_modules.errors import InputError
from tests.lightning_modules.alignment.worlds import brute_force_loss


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [0.5, 14.3, 100.0])
def test_the_loss_is_what_loops_in_double_precision_give(scale):
    images, texts = normal(17, 6), 3 * normal(17, 6, seed=1)
    expected = brute_force_loss(images, texts, scale)
    assert float(info_nce(images, texts, math.log(scale))) == pytest.approx(expected, rel=1e-5)


def test_both_directions_weigh_the_same():
    images, texts = normal(9, 4), normal(9, 4, seed=1)
    assert float(info_nce(images, texts, 1.0)) == pytest.approx(float(info_nce(texts, images, 1.0)), rel=1e-6)


def test_scale_zero_gives_the_logarithm_of_the_batch():
    loss = info_nce(normal(256, 8), normal(256, 8, seed=1), -math.inf)
    assert float(loss) == pytest.approx(math.log(256), abs=1e-5)


def test_pairs_that_agree_in_many_dimensions_cost_nothing():
    vectors = normal(256, 1280)
    assert float(info_nce(vectors, vectors, math.log(LARGEST_SCALE))) < 1e-6


def test_shared_captions_have_a_floor_that_is_reached_and_never_passed():
    captions = torch.arange(256) % 10
    floor = duplicates_floor(captions.tolist())
    assert floor == pytest.approx(3.2428, abs=1e-4)
    texts = normal(10, 1280)[captions]
    assert float(info_nce(texts, texts, math.log(LARGEST_SCALE))) == pytest.approx(floor, abs=1e-5)
    for seed in range(5):
        images = texts + 0.2 * normal(256, 1280, seed=seed + 1)
        assert float(info_nce(images, texts, math.log(LARGEST_SCALE))) > floor


def test_the_floor_of_different_captions_is_zero():
    assert duplicates_floor(["a", "b", "c"]) == 0
    assert duplicates_floor(["a", "a", "b"]) == pytest.approx(2 / 3 * math.log(2))


def test_gradients_reach_both_sides_and_the_scale():
    images, texts = normal(6, 5).double().requires_grad_(), normal(6, 5, seed=1).double().requires_grad_()
    log_scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(info_nce, (images, texts, log_scale))


def test_the_bound_of_the_temperature_lets_it_come_back():
    log_scale = first_log_scale(0.0101)
    optimizer = torch.optim.SGD([log_scale], lr=5.0)
    agree, wrong = normal(8, 64), normal(8, 64, seed=1)
    for _ in range(3):  # a scale that only wants to rise
        images = torch.where(torch.arange(8)[:, None] < 7, agree, wrong)
        for target in (agree, images):
            optimizer.zero_grad()
            (-log_scale + 0 * info_nce(agree, target, log_scale)).backward()
            optimizer.step()
            hold_scale(log_scale)
    assert float(log_scale.detach()) == pytest.approx(math.log(LARGEST_SCALE))
    optimizer.zero_grad()
    info_nce(agree, wrong, log_scale).backward()  # pairs that do not agree: the scale is too large
    assert float(log_scale.grad) > 0
    optimizer.step()
    hold_scale(log_scale)
    assert float(log_scale.detach()) < math.log(LARGEST_SCALE)


def test_wrong_inputs_are_named():
    for make, message in (
        (lambda: info_nce(normal(1, 4), normal(1, 4), 0.0), "batch: has one pair"),
        (lambda: info_nce(normal(3, 4), normal(4, 4), 0.0), r"images have shape \[3, 4\], texts \[4, 4\]"),
        (lambda: duplicates_floor([]), "captions: there are none"),
        (lambda: first_log_scale(0.001), "temperature: is 0.001; give 0.01 or more"),
        (lambda: first_log_scale(math.nan), "temperature: is nan"),
    ):
        with pytest.raises(InputError, match=message):
            make()
