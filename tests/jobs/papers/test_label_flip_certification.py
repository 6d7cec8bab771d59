"""The paper's cells on label flips: figures against direct computation, claims that can fail, and a person's own files."""

import itertools
import math

import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import InputError as RunError
from cluster.schemas import METRICS
from jobs.claims import Results, cell, settings
from jobs.papers import label_flip_certification as paper
from jobs.papers.label_flip_certification import plans
from jobs.papers.label_flip_certification.cells import curve, load_problem
from jobs.papers.label_flip_certification.tally import Tally
from jobs.reproduce import main
from lightning_modules.certification.label_flips import (
    LabelFlipCertifier,
    PartitionEnsemble,
    certified_accuracy_curve,
    median_flips,
)
from lightning_modules.data.examples import load_examples
from lightning_modules.errors import InputError


def results(cells, rows):
    metrics = pa.table({f.name: pa.array([row[i] for row in rows], f.type) for i, f in enumerate(METRICS)})
    trials = pa.table({"trial_id": [c.trial_id for c in cells], "status": ["completed"] * len(cells)})
    return Results(trials, metrics, cells)


def computed(cells, data=""):
    return [(c.trial_id, *row) for c in cells for row in paper.run(c, data)]


def figures_of(trial, data=""):
    """What a cell says at step 0 outside environments."""
    return {row[3]: row[4] for row in paper.run(trial, data) if row[:2] == (0, "")}


@pytest.fixture(scope="module")
def small():
    """Rows of the small scale's cheap cells; ten digits and other feature maps are left out."""
    cells = [
        c
        for c in paper.plan("small")
        if settings(c).get("data") != "MNIST"
        and settings(c).get("features") in (None, "pca:50", "raw")
        and not (c.dataset == plans.BRUTE_FORCE and settings(c)["classes"] == 3)
        and not (settings(c).get("data") == "MNIST17" and settings(c)["features"] == "raw")
        and c.dataset != plans.MONTE_CARLO
    ]
    return cells, computed(cells)


# The plans


def test_the_plans_have_the_cells_that_are_claimed_of():
    cells = paper.plan("small")
    assert len(set(cells)) == len(cells) == 48
    counts = {e: sum(c.dataset == e for c in cells) for e in {c.dataset for c in cells}}
    assert counts == {
        plans.THRESHOLDS: 1,
        plans.BRUTE_FORCE: 9,
        plans.RIDGE: 18,
        plans.PARTITION: 16,
        plans.ATTACK: 2,
        plans.MONTE_CARLO: 1,
        plans.INVARIANCES: 1,
    }
    order = [(settings(c).get("data"), settings(c).get("features")) for c in cells]
    assert len(list(itertools.groupby(order))) == len(set(order))  # each data set is mapped once
    assert all(paper.missing(c, "") is None for c in cells)


def test_the_papers_sizes_are_covered_once():
    cells = paper.plan("paper")
    assert len(set(cells)) == len(cells)
    for data, task in plans.TASKS.items():
        for scale in (plans.NO_DEFENCE, *plans.SCALES):
            chunks = [
                settings(c)
                for c in cells
                if c.dataset == plans.RIDGE and (settings(c)["data"], settings(c)["lam_scale"]) == (data, scale)
            ]
            covered = [range(c["first"], c["first"] + c["points"]) for c in chunks]
            assert sorted(i for some in covered for i in some) == list(range(task.test))
    parts = {(settings(c)["data"], settings(c)["parts"]) for c in cells if c.dataset == plans.PARTITION}
    assert parts == {
        ("mnist17.npz", 13_007),
        *(("mnist.npz", k) for k in (1200, 3000)),
        *(("cifar10.npz", k) for k in (50, 250, 1000)),
    }
    assert paper.missing(cells[0], "") == "mnist17.npz"


@pytest.mark.parametrize("points", [199, 200])
def test_curves_and_medians_are_those_of_the_certificates(points):
    rng = np.random.default_rng(points)
    right, flips = rng.random(points) < 0.8, rng.integers(-1, 300, points)
    trial = plans.ridge("MNIST17", lam=1.0).cell(q="0.1", first=0, points=points)
    rows = [(trial.trial_id, *row) for row in curve("np", right, flips, "q=0.1")]
    tally = Tally(results([trial], [*rows, (trial.trial_id, 0, "", "test", "points", float(points))]))
    at = plans.ridge("MNIST17", lam=1.0), 0.1
    steps, shares = tally.curve("np", *at)
    assert (steps[0], shares[-1]) == (0, 0)
    prediction, truth = right.astype(int), np.ones(points, dtype=int)
    np.testing.assert_allclose(shares, certified_accuracy_curve(prediction, flips, truth, steps), atol=1e-12)
    assert tally.median("np", *at) == median_flips(prediction, flips, truth)
    assert tally.share("np", *at, 57) == pytest.approx(certified_accuracy_curve(prediction, flips, truth, [57])[0])
    assert tally.share("np", *at, 5000) == 0
    assert tally.first_below("np", at[0], 0.01) is None  # not of the plain rule
    assert math.isnan(tally.median("kl", *at))


