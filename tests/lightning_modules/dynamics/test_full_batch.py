import numpy as np
import pytest
import torch
from torch import nn

from lightning_modules.dynamics.flat import FlatParameters
from lightning_modules.dynamics.full_batch import FullBatchModule
from lightning_modules.dynamics.full_batch_data import FullBatchData
from lightning_modules.dynamics.planting import plant_opposing_signal
from lightning_modules.dynamics.selectors import example_scores
from lightning_modules.dynamics.split_sgd import SplitSGD
from lightning_modules.errors import InputError
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import quiet_lightning

X = np.random.default_rng(0).random((50, 4, 4)).astype(np.float32)
Y = np.arange(50) % 5


def fit(module, data, steps, *callbacks):
    with quiet_lightning():
        make_trainer(steps, list(callbacks)).fit(module, datamodule=data)
    return module


def test_the_signal_is_planted_in_the_groups_and_nowhere_else():
    planted = plant_opposing_signal(X, Y, 1, 3, m=4, magnitude=8.0, keep=0.5)
    assert (Y[planted.a] == 1).all()
    assert (Y[planted.b] == 3).all()
    assert len(set(planted.a) | set(planted.b)) == 8
    rows = np.concatenate([planted.a, planted.b])
    np.testing.assert_allclose(planted.x[rows], 0.5 * X[rows] + 8 / 4, rtol=1e-6)
    rest = np.setdiff1d(np.arange(50), rows)
    np.testing.assert_array_equal(planted.x[rest], X[rest])
    same = plant_opposing_signal(X, Y, 1, 3, m=4, mode="same")
    assert (Y[np.concatenate([same.a, same.b])] == 1).all()
    none = plant_opposing_signal(X, Y, 1, 3, m=4, mode="none", seed=0)
    np.testing.assert_array_equal(none.x, X)
    assert (none.a == planted.a).all()
    assert (plant_opposing_signal(X, Y, 1, 3, m=4, seed=1).a != planted.a).any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"m": 11}, "m: 11 images of class 1 are wanted, there are 10"),
        ({"m": 6, "mode": "same"}, "m: 12 images of class 1 are wanted, there are 10"),
        ({"class_b": 1}, "class_b: is class_a, 1"),
        ({"m": 0}, "m: is 0"),
        ({"mode": "twice"}, "mode: unknown 'twice'; choose from opposing, same, none"),
    ],
)
def test_a_signal_that_cannot_be_planted_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        plant_opposing_signal(X, Y, **({"class_a": 1, "class_b": 3, "m": 4} | options))


def test_the_data_are_one_batch_of_mean_zero_in_their_own_order():
    data = FullBatchData()
    data.setup()
    batches = list(data.train_dataloader())
    assert len(batches) == 1
    x, y = batches[0]
    assert x.flatten(1).shape == (1797, 64)
    assert float(x.mean(0).abs().max()) < 1e-5
    first = data.probe_batches(7)[0]
    assert torch.equal(first[0], x[:7])
    assert torch.equal(first[1], y[:7])
    assert sorted(data.groups) == ["planted A", "planted B"]
    assert not data.val_dataloader()


def test_some_images_are_held_out_and_batches_are_dealt_in_a_new_order():
    data = FullBatchData(subset=100, validation=0.2, mode="opposing", m=4, batch_size=32)
    data.setup()
    assert [len(y) for _, y in data.train_dataloader()] == [32, 32, 16]
    assert [len(y) for _, y in data.val_dataloader()[0]] == [20]
    loader = data.train_dataloader()
    one, two = (torch.cat([y for _, y in loader]) for _ in range(2))
    assert not torch.equal(one, two)
    assert float(data.held_out.tensors[0].abs().max()) < 1.1  # nothing planted


