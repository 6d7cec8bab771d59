"""Studies in the report: built anew from the run, Optuna's figures of them, and what their score has seen."""

import datetime as dt
import io
import json
import math
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib
import matplotlib.style
import optuna
import pyarrow as pa
import pytest
from optuna.distributions import distribution_to_json
from rich.console import Console

from cluster.schemas import TRIALS
from cluster.store import Run, Store
from cluster.trial import Trial
from jobs.report import main, studies, write_report
from tests.jobs.test_report import browser, open_page, record, store  # noqa: F401 - a fixture
from tests.jobs.test_selection import BUDGET, Recorder
from tuning.rows import to_row
from tuning.search import Ended, Search
from tuning.search_space import build_space
from tuning.study import open_study, quiet_optuna
from tuning.tables import SUGGESTIONS


def score(trial):
    """Depends on lr above all; `width` is asked for only with one network, `dropout` hardly matters."""
    lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
    network = trial.suggest_categorical("network", ["linear", "mlp"])
    width = trial.suggest_int("width", 16, 256, log=True) if network == "mlp" else 16
    dropout = trial.suggest_float("dropout", 0.0, 0.5)
    return 0.9 - 0.1 * (math.log10(lr) + 3) ** 2 + 0.001 * math.log2(width) - 0.001 * dropout


