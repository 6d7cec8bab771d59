"""Reproducing a paper: cells are run once, claims stored beside their figures, and shown as they came out."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import jobs.papers
from cluster.store import Run
from jobs.claims import Claim, load_paper, paper_names
from jobs.reproduce import main

TOY = '''
"""A paper with three cells, of which one fails when told to."""
import os

from jobs.claims import Claim, NamedFigure, cell, scalar_rows, settings

TITLE = "On Squares"
SOURCE = "Nobody, nowhere, 2026"
NOTE = "Squares [of numbers] alone."


def plan(scale):
    return [cell("toy_paper/squares", "square", seed, x=x) for seed in range(2 if scale == "paper" else 1) for x in (1, 2, 3)]


def run(trial):
    x = settings(trial)["x"]
    if x == 3 and os.path.exists(os.environ.get("TOY_BROKEN", "/nonexistent")):
        raise RuntimeError("the cell is broken")
    return scalar_rows({"y": float(x * x)})


def claims(results, scale):
    return [
        Claim("2 squared", 4.0, results.mean("y", x=2), 0.0, "derived here"),
        Claim("3 squared is below 5", 5.0, results.mean("y", x=3), 0.0, "ours", "at most", stated="cubes [x^3] grow faster"),
    ]


def figures(results):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3))
    axes = figure.add_subplot()
    axes.plot(*results.curve("y", "x"))
    axes.set_xlabel("side of the square")
    return [NamedFigure("Squares grow", "The square against its side.", figure)]
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "toy_paper.py").write_text(textwrap.dedent(TOY))
    monkeypatch.setattr(jobs.papers, "__path__", [*jobs.papers.__path__, str(folder)])
    yield str(tmp_path / "run")
    sys.modules.pop("jobs.papers.toy_paper", None)


def page_of(run):
    return Path(run, "_report", "report.html").read_text()


def claims(run):
    return Run(run).read("claims").to_pylist()


def test_claims_are_stored_printed_and_drawn_and_a_rerun_runs_nothing(toy, capsys):
    assert main(["toy_paper", "--run", toy, "--workers", "0"]) == 0
    text = capsys.readouterr().out
    assert "2 squared" in text
    assert "1 of 2 claims hold" in text
    assert "3 run now" in text
    rows = claims(toy)
    assert [(r["paper"], r["claim"], r["measured"], r["holds"], r["relation"], r["scale"]) for r in rows] == [
        ("toy_paper", "2 squared", 4.0, True, "equals", "small"),
        ("toy_paper", "3 squared is below 5", 9.0, False, "at most", "small"),
    ]
    assert [row["stated"] for row in rows] == [None, "cubes [x^3] grow faster"]
    assert "The paper: cubes [x^3] grow faster" in text
    assert "Note: Squares [of numbers] alone." in text
    page = page_of(toy)
    for words in (
        "On Squares",
        "3 squared is below 5",
        "&lt;= 5",
        "Squares grow",
        "side of the square",
        "<svg",
        "The paper: cubes [x^3]",
        "Squares [of",
    ):
        assert words in page, words
    assert main(["toy_paper", "--run", toy, "--workers", "0"]) == 0
    assert "0 run now" in capsys.readouterr().out
    assert page_of(toy).count("3 squared is below 5") == 1
    assert main(["toy_paper", "--run", toy, "--workers", "0", "--scale", "paper"]) == 0
    assert "3 run now" in capsys.readouterr().out


def test_a_failed_cell_is_stored_its_claim_does_not_hold_and_it_can_be_tried_again(toy, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TOY_BROKEN", str(tmp_path))
    assert main(["toy_paper", "--run", toy, "--workers", "0"]) == 1
    captured = capsys.readouterr()
    assert "RuntimeError: the cell is broken" in captured.err
    assert [row["holds"] for row in claims(toy)] == [True, False]
    monkeypatch.delenv("TOY_BROKEN")
    assert main(["toy_paper", "--run", toy, "--workers", "0", "--retry_failed"]) == 0
    latest = max(claims(toy), key=lambda row: (row["claim"], row["measured_at"]))
    assert latest["measured"] == 9.0


def test_a_sweep_and_a_paper_share_a_run_and_both_are_reported(toy, capsys):
    from jobs.sweep import main as sweep

    words = ["--dataset", "ColoredMNIST", "--steps", "2", "--held_out", "+90%", "--run", toy, "--workers", "0"]
    assert sweep(words) == 0
    assert main(["toy_paper", "--run", toy, "--workers", "0"]) == 0
    page = page_of(toy)
    assert "On Squares" in page
    assert "Training-domain validation" in page
    assert "toy_paper/squares" not in capsys.readouterr().out


def test_the_papers_are_listed_and_a_wrong_name_gets_the_nearest(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for name in paper_names():
        assert name in text
    assert main(["risk_of_irm"]) == 2
    assert "no paper 'risk_of_irm'; did you mean 'risks_of_irm'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", paper_names())
def test_every_papers_plans_are_made_of_distinct_cells_of_its_own(name):
    paper = load_paper(name)
    for scale in ("small", "paper"):
        plan = paper.plan(scale)
        assert len({trial.trial_id for trial in plan}) == len(plan) > 0
        assert all(trial.dataset.startswith(f"{name}/") for trial in plan)
    assert len(paper.plan("small")) < len(paper.plan("paper"))
    assert paper.TITLE
    assert paper.SOURCE


def test_planning_a_paper_needs_nothing_heavy():
    code = (
        "import sys; from jobs.claims import load_paper, paper_names\n"
        "for name in paper_names(): load_paper(name).plan('paper')\n"
        "print(sorted({'lightning', 'matplotlib', 'numpy', 'ray', 'scipy', 'torch', 'zuko'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_claim_holds_within_its_tolerance_and_never_without_a_measurement():
    for relation, low, inside, high in (
        ("equals", False, True, False),
        ("at least", False, True, True),
        ("at most", True, True, False),
    ):
        measured = (0.5, 0.95, 1.5)
        assert [Claim("c", 1.0, m, 0.1, "ours", relation).holds for m in measured] == [low, inside, high]
        assert not Claim("c", 1.0, float("nan"), 0.1, "ours", relation).holds
