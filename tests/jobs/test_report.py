"""The report: numbers as printed, reasons for what is missing, and the page in a real browser."""

import csv
import datetime as dt
import io
import itertools
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from cluster.errors import InputError
from cluster.schemas import METRICS, TRIALS
from cluster.store import Run, Store
from jobs.report import main, write_report
from jobs.report.tables import Cell, escape_latex, method_order, print_tables, results, to_csv, to_latex
from tests.jobs.test_selection import BUDGET, Recorder

COLOURS = ("+90%", "+80%", "-90%")
LEVEL = {"ERM": 0.5, "IRM": 0.55, "CORAL": 0.6}


def record(
    datasets=None, methods=("IRM", "ERM", "CORAL"), seeds=3, draws=2, pairs=True, skip=(), budget=BUDGET, runs=None
):
    """Record a small sweep: accuracies rise with the step, differ by method, and depend on nothing random."""
    runs = runs or Recorder()
    for dataset, names in (datasets or {"ColoredMNIST": COLOURS}).items():
        settings = [(name,) for name in names] + (list(itertools.combinations(names, 2)) if pairs else [])
        for method, held_out, seed, draw in itertools.product(methods, settings, range(seeds), range(draws)):
            accuracies = {}
            for step in range(0, budget["steps"] + 1, budget["checkpoint_every"]):
                accuracies[step] = {}
                for place, name in enumerate(names):
                    value = LEVEL.get(method, 0.5) + step / 2000 - 0.05 * place + 0.01 * seed - 0.02 * draw
                    value = value if name in held_out else 0.85 + step / 2000 - 0.01 * draw
                    accuracies[step][name] = (value, value + 0.01)
            status = "failed" if (method, held_out, seed) in skip else "completed"
            measured = accuracies if status == "completed" else {}
            runs.add(held_out, measured, method, 0.1 * (draw + 1), seed, budget, dataset, status)
    return runs


def store(runs, path):
    """Write a recorder's rows into a run, with times, versions and errors."""
    columns = TRIALS.names
    rows = []
    for number, values in enumerate(runs.trials):
        row = dict(zip(columns, values, strict=True))
        row["started_at"] = dt.datetime(2026, 3, 1, 9, 0, tzinfo=dt.UTC) + dt.timedelta(seconds=number)
        row["seconds"] = 3.0 + number % 5
        row["versions"] = json.dumps({"torch": "2.13.0"})
        if row["status"] == "failed":
            row |= {"error": "ValueError: loss is NaN\nat step 5; <b>lower</b> lr & retry", "attempts": 3}
        rows.append(tuple(row[name] for name in columns))
    with Store(str(path)) as sink:
        sink.append({"trials": rows, "metrics": runs.metrics})
    return str(path)


def printed(tables, encoding="utf-8"):
    sink = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_tables(Console(file=sink, width=200), tables)
    sink.seek(0)
    return sink.read()


def table_of(runs, rule="training-domain", **wanted):
    found = [t for t in results(*runs.tables()).tables if t.rule.key == rule]
    (table,) = [t for t in found if all(getattr(t, key) == value for key, value in wanted.items())]
    return table


def texts(table, method):
    return [cell.text() for cell in table.rows[method]]


def test_standard_error_is_the_population_deviation_over_the_root_of_the_number_of_seeds():
    cell = Cell.over_seeds([0.80, 0.82, 0.84])
    assert cell.text() == "82.0 +/- 0.9"
    assert cell.error == pytest.approx(0.00943, abs=5e-6)
    assert Cell.over_seeds([0.8]).text() == "80.0"
    assert Cell().text() == "X"


def test_table_has_erm_first_then_the_alphabet_and_avg_without_an_error():
    table = table_of(record())
    assert list(table.rows) == ["ERM", "CORAL", "IRM"]
    assert table.columns == COLOURS
    # Draw 0 wins on the training environments at step 200; seeds give .60 .61 .62 and so on.
    assert texts(table, "ERM") == ["61.0 +/- 0.5", "56.0 +/- 0.5", "51.0 +/- 0.5", "56.0"]
    assert [cell.best for cell in table.rows["CORAL"]] == [True] * 4
    assert method_order(["b", "ERM", "A", "b"]) == ["ERM", "A", "b"]


def test_methods_that_print_the_same_are_both_best_and_a_lone_method_is_not():
    runs = Recorder()
    for method, value in {"ERM": 0.70004, "IRM": 0.69996, "SD": 0.6}.items():
        runs.add("a", {200: {"a": (value, value), "b": (0, 0.5)}}, method)
    assert [row[0].best for row in table_of(runs).rows.values()] == [True, True, False]
    assert not table_of(record(methods=["ERM"])).rows["ERM"][0].best


