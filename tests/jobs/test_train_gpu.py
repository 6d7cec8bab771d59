"""What needs GPUs of `shiftlab train`: NCCL, sharded models, mixed precision."""

import pytest
import torch

from cluster.store import Run
from jobs.train import main as train
from tests.jobs.test_train import METHOD, MODULE, metrics, nets  # noqa: F401 - a fixture

pytestmark = pytest.mark.gpu
needs_one = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")


@needs_one
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true"])
def test_a_gpu_trains_in_any_precision_as_well_as_in_single(nets, precision):  # noqa: F811
    assert train([*MODULE, "--run=single", "--workers=1", "--gpus_per_worker=1"]) == 0
    words = [*MODULE, f"--run={precision}", "--workers=1", "--gpus_per_worker=1", f"--precision={precision}"]
    assert train(words) == 0
    (row,) = Run(precision).read("trials").to_pylist()
    assert "NVIDIA" in row["device"]
    # Precision is part of what a trial is, so first weights and batches differ: only what was learned is compared.
    learned = (40, "all", "out", "val_loss")
    assert metrics(precision)[learned] == pytest.approx(metrics("single")[learned], abs=0.1)


@needs_two
@pytest.mark.parametrize("words", [MODULE, METHOD], ids=["module", "method"])
def test_two_gpus_learn_what_one_does(words, nets):  # noqa: F811
    assert train([*words, "--run=one", "--workers=1", "--gpus_per_worker=1"]) == 0
    assert train([*words, "--run=two", "--workers=2", "--gpus_per_worker=1", "--verify_every=8"]) == 0
    one, two = metrics("one"), metrics("two")
    for key, value in one.items():
        assert two[key] == pytest.approx(value, abs=1e-4, rel=1e-4), key


@needs_two
def test_a_sharded_model_learns_the_same_and_its_weights_are_whole(nets):  # noqa: F811
    assert train([*MODULE, "--run=whole", "--workers=2", "--gpus_per_worker=1"]) == 0
    assert train([*MODULE, "--run=sharded", "--workers=2", "--gpus_per_worker=1", "--strategy=fsdp"]) == 0
    for key, value in metrics("whole").items():
        assert metrics("sharded")[key] == pytest.approx(value, abs=1e-3), key
    from pathlib import Path

    states = [
        torch.load(next(Path(r, "models").iterdir()), weights_only=True)["state_dict"] for r in ("whole", "sharded")
    ]
    assert {name: value.shape for name, value in states[0].items()} == {n: v.shape for n, v in states[1].items()}
