"""`shiftlab import-domainbed`: the finished jobs of a DomainBed sweep as a run, whose tables then equal DomainBed's.

A sweep's output folder holds one folder a job (named by a hash of its arguments), in it `results.jsonl`, one JSON
record a checkpoint, and an almost empty file `done` once the job has ended. A job becomes a trial:

- method, seed: the algorithm's name and `trial_seed`.
- dataset: the dataset's name and "@DomainBed", so that its data are never mistaken for other data of that name.
- held_out: the names of the test environments; of a dataset that DomainBed does not have, env0, env1 and so on.
- hyperparameters: `hparams`, and `hparams_seed`, which keeps apart draws that happen to be equal and by which the
  report knows that DomainBed's conventions hold for the trial.
- budget: steps and checkpoint_every; `task`, `holdout_fraction` and `uda_holdout_fraction` too where they differ from
  DomainBed's defaults, so that another protocol never enters the same table.

Nothing else of the arguments counts, such as data_dir, output_dir and seed, so a sweep that was moved or copied is the
same sweep. Steps are DomainBed's own: the record of step s was measured after s + 1 updates.

Source: Gulrajani & Lopez-Paz, "In Search of Lost Domain Generalization" (ICLR 2021, arXiv 2007.01434) and the record
format of its public code, facebookresearch/DomainBed.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cluster.errors import InputError
from cluster.progress import PlanProgress, format_duration
from cluster.schemas import METRICS, TRIALS
from cluster.storage import Location
from cluster.store import Run, Store
from cluster.trial import Trial, canonical_json
from jobs.command import command
from jobs.report.selection import DOMAINBED

EXAMPLES = """
shiftlab import-domainbed domainbed_output --run runs/domainbed
shiftlab import-domainbed sweep_pacs sweep_vlcs --run s3://bucket/domainbed   # several sweeps, one run
shiftlab report runs/domainbed
"""

_SPAWRIOUS = ("Test", "SC_group_1", "SC_group_2")
ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "Debug28": ("0", "1", "2"),
    "Debug224": ("0", "1", "2"),
    "ColoredMNIST": ("+90%", "+80%", "-90%"),
    "RotatedMNIST": ("0", "15", "30", "45", "60", "75"),
    "VLCS": ("C", "L", "S", "V"),
    "PACS": ("A", "C", "P", "S"),
    "OfficeHome": ("A", "C", "P", "R"),
    "TerraIncognita": ("L100", "L38", "L43", "L46"),
    "DomainNet": ("clip", "info", "paint", "quick", "real", "sketch"),
    "SVIRO": ("aclass", "escape", "hilux", "i3", "lexus", "tesla", "tiguan", "tucson", "x5", "zoe"),
    "WILDSCamelyon": tuple(f"hospital_{i}" for i in range(5)),
    "WILDSFMoW": tuple(f"region_{i}" for i in range(6)),
    **{f"Spawrious{kind}_{level}": _SPAWRIOUS for kind in ("O2O", "M2M") for level in ("easy", "medium", "hard")},
}
"""DomainBed's datasets and, in the order of its indices, the names of their environments."""

PLAN_TRIALS, PLAN_HPARAMS = 3, 20
_PROTOCOL = {"task": "domain_generalization", "holdout_fraction": 0.2, "uda_holdout_fraction": 0}
_ACCURACY = re.compile(r"env(\d+)_(in|out|uda)_acc")
_SPLITS = ("in", "out", "uda")
_BATCH = 64
_PROBLEMS_PRINTED = 100


@dataclass
class Options:
    """Read the finished jobs of DomainBed sweeps into a run; what is there already is not added again.

    Args:
        folders: output folders of sweeps, each with one folder a job; the words before --run.
        run: where results go: a directory, s3://... or gs://...
    """

    folders: list[str]
    run: str

    def __post_init__(self) -> None:
        if not self.folders:
            raise InputError("folders: none given; name the output folder of a DomainBed sweep")