def test_terminal_shows_plus_minus_the_definition_and_falls_back_to_ascii():
    tables = results(*record().tables()).tables
    text = printed(tables)
    assert "61.0 ± 0.5" in text
    assert text.count("± is the standard error in percent (population standard deviation / sqrt(n))") == 3
    assert "61.0 +/- 0.5" in printed(tables, "ascii")


def test_leave_one_out_without_pairs_is_x_and_says_what_to_run():
    table = table_of(record(pairs=False), "leave-one-out")
    assert texts(table, "ERM") == ["X"] * 4
    assert any("X everywhere" in note and "`--held_out each pairs`" in note for note in table.notes)
    assert "X" not in texts(table_of(record(), "leave-one-out"), "ERM")


def test_a_failed_pair_makes_the_cells_that_need_it_x_and_no_others():
    skip = [("IRM", ("+80%", "-90%"), seed) for seed in range(3)]
    table = table_of(record(skip=skip), "leave-one-out")
    assert [text == "X" for text in texts(table, "IRM")] == [False, True, True, True]
    assert "X" not in texts(table, "ERM")
    assert any("for every pair (IRM on +80%, IRM on -90%)" in note for note in table.notes)
    assert any("12 completed trials passed over" in note for note in table.notes)


def test_a_cell_whose_trials_failed_is_x_and_one_that_lost_a_seed_says_so():
    skip = [("IRM", ("+90%",), seed) for seed in range(3)] + [("CORAL", ("-90%",), 1)]
    table = table_of(record(skip=skip))
    assert texts(table, "IRM")[0] == texts(table, "IRM")[-1] == "X"
    assert "X: no completed trial (IRM on +90%)." in table.notes
    assert "1 of 8 cells rests on fewer than 3 seeds: CORAL on -90% (2)." in table.notes
    assert "8 failed trials took no part." in table.notes
    assert table.rows["CORAL"][2].seeds == 2


def test_environments_never_held_out_leave_avg_open():
    runs = Recorder()
    for seed in range(2):
        runs.add(["-90%"], {200: dict.fromkeys(COLOURS, (0.1, 0.2))}, seed=seed)
    table = table_of(runs)
    assert table.columns == ("-90%",)
    assert texts(table, "ERM") == ["10.0 +/- 0.0", "X"]
    assert any(note.endswith("not held out alone: +90%, +80%.") for note in table.notes)


def test_budgets_and_fingerprints_are_kept_apart_and_named():
    short = {"steps": 100, "checkpoint_every": 100}
    runs = record(datasets={"mine@1": ("a", "b", "c")})
    record(datasets={"mine@2": ("a", "b", "c"), "D@3": ("x", "y", "z")}, budget=short, runs=runs)
    record(datasets={"mine@1": ("a", "b", "c")}, budget=short, methods=["ERM"], runs=runs)
    found = results(*runs.tables())
    assert list(found.titles.values()) == [
        "D, 100 steps, evaluated every 100",
        "mine@1, 100 steps, evaluated every 100",
        "mine@1, 200 steps, evaluated every 100",
        "mine@2, 100 steps, evaluated every 100",
    ]
    long_table = table_of(runs, dataset="mine@1", budget='{"checkpoint_every":100,"steps":200}')
    short_table = table_of(runs, dataset="mine@1", budget='{"checkpoint_every":100,"steps":100}')
    assert (texts(long_table, "ERM")[0], texts(short_table, "ERM")[0]) == ("61.0 +/- 0.5", "56.0 +/- 0.5")
    assert list(short_table.rows) == ["ERM"]
    assert [t.columns for t in found.averages] == [("D", "mine@1", "mine@2")] * 3


def test_averages_take_their_error_over_the_seeds_averages():
    runs = record()
    for seed, (x, y) in enumerate([(0.1, 0.5), (0.2, 0.4), (0.3, 0.9)]):
        runs.add("x", {100: {"x": (x, x), "y": (0, 0.5)}}, seed=seed, dataset="D")
        runs.add("y", {100: {"x": (0, 0.5), "y": (y, y)}}, seed=seed, dataset="D")
    (table,) = [t for t in results(*runs.tables()).averages if t.rule.key == "training-domain"]
    assert table.columns == ("ColoredMNIST", "D")
    cell = table.rows["ERM"][1]
    assert cell.mean == pytest.approx(0.4)
    assert cell.error == pytest.approx(statistics.pstdev([0.3, 0.3, 0.6]) / math.sqrt(3))
    assert texts(table, "ERM")[2] == "48.0"  # (56 + 40) / 2
    assert texts(table, "IRM")[1:] == ["X", "X"]


