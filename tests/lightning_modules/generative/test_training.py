"""Training by import path and in code: the loss falls, streams are the module's own, settings are checked."""

import json

import numpy as np
import pytest
import torch

from cluster.store import Run
from jobs.train import main as train
from lightning_modules.errors import InputError
from lightning_modules.generative.baselines import build_arm
from lightning_modules.generative.data import BinarisedImages, SimulatedHierarchy, load_images
from lightning_modules.generative.linear_gaussian import LinearGaussianHierarchy
from lightning_modules.generative.module import Baseline, SelfReflectiveVAE
from lightning_modules.generative.partition import binarise
from lightning_modules.generative.training import VariationalTraining, fit

PATH = "lightning_modules.generative."


def curve(run, metric="val_loss"):
    rows = Run(str(run)).read("metrics").to_pylist()
    return [m["value"] for m in sorted(rows, key=lambda m: m["step"]) if m["metric"] == metric]


def command(run, values, *more, method="SelfReflectiveVAE", dataset="BinarisedImages"):
    words = [f"--method={PATH}module:{method}", f"--dataset={PATH}data:{dataset}", "--workers=0"]
    return train([*words, "--hyperparameters", json.dumps(values), f"--run={run}", *more])


def test_the_command_trains_it(tmp_path):
    values = {"pixels": 64, "blocks": 2, "latents": 3, "width": 16, "lr": 0.01}
    assert command(tmp_path, values, "--steps=120", "--checkpoint_every=30") == 0
    losses = curve(tmp_path)
    assert len(losses) == 4
    assert losses[-1] < losses[0] - 1
    assert losses[-1] < 32  # independent pixels: 27.4 after long training; 44.4 before any
    assert curve(tmp_path, "val_kl")[-1] > 0


def test_the_command_trains_baselines_and_simulated_hierarchies(tmp_path):
    values = {"arm": "ladder", "pixels": 64, "blocks": 2, "latents": 3, "width": 16}
    assert command(tmp_path / "ladder", values, "--steps=40", "--checkpoint_every=20", method="Baseline") == 0
    losses = curve(tmp_path / "ladder")
    assert losses[-1] < losses[0]
    values = {"pixels": 4, "blocks": 4, "latents": 1, "width": 16, "likelihood": "gaussian", "lr": 0.01, "rows": 2000}
    words = ["--steps=200", "--checkpoint_every=100"]
    assert command(tmp_path / "chain", values, *words, dataset="SimulatedHierarchy") == 0
    truth = LinearGaussianHierarchy().entropy()
    assert truth - 0.3 < curve(tmp_path / "chain")[-1] < 7.5  # of 500 draws, so a little below is possible


def test_a_training_repeats_and_leaves_the_global_random_numbers_alone():
    x, _ = load_images(64)
    found = []
    for junk in (1, 2):
        torch.manual_seed(junk)
        before = torch.get_rng_state()
        model = build_arm("self_reflective", 64, 2, 3, 8, seed=4)
        fit(model, x, 5, 50, seed=3)
        assert torch.equal(torch.get_rng_state(), before)
        found.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    other = build_arm("self_reflective", 64, 2, 3, 8, seed=4)
    fit(other, x, 5, 50, seed=2)
    assert any(not torch.equal(a, b) for a, b in zip(found[0], other.parameters(), strict=True))


def test_the_frozen_generator_stays_and_the_kl_is_warmed_up():
    model = LinearGaussianHierarchy()
    hierarchy = model.with_posterior(model.exact_posterior()).float()
    assert [name for name, _ in hierarchy.named_parameters() if name.startswith("generator")] == []

    training = VariationalTraining(hierarchy, warmup=0.4)
    weights = []
    for step in (0, 20, 40, 90):
        type(training).global_step = step
        training._total = lambda: 100
        weights.append(training._kl_weight())
    del type(training).global_step
    assert weights == [0.0, 0.5, 1.0, 1.0]


def test_training_redraws_pixels_and_validation_does_not():
    module = SelfReflectiveVAE(64, 2, 3, 8)
    intensities = torch.full((50, 64), 0.5)
    one, two = (module._data((intensities,), module._noise(step, 1)) for step in (0, 1))
    assert (one != two).any()
    data = BinarisedImages(64, 32)
    data.setup()
    (test,) = next(iter(data.val_dataloader()))
    assert set(test.unique().tolist()) == {0.0, 1.0}
    (batch,) = next(iter(data.train_dataloader()))
    assert batch.shape == (32, 64)
    assert len(batch.unique()) > 2
    assert torch.equal(module._data((test,), module._noise(0, 0)), test)
    assert len(test) == 500  # of 600: a batch
    # Held out of what is trained on, never of what `load_images` keeps to test on.
    intensities, kept = load_images(64)
    assert torch.equal(data._train, intensities[:-600])
    assert torch.equal(data._held, binarise(intensities[-600:], torch.Generator().manual_seed(1)))
    assert not torch.equal(data._held[: len(kept)], kept[:600])
    again = BinarisedImages(64, 32)
    again.setup()
    assert torch.equal(next(iter(again.val_dataloader()))[0], test)


def test_images_of_ones_own(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 1, 4, 4)).astype(np.uint8)
    np.savez(tmp_path / "own.npz", inputs=pixels, labels=np.arange(20) % 2)
    train_part, test = load_images(16, 0, f"{tmp_path}/own.npz")
    assert train_part.shape == (16, 16)
    assert test.shape == (4, 16)
    assert (train_part * 255).round().allclose(train_part * 255, atol=1e-3)
    with pytest.raises(InputError, match="pixels: 784, but an image of .* has 16"):
        load_images(784, 0, f"{tmp_path}/own.npz")
    with pytest.raises(InputError, match="pixels: 100; give 784"):
        load_images(100)


def test_bad_settings_are_refused():
    for settings, message in (
        ({"blocks": 0}, "^blocks: 0"),
        ({"latents": 0}, "^latent_dims: "),
        ({"width": 0}, "^width, depth"),
        ({"posterior": "exact"}, "^posterior: unknown 'exact'"),
        ({"lr": 0.0}, "^lr, clip"),
        ({"warmup": 1.5}, "^warmup: 1.5"),
    ):
        with pytest.raises(InputError, match=message):
            SelfReflectiveVAE(pixels=64, **settings)
    with pytest.raises(InputError, match="^arm: unknown 'gan'"):
        Baseline("gan", 64)
    with pytest.raises(InputError, match="^batch_size, rows: 0"):
        BinarisedImages(64, 0)
    with pytest.raises(InputError, match="^batch_size, rows: 32, 0"):
        SimulatedHierarchy(4, 32, rows=3)
    with pytest.raises(InputError, match="^steps, batch_size: 0"):
        fit(build_arm("one_layer", 64, 2, 3, 8), torch.zeros(5, 64), 0)
    with pytest.raises(InputError, match="^intensities: "):
        fit(build_arm("one_layer", 64, 2, 3, 8), torch.full((5, 64), 2.0), 1)
