"""The paper's cells, claims and figures, and the paper scale on small files of the same layout."""

import math
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster.errors import InputError
from cluster.schemas import METRICS
from jobs.claims import Results, cell, load_paper
from jobs.papers.randomized_smoothing.names import CIFAR, DIGITS, LEVEL, LINEAR, NOISE, REPLAY, TARGET
from jobs.reproduce import main
from lightning_modules.vision_networks import build_classifier

PAPER = load_paper("randomized_smoothing")


def results(plan, rows_of):
    """Results as a run would hold them."""
    trials = pa.table({"trial_id": [t.trial_id for t in plan], "status": ["completed"] * len(plan)})
    rows = [(t.trial_id, *row) for t in plan for row in rows_of(t)]
    metrics = pa.Table.from_pylist([dict(zip(METRICS.names, row, strict=True)) for row in rows], METRICS)
    return Results(trials, metrics, plan)


def by_metric(rows):
    return {row[3]: row[4] for row in rows}


def test_plans_have_the_papers_settings():
    small = PAPER.plan("small")
    assert len({t.trial_id for t in small}) == len(small)
    assert {t.dataset for t in small} == {DIGITS, LINEAR, REPLAY, LEVEL, TARGET}
    paper = PAPER.plan("paper")
    assert len(paper) == 7 * 20
    assert all(PAPER.missing(t, "") for t in paper)
    assert not any(PAPER.missing(t, "") for t in small)


def test_replays_and_the_half_space_have_their_figures():
    found = by_metric(PAPER.run(cell(REPLAY, "cp", sigma=0.5, n=100_000, images=2000)))
    assert found["samples"] <= 10_000
    assert found["above_fixed"] == 0
    level = by_metric(PAPER.run(cell(LEVEL, "cp", p=0.9772, alpha=0.05, n=2000, paths=5000)))
    assert level["false"] <= 0.05 < level["false_when_peeking"]
    target = by_metric(PAPER.run(cell(TARGET, "eprocess", p=0.95, n=100_000, paths=500)))
    assert 1 < target["over_floor"] <= 2
    linear = by_metric(PAPER.run(cell(LINEAR, "certify", points=40, dimensions=20, sigma=0.5, n=20_000)))
    assert linear["above"] <= 1
    assert 0 < linear["median_gap"] < 0.05


@pytest.fixture(scope="module")
def digits_rows():
    return PAPER.run(cell(DIGITS, NOISE, sigma=0.5, epochs=2, images=12))


def test_a_network_is_certified_attacked_and_priced(digits_rows):
    found = by_metric([row for row in digits_rows if row[1] == "sigma=0.5"])
    assert found["certified(r/sigma=0)"] > 0.7
    assert found["certified(r/sigma=0)"] >= found["certified(r/sigma=1)"] >= found["certified(r/sigma=2)"]
    assert found["attacked"] > 6
    assert found["inside_changed"] == 0
    assert found["beyond_changed"] / found["attacked"] > 0.5
    assert found["inside_share_of_budget"] > 0.9  # the attack spends what it may
    assert found["adaptive_samples"] < found["fixed_samples"] / 2
    curve = [row[4] for row in digits_rows if row[1] == "sigma=0.5" and row[3] == "certified_accuracy"]
    assert all(b <= a for a, b in zip(curve, curve[1:], strict=False))
    assert by_metric([row for row in digits_rows if row[1] == "sigma=1"])["acr"] > 0


def test_every_claim_can_fail_and_absent_figures_do_not_hold():
    plan = PAPER.plan("small")
    claims = PAPER.claims(results(plan, lambda t: []), "small")
    assert len({claim.name for claim in claims}) == len(claims) > 50
    assert not any(claim.holds for claim in claims)
    assert all(math.isnan(claim.measured) for claim in claims)


def test_a_wrong_certificate_shows_as_a_claim_that_does_not_hold():
    plan = [cell(LINEAR, "certify", points=400, dimensions=20, sigma=0.5, n=100_000)]
    for above, holds in ((1.0, True), (9.0, False)):
        rows = [(0, "", "test", "above", above)]
        claims = PAPER.claims(results(plan, lambda t, rows=rows: rows), "small")
        (claim,) = [c for c in claims if c.name.startswith("Half-space, 400 points")]
        assert claim.holds is holds


def test_figures_draw_what_there_is(digits_rows):
    plan = [cell(DIGITS, NOISE, sigma=0.5, epochs=2, images=12)]
    (figure,) = PAPER.figures(results(plan, lambda t: digits_rows))
    assert len(figure.figure.axes) == 2
    assert figure.figure.axes[0].lines[2].get_xdata()[0] == 0


# The paper scale: the same layout and code on 40 images of random pixels and an untrained network.


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    images, classes = tmp_path / "cifar-10-batches-py", [f"class {i}" for i in range(10)]
    images.mkdir()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name in names:
        data = rng.integers(0, 255, (600, 3072), dtype=np.uint8)
        with open(images / name, "wb") as file:
            pickle.dump({"data": data, "labels": rng.integers(0, 10, 600).tolist()}, file, protocol=2)
    with open(images / "batches.meta", "wb") as file:
        pickle.dump({"label_names": classes}, file, protocol=2)
    network = build_classifier("resnet110", (3, 32, 32), 10, torch.Generator().manual_seed(0))
    weights = {f"1.module.{k}": v for k, v in network.state_dict().items()}
    path = tmp_path / "models/cifar10/resnet110/noise_0.25/checkpoint.pth.tar"
    path.parent.mkdir(parents=True)
    torch.save({"epoch": 90, "arch": "cifar_resnet110", "state_dict": weights}, path)
    return tmp_path


def test_the_paper_scale_reads_published_networks_and_images(folder, monkeypatch):
    trial = cell(CIFAR, NOISE, sigma=0.25, first=25, images=2)
    assert PAPER.missing(trial, str(folder)) is None
    assert "models/cifar10/resnet110/noise_0.50" in PAPER.missing(
        cell(CIFAR, NOISE, sigma=0.5, first=0, images=2), str(folder)
    )
    monkeypatch.setattr("jobs.papers.randomized_smoothing.published.SAMPLES", 100)
    rows = PAPER.run(trial, str(folder))
    assert sorted({row[0] for row in rows}) == [500, 520]
    assert {row[3] for row in rows} == {"radius", "right", "abstain"}
    claims = PAPER.claims(results([trial], lambda t: rows), "paper")
    assert [c.reference for c in claims] == [0.75, 0.60, 0.43, 0.27, 0, 0, 0]
    assert "2 images" in claims[0].name
    with pytest.raises(InputError, match="fewer images"):
        PAPER.run(cell(CIFAR, NOISE, sigma=0.25, first=475, images=2), str(folder))


def test_what_the_paper_scale_lacks_is_one_line(tmp_path, capsys):
    assert main(["randomized_smoothing", "--scale", "paper", "--run", str(tmp_path / "run"), "--workers", "0"]) == 2
    error = capsys.readouterr().err
    assert "cifar-10-batches-py" in error
    assert "give --data FOLDER" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()
    assert main(["dare", "--data", str(tmp_path), "--run", str(tmp_path / "run"), "--workers", "0"]) == 2
    assert "data: dare takes none" in capsys.readouterr().err