def test_averages_leave_out_a_seed_that_lacks_an_environment():
    runs = record(datasets={"D": ("x", "y"), "E": ("v", "w")}, skip=[("ERM", ("x",), 2)], pairs=False)
    (table,) = [t for t in results(*runs.tables()).averages if t.rule.key == "training-domain"]
    assert (table.rows["ERM"][0].seeds, table.rows["ERM"][1].seeds) == (2, 3)
    assert table.rows["ERM"][0].mean == pytest.approx(statistics.fmean([0.60, 0.61, 0.55, 0.56]))


def test_csv_comes_back_as_the_cells_of_the_tables():
    runs = record(skip=[("IRM", ("+90%",), seed) for seed in range(3)], datasets={'a "quoted", name': COLOURS})
    tables = results(*runs.tables()).tables
    rows = list(csv.DictReader(io.StringIO(to_csv(tables))))
    assert list(rows[0]) == ["dataset", "budget", "rule", "method", "environment", "mean", "standard_error", "seeds"]
    found = {(r["rule"], r["method"], r["environment"]): r for r in rows}
    cells = [(t, m, e, c) for t in tables for m, row in t.rows.items() for e, c in zip(t.columns, row, strict=False)]
    assert len(rows) == len(cells) == 27
    for table, method, environment, cell in cells:
        row = found[table.rule.key, method, environment]
        assert (row["dataset"], row["budget"], row["seeds"]) == (table.dataset, table.budget, str(cell.seeds))
        expected = ["" if value is None else str(value) for value in (cell.mean, cell.error)]
        assert [row["mean"], row["standard_error"]] == expected
    assert found["training-domain", "IRM", "+90%"]["mean"] == ""


def test_latex_escapes_every_special_character():
    assert escape_latex(r"50%_a&b#$ {x}~^\ <>| --pairs `--x` [m]") == (
        r"50\%\_a\&b\#\$ \{x\}\textasciitilde{}\textasciicircum{}\textbackslash{} \textless{}\textgreater{}\textbar{} "
        r"-{}-pairs \texttt{-{}-x} {[}m{]}"
    )


