"""The autoencoders: alone under `shiftlab train`, stacked in packs, over processes, and what they find."""

import re
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cluster.store import Run
from jobs.train import main as train
from lightning_modules.causal.metrics import linear_r2
from lightning_modules.causal.rep4ex.data import ActionData
from lightning_modules.causal.rep4ex.extrapolation import CoverageWarning, InterventionExtrapolator
from lightning_modules.causal.rep4ex.module import MMRAutoencoder, ramp_at
from lightning_modules.causal.rep4ex.networks import StackedAutoencoder
from lightning_modules.causal.rep4ex.pack import (
    AutoencoderPack,
    Fit,
    Training,
    held_out_loss,
    scales,
    train_autoencoders,
)
from lightning_modules.causal.rep4ex.scm import InterventionSCM
from lightning_modules.causal.rep4ex.statistics import linearity_ratio, median_distance, mmr_statistic
from lightning_modules.causal.rep4ex.tables import extrapolate_table, read_columns
from lightning_modules.errors import InputError
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import quiet_lightning
from lightning_modules.user_modules import read_user_module

METHOD, DATA = (
    "lightning_modules.causal.rep4ex.module:MMRAutoencoder",
    "lightning_modules.causal.rep4ex.data:ActionData",
)
SHORT = Training(steps=40, batch_size=128)


@pytest.fixture(scope="module")
def learned():
    """With and without the restriction, trained for less long than usual."""
    world = InterventionSCM(alpha=4.0, seed=0)
    sample = world.sample(3000)
    fits = [Fit(sample.x, sample.a, 2, weight) for weight in (30.0, 0.0)]
    return world, sample, train_autoencoders(fits, Training(steps=500))


def test_the_restriction_finds_the_latents_and_the_ratio_says_so(learned):
    world, _, (restricted, plain) = learned
    fresh = world.sample(1500, 1)
    r2, ratio = (
        [score(one.module.encode(fresh.x)) for one in (restricted, plain)]
        for score in (lambda phi: linear_r2(fresh.z, phi), lambda phi: linearity_ratio(phi, fresh.a))
    )
    assert r2[0] > 0.96
    assert r2[0] > r2[1] + 0.1
    assert ratio[0] < 3
    assert ratio[1] > 5
    assert linearity_ratio(fresh.z, fresh.a) < 1.5
    assert not restricted.folded
    assert restricted.restriction < 0.3 * plain.restriction


def test_effects_are_extrapolated(learned):
    world, sample, (restricted, plain) = learned
    targets = np.random.default_rng(0).uniform(-1.4, 1.4, (60, 2))
    truth = world.do_mean(targets)
    errors = []
    for one in (restricted, plain):
        extrapolator = InterventionExtrapolator(encoder=one.module).fit(sample.x, sample.a, sample.y)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CoverageWarning)
            errors.append(((extrapolator.predict_do(targets) - truth) ** 2).mean())
    assert errors[0] < 0.3 * truth.var()
    assert errors[0] < 0.5 * errors[1]


def test_a_pack_is_each_model_alone():
    sample = InterventionSCM(seed=0).sample(600)
    other = InterventionSCM(seed=1, alpha=4.0).sample(600)
    fits = [
        Fit(sample.x, sample.a, 2, 0.0, seed=1),
        Fit(sample.x, sample.a, 2, 30.0),
        Fit(other.x, other.a, 2, 3.0, 1.0),
    ]
    together = train_autoencoders(fits, SHORT)
    for fit, one in zip(fits, together, strict=True):
        (alone,) = train_autoencoders([fit], SHORT)
        assert one.module.hparams["lambda_mmr"] == fit.lambda_mmr
        assert one.module.encode(fit.x) == pytest.approx(alone.module.encode(fit.x), abs=2e-3)
        assert one.reconstruction == pytest.approx(alone.reconstruction, rel=1e-3)
    assert np.abs(together[0].module.encode(sample.x) - together[1].module.encode(sample.x)).max() > 0.1