def test_a_step_is_that_of_gradient_descent_and_leaves_every_examples_loss():
    data = FullBatchData()
    data.setup()
    module = FullBatchModule(seed=3)
    start = module.per_example_losses(data.train.tensors)
    flat = FlatParameters(module)
    slope = flat.join(torch.autograd.grad(start.mean(), flat.tensors()))
    expected = flat.vector() - 0.2 * slope
    fit(module, data, 1)
    torch.testing.assert_close(FlatParameters(module).vector(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(module.losses, start.detach())


def test_squared_loss_is_half_the_distance_to_the_label():
    module = FullBatchModule(inputs=2, classes=3, loss="squared")
    x, y = torch.randn(5, 2), torch.tensor([0, 1, 2, 1, 0])
    expected = [0.5 * float((module(x)[i] - torch.eye(3)[y[i]]).square().sum()) for i in range(5)]
    torch.testing.assert_close(module.per_example_losses((x, y)), torch.tensor(expected))


def test_dampening_is_a_rescaling_of_the_step_size():
    data, found = FullBatchData(), []
    for lr, dampening in ((0.1, 0.0), (1.0, 0.9)):
        # torch takes the first gradient into the momentum undampened, so the momentum's own start is given: m = 0.
        module = FullBatchModule(optimizer="gd", lr=lr, momentum=0.9, dampening=dampening)
        module.configure_optimizers = lambda m=module: _from_zero(m)  # type: ignore[method-assign]
        found.append(FlatParameters(fit(module, data, 50)).vector())
    assert float((found[0] - found[1]).abs().max()) < 1e-5


def _from_zero(module):
    optimizer = FullBatchModule.configure_optimizers(module)
    for p in module.parameters():
        optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def test_split_sgd_takes_sign_steps_where_the_momentum_is_large():
    p = nn.Parameter(torch.zeros(10))
    optimizer = SplitSGD([p], lr=0.5, sign_lr=0.01, momentum=0.5, dampening=0.5, quantile=0.8)
    p.grad = torch.tensor([-8.0, 7.0, *[0.1] * 8])
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.01, -0.01, *[-0.025] * 8]))
    optimizer.step()  # m = 0.75 g
    torch.testing.assert_close(p.detach(), torch.tensor([0.02, -0.02, *[-0.025 - 0.0375] * 8]))


def test_split_sgd_ranges_from_sgd_to_sign_sgd_and_may_choose_in_each_tensor():
    def stepped(**options):
        a, b = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
        optimizer = SplitSGD([a, b], lr=1.0, sign_lr=0.01, momentum=0.0, dampening=0.0, **options)
        a.grad, b.grad = torch.tensor([10.0, 20.0, 30.0, 40.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
        optimizer.step()
        return [-v for v in a.tolist()], [-v for v in b.tolist()]

    assert stepped(quantile=1.0) == ([10.0, 20.0, 30.0, 40.0], [1.0, 2.0, 3.0, 4.0])
    assert stepped(quantile=0.0) == (pytest.approx([0.01] * 4), pytest.approx([0.01] * 4))
    assert stepped(quantile=0.5) == (pytest.approx([0.01] * 4), [1.0, 2.0, 3.0, 4.0])
    split = pytest.approx([10.0, 20.0, 0.01, 0.01]), pytest.approx([1.0, 2.0, 0.01, 0.01])
    assert stepped(quantile=0.5, scope="tensor") == split


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -1.0}, "lr: is -1.0; give 0 or more"),
        ({"momentum": 1.0}, "momentum: is 1.0; give 0 or more, and less than 1"),
        ({"quantile": 1.5}, "quantile: is 1.5; give 0 to 1"),
        ({"scope": "layer"}, "scope: unknown 'layer'"),
    ],
)
def test_split_sgd_refuses_values_out_of_range(options, words):
    with pytest.raises(InputError, match=words):
        SplitSGD([nn.Parameter(torch.zeros(1))], **options)


@pytest.mark.parametrize("optimizer", ["gd", "adam", "sign_sgd", "split_sgd"])
def test_every_optimizer_learns(optimizer):
    lr = {"gd": 0.2, "adam": 3e-3, "sign_sgd": 3e-3, "split_sgd": 0.2}[optimizer]
    module = fit(FullBatchModule(optimizer=optimizer, lr=lr), FullBatchData(), 60)
    assert float(module.losses.mean()) < 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "hinge"}, "loss: unknown 'hinge'; choose from cross_entropy, squared"),
        ({"optimizer": "lion"}, "optimizer: unknown 'lion'"),
        ({"width": 0}, "width: is 0; give 1 or more"),
        ({"lr": 0.0}, "lr, momentum: are 0.0 and 0.0"),
    ],
)
def test_a_module_refuses_values_out_of_range(options, words):
    with pytest.raises(InputError, match=words):
        FullBatchModule(**options)


def test_examples_of_another_size_are_refused():
    with pytest.raises(InputError, match="inputs: is 63, the examples have 64 numbers; make them equal"):
        fit(FullBatchModule(inputs=63), FullBatchData(), 1)


def test_scores_are_those_of_single_gradients():
    data = FullBatchData(subset=30)
    data.setup()
    x, y = data.train.tensors
    module = FullBatchModule(width=8)
    flat = FlatParameters(module)
    direction = torch.randn(len(flat), generator=torch.Generator().manual_seed(0))
    scores = example_scores(module, (x, y), direction, chunk=7)
    for i in (0, 13, 29):
        loss = module.per_example_losses((x[i : i + 1], y[i : i + 1]))[0]
        gradient = flat.join(torch.autograd.grad(loss, flat.tensors()))
        expected = (loss.detach(), gradient.norm(), (direction @ gradient).abs())
        for name, value in zip(("loss", "gradient norm", "sharpest direction"), expected, strict=True):
            torch.testing.assert_close(scores[name][i], value, rtol=1e-4, atol=1e-6)
