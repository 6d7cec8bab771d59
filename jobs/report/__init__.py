"""Everything a person reads of a run: selection rules, tables, plots and one self-contained HTML page.

`selection.py` says which trial represents a method, `tables.py` turns that into tables, `plots.py` and `page.py` show
them; `certificates.py`, `bounds.py`, `studies.py`, `trainings.py`, `probes.py` and `papers.py` have a
section for what such jobs stored. All of it is computed from the run's tables (`trials`, `metrics` and these jobs' own) and
from nothing else.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.errors import InputError
from jobs.command import command

if TYPE_CHECKING:
    from rich.console import Console

    from jobs.report.page import Summary

_EXAMPLES = """
shiftlab report runs/first
shiftlab report s3://bucket/runs/first --out reports/first
"""
_FAILURES_PRINTED = 10


@dataclass
class Options:
    """Print the tables of a run and write report.html, tables.csv and tables.tex.

    Args:
        run: directory or bucket URI of the run.
        out: folder of the files. Default: RUN/_report of a local run, ./report of a run in a bucket.
    """

    run: str
    out: str | None = None


def run(options: Options) -> int:
    """Report a run; returns 0."""
    write_report(options.run, options.out)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run `shiftlab report`; returns the exit code."""
    return command(Options, run, argv, prog="shiftlab report", examples=_EXAMPLES, positional=True)


def write_report(run_uri: str, out: str | None = None, console: Console | None = None) -> str:
    """Print a run's tables and write report.html, tables.csv and tables.tex; the last line printed names the page.

    Args:
        run_uri: local path or bucket URI of the run.
        out: folder (or bucket URI) of the files; None takes RUN/_report of a local run, ./report otherwise.
        console: where to print; None takes standard output.

    Returns:
        Path of report.html.

    Raises:
        InputError: when there is no run, when it holds neither a completed nor a failed trial, a study nor a training, or when the
            files cannot be written.
    """
    import pyarrow.compute as pc

    from cluster.storage import Location
    from cluster.store import Run
    from jobs.report import bounds, certificates, page, papers, probes, sections, studies, tables, trainings

    source = Run(run_uri)
    trials, metrics = source.read("trials"), source.read("metrics")
    summary = page.summarise(trials, metrics)
    claimed = papers.paper_sections(source.read("claims"), trials, metrics)
    suggested = studies.suggestions(source)
    trained = trainings.training_sections(source, trials)
    if not (summary.statuses.get("completed") or summary.statuses.get("failed") or len(suggested) or trained):
        raise InputError(f"run: {run_uri!r} holds no completed trial yet; report it when its first trial is done")
    certified = certificates.certificate_sections(source)
    bounded = bounds.bound_sections(source)
    probed = probes.probe_sections(source, trials)
    searched = studies.study_sections(suggested, trials)
    apart = (
        papers.of_papers(trials),
        certificates.of_certificates(trials),
        bounds.of_bounds(trials),
        studies.of_studies(trials, suggested),
    )
    compared = trials.filter(pc.invert(functools.reduce(pc.or_, apart)))
    results = tables.results(compared, metrics)
    console = console or _console()
    _print_line(console, f"{run_uri}: {summary.counts}; total records: {summary.records}")
    if happened := trainings.what_happened(source):
        _print_line(console, f"meanwhile: {happened} (table events)")
    console.print()
    if len(compared):
        tables.print_tables(console, (*results.tables, *results.averages))
    sections.print_sections(console, (*certified, *bounded, *probed))
    studies.print_sections(console, searched)
    trainings.print_sections(console, trained)
    for section in claimed:
        words = f"{section.holding} of {len(section.claims)} claims hold"
        _print_line(console, f"{section.title} ({section.scale} scale): {words}")
    _print_failures(console, run_uri, summary)
    out = out or (f"{run_uri.rstrip('/')}/_report" if source.location.is_local else "report")
    files = {
        "tables.csv": tables.to_csv(results.tables),
        "tables.tex": tables.to_latex((*results.tables, *results.averages)),
        "report.html": page.render(
            run_uri, compared, results, summary, claimed, certified, bounded, searched, trained, probed
        ),
    }
    target = Location.resolve(out)
    try:
        for name, text in files.items():
            target.write(text.encode(), name)
    except OSError as error:
        raise InputError(f"out: cannot write to {out!r} ({error.strerror or error}); choose another --out") from None
    path = f"{out.rstrip('/')}/report.html"
    _print_line(console, f"report: {path}")
    return path


def _console() -> Console:
    from rich.console import Console

    console = Console()
    # In a file or a job log nobody can widen the window afterwards: let tables be as wide as they are.
    return console if console.is_terminal else Console(width=200)


def _print_line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_failures(console: Console, run_uri: str, summary: Summary) -> None:
    """Print the first failed trials, and where the others are."""
    if not summary.failures:
        return
    _print_line(console, f"{len(summary.failures)} failed:")
    for failure in summary.failures[:_FAILURES_PRINTED]:
        held_out = ", ".join(failure["held_out"] or []) or "nothing"
        error = " ".join((failure["error"] or "no error stored").split())
        trial = f"{failure['trial_id']}  {failure['method']} on {failure['dataset']}, holding out {held_out}"
        _print_line(console, f"  {trial}, attempts {failure['attempts']}: {error}")
    if len(summary.failures) > _FAILURES_PRINTED:
        sql = "select trial_id, method, error from trials where status = 'failed'"
        more = len(summary.failures) - _FAILURES_PRINTED
        _print_line(console, f'  and {more} more: shiftlab query {run_uri} "{sql}"')
    console.print()
