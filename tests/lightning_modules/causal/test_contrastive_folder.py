"""A person's own data: rows and images in a folder."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lightning_modules.causal.contrastive.data import InterventionalData
from lightning_modules.causal.contrastive.environments import simulate
from lightning_modules.causal.contrastive.fits import fit_module
from lightning_modules.causal.contrastive.folder import read_interventional_folder, read_rows
from lightning_modules.causal.contrastive.losses import CHANCE
from lightning_modules.causal.contrastive.module import ContrastiveCRLModule
from lightning_modules.causal.contrastive.recovery import find
from lightning_modules.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Rows of a linear world in all kinds of files, of unequal numbers."""
    data = simulate(2, 1.0, 4, 600, "linear", 0, n_test=4).data
    np.save(tmp_path / "obs.npy", data.x_obs)
    pq.write_table(pa.table({f"x{i}": data.x_int[0][:, i] for i in range(4)}), tmp_path / "env_1.parquet")
    pq.write_table(pa.table({"x": list(data.x_int[1][:400])}), tmp_path / "env_2.parquet")
    (tmp_path / "notes.txt").write_text("left out")
    return tmp_path, data


def test_rows_are_read_and_trained_on(folder):
    path, data = folder
    read = read_interventional_folder(path)
    assert (read.d, read.dx) == (2, 4)
    assert np.array_equal(read.x_obs, data.x_obs)
    assert np.array_equal(read.x_int[0], data.x_int[0])
    assert np.array_equal(read.x_int[1], data.x_int[1][:400])
    source = InterventionalData(4, 2, folder=str(path), batch_size=128)
    module = ContrastiveCRLModule(4, 2, "linear", lr=0.05, lr_head=0.05)
    fit_module(module, source, 60, 20)
    found = find(module.eval(), source.held_out)
    assert found.latents.shape == (120, 2)
    assert (found.cross_entropy < CHANCE - 0.03).all()


def test_images_are_read_as_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 9, 8, 3), dtype=np.uint8)
    for name, images in zip(("obs", "env_1", "env_2"), pixels, strict=True):
        (tmp_path / name).mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{number}.png")
    read = read_interventional_folder(tmp_path, 2)
    assert read.is_image
    assert np.array_equal(read.x_int[1].reshape(5, 3, 9, 8), pixels[2].transpose(0, 3, 1, 2))
    for number, images in enumerate(pixels):
        np.save(tmp_path / "again.npy", images.transpose(0, 3, 1, 2))
        rows = read.x_int[number - 1] if number else read.x_obs
        assert np.array_equal(read_rows(tmp_path / "again.npy"), rows)
    mean, spread = read.scales
    assert mean == pytest.approx(np.full(216, pixels[0].mean() / 255), abs=1e-5)
    assert spread == pytest.approx(np.full(216, pixels[0].std() / 255), abs=1e-5)
    Image.fromarray(pixels[0, 0, :8]).save(tmp_path / "env_2" / "9.png")
    with pytest.raises(InputError, match=r"9.png: is 8 x 8 pixels, 0.png 9 x 8; scale all images to one size"):
        read_interventional_folder(tmp_path)
    (tmp_path / "env_2" / "9.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="9.png: cannot be read as an image"):
        read_interventional_folder(tmp_path)


def spoil(path, how):
    if how == "no obs":
        (path / "obs.npy").unlink()
    elif how == "gap":
        (path / "env_2.parquet").rename(path / "env_3.parquet")
    elif how == "twice":
        np.save(path / "env_1.npy", np.ones((3, 4)))
    elif how == "text":
        pq.write_table(pa.table({"x": ["a"] * 4}), path / "env_1.parquet")
    elif how == "empty cell":
        pq.write_table(pa.table({"x": [1.0, None]}), path / "env_1.parquet")
    elif how == "ragged":
        pq.write_table(pa.table({"x": [[1.0, 2.0], [1.0]]}), path / "env_1.parquet")
    elif how == "damaged":
        (path / "obs.npy").write_bytes(b"1234")
    elif how == "code":
        np.save(path / "obs.npy", np.array([{"a": 1}], dtype=object))
    elif how == "narrow":
        np.save(path / "obs.npy", np.ones((3, 3)))
    elif how == "NaN":
        np.save(path / "obs.npy", np.full((3, 4), np.nan))
    elif how == "empty":
        np.save(path / "obs.npy", np.ones((0, 4)))
    elif how == "shape":
        np.save(path / "obs.npy", np.ones(4))
    elif how == "no images":
        (path / "obs.npy").unlink()
        (path / "obs").mkdir()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no obs", "has no observational environment; add obs.npy"),
        ("gap", "has no env_2, but 2 env_ entries"),
        ("twice", "env_1.parquet: env_1.npy is there too"),
        ("text", "column x is string, no numbers"),
        ("empty cell", "column x has 1 empty cells"),
        ("ragged", "no numbers of one width"),
        ("damaged", "obs.npy: cannot be read"),
        ("code", "obs.npy: cannot be read"),
        ("narrow", "env_1: has 4 features, obs 3"),
        ("NaN", "obs: has NaN or infinite numbers"),
        ("empty", "obs: has no rows"),
        ("shape", r"obs.npy: has shape \[4\]"),
        ("no images", "obs: has no images"),
    ],
)
def test_what_is_wrong_is_named(folder, how, message):
    spoil(folder[0], how)
    with pytest.raises(InputError, match=message):
        read_interventional_folder(folder[0])


def test_the_number_of_latents_and_the_width_must_fit(folder, tmp_path):
    with pytest.raises(InputError, match="2 interventional environments for 3 latents, fewer environments"):
        read_interventional_folder(folder[0], 3)
    with pytest.raises(InputError, match="no such folder"):
        read_interventional_folder(tmp_path / "nothing")
    with pytest.raises(InputError, match="dim_x: is 20, the rows of .* have 4 numbers"):
        InterventionalData(20, 2, folder=str(folder[0])).setup()
    with pytest.raises(InputError, match="batch_size: is 0"):
        InterventionalData(batch_size=0)
