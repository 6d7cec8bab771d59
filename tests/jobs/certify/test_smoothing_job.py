"""`shiftlab certify smoothing` end to end: models and data of every kind, resuming, order, outputs, bad input."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from cluster.store import Run
from jobs.certify import main
from jobs.certify.log import read_log
from jobs.certify.tables import read
from jobs.report.certificates import certificate_sections
from lightning_modules.certification.binomial import clopper_pearson_lower, radius_of

TIMES = ("seconds", "trial_id")


def certify(model, run, *words, data="MNIST", sigma="0.5", workers="0"):
    return main(
        ["smoothing", "--model", model, "--data", data, "--sigma", sigma, "--run", str(run), "--workers", workers]
        + ["--n0", "32", "--n", "400", *words]
    )


def rows(run):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read(Run(str(run)), "certificates").to_pylist()]


def test_every_example_gets_a_certificate_that_its_counts_give(digits_checkpoint, tmp_path, capsys):
    assert certify(digits_checkpoint, tmp_path / "run", "--limit", "20", "--log", str(tmp_path / "log.tsv")) == 0
    out = capsys.readouterr().out
    assert "MNIST-test: certified accuracy against l2 radius" in out
    assert "wrong with probability at most alpha = 0.001" in " ".join(out.split())
    found = rows(tmp_path / "run")
    assert [row["idx"] for row in found] == list(range(20))
    for row in found:
        lower = float(clopper_pearson_lower(row["count"], 400, 0.001))
        assert row["p_lower"] == pytest.approx(lower)
        assert row["radius"] == pytest.approx(float(radius_of(lower, 0.5)))
        assert (row["prediction"] == -1) == (lower < 0.5)
        assert row["correct"] == (row["prediction"] == row["label"])
        assert (row["n_used"], row["sigma"], row["noise"], row["precision"]) == (432, 0.5, "independent", "float32")
        assert row["model"].startswith("digits@")
    assert np.mean([row["correct"] for row in found]) > 0.7
    log = read_log(str(tmp_path / "log.tsv"))
    assert [r.idx for r in log] == list(range(20))
    assert [r.predict for r in log] == [row["prediction"] for row in found]
    for r, row in zip(log, found, strict=True):
        assert 0 <= row["radius"] - r.radius < 1e-6  # rounded down, never up
    assert certify(digits_checkpoint, tmp_path / "run", "--limit", "20") == 0
    assert "0 run now" in capsys.readouterr().out


def test_counts_depend_on_the_example_alone(digits_checkpoint, tmp_path, ray_session):
    """In another order, on Ray workers, in packs of other sizes, after other examples: the same certificates."""
    for name, workers, words in (
        ("here", "0", ["--limit", "12", "--pack", "5"]),
        ("ray", "2", ["--limit", "12", "--pack", "3"]),
        ("batches", "0", ["--limit", "12", "--pack", "1", "--batch_size", "96"]),
    ):
        assert certify(digits_checkpoint, tmp_path / name, *words, workers=workers) == 0
    assert certify(digits_checkpoint, tmp_path / "grown", "--every", "3", "--limit", "4") == 0
    assert certify(digits_checkpoint, tmp_path / "grown", "--limit", "12") == 0
    expected = rows(tmp_path / "here")
    assert len(expected) == 12
    for name in ("ray", "batches", "grown"):
        assert rows(tmp_path / name) == expected
    assert certify(digits_checkpoint, tmp_path / "seed", "--limit", "12", "--seed", "1") == 0
    assert [r["count"] for r in rows(tmp_path / "seed")] != [r["count"] for r in expected]


@pytest.mark.parametrize("noise", ["independent", "shared"])
def test_adaptive_certificates_are_on_the_grid_cheaper_and_order_free(digits_checkpoint, tmp_path, noise):
    words = ["--limit", "16", "--adaptive", "--noise", noise, "--n", "4000", "--radii", "0.25", "0.5"]
    assert certify(digits_checkpoint, tmp_path / "a", *words, "--pack", "16") == 0
    assert certify(digits_checkpoint, tmp_path / "b", *words, "--pack", "3") == 0
    found = rows(tmp_path / "a")
    assert rows(tmp_path / "b") == found
    assert {row["radius"] for row in found} <= {0.0, 0.25, 0.5}
    assert np.mean([row["n_used"] for row in found]) < 2000
    assert {row["method"] for row in found} == {"smoothing-adaptive"}
    (section,) = certificate_sections(Run(str(tmp_path / "a")))
    assert [c for c in section.columns if c.startswith("r=")] == ["r=0", "r=0.25", "r=0.5"]


def test_wrong_guesses_are_flagged_not_given_a_radius(digits_checkpoint, tmp_path, capsys):
    assert certify(digits_checkpoint, tmp_path / "run", "--limit", "60", "--skip_wrong", "--sigma", "1.0") == 0
    found = rows(tmp_path / "run")
    skipped = [row for row in found if row["skipped"]]
    assert skipped
    assert all(row["radius"] is None and row["n_used"] == 32 and not row["correct"] for row in skipped)
    assert "counted as wrong" in " ".join(capsys.readouterr().out.split())


def test_several_sigmas_are_curves_with_an_envelope(digits_checkpoint, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    assert main(
        ["smoothing", "--model", digits_checkpoint, "--data", "MNIST", "--sigma", "0.25", "0.5", "--run", str(run)]
        + ["--n0", "32", "--n", "400", "--limit", "15", "--workers", "0"]
    ) == 0  # fmt: skip
    (section,) = certificate_sections(Run(str(run)))
    assert list(section.rows) == ["sigma 0.25", "sigma 0.5"]
    assert "envelope" in section.figures[0][0].svg
    drawn = []
    monkeypatch.setattr("jobs.report.certificates.inline_figure", lambda make: drawn.extend(make()) or [])
    certificate_sections(Run(str(run)))
    envelope, *curves = (line.get_ydata() for line in drawn[0].figure.axes[0].lines)
    assert (envelope == np.max(curves, axis=0)).all()
    assert (curves[0] != curves[1]).any()
    page = (run / "_report" / "report.html").read_text()
    assert 'id="certificates"' in page
    assert "sigma 0.25" in page
    assert main(["export", str(run), "--out", str(tmp_path / "x.tsv")]) == 2
    assert "choose one of the run's curves" in capsys.readouterr().err
    assert main(["export", str(run), "--out", str(tmp_path / "x.tsv"), "--sigma", "0.25", "--model", "digits"]) == 0
    assert len(read_log(str(tmp_path / "x.tsv"))) == 15


def test_the_official_log_comes_back_as_it_was(tmp_path, capsys):
    log = tmp_path / "published.tsv"
    log.write_text(
        "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
        "0\t3\t3\t0.763\t1\t0:00:15.198364\n20\t1\t-1\t0.0\t0\t1 day, 0:00:14.5\n40\t2\t5\t0.25\t0\t14.1\n"
    )
    words = ["import", str(log), "--sigma", "0.25", "--dataset", "CIFAR-10", "--run", str(tmp_path / "run")]
    assert main(words) == 0
    assert "3 certificates read" in capsys.readouterr().out
    assert main(words) == 0
    assert "0 certificates read" in capsys.readouterr().out
    found = rows(tmp_path / "run")
    assert [row["radius"] for row in found] == [0.763, 0.0, 0.25]
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "again.tsv")]) == 0
    again = read_log(str(tmp_path / "again.tsv"))
    assert again == read_log(str(log))
    assert [row.seconds for row in again] == [15.198364, 86414.5, 14.1]
    (section,) = certificate_sections(Run(str(tmp_path / "run")))
    assert section.rows["sigma 0.25"][0] == "0.333"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column 'idx' is missing"),
        ("idx\tlabel\tpredict\tradius\ttime\n", "column 'correct' is missing"),
        ("idx\tlabel\tpredict\tradius\tcorrect\ttime\n", "has no rows"),
        ("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\tfar\t1\t0:00:01\n", "line 2: could not convert"),
        ("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t2\t0.1\t1\t0:00:01\n", "line 2: its radius is negative"),
        ("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\n", "line 2:"),
    ],
)
def test_bad_logs_are_one_line(text, message, tmp_path, capsys):
    (tmp_path / "bad.tsv").write_text(text)
    words = ["import", str(tmp_path / "bad.tsv"), "--sigma", "0.25", "--dataset", "D", "--run", str(tmp_path / "run")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


# Models and data of other kinds


class TwoFeatures(nn.Module):
    """A user's own classifier, found as module:Class."""

    def __init__(self, width: int = 2, dropout: float = 0.0, nan_above: float = 1e9) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 2)
        self.dropout = nn.Dropout(dropout)
        self.nan_above = nan_above

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.layer(self.dropout(x))
        return torch.where(x[:, :1] > self.nan_above, torch.tensor(float("nan")), logits)


