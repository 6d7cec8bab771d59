"""The attack on smoothed classifiers against closed forms of linear ones, and its two bounds."""

import math

import pytest
import torch
from torch import nn

from lightning_modules.certification.attacks import draw_logits, smoothed_pgd
from lightning_modules.certification.regularisers import smoothed_losses
from lightning_modules.errors import InputError
from lightning_modules.vision_networks import build_classifier


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(dimension=20, scale=1.0, seed=0):
    """f(x) = w.x + b as two logits 0 and f."""
    layer = nn.Linear(dimension, 2).double()
    g = generator(seed)
    with torch.no_grad():
        layer.weight[0], layer.bias[0] = 0, 0
        layer.weight[1] = scale * torch.randn(dimension, generator=g, dtype=torch.float64)
        layer.bias[1] = scale * 0.3
    return layer, layer.weight[1].detach(), layer.bias[1].detach()


def network(seed=0):
    """A convolutional network that disagrees with its own labels' noise: random weights, large enough to be curved."""
    built = build_classifier("small-cnn", (1, 12, 12), 5, generator(seed))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(2)
    return built.eval()


def problem(count=40, seed=1, shape=(1, 12, 12)):
    g = generator(seed)
    x = torch.rand(count, *shape, generator=g)
    x[::2] = (1.6 * x[::2] - 0.3).clamp(0, 1)  # many pixels on the border of the range
    labels = torch.randint(5, (count,), generator=g)
    return x, labels, torch.randn(4, count, *shape, generator=g)


def norms(delta):
    return delta.flatten(1).norm(dim=1)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 30.0])
@pytest.mark.parametrize(("steps", "step_size"), [(1, None), (7, None), (5, 4.0)])
def test_it_stays_in_the_ball_and_in_the_range(epsilon, steps, step_size):
    x, labels, noise = problem()
    each = epsilon * torch.linspace(0, 2, len(x))
    for radius in (epsilon, each):
        moved = smoothed_pgd(network(), x, labels, 0.5, radius, steps, noise, step_size)
        assert moved.min() >= 0
        assert moved.max() <= 1
        assert (norms(moved - x) <= torch.as_tensor(radius) * (1 + 1e-5) + 1e-6).all()
        assert norms(moved - x).max() > 0.5 * min(epsilon, 2)
        free = smoothed_pgd(network(), x, labels, 0.5, radius, steps, noise, step_size, clip=None)
        assert (norms(free - x) <= torch.as_tensor(radius) * (1 + 1e-5) + 1e-6).all()
        assert free.min() < 0


def test_a_linear_classifier_flips_exactly_beyond_its_distance():
    model, w, b = linear()
    g = generator(2)
    x = torch.randn(200, 20, generator=g, dtype=torch.float64)
    f = x @ w + b
    distance = f.abs() / w.norm()
    noise = torch.randn(3, 200, 20, generator=g, dtype=torch.float64)
    for factor, flips in ((0.99, False), (1.01, True)):
        moved = smoothed_pgd(model, x, (f > 0).long(), 0.5, factor * distance, 10, noise, clip=None)
        assert (((moved @ w + b) * f < 0) == flips).all()
        direction = -f.sign()[:, None] * w / w.norm()
        torch.testing.assert_close(moved, x + (factor * distance)[:, None] * direction, rtol=1e-9, atol=1e-9)


def test_the_loss_of_a_network_rises_and_more_than_by_other_moves_of_the_same_length():
    x, labels, noise = problem()
    model = network()

    def loss(at):
        with torch.no_grad():
            return smoothed_losses(draw_logits(model, at + 0.5 * noise), labels)

    moved = smoothed_pgd(model, x, labels, 0.5, 1.0, 10, noise)
    assert (loss(moved) > loss(x)).all()
    assert loss(moved).mean() > loss(x).mean() + 0.2
    random = torch.randn(x.shape, generator=generator(3))
    random *= (norms(moved - x) / norms(random)).view(-1, 1, 1, 1)
    assert (loss(moved) > loss(x + random)).all()
    one_step = smoothed_pgd(model, x, labels, 0.5, 1.0, 1, noise)
    assert loss(moved).mean() > loss(one_step).mean()


