"""The tables of a report, built once as objects and rendered four ways: terminal, CSV, LaTeX and (by page.py) HTML."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa

from jobs.report.selection import DOMAINBED, LEAVE_ONE_OUT, RULES, Records, Rule, measure, select

if TYPE_CHECKING:
    from rich.console import Console

ERROR_BAR = (
    "+/- is the standard error in percent (population standard deviation / sqrt(n)) over n seeds; each seed repeats "
    "the whole search, so the selected hyperparameters may differ between seeds."
)
_PUBLISHED = ("ColoredMNIST", "RotatedMNIST", "VLCS", "PACS", "OfficeHome", "TerraIncognita", "DomainNet")
_CSV_COLUMNS = ("dataset", "budget", "rule", "method", "environment", "mean", "standard_error", "seeds")


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Args:
        mean: accuracy in [0, 1]; None where the rule selects nothing.
        error: standard error of the mean; None for a single value, and for an average of means.
        seeds: number of seeds behind the mean.
        best: whether its printed mean is the highest of its column.
        percent: the mean in percent, which for an average of means is their average in percent; the last bit counts.
    """

    mean: float | None = None
    error: float | None = None
    seeds: int = 0
    best: bool = False
    percent: float = math.nan

    @classmethod
    def over_seeds(cls, values: Sequence[float], least: int = 2) -> Cell:
        """Take mean and standard error (population standard deviation / sqrt(n)) over one value a seed.

        Every sum is taken as DomainBed takes it, so that a number halfway between two tenths is rounded the same way.

        Args:
            values: one a seed, in the order of the seeds.
            least: from how many values on there is an error.
        """
        if not values:
            return cls()
        mean = float(np.mean(values))
        error = float(np.std(np.array(values) / np.sqrt(len(values)))) if len(values) >= least else None
        return cls(mean, error, len(values), percent=100 * mean)

    @classmethod
    def over_columns(cls, cells: Sequence[Cell], complete: bool) -> Cell:
        """Average the means of a row, without an error; empty unless every column is there."""
        means = [cell.mean for cell in cells if cell.mean is not None]
        if not means or len(means) < len(cells) or not complete:
            return cls()
        percent = sum(cell.percent for cell in cells) / len(cells)
        return cls(percent / 100, None, min(cell.seeds for cell in cells), percent=percent)

    def text(self, plus_minus: str = "+/-") -> str:
        """Print in percent, e.g. "84.7 +/- 0.4"; "X" where there is nothing."""
        if self.mean is None:
            return "X"
        error = "" if self.error is None else f" {plus_minus} {100 * self.error:.1f}"
        return f"{self.percent:.1f}{error}"