@dataclass
class Job:
    """One job's folder as read.

    Args:
        folder: where it lies.
        state: "finished", "unfinished" (no file `done`), "empty" (no results.jsonl either) or "unreadable".
        problems: what was passed over, each as "file:line: reason".
        lost: how many lines could not be read.
        trial: its identity, if finished; so for the rest.
        in_plan: whether DomainBed's full plan (3 trials x 20 draws x single and pair settings) has it.
        environments: how many environments it measured.
        steps: [S] checkpoints, ascending.
        columns: C pairs of environment and split, in DomainBed's order of environments.
        accuracies: [S, C] in [0, 1], NaN where not measured.
        seconds: time in updates, evaluation left out; None if not recorded.
        versions: of the libraries that made it, as canonical JSON.
    """

    folder: str
    state: str
    problems: list[str] = field(default_factory=list)
    lost: int = 0
    trial: Trial | None = None
    in_plan: bool = False
    environments: int = 0
    steps: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    columns: tuple[tuple[str, str], ...] = ()
    accuracies: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    seconds: float | None = None
    versions: str = "{}"


def plan_size(dataset: str, trials: int = PLAN_TRIALS, hparams: int = PLAN_HPARAMS, pairs: bool = True) -> int:
    """Count the jobs of one algorithm on one dataset in a DomainBed sweep.

    Args:
        dataset: one of DomainBed's datasets.
        trials: repetitions of the sweep.
        hparams: draws, the default among them.
        pairs: whether every two environments are held out too, which leave-one-domain-out selection needs.

    Raises:
        InputError: for another dataset.

    Example:
        >>> plan_size("PACS"), plan_size("PACS", pairs=False)
        (600, 240)
    """
    if dataset not in ENVIRONMENTS:
        raise InputError(f"dataset: DomainBed has no {dataset!r}; it has {', '.join(ENVIRONMENTS)}")
    return _settings(len(ENVIRONMENTS[dataset]), pairs) * trials * hparams


def _settings(environments: int, pairs: bool) -> int:
    return environments + (math.comb(environments, 2) if pairs else 0)


def read_job(folder: str) -> Job:
    """Read a job's folder; never raises for what lies there."""
    path = os.path.join(folder, "results.jsonl")
    done = os.path.exists(os.path.join(folder, "done"))
    try:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not done:
            return Job(folder, "empty")
        return Job(folder, "unreadable", [f"{path}: {error.strerror or error}; job skipped"])
    if not done:
        return Job(folder, "unfinished")
    job = Job(folder, "finished")
    rows: dict[int, _Row] = {}  # by step
    first: dict[str, Any] = {}
    sound = False  # whether the last line that is not blank could be read
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = _parse(line)
            row = _row(number, record)
            if not first:
                _trial(record, 0, 0)
                first = record
            elif not _same_job(record, first):
                raise ValueError("arguments of another job than the lines above")
        except _MALFORMED as error:
            sound = False
            job.lost += 1
            job.problems.append(f"{path}:{number}: {_reason(error)}; line skipped")
            continue
        sound = True
        step = record["step"]
        if step in rows:
            # A job that was started again appends to the file: the later attempt is the one that ended.
            job.problems.append(f"{path}:{rows[step].line}: step {step} comes again in line {number}; line skipped")
        rows[step] = row
    if not sound:
        what = "its last record, which selection needs, is lost" if first else "holds no readable record"
        job.problems.append(f"{path}: {what}; job skipped")
        job.state = "unreadable"
    else:
        _fill(job, first, dict(sorted(rows.items())))
    return job


class _Row(NamedTuple):
    """What is kept of a record: line, found accuracies (environment, split, key), their values, seconds an update."""

    line: int
    found: tuple[_Accuracy, ...]
    values: list[float]
    step_time: Any


_Accuracy = tuple[int, str, str]
_MALFORMED = (ValueError, KeyError, TypeError, RecursionError)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return "not JSON, perhaps cut short"
    return f"lacks {error.args[0]!r}" if isinstance(error, KeyError) else str(error)


def _parse(line: bytes) -> dict[str, Any]:
    """Read one record and check what is taken from it.

    Raises:
        ValueError, KeyError, TypeError: saying what is wrong with it.
    """
    record = json.loads(line.decode())
    if not isinstance(record, dict) or not isinstance(record["args"], dict) or not isinstance(record["hparams"], dict):
        raise TypeError("not a record with args and hparams")
    if not _is_count(record["step"]):
        raise TypeError(f"step {record['step']!r} is no whole number")
    return record


