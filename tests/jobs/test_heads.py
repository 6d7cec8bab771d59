"""The heads job end to end on a simulated feature table."""

import math

import numpy as np
import pytest

from cluster.store import Run
from jobs.heads import HEADS, Cells, Heads, main, paired_test, plan, selected
from lightning_modules.data.simulated.domain_adjusted_sem import domain_adjusted_sem
from lightning_modules.data.tables import load_table, write_table


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    data = domain_adjusted_sem(environments=4, n=250, dimensions=8, spread=1.5, seed=1)
    path = tmp_path_factory.mktemp("heads") / "features.parquet"
    x, y = np.concatenate([e.inputs for e in data.environments]), np.concatenate([e.labels for e in data.environments])
    write_table(path, x, y, np.repeat(data.environment_names, 250))
    return path


def test_every_head_is_fitted_stored_summarised_and_not_run_again(table, tmp_path, capsys):
    words = [
        str(table),
        "--target",
        "test0",
        "--seeds",
        "2",
        "--l2",
        "1e-3",
        "--run",
        str(tmp_path / "run"),
        "--workers",
        "0",
    ]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert all(head in out for head in HEADS)
    run = Run(str(tmp_path / "run"))
    trials, metrics = run.read("trials"), run.read("metrics")
    options = Heads(str(table), target=["test0"], seeds=2, l2=[1e-3])
    wanted = plan(options, load_table(table))
    assert set(trials["trial_id"].to_pylist()) == {t.trial_id for t in wanted}
    chosen = selected(trials, metrics, wanted)
    assert set(chosen) == set(HEADS)
    assert set(chosen["DARE"]) == {("test0", 0), ("test0", 1)}
    assert np.mean(list(chosen["DARE-JIT"].values())) > 0.6
    cheat = {t.trial_id for t in wanted if t.method == "Cheat"}
    splits = {r["split"] for r in metrics.to_pylist() if r["environment"] == "test0" and r["trial_id"] in cheat}
    assert splits == {"out"}  # the cheat is never scored on what it was trained on
    assert main(words) == 0
    assert "0 run now" in capsys.readouterr().out


def test_factors_multiply_only_the_heads_that_have_them(table):
    options = Heads(str(table), target=["test0"], shrinkage=[0.0, 0.1, 0.5], l2=[1e-3], weight=[1.0, 10.0], seeds=1)
    methods = [t.method for t in plan(options, load_table(table))]
    assert {m: methods.count(m) for m in HEADS} == {
        **dict.fromkeys(HEADS, 1),
        **dict.fromkeys(("IRM", "VREx", "CORAL"), 2),
        **dict.fromkeys(("DARE", "DARE-JIT", "DARE-centred", "DARE-centred-JIT"), 3),
    }


def test_target_labels_reach_only_the_cheat(table):
    data = load_table(table)
    flipped = load_table(table)
    for e in flipped.environments:
        if e.name == "test0":
            e.labels[:] = 1 - e.labels
    options = Heads(str(table), target=["test0"], seeds=1, l2=[1e-3], weight=[1.0])
    one, other = Cells(data), Cells(flipped)
    for trial in plan(options, data):
        scores, mirrored = ({row[1:3]: row[4] for row in c.run_cell(trial)} for c in (one, other))
        honest = all(v == mirrored[k] for k, v in scores.items() if k[0] != "test0")
        assert honest == (trial.method != "Cheat"), trial.method
        if honest:
            assert mirrored["test0", "out"] == pytest.approx(1 - scores["test0", "out"])


def test_selection_looks_at_training_environments_only(table):
    import pyarrow as pa

    data = load_table(table)
    good, bad = plan(Heads(str(table), target=["test0"], heads=["ERM"], l2=[1e-1, 1e-3], seeds=1), data)
    rows = [(t.trial_id, 0, e, "out", "accuracy", v) for t, e, v in (
        (good, "train0", 0.9), (good, "test0", 0.2), (bad, "train0", 0.8), (bad, "test0", 0.99))]  # fmt: skip
    names = ("trial_id", "step", "environment", "split", "metric", "value")
    metrics = pa.table({n: [r[i] for r in rows] for i, n in enumerate(names)})
    trials = pa.table({"trial_id": [good.trial_id, bad.trial_id], "status": ["completed"] * 2})
    assert selected(trials, metrics, [good, bad]) == {"ERM": {("test0", 0): 0.2}}


def test_the_paired_test_pairs_by_target_and_seed():
    base = {("t", s): 0.5 + 0.1 * s for s in range(4)}
    better = {k: v + 0.01 + 0.001 * k[1] for k, v in base.items()}
    gap, p = paired_test(better, base)
    assert gap == pytest.approx(0.0115)
    assert p < 0.001  # unpaired, the spread over seeds would hide it
    assert paired_test(base, better)[1] > 0.99
    assert math.isnan(paired_test(base, base)[1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "nowhere"], "no environment 'nowhere'"),
        (["--heads", "SVM"], "unknown 'SVM'"),
        (["--shrinkage", "1.5"], "out of range"),
        (["--l2", "-1"], "out of range"),
        (["--seeds", "0"], "seeds"),
    ],
)
def test_wrong_options_are_one_line(table, tmp_path, capsys, words, message):
    assert main([str(table), "--run", str(tmp_path / "run"), "--workers", "0", *words]) == 2
    assert message in capsys.readouterr().err
