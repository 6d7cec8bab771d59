"""Training under noise: the losses against numpy in float64, the loop against a plain one, and what it is for."""

import math
import os

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.nn import functional as F

from lightning_modules.certification.attacks import smoothed_pgd
from lightning_modules.certification.denoising import DenoisedClassifier, Denoiser, DenoiserTraining, fit_denoiser
from lightning_modules.certification.regularisers import consistency_loss, macer_loss, noise_loss, smoothed_losses
from lightning_modules.certification.training import (
    NoiseAugmentedClassifier,
    crop_and_flip,
    fit_classifier,
    stream_seed,
)
from lightning_modules.data.digits import load_digits
from lightning_modules.errors import InputError
from lightning_modules.vision_networks import build_classifier

SIGMA = 0.5
SHORT = {"rows": 2000, "epochs": 3}


@pytest.fixture(scope="module")
def digits():
    """4,000 digits to train on, then 500 to test on: uint8 [n, 1, 28, 28] and labels."""
    images, labels = load_digits()
    order = np.random.default_rng(0).permutation(len(labels))
    x, y = torch.from_numpy(images[order])[:, None], torch.from_numpy(labels[order])
    return x[:4000], y[:4000], x[4000:4500], y[4000:4500]


def train(digits, sigma=SIGMA, regulariser="none", rows=4000, epochs=4, **options):
    module = NoiseAugmentedClassifier(
        "small-cnn", (1, 28, 28), 10, sigma, regulariser, optimizer="adam", lr=2e-3, **options
    )
    return fit_classifier(module, digits[0][:rows], digits[1][:rows], epochs=epochs, batch_size=64, seed=0)


@pytest.fixture(scope="module")
def plain(digits):
    return train(digits, sigma=0.0)


@pytest.fixture(scope="module")
def noisy(digits):
    return train(digits)


@pytest.fixture(scope="module")
def short(digits):
    return train(digits, **SHORT)


def draw_logits(model, x, draws=1, seed=9):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return torch.stack([model(x + SIGMA * torch.randn(x.shape, generator=g)) for _ in range(draws)])


def accuracy(model, digits):
    return float((draw_logits(model, digits[2] / 255)[0].argmax(1) == digits[3]).float().mean())


def random_logits(m=3, count=50, classes=6, scale=2.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=g)
    logits = scale * torch.randn(m, count, classes, generator=g, dtype=torch.float64)
    logits[:, ::2].scatter_add_(2, labels[::2].expand(m, -1).unsqueeze(2), torch.full((m, count, 1), 3.0).double())
    return logits, labels


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# Losses


def test_losses_equal_numpy():
    logits, labels = random_logits()
    p, n = softmax(logits.numpy()), np.arange(50)
    risk = -np.log(p[:, n, labels]).mean()
    mean = p.mean(0)
    assert float(noise_loss(logits, labels)) == pytest.approx(risk, rel=1e-12)
    np.testing.assert_allclose(smoothed_losses(logits, labels), -np.log(mean[n, labels]), rtol=1e-12)
    divergence = np.mean([(mean * np.log(mean / draw)).sum(-1) for draw in p])
    entropy = -(mean * np.log(mean)).sum(-1).mean()
    value = float(consistency_loss(logits, labels, 7.0, 0.3))
    assert value == pytest.approx(risk + 7 * divergence + 0.3 * entropy, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 3.0])
def test_macer_equals_numpy(gamma):
    logits, labels = random_logits(scale=0.2)
    n = np.arange(50)
    mean = softmax(2.5 * logits.numpy()).mean(0)
    ordered = np.sort(mean, -1)
    radii = 0.25 / 2 * (norm.ppf(ordered[:, -1]) - norm.ppf(ordered[:, -2]))
    right = mean.argmax(-1) == labels.numpy()
    assert 10 < right.sum() < 45
    hinge = np.where(right, np.maximum(0, 0.25 / 2 * gamma - radii), 0)
    assert (hinge > 0).any()
    expected = (-np.log(softmax(logits.numpy()).mean(0)[n, labels]) + 4 * hinge).mean()
    assert float(macer_loss(logits, labels, 0.25, 4.0, gamma, beta=2.5)) == pytest.approx(expected, rel=1e-10)
    if gamma == 0.5:
        assert ((hinge > 0) < right).any()  # some are right with a margin to spare


