"""The fault matrix: every kind of work against every kind of loss, at random moments, on a real Ray of several nodes.

    python -m tests.cluster.fault_matrix                            # all of it: half an hour on two cores
    python -m tests.cluster.fault_matrix --works sweep --faults node driver --moments 1 --seed 3

Each cell starts the work, waits until a random share of it is stored, strikes, and lets the work go on: by itself, or by
the same command where the loss ended it. Then every planned trial must be there once, with the numbers that an undisturbed
run has. The moments come from the seed, and are printed.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from cluster.store import Run
from tests.cluster.fault_works import WORKS
from tests.cluster.nodes import ROOT, Nodes
from tests.cluster.object_store import CREDENTIALS, FaultProxy, start_object_store

FAULTS = {
    "worker": "kill -9 of a worker's process",
    "node": "kill -9 of a node, with all it runs; a new one comes",
    "driver": "kill -9 of the command; the same command goes on",
    "head": "kill -9 of the head, which ends the cluster; the same command goes on in a new one",
    "storage": "a run in a bucket whose every 5th write is answered 503",
}
_PATIENCE_S = 240


class Failed(Exception):
    """A cell that did not hold."""


@dataclass
class Cell:
    """What came of one kind of work under one kind of loss."""

    moments: list[float] = field(default_factory=list)
    survived: int = 0
    seconds: list[float] = field(default_factory=list)
    doubled: int = 0
    problems: list[str] = field(default_factory=list)


class Matrix:
    """Runs cells.

    Args:
        folder: for runs and logs.
        seed: of the moments.
    """

    def __init__(self, folder, seed):
        self.folder, self.seed = Path(folder), seed
        self._references, self._stack = {}, contextlib.ExitStack()
        self._nodes = self._store = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stop_nodes()
        self._stack.close()

    def cell(self, work, fault, moments):
        """Go through one cell: `moments` strikes, each in a run of its own."""
        found = Cell()
        for number in range(moments):
            generator = random.Random(f"{self.seed} {work} {fault} {number}")
            share = round(generator.uniform(0.1, 0.8), 3)
            found.moments.append(share)
            try:
                seconds, doubled = self._strike(WORKS[work], fault, share, generator, number)
                found.survived += 1
                found.seconds.append(seconds)
                found.doubled += doubled
            except (Failed, AssertionError, subprocess.TimeoutExpired) as error:
                found.problems.append(f"{work}, {fault}, at {share}: {error}")
                self._stop_nodes()
        return found

    def reference(self, work):
        """An undisturbed run of the work, in this process's machine without a cluster."""
        if work.name not in self._references:
            run = self.folder / f"{work.name}-reference"
            work.prepare(self.folder)
            self._finish(self._start(work, str(run), None, "reference"), "the undisturbed run")
            self._references[work.name] = work.results(Run(str(run)))
        return self._references[work.name]

    def _strike(self, work, fault, share, generator, number):
        reference = self.reference(work)
        run = str(self.folder / f"{work.name}-{fault}-{number}")
        with contextlib.ExitStack() as stack:
            direct = run
            if fault == "storage":
                store = self._object_store()
                proxy = stack.enter_context(FaultProxy(store.port, fail_every=5))
                run = store.uri("run", proxy)
                direct = store.same(run)
            process = self._start(work, run, self._cluster().address, f"{fault}-{number}")
            stack.callback(self._end, process)
            if fault != "storage":
                self._wait_for(work, run, share, process)
            began = time.monotonic()
            if fault in ("driver", "head"):
                self._kill(fault, process)
                process = self._start(work, run, self._cluster().address, f"{fault}-{number}-again")
                stack.callback(self._end, process)
            elif fault == "worker":
                self._hit_worker(generator, process)
            elif fault == "node":
                nodes = self._cluster()
                alive = [n for n, workers in nodes.workers().items() if workers] or list(nodes.workers())
                nodes.kill_node(generator.choice(alive))
                nodes.add_node()
            self._finish(process, "after the loss")
            seconds = time.monotonic() - began
            if fault == "storage" and not proxy.failed:
                raise Failed("no write was failed")
            doubled = self._check(work, Run(direct), reference)
        if fault == "node":  # what dead nodes leave behind should not slow the next cell down
            self._stop_nodes()
        return seconds, doubled

    def _check(self, work, run, reference):
        """Every planned trial once, completed, with the undisturbed numbers; returns completed rows beyond one each."""
        trials = run.read("trials").to_pylist()
        statuses = Counter(row["status"] for row in trials)
        if set(statuses) != {"completed"}:
            raise Failed(f"statuses {dict(statuses)}: {next(r['error'] for r in trials if r['status'] != 'completed')}")
        if len(trials) != work.trials or len({row["trial_id"] for row in trials}) != work.trials:
            raise Failed(f"{len(trials)} trials, {work.trials} were planned")
        work.compare(run, work.results(run), reference)
        names = run.location.list_files("trials")
        paths = [run.location.path("trials", name) for name in names if name.endswith(".parquet")]
        parts = [pq.read_table(path, filesystem=run.location.filesystem, columns=["trial_id"]) for path in paths]
        return sum(len(part) for part in parts) - work.trials

    def _wait_for(self, work, run, share, process):
        deadline = time.monotonic() + _PATIENCE_S
        while work.done(run) < share * work.total:
            if process.poll() is not None:
                raise Failed(f"it ended before the strike: {self._tail(process)}")
            if time.monotonic() > deadline:
                raise Failed(f"only {work.done(run)} of {work.total} after {_PATIENCE_S} s: {self._tail(process)}")
            time.sleep(0.05)

    def _hit_worker(self, generator, process):
        deadline = time.monotonic() + 10
        while not self._cluster().kill_worker(generator):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failed("no worker to be hit")
            time.sleep(0.01)

    def _kill(self, fault, process):
        if fault == "head":
            self._cluster().kill_head()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)  # it may notice; it is given up here
        process.kill()
        process.wait()
        if fault == "head":
            self._stop_nodes()

    def _start(self, work, run, address, label):
        words = [sys.executable, "-m", *work.words, f"--run={run}", "--workers=2"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(self.folder / "cache")}
        if address is not None:
            words.append(f"--address={address}")
            environment = self._cluster().environment | {"XDG_CACHE_HOME": str(self.folder / "cache")}
        log = self.folder / f"{work.name}-{label}.log"
        with open(log, "ab") as file:
            process = subprocess.Popen(
                words, cwd=self.folder, env=environment | CREDENTIALS, stdout=file, stderr=file, start_new_session=True
            )
        process.log = log
        return process

    def _finish(self, process, when):
        code = process.wait(_PATIENCE_S)
        if code:
            raise Failed(f"{when} it ended with {code}: {self._tail(process)}")

    @staticmethod
    def _end(process):
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()

    @staticmethod
    def _tail(process):
        return " ".join(process.log.read_text(errors="replace").split())[-600:]

    def _cluster(self):
        if self._nodes is None:
            self._nodes = Nodes(2).__enter__()
        return self._nodes

    def _stop_nodes(self):
        if self._nodes is not None:
            self._nodes.__exit__(None, None, None)
            self._nodes = None

    def _object_store(self):
        if self._store is None:
            os.environ.update(CREDENTIALS)
            self._store = self._stack.enter_context(start_object_store())
        return self._store


