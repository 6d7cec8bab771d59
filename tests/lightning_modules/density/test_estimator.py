"""The Lightning module: what it minimises, alone and over workers, and trainings as a person starts them."""

import math

import numpy as np
import pytest
import torch

from cluster.store import Run
from jobs.train import main as train
from lightning_modules.density import estimator as module_file
from lightning_modules.density.data import DigitVectors, FileVectors, GaussianPairs
from lightning_modules.density.estimator import ContrastiveEstimator
from lightning_modules.density.fits import fit
from lightning_modules.density.losses import log_loss
from lightning_modules.density.samples import SampleProblem
from lightning_modules.errors import InputError
from lightning_modules.fitting.spread import Spread

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")

WORDS = [
    "--method=lightning_modules.density.estimator:ContrastiveEstimator",
    "--dataset=lightning_modules.density.data:DigitVectors",
    "--hyperparameters.lr=0.1",
]


def batch_of(data):
    data.setup()
    return next(iter(data.train_dataloader()))


def gradient_of(module, batch):
    module.zero_grad()
    module.training_step(batch, 0).backward()
    return torch.cat([p.grad.flatten() for p in module.parameters()])


@pytest.mark.parametrize("loss", ["nce", "ence"])
@pytest.mark.parametrize("optimizer", ["gd", "ngd"])
def test_its_gradient_is_the_losses_own(loss, optimizer):
    batch = batch_of(GaussianPairs(dimension=4, separation=2.0, noise_ratio=3, batch_size=32))
    module = ContrastiveEstimator(loss, optimizer, dimension=4, width=8)
    torch.nn.init.normal_(list(module.model.network.parameters())[-2], generator=torch.Generator().manual_seed(0))
    found, value = gradient_of(module, batch), module.training_step(batch, 0)
    expected = log_loss(loss, *module.log_ratios(batch))
    expected = expected if optimizer == "ngd" else expected.exp()
    module.zero_grad()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(found, torch.cat([p.grad.flatten() for p in module.parameters()]), rtol=1e-4, atol=1e-7)
    assert float(found.norm()) > 1e-3


@pytest.mark.parametrize("optimizer", ["gd", "ngd", "newton"])
@pytest.mark.parametrize("shift", [0, 1])
def test_workers_parts_make_up_the_whole_gradient(optimizer, shift, monkeypatch):
    """Three workers of unequal parts, one after the other: what they gather is put in their place."""
    batch = batch_of(GaussianPairs(dimension=4, separation=2.0, noise_ratio=2, batch_size=32))
    module = ContrastiveEstimator(
        "ence", optimizer, model="mean" if optimizer == "newton" else "mlp", dimension=4, width=8
    )
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    whole, value = gradient_of(module, batch), module.training_step(batch, 0).item()
    world = 3
    spreads = [Spread(rank=rank, world=world, shift=shift) for rank in range(world)]
    parts = [[part[s.part(32)] for part in batch] for s in spreads]
    sent = {}

    def note(found, mine):
        sent[module.spread.rank] = mine
        for place in found:
            place.copy_(mine)

    monkeypatch.setattr(module_file.dist, "all_gather", note)
    monkeypatch.setattr(module_file.dist, "all_reduce", lambda _: None)
    for module.spread in spreads:
        module.training_step(parts[module.spread.rank], 0)

    def gather(found, mine):  # part q is with process q + shift
        for q in range(world):
            found[(q + shift) % world].copy_(sent[q])

    monkeypatch.setattr(module_file.dist, "all_gather", gather)
    total = 0
    for module.spread, part in zip(spreads, parts, strict=True):
        weight = len(part[0]) * world / 32
        total = total + weight * gradient_of(module, part) / world  # as DDP averages weighted losses
        assert module.training_step(part, 0).item() == pytest.approx(value, rel=1e-5)
    assert torch.allclose(total, whole, rtol=1e-4, atol=1e-6)


