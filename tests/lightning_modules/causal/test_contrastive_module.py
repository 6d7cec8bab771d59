"""Training: alone, in packs, by `shiftlab train`; what is found, and what is not where the assumptions are broken."""

import numpy as np
import pytest
import torch

from cluster.store import Run
from jobs.train import main as train
from lightning_modules.causal.contrastive.baselines import fit_autoencoder, principal_components
from lightning_modules.causal.contrastive.data import GivenData, InterventionalData, InterventionalRows
from lightning_modules.causal.contrastive.environments import InterventionalDataset, simulate
from lightning_modules.causal.contrastive.fits import fit_linear, fit_module, go_on
from lightning_modules.causal.contrastive.losses import CHANCE
from lightning_modules.causal.contrastive.module import ContrastiveCRLModule
from lightning_modules.causal.contrastive.pack import Fit, Training, train_pack
from lightning_modules.causal.contrastive.recovery import find, held_out_cross_entropy, latents_found, recovery
from lightning_modules.errors import InputError

MODULE = "lightning_modules.causal.contrastive.module:ContrastiveCRLModule"
DATA = "lightning_modules.causal.contrastive.data:InterventionalData"


@pytest.fixture(scope="module")
def worlds():
    return [simulate(3, 2.0, 20, 3000, "mlp", seed, n_test=2000) for seed in range(2)]


@pytest.fixture(scope="module")
def trained(worlds):
    return train_pack([Fit(world.data, seed) for seed, world in enumerate(worlds)], Training(steps=800))


def test_latents_and_graph_are_found(worlds, trained):
    for world, one in zip(worlds, trained, strict=True):
        found = recovery(one.module, world)
        assert found["MCC"] >= 0.94
        assert found["MCC held-out"] >= 0.94
        assert found["SHD"] <= 2
        assert world.bayes - 0.05 < one.cross_entropy < world.bayes + 0.05
        assert held_out_cross_entropy(one.module, one.held_out).mean() == pytest.approx(one.cross_entropy, abs=1e-4)
        assert one.module.latent_spread.numpy() == pytest.approx(
            one.module.transform(one.training.x_obs).std(0), rel=1e-4
        )


def test_it_separates_what_baselines_mix(worlds, trained):
    world, one = worlds[0], trained[0]
    ours = recovery(one.module, world)["MCC"]
    code = latents_found(world, fit_autoencoder(world.data, 400).transform(world.x_test))
    assert code["R2"] > 0.85  # the code has the information
    assert ours > code["MCC"] + 0.1  # 0.1 to 0.2 by the autoencoder's seed
    components = latents_found(world, principal_components(world.data, world.x_test))
    assert ours > components["MCC"] + 0.15
    (free,) = train_pack([Fit(world.data)], Training(steps=400, head="linear"))
    assert ours > recovery(free.module, world)["MCC"] + 0.1
    with pytest.raises(InputError, match="head: a linear head has no graph"):
        free.module.edge_scores()


def test_a_linear_encoder_finds_a_linear_mixing_exactly():
    world = simulate(5, 2.0, 5, 10_000, "linear", 1)
    one = fit_linear(world.data, 1)
    found = recovery(one.module, world)
    assert found["MCC"] >= 0.995
    assert found["SHD"] == 0
    assert found["weight error"] < 0.15
    assert abs(one.cross_entropy - world.bayes) < 0.003
    assert found["SHD raw"] > 0  # raw weights have no common scale


def test_without_interventions_or_with_shuffled_ones_nothing_is_found():
    world = simulate(3, 2.0, 6, 2000, "linear", 0)
    nothing, shuffled = world.data.without_interventions(0), world.data.shuffled(0)
    training = Training(steps=300, encoder="linear", lr=1e-2)
    one, other, right = train_pack([Fit(nothing), Fit(shuffled), Fit(world.data)], training)
    assert abs(one.cross_entropy - CHANCE) < 0.01
    assert recovery(one.module, world)["MCC"] < 0.8
    assert recovery(right.module, world)["MCC"] > 0.94
    assert recovery(other.module, world)["MCC"] < 0.8
    assert sorted(map(tuple, np.concatenate(shuffled.x_int))) == sorted(map(tuple, np.concatenate(world.data.x_int)))


def test_the_order_of_environments_is_the_order_of_coordinates():
    world = simulate(5, 2.0, 5, 4000, "linear", 1)
    order = [3, 0, 4, 1, 2]
    turned = world.reordered(order)
    one = fit_linear(turned.data)
    found = recovery(one.module, turned)
    assert found["SHD"] == 0
    assert recovery(one.module, world)["SHD"] >= 4  # the graph must be re-indexed
    z = one.module.transform(world.x_test)
    pairs = np.abs(np.corrcoef(z.T, world.z_test.T)[:5, 5:])
    assert pairs.argmax(1).tolist() == order