def test_losses_have_the_gradients_of_their_values():
    logits, labels = random_logits(m=2, count=4, classes=3, scale=0.1)
    logits.requires_grad_()
    for loss in (
        lambda f: consistency_loss(f, labels, 7.0, 0.3),
        lambda f: macer_loss(f, labels, 0.5, 4.0, 8.0, beta=3.0),
        lambda f: smoothed_losses(f, labels),
    ):
        assert torch.autograd.gradcheck(loss, logits)


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_losses_of_huge_logits_are_finite_in_single_precision(size):
    labels = torch.arange(3).repeat(2)
    logits = torch.zeros(2, 6, 3)
    logits[0, torch.arange(6), labels] = size
    logits[1, torch.arange(6), (labels + torch.tensor([0, 0, 0, 1, 1, 2])) % 3] = size
    for loss in (
        lambda f: noise_loss(f, labels),
        lambda f: smoothed_losses(f, labels).mean(),
        lambda f: smoothed_losses(f[1:], labels).mean(),
        lambda f: consistency_loss(f, labels, 10.0, 0.5),
        lambda f: macer_loss(f, labels, 0.5, 12.0, 8.0),
        lambda f: macer_loss(f[:1], labels, 0.5, 12.0, 8.0),
        lambda f: macer_loss(f[1:], labels, 0.5, 12.0, 8.0),
    ):
        leaf = logits.clone().requires_grad_()
        value = loss(leaf)
        value.backward()
        assert value.isfinite()
        assert leaf.grad.isfinite().all()
    torch.testing.assert_close(smoothed_losses(logits[1:], labels)[3:], torch.full((3,), size), rtol=1e-6, atol=0)


def test_macer_sees_margins_where_the_largest_probability_rounds_to_one():
    logits = torch.tensor([[[1.4, 0.0, -0.2]]])
    labels = torch.tensor([0])
    assert float((16 * logits).softmax(-1).max()) == 1
    single = macer_loss(logits, labels, 0.5, 12.0, 20.0)
    double = macer_loss(logits.double(), labels, 0.5, 12.0, 20.0)
    assert float(double) > 12 * 0.25  # the hinge is on
    assert float(single) == pytest.approx(float(double), rel=1e-5)


def test_regularisers_are_the_plain_loss_where_they_say_nothing():
    logits, labels = random_logits(m=1)
    same = logits.repeat(3, 1, 1)
    torch.testing.assert_close(consistency_loss(same, labels, 9.0, 0.0), noise_loss(logits, labels))
    torch.testing.assert_close(macer_loss(logits, labels, 0.5, 0.0, 8.0), noise_loss(logits, labels))
    torch.testing.assert_close(smoothed_losses(same, labels).mean(), noise_loss(logits, labels))


# What a step sees


