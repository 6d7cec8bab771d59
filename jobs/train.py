"""`shiftlab train`: one training run on one or many workers, saved, resumed, measured on every environment, weights kept."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.errors import InputError
from cluster.feasibility import check_feasible
from cluster.plan import Outcome
from cluster.progress import PlanProgress, format_duration
from cluster.session import connect
from cluster.signals import Interrupted, StopRequest
from cluster.store import Run, Store
from cluster.training.gang import Gang, GangSettings
from cluster.training.rank import Ended, Mailbox, Message, Place, attempt, device_name
from jobs.checkpoints import Checkpoints
from jobs.command import command, command_line, versions
from jobs.launch import Execution
from jobs.loggers import LOGGERS, Loggers, check_loggers
from jobs.objectives import EvaluationObjective
from jobs.outcomes import outcome_rows
from jobs.probes import SCHEMAS, check_probes, costs, read_series
from jobs.training import LongOptions, setup_rank
from jobs.training_record import TrainingRecord

if TYPE_CHECKING:
    from types import ModuleType

    from cluster.training.ray_train import RayTrain
    from cluster.trial import Trial
    from jobs.subjects import Subject

EXAMPLES = """
shiftlab train --method IRM --dataset ColoredMNIST --held_out -90% --steps 300 --run runs/irm
shiftlab train --config runs/tuned/best.yaml                     # what `shiftlab tune` found
shiftlab train --method nets:Small --dataset nets:Data --hyperparameters '{width: 64}' --run runs/small   # your own Lightning module
shiftlab train --method nets:Small --dataset nets:Data --probe sharpness:every=20 --probe opposing-signals --run runs/watched
shiftlab train --method ERM --dataset photos/ --workers 4 --min_workers 2 --gpus_per_worker 1 --precision bf16-mixed --address auto --run s3://bucket/erm
shiftlab train --method ERM --dataset ColoredMNIST --workers 2 --verify_every 100 --logger tensorboard --run runs/erm
"""

_STRATEGIES = ("ddp", "fsdp")
_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true")
_ENGINES = ("gang", "ray_train")


@dataclass
class Train(Execution):
    """Train a method once, measure it on every environment, and keep its weights in RUN/models.

    Batches are dealt out to the workers, so that what is learned does not depend on their number. Checkpoints go to
    RUN/checkpoints; the same command again goes on from the last one, and does nothing once the training is done.

    Args:
        method: name of a method (`shiftlab methods`), or module:Class, a method or LightningModule of your own.
        dataset: as for `shiftlab sweep`; for a LightningModule also module:Class of a LightningDataModule, or null if
            it brings its own loaders.
        run: where results go: a directory, s3://... or gs://...
        held_out: environments kept out of training, together; null holds out the last one, none or an empty list
            trains on all.
        hyperparameters: by name; those not given have their defaults. A batch_size is that of all workers together.
        seed: of the splits, the weights and the batches.
        steps: parameter updates.
        checkpoint_every: steps between evaluations; null takes DomainBed's for the dataset.
        image_size: side in pixels to which images of a folder are resized.
        workers: processes that train together; 0 trains in this process.
        min_workers: as many are enough to go on when others are lost; null waits for all.
        cpus_per_worker: CPUs, and threads, of a worker.
        strategy: how workers share a model: ddp, or fsdp for models of your own that one GPU cannot hold.
        precision: 32-true, 16-mixed, bf16-mixed, bf16-true or 64-true.
        save_every: steps between checkpoints; null saves at every evaluation.
        keep: how many of the last checkpoints are kept, beside the best.
        monitor: what the best checkpoint is best by: as --objective of `shiftlab tune`; null takes validation for
            methods, and for a module of your own nothing.
        verify_every: steps between checks that another worker computes the same, bit for bit; null for none.
        probe: what to measure while a LightningModule trains, NAME or NAME:option=value,...: sharpness, opposing-signals,
            breakthroughs (docs/dynamics.md).
        logger: tensorboard, mlflow or wandb (offline), beside the run's own tables.
        engine: gang (warm workers, back in a second) or ray_train (Ray Train V2).
    """

    method: str
    dataset: str | None
    run: str
    held_out: list[str] | None = None
    hyperparameters: dict[str, int | float | str | bool] = field(default_factory=dict)
    seed: int = 0
    steps: int = 1000
    checkpoint_every: int | None = None
    image_size: int = 64
    workers: int | None = field(default=0, kw_only=True)
    min_workers: int | None = field(default=None, kw_only=True)
    cpus_per_worker: int = field(default=1, kw_only=True)
    strategy: str = field(default="ddp", kw_only=True)
    precision: str = field(default="32-true", kw_only=True)
    save_every: int | None = field(default=None, kw_only=True)
    keep: int = field(default=2, kw_only=True)
    monitor: str | None = field(default=None, kw_only=True)
    verify_every: int | None = field(default=None, kw_only=True)
    probe: list[str] = field(default_factory=list, kw_only=True, metadata={"repeatable": True})
    logger: list[str] = field(default_factory=list, kw_only=True)
    engine: str = field(default="gang", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"seed": 0, "steps": 1, "image_size": 1, "cpus_per_worker": 1, "keep": 1}
        self.require(least, above_zero=("checkpoint_every", "min_workers", "save_every", "verify_every"))
        if self.workers is None:
            raise InputError("workers: say how many train together; 0 trains in this process")
        for name, known in (("strategy", _STRATEGIES), ("precision", _PRECISIONS), ("engine", _ENGINES)):
            if getattr(self, name) not in known:
                raise InputError(f"{name}: unknown {name} {getattr(self, name)!r}; choose from {', '.join(known)}")
        for name in self.logger:
            if name not in LOGGERS:
                raise InputError(f"logger: unknown logger {name!r}; choose from {', '.join(LOGGERS)}")
        if self.min_workers is not None and self.min_workers > max(1, self.workers):
            raise InputError(f"min_workers: {self.min_workers} is more than --workers {self.workers}; give fewer")
        if self.verify_every is not None and self.workers < 2:
            raise InputError("verify_every: one worker has nobody to compare with; give --workers 2 or more")
        if self.verify_every is not None and self.strategy == "fsdp":
            raise InputError("verify_every: with fsdp no two workers compute the same; use --strategy ddp")


def run(options: Train) -> int:
    """Train; 0 if the training is done, 1 if it failed or its hours are over, 130 or 143 if it was stopped."""
    with StopRequest() as stop:
        try:
            with stop.interruptible():
                check_loggers(options.logger)
                subject, trial, objective = _prepare(options)
            try:
                with Store(options.run, SCHEMAS) as store:
                    return _Training(options, subject, trial, objective, store, stop).run()
            except OSError as error:
                raise InputError(
                    f"run: cannot write to {options.run!r} ({error.strerror or error}); what was stored is kept: "
                    f"make room and resume with {command_line('shiftlab train', options)}"
                ) from error
        except Interrupted:
            print(f"stopped: resume with\n  {command_line('shiftlab train', options)}", file=sys.stderr)
            return stop.exit_code


def _prepare(options: Train) -> tuple[Subject, Trial, EvaluationObjective | None]:
    from jobs.subjects import find_subject

    subject = find_subject(options.method, options.dataset, options.image_size, threads=options.cpus_per_worker)
    words = options.held_out
    settings = subject.settings(words if words is None else [",".join(words)] if words else ["none"])
    if len(settings) > 1:
        raise InputError(f"held_out: {words} are {len(settings)} settings, and one model is trained; name one setting")
    subject.check(options.hyperparameters, len(subject.environments) - len(settings[0]))
    if options.strategy == "fsdp" and not subject.is_module:
        raise InputError(f"strategy: {options.method} trains networks that every GPU holds whole; use --strategy ddp")
    if options.probe:
        check_probes(options.probe, options.method if not subject.is_module else None)
    every = min(options.checkpoint_every or subject.checkpoint_every, options.steps)
    budget: dict[str, int | float | str | bool] = {"steps": options.steps, "checkpoint_every": every}
    if options.precision != Train.precision:  # it changes the numbers, which the number of workers does not
        budget["precision"] = options.precision
    objective = None
    if options.monitor is not None:
        objective = subject.objective([options.monitor])
    elif not subject.is_module:
        objective = subject.objective(["validation"])
    return subject, subject.trial(options.hyperparameters, settings[0], options.seed, budget), objective


class _Training:
    """One launch of one training."""

    def __init__(
        self,
        options: Train,
        subject: Subject,
        trial: Trial,
        objective: EvaluationObjective | None,
        store: Store,
        stop: StopRequest,
    ) -> None:
        self._options, self._subject, self._trial, self._stop = options, subject, trial, stop
        self._objective, self._store = objective, store
        self._began = time.monotonic()
        self._nodes = self._device = ""

    def run(self) -> int:
        options, trial = self._options, self._trial
        before = Run(options.run).trial_status().get(trial.trial_id)
        if before == "completed":
            _show(options, trial)
            looked = set(costs(read_series(Run(options.run)), trial.trial_id))
            missed = [name for name in check_probes(options.probe, None) if name not in looked] if options.probe else []
            also = f"; probes measure while a training goes on: choose another --run for {missed[0]}" if missed else ""
            print(f"trained before: nothing to do{also}")
            return 0
        if before == "failed" and not options.retry_failed:
            return self._report_failure(stored=True)
        checkpoints = Checkpoints(self._store.location, trial.trial_id, options.keep)
        start = checkpoints.entries[-1].step if checkpoints.entries else 0
        if start:
            print(f"going on from step {start}", file=sys.stderr)
        loggers = Loggers(options.logger, self._store.location, trial)
        started_at = dt.datetime.now(dt.UTC)
        try:
            with PlanProgress("steps", options.steps, start) as progress:
                record = TrainingRecord(trial, self._store, checkpoints, self._objective, loggers, progress)
                ended, attempts = self._train(record)
        finally:
            loggers.close()
        if ended.kind == "paused" and not self._overdue:
            return self._report_pause(checkpoints)
        status = "completed" if ended.kind == "done" else "failed"
        error = (
            ended.error
            if ended.kind != "paused"
            else f"TrialTimeoutError: outlived --trial_timeout {options.trial_timeout:g} s"
        )
        seconds = time.monotonic() - self._began
        outcome = Outcome(
            trial, status, error, attempts, self._nodes, self._device, started_at, seconds, ended.tables or {}
        )
        self._store.append(outcome_rows([outcome], versions()))
        self._store.seal()
        if ended.kind != "done":
            return self._report_failure(stored=False, error=error or "")
        _show(options, trial)
        if checkpoints.best is not None:
            print(f"best checkpoint: {checkpoints.path(checkpoints.best)}")
        for probe, (spent, share) in costs(read_series(Run(options.run)), trial.trial_id).items():
            print(f"probe {probe}: {spent:.3g} s, {share:.0%} of the training's time")
        print(f"{options.steps - start} steps in {format_duration(seconds)}")
        return 0

    def _train(self, record: TrainingRecord) -> tuple[Ended, int]:
        """Train until the end, a pause, or until it failed too often."""
        options, subject = self._options, self._subject
        every = json.loads(self._trial.budget)["checkpoint_every"]
        long = LongOptions(
            options.save_every or every, options.verify_every, options.strategy, options.precision, tuple(options.probe)
        )
        shared = (subject.setup, long, *subject.shared)
        if not options.workers:
            task = setup_rank(*shared)
            self._device = device_name()
            self._nodes = socket.gethostname()
            broken: list[Exception] = []

            def hear(message: Message) -> None:
                try:
                    record.hear(message, 1)
                except Exception as error:
                    broken.append(error)
                    raise

            def here() -> Ended:
                mailbox = Mailbox(hear, self._stopping)
                found = record.checkpoint()
                ended = attempt(task, self._trial, Place(), mailbox, found[1] if found is not None else None)
                if broken:  # ours, not the training's
                    raise broken[0]
                return ended

            return self._repeat(here)
        settings = GangSettings(
            options.workers,
            options.min_workers or options.workers,
            options.cpus_per_worker,
            options.gpus_per_worker,
            options.grace,
        )
        with contextlib.ExitStack() as stack:
            with self._stop.interruptible():
                cpus = options.workers * options.cpus_per_worker
                ray = stack.enter_context(connect(options.address, cpus=cpus))
                self._stop.arm()
                self._check_room(ray, settings.min_workers)
                gang = _engine(options.engine)(ray, setup_rank, shared, settings)
            stack.callback(gang.close)
            found = self._repeat(lambda: gang.train(self._trial, record, self._stopping))
            self._nodes, self._device = gang.nodes, gang.devices
            return found

    def _check_room(self, ray: ModuleType, least: int) -> None:
        """Refuse what this machine, or no node type of a cluster, can ever run."""
        gpus = self._options.gpus_per_worker
        if self._options.address or os.environ.get("RAY_ADDRESS"):
            check_feasible(ray, {"CPU": self._options.cpus_per_worker, "GPU": gpus}, "a worker of the training")
            return
        found = ray.cluster_resources().get("GPU", 0)
        if gpus * least > found:
            raise InputError(
                f"gpus_per_worker: {least} workers of {gpus:g} are asked for, this machine has {found:g} GPUs; give less"
            )

    def _repeat(self, train: Callable[[], Ended]) -> tuple[Ended, int]:
        attempts = 1
        # What is wrong with the data or a setting is wrong the next time too.
        while (
            (ended := train()).kind == "failed"
            and attempts <= self._options.retries
            and not (ended.error or "").startswith("InputError")
            and not self._stopping()
        ):
            print(f"failed, trying again: {_first_line(ended.error)}", file=sys.stderr)
            attempts += 1
        return ended, attempts

    def _stopping(self) -> bool:
        return self._stop.requested or self._overdue or self._spent

    @property
    def _overdue(self) -> bool:
        limit = self._options.trial_timeout
        return limit is not None and time.monotonic() - self._began > limit

    @property
    def _spent(self) -> bool:
        hours = self._options.max_hours
        return hours is not None and time.monotonic() - self._began > 3600 * hours

    def _report_pause(self, checkpoints: Checkpoints) -> int:
        again = command_line("shiftlab train", self._options)
        step = checkpoints.entries[-1].step if checkpoints.entries else 0
        why = "" if self._stop.requested else f" after {self._options.max_hours:g} h (--max_hours)"
        print(f"stopped{why}: saved at step {step} of {self._options.steps}; resume with\n  {again}", file=sys.stderr)
        return self._stop.exit_code if self._stop.requested else 1

    def _report_failure(self, stored: bool, error: str = "") -> int:
        if stored:
            rows = Run(self._options.run).read("trials").to_pylist()
            error = next(row["error"] for row in rows if row["trial_id"] == self._trial.trial_id)
        print(
            f"shiftlab train: failed ({_first_line(error)}); see `shiftlab report {self._options.run}`, "
            "and run the same command with --retry_failed true to try again",
            file=sys.stderr,
        )
        return 1


def _engine(name: str) -> type[Gang] | type[RayTrain]:
    if name == "gang":
        return Gang
    from cluster.training.ray_train import RayTrain

    return RayTrain


def _first_line(error: str | None) -> str:
    return (error or "").splitlines()[0] if error else ""


def _show(options: Train, trial: Trial) -> None:
    """Print the last evaluation, and where the weights are."""
    from rich.console import Console
    from rich.table import Table

    from cluster.storage import Location
    from cluster.store import Run
    from jobs.training import model_path

    metrics = Run(options.run).read("metrics").to_pylist()
    rows = [row for row in metrics if row["trial_id"] == trial.trial_id]
    last = max(row["step"] for row in rows)
    table = Table(title=f"{trial.method} after {last} steps", title_justify="left")
    names = sorted({(row["metric"], row["split"]) for row in rows}, key=lambda pair: (pair[0], pair[1] != "in"))
    table.add_column("environment")
    for metric, split in names:
        table.add_column(f"{metric} ({split})", justify="right")
    for environment in dict.fromkeys(row["environment"] for row in rows):
        values = {
            (r["metric"], r["split"]): r["value"] for r in rows if r["environment"] == environment and r["step"] == last
        }
        held = ", held out" if environment in trial.held_out else ""
        table.add_row(f"{environment}{held}", *(f"{values[n]:.4f}" if n in values else "" for n in names))
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
    if Location.resolve(options.run).exists("models", f"{trial.trial_id}.ckpt"):
        print(f"weights: {model_path(options.run, trial.trial_id)}")


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return command(Train, run, argv, prog="shiftlab train", examples=EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())
