"""The probes `sharpness` and `opposing-signals` on a training that has both phenomena."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_modules.dynamics.catalog import make_probe
from lightning_modules.dynamics.flat import FlatParameters, losses_at
from lightning_modules.dynamics.full_batch import FullBatchModule
from lightning_modules.dynamics.full_batch_data import FullBatchData
from lightning_modules.dynamics.groups import outlier_groups
from lightning_modules.dynamics.loss_changes import LossChangeTracker
from lightning_modules.dynamics.opposing_probe import OpposingSignalsProbe
from lightning_modules.dynamics.sharpness import sharpness
from lightning_modules.dynamics.sharpness_probe import SharpnessProbe
from lightning_modules.errors import InputError
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import pl, quiet_lightning


class Weights(pl.Callback):
    """Keeps the module of every step."""

    def __init__(self):
        self.modules = {}

    def on_train_start(self, trainer, module):
        self.modules[trainer.global_step] = self._copy(module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.modules[trainer.global_step] = self._copy(module)

    @staticmethod
    def _copy(module):
        kept = FullBatchModule(**module.hparams)
        kept.load_state_dict(module.state_dict())
        return kept


def watched(make, steps, module=None, data=None, groups=None, checkpoint=None, save=None):
    data, rows, weights, probe = data or FullBatchData(mode="opposing"), [], Weights(), make()
    data.setup()
    probe.listen(rows.append)
    if groups:
        probe.watch(groups)
    with quiet_lightning():
        trainer = make_trainer(steps, [probe, weights])
        trainer.fit(module or FullBatchModule(), datamodule=data, ckpt_path=checkpoint)
        if save:
            trainer.save_checkpoint(save)
    return [row for row in rows if row.series[0][0] != "cost_seconds"], weights.modules, data


def figures(row, quantity):
    return {item: value for name, item, value in row.series if name == quantity}


def test_sharpness_is_that_of_the_mean_loss_beside_the_steps_threshold():
    rows, modules, data = watched(lambda: SharpnessProbe(4, 500, 2), 8)
    assert [row.step for row in rows] == [0, 4, 8]
    batch = data.probe_batches(500)[0]
    for row in rows:
        module = modules[row.step]
        expected = sharpness(losses_at(module, batch), FlatParameters(module).vector(), tolerance=1e-6)
        found = figures(row, "sharpness")
        assert found["1"] == pytest.approx(expected.value, rel=1e-3)
        assert found["1"] > found["2"] > 0
        assert figures(row, "threshold")[""] == pytest.approx(10.0)
        assert figures(row, "threshold_ratio")[""] == pytest.approx(found["1"] / 10)
        mass = figures(row, "mass")
        assert list(mass) == [name for name, _ in module.named_parameters()]
        assert sum(mass.values()) == pytest.approx(1.0, abs=1e-5)
        assert max(figures(row, "residual").values()) < 0.01 * found["1"]


def test_there_is_no_threshold_for_adam_and_none_that_is_wrong_for_heavy_ball():
    rows, _, _ = watched(lambda: SharpnessProbe(1, 200), 1, FullBatchModule(optimizer="adam", lr=1e-3))
    assert math.isnan(figures(rows[0], "threshold")[""])
    assert math.isnan(figures(rows[0], "threshold_ratio")[""])
    rows, _, _ = watched(lambda: SharpnessProbe(1, 200), 1, FullBatchModule(lr=0.1, momentum=0.9))
    assert figures(rows[0], "threshold")[""] == pytest.approx(38.0)


def changes(modules, batch, step):
    with torch.no_grad():
        before, after = (modules[t].per_example_losses(batch) for t in (step - 1, step))
    return (after - before).numpy(), after.numpy()


def test_changes_outliers_and_overlap_are_those_of_single_steps():
    def make():
        return OpposingSignalsProbe(1, 1797, 5, "all")

    rows, modules, data = watched(make, 4)
    assert [row.step for row in rows] == [1, 2, 3, 4]
    batch = data.probe_batches(1797)[0]
    risers = []
    for row in rows:
        change, losses = changes(modules, batch, row.step)
        (_, _, numbers, found), (_, _, _, moved) = row.examples
        assert numbers.dtype == np.int32
        assert found.dtype == moved.dtype == np.float32
        np.testing.assert_array_equal(numbers, np.arange(1797))
        np.testing.assert_allclose(found, losses, atol=1e-5)
        np.testing.assert_allclose(moved, change, atol=1e-5)
        assert figures(row, "fraction_up")[""] == pytest.approx((moved > 0).mean(), abs=1e-6)
        assert figures(row, "loss")[""] == pytest.approx(losses.mean(), rel=1e-4)
        order = np.argsort(moved)
        if risers:
            expected = np.isin(risers[-1], order[:5]).mean()
            assert figures(row, "overlap")[""] == pytest.approx(expected)
        risers.append(order[-5:])


def test_between_steps_that_are_not_measured_nothing_is_missed():
    every = watched(lambda: OpposingSignalsProbe(1, 1797, 5), 9)[0]
    third = watched(lambda: OpposingSignalsProbe(3, 1797, 5), 9)[0]
    assert [row.step for row in third] == [3, 6, 9]
    for row in third:
        same = every[row.step - 1]
        assert same.step == row.step
        for quantity in ("loss", "loss_change", "fraction_up", "overlap"):
            assert figures(row, quantity) == figures(same, quantity)
        for one, other in zip(row.examples, same.examples, strict=True):
            np.testing.assert_array_equal(one[2], other[2])
            np.testing.assert_array_equal(one[3], other[3])


def test_only_outliers_rows_are_given_unless_all_are_asked_for():
    rows, modules, data = watched(lambda: OpposingSignalsProbe(1, 300, 4), 2)
    change, _ = changes(modules, data.probe_batches(300)[0], 1)
    order = np.argsort(change)
    numbers = rows[0].examples[1][2]
    assert sorted(numbers[:4]) == sorted(order[-4:])
    assert sorted(numbers[4:]) == sorted(order[:4])


def test_known_groups_are_followed_and_their_gradients_measured():
    data = FullBatchData(mode="opposing")
    data.setup()
    groups = {"left": data.groups["planted A"], "right": data.groups["planted B"]}
    rows, modules, _ = watched(lambda: OpposingSignalsProbe(1, 1797, 20, gradients_every=2), 4, None, data, groups)
    batch = data.train.tensors
    for row in rows:
        change, losses = changes(modules, batch, row.step)
        for name, members in groups.items():
            assert figures(row, "group_change")[name] == pytest.approx(change[members].mean(), abs=1e-5)
            assert figures(row, "group_loss")[name] == pytest.approx(losses[members].mean(), rel=1e-4)
        assert set(figures(row, "group_size")) == ({"A", "B"} if row.step > 1 else set())
        assert (row.step % 2 == 0) == bool(figures(row, "cosine"))
    module = modules[4]
    flat, found = FlatParameters(module), []
    for members in groups.values():
        loss = module.per_example_losses((batch[0][members], batch[1][members])).mean()
        found.append(flat.join(torch.autograd.grad(loss, flat.tensors())))
    expected = float(nn.functional.cosine_similarity(*found, dim=0))
    assert figures(rows[-1], "cosine")["left right"] == pytest.approx(expected, abs=1e-4)
    top = sharpness(losses_at(module, batch), flat.vector(), tolerance=1e-6).vector
    along = abs(float(nn.functional.cosine_similarity(found[0], top, dim=0)))
    assert figures(rows[-1], "alignment")["left"] == pytest.approx(along, abs=0.02)


@pytest.mark.parametrize("make", [lambda: SharpnessProbe(2, 300), lambda: OpposingSignalsProbe(2, 300, 5, "all", 4)])
@pytest.mark.parametrize("at", [3, 4, 5])
def test_a_training_that_goes_on_gives_the_same_rows(make, at, tmp_path):
    whole = watched(make, 8)[0]
    first = watched(make, at, save=tmp_path / "c.ckpt")[0]
    second = watched(make, 8, checkpoint=tmp_path / "c.ckpt")[0]
    both = first + second
    assert [row.step for row in both] == [row.step for row in whole]
    for one, other in zip(both, whole, strict=True):
        assert one.series == other.series
        for a, b in zip(one.examples, other.examples, strict=True):
            np.testing.assert_array_equal(a[3], b[3])


@pytest.mark.parametrize("make", [lambda: SharpnessProbe(2, 300), lambda: OpposingSignalsProbe(2, 300, 5)])
def test_a_checkpoint_from_before_the_last_measurement_loses_none(make, tmp_path):
    probe, trainer_steps = make(), 4

    class Early(pl.Callback):
        """Saves after the step and before the probe has looked at it."""

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == trainer_steps:
                trainer.save_checkpoint(tmp_path / "c.ckpt")

    with quiet_lightning():
        make_trainer(4, [Early(), probe]).fit(FullBatchModule(), datamodule=FullBatchData(mode="opposing"))
    rows = watched(make, 8, checkpoint=tmp_path / "c.ckpt")[0]
    assert [row.step for row in rows] == [4, 6, 8]


def test_groups_are_measured_at_the_step_after_the_one_that_made_them():
    rows, modules, data = watched(lambda: OpposingSignalsProbe(1, 1797, 10), 3)
    assert not figures(rows[0], "group_change")
    batch = data.probe_batches(1797)[0]
    groups = None
    for step in (1, 2, 3):
        change, _ = changes(modules, batch, step)
        if groups is not None:
            found = figures(rows[step - 1], "group_change")
            for name, members in groups.by_name().items():
                assert found[name] == pytest.approx(change[members].mean(), abs=1e-5)
        tracker = LossChangeTracker(10)
        tracker.update(torch.zeros(1797), step - 1)
        groups = outlier_groups(tracker.update(torch.from_numpy(change), step), batch[1], groups)


class Text(pl.LightningModule):
    """Batches that are no pair, and two of them."""

    def __init__(self):
        super().__init__()
        self.net = FullBatchModule(inputs=6, classes=3, width=8).net

    def per_example_losses(self, batch):
        return self.net(batch["x"]).square().sum(1)

    def training_step(self, batch, _):
        return self.per_example_losses(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class TextData(pl.LightningDataModule):
    def train_dataloader(self):
        x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
        return DataLoader([{"x": row} for row in x], batch_size=25)

    def probe_batches(self, count):
        return list(self.train_dataloader())


def test_batches_without_labels_and_several_of_them_are_looked_at_too():
    rows = []
    for probe in (OpposingSignalsProbe(1, 40, 4, gradients_every=1), SharpnessProbe(1, 40)):
        probe.listen(rows.append)
        with quiet_lightning():
            make_trainer(2, [probe]).fit(Text(), datamodule=TextData())
    assert figures(rows[1], "group_size") == {"A": 4.0, "B": 4.0}
    assert not figures(rows[1], "group_label")
    assert -1 <= figures(rows[1], "cosine")["A B"] <= 1
    assert figures(rows[-2], "sharpness")["1"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sharpness:eigenvalues=0", "eigenvalues is 0"),
        ("opposing-signals:rows=some", "rows is 'some'; choose from all, top"),
        ("opposing-signals:every=2,gradients_every=3", "gradients_every is 3; give 0 or a multiple of every"),
        ("opposing-signals:top=0", "top: is 0"),
    ],
)
def test_options_out_of_range_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        make_probe(words)


def test_more_eigenvalues_or_outliers_than_there_are_is_refused():
    with pytest.raises(InputError, match="top: is 200, of 300 examples; give 150 or less"):
        watched(lambda: OpposingSignalsProbe(1, 300, 200), 1)
    with pytest.raises(InputError, match="eigenvalues is 90000, the module has 8970 parameters"):
        watched(lambda: SharpnessProbe(1, 300, 90000), 1)
    with pytest.raises(InputError, match="A is the name of a group that is found"):
        OpposingSignalsProbe().watch({"A": torch.tensor([1])})


def test_a_loss_that_is_not_finite_stops_the_probe():
    module = FullBatchModule()
    copy.copy(module.net[1]).weight.data[0, 0] = math.nan
    with pytest.raises(InputError, match="the loss of example 0 is nan; lower the learning rate"):
        watched(lambda: SharpnessProbe(1, 300), 1, module)
