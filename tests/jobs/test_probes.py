"""`shiftlab train --probe`: rows in the run, on one process and on two workers, resumed, refused; what it costs."""

import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.store import Run, Store
from jobs.probes import PROBE_EXAMPLES, PROBE_SERIES, SCHEMAS, costs, probe_tables, read_series
from jobs.report import main as report
from jobs.train import main as train
from tests.jobs.test_train import NETS

MORE = """
from lightning_modules.dynamics.probe import Probe, ProbeRows

class Watched(Small):
    def per_example_losses(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1], reduction="none")

class Falling(Watched):
    def training_step(self, batch, number):
        if self.trainer.global_step == 13 and not os.path.exists("fell"):
            Path("fell").touch()
            raise RuntimeError("fell")
        return super().training_step(batch, number)

class Losses(Probe):
    name = "losses"
    def __init__(self, every: int = 5, examples: int = 20):
        super().__init__(every, examples)
    def begin(self, trainer, module):
        return self.measure(trainer, module, trainer.global_step)
    def measure(self, trainer, module, step):
        found = self.losses(module).numpy()
        rows = [("loss", item, list(range(len(found))), found + item) for item in (0, 1)]
        return ProbeRows(self.name, step, [("mean", "all", float(found.mean()))], rows)
"""
WORDS = ["--method=watched:Watched", "--dataset=watched:Data", "--steps=20", "--checkpoint_every=6"]


@pytest.fixture
def nets(tmp_path, monkeypatch):
    (tmp_path / "watched.py").write_text(NETS + MORE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("watched", None)


def series(run):
    return {
        (row["step"], row["quantity"]): row["value"] for row in read_series(Run(run)) if "cost" not in row["quantity"]
    }


def examples(run):
    rows = Run(run).read("probe_examples").to_pylist()
    return {(row["step"], row["item"], row["example"]): row["value"] for row in rows}


def test_rows_of_every_step_and_example_are_stored_and_the_cost_is_said(nets, capsys):
    assert train([*WORDS, "--run=run", "--probe", "watched:Losses"]) == 0
    found, values = series("run"), examples("run")
    assert sorted(found) == [(step, "mean") for step in (0, 5, 10, 15, 20)]
    assert len(values) == 5 * 2 * 20
    for step in (0, 5, 20):
        mean = np.mean([values[step, 0, example] for example in range(20)])
        assert mean == pytest.approx(found[step, "mean"], rel=1e-5)
        assert values[step, 1, 3] == pytest.approx(values[step, 0, 3] + 1, rel=1e-6)
    assert found[20, "mean"] < found[0, "mean"]
    (row,) = Run("run").read("trials").to_pylist()
    ((probe, (seconds, share)),) = costs(read_series(Run("run")), row["trial_id"]).items()
    assert probe == "losses"
    assert 0 < seconds < row["seconds"]
    assert 0 < share < 1
    assert f"probe losses: {seconds:.3g} s, {share:.0%} of the training's time" in capsys.readouterr().out


def test_a_probe_changes_neither_the_trial_nor_its_numbers(nets, capsys):
    assert train([*WORDS, "--run=plain"]) == 0
    assert train([*WORDS, "--run=watched", "--probe=watched:Losses"]) == 0
    for table in ("metrics", "trials"):
        plain, watched = (
            Run(run).read(table).select(["trial_id"] + ["value"] * (table == "metrics")).to_pylist()
            for run in ("plain", "watched")
        )
        assert plain == watched
    capsys.readouterr()
    assert train([*WORDS, "--run=plain", "--probe=watched:Losses"]) == 0
    assert "probes measure while a training goes on: choose another --run for losses" in capsys.readouterr().out


def test_a_training_that_fell_and_went_on_has_every_row_once(nets):
    falling = ["--method=watched:Falling", *WORDS[1:]]
    assert train([*falling, "--run=run", "--probe=watched:Losses:every=2", "--retries=1"]) == 0
    assert Path("fell").exists()
    rows = Run("run").read("probe_series", PROBE_SERIES).to_pylist()
    means = [row["step"] for row in read_series(Run("run")) if row["quantity"] == "mean"]
    assert sum(row["quantity"] == "mean" for row in rows) > len(
        means
    )  # what came after the checkpoint was measured twice
    assert means == list(range(0, 21, 2))
    Path("fell").unlink()
    Path("fell").touch()
    assert train([*falling, "--run=whole", "--probe=watched:Losses:every=2"]) == 0
    assert series("run") == series("whole")
    assert examples("run") == examples("whole")


def test_two_workers_measure_what_one_does(nets):
    assert train([*WORDS, "--run=one", "--probe=watched:Losses"]) == 0
    assert train([*WORDS, "--run=two", "--probe=watched:Losses", "--workers=2"]) == 0
    one, two = examples("one"), examples("two")
    assert one.keys() == two.keys()
    assert max(abs(one[key] - two[key]) for key in one) < 1e-5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method=ERM", "--dataset=ColoredMNIST", "--probe=sharpness"], "probe: ERM has no loss of each example"),
        ([*WORDS, "--probe=sharpnes"], "probe: unknown 'sharpnes'; did you mean sharpness?"),
        ([*WORDS, "--probe", "watched:Losses", "watched:Losses:every=2"], "probe: losses is asked for twice"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_written(words, message, nets, capsys):
    assert train([*words, "--run=run"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_module_without_losses_says_what_to_add(nets, capsys):
    assert train(["--method=watched:Small", *WORDS[1:], "--run=run", "--probe=watched:Losses", "--retries=3"]) == 1
    (row,) = Run("run").read("trials").to_pylist()
    assert row["attempts"] == 1  # it would be missing again
    assert "probe: Small has no per_example_losses(self, batch); add the method" in row["error"]


def test_rows_of_many_parts_and_names_read_as_one_table(tmp_path):
    with Store(str(tmp_path / "run"), SCHEMAS) as store:
        for step in range(6):
            name = f"probe-{step % 2}"
            values = np.full(4, step, np.float32)
            store.append(probe_tables(f"trial-{step // 3}", step, name, [], [("loss", step, np.arange(4), values)]))
            if step % 2:
                store.seal()
    found = Run(str(tmp_path / "run")).read("probe_examples", PROBE_EXAMPLES)
    assert found.num_rows == 24
    assert {field.type for field in found.schema} >= {pa.int32(), pa.float32()}
    for row in found.to_pylist():
        step = row["step"]
        wanted = (f"trial-{step // 3}", f"probe-{step % 2}", step, float(step))
        assert (row["trial_id"], row["probe"], row["item"], row["value"]) == wanted


def test_the_report_shows_the_last_figures_the_curves_and_the_examples_that_stand_out(nets, capsys):
    assert train([*WORDS, "--run=run", "--probe", "watched:Losses"]) == 0
    capsys.readouterr()
    assert report(["run"]) == 0
    printed = capsys.readouterr().out
    found, values = series("run"), examples("run")
    assert "Watched: losses" in printed
    means = [found[step, "mean"] for step in (0, 5, 10, 15, 20)]
    assert re.search(rf"mean all +20 +{means[0]:.4g} +{means[-1]:.4g} +{min(means):.4g} +{max(means):.4g}", printed)
    by_example = {n: np.mean([abs(v) for (_, _, example), v in values.items() if example == n]) for n in range(20)}
    first = max(by_example, key=by_example.get)
    page = Path("run/_report/report.html").read_text()
    assert 'id="probes"' in page
    assert f"Examples with the largest mean |loss|: {first} ({by_example[first]:.3g})" in page
    assert "What the probe losses measured, step by step." in page
