"""`shiftlab certify train`: a checkpoint that certifies, training that goes on, bad input."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from jobs.certify import main
from lightning_modules.data.examples import as_tensor, load_examples
from lightning_modules.model_files import read_classifier


def train(out, *words, data="BreastCancer"):
    return main(["train", "--data", data, "--sigma", "0.25", "--out", str(out), *words])


def accuracy(checkpoint, data, sigma=0.0):
    test = load_examples(data, "test")
    x = as_tensor(test.inputs)
    noise = sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return float((read_classifier(str(checkpoint)).build()(x + noise).argmax(1).numpy() == test.labels).mean())


def test_a_trained_table_classifier_certifies(tmp_path, capsys):
    out = tmp_path / "deep" / "net.ckpt"
    assert train(out, "--epochs", "15") == 0
    assert "certify it with" in capsys.readouterr().out
    assert accuracy(out, "BreastCancer") > 0.9
    words = [
        "smoothing",
        "--model",
        str(out),
        "--data",
        "BreastCancer",
        "--sigma",
        "0.25",
        "--n",
        "500",
        "--limit",
        "20",
    ]
    assert main([*words, "--workers", "0", "--run", str(tmp_path / "run")]) == 0
    assert "BreastCancer-test: certified accuracy" in capsys.readouterr().out


def test_noise_in_training_is_what_makes_a_network_stand_noise(tmp_path):
    common = ["--epochs", "2", "--sigma"]
    assert train(tmp_path / "noisy.ckpt", *common, "0.5", data="MNIST") == 0
    assert train(tmp_path / "clean.ckpt", *common, "0", data="MNIST") == 0
    noisy, clean = (accuracy(tmp_path / f"{name}.ckpt", "MNIST", 0.5) for name in ("noisy", "clean"))
    assert noisy > clean + 0.05


def test_a_killed_training_goes_on_and_ends_in_the_same_weights(tmp_path):
    command = [sys.executable, "-m", "jobs.certify", "train", "--data", "MNIST", "--sigma", "0.5", "--epochs", "4"]
    command += ["--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen([*command, str(tmp_path / "killed.ckpt")], env=environment)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (tmp_path / "killed.ckpt").exists():
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    for name in ("killed", "whole"):
        assert train(tmp_path / f"{name}.ckpt", "--sigma", "0.5", "--epochs", "4", data="MNIST") == 0
    first, second = (
        torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["state_dict"] for name in ("killed", "whole")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_sigterm_stops_it_with_its_exit_code_and_says_how_to_resume(tmp_path):
    command = [sys.executable, "-m", "jobs.certify", "train", "--data", "MNIST", "--sigma", "0.5", "--epochs", "400"]
    out = tmp_path / "net.ckpt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen([*command, "--out", str(out)], env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not out.exists():
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    error = running.communicate(timeout=60)[1]
    assert running.returncode == 143, error
    assert "resume with\n  shiftlab certify train" in error
    assert torch.load(out, weights_only=True)["shiftlab_classifier"]["classes"] == 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sigma", "-1"], "sigma: -1.0"),
        (["--epochs", "0"], "epochs: 0 is not positive"),
        (["--lam", "3"], "lam"),
        (["--regulariser", "consistency", "--draws", "1"], "draws: consistency compares draws"),
        (["--network", "small-cnn"], "network: small-cnn needs images"),
        (["--network", "unknown"], "network: unknown"),
        (["--momentum", "0.9"], "momentum"),
        (["--augment"], "augment"),
        (["--data", "nowhere.npz"], "nowhere.npz"),
        (["--out", "net.pt"], "ends in .ckpt"),
        (["--lr", "1e30"], "lr"),
    ],
)
def test_bad_input_is_one_line(words, message, tmp_path, capsys):
    code = train(tmp_path / "net.ckpt", *words)
    error = capsys.readouterr().err
    assert code in (1, 2)
    assert message in error
    assert len(error.splitlines()) == 1, error
