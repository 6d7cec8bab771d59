"""Classifiers against functional re-computations from their state dicts, closed forms and published names."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_modules.errors import InputError
from lightning_modules.vision_networks import CLASSIFIERS, NormalizeLayer, build_classifier

SHAPES = {"lenet": (1, 28, 28), "resnet110": (3, 16, 16), "resnet50": (3, 40, 32), "small-cnn": (2, 13, 10)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def build(name, classes=10, seed=0, **options):
    return build_classifier(name, SHAPES.get(name, (3, 4, 5)), classes, generator(seed), **options)


def images(name, count=3, seed=1):
    return torch.rand(count, *SHAPES.get(name, (3, 4, 5)), generator=generator(seed))


def residual_forward(state, x, widths, bottleneck):
    """A residual network in eval mode, from the state dict alone."""

    def norm(x, key):
        return F.batch_norm(
            x, state[key + ".running_mean"], state[key + ".running_var"], state[key + ".weight"], state[key + ".bias"]
        )

    def conv(x, key, stride=1):
        weight = state[key + ".weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = norm(conv(x, "conv1", 2 if bottleneck else 1), "bn1").relu()
    x = F.max_pool2d(x, 3, 2, 1) if bottleneck else x
    for layer, count in enumerate(widths, 1):
        for index in range(count):
            key = f"layer{layer}.{index}."
            stride = 2 if layer > 1 and index == 0 else 1
            shortcut = x
            if key + "downsample.0.weight" in state:
                shortcut = norm(conv(x, key + "downsample.0", stride), key + "downsample.1")
            if bottleneck:
                y = norm(conv(x, key + "conv1"), key + "bn1").relu()
                y = norm(conv(y, key + "conv2", stride), key + "bn2").relu()
                y = norm(conv(y, key + "conv3"), key + "bn3")
            else:
                y = norm(conv(x, key + "conv1", stride), key + "bn1").relu()
                y = norm(conv(y, key + "conv2"), key + "bn2")
            x = (y + shortcut).relu()
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_network_is_a_function_of_its_generator_and_gives_logits(name):
    before = torch.get_rng_state()
    first, same, other = build(name, 7), build(name, 7), build(name, 7, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    for key, value in first.state_dict().items():
        assert torch.equal(value, same.state_dict()[key]), key
    assert not torch.equal(next(first.parameters()), next(other.parameters()))
    logits = first.eval()(images(name))
    assert logits.shape == (3, 7)
    assert logits.isfinite().all()
    assert logits.std(0).min() > 0  # the input matters


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_normalisation_is_the_first_layer_and_not_part_of_the_state(name):
    mean, std = [0.2, 0.5, 0.1][: images(name).shape[1]], [0.25, 2.0, 0.5][: images(name).shape[1]]
    plain, normalised = build(name).eval(), build(name, mean=mean, std=std).eval()
    assert list(plain.state_dict()) == list(normalised.state_dict())
    x = images(name)
    scaled = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(x.shape[1])], 1)
    torch.testing.assert_close(normalised(x), plain(scaled), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(normalised(x), plain(x), atol=1e-3)


def test_features_are_normalised_one_by_one():
    layer = NormalizeLayer([1.0, 2.0], [2.0, 4.0], dimensions=1)
    torch.testing.assert_close(layer(torch.tensor([[3.0, 6.0]])), torch.tensor([[1.0, 1.0]]))
    network = build_classifier("mlp", (2,), 3, generator(), mean=[1.0, 2.0], std=[2.0, 4.0])
    plain = build_classifier("mlp", (2,), 3, generator())
    torch.testing.assert_close(network(torch.tensor([[3.0, 6.0]])), plain(torch.ones(1, 2)))


def test_parameter_counts_are_the_known_ones():
    counts = {
        name: sum(p.numel() for p in build_classifier(name, shape, classes, generator()).parameters())
        for name, shape, classes in [
            ("resnet50", (3, 224, 224), 1000),
            ("resnet110", (3, 32, 32), 10),
            ("lenet", (1, 28, 28), 10),
            ("small-cnn", (1, 28, 28), 10),
            ("mlp", (1, 28, 28), 10),
            ("linear", (20,), 2),
        ]
    }
    blocks = sum(18 * (2 * 9 * w * w + 4 * w) for w in (16, 32, 64))  # 18 blocks of two convolutions and two norms
    narrower = sum(9 * w * w // 2 for w in (32, 64))  # a stage's first convolution sees half the channels
    shortcuts = sum(w * w // 2 + 2 * w for w in (32, 64))
    assert counts["resnet110"] == 27 * 16 + 2 * 16 + blocks - narrower + shortcuts + 650 == 1_730_714
    assert counts["resnet50"] == 25_557_032
    assert counts["lenet"] == 431_080
    assert counts["small-cnn"] == (9 + 1) * 16 + (9 * 16 + 1) * 32 + (32 * 7 * 7 + 1) * 10
    assert counts["mlp"] == 785 * 64 + 65 * 64 + 65 * 10
    assert counts["linear"] == 42


@pytest.mark.parametrize(
    ("name", "blocks", "convolutions", "projected"),
    [("resnet50", (3, 4, 6, 3), 3, (1, 2, 3, 4)), ("resnet110", (18, 18, 18), 2, (2, 3))],
)
def test_residual_networks_have_the_published_names(name, blocks, convolutions, projected):
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = ["conv1.weight", *(f"bn1.{part}" for part in norm), "fc.weight", "fc.bias"]
    for layer, count in enumerate(blocks, 1):
        for block in range(count):
            for i in range(1, convolutions + 1):
                expected.append(f"layer{layer}.{block}.conv{i}.weight")
                expected += [f"layer{layer}.{block}.bn{i}.{part}" for part in norm]
        if layer in projected:
            expected.append(f"layer{layer}.0.downsample.0.weight")
            expected += [f"layer{layer}.0.downsample.1.{part}" for part in norm]
    assert sorted(build(name).state_dict()) == sorted(expected)


@pytest.mark.parametrize(
    ("name", "blocks", "bottleneck"), [("resnet50", (3, 4, 6, 3), True), ("resnet110", (18, 18, 18), False)]
)
def test_residual_networks_equal_a_functional_forward_pass(name, blocks, bottleneck):
    network = build(name).double().eval()
    g = generator(5)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):  # as after training: every norm does something of its own
                module.weight.uniform_(0.5, 1.0, generator=g)
                module.bias.uniform_(-0.2, 0.2, generator=g)
                module.running_mean.uniform_(-0.2, 0.2, generator=g)
                module.running_var.uniform_(0.5, 2.0, generator=g)
        x = images(name).double()
        expected = residual_forward(network.state_dict(), x, blocks, bottleneck)
        torch.testing.assert_close(network(x), expected, rtol=1e-9, atol=1e-9)


def test_residual_networks_start_from_he_weights_and_identity_norms():
    network = build("resnet110")
    weight = network.state_dict()["layer3.5.conv2.weight"]
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    weight = network.state_dict()["layer3.0.conv1.weight"]  # 32 channels in, 64 out: fan out, not fan in
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.03)
    kurtosis = float((weight / weight.std()).pow(4).mean())
    assert kurtosis == pytest.approx(3, abs=0.2)  # normal; 1.8 if uniform
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.equal(module.running_var, torch.ones_like(module.running_var))
            assert not module.bias.any()
            assert not module.running_mean.any()
            assert int(module.num_batches_tracked) == 0


def test_small_networks_start_from_uniform_weights():
    weight = build_classifier("small-cnn", (1, 28, 28), 10, generator()).state_dict()["conv2.weight"]
    bound = 1 / math.sqrt(16 * 9)
    assert 0.99 * bound < float(weight.abs().max()) <= bound
    assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)


def test_lenet_works_in_channels_last_and_equals_a_functional_forward_pass():
    network = build("lenet")
    network.load_state_dict(build("lenet", seed=3).state_dict())
    assert network.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    x = images("lenet")
    seen = []
    network.conv2.register_forward_hook(lambda *args: seen.append(args[-1]))
    logits = network(x)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert not seen[0].is_contiguous()
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    y = F.max_pool2d(F.conv2d(x, state["conv1.weight"], state["conv1.bias"]).relu(), 2)
    y = F.max_pool2d(F.conv2d(y, state["conv2.weight"], state["conv2.bias"]).relu(), 2)
    y = (y.reshape(3, -1) @ state["fc1.weight"].T + state["fc1.bias"]).relu()
    torch.testing.assert_close(logits, y @ state["fc2.weight"].T + state["fc2.bias"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("vgg", (1, 28, 28), {}, "unknown 'vgg'; choose one of linear"),
        ("small-cnn", (20,), {}, "small-cnn needs images"),
        ("lenet", (1, 15, 28), {}, "lenet needs images of at least 16x16"),
        ("mlp", (28, 28), {}, r"input_shape: \[28, 28\] is neither"),
        ("mlp", (3, 0, 4), {}, r"input_shape: \[3, 0, 4\] is neither"),
        ("linear", (4,), {"classes": 1}, "classes: 1 is too few"),
        ("linear", (3, 4, 4), {"mean": [0.5] * 3}, "std: is missing"),
        ("linear", (3, 4, 4), {"std": [0.5] * 3}, "mean: is missing"),
        ("linear", (3, 4, 4), {"mean": [0.5], "std": [1.0] * 3}, "mean: has 1 numbers; give 3"),
        ("linear", (3, 4, 4), {"mean": [0.5] * 3, "std": [1.0, 0.0, 1.0]}, "std: .* positive"),
        ("linear", (3, 4, 4), {"mean": [0.5, math.nan, 0.5], "std": [1.0] * 3}, "mean: .* must be finite"),
    ],
)
def test_what_cannot_be_built_is_named(name, shape, options, message):
    with pytest.raises(InputError, match=message):
        build_classifier(name, shape, options.pop("classes", 10), generator(), **options)


def test_the_smallest_lenet_is_16_by_16():
    assert build_classifier("lenet", [1, 16, 16], 2, generator())(torch.rand(2, 1, 16, 16)).shape == (2, 2)