def test_a_median_of_many_flips_is_known_to_two_and_a_half_percent():
    flips = np.arange(3000, 5001)
    trial = plans.ridge("MNIST17", lam=1.0).cell()
    rows = [(trial.trial_id, *row) for row in curve("exact", np.ones(2001, dtype=bool), flips)]
    tally = Tally(results([trial], [*rows, (trial.trial_id, 0, "", "test", "points", 2001.0)]))
    assert 4000 / 1.026 < tally.median("exact", plans.ridge("MNIST17", lam=1.0)) <= 4000


def test_where_most_are_wrong_the_median_is_minus_one():
    trial = plans.ridge("MNIST17", lam=1.0).cell()
    rows = [(trial.trial_id, *row) for row in curve("exact", np.array([True, False, False]), np.array([5, 9, 9]))]
    tally = Tally(results([trial], [*rows, (trial.trial_id, 0, "", "test", "points", 3.0)]))
    assert tally.median("exact", plans.ridge("MNIST17", lam=1.0)) == -1


def test_a_ridge_cell_and_an_ensembles_are_the_certifiers():
    train, test = load_examples("BreastCancer", "train"), load_examples("BreastCancer", "test")
    F, H = train.inputs.astype(float), test.inputs.astype(float)
    setting = plans.ridge("BreastCancer", "raw", lam=10.0)
    ensemble = plans.votes("BreastCancer", 25, 10.0, "raw", plans.WHITE_BOX)
    cells = [setting.cell(q="0.05 0.3", first=0, points=114), ensemble.cell(first=0, points=114)]
    tally = Tally(results(cells, computed(cells)))
    for q in (0.05, 0.3):
        c = LabelFlipCertifier(10.0, q).fit(F, train.labels).certify(H)
        for metric, flips in (("kl", c.flips_kl), ("np", c.flips_np)):
            assert tally.median(metric, setting, q) == median_flips(c.prediction, flips, test.labels)
        assert tally.total("abstained", setting, q) == c.abstain.sum()
        assert tally.total("largest_ratio", setting, q) == (c.flips_np / np.maximum(c.flips_exact, 1)).max()
    assert tally.median("exact", setting) == median_flips(c.prediction, c.flips_exact, test.labels)
    assert tally.accuracy(setting) == (c.prediction == test.labels).mean()
    votes = PartitionEnsemble(25, 10.0, True).fit(F, train.labels).certify(H)
    assert tally.median("votes", ensemble) == median_flips(votes.prediction, votes.flips, test.labels)
    assert tally.total("below_votes", ensemble) == 0


def test_the_attack_takes_what_the_certificate_says(small):
    tally = Tally(results(*small))
    for setting in plans.SMALL_ATTACKS:
        assert tally.total("turned", setting) == tally.points(setting) == 200
        assert tally.total("fallen", setting) == 0
        steps, shares = tally.curve("attacked", setting)
        assert steps == list(range(65))
        assert shares[0] == tally.accuracy(setting)
        assert sorted(shares, reverse=True) == shares
    assert (
        tally.curve("attacked", plans.greedy(plans.SPARSE))[1][:50]
        == tally.curve("exact", plans.ridge("MNIST17", lam=plans.SPARSE))[1][:50]
    )


