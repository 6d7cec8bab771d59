"""`shiftlab shifts`: from a trained network to tables that `shiftlab bound` takes."""

import pytest
import torch

from jobs.bound import main as bound
from jobs.shifts import main as shifts
from jobs.train import main as train
from lightning_modules.data.shifted_digits import digit_shifts
from lightning_modules.data.tables import load_feature_rows
from lightning_modules.error_bounds.head_files import read_head


def test_train_shift_and_bound(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--method=ERM", "--dataset=ShiftedDigits:augment=false", "--held_out=none", "--steps=40", "--run=run"]
    assert train([*words, '--hyperparameters={"network": "mlp", "lr": 0.001}']) == 0
    (model,) = (tmp_path / "run" / "models").glob("*.ckpt")
    assert shifts([f"--model={model}", "--out=shifts"]) == 0
    out = capsys.readouterr().out
    assert "rotate 60" in out
    source, targets = (load_feature_rows(f"shifts/{name}.parquet") for name in ("source", "targets"))
    assert source.features.shape == (1500, 64)
    assert (source.logits.argmax(1) == source.labels).mean() > 0.5  # rows belong together
    assert set(targets.environments) == {shift.name for shift in digit_shifts()}
    table = [
        "--source=shifts/source.parquet",
        "--target=shifts/targets.parquet",
        "--workers=0",
        "--restarts=1",
        "--epochs=1",
    ]
    # The model's own last layer is found in the checkpoint, and gives the logits that stand in the table.
    assert read_head(str(model), 64)(targets.features) == pytest.approx(targets.logits, abs=1e-4)
    assert bound([*table, f"--head={model}", "--run=a"]) == 0
    assert "error in 1 target" in capsys.readouterr().out


def test_other_files_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert shifts(["--model=missing.ckpt", "--out=shifts"]) == 2
    assert "no such file" in capsys.readouterr().err
    torch.save({"weight": torch.zeros(2)}, "other.ckpt")
    assert shifts(["--model=other.ckpt", "--out=shifts"]) == 2
    assert "was not written by shiftlab train" in capsys.readouterr().err
    about = {"method": "ERM", "dataset": "ColoredMNIST", "hyperparameters": "{}"}
    torch.save({"state_dict": {}, "shiftlab": about}, "colored.ckpt")
    assert shifts(["--model=colored.ckpt", "--out=shifts"]) == 2
    assert "was trained on ColoredMNIST, not on ShiftedDigits(seed=0)" in capsys.readouterr().err
