"""The surrogates: identities, convexity, numbers that would overflow, and the closed-form gradients that packs use."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from lightning_modules.error_bounds.losses import (
    KINDS,
    agreement_gradient,
    agreement_loss,
    disagreement_gradient,
    disagreement_loss,
)
from lightning_modules.errors import InputError


def draw(count, classes, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, classes, dtype=torch.double, generator=generator)
    return logits, torch.randint(classes, (count,), generator=generator)


def test_dis2_bounds_the_agreement_and_the_consistent_loss():
    logits, target = draw(1000, 7)
    dis2, consistent = (disagreement_loss(logits, target, kind) for kind in ("dis2", "one_minus_p"))
    agrees = logits.argmax(1) == target
    assert agrees.any()
    assert (dis2[agrees] / math.log(2) >= 1).all()
    # The mean of the other logits is below their logarithm of summed exponentials, so its margin is larger.
    assert (dis2 >= consistent).all()
    expected = -torch.log(1 - logits.softmax(1).gather(1, target[:, None])[:, 0])
    assert torch.allclose(consistent, expected, atol=1e-9, rtol=0)


def test_equal_logits():
    zero, target = torch.zeros(1, 7, dtype=torch.double), torch.tensor([3])
    assert float(disagreement_loss(zero, target)) == pytest.approx(math.log(2))
    assert float(disagreement_loss(zero, target, "one_minus_p")) == pytest.approx(math.log(7 / 6))
    assert float(disagreement_loss(zero, target, normalize=True)) == pytest.approx(1)
    assert float(agreement_loss(zero, target, normalize=True)) == pytest.approx(1)
    assert float(agreement_loss(zero, target)) == pytest.approx(math.log(7))


def test_agreement_is_cross_entropy():
    logits, target = draw(50, 5)
    assert torch.allclose(agreement_loss(logits, target), cross_entropy(logits, target, reduction="none"))


def test_with_two_classes_to_disagree_is_to_agree_with_the_other():
    logits, target = draw(200, 2)
    other = cross_entropy(logits, 1 - target, reduction="none")
    assert torch.allclose(disagreement_loss(logits, target), other, atol=1e-9, rtol=0)
    assert torch.allclose(disagreement_loss(logits, target, "one_minus_p"), other, atol=1e-9, rtol=0)


def test_dis2_is_convex_and_the_consistent_loss_is_not():
    a, target = draw(4000, 7, seed=1)
    b, _ = draw(4000, 7, seed=2)
    violations = {}
    for kind in ("dis2", "one_minus_p"):
        f = [disagreement_loss(z, target, kind) for z in (a, b, (a + b) / 2)]
        violations[kind] = float((f[2] > (f[0] + f[1]) / 2 + 1e-12).double().mean())
    assert violations["dis2"] == 0
    assert 0.3 < violations["one_minus_p"] < 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_large_margins_stay_finite(kind):
    logits = torch.zeros(2, 7)
    logits[0, 2], logits[1, 2] = 200, -200
    logits.requires_grad_()
    loss = disagreement_loss(logits, torch.tensor([2, 2]), kind).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    if kind != "neg_ce":
        assert float(gradient.detach()[0, 2]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_closed_gradients_are_those_of_the_losses(classes, scale):
    logits = scale * torch.randn(2, classes, 3, 11, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    target = torch.randint(classes, (2, 11), generator=torch.Generator().manual_seed(1))
    onehot = one_hot(target, classes).mT[:, :, None].double()
    rows = logits.permute(0, 2, 3, 1).clone().requires_grad_()  # [P, R, N, K]

    def automatic(loss):
        total = sum(loss(rows[p], target[p]).sum() for p in range(2))
        return torch.autograd.grad(total, rows)[0].permute(0, 3, 1, 2)

    pairs = [(agreement_gradient(logits.clone(), onehot, 0.5), automatic(agreement_loss))]
    for kind in KINDS:
        ours = disagreement_gradient(logits.clone(), onehot, kind, 0.5)
        pairs.append((ours, automatic(lambda z, y, kind=kind: disagreement_loss(z, y, kind))))
    for ours, expected in pairs:
        assert torch.allclose(ours, 0.5 * expected, atol=1e-9, rtol=1e-9)


def test_bad_input_is_one_line():
    with pytest.raises(InputError, match="loss: unknown 'hinge'; choose one of dis2"):
        disagreement_loss(torch.zeros(1, 3), torch.tensor([0]), "hinge")
    with pytest.raises(InputError, match="one column"):
        disagreement_loss(torch.zeros(1, 1), torch.tensor([0]))