def test_noise_is_drawn_from_the_cells_own_stream():
    trial = cell(
        plans.MONTE_CARLO, "label noise", data="MNIST17", features="pca:50", q=0.3, lam=100.0, draws=3000, points=8
    )
    first, again = figures_of(trial), figures_of(trial)
    assert first == again
    assert first["below"] == 0
    assert 1 < first["least_ratio"] <= first["largest_ratio"] < 20
    assert figures_of(cell(trial.dataset, trial.method, 1, **settings(trial))) != first


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("Chernoff bound", {"classes": 3, "n": 5, "q": 0.2, "points": 30}),
        ("certificates", {"classes": 3, "n": 6, "q": 0.05, "points": 30}),
        ("certificates", {"classes": 2, "n": 7, "q": 0.1, "points": 60}),
        ("exact", {"classes": 3, "n": 5, "points": 40}),
        ("ensembles", {"classes": 3, "n": 5, "parts": 2, "points": 20}),
    ],
)
def test_a_search_finds_a_certificate_that_is_too_large(method, values, monkeypatch):
    from jobs.papers.label_flip_certification import brute_force

    trial = cell(plans.BRUTE_FORCE, method, **values)
    assert figures_of(trial)["violations"] == 0
    names = {"Chernoff bound": "chernoff_log_bound", "certificates": "np_flips", "exact": "exact_flips"}
    if method == "ensembles":
        real = brute_force.PartitionEnsemble.certify

        def larger(self, H):
            found = real(self, H)
            return type(found)(found.prediction, found.flips + 1, found.votes)

        monkeypatch.setattr(brute_force.PartitionEnsemble, "certify", larger)
    else:
        of_library = getattr(brute_force, names[method])
        change = -2.0 if method == "Chernoff bound" else 1
        monkeypatch.setattr(brute_force, names[method], lambda *args: of_library(*args) + change)
    assert figures_of(trial)["violations"] > 0


def test_label_vectors_their_noise_and_their_radius():
    from jobs.papers.label_flip_certification.brute_force import _Vectors

    vectors = _Vectors(3, 3)
    assert vectors.labels.shape == (27, 3)
    assert vectors.find(np.array([1, 0, 2])) == 11
    assert vectors.labels[11].tolist() == [1, 0, 2]
    law = vectors.noise(0.2)
    np.testing.assert_allclose(law.sum(1), 1)
    assert law[11, vectors.find(np.array([1, 1, 2]))] == pytest.approx(0.8 * 0.1 * 0.8)
    answers = np.zeros(27, dtype=int)
    answers[vectors.find(np.array([2, 0, 1]))] = 1
    assert vectors.radius(answers, 11) == 1
    assert vectors.radius(np.zeros(27, dtype=int), 11) == 3
    wins = vectors.wins(np.array([1.0, 1.0, 2.0]))[11]  # scores 1, 1, 2
    assert wins.tolist() == [[False, True, False], [False, False, False], [True, True, False]]


def test_other_experiments_are_refused():
    with pytest.raises(RunError, match=r"^experiment: unknown 'label_flip_certification/other'"):
        paper.run(cell("label_flip_certification/other", "any"))
    with pytest.raises(RunError, match=r"^method: unknown 'luck' of brute force"):
        paper.run(cell(plans.BRUTE_FORCE, "luck", classes=2, n=3, points=1))


# Claims and figures


def test_claims_hold_where_they_are_measured_and_wait_elsewhere(small):
    claims = paper.claims(results(*small), "small")
    assert len({c.name for c in claims}) == len(claims) == 102
    measured = [c for c in claims if not math.isnan(c.measured)]
    assert len(measured) == 74
    assert [c.name.rsplit(", ", 1)[1] for c in measured if not c.holds] == ["closed form"]
    assert not any(c.holds for c in claims if c not in measured)


def test_every_claim_can_fail(small):
    cells, rows = small
    spoils = (
        lambda at, metric, value: value + (metric != "points"),
        lambda at, metric, value: value / 2 if metric != "points" else value,
        lambda at, metric, value: 0 if metric in ("turned", "closed", "votes", "sure_tight") else value,
        lambda at, metric, value: 0 if at == "q=0.05" else value,
        lambda at, metric, value: 1000 if metric in ("sure_tight", "largest_ratio") else value,
    )
    # Certified for two flips more, all of them: even where none was certified at all.
    further = [(*row[:1], row[1] + 2, *row[2:5], 200.0) if row[4] in ("np", "kl") else row for row in rows]
    failed = {c.name for c in paper.claims(results(cells, further), "small") if not c.holds}
    for spoil in spoils:
        wrong = [(*row[:-1], float(spoil(row[2], row[4], row[5]))) for row in rows]
        failed |= {c.name for c in paper.claims(results(cells, wrong), "small") if not c.holds}
    measured = {c.name for c in paper.claims(results(cells, rows), "small") if not math.isnan(c.measured)}
    assert measured - failed == set()


