"""Data that no method could learn from: one line that names what is wrong, exit code 2, and no half-written run."""

import numpy as np
import pytest
from PIL import Image

from jobs import heads, sweep


def table(path, environments=("a", "b", "c"), labels=(0, 1), rows=30, features=None, drop=()):
    """Write a feature table; `drop` lists (environment, label) without examples."""
    rng = np.random.default_rng(0)
    room = np.repeat(environments, rows)
    label = np.tile(labels, rows * len(environments) // len(labels))
    keep = np.array([(e, y) not in drop for e, y in zip(room, label, strict=True)])
    x = rng.normal(size=(len(room), 4)).astype(np.float32) if features is None else features
    np.savez(path, features=x[keep], label=label[keep], environment=room[keep])
    return str(path)


def nan_features():
    x = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
    x[7, 2] = np.nan
    return x


CASES = {
    "one class in an environment": ({"drop": [("b", 1)]}, "environment 'b': has no example of class '1'"),
    "labels that do not match": (
        {"labels": (0, 1, 2), "drop": [("a", 2), ("b", 2)]},
        "environment 'a': has no example of class '2'",
    ),
    "one environment only": ({"environments": ("a",)}, "needs at least two environments, found only 'a'"),
    "NaN features": ({"features": nan_features()}, "1 rows have NaN, null or infinite numbers, first row 7"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("job", ["sweep", "heads"])
def test_bad_tables_are_named_and_leave_no_run(case, job, tmp_path, capsys):
    values, message = CASES[case]
    path = table(tmp_path / "t.npz", **values)
    words = ["--run", str(tmp_path / "run"), "--workers", "0"]
    code = sweep.main(["--dataset", path, *words]) if job == "sweep" else heads.main([path, *words])
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def folder(root, empty=None, broken=None):
    rng = np.random.default_rng(0)
    for environment in "abc":
        for label in ("cat", "dog"):
            place = root / environment / label
            place.mkdir(parents=True)
            if environment == empty:
                continue
            for number in range(4):
                Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(place / f"{number}.png")
    if broken:
        (root / broken).write_bytes(b"\x89PNG\r\n\x1a\nno image")
    return str(root)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"empty": "b"}, "environment 'b': has no examples; fill or remove it"),
        ({"broken": "c/dog/2.png"}, "c/dog/2.png: cannot be read as an image"),
    ],
)
def test_bad_folders_are_named_and_leave_no_run(values, message, tmp_path, capsys):
    root = folder(tmp_path / "photos", **values)
    assert sweep.main(["--dataset", root, "--run", str(tmp_path / "run"), "--workers", "0"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["VREx", "DARE", "IterativeFeatureMatching", "EQRM", "MLDG", "DANN"])
def test_methods_that_compare_environments_refuse_to_train_on_one(method, tmp_path, capsys):
    path = table(tmp_path / "t.npz", environments=("a", "b"))
    words = ["--dataset", path, "--methods", method, "--hyperparameters.network", "mlp"]
    assert sweep.main([*words, "--run", str(tmp_path / "run"), "--workers", "0"]) == 2
    assert f"{method} trains on 2 environments or more, a setting leaves 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_network_that_a_method_cannot_train_is_refused(tmp_path, capsys):
    path = table(tmp_path / "t.npz")
    words = ["--dataset", path, "--methods", "DANN", "--run", str(tmp_path / "run"), "--workers", "0"]
    assert sweep.main(words) == 2
    assert "DANN cannot train 'linear'; give it one of mlp, small-cnn, cnn" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_singular_covariance_is_shrunk_or_named(tmp_path, capsys):
    """A constant feature: DARE's default shrinkage regularises it; without shrinkage the trial fails and says why."""
    x = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
    x[:, 3] = 1
    path = table(tmp_path / "t.npz", features=x)
    words = [
        "--dataset",
        path,
        "--methods",
        "DARE",
        "--steps",
        "2",
        "--held_out",
        "a",
        "--workers",
        "0",
        "--retries",
        "0",
    ]
    assert sweep.main([*words, "--run", str(tmp_path / "shrunk")]) == 0
    capsys.readouterr()
    assert sweep.main([*words, "--run", str(tmp_path / "bare"), "--hyperparameters.dare_shrinkage", "0"]) == 1
    assert "its covariance of 4 features is singular; give shrinkage above 0" in capsys.readouterr().err
