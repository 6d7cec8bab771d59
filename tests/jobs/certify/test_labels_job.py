"""`shiftlab certify labels` end to end: rules side by side, resuming, own data, streams, bad input."""

import numpy as np
import pytest

from cluster.store import Run
from jobs.certify import main
from jobs.certify.tables import read
from jobs.report.certificates import certificate_sections
from lightning_modules.certification.label_flips import FeatureMap, LabelFlipCertifier, PartitionEnsemble
from lightning_modules.data.examples import load_examples
from lightning_modules.data.tables import TableStream, write_table


def certify(run, *words, data="MNIST17", workers="0"):
    return main(["labels", "--data", data, "--run", str(run), "--workers", workers, *words])


def rows(run):
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "trial_id")}
        for row in read(Run(str(run)), "flip_certificates").to_pylist()
    ]


def test_all_rules_are_computed_stored_and_shown_side_by_side(tmp_path, capsys, ray_session):
    words = ["--features", "pca:50", "--lam", "100", "--q", "0.05", "0.1", "--partitions", "25", "--limit", "40"]
    assert certify(tmp_path / "run", *words, workers="2") == 0
    out = capsys.readouterr().out
    assert "MNIST17-test: certified accuracy against flipped labels" in out
    assert "plain ridge, exact" in out
    assert "Deterministic" in out
    train, test = load_examples("MNIST17", "train"), load_examples("MNIST17", "test", limit=40)
    features = FeatureMap.parse("pca:50").fit(train.inputs.reshape(len(train), -1) / 255)
    F, H = (features(e.inputs.reshape(len(e), -1) / 255) for e in (train, test))
    found = rows(tmp_path / "run")
    for q in (0.05, 0.1):
        own = LabelFlipCertifier(100.0, q).fit(F, train.labels).certify(H)
        stored = sorted((r for r in found if r["q"] == q), key=lambda r: r["idx"])
        assert [r["flips_np"] for r in stored] == [r["flips"] for r in stored] == own.flips_np.tolist()
        assert [r["flips_exact"] for r in stored] == own.flips_exact.tolist()
        assert [r["prediction"] for r in stored] == own.prediction.tolist()
        assert [r["log_wrong_prob"] for r in stored] == pytest.approx(own.log_wrong_prob.tolist())
        assert all(r["flips_kl"] <= r["flips_np"] <= r["flips_exact"] for r in stored)
    votes = PartitionEnsemble(25, 100.0).fit(F, train.labels, train.inputs.reshape(len(train), -1)).certify(H)
    stored = [r for r in found if r["partitions"] == 25]
    assert [r["flips"] for r in stored] == votes.flips.tolist()
    (section,) = certificate_sections(Run(str(tmp_path / "run")))
    assert len(section.rows) == 4
    page = (tmp_path / "run" / "_report" / "report.html").read_text()
    assert "plain ridge, exact" in page


def test_more_settings_run_only_what_is_new_and_order_changes_nothing(tmp_path, capsys):
    words = ["--features", "pca:20", "--lam", "100", "--limit", "10"]
    assert certify(tmp_path / "a", *words, "--q", "0.1") == 0
    assert certify(tmp_path / "a", *words, "--q", "0.1", "0.3") == 0
    assert "10 run now" in capsys.readouterr().out.splitlines()[-1]
    assert certify(tmp_path / "b", *words, "--q", "0.3", "0.1") == 0
    key = lambda r: (r["idx"], r["q"])  # noqa: E731
    a, b = sorted(rows(tmp_path / "a"), key=key), sorted(rows(tmp_path / "b"), key=key)
    assert [{**r, "log_wrong_prob": 0} for r in a] == [{**r, "log_wrong_prob": 0} for r in b]
    assert [r["log_wrong_prob"] for r in a] == pytest.approx([r["log_wrong_prob"] for r in b], rel=1e-9)


def test_the_default_penalty_sees_no_label(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)).astype(np.float32)
    lams = []
    for name in ("straight", "flipped"):
        y = (x[:, 0] > 0).astype(np.int64)
        if name == "flipped":
            y[:30] = 1 - y[:30]
        np.savez(tmp_path / f"{name}.npz", inputs=x, labels=y)
        np.savez(tmp_path / "test.npz", inputs=x[:8], labels=(x[:8, 0] > 0).astype(np.int64))
        data = str(tmp_path / f"{name}.npz")
        assert certify(tmp_path / name, "--test", str(tmp_path / "test.npz"), data=data) == 0
        lams.append({r["lam"] for r in rows(tmp_path / name)})
    assert lams[0] == lams[1]


def test_a_streamed_table_gives_what_memory_gives(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30_000, 6)).astype(np.float32)
    y = np.array(["cat", "dog", "ant"])[np.argmax(x[:, :3] + rng.normal(size=(30_000, 3)), 1)]
    write_table(tmp_path / "train.parquet", x[:29_000], y[:29_000], ["e"] * 29_000)
    write_table(tmp_path / "test.parquet", x[29_990:], y[29_990:], ["e"] * 10)
    stream = TableStream.open(tmp_path / "train.parquet")
    assert stream.classes == ("ant", "cat", "dog")
    assert [len(labels) for _, labels in stream][0] < 29_000
    words = ["--test", str(tmp_path / "test.parquet"), "--lam", "10", "--q", "0.1"]
    for name, more in (("memory", []), ("stream", ["--stream"])):
        assert certify(tmp_path / name, *words, *more, data=str(tmp_path / "train.parquet")) == 0
    memory, streamed = rows(tmp_path / "memory"), rows(tmp_path / "stream")
    for name in ("prediction", "flips_np", "flips_exact", "flips_kl"):
        assert [r[name] for r in memory] == [r[name] for r in streamed]


def npz(path, x, y):
    np.savez(path, inputs=x, labels=y)
    return str(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--q", "0.5"], "q: 0.5"),
        (["--q", "0"], "q: 0.0 is not between"),
        (["--lam", "0"], "lam: 0.0 is not positive"),
        (["--lam", "1", "1"], "lam: [1.0, 1.0] repeats"),
        (["--features", "pca:x"], "pca:x"),
        (["--features", "pca:500"], "pca:500"),
        (["--partitions", "0"], "partitions: 0"),
        (["--white_box"], "white_box: is about partitions"),
        (["--stream"], "stream: needs a .parquet table"),
        (["--test", "WIDE"], "features"),
        (["--test", "CLASSES"], "classes"),
        (["--data", "NAN"], "NaN"),
        (["--data", "ONE"], "class"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_run(words, message, tmp_path, capsys):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    bad = x.copy()
    bad[7, 1] = np.nan
    files = {
        "WIDE": npz(tmp_path / "wide.npz", rng.normal(size=(9, 4)).astype(np.float32), y[:9] * 0 + np.arange(9) % 2),
        "CLASSES": npz(tmp_path / "classes.npz", x[:9], np.arange(9) % 3),
        "NAN": npz(tmp_path / "nan.npz", bad, y),
        "ONE": npz(tmp_path / "one.npz", x, y * 0),
    }
    data = npz(tmp_path / "train.npz", x, y)
    words = [files.get(word, word) for word in words]
    given = ["--test", npz(tmp_path / "test.npz", x[:9], np.arange(9) % 2), *words]
    assert certify(tmp_path / "run", *given, data=data) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1, error
    assert not (tmp_path / "run").exists()