class Recorder(nn.Module):
    """Keeps what it is given, in train and in eval mode apart; logits are the mean pixel and its negative."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen = {True: [], False: []}

    def forward(self, inputs):
        self.seen[self.training].append(inputs.detach().clone())
        mean = self.scale * inputs.flatten(1).mean(1)
        return torch.stack([mean, -mean], 1)


def recorded(sigma, x, regulariser="none", epochs=1, batch_size=None, **options):
    module = NoiseAugmentedClassifier("linear", x.shape[1:], 2, sigma, regulariser, lr=1e-9, **options)
    module.network = Recorder()
    labels = torch.arange(len(x)) % 2
    fit_classifier(module, x, labels, epochs=epochs, batch_size=batch_size or len(x), seed=0)
    return module.network.seen


def test_noise_is_gaussian_fresh_unclipped_and_in_the_scale_of_the_inputs():
    x = torch.full((64, 1, 20, 20), 51, dtype=torch.uint8)  # 0.2
    first, second = recorded(0.5, x, epochs=2)[True]
    for seen in (first, second):
        e = ((seen - 0.2) / 0.5).double().flatten()
        assert abs(float(e.mean())) < 4 / math.sqrt(len(e))
        assert float(e.std()) == pytest.approx(1, abs=0.02)
        assert float(e.pow(4).mean()) == pytest.approx(3, abs=0.25)
        assert seen.min() < -1
        assert seen.max() > 1.4
    assert not torch.equal(first, second)
    assert len(torch.unique(first[:, 0, 0, 0])) == 64
    (still,) = recorded(0.0, x)[True]
    torch.testing.assert_close(still, torch.full_like(still, 0.2))


def test_draws_stand_one_behind_the_other_and_labels_go_with_them():
    x = torch.linspace(-1, 1, 10).repeat_interleave(4).view(10, 4)
    (seen,) = recorded(0.01, x, "consistency", draws=3)[True]
    assert seen.shape == (30, 4)
    draws = seen.view(3, 10, 4)
    torch.testing.assert_close(draws[0], draws[1], rtol=0, atol=0.1)
    assert not torch.equal(draws[0], draws[1])
    torch.testing.assert_close(draws.mean(0).sort(0).values, x, rtol=0, atol=0.05)


def test_smoothadv_attacks_in_eval_mode_with_the_draws_it_trains_on_and_warms_up():
    x = torch.linspace(0.3, 0.7, 6).repeat_interleave(100).view(6, 1, 10, 10)
    options = {"epsilon": 0.8, "attack_steps": 3, "draws": 2, "warmup_epochs": 4}
    seen = recorded(0.05, x, "smoothadv", epochs=6, **options)
    assert len(seen[True]) == 6
    assert len(seen[False]) == 18
    for epoch, trained_on in enumerate(seen[True]):
        start = seen[False][3 * epoch].view(2, 6, -1)
        delta = trained_on.view(2, 6, -1) - start
        torch.testing.assert_close(delta[0], delta[1], rtol=0, atol=1e-5)  # the same noise before and after
        length = 0.8 * min(1, (epoch + 1) / 4)
        torch.testing.assert_close(delta.norm(dim=-1), torch.full((2, 6), length), rtol=1e-4, atol=0)
    at_once = recorded(0.05, x, "smoothadv", **options | {"warmup_epochs": 0})
    delta = at_once[True][0].view(2, 6, -1) - at_once[False][0].view(2, 6, -1)
    torch.testing.assert_close(delta.norm(dim=-1), torch.full((2, 6), 0.8), rtol=1e-4, atol=0)
    features = recorded(0.0, 5 * torch.ones(4, 9), "smoothadv", epsilon=2.0, warmup_epochs=0)  # no range to clip to
    torch.testing.assert_close((features[True][0] - 5).norm(dim=-1), torch.full((4,), 2.0))


def test_every_crop_and_flip_is_one_of_the_padded_image():
    g = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (400, 2, 5, 6), generator=g, dtype=torch.uint8)
    changed = crop_and_flip(images, g)
    assert changed.dtype == torch.uint8
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)))
    found = set()
    for image, result in zip(padded, changed.numpy(), strict=True):
        views = {
            (top, left, flip): image[:, top : top + 5, left : left + 6][:, :, :: -1 if flip else 1]
            for top in range(9)
            for left in range(9)
            for flip in (False, True)
        }
        matches = [key for key, view in views.items() if np.array_equal(view, result)]
        assert matches
        found.add(matches[0])
    assert {top for top, _, _ in found} == set(range(9))
    assert {left for _, left, _ in found} == set(range(9))
    flips = [flip for _, _, flip in found]
    assert 0.35 < np.mean(flips) < 0.65


def test_augmentation_comes_before_the_noise():
    x = torch.ones(50, 1, 8, 8)
    (seen,) = recorded(0.1, x, augment=True)[True]
    border = seen[(seen - 1).abs() > 0.5]  # where zeros came in
    assert 0.2 < len(border) / seen.numel() < 0.6
    assert float(border.std()) == pytest.approx(0.1, rel=0.1)


# The loop


def small_problem(count=50):
    g = torch.Generator().manual_seed(4)
    return torch.rand(count, 1, 6, 6, generator=g), torch.randint(3, (count,), generator=g)


def small_module(seed=0, sigma=0.3, **options):
    return NoiseAugmentedClassifier("mlp", (1, 6, 6), 3, sigma, **{"lr": 0.1, "seed": seed} | options)


def small_fit(seed=0, order=5, epochs=4, count=50, module=None, **options):
    fit_options = {k: options.pop(k) for k in ("checkpoint", "max_seconds", "accelerator") if k in options}
    module = module or small_module(seed, **options)
    return fit_classifier(module, *small_problem(count), epochs=epochs, batch_size=16, seed=order, **fit_options)


def same(first, second):
    pairs = zip(first.network.parameters(), second.network.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_fit_equals_a_plain_loop():
    """SGD with momentum, a step in the rate, the last batch of two examples kept, the order new in every epoch."""
    x, y = small_problem()
    network = build_classifier("mlp", (1, 6, 6), 3, torch.Generator().manual_seed(stream_seed(3, 0)))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.8, weight_decay=0.01)
    noise = torch.Generator().manual_seed(stream_seed(3, 1, 0))
    sizes = []
    for epoch in range(4):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.5 ** (epoch // 2)
        order = torch.randperm(50, generator=torch.Generator().manual_seed(stream_seed(5, 2, epoch)))
        for rows in order.split(16):
            sizes.append(len(rows))
            loss = F.cross_entropy(network(x[rows] + 0.3 * torch.randn(x[rows].shape, generator=noise)), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert sizes[:4] == [16, 16, 16, 2]
    module = small_fit(seed=3, momentum=0.8, weight_decay=0.01, lr_step=2, lr_gamma=0.5)
    for ours, expected in zip(module.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_weights_depend_on_the_seeds_alone_and_nothing_else_is_touched(tmp_path, monkeypatch, capfd, caplog, recwarn):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = small_fit()
    assert torch.equal(before, torch.get_rng_state())
    assert not first.training
    with pytest.raises(RuntimeError, match="not attached"):
        _ = first.trainer  # it would keep the examples in memory
    torch.manual_seed(2)
    assert same(first, small_fit())
    assert not same(first, small_fit(order=6))
    one_step = {"epochs": 1, "count": 16, "order": 5}
    assert not same(small_fit(**one_step, sigma=0.0), small_fit(**one_step))
    assert os.listdir(tmp_path) == []
    output = capfd.readouterr()
    assert output.out == output.err == ""
    assert not recwarn.list
    assert not caplog.records


def test_seeds_decide_both_the_first_weights_and_the_noise():
    assert not same(small_module(0), small_module(1))
    fits = []
    for seed in (0, 1):
        module = small_module(seed)
        module.network.load_state_dict(small_module(0).network.state_dict())
        fits.append(small_fit(module=module))
    assert not same(*fits)


def test_defaults_are_those_of_the_papers():
    paper = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "lr_step": 30, "lr_gamma": 0.1}
    macer = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "lr_step": 200, "lr_gamma": 0.1}
    for regulariser, options in (
        ("none", paper | {"draws": 1}),
        ("consistency", paper | {"lam": 10, "eta": 0.5, "draws": 2}),
        ("smoothadv", paper | {"epsilon": 127 / 256, "attack_steps": 2, "warmup_epochs": 10, "draws": 2}),
        ("macer", macer | {"lam": 12, "gamma": 8, "draws": 16}),
    ):
        module = NoiseAugmentedClassifier("mlp", (1, 6, 6), 3, 0.3, regulariser)
        assert options.items() <= module.settings().items()
    adam = NoiseAugmentedClassifier("mlp", (1, 6, 6), 3, 0.3, "macer", optimizer="adam").settings()
    assert (adam["lr"], adam["weight_decay"], adam["lr_step"]) == (1e-3, 0, None)


def test_what_is_logged_is_the_mean_over_the_epochs_examples():
    seen = []

    class Watched(NoiseAugmentedClassifier):
        def on_train_epoch_end(self):
            super().on_train_epoch_end()
            seen.append(dict(self.trainer.callback_metrics))

    x, y = small_problem()
    module = Watched("mlp", (1, 6, 6), 3, 0.0, lr=1e-12, momentum=0.0)
    fit_classifier(module, x, y, epochs=2, batch_size=16, seed=0)  # batches of 16, 16, 16 and 2
    with torch.no_grad():
        logits = module(x)
    assert len(seen) == 2
    for metrics in seen:
        assert float(metrics["train_loss"]) == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-5)
        right = float((logits.argmax(1) == y).float().mean())
        assert float(metrics["train_accuracy"]) == pytest.approx(right, rel=1e-5)
    moving = Watched("mlp", (1, 6, 6), 3, 0.0, lr=0.5, momentum=0.0, weight_decay=0.0)
    losses = []
    for _ in range(2):  # an epoch of one step at a time
        losses.append(float(F.cross_entropy(moving(x), y).detach()))
        fit_classifier(moving, x, y, epochs=1, batch_size=50, seed=0)
    seen.clear()
    again = Watched("mlp", (1, 6, 6), 3, 0.0, lr=0.5, momentum=0.0, weight_decay=0.0)
    fit_classifier(again, x, y, epochs=2, batch_size=50, seed=0)
    assert losses[1] < losses[0] - 0.001
    assert [float(metrics["train_loss"]) for metrics in seen] == pytest.approx(losses, rel=1e-5)


def test_a_checkpoint_is_plain_and_rebuilds_the_classifier(tmp_path):
    file = tmp_path / "new folder" / "classifier.ckpt"
    trained = small_fit(checkpoint=file, mean=[0.5], std=[0.25])
    assert [path.name for path in file.parent.iterdir()] == ["classifier.ckpt"]
    saved = torch.load(file, weights_only=True)
    described = saved["shiftlab_classifier"]
    assert described == {
        "network": "mlp",
        "input_shape": [1, 6, 6],
        "classes": 3,
        "options": {"mean": [0.5], "std": [0.25]},
        "sigma": 0.3,
        "regulariser": "none",
    }
    rebuilt = build_classifier(
        described["network"], described["input_shape"], described["classes"], torch.Generator(), **described["options"]
    )
    rebuilt.load_state_dict({name.removeprefix("network."): value for name, value in saved["state_dict"].items()})
    x, _ = small_problem()
    torch.testing.assert_close(rebuilt(x), trained(x), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"augment": True, "lr_step": 1}, {"regulariser": "smoothadv", "sigma": 0.2}])
def test_an_interrupted_training_ends_in_the_same_weights(tmp_path, options):
    whole = small_fit(**options)
    by_epochs = tmp_path / "epochs.ckpt"
    small_fit(**options, checkpoint=by_epochs, epochs=1)
    assert same(whole, small_fit(**options, checkpoint=by_epochs))
    steps = tmp_path / "steps.ckpt"
    for number in range(7):  # into the second of four epochs, and over an epoch's end
        stopped = small_fit(**options, checkpoint=steps, max_seconds=1e-9)
        place = torch.load(steps, weights_only=True)["shiftlab_place"]
        assert place == {"epoch": number // 4, "batch": number % 4 + 1}
        assert not same(whole, stopped)
    resumed = small_fit(**options, checkpoint=steps)
    assert same(whole, resumed)
    finished = steps.stat().st_mtime_ns
    again = small_fit(**options, checkpoint=steps)  # nothing is left to do
    assert same(whole, again)
    assert steps.stat().st_mtime_ns == finished
    assert again.epoch_means() == resumed.epoch_means() == whole.epoch_means()
    assert torch.equal(whole.standard_normal(1, torch.zeros(9)), again.standard_normal(1, torch.zeros(9)))


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    file = tmp_path / "a.ckpt"
    small_fit(checkpoint=file)
    for changes, message in (
        ({"lr": 0.2}, "a.ckpt has lr 0.1, not 0.2"),
        ({"sigma": 0.25}, "a.ckpt has sigma 0.3, not 0.25"),
        ({"order": 6}, "a.ckpt has seed 5, not 6"),
        ({"count": 40}, "a.ckpt has examples 50, not 40"),
        ({"epochs": 3}, "a.ckpt has more than 3 epochs"),
    ):
        with pytest.raises(InputError, match=message):
            small_fit(**changes, checkpoint=file)
    for content in (b"", b"no checkpoint", file.read_bytes()[:1000]):
        bad = tmp_path / "bad.ckpt"
        bad.write_bytes(content)
        with pytest.raises(InputError, match="bad.ckpt is not a checkpoint"):
            small_fit(checkpoint=bad)
    torch.save({"state_dict": {}}, bad)
    with pytest.raises(InputError, match="bad.ckpt has network None, not mlp"):
        small_fit(checkpoint=bad)


def test_a_checkpoint_from_another_kind_of_device_starts_a_new_stream():
    module, fresh = small_module(), small_module()
    first = fresh.standard_normal(1, torch.zeros(9))
    saved = {}
    small_module().on_save_checkpoint(saved)
    saved["shiftlab_noise"] = {"device": "cuda", "state": torch.zeros(16, dtype=torch.uint8)}
    module.on_load_checkpoint(saved)
    assert torch.equal(module.standard_normal(1, torch.zeros(9)), first)
    fresh.on_save_checkpoint(saved)
    module.on_load_checkpoint(saved)
    assert torch.equal(module.standard_normal(1, torch.zeros(9)), fresh.standard_normal(1, torch.zeros(9)))


def test_a_loss_that_is_lost_ends_the_training_and_keeps_no_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError, match="train_loss is nan in epoch 0; give a lower lr"):
        small_fit(lr=1e30, checkpoint=tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == []


def test_a_time_limit_ends_the_training():
    assert not small_fit(epochs=10**6, max_seconds=0.2).training


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": -1}, "sigma: -1 is not a standard deviation"),
        ({"sigma": math.nan}, "sigma: nan is not a standard deviation"),
        ({"regulariser": "trades"}, "regulariser: unknown 'trades'; choose one of none, consistency"),
        ({"lam": 1.0}, "lam: has no effect with regulariser 'none'"),
        ({"regulariser": "consistency", "gamma": 1.0}, "gamma: has no effect with regulariser 'consistency'"),
        ({"regulariser": "consistency", "draws": 1}, "draws: consistency compares draws"),
        ({"regulariser": "macer", "eta": 1.0}, "eta: has no effect with regulariser 'macer'"),
        ({"regulariser": "smoothadv", "lam": 1.0}, "lam: has no effect with regulariser 'smoothadv'"),
        ({"regulariser": "macer", "sigma": 0}, "regulariser: macer has no effect without noise"),
        ({"sigma": 0, "draws": 2}, "draws: has no effect without noise"),
        ({"draws": 1.5}, "draws: 1.5 is out of range; give a whole number of 1 or more"),
        ({"regulariser": "consistency", "lam": -1.0}, "lam: -1.0 is out of range; give a number of 0 or more"),
        ({"optimizer": "lion"}, "optimizer: unknown 'lion'"),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum: has no effect with optimizer 'adam'"),
        ({"optimizer": "adam", "lr_gamma": 0.5}, "lr_gamma: has no effect without lr_step"),
        ({"network": "vgg"}, "network: unknown 'vgg'"),
        ({"input_shape": (4,), "augment": True}, "augment: crops and flips images"),
        ({"seed": -1}, "seed: -1 is negative"),
    ],
)
def test_options_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        NoiseAugmentedClassifier(**{"network": "mlp", "input_shape": (1, 6, 6), "classes": 3, "sigma": 0.3} | arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": torch.zeros(50, 1, 6, 7)}, r"inputs: have shape \[50, 1, 6, 7\]; give \[n, 1, 6, 6\]"),
        ({"inputs": torch.zeros(0, 1, 6, 6)}, r"inputs: have shape \[0, 1, 6, 6\]"),
        ({"inputs": torch.zeros(50, 1, 6, 6, dtype=torch.long)}, "inputs: are torch.int64; give uint8"),
        ({"inputs": torch.full((50, 1, 6, 6), math.inf)}, "inputs: some are NaN or infinite"),
        ({"labels": torch.zeros(49, dtype=torch.long)}, r"labels: torch.int64 \[49\]; give int64 \[50\]"),
        ({"labels": torch.zeros(50)}, r"labels: torch.float32 \[50\]; give int64"),
        ({"labels": torch.full((50,), 3)}, "labels: reach from 3 to 3; give 0 to 2"),
        ({"epochs": 0}, "epochs: 0 is not positive"),
        ({"batch_size": 0}, "batch_size: 0 is not positive"),
        ({"max_seconds": 0.0}, "max_seconds: 0.0 is not positive"),
        ({"accelerator": "tpu"}, "accelerator: unknown 'tpu'"),
    ],
)
def test_examples_that_do_not_fit_are_named(changes, message):
    x, y = small_problem()
    with pytest.raises(InputError, match=message):
        fit_classifier(
            **{"module": small_module(), "inputs": x, "labels": y, "epochs": 1, "batch_size": 9, "seed": 0} | changes
        )


# What it is for


def test_training_under_noise_keeps_accuracy_under_noise(digits, plain, noisy):
    assert accuracy(noisy, digits) > 0.8
    assert accuracy(noisy, digits) > accuracy(plain, digits) + 0.1


def test_consistency_makes_draws_agree(digits, short):
    def divergence(module):
        p = draw_logits(module, digits[2] / 255, draws=4).softmax(-1).double().numpy()
        return float((p.mean(0) * np.log(p.mean(0) / p)).sum(-1).mean())

    consistent = train(digits, regulariser="consistency", lam=10.0, **SHORT)
    assert divergence(consistent) < 0.8 * divergence(short)
    assert accuracy(consistent, digits) > accuracy(short, digits) - 0.06


def test_smoothadv_keeps_accuracy_under_attack(digits, short):
    adversarial = train(digits, regulariser="smoothadv", epsilon=1.5, warmup_epochs=2, draws=1, **SHORT)
    x, labels = digits[2][:400] / 255, digits[3][:400]
    noise = torch.randn((4, *x.shape), generator=torch.Generator().manual_seed(1))

    def robust_accuracy(module):
        moved = smoothed_pgd(module.network, x, labels, SIGMA, 1.5, 5, noise)
        predictions = draw_logits(module, moved, draws=8).softmax(-1).mean(0).argmax(1)
        return float((predictions == labels).float().mean())

    assert robust_accuracy(adversarial) > robust_accuracy(short) + 0.04


def test_macer_lowers_its_loss_and_widens_margins(digits):
    def loss(module):
        logits = draw_logits(module, digits[2] / 255, draws=8)
        return float(macer_loss(logits, digits[3], SIGMA, 12.0, 8.0))

    module = NoiseAugmentedClassifier("mlp", (1, 28, 28), 10, SIGMA, "macer", optimizer="adam", draws=4)
    before = loss(module)
    fit_classifier(module, digits[0][:1000], digits[1][:1000], epochs=6, batch_size=64, seed=0)
    assert loss(module) < 0.9 * before


@pytest.mark.parametrize("objective", ["mse", "stability"])
def test_a_denoiser_gives_a_classifier_accuracy_under_noise(digits, plain, objective):
    denoiser = Denoiser(1, 3, 8, torch.Generator().manual_seed(0))
    x = digits[2][:5] / 255
    assert torch.equal(denoiser.eval()(x), x)  # the start
    frozen = {name: value.clone() for name, value in plain.network.state_dict().items()}
    classifier = plain.network if objective == "stability" else None
    module = DenoiserTraining(denoiser, SIGMA, objective, classifier, lr=3e-3)
    fit_denoiser(module, digits[0][:1000], epochs=2, batch_size=64, seed=0)
    assert all(torch.equal(value, plain.network.state_dict()[name]) for name, value in frozen.items())
    denoised = DenoisedClassifier(denoiser, plain.network)
    torch.testing.assert_close(denoised(x), plain.network(module(x)))
    assert accuracy(denoised, digits) > accuracy(plain, digits) + 0.05


def test_the_objectives_of_a_denoiser_are_what_they_say():
    x, _ = small_problem(40)
    noise = 0.5 * torch.randn((1, *x.shape), generator=torch.Generator().manual_seed(stream_seed(0, 1, 0)))[0]
    denoiser = Denoiser(1, 2, 4, torch.Generator().manual_seed(0))
    nn.init.constant_(denoiser.noise[-1].weight, 0.1)
    linear = build_classifier("linear", (1, 6, 6), 3, torch.Generator().manual_seed(0), mean=[0.5], std=[0.1])
    classifier = nn.Sequential(nn.Dropout(0.9), linear)
    cleaned = denoiser(x + noise).detach()
    mse = DenoiserTraining(denoiser, 0.5).training_step((x,), 0).detach()
    assert float(mse) == pytest.approx(float(((cleaned - x) ** 2).mean()), rel=1e-5)
    module = DenoiserTraining(denoiser, 0.5, "stability", classifier)
    module.train()
    assert not classifier.training  # nor its dropout
    assert denoiser.training
    loss = module.training_step((x,), 0).detach()
    target = classifier(x).argmax(1)
    expected = -classifier(cleaned).log_softmax(1)[torch.arange(40), target].mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert len(set(target.tolist())) > 1
    trained = [id(p) for group in module.configure_optimizers()[0][0].param_groups for p in group["params"]]
    assert trained == [id(p) for p in denoiser.parameters()]


def test_denoising_that_cannot_be_done_is_named():
    denoiser = Denoiser(1, 2, 4, torch.Generator())
    classifier = nn.Linear(2, 2)
    for arguments, message in (
        ((0.0,), "sigma: 0 leaves nothing to denoise"),
        ((0.5, "gan"), "objective: unknown 'gan'"),
        ((0.5, "mse", classifier), "classifier: with objective 'mse' it has no effect"),
        ((0.5, "stability"), "classifier: with objective 'stability' it is missing"),
    ):
        with pytest.raises(InputError, match=message):
            DenoiserTraining(denoiser, *arguments)
    with pytest.raises(InputError, match="depth: 1 is too few"):
        Denoiser(1, 1, 4, torch.Generator())
    with pytest.raises(InputError, match=r"inputs: have shape \[4, 3, 8, 8\]; give \[n, 1, height, width\]"):
        fit_denoiser(DenoiserTraining(denoiser, 0.5), torch.zeros(4, 3, 8, 8), epochs=1, batch_size=2, seed=0)
