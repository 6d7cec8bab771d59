"""The field's log of certificates: tab-separated idx, label, predict, radius, correct, time; written, and read into a run.

The format is that of the code published with Cohen et al., "Certified Adversarial Robustness via Randomized Smoothing",
ICML 2019, and of most work since.
"""

from __future__ import annotations

import csv
import datetime as dt
import hashlib
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import InputError
from cluster.store import Run, Store
from cluster.trial import Trial
from jobs.certify.tables import IMPORTED, SCHEMAS, read
from jobs.command import command, versions

HEADER = ("idx", "label", "predict", "radius", "correct", "time")

EXPORT_EXAMPLES = """
shiftlab certify export runs/certified --out sigma_0.25.tsv --sigma 0.25
"""
IMPORT_EXAMPLES = """
shiftlab certify import sigma_0.25 --sigma 0.25 --dataset CIFAR-10 --model_name ResNet-110 --run runs/published
shiftlab report runs/published
"""


class LogRow(NamedTuple):
    """A line of the log: position, class, prediction (-1: abstains), l2 radius, and seconds spent."""

    idx: int
    label: int
    predict: int
    radius: float
    correct: bool
    seconds: float


@dataclass
class Export:
    """Write the l2 certificates of a run as the official tab-separated log.

    Radii are rounded down to 6 decimals. Examples that were skipped because their guess was wrong have the radius nan.

    Args:
        run: directory or bucket URI of the run.
        out: file to write.
        sigma: which curve, where the run holds several.
        model: the same, by the model's name (with or without its fingerprint).
        method: the same: smoothing, smoothing-adaptive or imported.
        dataset: the same, by the data's name.
    """

    run: str
    out: str = ""
    sigma: float | None = None
    model: str | None = None
    method: str | None = None
    dataset: str | None = None

    def __post_init__(self) -> None:
        if not self.out:
            raise InputError("out: is missing; give the file to write")


@dataclass
class Import:
    """Read an official log, e.g. a published one, into a run, to be drawn beside one's own certificates.

    Args:
        file: the log.
        run: where it goes.
        sigma: standard deviation of the noise it was made with.
        dataset: what the data are called.
        model_name: what the model is called.
        n0: samples of the guess.
        n: samples of the bound.
        alpha: chance that a certificate is wrong.
    """

    file: str
    run: str = ""
    sigma: float = math.nan
    dataset: str = ""
    model_name: str = "imported"
    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001

    def __post_init__(self) -> None:
        for name in ("run", "dataset"):
            if not getattr(self, name):
                raise InputError(f"{name}: is missing; give it")
        if not 0 < self.sigma < math.inf:
            raise InputError(f"sigma: {self.sigma} is not positive; give the standard deviation the log was made with")
        if not 0 < self.alpha < 1 or self.n0 < 0 or self.n < 1:
            raise InputError("alpha, n0, n: give an alpha between 0 and 1, n0 of 0 or more and n of 1 or more")


def write_log(run_uri: str, out: str, trials: Iterable[str] | None = None, **chosen: Any) -> int:
    """Write certificates of a run as a log.

    Args:
        run_uri: the run.
        out: file to write; appears whole or not at all.
        trials: ids of the trials to write; None takes those that `chosen` leaves.
        **chosen: values of sigma, model, method or dataset, None for any.

    Returns:
        Number of rows.

    Raises:
        InputError: nothing is left, several curves are left, or the file cannot be written.
    """
    rows = read(Run(run_uri), "certificates")
    if trials is not None:
        rows = rows.filter(pc.is_in(rows["trial_id"], pa.array(list(trials), pa.string())))
    for name, value in chosen.items():
        if value is not None:
            same = pc.equal(rows[name], value)
            if name in ("model", "dataset"):  # with or without "@" and the fingerprint
                same = pc.or_(same, pc.starts_with(rows[name], f"{value}@"))
            rows = rows.filter(same)
    curves = {tuple(r.values()) for r in rows.select(["dataset", "model", "method", "sigma"]).to_pylist()}
    if not curves:
        raise InputError(f"run: {run_uri!r} holds no such certificates; see `shiftlab report {run_uri}`")
    if len(curves) > 1:
        found = "; ".join(", ".join(map(str, curve)) for curve in sorted(curves))
        raise InputError(f"sigma, model, method, dataset: choose one of the run's curves: {found}")
    indices = rows["idx"].to_pylist()
    if len(set(indices)) < len(indices):
        raise InputError("run: holds an example twice on this curve (another seed, n or alpha); export a run with one")
    lines = ["\t".join(HEADER)]
    for row in rows.to_pylist():
        radius = "nan" if row["radius"] is None else f"{math.floor(row['radius'] * 1e6) / 1e6:.6f}"
        spent = str(dt.timedelta(seconds=row["seconds"]))
        lines.append(
            "\t".join(map(str, (row["idx"], row["label"], row["prediction"], radius, int(row["correct"]), spent)))
        )
    unfinished = f"{out}.{os.getpid()}.tmp"
    try:
        Path(unfinished).write_text("\n".join(lines) + "\n")
        os.replace(unfinished, out)
    except OSError as error:
        raise InputError(f"out: cannot write {out!r} ({error.strerror}); choose another place") from None
    return len(rows)


