"""A small trained network on real digits, once for all tests of the certification jobs."""

import pytest
import torch

from lightning_modules.certification.training import NoiseAugmentedClassifier, fit_classifier
from lightning_modules.data.examples import load_examples


@pytest.fixture(scope="session")
def digits_checkpoint(tmp_path_factory):
    train = load_examples("MNIST", "train")
    module = NoiseAugmentedClassifier("small-cnn", (1, 28, 28), 10, 0.5, optimizer="adam", lr=2e-3)
    path = tmp_path_factory.mktemp("model") / "digits.ckpt"
    x, y = torch.from_numpy(train.inputs.copy()), torch.from_numpy(train.labels.copy())
    fit_classifier(module, x, y, epochs=2, batch_size=128, seed=0, checkpoint=path)
    return str(path)