def test_blocks_of_updates_are_as_many_as_asked_for():
    sample = InterventionSCM(seed=0).sample(100)
    pack = AutoencoderPack([Fit(sample.x, sample.a, 2)], Training(steps=60, batch_size=20))
    before = [weight.detach().clone() for weight in pack.parameters()]
    drawn = []
    draw = pack._draw
    pack._draw = lambda: drawn.append(pack.global_step) or draw()
    with quiet_lightning():
        make_trainer(60, []).fit(pack)
    assert drawn == list(range(60))
    assert pack.lr_schedulers().last_epoch == 60
    assert all((old != new).any() for old, new in zip(before, pack.parameters(), strict=True))


def test_training_repeats_exactly_and_draws_nothing_global():
    sample = InterventionSCM(seed=0).sample(300)
    before = torch.get_rng_state()
    first, second = (train_autoencoders([Fit(sample.x, sample.a, 2)], SHORT)[0].module.encode(sample.x) for _ in "ab")
    assert (first == second).all()
    assert (torch.get_rng_state() == before).all()


def test_the_restart_with_the_least_held_out_loss_is_kept():
    sample = InterventionSCM(seed=0).sample(600)
    fit = Fit(sample.x, sample.a, 2, seed=3)
    order = np.random.default_rng([3, 95]).permutation(600)
    held, rest = (Fit(sample.x[rows], sample.a[rows], 2, seed=3) for rows in (order[:60], order[60:]))
    each = train_autoencoders([replace(rest, seed=3 + 1009 * restart) for restart in range(4)], SHORT)
    losses = [held_out_loss(one.module, held) for one in each]
    (best,) = train_autoencoders([fit], SHORT, restarts=4)
    assert best.module.hparams["seed"] == 3 + 1009 * int(np.argmin(losses))
    module, spread, width = each[0].module, rest.x.std(0), 0.3 * median_distance(rest.a)
    with torch.no_grad():
        x = torch.from_numpy((held.x - rest.x.mean(0)) / spread).float()
        error = float((module.networks(x[None])[1][0] - x).square().mean())
    assert losses[0] == pytest.approx(error + 30 * mmr_statistic(module.encode(held.x), held.a, width), rel=1e-4)
    few = Fit(sample.x[:200], sample.a[:200], 2)  # 20 rows are too few to choose by: all are trained on
    (alone, again) = (train_autoencoders([few], Training(steps=3), restarts=count)[0] for count in (1, 2))
    seed = again.module.hparams["seed"]
    same = alone if seed == 0 else train_autoencoders([replace(few, seed=seed)], Training(steps=3))[0]
    assert again.module.encode(few.x) == pytest.approx(same.module.encode(few.x), abs=1e-4)


def test_pixels_share_one_spread():
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (500, 4), dtype=np.uint8)
    pixels[:, 3] = 7
    pixels[0, 3] = 9
    a = generator.uniform(-1, 1, (500, 2))
    mean, spread, _ = scales(pixels, a)
    assert mean == pytest.approx(pixels.astype(float).mean(0))
    assert spread == pytest.approx(np.full(4, np.sqrt(pixels.astype(float).var(0).mean())))
    assert scales(pixels.astype(float), a)[1] == pytest.approx(pixels.astype(float).std(0))
    (trained,) = train_autoencoders([Fit(pixels, a, 2)], Training(steps=2))
    assert trained.module.spread.numpy() == pytest.approx(spread, rel=1e-5)
    extrapolator = InterventionExtrapolator(2, restarts=1, training=Training(steps=2))
    with pytest.warns(UserWarning, match="may be folded"):
        extrapolator.fit(pixels, a, a[:, 0])
    assert extrapolator.trained.module.spread.numpy() == pytest.approx(spread, rel=1e-5)


def test_the_restriction_finds_the_place_of_a_digit():
    world = InterventionSCM(dim_x=400, alpha=4.0, mixing="sprites")
    sample, fresh = world.sample(1000), world.sample(1000, 1)
    fits = [Fit(sample.x, sample.a, 2, weight) for weight in (30.0, 0.0)]
    restricted, plain = train_autoencoders(fits, Training(steps=250, batch_size=128))
    scores = [linear_r2(fresh.z, one.module.encode(fresh.x)) for one in (restricted, plain)]
    assert scores[0] > 0.97
    assert scores[0] > scores[1] + 0.05