def read_log(path: str) -> list[LogRow]:
    """Read a log.

    Raises:
        InputError: naming the file, line and column, for a file that cannot be read or is no such log.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise InputError(f"{path}: cannot be read ({reason}); give a tab-separated log") from None
    lines = list(csv.DictReader(text.splitlines(), delimiter="\t"))
    present = text.splitlines()[0].split("\t") if text else []
    for name in HEADER:
        if name not in present:
            raise InputError(f"{path}: column {name!r} is missing; the log has {', '.join(HEADER)}, tab-separated")
    rows = []
    for number, line in enumerate(lines, 2):
        try:
            radius = float(line["radius"])
            row = LogRow(
                int(line["idx"]),
                int(line["label"]),
                int(line["predict"]),
                radius,
                bool(int(line["correct"])),
                _seconds(line["time"]),
            )
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: line {number}: {' '.join(str(error).split())}; mend or remove it") from None
        if radius < 0 or row.correct != (row.predict == row.label):
            raise InputError(
                f"{path}: line {number}: its radius is negative or `correct` contradicts label and predict"
            )
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: has no rows")
    return rows


def _seconds(text: str) -> float:
    """Read seconds, or what Python writes for a time span: [D day[s], ]H:MM:SS[.f]; published logs have both."""
    if ":" not in text:
        return float(text)
    days, _, clock = text.rpartition(",")
    hours, minutes, seconds = clock.split(":")
    return int(days.split()[0] if days else 0) * 86400 + int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def import_log(options: Import) -> int:
    """Read a log into a run; returns 0."""
    rows = read_log(options.file)
    digest = hashlib.sha256(Path(options.file).read_bytes()).hexdigest()[:8]
    model, now = f"{options.model_name}@log-{digest}", dt.datetime.now(dt.UTC)
    certificates: list[tuple[Any, ...]] = []
    trials: list[tuple[Any, ...]] = []
    for row in rows:
        trial = Trial.create(
            IMPORTED,
            options.dataset,
            (),
            {"model": model, "sigma": options.sigma, "index": row.idx, "alpha": options.alpha},
            0,
            {"n0": options.n0, "n": options.n},
        )
        skipped = math.isnan(row.radius)
        certificates.append(
            (trial.trial_id, row.idx, row.label, row.predict, None if skipped else row.radius, None)
            + (options.n0 + options.n, None, row.correct, skipped, row.seconds, options.sigma, "imported", 0)
            + (options.dataset, model, options.n0, options.n, options.alpha, "independent", "as published")
        )
        trials.append(
            (trial.trial_id, trial.method, trial.dataset, [], trial.hyperparameters, 0, trial.budget, "completed", None)
            + (1, "", "", now, row.seconds, versions())
        )
    with Store(options.run, SCHEMAS) as store:
        known = Run(options.run).trial_status()
        new = [i for i, trial in enumerate(trials) if trial[0] not in known]
        store.append({"certificates": [certificates[i] for i in new], "trials": [trials[i] for i in new]})
    print(f"{len(new)} certificates read from {options.file} into {options.run} ({len(rows) - len(new)} were there)")
    return 0


def export_log(options: Export) -> int:
    """Write a log; returns 0."""
    count = write_log(
        options.run,
        options.out,
        sigma=options.sigma,
        model=options.model,
        method=options.method,
        dataset=options.dataset,
    )
    print(f"{count} certificates -> {options.out}")
    return 0


def main_export(argv: list[str] | None = None) -> int:
    """Entry point of `shiftlab certify export`."""
    return command(Export, export_log, argv, prog="shiftlab certify export", examples=EXPORT_EXAMPLES, positional=True)


def main_import(argv: list[str] | None = None) -> int:
    """Entry point of `shiftlab certify import`."""
    return command(Import, import_log, argv, prog="shiftlab certify import", examples=IMPORT_EXAMPLES, positional=True)