def _row(line: int, record: dict[str, Any]) -> _Row:
    found = _accuracies(tuple(record))
    values = [record[key] for _, _, key in found]
    if not values:
        raise ValueError("holds no accuracy such as env0_in_acc")
    if not {float, int}.issuperset(map(type, values)):
        raise TypeError("holds an accuracy that is no number")
    return _Row(line, found, values, record.get("step_time"))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 2**53


@lru_cache(maxsize=256)
def _accuracies(keys: tuple[str, ...]) -> tuple[_Accuracy, ...]:
    """Find the accuracies among a record's keys: (environment, split, key), sorted by environment and split."""
    found = [(int(m[1]), _SPLITS.index(m[2]), key) for key in keys if (m := _ACCURACY.fullmatch(key))]
    return tuple((place, _SPLITS[split], key) for place, split, key in sorted(found))


def _same_job(record: dict[str, Any], other: dict[str, Any]) -> bool:
    same = record["args"] == other["args"] and record["hparams"] == other["hparams"]
    return same or _trial(record, 0, 0) == _trial(other, 0, 0)


def _names(record: dict[str, Any]) -> tuple[str, ...]:
    """Name the environments that a record measured."""
    number = 1 + max((place for place, split, _ in _accuracies(tuple(record)) if split != "uda"), default=-1)
    known = ENVIRONMENTS.get(record["args"]["dataset"], ())
    return known if 0 < number <= len(known) else tuple(f"env{i}" for i in range(number))


def _trial(record: dict[str, Any], steps: int, every: int) -> Trial:
    """Say which trial a record belongs to; raises as `_parse` does."""
    args = record["args"]
    for key in ("algorithm", "dataset"):
        if not isinstance(args[key], str):
            raise TypeError(f"{key} {args[key]!r} is no name")
    for key in ("trial_seed", "hparams_seed"):
        if not _is_count(args[key]):
            raise TypeError(f"{key} {args[key]!r} is no whole number")
    names, tests = _names(record), args["test_envs"]
    if not isinstance(tests, list) or not tests or any(t not in range(len(names)) for t in tests):
        raise ValueError(f"test_envs {tests!r} are no list of indices below {len(names)}, the environments measured")
    departures = {key: args[key] for key, usual in _PROTOCOL.items() if args.get(key, usual) != usual}
    return Trial.create(
        args["algorithm"],
        args["dataset"] + DOMAINBED,
        sorted({names[test] for test in tests}),
        {**record["hparams"], "hparams_seed": args["hparams_seed"]},
        args["trial_seed"],
        {"steps": steps, "checkpoint_every": every, **departures},
    )


def _fill(job: Job, first: dict[str, Any], rows: dict[int, _Row]) -> None:
    """Fill in a finished job from its first record and its rows, sorted by step."""
    args, names, steps = first["args"], _names(first), list(rows)
    # The last checkpoint comes at the end, whatever the distance: the commonest distance is the frequency.
    gaps = Counter(after - before for before, after in pairwise(steps))
    every = args.get("checkpoint_freq") or (gaps.most_common(1)[0][0] if gaps else steps[-1] + 1)
    job.trial = _trial(first, steps[-1] + 1, every)
    usual = job.trial.budget == canonical_json({"steps": steps[-1] + 1, "checkpoint_every": every})
    drawn = args["trial_seed"] < PLAN_TRIALS and args["hparams_seed"] < PLAN_HPARAMS
    job.in_plan = usual and drawn and len(job.trial.held_out) <= 2
    job.environments = len(names)
    job.steps = np.array(steps, np.int64)
    found = sorted({accuracy for row in rows.values() for accuracy in row.found})
    # DomainBed numbers the uda splits among the test environments only.
    tests = sorted(args["test_envs"])
    uda = tests if sum(split == "uda" for _, split, _ in found) == len(tests) else range(len(names))
    places = [uda[place] if split == "uda" and place < len(uda) else place for place, split, _ in found]
    named = [names[place] if place < len(names) else f"env{place}" for place in places]
    job.columns = tuple((name, split) for name, (_, split, _) in zip(named, found, strict=True))
    if all(len(row.found) == len(found) for row in rows.values()):
        job.accuracies = np.array([row.values for row in rows.values()], np.float64)
    else:
        by_row = [dict(zip(row.found, row.values, strict=True)) for row in rows.values()]
        job.accuracies = np.array([[values.get(a, math.nan) for a in found] for values in by_row], np.float64)
    times = [row.step_time for row in rows.values()]
    if all(isinstance(t, float | int) for t in times):
        job.seconds = float(np.dot(np.array(times, np.float64), np.diff(job.steps, prepend=-1)))
    job.versions = _versions(job.folder)