@pytest.fixture
def features(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 2)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    np.savez(tmp_path / "test.npz", inputs=x, labels=y)
    torch.save(
        {"layer.weight": torch.tensor([[-5.0, 0.0], [5.0, 0.0]]), "layer.bias": torch.zeros(2)}, tmp_path / "w.pt"
    )
    return tmp_path


NET = "tests.jobs.certify.test_smoothing_job:TwoFeatures"


def test_a_class_with_weights_certifies_features_up_to_their_true_distance(features):
    words = ["--weights", str(features / "w.pt"), "--n", "2000"]
    assert certify(NET, features / "run", *words, data=str(features / "test.npz")) == 0
    x = np.load(features / "test.npz")["inputs"]
    for row in rows(features / "run"):
        assert row["radius"] <= abs(x[row["idx"], 0])
    assert np.mean([row["radius"] for row in rows(features / "run")]) > 0.4


def test_exported_and_scripted_models_give_the_same_certificates(features):
    model = TwoFeatures().eval()
    model.load_state_dict(torch.load(features / "w.pt", weights_only=True))
    batch = torch.export.Dim("batch")
    torch.export.save(
        torch.export.export(model, (torch.zeros(4, 2),), dynamic_shapes=({0: batch},)), features / "m.pt2"
    )
    torch.jit.save(torch.jit.trace(model, torch.zeros(4, 2)), features / "m.ts")
    found = {}
    for name in ("m.pt2", "m.ts"):
        run = features / f"run-{name}"
        assert certify(str(features / name), run, "--model_name", "m", data=str(features / "test.npz")) == 0
        found[name] = read(Run(str(run)), "certificates")["prediction"].to_pylist()
    x = np.load(features / "test.npz")["inputs"]
    for predictions in found.values():
        assert all(p in (int(a > 0), -1) for p, a in zip(predictions, x[:, 0], strict=True))