def test_reading_back_a_stack():
    stack, one = StackedAutoencoder(5, 2, 8, 2, [0, 1]), StackedAutoencoder(5, 2, 8, 2, [7])
    one.take(stack, 1)
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    phi, reconstruction = stack(x.expand(2, -1, -1))
    assert torch.allclose(one(x[None])[0][0], phi[1], atol=1e-6)
    assert torch.allclose(one(x[None])[1][0], reconstruction[1], atol=1e-6)
    assert not torch.allclose(phi[0], phi[1], atol=0.01)


def test_the_ramp():
    assert [ramp_at(step, 10) for step in (0, 5, 10, 50)] == [0, 0.5, 1, 1]
    assert ramp_at(0, 0) == 1


def test_it_trains_as_a_module_of_ones_own(tmp_path, capsys):
    words = [f"--method={METHOD}", f"--dataset={DATA}", "--workers=0", "--steps=160", "--checkpoint_every=20"]
    assert train([*words, "--hyperparameters", "{rows: 2000, alpha: 4.0}", f"--run={tmp_path}"]) == 0
    rows = Run(str(tmp_path)).read("metrics").to_pylist()
    losses = [r["value"] for r in sorted(rows, key=lambda r: r["step"]) if r["metric"] == "val_loss"]
    assert losses[-1] < 0.3 * losses[0]
    assert {"val_loss", "val_mmr", "val_reconstruction", "train_loss"} <= {r["metric"] for r in rows}
    path = re.search(r"weights: (.*)", capsys.readouterr().out)[1]
    module = MMRAutoencoder.load_from_checkpoint(path, weights_only=True)
    world = InterventionSCM(alpha=4.0)
    sample = world.sample(2000)
    mean, spread, distance = scales(sample.x, sample.a)
    assert module.mean.numpy() == pytest.approx(mean, abs=1e-5)
    assert module.spread.numpy() == pytest.approx(spread, rel=1e-5)
    assert float(module.distance) == pytest.approx(distance, rel=1e-5)
    assert linear_r2(world.sample(1000, 2).z, module.encode(world.sample(1000, 2).x)) > 0.6


def test_parts_of_a_batch_have_the_gradient_of_the_whole():
    sample = InterventionSCM(seed=0).sample(257)
    x, a = (torch.from_numpy(part).float() for part in (sample.x, sample.a))
    box: dict[int, torch.Tensor] = {}
    barrier = threading.Barrier(2, timeout=60)

    def gradient(rank, world_size, rows):
        module = MMRAutoencoder(lambda_mmr=300.0, ramp=0.0, seed=1)

        def all_gather(values):
            box[rank] = values
            barrier.wait()
            found = torch.stack([box[0], box[1]])
            barrier.wait()  # before the next replaces it
            return found

        module.trainer = SimpleNamespace(
            world_size=world_size, global_rank=rank, estimated_stepping_batches=9, global_step=1
        )
        module.all_gather, module.log = all_gather, lambda *_: None
        module.training_step((x[rows], a[rows]), 0).backward()
        return [len(x[rows]) / len(x) * weight.grad for weight in module.parameters()]

    whole = gradient(0, 1, slice(None))
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(gradient, (0, 1), (2, 2), (slice(128), slice(128, None))))  # of unequal length
    for one, first, second in zip(whole, *parts, strict=True):
        torch.testing.assert_close(first + second, one, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_two_workers_learn_what_one_process_does(tmp_path, ray_session, capsys):
    words = [f"--method={METHOD}", f"--dataset={DATA}", "--steps=6", "--checkpoint_every=3"]
    words += [
        "--hyperparameters",
        "{rows: 1200, batch_size: 257, lambda_mmr: 300.0, ramp: 0.0}",
    ]  # parts of 128 and 129
    assert train([*words, "--workers=0", f"--run={tmp_path}/one"]) == 0
    assert train([*words, "--workers=2", "--verify_every=3", f"--run={tmp_path}/two"]) == 0
    one, two = (
        torch.load(next((tmp_path / run / "models").iterdir()), weights_only=True)["state_dict"]
        for run in ("one", "two")
    )
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4)