def test_latex_has_one_booktabs_table_each_with_the_best_in_bold():
    tables = results(*record().tables()).tables
    text = to_latex(tables)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 3
    assert r"Method & +90\% & +80\% & -90\% & Avg \\" in text
    assert r"CORAL & \textbf{71.0 $\pm$ 0.5}" in text
    assert r"ERM & 61.0 $\pm$ 0.5 & 56.0 $\pm$ 0.5 & 51.0 $\pm$ 0.5 & 56.0 \\" in text
    labels = re.findall(r"\\label\{(.*?)\}", text)
    assert len(set(labels)) == 3


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not on this machine")
def test_latex_compiles(tmp_path):
    names = ("50%_a&b", "[x]", r"#$~^\<|>", "*{--}")
    tables = results(*record({"D_&%": names, "E": COLOURS}, ("ERM", "[m]", "*m_1")).tables())
    (tmp_path / "tables.tex").write_text(to_latex((*tables.tables, *tables.averages)))
    document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\input{tables}\\end{document}"
    (tmp_path / "main.tex").write_text(document)
    words = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "main.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_report_writes_three_files_beside_the_tables_and_prints_where(tmp_path, capsys):
    run = store(record(), tmp_path / "run")
    assert main([run]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"{run}: 108 trials completed; total records: 324"
    assert out.splitlines()[-1] == f"report: {run}/_report/report.html"
    assert {p.name for p in Path(run, "_report").iterdir()} == {"report.html", "tables.csv", "tables.tex"}
    assert Run(run).tables() == ["metrics", "trials"]
    assert main([run, "--out", str(tmp_path / "elsewhere")]) == 0
    html = (tmp_path / "elsewhere" / "report.html").read_text()
    assert (tmp_path / "elsewhere" / "tables.csv").read_text() == Path(run, "_report", "tables.csv").read_text()
    for cell in (c for table in results(*record().tables()).tables for row in table.rows.values() for c in row):
        mean, _, error = cell.text("±").partition(" ")
        assert (f'>{mean} <span class="error">{error}</span></td>' if error else f">{mean}</td>") in html


def test_report_runs_as_a_module_and_its_output_in_a_log_is_not_cut(tmp_path):
    names = tuple(f"environment_{i}" for i in range(8))
    run = store(record(datasets={"D": names}, pairs=False, seeds=2), tmp_path / "run")
    words = [sys.executable, "-m", "jobs.report", run]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = [line for line in done.stdout.splitlines() if "ERM" in line][:1]
    assert len(re.findall(r"\d\d\.\d ± \d\.\d", row)) == 8


def test_a_run_without_completed_trials_is_a_one_line_error_unless_there_are_failures(tmp_path, capsys):
    with Store(str(tmp_path / "empty")):
        pass
    with pytest.raises(InputError, match="no completed trial yet"):
        write_report(str(tmp_path / "empty"))
    assert main([str(tmp_path / "empty")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    run = store(
        record(methods=["ERM"], skip=[("ERM", (e,), 0) for e in COLOURS], seeds=1, pairs=False), tmp_path / "bad"
    )
    assert main([run]) == 0
    out = capsys.readouterr().out
    assert "6 failed:" in out
    assert "X everywhere: no completed trial." in out
    assert "ValueError: loss is NaN at step 5" in out
    html = Path(run, "_report", "report.html").read_text()
    assert "&lt;b&gt;lower&lt;/b&gt; lr &amp; retry" in html
    assert html.count("<td>3</td>") == 6


def test_an_unwritable_out_is_a_one_line_error(tmp_path, capsys):
    run = store(record(methods=["ERM"], seeds=1), tmp_path / "run")
    (tmp_path / "file").write_text("")
    assert main([run, "--out", str(tmp_path / "file" / "below")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("shiftlab report: error: out: cannot write to")


def test_a_run_with_hostile_names_is_shown_as_text(tmp_path):
    names = ("<script>alert(1)</script>", "$x^{", "[red]b[/red]")
    run = store(record(datasets={"D<i>": names}, methods=["ERM"]), tmp_path / "run")
    sink = io.StringIO()
    html = Path(write_report(run, console=Console(file=sink, width=200))).read_text()
    assert "<script>alert" not in html
    assert "Held out: $x^{" in html
    assert "[red]b[/red]" in sink.getvalue()


CHROMIUM_ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        reason = "no Chromium on this machine: report.html was not opened in a browser"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    runs = record(skip=[("IRM", ("+90%",), 0)])
    record(datasets={"PACS@77": ("art", "cartoon", "photo", "sketch")}, runs=runs)
    run = store(runs, tmp_path_factory.mktemp("report") / "run")
    return write_report(run, console=Console(file=io.StringIO()))


def open_page(browser, report, problems, **settings):
    page = browser.new_page(**settings)
    page.on("console", lambda message: problems.append(f"console {message.type}: {message.text}"))
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("request", lambda request: problems.append(request.url) if request.url != f"file://{report}" else None)
    page.goto(f"file://{report}")
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_opens_without_errors_or_requests_and_shows_tables_and_plots(browser, report, scheme):
    problems = []
    page = open_page(browser, report, problems, color_scheme=scheme)
    assert page.locator("table.numbers:visible").count() == 3  # two datasets and their average, one rule
    charts = page.locator("figure svg")
    assert charts.count() == (1 + 3) + (1 + 4) + 3 + 4 + 2
    for index in range(charts.count()):
        box = charts.nth(index).bounding_box()
        assert box["width"] > 150
        assert box["height"] > 50
    assert page.get_by_role("img", name="Held out: -90%").count() == 2
    text = page.locator("figure svg text").first.evaluate("e => getComputedStyle(e).fill")
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert text == ink
    assert page.evaluate("new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size") == page.evaluate(
        "document.querySelectorAll('[id]').length"
    )
    assert "loss is NaN" in page.locator("#failures").inner_text()
    assert problems == []
    page.close()


def test_rule_switch_works_by_mouse_and_by_keyboard(browser, report):
    problems = []
    page = open_page(browser, report, problems)

    def visible():
        return [block.get_attribute("data-rule") for block in page.locator("[data-rule]:visible").all()]

    assert visible() == ["training-domain"]
    page.get_by_text("Leave one out", exact=True).click()
    assert visible() == ["leave-one-out"]
    page.keyboard.press("ArrowRight")
    assert visible() == ["test-domain"]
    page.keyboard.press("ArrowRight")
    assert visible() == ["training-domain"]
    page.reload()
    for _ in range(20):  # reach the switch from the top of the page
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name") == "rule":
            break
    page.keyboard.press("ArrowLeft")
    assert visible() == ["test-domain"]
    page.emulate_media(media="print")
    assert len(visible()) == 3
    assert problems == []
    page.close()


def test_every_table_is_readable_without_javascript_and_on_a_phone(browser, report):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"file://{report}")
    assert page.locator("table.numbers:visible").count() == 9
    assert page.locator(".switch:visible").count() == 0
    context.close()
    page = open_page(browser, report, [], viewport={"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.close()


def test_metrics_of_trials_that_hold_out_nothing_do_not_disturb_the_report(tmp_path):
    runs = record(methods=["ERM"], seeds=1)
    runs.add([], {100: {"a": (0.1, 0.1)}}, dataset="other")
    run = store(runs, tmp_path / "run")
    assert Path(write_report(run, console=Console(file=io.StringIO()))).exists()
    found = results(Run(run).read("trials"), Run(run).read("metrics"))
    assert len(found.titles) == 1


def test_empty_tables_have_no_results():
    empty = results(pa.table(TRIALS.empty_table()), pa.table(METRICS.empty_table()))
    assert empty.tables == empty.averages == ()