def test_training_on_overfits_and_the_best_validation_is_kept(worlds, trained):
    start = trained[0]
    # Few rows make it quick to overfit.
    training, held = start.held_out, start.training
    few = start.__class__(start.module, float(held_out_cross_entropy(start.module, held).mean()), 0, training, held)
    after, kept = go_on(few, 6, keep_best=False), go_on(few, 6, keep_best=True, patience=2)
    assert after.steps == 6
    assert kept.steps < 6
    assert (
        held_out_cross_entropy(after.module, training).mean()
        < held_out_cross_entropy(few.module, training).mean() - 0.05
    )
    assert after.cross_entropy > few.cross_entropy + 0.05
    assert kept.cross_entropy <= few.cross_entropy
    mcc = [recovery(one.module, worlds[0])["MCC"] for one in (few, after, kept)]
    assert mcc[1] < mcc[0] - 0.02
    assert mcc[2] > mcc[0] - 0.005


def test_a_pack_is_its_models_alone(worlds):
    training = Training(steps=30, check_every=10)
    fits = [Fit(world.data, seed) for seed, world in enumerate(worlds)]
    both = train_pack(fits, training)
    for fit, together in zip(fits, both, strict=True):
        (alone,) = train_pack([fit], training)
        assert alone.cross_entropy == pytest.approx(together.cross_entropy, abs=1e-4)
        x = fit.data.x_obs[:50]
        assert np.abs(alone.module.transform(x) - together.module.transform(x)).max() < 1e-2
    best = train_pack(fits[:1], training, restarts=3)[0]
    each = [train_pack([Fit(worlds[0].data, 1009 * r)], training)[0].cross_entropy for r in range(3)]
    assert best.cross_entropy == pytest.approx(min(each), abs=1e-4)


def test_a_pack_holds_nothing_twice_and_splits_as_data_do():
    x = np.random.default_rng(0).integers(0, 256, (40, 192), dtype=np.uint8)
    data = InterventionalDataset(x[:20], [x[10:25], x[5:35]])
    (one,) = train_pack([Fit(data, 3)], Training(steps=1, batch_size=4, encoder="conv"))
    for found, expected in zip((one.training, one.held_out), data.split(0.2, 3), strict=True):
        for rows, right in zip(found.arrays, expected.arrays, strict=True):
            assert np.array_equal(rows, right)
        assert found.x_obs.base is not None  # a view of the pack's rows
        assert found.x_int[0].base is found.x_obs.base


def test_images_and_rows_of_one_shape_are_packed_apart():
    x = np.random.default_rng(0).integers(0, 256, (20, 192), dtype=np.uint8)
    pixels = InterventionalDataset(x, [x, x])
    numbers = InterventionalDataset(x / 255, [x / 255, x / 255])
    one, two = train_pack([Fit(pixels), Fit(numbers)], Training(steps=2, batch_size=8, check_every=1))
    assert one.training.is_image
    assert not two.training.is_image
    assert one.module.transform(x).shape == two.module.transform(numbers.x_obs).shape


def test_the_best_weights_come_back_and_patience_ends(worlds):
    training, held = worlds[0].data.split(0.5, 0)
    wild = {"dim_z": 3, "lr": 0.05, "lr_head": 0.05, "width": 512, "kappa": 0.0}
    values = {}
    for keep in (True, False):
        module = ContrastiveCRLModule(**wild, keep_best=keep, schedule="plateau", patience=3)
        steps = fit_module(module, GivenData(training, held, 128), 600, 10)
        assert steps < 600
        values[keep] = held_out_cross_entropy(module.eval(), held).mean()
    assert values[True] < values[False] - 0.005


def test_the_plateau_schedule_cuts_learning_rates_where_nothing_is_gained(worlds):
    class Watched(ContrastiveCRLModule):
        def on_train_end(self):
            self.rates = [group["lr"] for group in self.trainer.optimizers[0].param_groups]

    wild = {"lr": 0.05, "lr_head": 0.1, "width": 512}
    module = Watched(20, 3, **wild, schedule="plateau")
    fit_module(module, GivenData(*worlds[0].data.split(0.5, 0), 128), 200, 10)
    cuts = round(float(np.log(module.rates[0] / 0.05) / np.log(0.3)))
    assert cuts >= 1
    assert module.rates == pytest.approx([0.05 * 0.3**cuts, 0.1 * 0.3**cuts])