def test_a_step_is_the_gradient_of_the_smoothed_loss_and_noise_counts():
    """One step of length s goes s along the gradient, computed here in float64 by differences along directions."""
    x, labels, noise = (value[..., :3, :, :, :] if value.ndim > 1 else value[:3] for value in problem())
    x, noise, model = x.double(), noise.double(), network().double()
    moved = smoothed_pgd(model, x, labels, 0.5, 1.0, 1, noise, step_size=0.01, clip=None)

    def loss(at, sigma=0.5):
        log_p = model((at + sigma * noise).flatten(0, 1)).log_softmax(-1).view(4, 3, 5)
        return -log_p[:, torch.arange(3), labels].exp().mean(0).log()

    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(point).sum(), point)
    expected = x + 0.01 * gradient / norms(gradient).view(-1, 1, 1, 1)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-10)
    (other,) = torch.autograd.grad(loss(point, 1.0).sum(), point)
    cosine = (gradient * other).flatten(1).sum(1) / norms(gradient) / norms(other)
    assert (cosine < 0.99).all()  # so another sigma would have been seen


def test_a_step_size_of_its_own_is_bounded_by_the_ball():
    model, w, _ = linear()
    x, labels, noise = torch.zeros(2, 20).double(), torch.tensor([0, 1]), torch.zeros(1, 2, 20).double()
    for steps, length in ((1, 0.3), (2, 0.6), (5, 1.0)):
        moved = smoothed_pgd(model, x, labels, 0.5, 1.0, steps, noise, step_size=0.3, clip=None)
        torch.testing.assert_close(norms(moved), torch.full((2,), length, dtype=torch.float64))


def test_a_radius_of_zero_moves_nothing():
    x, labels, noise = problem()
    assert torch.equal(smoothed_pgd(network(), x, labels, 0.5, 0.0, 3, noise), x)
    mixed = torch.zeros(len(x))
    mixed[0] = 1
    moved = smoothed_pgd(network(), x, labels, 0.5, mixed, 3, noise)
    assert torch.equal(moved[1:], x[1:])
    assert norms(moved - x)[0] > 0.9


def test_gradients_whose_squares_underflow_still_lead():
    model, w, b = linear(scale=3.0)
    model, w, b = model.float(), w.float(), b.float()
    x = (5 * w / w.norm()).repeat(2, 1)
    other_class = math.exp(-float((x @ w + b)[0]))
    assert 0 < other_class**2 < 1e-45  # float32 ends there
    moved = smoothed_pgd(model, x, torch.tensor([1, 1]), 0.5, 6.0, 10, torch.zeros(1, 2, 20), clip=None)
    assert ((moved @ w + b) < 0).all()
    step = smoothed_pgd(model, x, torch.tensor([1, 1]), 0.5, 6.0, 1, torch.zeros(1, 2, 20), step_size=0.1, clip=None)
    torch.testing.assert_close(norms(step - x), torch.full((2,), 0.1), rtol=1e-4, atol=0)


def test_the_radius_is_spent_where_the_range_leaves_room():
    """f = 10 x_1 + x_2 - 0.3 at (0, 0.5): x_1 cannot fall, so all of the radius goes to x_2."""
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0], [10.0, 1.0]]))
        model.bias.copy_(torch.tensor([0.0, -0.3]))
    x = torch.tensor([[0.0, 0.5]])
    moved = smoothed_pgd(model, x, torch.tensor([1]), 0.1, 0.3, 40, torch.zeros(1, 1, 2), step_size=0.1)
    torch.testing.assert_close(moved, torch.tensor([[0.0, 0.2]]))


def test_where_there_is_no_gradient_inputs_stay():
    class Constant(nn.Module):
        def forward(self, inputs):
            return 0 * inputs.flatten(1)[:, :5]

    x, labels, noise = problem()
    assert torch.equal(smoothed_pgd(Constant(), x, labels, 0.5, 1.0, 3, noise), x)


def test_nothing_else_gets_a_gradient_and_none_is_needed_around():
    x, labels, noise = problem()
    model = network()
    x.requires_grad_()
    with torch.no_grad():
        moved = smoothed_pgd(model, x, labels, 0.5, 1.0, 2, noise)
    assert not moved.requires_grad
    assert x.grad is None
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert (norms(moved - x.detach()) > 0.5).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": -1.0}, "epsilon: -1 is not a length"),
        ({"epsilon": math.nan}, "epsilon: nan is not a length"),
        ({"epsilon": torch.ones(3)}, r"epsilon: has shape \[3\]"),
        ({"step_size": -0.1}, "step_size: -0.1 is not a length"),
        ({"steps": 0}, "steps: 0 is not positive"),
        ({"noise": torch.zeros(40, 1, 12, 12)}, r"noise: has shape"),
        ({"noise": torch.zeros(0, 40, 1, 12, 12)}, r"noise: has shape"),
        ({"clip": (0.0, 0.5)}, "inputs: reach from 0 to 1"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    x, labels, noise = problem()
    arguments = {"sigma": 0.5, "epsilon": 1.0, "steps": 2, "noise": noise} | changes
    with pytest.raises(InputError, match=message):
        smoothed_pgd(network(), x, labels, **arguments)
