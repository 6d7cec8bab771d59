"""`shiftlab reproduce NAME`: a paper's experiments, each claim beside the figure measured now."""

from __future__ import annotations

import datetime as dt
import difflib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError
from cluster.store import Run, Store
from cluster.trial import Trial
from cluster.worker import Task
from jobs.claims import Claim, Results, Scale, claim_rows, load_paper, number, paper_names, reference
from jobs.command import command
from jobs.launch import Execution, Work, launch

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = """
shiftlab reproduce risks_of_irm                                          # minutes on a laptop; results in runs/risks_of_irm
shiftlab reproduce dare --scale paper --run s3://bucket/dare --address auto # the paper's sizes, on a running cluster
shiftlab reproduce randomized_smoothing --scale paper --data /data --gpus_per_worker 1 --workers 8 --run runs/smoothing
"""


@dataclass
class Reproduce(Execution):
    """Run a paper's experiments, store the results, and print each claim beside what was measured.

    What is stored in the run already is not run again; both scales may share a run.

    Args:
        name: of the paper; `shiftlab reproduce list` shows them.
        scale: small ends within minutes on two cores, paper has the paper's sizes.
        run: where results go: a directory, s3://... or gs://...; null takes runs/NAME.
        data: folder with what the paper scale of some papers needs, which their page in docs/papers lists; on a cluster
            every machine must reach it.
    """

    name: str
    scale: Scale = "small"
    run: str = ""
    data: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name != "list" and self.name not in paper_names():
            close = difflib.get_close_matches(self.name, paper_names(), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(paper_names())}"
            raise InputError(f"name: no paper {self.name!r}; {hint}")
        self.run = self.run or f"runs/{self.name}"


def run(options: Reproduce) -> int:
    """Run the experiments; 0 if every cell of the plan is completed. A claim that does not hold is a result."""
    if options.name == "list":
        for name in paper_names():
            print(f"{name:<32} {load_paper(name).TITLE}")
        return 0
    paper = load_paper(options.name)
    plan = paper.plan(options.scale)
    if (needs := getattr(paper, "missing", None)) is not None:
        plan = _possible(options, plan, needs)
    elif options.data:
        raise InputError(f"data: {options.name} takes none; leave it out")

    def trials() -> Iterator[Trial]:
        return iter(plan)

    work = Work(len(plan), lambda: trials, setup, (options.name, os.path.abspath(options.data) if options.data else ""))
    return launch("shiftlab reproduce", options, options.run, lambda: work, lambda _: show(options))


def _possible(options: Reproduce, plan: Sequence[Trial], missing: Callable[[Trial, str], str | None]) -> list[Trial]:
    """Leave out the cells whose data are not there, and say so.

    Raises:
        InputError: none is left.
    """
    lacking = {trial.trial_id: missing(trial, options.data) for trial in plan}
    left = [trial for trial in plan if lacking[trial.trial_id] is None]
    wanted = sorted({what for what in lacking.values() if what})
    if not left:
        raise InputError(
            f"data: the {options.scale} scale of {options.name} needs {'; '.join(wanted)}; give --data FOLDER"
        )
    for what in wanted:
        count = sum(found == what for found in lacking.values())
        print(f"note: {count} of {len(plan)} cells are left out: they need {what}", file=sys.stderr)
    return left


def setup(name: str, data: str = "") -> Task:
    """Prepare a worker: one thread for torch, and the paper's file."""
    import torch

    torch.set_num_threads(1)
    paper = load_paper(name)

    def task(trial: Trial) -> dict[str, list[Any]]:
        return {"metrics": paper.run(trial, data) if hasattr(paper, "missing") else paper.run(trial)}

    return task


def show(options: Reproduce) -> None:
    """Store the claims, print them, and write the report."""
    from rich.console import Console

    from jobs.report import write_report

    paper = load_paper(options.name)
    stored = Run(options.run)
    results = Results(stored.read("trials"), stored.read("metrics"), paper.plan(options.scale))
    claims = paper.claims(results, options.scale)
    with Store(options.run) as store:
        store.append({"claims": claim_rows(options.name, options.scale, dt.datetime.now(dt.UTC), claims)})
    console = Console()
    print_claims(console if console.is_terminal else Console(width=200), options, paper, claims)
    write_report(options.run)


def print_claims(console: Console, options: Reproduce, paper: ModuleType, claims: list[Claim]) -> None:
    """Print the claims as a table and how many hold."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{paper.TITLE}\n{paper.SOURCE}; {options.scale} scale", title_justify="left")
    table.add_column("claim", ratio=5)
    table.add_column("reference", justify="right")
    table.add_column("measured", justify="right")
    table.add_column("", justify="left")
    table.add_column("source of the reference", ratio=2)
    for claim in claims:
        verdict = "[green]holds[/]" if claim.holds else "[red]does not hold[/]"
        stated = f"\n[dim]The paper: {escape(claim.stated)}[/]" if claim.stated else ""
        table.add_row(
            f"{escape(claim.name)}{stated}",
            reference(claim.reference, claim.tolerance, claim.relation),
            number(claim.measured),
            verdict,
            claim.source,
        )
    console.print(table)
    if note := getattr(paper, "NOTE", ""):
        console.print(f"Note: {note}", highlight=False, markup=False)
    console.print(f"{sum(c.holds for c in claims)} of {len(claims)} claims hold", highlight=False)


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return command(Reproduce, run, argv, prog="shiftlab reproduce", examples=EXAMPLES, positional=True)


if __name__ == "__main__":
    sys.exit(main())