def test_newtons_hessian_is_the_samples():
    data = GaussianPairs(dimension=2, separation=2.0, n=200, batch_size=200)
    batch = batch_of(data)
    for loss in ("nce", "ence"):
        module = ContrastiveEstimator(loss, "newton", 1.0, model="mean", dimension=2)
        module.training_step(batch, 0)
        sample = SampleProblem(data._problem, batch[0][None], batch[1].flatten(0, 1)[None])
        _, _, hessian = sample.scaled(loss, np.zeros((1, 3)), True)
        assert np.allclose(module._hessian, hessian[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("optimizer", "lr", "steps"), [("newton", 1.0, 10), ("adam", 0.05, 200), ("ngd", 0.03, 200), ("gd", 0.5, 200)]
)
def test_every_descent_finds_the_means(optimizer, lr, steps):
    data = GaussianPairs(dimension=2, separation=2.0, shift=-1.0, batch_size=2000)
    module = ContrastiveEstimator("ence", optimizer, lr, model="mean", dimension=2)
    found = fit(module, data, steps)
    assert found["val_distance"] < 0.3
    assert found["val_log_loss"] < -0.4  # the logarithm of the Bhattacharyya coefficient is -0.5
    assert found["val_log_partition"] == pytest.approx(0.5, abs=0.2)
    assert found["val_effective_samples"] > 100


@pytest.mark.parametrize("model", ["mean", "gaussian", "mlp"])
def test_training_starts_at_the_noise(model):
    module = ContrastiveEstimator("ence", "gd", 1e-9, model=model, dimension=2, width=4)
    found = fit(module, GaussianPairs(dimension=2, separation=4.0, shift=-3.0), 1)
    assert found["val_log_loss"] == pytest.approx(0, abs=1e-5)
    assert found["val_effective_samples"] == pytest.approx(20_000, rel=1e-4)


def test_a_full_gaussian_learns_the_variances():
    data = DigitVectors(dimension=2, noise_law="full", copies=1)
    module = ContrastiveEstimator("nce", "adam", 0.02, model="gaussian", dimension=2, noise_law="full")
    found = fit(module, data, 100)
    assert torch.allclose(module.model.theta[:2], torch.zeros(2), atol=0.5)
    assert found["val_nll"] == pytest.approx(2 * (0.5 + 0.5 * math.log(2 * math.pi)), abs=0.5)


def test_normalised_steps_move_an_energy_where_plain_ones_are_stuck():
    data = DigitVectors()
    nll = {
        (optimizer, lr): fit(ContrastiveEstimator("ence", optimizer, lr), data, 300)["val_nll"]
        for optimizer, lr in (("gd", 0.1), ("ngd", 0.1))
    }
    assert nll["gd", 0.1] == pytest.approx(22.59, abs=0.4)
    assert nll["ngd", 0.1] < 21.8


def test_images_go_through_convolutions():
    x = torch.randn(2, 3 * 64, generator=torch.Generator().manual_seed(0))
    module = ContrastiveEstimator(model="conv", dimension=192, channels=3, width=4, depth=3)
    assert module.log_density(x).shape == (2,)
    with pytest.raises(InputError, match="channels: 3 square images do not make 190 numbers"):
        ContrastiveEstimator(model="conv", dimension=190, channels=3)


def test_images_of_ones_own_train_a_convolutional_energy(tmp_path):
    generator = np.random.default_rng(0)
    images = np.where(generator.random((400, 1, 1, 1)) < 0.5, 1, -1) * np.ones(
        (1, 1, 8, 8)
    ) + 0.5 * generator.standard_normal((400, 1, 8, 8))
    np.save(tmp_path / "images.npy", images.astype(np.float32))
    data = FileVectors(path=str(tmp_path / "images.npy"), whiten=False, dimension=64, noise_law="diagonal", copies=4)
    module = ContrastiveEstimator("nce", "ngd", 0.1, model="conv", dimension=64, width=4, noise_law="diagonal")
    found = fit(module, data, 100)
    assert found["val_loss"] < 0.5 * math.log(2)
    assert found["val_accuracy"] > 0.9


def val(run, metric="val_loss"):
    rows = [m for m in Run(str(run)).read("metrics").to_pylist() if m["metric"] == metric]
    return [m["value"] for m in sorted(rows, key=lambda m: m["step"])]


def test_it_trains_from_the_command_line(tmp_path):
    assert train([*WORDS, "--workers=0", "--steps=300", "--checkpoint_every=100", f"--run={tmp_path}"]) == 0
    losses = val(tmp_path)
    assert len(losses) == 3
    assert losses[0] > losses[1] > losses[2]
    assert losses[-1] < 0.8
    assert all(math.isfinite(v) for v in val(tmp_path, "val_effective_samples"))
    assert min(val(tmp_path, "train_gradient_norm")) > 0


@pytest.mark.slow
def test_workers_train_as_one_does(ray_session, tmp_path):
    for workers in (0, 2):
        words = [
            "--hyperparameters.batch_size=101",
            f"--workers={workers}",
            "--steps=100",
            f"--run={tmp_path / str(workers)}",
        ]
        assert train([*WORDS, *words, *(["--verify_every=20"] if workers else [])]) == 0
    for metric in ("val_log_loss", "train_log_loss", "train_gradient_norm", "val_log_partition"):
        alone, together = (val(tmp_path / workers, metric) for workers in ("0", "2"))
        assert together == pytest.approx(alone, abs=1e-4)
    assert abs(val(tmp_path / "0")[-1] - 1) > 1e-4


def test_what_cannot_be_is_refused():
    for words, more in (
        ("loss: unknown loss 'kl'; choose from nce, ence", {"loss": "kl"}),
        ("optimizer: unknown optimizer 'sgd'", {"optimizer": "sgd"}),
        ("model: unknown model 'flow'", {"model": "flow"}),
        ("optimizer: newton needs the Hessian", {"optimizer": "newton"}),
        ("lr: 0 is not above 0", {"lr": 0}),
        ("depth: 0 is below 1", {"depth": 0}),
    ):
        with pytest.raises(InputError, match=words):
            ContrastiveEstimator(**more)
    with pytest.raises(InputError, match="dimension: the data's noise has"):
        fit(ContrastiveEstimator(dimension=3), GaussianPairs(dimension=2), 1)