def test_a_claim_waits_for_all_the_cells_it_needs(small):
    cells, rows = small
    heavy = plans.ridge("MNIST17", lam=plans.HEAVY).cell(q=plans.join(plans.QS), first=0, points=200)
    assert heavy in cells
    found = paper.claims(
        results([c for c in cells if c != heavy], [r for r in rows if r[0] != heavy.trial_id]), "small"
    )
    waiting = {c.name for c in found if math.isnan(c.measured)}
    about = ("1/7, lam 10000", "lam 1e4", "1/7: largest tight flips over exact ones")
    assert [c.name for c in found if any(words in c.name for words in about) and c.name not in waiting] == []
    assert "1/7, lam 100: accuracy" not in waiting


def test_no_results_make_no_claim_hold_and_no_figure():
    nothing = results([], [])
    assert not any(c.holds for c in paper.claims(nothing, "small"))
    assert paper.claims(nothing, "paper") == []
    assert paper.figures(nothing) == []


def test_figures_show_the_stored_curves(small, tmp_path):
    figures = paper.figures(results(*small))
    lines = [[len(axes.lines) for axes in f.figure.axes] for f in figures]
    assert lines == [[6, 6], [5], [10], [0, 6], [2, 2, 2]]
    tally = Tally(results(*small))
    steps, shares = tally.curve("np", plans.ridge("MNIST17", lam=plans.SPARSE), 0.05)
    drawn = figures[0].figure.axes[0].lines[0]
    assert (drawn.get_xdata().tolist(), drawn.get_ydata().tolist()) == (steps, shares)
    figures[3].figure.savefig(tmp_path / "one.png")
    for figure in figures:
        assert figure.caption
        assert "accuracy" in figure.figure.axes[0].get_ylabel()


# A person's own files


def write(folder, name, inputs, labels):
    np.savez(folder / f"{name}.npz", inputs=inputs, labels=labels)


@pytest.fixture(scope="module")
def digits():
    return {suffix: load_examples("MNIST17", part) for part, suffix in (("train", ""), ("test", "_test"))}


@pytest.fixture
def files(digits, tmp_path):
    """Ones and sevens as two of the paper's tasks: as pixels, and as features of an encoder."""
    for suffix, part in digits.items():
        write(tmp_path, f"mnist17{suffix}", part.inputs, part.labels)
        features = part.inputs.reshape(len(part), 28, 28)[:, 4:24:4, 4:24:4].reshape(len(part), -1)
        write(tmp_path, f"dogfish{suffix}", features.astype(np.float32) / 255, part.labels)
    return tmp_path


def test_files_that_are_missing_are_named(files):
    cells = {settings(c)["data"]: c for c in paper.plan("paper")}
    assert paper.missing(cells["mnist17.npz"], str(files)) is None
    assert paper.missing(cells["imdb.npz"], str(files)) == "imdb.npz"
    (files / "mnist17_test.npz").unlink()
    assert paper.missing(cells["mnist17.npz"], str(files)) == "mnist17_test.npz"


def test_a_task_from_files_is_what_the_built_in_data_are(files):
    ours = plans.ridge("mnist17.npz", lam_scale=2.0)
    built_in = plans.ridge("MNIST17", lam_scale=2.0)
    cells = [
        ours.cell(q="0.05 0.1", first=0, points=120),
        ours.cell(q="0.05 0.1", first=120, points=120),
        built_in.cell(q="0.05 0.1", first=0, points=200),
    ]
    tally = Tally(results(cells, computed(cells, str(files))))
    assert tally.points(ours) == tally.points(built_in) == 200
    for metric, q in (("np", 0.05), ("kl", 0.1), ("exact", None)):
        assert tally.curve(metric, ours, q) == tally.curve(metric, built_in, q)
        assert tally.median(metric, ours, q) == tally.median(metric, built_in, q) > 10
    assert tally.total("np_above_exact", ours, 0.05) == 0


def test_ensembles_of_a_task_take_a_penalty_for_their_parts(files):
    problem = load_problem("mnist17.npz", str(files), "pca:50")
    scatter = ((problem.features - problem.features.mean(0)) ** 2).sum() / 50
    trial = plans.votes("mnist17.npz", 40).cell(first=0, points=60)
    assert figures_of(trial, str(files))["lam"] == pytest.approx(scatter / 40)
    assert figures_of(trial, str(files))["right"] > 50


