"""The probe `breakthroughs`: what it streams is POLCA, whether the training was interrupted or not, and changes nothing."""

import copy

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules.dynamics.basis import orthonormality_error
from lightning_modules.dynamics.breakthroughs_probe import BreakthroughsProbe
from lightning_modules.dynamics.catalog import make_probe
from lightning_modules.dynamics.flat import FlatParameters, losses_at
from lightning_modules.dynamics.polca import polca
from lightning_modules.dynamics.recorder import CheckpointRecorder
from lightning_modules.errors import InputError
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import pl, quiet_lightning
from lightning_modules.sequence.addition import AdditionData, AdditionLM


class Regression(pl.LightningModule):
    def __init__(self, lr=0.05):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 5), torch.nn.Dropout(0.3), torch.nn.Tanh(), torch.nn.Linear(5, 1)
        )
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in self.parameters():
                p.normal_(0, 0.5, generator=generator)
        self.lr = lr

    def per_example_losses(self, batch):
        x, y = batch
        return (self.net(x)[:, 0] - y).square()

    def training_step(self, batch, batch_idx):
        return self.per_example_losses(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


class Points(pl.LightningDataModule):
    def __init__(self, batch_size=16):
        super().__init__()
        self.batch_size = batch_size
        drawn = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
        self.parts = drawn[:, :3], drawn[:, 0] - drawn[:, 1] ** 2

    def train_dataloader(self):
        return DataLoader(TensorDataset(*self.parts), self.batch_size)

    def probe_batches(self, count):
        return [[part[:40] for part in self.parts], [part[40:count] for part in self.parts]]


def fit(module, probe, steps, data=None, others=(), resume=None):
    rows = []
    probe.listen(rows.append)
    torch.manual_seed(5)
    with quiet_lightning():
        trainer = make_trainer(steps, [probe, *others], limit_val_batches=0, num_sanity_val_steps=0)
        trainer.fit(module, datamodule=data or Points(), ckpt_path=resume)
    return rows, trainer


def series(rows, quantity, item=""):
    return [value for row in rows for name, where, value in row.series if (name, where) == (quantity, item)]


def examples(rows, direction):
    return np.array([values for row in rows for _, item, _, values in row.examples if item == direction])


def test_rows_are_polca_of_the_recorded_checkpoints_along_its_own_directions():
    module, probe, recorder = Regression(), BreakthroughsProbe(2, 64, 4, 3), CheckpointRecorder(2)
    rows, _ = fit(module, probe, 12, others=[recorder])
    state = probe.state_dict()
    assert state["vectors"].shape == (3, 26)
    assert orthonormality_error(state["vectors"]) < 1e-6
    module.eval()
    losses = [losses_at(module, batch) for batch in Points().probe_batches(64)]
    found = polca(losses, recorder.checkpoints(), state["vectors"])
    measured = [row for row in rows if row.examples]
    assert [row.step for row in measured] == [2, 4, 6, 8, 10, 12]
    # Directions are found before step 0, after 4 and after 8: each counts from the next interval on.
    for direction, first in ((0, 0), (1, 2), (2, 4)):
        np.testing.assert_allclose(examples(rows, direction), found.values[first:, direction].numpy(), atol=1e-6)
        assert examples(rows, direction).dtype == np.float32
    assert series(rows, "total") == pytest.approx(found.losses.double().mean(1).diff().tolist(), abs=1e-6)
    mean = found.values.mean(2)
    expected = [float(mean[t, : 1 + t // 2].sum()) for t in range(6)]
    assert series(rows, "captured") == pytest.approx(expected, abs=1e-6)
    assert series(rows, "captured_share")[-1] == pytest.approx(sum(expected) / found.total, rel=1e-4)
    assert series(rows, "change_along", "2") == pytest.approx(mean[4:, 2].tolist(), abs=1e-6)
    assert [len(series(rows, "eigenvalue", str(direction))) for direction in range(4)] == [1, 1, 1, 0]
    assert series(rows, "eigenvalue", "0")[0] > 0
    assert len(series(rows, "cost_seconds")) == 1


def test_a_probed_training_is_the_same_training():
    plain, probed = Regression(), Regression()
    torch.manual_seed(5)
    with quiet_lightning():
        make_trainer(9, [], limit_val_batches=0).fit(plain, datamodule=Points())
    fit(probed, BreakthroughsProbe(3, 64, 3, 2), 9)
    for a, b in zip(plain.parameters(), probed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_training_that_is_continued_gives_the_same_rows(tmp_path):
    # Without dropout, and a batch an epoch: random numbers and the place in the data are for `shiftlab train` to restore.
    quiet = Regression()
    quiet.net[1].p = 0.0
    whole, _ = fit(copy.deepcopy(quiet), BreakthroughsProbe(2, 64, 4, 3), 12, Points(64))
    first, trainer = fit(copy.deepcopy(quiet), BreakthroughsProbe(2, 64, 4, 3), 7, Points(64))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    second, _ = fit(
        copy.deepcopy(quiet), BreakthroughsProbe(2, 64, 4, 3), 12, Points(64), resume=tmp_path / "half.ckpt"
    )
    for direction in range(3):
        joined = np.concatenate(
            [part for part in (examples(first, direction), examples(second, direction)) if len(part)]
        )
        np.testing.assert_array_equal(joined, examples(whole, direction))
    for quantity in ("captured", "total", "captured_share"):
        assert series(first, quantity) + series(second, quantity) == series(whole, quantity)
    with pytest.raises(InputError, match="the training began with every=2,examples=64,basis_every=4,directions=3"):
        fit(copy.deepcopy(quiet), BreakthroughsProbe(2, 64, 4, 2), 12, resume=tmp_path / "half.ckpt")


def test_it_measures_the_language_model_and_its_memory_is_bounded():
    module, data = AdditionLM(digits=2, width=16, hidden=32), AdditionData(digits=2, batch_size=32)
    probe = BreakthroughsProbe(5, 50, 5, 2)
    rows, _ = fit(module, probe, 20, data)
    size = len(FlatParameters(module))
    state = probe.state_dict()
    assert state["vectors"].shape == (2, size)
    assert state["derivatives"].shape == (2, 50)
    assert examples(rows, 0).shape == (4, 50)
    assert examples(rows, 1).shape == (3, 50)
    assert all(np.isfinite(examples(rows, direction)).all() for direction in range(2))


def test_no_more_directions_than_parameters():
    class Two(Regression):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(3, 1, bias=False)

    rows, _ = fit(Two(), BreakthroughsProbe(1, 64, 1, 10), 6)
    assert [len(series(rows, "eigenvalue", str(direction))) for direction in range(4)] == [1, 1, 1, 0]
    # A quadratic loss and a complete basis: the trapezoid misses nothing.
    assert series(rows, "captured")[3:] == pytest.approx(series(rows, "total")[3:], rel=1e-3)


def test_the_catalog_knows_it_and_wrong_settings_say_so():
    probe = make_probe("breakthroughs:every=10,basis_every=50,directions=4,examples=30")
    assert isinstance(probe, BreakthroughsProbe)
    assert (probe.every, probe.basis_every, probe.directions, probe.count) == (10, 50, 4, 30)
    for words, message in (
        ("breakthroughs:every=20,basis_every=50", "basis_every is 50; give a multiple of every, which is 20"),
        ("breakthroughs:directions=0", "directions is 0"),
    ):
        with pytest.raises(InputError, match=message):
            make_probe(words)

    class Mute(Regression):
        per_example_losses = None

        def training_step(self, batch, batch_idx):
            return self.net(batch[0]).mean()

    with pytest.raises(InputError, match="Mute has no per_example_losses"):
        fit(Mute(), BreakthroughsProbe(), 2)
