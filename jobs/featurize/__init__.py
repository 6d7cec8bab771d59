"""`shiftlab featurize`: turn images, or images with captions, into a table of features with frozen encoders.

`rows.py` finds what is to be encoded, `chunks.py` cuts it into pieces that are kept, `workers.py` encodes them, here or on
Ray, and `output.py` writes the table.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import InputError
from cluster.progress import format_duration
from cluster.signals import Interrupted, StopRequest
from jobs.command import command
from jobs.featurize.chunks import cut
from jobs.featurize.output import METADATA_KEY, assemble, lock, writing
from jobs.featurize.rows import Source, load_images, load_pairs
from jobs.featurize.workers import encode_all

__all__ = ["METADATA_KEY", "Featurize", "main", "run"]

EXAMPLES = """
shiftlab featurize photos/ --encoder models/dinov2-base --out features.parquet   # photos/environment/class/image.jpg
shiftlab featurize images.parquet --encoder models/vit --out features.parquet    # columns path, label, environment
shiftlab featurize photos/ --encoder efficientnet-lite0 --out features.parquet   # weights inside a package
shiftlab featurize photos/ --encoder efficientnet-lite0 --text_encoder minilm --out pairs.parquet   # captions.csv too
shiftlab featurize photos/ --encoder models/vit --out features.parquet --address auto --gpus_per_worker 1
shiftlab sweep --dataset features.parquet --methods ERM IRM --run runs/features  # what the table is for
"""


@dataclass
class Featurize:
    """Turn images into a feature table with a frozen encoder; with a text encoder, images and captions into pairs.

    Nothing is downloaded. Chunks of images and captions are encoded on the workers and kept beside the table until it is
    whole: after an interruption the same command resumes.

    Args:
        data: a folder ROOT/environment/class/image, or a table (.parquet, .arrow, .csv) with columns path (relative to
            the table), label, environment and, if wanted, split. With a text encoder: a folder with captions.csv or
            captions.parquet (columns image, caption), such a table, folders of classes, or a folder of emoji icons.
        encoder: of the images: efficientnet-lite0, or a directory with config.json and weights, as save_pretrained writes
            it.
        out: the table to write (.parquet).
        text_encoder: of the captions: minilm, or a directory; null takes images alone.
        templates: captions of folders of classes; {} is the class, and a class's images take them in turn.
        pooling: what of the image encoder's output is taken: pooler, cls, mean, or auto for the first that it has.
        text_pooling: the same for the text encoder; auto takes what its directory says, or the mean over tokens.
        batch_size: images, or captions, encoded at once; null takes 64, but 16 images on a CPU, which is faster there.
        image_size: side in pixels to which images are scaled; null takes 128 for efficientnet-lite0 and 224 for a
            directory.
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
    text_encoder: str | None = None
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}"])
    pooling: str = "auto"
    text_pooling: str = "auto"
    batch_size: int | None = None
    image_size: int | None = None
    workers: int | None = None
    address: str | None = None
    device: str = "auto"
    cpus_per_worker: int = 1
    gpus_per_worker: float | None = None
    retries: int = 1
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.encoder:
            raise InputError(
                "encoder: is missing; give efficientnet-lite0, or a directory with config.json and weights"
            )
        if not self.out.endswith(".parquet") or "://" in self.out:
            raise InputError(f"out: {self.out!r} is no local path that ends in .parquet; give one")
        for name, least in (("batch_size", 1), ("image_size", 1), ("cpus_per_worker", 1), ("retries", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name}: {value} is too small; give {least} or more")
        if (self.workers or 0) < 0 or (self.gpus_per_worker or 0) < 0:
            raise InputError("workers and gpus_per_worker: give 0 or more")
        if self.device not in ("auto", "cpu", "cuda"):
            raise InputError(f"device: unknown {self.device!r}; choose auto, cpu or cuda")
        if self.device == "cpu" and self.gpus_per_worker:
            raise InputError("gpus_per_worker: device cpu uses none; give 0, or --device cuda")


def run(options: Featurize) -> int:
    """Write the table; 0 when it is whole, 130 or 143 when stopped before.

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
            rows = load_images(options) if options.text_encoder is None else load_pairs(options)
        for note in (note for source in rows.sources for note in source.encoder.notes):
            print(f"note: {note}", file=sys.stderr)
        with lock(out, parts):
            chunks = cut(rows.sources, options.batch_size, parts)
            encode_all(options, rows, chunks, stop)
            if not stop.requested:
                with writing(out), stop.interruptible():
                    assemble(out, rows, chunks)
                    shutil.rmtree(parts)
                took = format_duration(time.monotonic() - began)
                print(f"{rows.total} {rows.noun} -> {options.out}: {_summary(rows.sources)} in {took}")
                return 0
    print(f"stopped: what is done is kept in {parts}; resume with the same command", file=sys.stderr)
    return stop.exit_code


def _summary(sources: Sequence[Source]) -> str:
    numbers = " + ".join(str(source.encoder.dimension) for source in sources)
    names = " and ".join(f"{s.encoder.name}, pooling {s.encoder.settings['pooling']}" for s in sources)
    return f"{numbers} features each ({names})"


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return command(Featurize, run, argv, prog="shiftlab featurize", examples=EXAMPLES, positional=True)