def test_the_plateau_schedule_waits_for_more_than_three_validations_as_torch_does():
    module = ContrastiveCRLModule(4, 2, schedule="plateau")
    mine, theirs = (torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0) for _ in range(2))
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, factor=0.3, patience=3)
    state = type("State", (), {"fn": "fit"})
    module._trainer = type("Trainer", (), {"state": state, "sanity_checking": False, "optimizers": [mine]})()
    rates = []
    for value in (1.0, 1.1, 0.9, *[1.0] * 9, 0.8, *[1.0] * 4):
        module._validated = [torch.tensor([1.0, value, 0, 0, 0, 0], dtype=torch.float64)]
        module.on_validation_epoch_end()
        reference.step(value)
        rates.append(mine.param_groups[0]["lr"])
        assert rates[-1] == pytest.approx(theirs.param_groups[0]["lr"])
    assert len(set(rates)) == 4


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_lbfgs_that_steps_into_nan_is_said():
    with pytest.raises(FloatingPointError, match="L-BFGS stepped too far"):
        fit_linear(simulate(5, 2.0, 5, 10_000, "linear", 1, shift=False).data, 1, steps=10)


def test_components_hold_what_a_linear_mixing_holds():
    world = simulate(3, 2.0, 12, 1000, "linear", 0, n_test=500)
    assert latents_found(world, principal_components(world.data, world.x_test))["R2"] > 1 - 1e-6


def test_penalties_and_centering_are_weighed():
    data = InterventionalRows(simulate(3, 2.0, 6, 64, "linear", 0, n_test=4).data)
    batch = data.__getitems__(list(range(64)))

    def loss(**weights):
        module = ContrastiveCRLModule(6, 3, **{"eta": 0.0, "mu": 0.0, "kappa": 0.0, **weights})
        module.log = lambda *_: None
        module._trainer = type("Alone", (), {"world_size": 1})()
        with torch.no_grad():
            module.head.parents += 0.5
            return float(module.training_step(batch, 0)), module(batch[0])

    plain, z = loss()
    assert loss(eta=1.0)[0] - plain == pytest.approx(3.0, abs=1e-4)  # six entries of 0.5
    matrix = torch.full((3, 3), 0.25) - 0.25 * torch.eye(3)
    assert loss(mu=2.0)[0] - plain == pytest.approx(2 * float(torch.linalg.matrix_exp(matrix).trace() - 3), abs=1e-4)
    assert loss(kappa=5.0)[0] - plain == pytest.approx(5 * float(z.mean(0).square().sum()), abs=1e-4)


def test_scores_do_not_depend_on_the_scales_of_coordinates(worlds, trained):
    """Encodings times a factor with the head to match: the same classifier, the same scores; raw weights differ."""
    source = trained[0].module
    module = ContrastiveCRLModule(20, 3)
    module.load_state_dict(source.state_dict())
    factor = torch.tensor([10.0, 0.1, 1.0])
    with torch.no_grad():
        module.encoder.get_parameter("weight_1").mul_(factor)
        module.encoder.get_parameter("bias_1").mul_(factor)
        module.latent_spread.mul_(factor)
        for name in ("slope", "curvature", "scale"):
            getattr(module.head, name).div_(factor)
        module.head.parents.mul_(factor[:, None] / factor)
    x = worlds[0].x_test[:200]
    assert module.log_odds(x) == pytest.approx(source.log_odds(x), abs=1e-3)
    assert module.adjacency() == pytest.approx(source.adjacency(), rel=1e-4)
    assert module.edge_scores() == pytest.approx(source.edge_scores(), rel=1e-4)
    assert not np.allclose(module.adjacency(scaled=False), source.adjacency(scaled=False), rtol=0.5)


def test_rows_are_taken_at_once_and_small_environments_start_over():
    x = np.arange(12.0).reshape(4, 3)
    rows = InterventionalRows(InterventionalDataset(x, [x[:2], x[1:]]))
    assert len(rows) == 4
    obs, interventional = rows.__getitems__([3, 0])
    assert obs.tolist() == x[[3, 0]].tolist()
    assert interventional[:, 0].tolist() == x[[1, 0]].tolist()
    assert interventional[:, 1].tolist() == x[[1, 1]].tolist()
    assert torch.equal(rows[3][1], interventional[0])


def rows_of(run, metric="val_loss"):
    found = [m for m in Run(str(run)).read("metrics").to_pylist() if m["metric"] == metric]
    return [m["value"] for m in sorted(found, key=lambda m: m["step"])]