def _versions(folder: str) -> str:
    """Read the library versions that a job printed when it began, as canonical JSON."""
    try:
        with open(os.path.join(folder, "out.txt"), encoding="utf-8", errors="replace") as file:
            head = file.read(2000).split("Args:")[0]
    except OSError:
        return "{}"
    found = dict(re.findall(r"^\s+(Python|PyTorch|Torchvision|CUDA|CUDNN|NumPy|PIL): (\S+)", head, re.MULTILINE))
    return canonical_json({{"PyTorch": "torch"}.get(key, key.lower()): value for key, value in found.items()})


def tables_of(jobs: Sequence[Job]) -> dict[str, pa.Table]:
    """Turn finished jobs into rows of the tables trials and metrics."""
    codes: dict[tuple[str, str], int] = {}
    parts: tuple[list[np.ndarray], ...] = ([], [], [], [])  # trial, step, column, value
    for number, job in enumerate(jobs):
        columns = np.array([codes.setdefault(column, len(codes)) for column in job.columns], np.int32)
        measured = ~np.isnan(job.accuracies)
        everywhere = np.broadcast_arrays(np.int32(number), job.steps[:, None], columns, job.accuracies)
        for part, values in zip(parts, everywhere, strict=True):
            part.append(values[measured])
    trial, step, column, value = map(np.concatenate, parts)

    def coded(codes: np.ndarray, words: Iterable[str]) -> pa.Array:
        return pa.DictionaryArray.from_arrays(codes, pa.array(words, pa.string()))

    trials = [job.trial for job in jobs if job.trial is not None]
    metrics = [
        coded(trial, [t.trial_id for t in trials]),
        step,
        coded(column, [environment for environment, _ in codes]),
        coded(column, [split for _, split in codes]),
        coded(np.zeros(len(value), np.int32), ["accuracy"]),
        value,
    ]
    rows = [
        (t.trial_id, t.method, t.dataset, list(t.held_out), t.hyperparameters, t.seed, t.budget, "completed")
        + (None, 1, None, None, None, job.seconds, job.versions)
        for t, job in zip(trials, jobs, strict=True)
    ]
    columns_of_trials = [pa.array(c, f.type) for c, f in zip(zip(*rows, strict=True), TRIALS, strict=True)]
    return {
        "metrics": pa.table(metrics, names=METRICS.names),
        "trials": pa.table(columns_of_trials, schema=TRIALS),
    }


def find_jobs(folder: str) -> list[str]:
    """List the folders of jobs below a sweep's output folder, sorted; a job's own folder gives itself.

    Raises:
        InputError: when there is none.
    """
    layout = "give the output folder of a DomainBed sweep, with JOB/results.jsonl in it"
    if not Path(folder).is_dir():
        raise InputError(f"folders: {folder!r} is no folder; {layout}")
    if Path(folder, "results.jsonl").is_file():
        return [folder]
    try:
        found = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"folders: cannot read {folder!r} ({error.strerror or error})") from None
    if not any(os.path.exists(os.path.join(job, "results.jsonl")) for job in found):
        raise InputError(f"folders: no job in {folder!r} has a results.jsonl; {layout}")
    return found


def _read(folders: Sequence[str]) -> Iterator[list[Job]]:
    # Threads, because folders often lie on a network file system where opening a file is what takes the time.
    with ThreadPoolExecutor(8) as pool:
        for start in range(0, len(folders), _BATCH):
            yield list(pool.map(read_job, folders[start : start + _BATCH]))


