"""Lightning modules of ours by name: trained and tuned as a person's own are."""

import pytest

from cluster.store import Run
from jobs.subjects import find_subject
from jobs.train import main as train
from jobs.tune import main as tune
from lightning_modules.named_modules import MODULES


@pytest.mark.parametrize("name", MODULES)
def test_every_name_is_a_module_with_data_and_ranges(name):
    subject = find_subject(name, None, 64)
    assert subject.is_module
    assert subject.laws
    assert subject.dataset.startswith(MODULES[name].data)
    assert all(value is not None for value in subject.defaults.values())


@pytest.mark.parametrize("name", MODULES)
def test_every_name_is_trained(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [f"--method={name}", "--dataset=null", "--steps=4", "--checkpoint_every=2", "--run=run"]
    assert train(words) == 0
    assert "weights: run/models/" in capsys.readouterr().out
    values = [r["value"] for r in Run("run").read("metrics").to_pylist() if r["metric"] == "val_loss"]
    assert len(values) == 2
    assert train(words) == 0
    assert "trained before: nothing to do" in capsys.readouterr().out


def test_one_is_tuned(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--method=MMRAutoencoder", "--dataset=null", "--steps=4", "--objective=val_loss:min", "--trials=2"]
    assert tune([*words, "--workers=0", "--run=run"]) == 0
    assert "best configuration: run/best.yaml" in capsys.readouterr().out
