"""`shiftlab featurize`: turn images into a feature table with a pretrained encoder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import InputError
from cluster.executor import execute
from cluster.plan import Outcome, Settings
from cluster.progress import PlanProgress, format_duration
from cluster.session import connect
from cluster.signals import Interrupted, StopRequest
from cluster.trial import Scalar, Trial
from cluster.worker import Tables, Task
from jobs.command import command, versions

if TYPE_CHECKING:
    from lightning_modules.data.folder import ImageList
    from lightning_modules.encoders import Encoder

EXAMPLES = """
shiftlab featurize photos/ --encoder models/dinov2-base --out features.parquet   # photos/environment/class/image.jpg
shiftlab featurize images.parquet --encoder models/vit --out features.parquet    # columns path, label, environment
shiftlab featurize photos/ --encoder models/vit --out features.parquet --address auto --gpus_per_worker 1
shiftlab sweep --dataset features.parquet --methods ERM IRM --run runs/features  # what the table is for
"""

METADATA_KEY = b"shiftlab_features"
"""Key of the table's Parquet metadata: JSON with the encoder, its hashes, pooling, image size and versions."""

# A chunk is what an interruption costs a worker, and 64 of them keep many workers busy to the end.
_SMALLEST_CHUNK, _LARGEST_CHUNK, _CHUNKS = 64, 512, 64
_COLUMNS, _OPTIONAL = ("path", "label", "environment"), ("split",)
_FORMATS = {".parquet": "parquet", ".arrow": "arrow", ".feather": "feather", ".csv": "csv"}