@dataclass
class _Counts:
    states: Counter[str] = field(default_factory=Counter)
    plans: dict[tuple[str, str, int], list[Job]] = field(default_factory=lambda: defaultdict(list))
    problems: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    copies: int = 0
    lost: int = 0
    empty: str = ""
    new: int = 0
    records: int = 0

    def add(self, job: Job) -> bool:
        """Count a job; returns whether it is finished and the first of its trial."""
        self.states[job.state] += 1
        self.problems += job.problems
        self.lost += job.lost + (job.state == "unreadable")
        if job.state == "empty":
            self.empty = self.empty or job.folder
        if job.trial is None:
            return False
        if job.trial.trial_id in self.seen:
            self.copies += 1
            return False
        self.seen.add(job.trial.trial_id)
        self.records += len(job.steps)
        key = (job.trial.method, job.trial.dataset.removesuffix(DOMAINBED), job.environments)
        # The accuracies are not needed any more, and would be most of the memory.
        self.plans[key].append(Job(job.folder, job.state, trial=job.trial, in_plan=job.in_plan))
        return True


def run(options: Options) -> int:
    """Import; 0 if every finished job was read whole, 1 if some line or job was unreadable."""
    began = time.monotonic()
    folders = [job for folder in options.folders for job in find_jobs(folder)]
    stored = set(Run(options.run).trial_status()) if Location.resolve(options.run).exists("run.json") else set()
    counts = _Counts()
    with Store(options.run) as store, PlanProgress("jobs", len(folders)) as progress:
        for jobs in _read(folders):
            kept = [job for job in jobs if counts.add(job)]
            new = [job for job in kept if job.trial and job.trial.trial_id not in stored]
            if new:
                store.append(tables_of(new))
            counts.new += len(new)
            progress.update(len(jobs), 0, 0)
    _summarise(options, counts, time.monotonic() - began)
    return 1 if counts.lost else 0


def _summarise(options: Options, counts: _Counts, seconds: float) -> None:
    for problem in counts.problems[:_PROBLEMS_PRINTED]:
        print(problem, file=sys.stderr)
    if len(counts.problems) > _PROBLEMS_PRINTED:
        print(f"and {len(counts.problems) - _PROBLEMS_PRINTED} more like these", file=sys.stderr)
    for (method, dataset, environments), jobs in sorted(counts.plans.items()):
        print(f"{method} on {dataset}: {_plan_text(jobs, environments)}")
    if unfinished := counts.states["unfinished"]:
        print(
            f"{unfinished} jobs have no file `done` and were skipped; DomainBed's own tables count such jobs, "
            "so import again when they have ended"
        )
    if empty := counts.states["empty"]:
        print(f"{empty} folders hold no results.jsonl and were skipped, the first of them {counts.empty}")
    if unreadable := counts.states["unreadable"]:
        print(f"{unreadable} finished jobs could not be read and were skipped; the lines above name them")
    if counts.copies:
        print(f"{counts.copies} jobs repeat the arguments of another and were skipped; the first one counts")
    before = len(counts.seen) - counts.new
    print(
        f"{len(counts.seen)} finished jobs, {counts.records} records, in {format_duration(seconds)}: {counts.new} added "
        f"to {options.run}, {before} in it before; see `shiftlab report {options.run}`"
    )


def _plan_text(jobs: Sequence[Job], environments: int) -> str:
    """Say how much of DomainBed's full plan there is, and how much of its single-environment part."""
    planned = [job.trial for job in jobs if job.in_plan and job.trial]
    draws = PLAN_TRIALS * PLAN_HPARAMS
    full, single = _settings(environments, True) * draws, _settings(environments, False) * draws
    alone = sum(len(trial.held_out) == 1 for trial in planned)
    text = (
        f"{len(planned)} of the {full} jobs of DomainBed's full plan, {alone} of its {single} with one test environment"
    )
    return text + (f"; {extra} beyond it" if (extra := len(jobs) - len(planned)) else "")


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    words = sys.argv[1:] if argv is None else list(argv)
    return command(Options, run, _name_folders(words), prog="shiftlab import-domainbed", examples=EXAMPLES)


def _name_folders(words: Sequence[str]) -> list[str]:
    """Put --folders before the words that belong to no option, wherever they stand."""
    folders, rest = [], []
    takes_value = False
    for word in words:
        if takes_value or (word.startswith("-") and word != "--folders"):
            rest.append(word)
            takes_value = not takes_value and word in ("--run", "--config")
        elif word != "--folders":
            folders.append(word)
    return [*rest, *(["--folders", *folders] if folders else [])]


if __name__ == "__main__":
    sys.exit(main())
