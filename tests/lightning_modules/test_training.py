"""Training one trial: against a plain PyTorch loop, and a function of the trial alone."""

import sys

import pytest
import torch
from torch.nn import functional as F

from lightning_modules.data.catalog import load_dataset
from lightning_modules.data.tensors import EnvironmentBatches, RowStream, split_dataset
from lightning_modules.domain_generalization.training import build_method, evaluate, train
from lightning_modules.errors import InputError
from lightning_modules.networks import build_network


def stream(name):
    return {"init": 11, "batches": 22, "method": 33}[name]


@pytest.fixture(scope="module")
def split():
    return split_dataset(load_dataset("ColoredMNIST"), seed=0)


def batches_of(split, environments, batch_size, seed):
    return EnvironmentBatches(split, lambda: RowStream(split, environments, batch_size, seed))


BUDGET = {"steps": 25, "checkpoint_every": 10}


def fit(split, method="ERM", budget=BUDGET, held_out=("-90%",), **hyperparameters):
    return train(method, hyperparameters, split, held_out, budget, stream)


def value(rows, step, environment, part, metric):
    (found,) = [r[4] for r in rows if r[:4] == (step, environment, part, metric)]
    return found


@pytest.mark.parametrize("anneal", [None, 7])
def test_a_fit_equals_a_plain_loop(split, anneal):
    """ERM, and IRM whose Adam restarts when its penalty jumps."""
    generator = torch.Generator().manual_seed(stream("init"))
    network = build_network("mlp", (2, 14, 14), 2, generator)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    batches = iter(batches_of(split, [0, 1], 64, stream("batches")))
    for step in range(25):
        inputs, labels = next(batches)
        risks, penalties = [], []
        for x, y in zip(inputs, labels, strict=True):
            logits = network(x)[1]
            risks.append(F.cross_entropy(logits, y))
            scale = torch.ones((), requires_grad=True)
            slopes = [
                torch.autograd.grad(F.cross_entropy(logits[k::2] * scale, y[k::2]), scale, create_graph=True)[0]
                for k in (0, 1)
            ]
            penalties.append(slopes[0] * slopes[1])
        loss = torch.stack(risks).mean()
        if anneal is not None:
            if step == anneal:
                optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
            loss = loss + (100.0 if step >= anneal else 1.0) * torch.stack(penalties).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rows = fit(split) if anneal is None else fit(split, "IRM", irm_anneal_steps=anneal)
    with torch.no_grad():
        for index, name in enumerate(split.dataset.environment_names):
            logits = network(split.inputs[split.rows_out[index]])[1]
            labels = split.labels[split.rows_out[index]]
            assert value(rows, 25, name, "out", "loss") == pytest.approx(
                float(F.cross_entropy(logits, labels)), abs=2e-5
            )
            accuracy = float((logits.argmax(1) == labels).double().mean())
            assert value(rows, 25, name, "out", "accuracy") == pytest.approx(accuracy, abs=0.004)  # one example


def test_every_checkpoint_and_the_last_step_are_evaluated_on_every_split(split):
    rows = fit(split)
    assert [r[0] for r in rows[:: 3 * 2 * 2]] == [10, 20, 25]
    assert len(rows) == 3 * 3 * 2 * 2
    assert [r[0] for r in fit(split, budget={"steps": 20, "checkpoint_every": 10})[::12]] == [10, 20]


def test_evaluation_averages_over_each_split_alone(split):
    module = build_method("ERM", {}, split, 2, stream)
    rows = evaluate(module, split, [0, 1], 0)
    with torch.no_grad():
        for index, name in enumerate(split.dataset.environment_names):
            for part, chosen in (("in", split.rows_in[index]), ("out", split.rows_out[index])):
                right = sum(
                    int(module(split.inputs[r : r + 1]).argmax()) == int(split.labels[r]) for r in chosen.tolist()
                )
                assert value(rows, 0, name, part, "accuracy") == pytest.approx(right / len(chosen), abs=1e-12)


@pytest.mark.parametrize("method", ["ERM", "IRM", "VREx", "GroupDRO", "CORAL"])
def test_a_fit_depends_on_the_trial_alone_and_leaves_the_global_generator(split, method):
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = fit(split, method)
    assert torch.equal(torch.random.get_rng_state(), state)
    fit(split, "CORAL", batch_size=32)
    torch.manual_seed(2)
    assert fit(split, method) == first


def test_batches_hold_one_share_of_each_training_environment_and_nothing_else(split):
    batches = batches_of(split, [2, 0], 500, seed=3)
    inputs, labels = next(iter(batches))
    assert inputs.shape == (2, 500, 2, 14, 14)
    for row, environment in enumerate((2, 0)):
        allowed = {split.inputs[r].numpy().tobytes() for r in split.rows_in[environment].tolist()}
        assert {x.numpy().tobytes() for x in inputs[row]} <= allowed
    again = next(iter(batches_of(split, [2, 0], 500, seed=3)))
    assert torch.equal(again[0], inputs)
    assert not torch.equal(next(iter(batches_of(split, [2, 0], 500, seed=4)))[0], inputs)


def test_a_loss_that_is_not_finite_ends_the_trial(split):
    with pytest.raises(FloatingPointError, match="loss of environment .* is (nan|inf) at step 10"):
        fit(split, lr=1e30)


def test_a_method_learns_real_digits():
    split = split_dataset(load_dataset("RotatedMNIST"), seed=0)
    rows = fit(split, budget={"steps": 300, "checkpoint_every": 300}, held_out=("30",))
    assert value(rows, 300, "30", "in", "accuracy") > 0.75
    assert value(rows, 300, "15", "out", "accuracy") > 0.75


def test_erm_follows_the_colour_and_fails_where_it_turns(split):
    rows = fit(split, budget={"steps": 300, "checkpoint_every": 300})
    assert value(rows, 300, "+80%", "out", "accuracy") > 0.75
    assert value(rows, 300, "-90%", "in", "accuracy") < 0.35


def test_wrong_networks_and_too_few_environments_are_named(split):
    with pytest.raises(InputError, match="network: unknown 'resnet'; choose one of linear, mlp, small-cnn, cnn"):
        fit(split, network="resnet")
    with pytest.raises(InputError, match="VREx: needs at least 2 training environments, got 1"):
        fit(split, "VREx", held_out=("+80%", "-90%"))
    with pytest.raises(InputError, match="no environment 'x'"):
        fit(split, held_out=("x",))
    with pytest.raises(InputError, match="cnn needs images"):
        build_network("cnn", (5,), 2, torch.Generator())


def test_cnn_trains_on_pixels(split):
    assert fit(split, network="cnn", budget={"steps": 2, "checkpoint_every": 2}, batch_size=4)


def test_the_import_of_lightning_leaves_scipy_signal_whole():
    import scipy.signal

    assert callable(scipy.signal.butter)
    assert "lightning.pytorch" in sys.modules


def test_rows_are_the_same_however_many_steps_are_drawn_at_once(split):
    together = RowStream(split, [0, 2], 5, seed=3).draw(70)
    one_by_one = RowStream(split, [0, 2], 5, seed=3)
    assert torch.equal(torch.cat([one_by_one.draw(1) for _ in range(70)]), together)
    for place, environment in enumerate((0, 2)):
        assert set(together[:, place].flatten().tolist()) <= set(split.rows_in[environment].tolist())
    batches = iter(batches_of(split, [0, 2], 5, 3))
    for rows in together:
        inputs, labels = next(batches)
        assert torch.equal(inputs, split.inputs[rows])
        assert torch.equal(labels, split.labels[rows])
