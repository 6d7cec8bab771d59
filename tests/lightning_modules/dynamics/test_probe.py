import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_modules.dynamics import probe as probes
from lightning_modules.dynamics.catalog import PROBES, make_probe
from lightning_modules.dynamics.probe import Probe, ProbeRows
from lightning_modules.errors import InputError
from lightning_modules.fitting.keeping import Position
from lightning_modules.fitting.loaders import DealtLoader
from lightning_modules.fitting.spread import Spread
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import pl, quiet_lightning

X = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        self.seen = []

    def per_example_losses(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1], reduction="none")

    def training_step(self, batch, _):
        loss = self.per_example_losses(batch).mean()
        self.seen.append(float(loss.detach()))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Losses(Probe):
    name = "losses"

    def begin(self, trainer, module):
        return self.measure(trainer, module, 0)

    def measure(self, trainer, module, step):
        torch.rand(3)  # must not move the training's random numbers
        found = self.losses(module).numpy()
        rows = ("loss", 0, np.arange(len(found), dtype=np.int32), found)
        return ProbeRows(self.name, step, [("training", "", float(module.training))], [rows])


def fit(module, *callbacks, steps=6):
    loader = DataLoader(TensorDataset(X, Y), batch_size=30)
    with quiet_lightning():
        torch.manual_seed(1)
        trainer = make_trainer(steps, list(callbacks))
        trainer.fit(module, DealtLoader(loader, Spread(), 0, Position(), "loader"))
    return module


def watched(probe, module=None, steps=6):
    rows = []
    probe.listen(rows.append)
    return fit(module or Net(), probe, steps=steps), rows


def test_a_probe_sees_the_first_examples_before_and_after_the_steps():
    module, rows = watched(Losses(every=2, examples=50))
    assert [row.step for row in rows] == [0, 2, 4, 6, 6]
    assert {row.series[0][2] for row in rows[:-1]} == {0.0}  # evaluation mode
    module.eval()
    last = rows[3].examples[0][3]
    assert last.shape == (50,)
    np.testing.assert_allclose(last, module.per_example_losses((X[:50], Y[:50])).detach().numpy(), rtol=1e-6)


def test_a_training_does_not_know_that_it_is_watched():
    alone, (beside, _) = fit(Net()), watched(Losses(every=1))
    assert alone.seen == beside.seen
    assert beside.training == alone.training
    for name, value in alone.state_dict().items():
        assert torch.equal(value, beside.state_dict()[name]), name


def test_it_says_what_it_costs(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(probes.time, "perf_counter", lambda: float(next(clock)))
    _, rows = watched(Losses(every=3), steps=6)
    # On the clock: on_train_start (its own beginning, then two looks), two measurements of two looks each, the end.
    assert rows[-1].series == [("cost_seconds", "", 3.0), ("cost_share", "", 3.0 / 7.0)]


def test_fewer_examples_than_asked_for_are_all_of_them():
    _, rows = watched(Losses(examples=1000))
    assert len(rows[0].examples[0][3]) == 90


def test_a_data_module_may_say_what_is_looked_at():
    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(TensorDataset(X, Y), batch_size=30)

        def probe_batches(self, count):
            return [(X[80:][:count], Y[80:][:count])]

    rows = []
    probe = Losses(examples=4)
    probe.listen(rows.append)
    with quiet_lightning():
        make_trainer(1, [probe]).fit(Net(), datamodule=Data())
    assert len(rows[0].examples[0][3]) == 4


class Stream(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.rand(4)


def loader_of(dataset, **more):
    return DealtLoader(DataLoader(dataset, **more), Spread(), 3, Position(), "loader")


def test_first_batches_are_in_the_datas_own_order_however_they_are_shuffled():
    found = loader_of(TensorDataset(X, Y), batch_size=7, shuffle=True).first_batches(33)
    assert torch.equal(torch.cat([x for x, _ in found]), X[:33])


def test_first_batches_of_a_stream_leave_random_numbers_alone():
    before = torch.get_rng_state()
    loader = loader_of(Stream(), batch_size=7)
    found = loader.first_batches(20)
    assert torch.equal(torch.get_rng_state(), before)
    assert [len(batch) for batch in found] == [7, 7, 7]
    assert torch.equal(found[0], loader.first_batches(1)[0])


@pytest.mark.parametrize("options", [{"every": 0}, {"examples": 0}])
def test_numbers_below_one_are_refused(options):
    with pytest.raises(InputError, match="probe losses: .* is 0; give 1 or more"):
        Losses(**options)


def test_a_module_without_losses_is_refused():
    class Bare(Net):
        per_example_losses = None

        def training_step(self, batch, _):
            return self.net(batch[0]).mean()

    with pytest.raises(InputError, match=r"probe: Bare has no per_example_losses\(self, batch\); add the method"):
        watched(Losses(), Bare())


def test_losses_of_another_shape_are_refused():
    class Mean(Net):
        def per_example_losses(self, batch):
            return super().per_example_losses(batch).mean()

    with pytest.raises(InputError, match=r"per_example_losses: gives \[\]; give the loss of every example \[n\]"):
        watched(Losses(), Mean())


def test_a_loss_that_is_not_finite_names_its_example():
    class Bad(Net):
        def per_example_losses(self, batch):
            found = super().per_example_losses(batch)
            return torch.where(torch.arange(len(found)) == 17, math.nan, found) if not self.training else found

    with pytest.raises(InputError, match="probe losses: the loss of example 17 is nan; lower the learning rate"):
        watched(Losses(), Bad())


def test_learning_rate_is_the_optimizers():
    found = []

    class Rate(Losses):
        def measure(self, trainer, module, step):
            found.append(probes.learning_rate(trainer))

    watched(Rate(), steps=1)
    assert 0.1 in found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sharpnes", "probe: unknown 'sharpnes'; did you mean sharpness?"),
        ("zzz", "probe: unknown 'zzz'; choose from breakthroughs, "),
        (f"{__name__}:Net", "is no probe; derive its class from"),
        (f"{__name__}:Losses:evry=2", "has no option 'evry'; choose from every, examples"),
        (f"{__name__}:Losses:every=two", "every is 'two'; give a value like 1"),
        (f"{__name__}:Losses:every=0", "every is 0; give 1 or more"),
    ],
)
def test_bad_words_are_one_line(words, message):
    with pytest.raises(InputError, match=message) as error:
        make_probe(words)
    assert "\n" not in str(error.value)


def test_words_make_a_probe():
    found = make_probe(f"{__name__}:Losses:every=3,examples=20")
    assert (found.every, found.count) == (3, 20)
    assert make_probe(f"{__name__}:Losses").every == 1
    assert sorted(PROBES) == list(PROBES)
