"""Encode chunks, in this process or on Ray workers."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from cluster.errors import InputError
from cluster.executor import execute
from cluster.plan import Outcome, Settings
from cluster.progress import PlanProgress
from cluster.session import connect
from cluster.signals import Interrupted, StopRequest
from cluster.trial import Trial
from cluster.worker import Tables, Task
from jobs.featurize.chunks import Chunk
from jobs.featurize.output import writing
from jobs.featurize.rows import Rows

if TYPE_CHECKING:
    from jobs.featurize import Featurize
    from lightning_modules.encoders import FrozenEncoder

_Input = tuple["FrozenEncoder", pa.Array, "str | None"]
"""An encoder, its items, and the root of their paths if they are such."""


def setup(inputs: Sequence[_Input], device: str, threads: int, batch_size: int | None) -> Task:
    """Prepare a worker: put the encoders on its device."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    for encoder, _, _ in inputs:
        encoder.to(device)

    def task(trial: Trial) -> Tables:
        about = json.loads(trial.hyperparameters)
        encoder, items, root = inputs[about["source"]]
        chosen = items[about["start"] : about["stop"]].to_pylist()
        if root is not None:
            chosen = [Path(root, os.fsdecode(name)) for name in chosen]
        features = encoder.encode(chosen, batch_size, threads or os.cpu_count() or 1)
        return {"features": cast(Sequence[Sequence[Any]], features)}

    return task


def encode_all(options: Featurize, rows: Rows, chunks: Sequence[Sequence[Chunk]], stop: StopRequest) -> None:
    """Encode the chunks that are not kept yet.

    Raises:
        InputError: an image that cannot be read, an encoder that fails, or a place that cannot be written.
    """
    every = list(itertools.chain.from_iterable(chunks))
    missing = {chunk.trial.trial_id: chunk for chunk in every if chunk.read() is None}
    if not missing:
        return
    total = sum(chunk.size for chunk in every)
    done = total - sum(chunk.size for chunk in missing.values())
    noun = "images" if len(rows.sources) == 1 else "images and captions"
    if done:
        print(f"{done} of {total} {noun} are encoded already", file=sys.stderr)
    errors: list[str] = []
    with contextlib.ExitStack() as stack:
        settings, device, ray = _workers(options, len(missing), stack, stop)
        # Arrow arrays lie in the object store once, workers read them there.
        inputs = tuple((source.encoder, source.items, source.root) for source in rows.sources)
        threads = options.cpus_per_worker if settings.workers else 0
        shared = (inputs, device, threads, options.batch_size)
        progress = stack.enter_context(PlanProgress(noun, total, done))
        plan = (chunk.trial for chunk in missing.values())
        with contextlib.suppress(Interrupted):
            for outcomes, running in execute(plan, setup, shared, settings=settings, stop=stop, ray=ray):
                with writing(Path(options.out).absolute()):
                    kept = _keep(outcomes, missing, errors)
                lost = sum(missing[outcome.trial.trial_id].size for outcome in outcomes) - kept
                progress.update(kept, lost, min(running * every[0].size, total))
    if errors and not stop.requested:
        others = f" (and {len(errors) - 1} more chunks of {noun} failed)" if len(errors) > 1 else ""
        kind, _, message = errors[0].partition(": ")
        if kind != "InputError":
            message = f"{errors[0]}; run the command again to try once more, perhaps with a smaller --batch_size"
        raise InputError(f"{message}{others}")


def _keep(outcomes: Sequence[Outcome], chunks: dict[str, Chunk], errors: list[str]) -> int:
    """Write what is completed and note the errors; returns the number of items kept."""
    kept = 0
    for outcome in outcomes:
        chunk = chunks[outcome.trial.trial_id]
        if outcome.status == "completed":
            chunk.write(np.asarray(outcome.tables["features"]))
            kept += chunk.size
        else:
            errors.append((outcome.error or "").split("\n")[0])
    return kept


def _workers(
    options: Featurize, chunks: int, stack: contextlib.ExitStack, stop: StopRequest
) -> tuple[Settings, str, Any]:
    """Connect to Ray, if it is wanted, and choose the number of workers and their device."""
    if options.workers == 0:
        import torch

        if options.device == "cuda" and not torch.cuda.is_available():
            raise InputError("device: torch finds no GPU here; give --device cpu")
        device = "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"
        return Settings(0, retries=options.retries), device, None
    remote = bool(options.address or os.environ.get("RAY_ADDRESS"))
    with stop.interruptible():
        ray = stack.enter_context(connect(options.address, None if remote else _local_cpus(options)))
        stop.arm()
    found = ray.cluster_resources()
    gpus = options.gpus_per_worker
    if gpus is None:
        gpus = 0 if options.device == "cpu" or (options.device == "auto" and not found.get("GPU")) else 1
    if gpus > found.get("GPU", 0) and not remote:
        raise InputError(f"gpus_per_worker: {gpus:g} asked for, this machine has {found.get('GPU', 0):g}; give 0")
    if options.device == "cuda" and not gpus:
        raise InputError("gpus_per_worker: device cuda needs a share of a GPU; give more than 0")
    workers = options.workers
    if workers is None:
        fitting = found.get("CPU", 0) / options.cpus_per_worker
        workers = int(min(fitting, found.get("GPU", 0) / gpus) if gpus else fitting)
        if workers < 1:
            raise InputError("workers: nothing is free for one yet; give --workers N, so that the cluster grows to N")
    settings = Settings(min(workers, chunks), options.cpus_per_worker, gpus, options.retries)
    return settings, "cuda" if gpus else "cpu", ray


def _local_cpus(options: Featurize) -> int:
    """CPUs that an embedded Ray says it has: enough for all the workers asked for."""
    return max(os.cpu_count() or 1, (options.workers or 1) * options.cpus_per_worker)