def test_nan_logits_fail_their_example_and_keep_the_others(features, capsys):
    words = ["--weights", str(features / "w.pt"), "--model_arguments", '{"nan_above": 2.0}', "--retries", "0"]
    assert certify(NET, features / "run", *words, data=str(features / "test.npz")) == 1
    assert "NaN or infinite logits" in capsys.readouterr().err
    x = np.load(features / "test.npz")["inputs"]
    found = {row["idx"] for row in rows(features / "run")}
    assert set(np.flatnonzero(x[:, 0] < 0)) <= found
    status = list(Run(str(features / "run")).trial_status().values())
    assert 0 < status.count("failed") < len(x)
    assert status.count("completed") == len(found)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sigma", "0"], "sigma: 0.0 is not positive"),
        (["--sigma", "-0.5"], "sigma: -0.5 is not positive"),
        (["--alpha", "0"], "alpha: 0.0 is not between 0 and 1"),
        (["--alpha", "1"], "alpha: 1.0 is not between 0 and 1"),
        (["--n", "10"], "n: 10 is below n0 = 32"),
        (["--n0", "0"], "n0: 0 is too small"),
        (["--radii", "0.5"], "radii: are the grid of --adaptive"),
        (["--every", "0"], "every: 0 is too small"),
        (["--input_range", "0", "0.5"], "outside"),
        (["--num_classes", "3"], "tells 2 classes apart, the data have 3"),
        (["--model", "tests.jobs.certify.test_smoothing_job:Missing"], "Missing"),
        (["--model", "nowhere.ckpt"], "nowhere.ckpt"),
        (["--weights", "nowhere.pt"], "nowhere.pt"),
        (["--data", "nowhere.npz"], "nowhere.npz"),
        (["--model_arguments", '{"nan_above": -100.0}'], "NaN or infinite logits"),
        (["--precision", "fp8"], "precision"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_run(words, message, features, capsys):
    given = ["--weights", str(features / "w.pt"), *words]
    assert certify(NET, features / "run", *given, data=str(features / "test.npz")) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1, error
    assert not (features / "run").exists()


def test_a_model_saved_with_dropout_on_is_refused(features, capsys):
    torch.jit.save(torch.jit.script(TwoFeatures(dropout=0.5).train()), features / "train.ts")
    assert certify(str(features / "train.ts"), features / "run", data=str(features / "test.npz")) == 2
    error = capsys.readouterr().err
    assert "train mode" in error
    assert len(error.splitlines()) == 1
    assert not (features / "run").exists()


def test_a_killed_certification_resumes_and_ends_in_the_same_certificates(digits_checkpoint, tmp_path, capsys):
    command = [sys.executable, "-m", "jobs.certify", "smoothing", "--model", digits_checkpoint, "--data", "MNIST"]
    command += ["--sigma", "0.5", "--limit", "24", "--n", "4000", "--pack", "1", "--workers", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen([*command, "--run", str(tmp_path / "run")], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not _stored(tmp_path / "run"):
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = _stored(tmp_path / "run")
    assert 0 < before < 24
    for name in ("run", "undisturbed"):
        assert main([*command[3:], "--run", str(tmp_path / name)]) == 0
        if name == "run":
            assert f"{24 - before} run now" in capsys.readouterr().out
    assert rows(tmp_path / "run") == rows(tmp_path / "undisturbed")


def _stored(run):
    try:
        return len(Run(str(run)).trial_status())
    except Exception:  # not there yet
        return 0


def test_help_and_unknown_commands(capsys):
    assert main(["--help"]) == 0
    assert "smoothing" in capsys.readouterr().out
    assert main(["smoothin"]) == 2
    assert "did you mean 'smoothing'?" in capsys.readouterr().err
    assert main([]) == 2


def test_trials_carry_what_identifies_them(digits_checkpoint, tmp_path):
    assert certify(digits_checkpoint, tmp_path / "run", "--limit", "2") == 0
    trials = Run(str(tmp_path / "run")).read("trials").to_pylist()
    values = json.loads(trials[0]["hyperparameters"])
    assert {"model", "alpha", "noise", "precision", "skip_wrong", "sigma", "index"} == set(values)
    assert json.loads(trials[0]["budget"]) == {"n": 400, "n0": 32}