def pruned_score(trial):
    if trial.number == 7:
        raise ValueError("loss is NaN")
    value = score(trial)
    for step in (10, 20, 30):
        trial.report(value - 1 / step, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return value


def two_scores(trial):
    value = score(trial)
    return value, 100 * value**2 + trial.params["dropout"]


def three_scores(trial):
    return (*two_scores(trial), -score(trial) * trial.params["dropout"])


def search(objective=pruned_score, trials=60, directions=("maximize",), name="ERM on D", pruner=None):
    """Run a study as Optuna does."""
    with quiet_optuna():
        sampler = optuna.samplers.RandomSampler(seed=3)
        pruner = pruner or optuna.pruners.MedianPruner(n_startup_trials=5)
        study = optuna.create_study(study_name=name, sampler=sampler, pruner=pruner, directions=directions)
        study.optimize(objective, trials, catch=(ValueError,))
    return study


def rows_of(study, objectives=("validation",), trial_ids=lambda number: []):
    """The rows that a search stores, as dicts."""
    rows = []
    for trial in study.get_trials():
        found = {k: json.loads(distribution_to_json(d)) for k, d in trial.distributions.items()}
        trial.set_user_attr("trial_ids", trial_ids(trial.number))
        if trial.state.name == "FAIL":
            trial.set_user_attr("error", "ValueError: loss\nis NaN")
        directions = [d.name.lower() for d in study.directions]
        row = to_row(study.study_name, trial, json.dumps(found), objectives, directions)
        rows.append(dict(zip(SUGGESTIONS.names, row, strict=True)))
    return rows


def save(path, rows, runs=None):
    """Write a run with suggestions, and what a recorder has."""
    runs = runs or Recorder()
    with Store(str(path), {"suggestions": SUGGESTIONS}) as sink:
        found = pa.Table.from_pylist(rows, schema=SUGGESTIONS)
        sink.append({"trials": runs.trials, "metrics": runs.metrics, "suggestions": found})
    return str(path)


def section(rows, trials=None):
    trials = TRIALS.empty_table() if trials is None else trials
    (found,) = studies.study_sections(pa.Table.from_pylist(rows, schema=SUGGESTIONS), trials)
    return found


def report(run):
    """Returns what is printed and the page."""
    sink = io.StringIO()
    path = write_report(run, console=Console(file=sink, width=200))
    return sink.getvalue(), Path(path).read_text()


def figures(found):
    drawn = found.drawn
    return {plot.title.partition(": ")[2]: plot.svg for plot, _ in (*drawn.figures, *drawn.wide, *drawn.slices)}


def dots(svg, colour):
    return len(re.findall(rf'<use [^>]*style="fill: {colour}', svg))


def heights(svg, colour):
    """Values of the dots of a colour in the axes' unit, from left to right."""
    ticks = re.findall(r'ytick_\d+">.*?<use [^>]*y="([\d.]+)".*?<text[^>]*>([^<]*)</text>', svg, re.DOTALL)
    (low, first), *_, (high, last) = [(float(y), float(text.replace("−", "-"))) for y, text in ticks]
    found = re.findall(rf'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: {colour}', svg)
    points = sorted((float(x), first + (float(y) - low) * (last - first) / (high - low)) for x, y in found)
    return [value for x, value in points]


def comparable(trial):
    length = trial.datetime_complete - trial.datetime_start
    return trial.number, trial.state, trial.values, trial.params, trial.distributions, trial.intermediate_values, length


def test_a_study_built_anew_is_the_study():
    study = search()
    states = {t.state.name for t in study.get_trials()}
    assert states == {"COMPLETE", "PRUNED", "FAIL"}
    again = studies.rebuild(rows_of(study))
    assert list(map(comparable, again.get_trials())) == list(map(comparable, study.get_trials()))
    assert (again.best_value, again.best_trial.number) == (study.best_value, study.best_trial.number)
    assert (again.study_name, again.directions, again.metric_names) == ("ERM on D", study.directions, ["validation"])
    started = again.trials[0].datetime_start.replace(tzinfo=dt.UTC)
    assert started == study.trials[0].datetime_start.astimezone(dt.UTC)


def test_of_several_rows_for_a_number_the_last_complete_one_counts_and_numbers_stay():
    rows = rows_of(search(trials=9, pruner=optuna.pruners.NopPruner()))
    failed = {**rows[7], "number": 3}
    better = {**rows[3], "values": [0.99]}
    assert studies.rebuild([*rows, better, failed]).trials[3].values == [0.99]
    assert studies.rebuild([failed, *rows]).trials[3].values == rows[3]["values"]
    assert studies.rebuild([{**rows[7], "state": "pruned"}, *rows]).trials[7].state.name == "FAIL"
    short = studies.rebuild([rows[8], rows[2], rows[5]])
    assert [t.number for t in short.trials if t.state.name == "COMPLETE"] == [2, 5, 8]
    assert short.trials[5].params == json.loads(rows[5]["parameters"])
    found = section([rows[8], rows[2], rows[5]])
    assert found.counts.startswith("3 complete, 6 without a result yet; ")
    assert dots(figures(found)["history of validation"], "#1f77b4") == 3 + 1  # one in the legend


class Distance:
    """The objective of the search below."""

    names = ["distance"]
    directions = ["minimize"]

    def final(self, trial, rows, seconds):
        return [rows[-1][4]]

    def at_step(self, trial, rows):
        return rows[-1][4]


def test_the_rows_that_a_search_stores_are_built_anew():
    ranges = {"x": {"low": -5.0, "high": 5.0}, "net": {"choices": ["a", "b", True]}}
    space = build_space({}, ranges, {"x": 0.0, "net": "a"}, {}, "me")
    with quiet_optuna():
        study = open_study("s", optuna.storages.InMemoryStorage(), ["minimize"], space, {"method": "me"})
        study.sampler = optuna.samplers.RandomSampler(seed=1)
        made = Search(study, space, Distance(), lambda values, seed: Trial.create("me", "d", (), values, seed), 8)
        while not made.done:
            trial = made.next()
            x = json.loads(trial.hyperparameters)["x"]
            ended = Ended("completed", [(1, "e", "out", "distance", abs(x))], 1.0)
            made.take(trial, Ended("failed", [], 1.0, "boom") if x < -3 else ended)
    rows = [dict(zip(SUGGESTIONS.names, row, strict=True)) for row in made.rows()]
    again = studies.rebuild(rows)
    states = [t.state.name for t in again.trials]
    assert set(states) == {"COMPLETE", "FAIL"}
    assert list(map(comparable, again.trials)) == list(map(comparable, study.trials))
    found = section(rows)
    assert found.columns == ["Trial", "distance", "x", "net", "State"]
    assert found.rows[0][:2] == [str(study.best_trial.number), f"{study.best_value:.4g}"]
    assert any(re.fullmatch(r"Trial \d failed: boom", note) for note in found.notes)


def test_best_trials_stand_in_order_with_their_parameters_pruned_ones_last():
    study = search()
    found = section(rows_of(study))
    complete = [t for t in study.trials if t.state.name == "COMPLETE"]
    best = sorted(complete, key=lambda t: -t.value)
    assert len(complete) > 10
    assert found.columns == ["Trial", "validation", "lr", "network", "width", "dropout", "State"]
    assert [row[0] for row in found.rows] == [str(t.number) for t in best[:10]]
    for row, t in zip(found.rows, best, strict=False):
        p = t.params
        numbers = [f"{value:.4g}" for value in (t.value, p["lr"])]
        width = str(p.get("width", "–"))
        assert row[1:] == [*numbers, p["network"], width, f"{p['dropout']:.4g}", "complete"]
    assert {row[4] for row in found.rows} > {"–"}
    counts = [sum(t.state.name == state for t in study.trials) for state in ("COMPLETE", "PRUNED", "FAIL")]
    words = "{} complete, {} pruned, {} failed".format(*counts)
    assert found.counts == f"{words}; best validation {study.best_value:.4g} (trial {study.best_trial.number})"
    assert found.facts.startswith(f"{words}; maximize validation; ")
    assert "Trial 7 failed: ValueError: loss is NaN" in found.notes
    few = section(rows_of(search(trials=12)))
    pruned = [row for row in few.rows if row[-1] != "complete"]
    assert pruned == few.rows[-len(pruned) :]
    assert {row[-1] for row in pruned} <= {"pruned at step 10", "pruned at step 20"}


def test_smaller_is_better_where_the_score_is_minimised_and_ties_go_to_the_first():
    study = search(lambda trial: round(abs(trial.suggest_float("x", -3, 3))), 20, ["minimize"])
    found = section(rows_of(study, ["validation-loss"]))
    assert found.rows[0][0] == str(study.best_trial.number)
    values = [float(row[1]) for row in found.rows]
    assert values == sorted(values)
    assert values[0] == values[1]


def test_wall_time_goes_from_the_first_start_to_the_last_end():
    rows = rows_of(search(trials=3))
    start = dt.datetime(2026, 3, 1, 9, 30, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    for i, row in enumerate(rows):
        row["started_at"], row["ended_at"] = start + dt.timedelta(minutes=i), start + dt.timedelta(minutes=9 - i)
    assert studies.rebuild(rows).trials[0].datetime_start == dt.datetime(2026, 3, 1, 7, 30)
    facts = section(rows).facts
    assert re.search(r"; 9 min( 0+ s)? from first start \(2026-03-01 07:30 UTC\) to last end$", facts), facts


def test_several_objectives_show_the_pareto_front_and_figures_of_each():
    study = search(two_scores, 40, ["maximize", "minimize"])
    found = section(rows_of(study, ["worst", "seconds"]))
    front = sorted(study.best_trials, key=lambda t: -t.values[0])
    assert 1 < len(front) < 40
    assert [row[0] for row in found.rows] == [str(t.number) for t in front][:10]
    assert f"{len(front)} Pareto-optimal" in found.counts
    best = max(t.values[0] for t in study.trials), min(t.values[1] for t in study.trials)
    assert f"best worst {best[0]:.4g}, best seconds {best[1]:.4g}" in found.counts
    drawn = figures(found)
    assert list(drawn)[:5] == [
        "Pareto front",
        "history of worst",
        "importances for worst",
        "history of seconds",
        "importances for seconds",
    ]
    assert dots(drawn["Pareto front"], "#d62728") == len(front) + 1  # one in the legend
    assert dots(drawn["Pareto front"], "#1f77b4") == 40 - len(front) + 1
    for i, name in enumerate(("worst", "seconds")):
        values = [t.values[i] for t in study.trials]
        assert heights(drawn[f"history of {name}"], "#1f77b4") == pytest.approx(
            values, abs=1e-3 * max(map(abs, values))
        )
    assert [t for t in drawn if " against " in t] == [
        f"{name} against {p}" for name in ("worst", "seconds") for p in sliced(drawn)
    ]
    assert "Pareto Rank" in drawn["parallel coordinates"]


def sliced(drawn):
    return list(dict.fromkeys(title.partition(" against ")[2] for title in drawn if " against " in title))


def shares(svg):
    """Parameter and share as the figure of importances names them, most important first."""
    texts = re.findall(r"<text [^>]*>([^<]*)</text>", svg)
    names = [t for t in texts if t in ("lr", "network", "width", "dropout")]
    values = [t for t in texts if re.fullmatch(r"(&lt;|<)?0\.\d\d|1\.00", t)][-len(names) :]
    return dict(zip(reversed(names), reversed(values), strict=True))


def test_importances_are_optunas_and_point_to_what_matters_whichever_way_is_better():
    study = search(score, 120)
    drawn = figures(section(rows_of(study)))
    expected = optuna.importance.get_param_importances(study, params=sorted(["lr", "network", "width", "dropout"]))
    found = shares(drawn["importances for validation"])
    assert list(found) == list(expected)
    assert next(iter(found)) == "lr"
    assert found["lr"] == f"{expected['lr']:.2f}"
    assert sliced(drawn) == list(expected)
    # Minimised and maximised, alone or beside another objective, the same trials are the best.
    both = search(lambda trial: (score(trial), -score_again(trial)), 120, ["maximize", "minimize"])
    drawn = figures(section(rows_of(both, ["validation", "validation-loss"])))
    for name in ("validation", "validation-loss"):
        assert shares(drawn[f"importances for {name}"]) == found


def score_again(trial):
    return score(optuna.trial.FixedTrial(trial.params))


def test_each_figure_is_there_when_its_study_has_something_to_show():
    study = search()
    found = section(rows_of(study))
    drawn = figures(found)
    assert list(drawn)[:5] == [
        "history of validation",
        "importances for validation",
        "intermediate values",
        "timeline",
        "parallel coordinates",
    ]
    assert sorted(sliced(drawn)) == ["dropout", "lr", "network", "width"]
    complete = [t for t in study.trials if t.state.name == "COMPLETE"]
    assert dots(drawn["history of validation"], "#1f77b4") == len(complete) + 1
    points = sum(len(t.intermediate_values) for t in study.trials if t.state.name != "FAIL")
    assert drawn["intermediate values"].count("<use ") - ticks(drawn["intermediate values"]) == points
    assert all(f">{word}<" in drawn["timeline"] for word in ("COMPLETE", "PRUNED", "FAIL", "time (UTC)"))
    for title, svg in drawn.items():
        assert "currentColor" in svg
        assert ("<image" in svg) == (title == "parallel coordinates")  # its colour bar
        assert not re.search(r"#(e5e5e5|555555|ffffff|08306b|f7fbff)\b", svg, re.IGNORECASE)  # Optuna's own style
        assert " Plot<" not in svg
    assert "$" not in re.sub(r"<[^>]*>", "", drawn["validation against lr"])
    unpruned = figures(section(rows_of(search(score, 30))))
    assert "intermediate values" not in unpruned
    assert "importances for validation" in unpruned


def ticks(svg):
    return len(re.findall(r'<g id="[^"]*tick_\d+"', svg))


@pytest.mark.parametrize(
    ("objective", "trials", "note"),
    [
        (score, 1, "No importances for validation: they need two complete trials with different scores."),
        (lambda trial: 0.5 + 0 * score(trial), 9, "two complete trials with different scores."),
        (lambda trial: 0.5 if trial.suggest_int("x", 1, 1) and trial.number else 0.2, 9, "tells the best"),
        (lambda trial: score(trial) if trial.number else math.inf, 9, None),
    ],
)
def test_odd_studies_are_drawn_as_far_as_can_be(objective, trials, note):
    found = section(rows_of(search(objective, trials)))
    drawn = figures(found)
    assert "history of validation" in drawn
    assert "parallel coordinates" in drawn
    assert ("importances for validation" in drawn) == (note is None)
    assert note is None or any(note in text for text in found.notes)


def test_scores_that_are_all_infinite_leave_the_timeline():
    found = section(rows_of(search(lambda trial: math.copysign(math.inf, score(trial)), 9)))
    assert list(figures(found)) == ["timeline"]
    assert any("No trial is complete with a finite score" in note for note in found.notes)
    assert "best validation inf" in found.counts


def test_a_run_of_failed_and_pruned_suggestions_alone_is_reported(tmp_path, capsys):
    rows = [row for row in rows_of(search()) if row["state"] != "complete"]
    runs = Recorder()
    runs.add("a", {}, status="pruned")
    run = save(tmp_path / "run", rows, runs)
    assert main([run]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"{run}: 0 trials completed, 1 pruned; total records: 0"
    assert "1 failed" in out
    assert "none has a final value" in out
    html = Path(run, "_report", "report.html").read_text()
    assert "No trial is complete" in html
    assert "ValueError: loss is NaN" in html
    assert 'aria-labelledby="' in html.partition('id="studies"')[2]
    assert main([save(tmp_path / "only", rows)]) == 0


def test_an_oracle_is_called_one_in_the_terminal_and_on_the_page(tmp_path):
    runs = Recorder()
    ids = [runs.add(held, {200: {"b": (0, 0.5)}}) for held in (["-90%"], ["+80%"])]
    rows = rows_of(search(trials=10), ["oracle"], lambda number: ids)
    text, html = report(save(tmp_path / "oracle", rows, runs))
    said = "the score was measured on the held-out environment itself (+80%, -90%). These figures are an upper bound"
    assert f"warning: Oracle: {said} that no user could select by" in text
    assert re.search(rf'<p class="warning" role="note">Oracle: {re.escape(said)} that no user could select by', html)
    assert "never saw" not in text + html
    text, html = report(save(tmp_path / "validation", rows_of(search(trials=10), ["validation"], lambda n: ids), runs))
    assert "The score never saw the held-out environment (+80%, -90%)" in html
    assert "warning" not in text
    assert "Oracle" not in html
    both = section(rows_of(search(two_scores, 10, ["maximize"] * 2), ["validation", "oracle"]))
    assert both.oracle


def test_where_nothing_is_held_out_the_report_says_so():
    runs = Recorder()
    ids = [runs.add([], {200: {"b": (0, 0.5)}})]
    found = section(rows_of(search(trials=4), ["val_loss:min"], lambda n: ids), runs.tables()[0])
    assert found.seen.startswith("No environment was held out")
    assert not found.oracle


def test_trials_of_a_study_stand_in_no_comparison(tmp_path):
    runs = record(methods=("ERM", "IRM"), pairs=False)
    _, before = report(store(runs, tmp_path / "without"))
    perfect = {200: dict.fromkeys(("+90%", "+80%", "-90%"), (0.99, 0.99))}
    ids = [runs.add(["+90%"], perfect, "IRM", lr, 0, BUDGET, "ColoredMNIST") for lr in (7, 8)]
    report(store(runs, tmp_path / "sweep"))  # the same trials where no study chose them
    rows = rows_of(search(score, 4), trial_ids=lambda number: ids[number : number + 1])
    text, html = report(save(tmp_path / "study", rows, runs))
    tables = [(tmp_path / run / "_report" / "tables.csv").read_text() for run in ("without", "sweep", "study")]
    assert tables[2] == tables[0] != tables[1]
    assert "they take no part in tables that compare methods" in html
    assert "Trials of the studies above took no part" in html
    assert "Trials of the studies" not in before
    assert f"{len(runs.trials)} trials completed" in text
    assert "ERM on D: 4 complete; best validation" in text


def test_the_terminal_shows_the_best_five_of_every_study(tmp_path):
    first, second = search(name="b"), search(two_scores, 40, ["maximize", "minimize"], name="a")
    text, html = report(save(tmp_path / "run", [*rows_of(first), *rows_of(second, ["worst", "seconds"])]))
    lines = text.splitlines()
    (start,) = [i for i, line in enumerate(lines) if line.startswith("b: ")]
    assert f"; best validation {first.best_value:.4g} (trial {first.best_trial.number})" in lines[start]
    assert lines[start + 1].split() == ["Trial", "validation", "lr", "network", "width", "dropout", "State"]
    best = sorted((t for t in first.trials if t.state.name == "COMPLETE"), key=lambda t: -t.value)[:5]
    assert [line.split()[0] for line in lines[start + 2 : start + 7]] == [str(t.number) for t in best]
    assert lines[start + 7] == ""
    assert text.index("a: 40 complete") < text.index("b: ")
    assert html.index(">a</h4>") < html.index(">b</h4>")


def test_hostile_names_are_shown_as_text(tmp_path):
    def objective(trial):
        x = trial.suggest_float("<script>alert(1)</script>", 0, 1)
        return x + len(trial.suggest_categorical("$x^{$", ["$y_{$", "[red]b[/red]", "<b>"]))

    study = search(objective, 12, name="$s^{ <i>[red]x[/red]")
    text, html = report(save(tmp_path / "run", rows_of(study, ["$o_{$<u>"])))
    assert "[red]x[/red]: 12 complete" in text
    assert "<script>alert" not in html
    assert "<u>" not in html
    for name in ("&lt;script&gt;alert(1)&lt;/script&gt;", "$x^{$", "$o_{$&lt;u&gt;"):
        assert f">{name}</text>" in html


def test_a_large_study_is_light_and_more_pareto_ranks_than_optuna_can_colour_are_no_obstacle():
    def objective(trial):
        value = sum(trial.suggest_float(f"p{i}", 0, 1) for i in range(14))
        return value, value

    study = search(objective, 1200, ["minimize", "minimize"])
    found = section(rows_of(study, ["validation-loss", "seconds"]))
    drawn = figures(found)
    assert sum(map(len, drawn.values())) < 2e6
    assert len(sliced(drawn)) == 6
    assert "the 6 most important for validation-loss of 14 parameters" in found.drawn.slices_caption
    assert "of 1,200, the best and others evenly chosen" in found.drawn.slices_caption
    assert found.rows[0][0] == str(study.best_trials[0].number)
    assert "<image" in drawn["history of seconds"]


def test_a_long_pruned_study_shows_some_of_its_curves():
    found = section(rows_of(search(pruned_score, 700)))
    drawn = figures(found)
    assert sum(map(len, drawn.values())) < 2e6
    (caption,) = [caption for plot, caption in found.drawn.figures if "intermediate" in plot.title]
    assert re.search(r"\(2\d\d of 699, the best and others evenly chosen\)", caption)
    assert drawn["intermediate values"].count("<use ") - ticks(drawn["intermediate values"]) < 251 * 3


def settings():
    both = matplotlib.rcParams.copy(), matplotlib.rcParamsDefault.copy()
    return *both, dict(matplotlib.style.library), optuna.logging.get_verbosity()


def test_nothing_of_pyplot_optuna_or_warnings_stays(tmp_path, capfd):
    from matplotlib import pyplot

    run = save(tmp_path / "run", [*rows_of(search()), *rows_of(search(three_scores, 30, ["maximize"] * 3, "c"), "xyz")])
    matplotlib.use("svg")
    mine, _ = pyplot.subplots()
    before = settings()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        write_report(run, console=Console(file=io.StringIO()))
    assert [str(w.message) for w in warned if w.category is not DeprecationWarning] == []
    assert settings() == before
    assert matplotlib.style.library["ggplot"]["axes.facecolor"] == "#E5E5E5"
    assert matplotlib.get_backend() == "svg"
    assert pyplot.get_fignums() == [mine.number]
    assert pyplot.gcf() is mine
    assert type(pyplot.figure().canvas).__name__ == "FigureCanvasSVG"
    pyplot.close("all")
    matplotlib.use("agg")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("backend", [None, "module://nowhere"])
def test_a_backend_that_is_not_chosen_yet_or_cannot_be_loaded_here_stays_so(tmp_path, backend):
    run = save(tmp_path / "run", rows_of(search(trials=6)))
    code = (
        "import sys, matplotlib; from jobs.report import write_report; write_report(sys.argv[1]);"
        "print(matplotlib.get_backend(auto_select=False))"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "DISPLAY")}
    environment |= {"MPLBACKEND": backend} if backend else {}
    words = [sys.executable, "-W", "error::UserWarning", "-c", code, run]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == str(backend)


def test_a_run_without_studies_loads_no_optuna_and_shows_no_section(tmp_path):
    run = store(record(methods=["ERM"], seeds=1), tmp_path / "run")
    code = (
        "import sys; from jobs.report import write_report; write_report(sys.argv[1]);"
        "sys.exit('optuna' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, run], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert 'id="studies"' not in Path(run, "_report", "report.html").read_text()
    assert len(studies.suggestions(Run(run))) == 0
    assert not studies.study_sections(SUGGESTIONS.empty_table(), TRIALS.empty_table())


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    rows = [
        *rows_of(search(name="IRM on ColoredMNIST without -90%")),
        *rows_of(search(two_scores, 40, ["maximize", "minimize"], "front"), ["oracle", "seconds"]),
        *rows_of(search(three_scores, 30, ["maximize"] * 3, "three"), ["validation", "worst", "accuracy"]),
    ]
    runs = record(methods=["ERM", "IRM"], seeds=1)
    return report_path(save(tmp_path_factory.mktemp("studies") / "run", rows, runs))


def report_path(run):
    return write_report(run, console=Console(file=io.StringIO()))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_opens_without_errors_and_shows_every_figure(browser, page_path, scheme):  # noqa: F811
    problems = []
    page = open_page(browser, page_path, problems, color_scheme=scheme)
    assert page.locator("#studies article").count() == 3
    charts = page.locator("#studies figure svg")
    assert charts.count() == (5 + 4) + (7 + 4 * 2) + (9 + 4 * 3)
    for index in range(charts.count()):
        box = charts.nth(index).bounding_box()
        assert box["width"] > 150
        assert box["height"] > 50
    wide = page.locator("#studies figure.across svg").first.bounding_box()["width"]
    assert wide > 1.5 * charts.first.bounding_box()["width"]
    ink = page.evaluate("getComputedStyle(document.body).color")
    texts = page.locator("#studies figure svg text")
    assert set(texts.evaluate_all("found => found.map(e => getComputedStyle(e).fill)")) == {ink}
    assert page.evaluate("new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size") == page.evaluate(
        "document.querySelectorAll('[id]').length"
    )
    assert page.locator("#studies .warning:visible").count() == 1
    assert "upper bound" in page.locator("#studies .warning").inner_text()
    assert problems == []
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.close()