@dataclass
class Featurize:
    """Turn images into a feature table with a pretrained encoder from a local directory; nothing is downloaded.

    Chunks of images are encoded on the workers and kept beside the table until it is whole: after an interruption the
    same command resumes.

    Args:
        data: a folder ROOT/environment/class/image, or a table (.parquet, .arrow, .csv) with columns path (relative to
            the table), label, environment and, if wanted, split.
        encoder: directory with config.json and weights, as save_pretrained writes it.
        out: the feature table to write (.parquet).
        pooling: what of the encoder's output is taken: pooler, cls, mean, or auto for the first that it has.
        batch_size: images encoded at once.
        image_size: side in pixels to which images are scaled.
        workers: Ray workers; null takes one a GPU or else one for cpus_per_worker CPUs, 0 runs in this process without
            Ray.
        address: HOST:PORT or "auto" of a running Ray, whose machines must reach the images; null starts one.
        device: auto, cpu or cuda; auto takes GPUs where there are some.
        cpus_per_worker: CPUs a worker reserves, to decode images and, without a GPU, to encode them.
        gpus_per_worker: GPUs a worker reserves; a fraction shares one; null takes 1 where there are GPUs.
        retries: how often a chunk that failed is tried again.
        overwrite: replace a table that is there.
    """

    data: str
    encoder: str = ""
    out: str = ""
    pooling: str = "auto"
    batch_size: int = 64
    image_size: int = 224
    workers: int | None = None
    address: str | None = None
    device: str = "auto"
    cpus_per_worker: int = 1
    gpus_per_worker: float | None = None
    retries: int = 1
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.encoder:
            raise InputError("encoder: is missing; give a directory with config.json and weights")
        if not self.out.endswith(".parquet") or "://" in self.out:
            raise InputError(f"out: {self.out!r} is no local path that ends in .parquet; give one")
        for name, least in (("batch_size", 1), ("image_size", 1), ("cpus_per_worker", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: {getattr(self, name)} is too small; give {least} or more")
        if (self.workers or 0) < 0 or (self.gpus_per_worker or 0) < 0:
            raise InputError("workers and gpus_per_worker: give 0 or more")
        if self.device not in ("auto", "cpu", "cuda"):
            raise InputError(f"device: unknown {self.device!r}; choose auto, cpu or cuda")
        if self.device == "cpu" and self.gpus_per_worker:
            raise InputError("gpus_per_worker: device cpu uses none; give 0, or --device cuda")


@dataclass(frozen=True)
class _Chunk:
    """Images that are encoded together: its trial, their rows, and where their features are kept."""

    trial: Trial
    rows: slice
    file: Path

    @property
    def size(self) -> int:
        return int(self.rows.stop - self.rows.start)

    def read(self, dimension: int) -> np.ndarray | None:
        """Map the features [size, dimension]; None where they are not there yet, or not whole."""
        try:
            features = np.load(self.file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return features if features.shape == (self.size, dimension) else None

    def write(self, features: np.ndarray) -> None:
        """Keep the features; the file appears whole or not at all."""
        unfinished = self.file.with_suffix(f".{uuid.uuid4().hex[:8]}.tmp")
        try:
            with open(unfinished, "wb") as sink:
                np.save(sink, features)
            os.replace(unfinished, self.file)
        finally:
            unfinished.unlink(missing_ok=True)


def run(options: Featurize) -> int:
    """Write the feature table; 0 when it is whole, 130 or 143 when stopped before.

    Raises:
        InputError: for wrong options, an encoder or images that cannot be read, or a place that cannot be written.
    """
    began = time.monotonic()
    out = Path(options.out).expanduser().absolute()
    if out.exists() and not options.overwrite:
        raise InputError(f"out: {options.out} is there already; give another name, or --overwrite true")
    parts = out.with_name(f"{out.name}.chunks")
    with StopRequest() as stop, contextlib.suppress(Interrupted):
        with stop.interruptible():
            images, splits, encoder = _load(options)
        for note in encoder.notes:
            print(f"note: {note}", file=sys.stderr)
        with _lock(out, parts):
            chunks = list(_chunks(options, images, encoder, parts))
            _encode(options, images, encoder, chunks, stop)
            if not stop.requested:
                with _writing(out), stop.interruptible():
                    _assemble(out, images, splits, encoder, chunks)
                    shutil.rmtree(parts)
                took = format_duration(time.monotonic() - began)
                what = f"{encoder.dimension} features each ({encoder.name}, pooling {encoder.pooling})"
                print(f"{len(images.files)} images -> {options.out}: {what} in {took}")
                return 0
    print(f"stopped: what is done is kept in {parts}; resume with the same command", file=sys.stderr)
    return stop.exit_code


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"out: cannot write to {out.parent} ({reason}); make room and run the command again"
        ) from error


@contextlib.contextmanager
def _lock(out: Path, parts: Path) -> Iterator[None]:
    """Keep other processes from writing the same table."""
    with contextlib.ExitStack() as stack:
        with _writing(out):
            parts.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(parts / "lock", "wb"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"out: another process is writing {out}; wait for it to end") from None
        yield


def _load(options: Featurize) -> tuple[ImageList, pa.Array | None, Encoder]:
    from lightning_modules.data.folder import scan_folder
    from lightning_modules.encoders import check_encoder, load_encoder

    check_encoder(options.encoder, options.pooling)
    path = Path(options.data).expanduser()
    images, splits = scan_table(path) if path.is_file() else (scan_folder(path), None)
    return images, splits, load_encoder(options.encoder, options.pooling, options.image_size)


def scan_table(path: Path) -> tuple[ImageList, pa.Array | None]:
    """Find the images that a table names: columns path (relative to the table), label, environment, perhaps split.

    Returns:
        The images in the table's order, and the column split as strings, if it has one.

    Raises:
        InputError: naming the table, column or row, for a file that is no such table, missing columns, nulls, no rows,
            or an image that is not there.
    """
    from lightning_modules.data.folder import ImageList

    table = _read_table(path)
    for name in _COLUMNS:
        if name not in table.column_names:
            raise InputError(f"{path}: column {name!r} is missing; it has {', '.join(map(repr, table.column_names))}")
    if not len(table):
        raise InputError(f"{path}: has no rows; fill it")
    columns = {}
    for name in [*_COLUMNS, *(name for name in _OPTIONAL if name in table.column_names)]:
        if table[name].null_count:
            raise InputError(f"{path}: column {name!r}: has {table[name].null_count} nulls; fill or drop those rows")
        try:
            columns[name] = table[name].cast(pa.string()).combine_chunks()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise InputError(f"{path}: column {name!r}: is {table[name].type}; make it strings or integers") from None
    root, files = path.absolute().parent, columns["path"].to_pylist()
    sizes, mtimes = np.empty((2, len(files)), dtype=np.int64)
    for row, file in enumerate(files):
        try:
            about = os.stat(root / file)
        except OSError as error:
            raise InputError(f"{path}: row {row}: {file}: {error.strerror}; mend the path") from None
        sizes[row], mtimes[row] = about.st_size, about.st_mtime_ns
    labels, environments = (columns[name].dictionary_encode() for name in ("label", "environment"))
    return ImageList(
        root,
        tuple(files),
        tuple(environments.dictionary.to_pylist()),
        environments.indices.to_numpy().astype(np.int64),
        tuple(labels.dictionary.to_pylist()),
        labels.indices.to_numpy().astype(np.int64),
        sizes,
        mtimes,
        (),
    ), columns.get("split")


def _read_table(path: Path) -> pa.Table:
    import pyarrow.dataset as pads

    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{path}: is no folder and no table that ends in {', '.join(_FORMATS)}; give one")
    try:
        return pads.dataset(path, format=kind).to_table()
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read as {kind} ({reason}); write it anew") from error


def _chunks(options: Featurize, images: ImageList, encoder: Encoder, parts: Path) -> Iterator[_Chunk]:
    """Cut the images into chunks; the same images, encoder and options give the same chunks."""
    total = len(images.files)
    size = max(options.batch_size, _SMALLEST_CHUNK, min(_LARGEST_CHUNK, math.ceil(total / _CHUNKS)))
    for start in range(0, total, size):
        rows = slice(start, min(start + size, total))
        about: dict[str, Scalar] = {"encoder": encoder.sha256, "image_size": options.image_size}
        about |= {"start": start, "stop": rows.stop}
        key = images.key(options.image_size, rows)
        trial = Trial.create(f"{encoder.name}/{encoder.pooling}", f"{images.root.name}@{key}", (), about)
        yield _Chunk(trial, rows, parts / f"{trial.trial_id}.npy")


def setup(encoder: Encoder, device: str, threads: int, batch_size: int, root: str, files: pa.Array) -> Task:
    """Prepare a worker: put the encoder on its device."""
    import torch

    from lightning_modules.encoders import encode_files

    if threads:
        torch.set_num_threads(threads)
    encoder.to(device)

    def task(trial: Trial) -> Tables:
        about = json.loads(trial.hyperparameters)
        names = files[about["start"] : about["stop"]].to_pylist()
        chosen = [Path(root, os.fsdecode(name)) for name in names]
        features = encode_files(encoder, chosen, batch_size, threads or os.cpu_count() or 1)
        return {"features": cast(Sequence[Sequence[Any]], features)}

    return task


def _encode(
    options: Featurize, images: ImageList, encoder: Encoder, chunks: Sequence[_Chunk], stop: StopRequest
) -> None:
    """Encode the chunks that are not kept yet."""
    missing = {c.trial.trial_id: c for c in chunks if c.read(encoder.dimension) is None}
    if not missing:
        return
    total = len(images.files)
    done = total - sum(chunk.size for chunk in missing.values())
    if done:
        print(f"{done} of {total} images are encoded already", file=sys.stderr)
    errors: list[str] = []
    with contextlib.ExitStack() as stack:
        settings, device, ray = _workers(options, len(missing), stack, stop)
        # As bytes: file names need not be UTF-8. An Arrow array lies in the object store once, workers read it there.
        files = pa.array([os.fsencode(file) for file in images.files], pa.large_binary())
        threads = options.cpus_per_worker if settings.workers else 0
        shared = (encoder, device, threads, options.batch_size, str(images.root), files)
        progress = stack.enter_context(PlanProgress("images", total, done))
        plan = (chunk.trial for chunk in missing.values())
        with contextlib.suppress(Interrupted):
            for outcomes, running in execute(plan, setup, shared, settings=settings, stop=stop, ray=ray):
                with _writing(Path(options.out).absolute()):
                    kept = _keep(outcomes, missing, errors)
                lost = sum(missing[outcome.trial.trial_id].size for outcome in outcomes) - kept
                progress.update(kept, lost, min(running * chunks[0].size, total))
    if errors and not stop.requested:
        others = f" (and {len(errors) - 1} more chunks of images failed)" if len(errors) > 1 else ""
        kind, _, message = errors[0].partition(": ")
        if kind != "InputError":
            message = f"{errors[0]}; run the command again to try once more, perhaps with a smaller --batch_size"
        raise InputError(f"{message}{others}")


def _keep(outcomes: Sequence[Outcome], chunks: dict[str, _Chunk], errors: list[str]) -> int:
    """Write what is completed and note the errors; returns the number of images kept."""
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


def _assemble(
    out: Path, images: ImageList, splits: pa.Array | None, encoder: Encoder, chunks: Sequence[_Chunk]
) -> None:
    """Write the table, a row group a chunk; it appears whole or not at all."""
    about = {
        "encoder": encoder.name,
        "encoder_config_sha256": encoder.config_sha256,
        "encoder_sha256": encoder.sha256,
        "pooling": encoder.pooling,
        "image_size": encoder.image_size,
        "image_mean": encoder.mean,
        "image_std": encoder.std,
        "versions": {**json.loads(versions()), **_library_versions()},
    }
    fields = [("features", pa.list_(pa.float32(), encoder.dimension)), ("label", pa.string())]
    fields += [("environment", pa.string()), *([("split", pa.string())] if splits is not None else [])]
    schema = pa.schema(fields, metadata={METADATA_KEY: json.dumps(about, sort_keys=True)})
    classes, environments = np.array(images.classes), np.array(images.environments)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
            for chunk in chunks:
                features = chunk.read(encoder.dimension)
                if features is None:
                    raise InputError(f"out: {chunk.file} is gone or damaged; run the command again to make it anew")
                columns = [
                    pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), encoder.dimension),
                    pa.array(classes[images.labels[chunk.rows]]),
                    pa.array(environments[images.environment[chunk.rows]]),
                ]
                if splits is not None:
                    columns.append(splits[chunk.rows])
                writer.write_table(pa.table(columns, schema=schema))
        os.replace(unfinished, out)
    finally:
        unfinished.unlink(missing_ok=True)


def _library_versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("transformers", "pillow")}


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return command(Featurize, run, argv, prog="shiftlab featurize", examples=EXAMPLES, positional=True)


if __name__ == "__main__":
    sys.exit(main())