def test_the_papers_scale_runs_from_the_command_line(files, capsys):
    (files / "mnist17.npz").unlink()
    run = str(files / "run")
    words = ["label_flip_certification", "--scale", "paper", "--workers", "0", "--run", run]
    assert main([*words, "--data", str(files)]) == 0
    out, err = capsys.readouterr()
    assert "5 of 81 cells are left out: they need mnist17.npz" in err
    assert "Dogfish (200 points): kept, best setting" in " ".join(out.split())
    assert "4 run now" in out
    assert "5 of 6 claims hold" in out
    assert main(words) == 2
    assert "data: the paper scale of label_flip_certification needs cifar10.npz" in capsys.readouterr().err


def test_claims_of_the_papers_tasks_name_their_sources_and_can_fail(files):
    cells = [s.cell(q=plans.join(plans.QS), first=0, points=200) for s in (plans.ridge("mnist17.npz", lam_scale=20.0),)]
    cells += [
        plans.ridge("mnist17.npz", lam_scale=c).cell(q=plans.join(plans.QS), first=0, points=200) for c in (0.2, 2.0)
    ]
    cells.append(plans.votes("mnist17.npz", 13_007).cell(first=0, points=200))
    votes = [(cells[-1].trial_id, *row) for row in curve("votes", np.ones(200, dtype=bool), np.full(200, 6000))]
    votes.append((cells[-1].trial_id, 0, "", "test", "points", 200.0))
    rows = computed(cells[:-1], str(files)) + votes
    claims = {c.name: c for c in paper.claims(results(cells, rows), "paper")}
    quoted = claims["MNIST 1/7 (200 points): closed form, certified accuracy at 2000 flips, best setting"]
    assert (quoted.measured, quoted.holds) == (0, True)
    assert quoted.source == "the paper, as quoted by Levine & Feizi, arXiv 2006.14768"
    flips = claims["MNIST 1/7 (200 points), SS-DPA, 13007 parts: certified accuracy at 5952 flips"]
    assert (flips.measured, flips.holds) == (1.0, False)  # 4.5 points above what is stated
    exact = claims["MNIST 1/7 (200 points): plain ridge, exact median, above the smoothed rule's best"]
    assert exact.measured > 10
    wrong = [(*row[:-1], 3.0) if row[4] == "np_above_exact" else row for row in rows]
    name = "MNIST 1/7 (200 points): points with tight above exact"
    assert {c.name: c for c in paper.claims(results(cells, wrong), "paper")}[name].measured == 36
    figures = paper.figures(results(cells, rows))
    assert [f.title.split(":")[0] for f in figures] == ["MNIST 1/7"]
    assert [len(axes.lines) for axes in figures[0].figure.axes] == [10, 10, 10]


def spoil_labels(folder):
    train = np.load(folder / "mnist17.npz")
    write(folder, "mnist17", train["inputs"], np.where(train["labels"] == 1, 7, 1))


def drop_a_class(folder):
    train = np.load(folder / "mnist17.npz")
    keep = train["labels"] == 1
    write(folder, "mnist17", train["inputs"][keep], train["labels"][keep])


def crop(folder):
    test = np.load(folder / "mnist17_test.npz")
    write(folder, "mnist17_test", test["inputs"][..., 1:], test["labels"])


def shorten(folder):
    test = np.load(folder / "mnist17_test.npz")
    write(folder, "mnist17_test", test["inputs"][:50], test["labels"][:50])


def write_text(folder):
    (folder / "mnist17.npz").write_text("no archive")


def repeat(folder):
    train = np.load(folder / "mnist17.npz")
    inputs = train["inputs"].copy()
    inputs[1] = inputs[0]
    write(folder, "mnist17", inputs, train["labels"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_labels, r"mnist17\.npz: label 7 of row \d+ is not below the number of classes, 2"),
        (drop_a_class, r"mnist17\.npz: has no example of class 0; give the whole set"),
        (crop, r"mnist17_test\.npz: has 756 inputs an example, .*mnist17\.npz 784; make them equal"),
        (shorten, r"mnist17_test\.npz: has 50 examples, none from 100 on; give the whole set"),
        (write_text, r"mnist17\.npz: cannot be read"),
        (repeat, r"inputs: row \d+ is there more than once; drop duplicates"),
    ],
)
def test_bad_files_are_named_in_one_line(files, spoil, message):
    spoil(files)
    setting = plans.votes("mnist17.npz", 10) if spoil is repeat else plans.ridge("mnist17.npz", lam_scale=1.0)
    more = {} if spoil is repeat else {"q": "0.05"}
    with pytest.raises(InputError, match=message) as caught:
        paper.run(setting.cell(first=100, points=20, **more), str(files))
    assert "\n" not in str(caught.value)
