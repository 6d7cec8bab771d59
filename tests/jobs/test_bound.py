"""`shiftlab bound` end to end: tables in, bounds and estimates out, the gate, resuming, bad input."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.store import Run
from jobs.bound import BOUNDS, KEYS, main
from jobs.report.bounds import bound_sections
from lightning_modules.data.tables import write_table
from lightning_modules.error_bounds.critics import Training
from lightning_modules.error_bounds.discrepancy import DisagreementDiscrepancy
from lightning_modules.error_bounds.evidence import Evidence
from lightning_modules.error_bounds.head_files import read_head

WIDTH, CLASSES = 12, 4
FAST = ["--restarts", "3", "--epochs", "3"]


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A labelled source, targets under growing shifts, a head and a second one, in the working directory."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((CLASSES, WIDTH)).astype(np.float32)
    other = (weight + 0.3 * generator.standard_normal(weight.shape)).astype(np.float32)
    np.savez("head.npz", weight=weight, bias=np.zeros(CLASSES, np.float32))
    torch.save({"fc.weight": torch.from_numpy(other), "fc.bias": torch.zeros(CLASSES)}, "second.pt")
    made = {}
    for name, shift in (("source", 0.0), ("near", 0.1), ("far", 1.5)):
        x = generator.standard_normal((200, WIDTH)).astype(np.float32)
        labels = (x @ weight.T + generator.gumbel(size=(200, CLASSES))).argmax(1)
        x = x + np.float32(shift) * generator.standard_normal(WIDTH).astype(np.float32)
        rooms = np.where(np.arange(200) < 100, "first", "second")
        write_table(f"{name}.parquet", x, labels, rooms, logits=x @ weight.T)
        made[name] = (x, labels)
    return weight, made


def bound(*words, source="source.parquet", head="head.npz"):
    head_words = ["--head", head] if head else []
    return main(["--source", source, *head_words, "--workers=0", "--run=run", *FAST, *words])


def rows():
    return Run("run").read_completed("bounds", BOUNDS, KEYS).to_pylist()


def test_bounds_and_estimates_are_stored_and_shown(tables, capsys):
    weight, made = tables
    assert bound("--target", "near.parquet", "far.parquet", "--second_head", "second.pt") == 0
    out = capsys.readouterr().out
    assert "source: error in 2 targets" in out
    assert "Guaranteed: with probability at least 0.99" in out
    assert "IF the true labelling is no worse" in " ".join(out.split())
    found = {(row["target"].split("@")[0], row["method"]): row for row in rows()}
    methods = ["Dis2 logits", "Dis2 logits w/o delta", "Dis2 features", "Dis2 features w/o delta"]
    methods += ["AC", "DoC", "ATC-MC", "ATC-NE", "COT", "IW", "GDE"]
    assert set(found) == {(target, method) for target in ("near", "far") for method in methods}
    for name in ("near", "far"):
        (xs, ys), (xt, yt) = made["source"], made[name]
        evidence = Evidence(xs, xs @ weight.T, ys, xt, xt @ weight.T)
        own = DisagreementDiscrepancy("logits", Training(3, 3)).estimate(evidence)
        row = found[name, "Dis2 logits"]
        assert row["predicted_error"] == pytest.approx(own.error_bound, abs=1e-9)
        assert (row["kind"], row["delta"], row["n_source"], row["n_target"]) == ("bound", 0.01, 100, 100)
        assert row["epsilon"] == own.epsilon
        true = float(((xt @ weight.T).argmax(1) != yt).mean())
        assert row["true_error"] == true
        assert all(r["held"] == (true <= r["predicted_error"]) for (t, _), r in found.items() if t == name)
    (section,) = bound_sections(Run("run"))
    assert set(section.rows) == {"near", "far", "coverage", "MAE", "overestimation of accuracy"}
    assert len(section.figures) == 1
    page = Path("run/_report/report.html").read_text()
    assert "Error bounds" in page
    assert "predicted against true error" in page


def test_the_gate(tables, capsys):
    assert bound("--target", "far.parquet", "--fail-above", "1") == 0
    assert "gate: passed, no Dis2 logits bound is above 1" in capsys.readouterr().out
    assert bound("--target", "near.parquet", "far.parquet", "--fail-above=0.01") == 3
    err = capsys.readouterr().err
    assert "gate: FAILED" in err
    assert "near" in err
    assert "far" in err


def test_targets_of_one_name_are_told_apart_by_their_rows(tables, capsys):
    _, made = tables
    for folder, name in (("a", "near"), ("b", "far")):
        Path(folder).mkdir()
        write_table(f"{folder}/month.parquet", *made[name], np.zeros(200, int))
    least = bound("--target", "a/month.parquet", "b/month.parquet")
    assert least == 0
    values = sorted(row["predicted_error"] for row in rows() if row["method"] == "Dis2 logits")
    assert len(values) == 2
    between = f"--fail-above={sum(values) / 2}"
    assert bound("--target", "a/month.parquet", "b/month.parquet", between) == 3
    assert bound("--target", "b/month.parquet", "a/month.parquet", between) == 3
    Path("c").mkdir()
    write_table("c/month.parquet", *made["near"], np.zeros(200, int))
    assert bound("--target", "a/month.parquet", "c/month.parquet") == 2
    assert "holds the same rows as another target" in capsys.readouterr().err


def test_targets_need_no_labels_and_may_be_environments(tables, capsys):
    _, made = tables
    np.savez("bare.npz", features=made["far"][0])
    assert bound("--target", "bare.npz") == 0
    assert all(row["true_error"] is None and row["held"] is None for row in rows())
    out = capsys.readouterr().out
    assert "no labels, so nothing says here whether a bound held" in out
    assert bound("--target", "far.parquet", "--each_environment") == 0
    assert {row["target"].split("@")[0] for row in rows()} == {"bare", "far:first", "far:second"}
    assert bound("--target", "bare.npz", "--each_environment") == 2
    assert "column 'environment' is missing" in capsys.readouterr().err


def test_the_column_logits_serves_without_a_head(tables, capsys):
    weight, made = tables
    assert bound("--target", "near.parquet", head=None) == 0
    with_column = {row["method"]: row["predicted_error"] for row in rows()}
    assert bound("--target", "near.parquet") == 0
    with_head = {row["method"]: row["predicted_error"] for row in rows() if not row["head"].startswith("column")}
    assert with_column == pytest.approx(with_head, abs=1e-6)
    assert bound("--target", "near.parquet", "--outputs=probabilities", head=None) == 2
    assert "has a negative probability" in capsys.readouterr().err
    for name in ("source", "near"):
        x, labels = made[name]
        p = torch.from_numpy(x @ weight.T).softmax(1).numpy()
        p[3] *= 1.5 if name == "near" else 1
        write_table(f"p_{name}.parquet", x, labels, np.zeros(200, int), logits=p)
    assert bound("--target", "p_near.parquet", "--outputs=probabilities", source="p_source.parquet", head=None) == 2
    assert "row 3 sums to 1.5, not to 1" in capsys.readouterr().err
    assert bound("--target", "p_source.parquet", "--outputs=probabilities", source="p_source.parquet", head=None) == 0


def test_a_rerun_runs_only_new_targets_and_packs_change_nothing(tables, capsys, ray_session):
    assert bound("--target", "near.parquet") == 0
    before = {row["method"]: row["predicted_error"] for row in rows()}
    assert bound("--target", "near.parquet", "far.parquet") == 0
    assert "2 completed, 0 failed, 1 run now" in capsys.readouterr().out
    words = ["--source=source.parquet", "--head=head.npz", "--workers=2", "--run=other", *FAST]
    assert main([*words, "--target", "near.parquet", "far.parquet"]) == 0
    other = Run("other").read_completed("bounds", BOUNDS, KEYS).to_pylist()
    assert {r["method"]: r["predicted_error"] for r in other if r["target"].startswith("near")} == before


def test_classes_are_matched_by_name(tables, capsys):
    weight, made = tables
    x, labels = made["near"]
    names = np.array(["ant", "bee", "cat", "dog"])
    write_table("named.parquet", made["source"][0], names[made["source"][1]], np.zeros(200, int))
    changed = names[labels].astype(object)
    changed[:10] = "zebra"
    write_table("partly.parquet", x, changed, np.zeros(200, int))
    assert bound("--target", "partly.parquet", source="named.parquet") == 0
    right = (x @ weight.T).argmax(1) == labels
    right[:10] = False  # a class that the head does not know is never predicted
    assert rows()[0]["true_error"] == pytest.approx(1 - right.mean())
    write_table("alien.parquet", x, np.full(200, "zebra"), np.zeros(200, int))
    assert bound("--target", "alien.parquet", source="named.parquet") == 2
    assert "none of its classes (zebra) is one of the source's (ant, bee, cat, dog)" in capsys.readouterr().err
    # Numbers may skip a class that no source row has; names cannot.
    few = made["source"][1] != 2
    write_table("few.parquet", made["source"][0][few], made["source"][1][few], np.zeros(few.sum(), int))
    assert bound("--target", "near.parquet", source="few.parquet") == 0
    write_table("few_named.parquet", made["source"][0][few], names[made["source"][1][few]], np.zeros(few.sum(), int))
    assert bound("--target", "near.parquet", source="few_named.parquet") == 2
    assert "has 3 classes, the head 4 outputs" in capsys.readouterr().err


def test_heads_of_many_kinds(tables, tmp_path):
    weight, _ = tables
    state = {
        "network.featurizer.1.weight": torch.zeros(WIDTH, 7),
        "network.classifier.weight": torch.from_numpy(weight),
    }
    state["network.classifier.bias"] = torch.ones(CLASSES)
    torch.save({"state_dict": state, "shiftlab": {"method": "ERM"}}, "model.ckpt")
    assert (read_head("model.ckpt", WIDTH).weight == weight).all()
    assert (read_head("model.ckpt").bias == 1).all()
    torch.save({"0.weight": torch.zeros(7, 3), "2.weight": torch.from_numpy(weight)}, "sequential.pt")
    assert (read_head("sequential.pt", WIDTH).bias == 0).all()  # the only one of that width; it has no bias


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "missing.parquet"], "missing.parquet: no such file"),
        (["--target", "near.parquet", "near.parquet"], "repeats one"),
        (["--target", "near.parquet", "--delta", "0"], "delta: 0.0 is not between 0 and 1"),
        (["--target", "near.parquet", "--fail-above", "2"], "fail_above: 2.0 is no error"),
        (["--target", "near.parquet", "--feature_spaces", "pixels"], "feature_space: unknown 'pixels'"),
        (["--target", "near.parquet", "--feature_spaces", "pca:16"], "pca:16 leaves 0 of 12 directions"),
        (["--target", "near.parquet", "--second_head", "head.txt"], "head: head.txt: no such file"),
        (["--target", "narrow.parquet"], "narrow.parquet: has 3 features, the source 12"),
        (["--target", "nan.parquet"], "column 'features': 1 rows have NaN"),
        (["--target", "tiny.parquet"], "tiny.parquet: target: 3 rows for 4 classes are too few"),
    ],
)
def test_bad_input_is_one_line(tables, capsys, words, message):
    x, labels = tables[1]["near"]
    write_table("narrow.parquet", x[:, :3], labels, np.zeros(200, int))
    write_table("tiny.parquet", x[:3], labels[:3], np.zeros(3, int))
    x = x.copy()
    x[5, 2] = np.nan
    write_table("nan.parquet", x, labels, np.zeros(200, int))
    assert bound(*words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: np.savez("odd.npz", weight=np.zeros((CLASSES, 5)), bias=np.zeros(CLASSES)),
            "no linear layer of 12 features",
        ),
        (
            lambda: np.savez("odd.npz", a=np.zeros(3)),
            "no linear layer of 12 features that could be the last; it has none",
        ),
        (
            lambda: np.savez("odd.npz", **{f"{i}.weight": np.zeros((CLASSES, WIDTH)) for i in "ab"}),
            "several linear layers",
        ),
        (lambda: Path("odd.npz").write_text("text"), "cannot be read as npz"),
        (
            lambda: np.savez("odd.npz", weight=np.full((CLASSES, WIDTH), np.nan), bias=np.zeros(CLASSES)),
            "NaN or infinite",
        ),
        (
            lambda: np.savez("odd.npz", weight=np.zeros((3, WIDTH)), bias=np.zeros(3)),
            "has 4 classes, the head 3 outputs",
        ),
    ],
)
def test_heads_that_do_not_fit(tables, capsys, make, message):
    make()
    assert bound("--target", "near.parquet", head="odd.npz") == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1