def test_shiftlab_trains_it(tmp_path, capsys):
    given = "{dim_z: 3, rows: 1500, batch_size: 128, width: 64}"
    words = [f"--method={MODULE}", f"--dataset={DATA}", f"--hyperparameters={given}", "--workers=0"]
    assert train([*words, "--steps=300", "--checkpoint_every=50", f"--run={tmp_path}"]) == 0
    losses = rows_of(tmp_path)
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.05
    assert losses[-1] < CHANCE - 0.1
    (path,) = (tmp_path / "models").iterdir()
    module = ContrastiveCRLModule.load_from_checkpoint(path, map_location="cpu")
    data = InterventionalData(dim_z=3, rows=1500)
    data.setup()
    found = find(module.eval(), data.held_out)
    assert found.cross_entropy.mean() == pytest.approx(min(losses), abs=1e-3)  # the best weights, scales and all
    assert (found.told_apart > 0).all()
    tables = found.tables()
    assert tables["latents"].shape == (300, 3)
    assert tables["edges"]["score"].to_pylist() == sorted(found.edge_scores[~np.eye(3, dtype=bool)], reverse=True)
    assert train([*words, "--steps=50", "--hyperparameters={dim_z: 4, dim_x: 3}", f"--run={tmp_path}/x"]) == 1
    assert "dim_x: 3 features for 4 latents" in capsys.readouterr().err


def test_the_centering_of_parts_of_a_batch_is_that_of_the_whole():
    """Values and gradients of uneven parts, averaged by their shares, as processes do."""
    z = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)) + 1
    whole = z.clone().requires_grad_()
    expected = whole.mean(0).square().sum()
    expected.backward()
    module = ContrastiveCRLModule(6, 3)
    module._trainer = type("Two", (), {"world_size": 2})()
    parts = [z[:7].clone().requires_grad_(), z[7:].clone().requires_grad_()]
    sums = torch.stack([torch.cat([part.detach().sum(0), torch.tensor([float(len(part))])]) for part in parts])
    module.all_gather = lambda own: sums
    value = sum(module._centering(part) * len(part) / 10 for part in parts)
    value.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(torch.cat([part.grad for part in parts]), whole.grad, atol=1e-6)


@pytest.mark.slow
def test_two_workers_learn_what_one_does(tmp_path, ray_session):
    """Uneven parts of a batch included; the centering is that of the whole batch."""
    given = "{dim_z: 3, kappa: 1.0, rows: 501, batch_size: 101, width: 16}"
    words = [f"--method={MODULE}", f"--dataset={DATA}", f"--hyperparameters={given}", "--steps=20"]
    for workers in (0, 2):
        run = f"--run={tmp_path}/{workers}"
        assert train([*words, "--checkpoint_every=10", f"--workers={workers}", run]) == 0
    (alone,), (together,) = (list((tmp_path / str(w) / "models").iterdir()) for w in (0, 2))
    alone, together = (torch.load(path, weights_only=True)["state_dict"] for path in (alone, together))
    assert max(float((alone[name] - together[name]).abs().max()) for name in alone) < 1e-5
    assert rows_of(tmp_path / "0") == pytest.approx(rows_of(tmp_path / "2"), abs=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dim_x": 3}, "dim_x: 3 features for 5 latents"),
        ({"dim_z": 1}, "give 2 latents or more"),
        ({"lr": 0.0}, "lr: is 0.0; give a positive number"),
        ({"eta": -1.0}, "eta: is -1.0; give 0 or more"),
        ({"optimizer": "sgd"}, "optimizer: unknown 'sgd'"),
        ({"schedule": "cosine"}, "schedule: unknown 'cosine'"),
        ({"encoder": "conv"}, "dim_x: 20 is no 3 x side x side"),
    ],
)
def test_settings_are_checked(given, message):
    with pytest.raises(InputError, match=message):
        ContrastiveCRLModule(**given)


def test_module_and_data_must_fit(worlds):
    module = ContrastiveCRLModule(20, 4)
    data = GivenData(*worlds[0].data.split(0.2, 0))
    with pytest.raises(InputError, match="dim_z: is 4, the data have 3 environments"):
        fit_module(module, data, 1)
    with pytest.raises(InputError, match="dim_x: is 21, the data have 20 features"):
        fit_module(ContrastiveCRLModule(21, 3), data, 1)
    with pytest.raises(InputError, match=r"x: has shape \[4, 19\]"):
        module.transform(np.zeros((4, 19)))
    with pytest.raises(InputError, match="x: has NaN"):
        module.transform(np.full((4, 20), np.nan))