def test_hyperparameters_are_found_with_their_ranges():
    user = read_user_module(METHOD, DATA)
    assert {"lambda_mmr", "bandwidth", "lr", "width", "depth", "ramp", "batch_size"} == set(user.search_space())
    assert user.complete({})["dim_x"] == 10
    with pytest.raises(InputError, match="dim_a: 1 actions cannot move 2 latents"):
        user.fit({"dim_a": 1}, {"steps": 1, "checkpoint_every": 1}, lambda name: 0)


def table_of(tmp_path, suffix):
    world = InterventionSCM(1, 1, 3, 1.0, 1.2, "curve", seed=2)
    a, _, x, y = world.sample(1500)
    table = pa.table({"a": a[:, 0], **{f"x{i}": x[:, i] for i in range(3)}, "y": y})
    targets = pa.table({"a": [0.0, 2.0, 40.0]})
    paths = [tmp_path / f"{name}{suffix}" for name in ("rows", "targets")]
    for path, content in zip(paths, (table, targets), strict=True):
        (pa.csv.write_csv if suffix == ".csv" else pq.write_table)(content, path)
    return world, paths


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_of_ones_own(tmp_path, suffix):
    world, (rows, targets) = table_of(tmp_path, suffix)
    extrapolator = InterventionExtrapolator(1, restarts=1, training=Training(steps=250))
    found = extrapolate_table(rows, targets, "a", "x*", "y", extrapolator)
    assert found.column_names == ["a", "prediction", "outside", "uncovered"]
    assert found["uncovered"].to_pylist() == [False, False, True]
    prediction = found["prediction"].to_numpy()
    assert np.abs(prediction[:2] - world.do_mean(np.array([[0.0], [2.0]]))).max() < 0.7
    assert prediction[1] > prediction[0] + 1
    with pytest.warns(CoverageWarning, match="1 of 3 actions move most latents out of"):
        extrapolator.predict_do(np.array([[0.0], [2.0], [40.0]]))
    data = ActionData(1, 1, 3, table=str(rows), a="a", seed=1)
    data.setup()
    assert [len(part) for part in data._parts] == [1200, 300]
    x, a = data._parts[0][:]
    assert (x.shape, a.shape) == ((1200, 3), (1200, 1))


def test_columns_of_lists_and_bad_columns(tmp_path):
    path = tmp_path / "t.parquet"
    content = {"x": [[1.0, 2.0], [3.0, 4.0]], "a": [1, 2], "s": ["u", "v"], "n": [1.0, None], "r": [[1.0], [1.0, 2.0]]}
    pq.write_table(pa.table(content), path)
    values, names = read_columns(path, "x, a")
    assert values.tolist() == [[1, 2, 1], [3, 4, 2]]
    assert names == ["x_0", "x_1", "a"]
    for column, words in (
        ("z", "has no column 'z'; it has x, a, s, n, r"),
        ("q*", r"has no column 'q\*'"),
        ("s", "column s: .*u: cannot be read as an image"),
        ("n", "column n has 1 empty"),
        ("r", "column r is list"),
    ):
        with pytest.raises(InputError, match=words):
            read_columns(path, column)
    with pytest.raises(InputError, match="cannot be read"):
        read_columns(tmp_path / "missing.parquet", "a")
    with pytest.raises(InputError, match="is no .csv"):
        read_columns(tmp_path / "t.xls", "a")