@dataclass(frozen=True)
class ResultTable:
    """Methods x columns under one selection rule.

    Args:
        rule: the selection rule.
        title: what the table is about.
        dataset: identity of the dataset, "" for averages over datasets.
        budget: canonical JSON of the budget, "" for averages over datasets.
        columns: environments (or datasets), without Avg.
        rows: by method, a cell a column and last their average.
        notes: what a reader must know, one sentence each.
        selected: what the rule selected, one record a search (see `selection.select`).
    """

    rule: Rule
    title: str
    dataset: str
    budget: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[Cell, ...]]
    notes: tuple[str, ...]
    selected: tuple[dict[str, Any], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Results:
    """Every table of a run, and the records they were computed from.

    Args:
        records: one row a checkpoint.
        tables: one a (dataset, budget) and rule, in this order.
        averages: one a rule where there are several datasets.
        titles: by (dataset, budget), in the order of the tables, how to call it.
    """

    records: Records
    tables: tuple[ResultTable, ...]
    averages: tuple[ResultTable, ...]
    titles: dict[tuple[str, str], str]


def results(trials: pa.Table, metrics: pa.Table) -> Results:
    """Compute every table of a run from its trials (schema TRIALS) and metrics (schema METRICS)."""
    records = measure(trials, metrics)
    counts = _count_trials(trials)
    names = dataset_names(sorted({dataset for dataset, _ in counts}))
    groups = sorted(
        counts, key=lambda g: (_place(names[g[0]]), names[g[0]].casefold(), names[g[0]], _steps(g[1]), g[1])
    )
    titles = {(dataset, budget): f"{names[dataset]}, {budget_text(budget)}" for dataset, budget in groups}
    tables: list[ResultTable] = []
    averages: list[ResultTable] = []
    selections = {rule: select(records, rule).to_pylist() for rule in RULES}
    for group in groups:
        for rule in RULES:
            chosen = [row for row in selections[rule] if (row["dataset"], row["budget"]) == group]
            environments = records.environments.get(group[0], ())
            tables.append(_result_table(rule, titles[group], group, environments, counts[group], chosen))
    for rule in RULES:
        averages += _average_tables(rule, [t for t in tables if t.rule is rule], names)
    return Results(records, tuple(tables), tuple(averages), titles)


_Counts = dict[tuple[str, tuple[str, ...]], Counter[str]]  # (method, held out) -> number of trials by status


def _count_trials(trials: pa.Table) -> dict[tuple[str, str], _Counts]:
    """Count trials with one or two held-out environments by (dataset, budget), (method, held out) and status."""
    with duckdb.connect() as db:
        db.register("trials", trials)
        rows = db.sql("""
            select dataset, budget, method, held_out, status, count(*) from trials
            where len(held_out) in (1, 2) group by all
        """).fetchall()
    groups: dict[tuple[str, str], _Counts] = defaultdict(lambda: defaultdict(Counter))
    for dataset, budget, method, held_out, status, number in rows:
        groups[dataset, budget][method, tuple(held_out)][status] += number
    return groups


def method_order(methods: Iterable[str]) -> list[str]:
    """Sort method names: ERM, the baseline, first; the others by alphabet."""
    return sorted(set(methods), key=lambda name: (name != "ERM", name.casefold(), name))


def dataset_names(identities: Sequence[str]) -> dict[str, str]:
    """Map dataset identities to names without the fingerprint; it stays where two datasets share the name."""
    shared = Counter(identity.split("@")[0] for identity in identities)
    return {i: i.split("@")[0] if shared[i.split("@")[0]] == 1 else i for i in identities}


def budget_text(budget: str) -> str:
    """Put a budget's canonical JSON into words, e.g. "300 steps, evaluated every 100"."""
    values = dict(json.loads(budget or "{}"))
    words = []
    if "steps" in values:
        words.append(f"{values.pop('steps')} steps")
    if "checkpoint_every" in values:
        words.append(f"evaluated every {values.pop('checkpoint_every')}")
    words += [f"{key} {value}" for key, value in values.items()]
    return ", ".join(words) or "no budget stated"


def _place(name: str) -> int:
    """Sort the datasets of published tables as these do, and all others after them."""
    return _PUBLISHED.index(name) if name in _PUBLISHED else len(_PUBLISHED)


def _steps(budget: str) -> float:
    steps = json.loads(budget or "{}").get("steps", 0)
    return float(steps) if isinstance(steps, int | float) else 0.0


def _result_table(
    rule: Rule,
    title: str,
    group: tuple[str, str],
    environments: tuple[str, ...],
    counts: _Counts,
    chosen: list[dict[str, Any]],
) -> ResultTable:
    held_out = {held[0] for _, held in counts if len(held) == 1}
    columns = tuple(e for e in environments if e in held_out) or environments
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in chosen:
        values[row["method"], row["environment"]].append(row["accuracy"])
    rows = {}
    for method in method_order(method for method, _ in counts):
        cells = [Cell.over_seeds(values[method, environment], _least(group[0])) for environment in columns]
        rows[method] = (*cells, Cell.over_columns(cells, complete=columns == environments))
    notes = [f"Selected: {rule.how}. Reported: accuracy on the held-out environment's in split.", ERROR_BAR]
    notes += _search_notes(rule, counts, chosen)
    notes += _seed_notes(columns, rows)
    notes += _missing_notes(rule, columns, rows, counts)
    if absent := [e for e in environments if e not in columns]:
        notes.append(f"Avg is X: it is over every environment; not held out alone: {_listed(absent)}.")
    return ResultTable(rule, title, *group, columns, _mark_best(rows), tuple(notes), tuple(chosen))


def _least(dataset: str) -> int:
    """From how many seeds on a cell has an error: DomainBed gives one to a single seed too, 0.0."""
    return 1 if dataset.endswith(DOMAINBED) else 2


def _search_notes(rule: Rule, counts: _Counts, chosen: list[dict[str, Any]]) -> list[str]:
    """Say what the searches ranged over and which trials took no part."""
    notes = []
    if chosen:
        draws = sorted({row["draws"] for row in chosen})
        span = f"{draws[0]}" if len(draws) == 1 else f"{draws[0]} to {draws[-1]}"
        text = f"Each search chose among {span} hyperparameter draw{'s' if draws[-1] > 1 else ''}"
        networks = sorted({str(json.loads(row["hyperparameters"]).get("network", "")) for row in chosen} - {""})
        if networks:
            text += f"; network: {', '.join(networks)}"
        notes.append(f"{text}.")
    total: Counter[str] = sum(counts.values(), Counter())
    if total["failed"]:
        notes.append(f"{_number(total['failed'], 'failed trial')} took no part.")
    if total["pruned"]:
        notes.append(f"{_number(total['pruned'], 'pruned trial')} took no part; pruning departs from the protocol.")
    if rule is LEAVE_ONE_OUT and any(len(held) == 2 for _, held in counts):
        completed = sum(number["completed"] for (_, held), number in counts.items() if len(held) == 1)
        if passed := completed - sum(row["draws"] for row in chosen):
            notes.append(f"{_number(passed, 'completed trial')} passed over: a pair it needs has no completed trial.")
    return notes


def _seed_notes(columns: Sequence[str], rows: dict[str, tuple[Cell, ...]]) -> list[str]:
    """Say which cells rest on fewer seeds than others."""
    cells = [(m, c, cell) for m, row in rows.items() for c, cell in zip(columns, row, strict=False) if cell.seeds]
    most = max((cell.seeds for *_, cell in cells), default=0)
    notes = []
    if fewer := [f"{m} on {c} ({cell.seeds})" for m, c, cell in cells if cell.seeds < most]:
        verb = "rests" if len(fewer) == 1 else "rest"
        notes.append(f"{len(fewer)} of {len(cells)} cells {verb} on fewer than {most} seeds: {_listed(fewer)}.")
    if any(cell.seeds == 1 and cell.error is None for *_, cell in cells):
        notes.append("A cell without +/- rests on one seed.")
    if any(cell.seeds == 1 and cell.error is not None for *_, cell in cells):
        notes.append("A cell that rests on one seed has +/- 0.0, as in DomainBed's tables; its error is unknown.")
    return notes


def _missing_notes(rule: Rule, columns: Sequence[str], rows: dict[str, tuple[Cell, ...]], counts: _Counts) -> list[str]:
    """Say why each X is an X."""
    pairs = any(len(held) == 2 for _, held in counts)
    reasons: dict[str, list[str]] = defaultdict(list)
    for method, cells in rows.items():
        for environment, cell in zip(columns, cells, strict=False):
            if cell.mean is not None:
                continue
            alone = counts.get((method, (environment,)), Counter())
            if rule is LEAVE_ONE_OUT and not pairs:
                reason = "this rule needs trials that hold out each pair of environments: `--held_out each pairs`"
            elif not alone:
                reason = "not run"
            elif not alone["completed"]:
                reason = "no completed trial"
            elif rule is LEAVE_ONE_OUT:
                reason = "no draw has a completed trial for every pair"
            else:
                reason = "the accuracies that the rule reads were not stored"
            reasons[reason].append(f"{method} on {environment}")
    everywhere = sum(map(len, reasons.values())) == len(columns) * len(rows)
    if everywhere and len(reasons) == 1:
        return [f"X everywhere: {next(iter(reasons))}."]
    return [f"X: {reason} ({_listed(cells)})." for reason, cells in reasons.items()]


def _average_tables(rule: Rule, tables: list[ResultTable], names: dict[str, str]) -> list[ResultTable]:
    """Average over datasets: one table if each dataset has one budget, else one a budget that datasets share.

    A single dataset has none, unless it comes from DomainBed, whose users read the error of its average there.
    """
    by_budget: dict[str, list[ResultTable]] = defaultdict(list)
    for table in tables:
        by_budget[table.budget].append(table)
    one_each = 0 < len({table.dataset for table in tables}) == len(tables)
    groups = [tables] if one_each else [group for _, group in sorted(by_budget.items())]
    return [
        _average_table(rule, group, names)
        for group in groups
        if len(group) > 1 or (one_each and group[0].dataset.endswith(DOMAINBED))
    ]


def _average_table(rule: Rule, tables: list[ResultTable], names: dict[str, str]) -> ResultTable:
    budgets = sorted({budget_text(table.budget) for table in tables})
    columns = tuple(names[table.dataset] for table in tables)
    rows = {}
    for method in method_order(method for table in tables for method in table.rows):
        cells = [_dataset_cell(table, method) for table in tables]
        rows[method] = (*cells, Cell.over_columns(cells, complete=True))
    notes = [
        f"Selected: {rule.how}.",
        "A cell averages a dataset's environments within each seed.",
        ERROR_BAR,
        *_seed_notes(columns, rows),
        *_incomplete_notes(tables, names),
    ]
    if any(cell.mean is None for row in rows.values() for cell in row):
        notes.append("X: no seed has every environment of the dataset; the dataset's own table says why.")
    title = f"Averages over datasets, {' / '.join(budgets)}"
    return ResultTable(rule, title, "", "", columns, _mark_best(rows), tuple(notes))


def _dataset_cell(table: ResultTable, method: str) -> Cell:
    """Mean and error over the per-seed averages of a dataset's environments; only seeds that have them all.

    Of trials that come from DomainBed every seed counts, averaged over the environments it has, as DomainBed does.
    """
    seeds = _by_seed(table, method)
    if not table.dataset.endswith(DOMAINBED):
        complete = method in table.rows and table.rows[method][-1].mean is not None
        seeds = [values for values in seeds if complete and len(values) == len(table.columns)]
    return Cell.over_seeds([float(np.mean(values)) for values in seeds], _least(table.dataset))


def _by_seed(table: ResultTable, method: str) -> list[list[float]]:
    """List the selected accuracies of each seed, seeds ascending, environments in the order of the columns."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for row in table.selected:
        if row["method"] == method:
            found[row["seed"]][row["environment"]] = row["accuracy"]
    return [[values[c] for c in table.columns if c in values] for _, values in sorted(found.items())]


def _incomplete_notes(tables: list[ResultTable], names: dict[str, str]) -> list[str]:
    """Say which averages leave environments out, which only those of DomainBed's trials do."""
    partial = [
        f"{method} on {names[table.dataset]}"
        for table in tables
        for method, row in table.rows.items()
        if table.dataset.endswith(DOMAINBED) and (seeds := _by_seed(table, method))
        if row[-1].mean is None or any(len(values) < len(table.columns) for values in seeds)
    ]
    if not partial:
        return []
    what = "As in DomainBed's own tables an average is over the environments that a seed has. Some seed lacks one"
    return [f"{what}, so do not compare: {_listed(partial)}."]


def _mark_best(rows: dict[str, tuple[Cell, ...]]) -> dict[str, tuple[Cell, ...]]:
    """Mark the highest printed mean of each column, ties too; with one method there is nothing to compare."""
    if len(rows) < 2:
        return rows
    printed = [[round(c.percent, 1) if c.mean is not None else -math.inf for c in row] for row in rows.values()]
    best = [max(column) for column in zip(*printed, strict=True)]
    return {
        method: tuple(
            replace(cell, best=value == top and cell.mean is not None)
            for cell, value, top in zip(cells, values, best, strict=True)
        )
        for (method, cells), values in zip(rows.items(), printed, strict=True)
    }


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _listed(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def print_tables(console: Console, tables: Iterable[ResultTable]) -> None:
    """Print tables on a terminal, each followed by its notes."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    sign = "±" if "utf" in (console.encoding or "").lower() else "+/-"
    for table in tables:
        console.print(Text.assemble((table.title, "bold"), f"\n{table.rule.title}"))
        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        grid.add_column("method", overflow="fold")
        for column in (*table.columns, "Avg"):
            grid.add_column(Text(column), justify="right", overflow="fold")
        for method, cells in table.rows.items():
            texts = [Text(cell.text(sign), style="bold" if cell.best else "") for cell in cells]
            grid.add_row(Text(method), *texts)
        console.print(grid)
        for note in table.notes:
            console.print(Text(note.replace("+/-", sign), style="dim"))
        console.print()


def to_csv(tables: Iterable[ResultTable]) -> str:
    """Render as one tidy CSV: a row a cell, accuracies in [0, 1] at full precision, empty where the table has an X.

    Averages are left out: they are sums of these rows. The dataset is its full identity and the budget its JSON, so
    that the rows join with the run's tables.
    """
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for table in tables:
        for method, cells in table.rows.items():
            for environment, cell in zip(table.columns, cells, strict=False):
                head = (table.dataset, table.budget, table.rule.key, method, environment)
                writer.writerow((*head, cell.mean, cell.error, cell.seeds))
    return sink.getvalue()


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # a bracket after the end of a row would be read as its optional argument
    "]": "{]}",
    "*": "{*}",  # nor the starred form of a row's end
    "\n": " ",
}


def escape_latex(text: str) -> str:
    """Escape every character that LaTeX would not print as itself; `code` becomes typewriter type."""
    escaped = "".join(_LATEX.get(character, character) for character in text)
    escaped = re.sub(r"-(?=-)", "-{}", escaped)  # two hyphens would become a dash
    return re.sub(r"`([^`]*)`", r"\\texttt{\1}", escaped)


def to_latex(tables: Iterable[ResultTable]) -> str:
    """Render as LaTeX table environments for `\\input`; the document needs the package booktabs."""
    parts = ["% Made by `shiftlab report`. The preamble needs \\usepackage{booktabs}.\n"]
    for table in tables:
        header = " & ".join(["Method", *map(escape_latex, table.columns), "Avg"])
        lines = []
        for method, cells in table.rows.items():
            texts = [cell.text(r"$\pm$") for cell in cells]
            texts = [rf"\textbf{{{text}}}" if cell.best else text for text, cell in zip(texts, cells, strict=True)]
            lines.append(" & ".join([escape_latex(method), *texts]) + r" \\")
        label = re.sub(r"[^a-z0-9]+", "-", f"{table.dataset} {table.title} {table.rule.key}".lower()).strip("-")
        notes = escape_latex(" ".join(table.notes)).replace("+/-", r"$\pm$")
        body = "\n".join(lines)
        parts.append(rf"""\begin{{table}}[tb]
\centering
\caption{{{escape_latex(table.title)}. {escape_latex(table.rule.title)}.}}
\label{{tab:{label}}}
\begin{{tabular}}{{l{"r" * (len(table.columns) + 1)}}}
\toprule
{header} \\
\midrule
{body}
\bottomrule
\end{{tabular}}
\par\smallskip
\parbox{{\linewidth}}{{\footnotesize {notes}}}
\end{{table}}
""")
    return "\n".join(parts)