def table_of(cells, seed):
    """Lay cells out for people."""
    table = Table(title=f"Fault matrix, seed {seed}", title_justify="left")
    for column in (
        "work",
        "loss",
        "struck when so much was stored",
        "survived",
        "seconds after it",
        "lost",
        "rows twice",
    ):
        table.add_column(column)
    for (work, fault), cell in cells.items():
        table.add_row(*_row(work, fault, cell))
    return table


def markdown_of(cells):
    """The same as a table for docs/reliability.md."""
    head = "| work | loss | struck when so much was stored | survived | seconds after it | lost | rows twice |"
    rows = ["| " + " | ".join(_row(work, fault, cell)) + " |" for (work, fault), cell in cells.items()]
    return "\n".join([head, "| --- " * 7 + "|", *rows])


def _row(work, fault, cell):
    seconds = ", ".join(f"{value:.0f}" for value in cell.seconds)
    when = "from the start" if fault == "storage" else ", ".join(f"{100 * share:.0f} %" for share in cell.moments)
    count = f"{cell.survived} of {len(cell.moments)}"
    return work, fault, when, count, seconds, "0" if not cell.problems else "?", str(cell.doubled)


def main():
    """Run the matrix; exit code 1 if a cell did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--moments", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file for the table in Markdown")
    options = parser.parse_args()
    console, cells = Console(width=150), {}
    with tempfile.TemporaryDirectory(prefix="fm") as folder, Matrix(folder, options.seed) as matrix:
        for work in options.works:
            for fault in options.faults:
                began = time.monotonic()
                cell = cells[work, fault] = matrix.cell(work, fault, options.moments)
                words = [*_row(work, fault, cell), f"{time.monotonic() - began:.0f} s"]
                console.print("  ".join(words), markup=False, highlight=False)
                for problem in cell.problems:
                    console.print(f"  {problem}", markup=False, highlight=False, soft_wrap=True)
    console.print(table_of(cells, options.seed))
    if options.out is not None:
        options.out.write_text(markdown_of(cells) + "\n")
    problems = [problem for cell in cells.values() for problem in cell.problems]
    print(
        json.dumps(
            {"cells": len(cells), "strikes": sum(len(c.moments) for c in cells.values()), "problems": len(problems)}
        )
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