def test_actions_under_a_pattern_are_asked_for_by_name(tmp_path):
    sample = InterventionSCM(seed=0).sample(400)
    columns = {f"a{i}": sample.a[:, i] for i in range(2)} | {"x": list(sample.x), "y": sample.y}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    pq.write_table(pa.table({"a1": [0.5], "about": ["x"], "a0": [0.1]}), tmp_path / "targets.parquet")
    extrapolator = InterventionExtrapolator(2, restarts=1, training=Training(steps=10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # ten steps are too few
        found = extrapolate_table(tmp_path / "rows.parquet", tmp_path / "targets.parquet", "a*", "x", "y", extrapolator)
    assert found.to_pylist()[0].items() >= {"a0": 0.1, "a1": 0.5}.items()


def test_bad_input_is_named():
    a, z, x, y = InterventionSCM().sample(50)
    for given, words in (
        ((x, a[:, :1], 2), "dim_a: 1 actions cannot move 2 latents"),
        ((x[:, :1], a, 2), "dim_x: 1 features cannot hold 2 latents"),
        ((x[:3], a[:3], 2), "a: 3 rows do not determine"),
        ((x[:9], a[:8], 2), "a: has 8 rows, x 9"),
        ((x, a * [1, 0], 2), "a: column 1 is constant"),
        ((x, a[:, [0, 0]], 2), "collinear"),
        ((np.where(x > 0, x, np.nan), a, 2), "x: row"),
    ):
        with pytest.raises(InputError, match=words):
            Fit(*given)
    extrapolator = InterventionExtrapolator(2)
    for call in (lambda: extrapolator.predict_do(a), lambda: extrapolator.predict_conditional(x, a)):
        with pytest.raises(InputError, match="call fit first"):
            call()
    with pytest.raises(InputError, match="y: has 49 rows"):
        extrapolator.fit(x, a, y[:49])
    with pytest.raises(InputError, match="x: has 3 features, the encoder takes 10"):
        MMRAutoencoder().encode(x[:, :3])
    with pytest.raises(InputError, match="dim_x: is 10, the data have 4 features"):
        MMRAutoencoder().standardise(np.zeros(4), np.ones(4), 1.0)
    for values, words in (
        ({"lr": 0.0}, "lr: is 0"),
        ({"lambda_mmr": -1.0}, "lambda_mmr"),
        ({"estimator": "w"}, "estimator"),
    ):
        with pytest.raises(InputError, match=words):
            MMRAutoencoder(**values)
    with pytest.raises(InputError, match="batch_size: 3 rows"):
        ActionData(batch_size=3)


def test_a_folded_encoder_is_warned_about():
    a, _, x, y = InterventionSCM().sample(300)
    with pytest.warns(UserWarning, match="of the features' variance: it may be folded"):
        InterventionExtrapolator(2, restarts=1, training=Training(steps=2)).fit(x, a, y)


def pictures(folder, z, size=6):
    """A bright square whose place is the latent, sharp to a tenth of a pixel."""
    at = np.arange(size) + 0.5
    for number, place in enumerate(z):
        row = np.clip(1.5 - np.abs(at - size * (0.5 + place / 8)), 0, 1)
        image = np.round(255 * np.tile(row, (size, 1))).astype(np.uint8)
        Image.fromarray(image).convert("RGB").save(folder / f"{number}.png")
    return [f"{number}.png" for number in range(len(z))]


@pytest.mark.filterwarnings("ignore:the autoencoder leaves")
def test_features_may_be_images_by_their_paths(tmp_path):
    world = InterventionSCM(1, 1, 2, 1.0, 1.0, "linear", seed=0)
    sample = world.sample(60)
    names = pictures(tmp_path, sample.z[:, 0])
    pq.write_table(pa.table({"picture": names, "dose": sample.a[:, 0], "y": sample.y}), tmp_path / "rows.parquet")
    pixels, labels = read_columns(tmp_path / "rows.parquet", "picture")
    assert pixels.shape == (60, 3 * 36)
    assert labels[0] == "picture_0"
    assert pixels.dtype == np.uint8
    centre = pixels[:, :6] @ np.arange(6.0) / pixels[:, :6].sum(1)
    assert np.corrcoef(centre, sample.z[:, 0])[0, 1] > 0.98
    (tmp_path / "targets.csv").write_text("dose\n0.5\n")
    extrapolator = InterventionExtrapolator(dim_z=1, training=Training(steps=5))
    found = extrapolate_table(tmp_path / "rows.parquet", tmp_path / "targets.csv", "dose", "picture", "y", extrapolator)
    assert np.isfinite(found["prediction"].to_numpy()).all()

    Image.new("RGB", (7, 6)).save(tmp_path / "3.png")
    with pytest.raises(
        InputError, match=r"column picture: .*3\.png: is 6 x 7 pixels, 0\.png 6 x 6; scale all images to one size"
    ):
        read_columns(tmp_path / "rows.parquet", "picture")
    (tmp_path / "3.png").unlink()
    with pytest.raises(InputError, match=r"3\.png: cannot be read as an image \(No such file or directory\)"):
        read_columns(tmp_path / "rows.parquet", "picture")
