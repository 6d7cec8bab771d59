"""Data beside noise: what is in a batch, files of one's own, and what is refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from lightning_modules.density.data import DigitVectors, FileVectors, GaussianPairs
from lightning_modules.density.pairs import whitening
from lightning_modules.errors import InputError


def batches(data):
    data.setup()
    return list(data.train_dataloader())


def test_batches_have_noise_with_its_density_and_repeat():
    data = GaussianPairs(dimension=3, separation=2.0, shift=1.0, n=64, batch_size=16, noise_ratio=4, copies=2, seed=5)
    found = batches(data)
    assert len(found) == 8
    x, noise, log_x, log_noise = found[0]
    assert (x.shape, noise.shape, log_x.shape, log_noise.shape) == ((16, 3), (16, 4, 3), (16,), (16, 4))
    assert torch.allclose(log_noise, data.noise.log_prob(noise))
    assert torch.allclose(log_x, data.noise.log_prob(x))
    assert float(data.tau_star[:3].norm()) == pytest.approx(3)
    assert float(data.noise.mean.norm()) == pytest.approx(1)
    rows = torch.cat([batch[0] for batch in found])
    assert len(torch.unique(rows, dim=0)) == 64  # every row twice,
    assert len(torch.unique(torch.cat([batch[1] for batch in found]).flatten(0, 1), dim=0)) == 512  # beside other noise
    again = batches(
        GaussianPairs(dimension=3, separation=2.0, shift=1.0, n=64, batch_size=16, noise_ratio=4, copies=2, seed=5)
    )
    assert all((a[0] == b[0]).all() and (a[1] == b[1]).all() for a, b in zip(found, again, strict=True))
    one = data.train_dataloader().dataset[70]
    assert (one[0] == data.train_dataloader().dataset[6][0]).all()


def test_digits_are_white_and_their_noise_is_fitted():
    data = DigitVectors(noise_law="full")
    data.setup()
    x = torch.cat([batch[0] for batch in data.train_dataloader()])
    assert torch.allclose(torch.cov(x.mT), torch.eye(16), atol=0.05)
    assert 5 < data.condition < 30
    assert data.noise.scale.shape == (16, 16)
    state = torch.get_rng_state()
    DigitVectors(seed=1).setup()
    assert (torch.get_rng_state() == state).all()


def test_whitening_says_how_many_dimensions_there_are():
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) @ torch.randn(2, 5)
    center, projection, condition = whitening(x, 2)
    assert torch.allclose(torch.cov(((x - center) @ projection).mT), torch.eye(2), atol=1e-3)
    assert condition == pytest.approx(
        float(torch.linalg.eigvalsh(torch.cov(x.mT))[-1] / torch.linalg.eigvalsh(torch.cov(x.mT))[-2]), rel=1e-3
    )
    with pytest.raises(InputError, match="dimension: is 3, but the data span 2 dimensions"):
        whitening(x, 3)


def test_files_of_ones_own(tmp_path):
    x = np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32)
    np.save(tmp_path / "rows.npy", x.reshape(100, 2, 2))
    table = {
        "features": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 4),
        "label": [0, 1] * 50,
        "environment": ["a"] * 100,
    }
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(np.full((4, 4, 3), 20 * number, np.uint8)).save(
                tmp_path / "images" / name / f"{number}.png"
            )
    by_name = {}
    for name in ("rows.npy", "rows.parquet"):
        data = FileVectors(path=str(tmp_path / name), whiten=False, dimension=4, batch_size=20)
        by_name[name] = torch.cat([batch[0] for batch in batches(data)])
        assert by_name[name].shape == (80, 4)
        validation = torch.cat([batch[0] for batch in data.val_dataloader()])
        together = torch.cat([by_name[name], validation])
        assert np.allclose(np.unique(together.numpy(), axis=0), np.unique(x, axis=0))
    assert (by_name["rows.npy"].sort(0).values == by_name["rows.parquet"].sort(0).values).all()
    white = FileVectors(path=str(tmp_path / "rows.npy"), dimension=2, batch_size=80)
    assert torch.allclose(torch.cov(batches(white)[0][0].mT), torch.eye(2), atol=0.01)
    images = FileVectors(
        path=str(tmp_path / "images"), whiten=False, dimension=3 * 224 * 224, noise_law="diagonal", batch_size=4
    )
    rows = batches(images)[0][0]
    assert rows.shape == (4, 3 * 224 * 224)
    assert 0 <= float(rows.min()) <= float(rows.max()) <= 1


def test_what_cannot_be_is_refused(tmp_path):
    np.save(tmp_path / "bad.npy", np.full((10, 2), np.nan))
    np.save(tmp_path / "flat.npy", np.zeros(10))
    np.save(tmp_path / "good.npy", np.random.default_rng(0).standard_normal((10, 2)))
    for path, words in (
        ("", "path: is empty"),
        ("none.npy", "cannot be read as an array"),
        ("bad.npy", "has NaN or infinite values"),
        ("flat.npy", "has 1 axes"),
    ):
        with pytest.raises(InputError, match=words):
            FileVectors(path=str(tmp_path / path) if path else "", dimension=2).setup()
    with pytest.raises(InputError, match="dimension: is 3, but the data have 2 coordinates"):
        FileVectors(path=str(tmp_path / "good.npy"), whiten=False, dimension=3).setup()
    with pytest.raises(InputError, match="digits: unknown data 'SVHN'"):
        DigitVectors(digits="SVHN")
    with pytest.raises(InputError, match="noise_law: unknown law 'cauchy'"):
        DigitVectors(noise_law="cauchy")
    with pytest.raises(InputError, match="batch_size: 0 is below 1"):
        GaussianPairs(batch_size=0)
