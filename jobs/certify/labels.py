"""`shiftlab certify labels`: how many training labels may be flipped without changing a prediction."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from cluster.errors import InputError
from cluster.trial import Scalar, Trial
from cluster.worker import Tables
from jobs.certify.tables import PARTITION, RIDGE, SCHEMAS
from jobs.command import command
from jobs.launch import Counts, Execution, Work, launch

if TYPE_CHECKING:
    import numpy as np

    from lightning_modules.certification.label_flips import FlipCertificates, LabelFlipCertifier, PartitionEnsemble
    from lightning_modules.data.examples import Examples

EXAMPLES = """
shiftlab certify labels --data MNIST17 --features pca:50 --lam 100 10000 --q 0.05 0.1 --run runs/labels
shiftlab certify labels --data MNIST17 --features pca:50 --lam 100 --partitions 25 100 400 --run runs/labels
shiftlab certify labels --data train.npz --test test.npz --features pca:50 --run s3://bucket/labels --address auto --workers 16
shiftlab certify labels --data features.parquet --test held_out.parquet --stream --run runs/large
"""

_COEFFICIENTS = 1 << 22  # of a block of test examples: 32 MiB a lam


@dataclass
class Labels(Execution):
    """Certify a linear classifier against flipped training labels: for each test example, how many flips it survives.

    An adversary may change labels anew for every test example; inputs, features, lam and q are trusted, so they must not
    be chosen with training labels that may be wrong. Certificates are deterministic: no sampling, no chance of error. The
    smoothed rule is always put beside the exact certificate of plain ridge regression, which is never smaller.

    Args:
        data: training examples: MNIST17, MNIST, Digits or BreastCancer; an npz file with inputs and labels, a feature
            table, a folder of images. Their training part where they know parts.
        run: where results go: a directory, s3://... or gs://...
        test: test examples; null takes the test part of --data.
        features: label-free map of the inputs: raw, pca:NUMBER (fitted on the training inputs) or fourier:NUMBER.
        q: rates of the label noise, below 1/2.
        lam: ridge penalties; null takes lam_scale times the features' mean scatter, which no label enters.
        lam_scale: see lam.
        partitions: numbers of parts of an ensemble by votes (SS-DPA) to certify too.
        white_box: count how many flips each part's vote takes to move; never below votes alone.
        every: certify every k-th test example only.
        limit: certify at most so many.
        image_size: side of a folder's images in pixels.
        num_classes: where the data do not name all classes.
        stream: read a training table (.parquet, raw features) piece by piece, again for each block of test examples:
            for tables larger than memory.
        seed: of fourier features.
    """

    data: str
    run: str
    test: str | None = None
    features: str = "raw"
    q: list[float] = field(default_factory=lambda: [0.05])
    lam: list[float] = field(default_factory=list)
    lam_scale: float = 1.0
    partitions: list[int] = field(default_factory=list)
    white_box: bool = False
    every: int = 1
    limit: int | None = None
    image_size: int | None = None
    num_classes: int | None = None
    stream: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("q", "lam", "partitions"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise InputError(f"{name}: {values} repeats a value; give each once")
        for q in self.q:
            if not 0 < q < 1:
                raise InputError(f"q: {q} is not between 0 and 1/2; give e.g. 0.05")
        for lam in self.lam:
            if not 0 < lam < math.inf:
                raise InputError(f"lam: {lam} is not positive; give e.g. 100")
        if not 0 < self.lam_scale < math.inf:
            raise InputError(f"lam_scale: {self.lam_scale} is not positive; give e.g. 1")
        for parts in self.partitions:
            if parts < 1:
                raise InputError(f"partitions: {parts} is too few; give 1 or more")
        if not self.q and not self.partitions:
            raise InputError("q: is empty, and so is partitions; give at least one")
        if self.white_box and not self.partitions:
            raise InputError("white_box: is about partitions; give --partitions too")
        for name in ("every", "limit", "image_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name}: {value} is too small; give 1 or more")
        if self.stream and (self.features != "raw" or self.partitions or not self.data.endswith(".parquet")):
            raise InputError("stream: needs a .parquet table, raw features and no partitions; leave it out")
        if self.stream and self.test is None:
            raise InputError("test: is missing; with --stream name the table of test examples")


@dataclass(frozen=True)
class Fitted:
    """What workers share: the training data with its sums, and the test features.

    Args:
        certifier: of the smoothed and the plain rule; fitted.
        train: features [n, k], labels [n] and inputs [n, d] for the ensembles; None where there are none.
        test: features [m, k] float64.
        labels: [m].
        indices: [m] positions in the test part.
    """

    certifier: LabelFlipCertifier
    train: tuple[np.ndarray, np.ndarray, np.ndarray] | None
    test: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


def run(options: Labels) -> int:
    """Certify; 0 if every test example has its certificates."""

    def prepare() -> Work:
        fitted, about, classes = _prepare(options)
        lams = options.lam or [fitted.certifier.system.label_free_lam(options.lam_scale)]
        trials = plan(options, fitted, about, lams)
        rows = max(1, _COEFFICIENTS // fitted.certifier.system.count)
        pack = min(32, rows) * max(1, len(lams) * len(options.q), len(options.partitions))

        def listed() -> Iterator[Trial]:
            return iter(trials)

        return Work(len(trials), lambda: listed, Certify, (fitted,), shape, pack, schemas=SCHEMAS)

    def summarise(_: Counts) -> None:
        from jobs.report import write_report

        write_report(options.run)

    return launch("shiftlab certify labels", options, options.run, prepare, summarise)


def _prepare(options: Labels) -> tuple[Fitted, dict[str, Scalar], int]:
    """Load the data, map them and gather the sums; also what identifies the training data, and the classes' number."""
    import numpy as np

    from lightning_modules.certification.label_flips import FeatureMap, LabelFlipCertifier
    from lightning_modules.certification.label_flips.thresholds import check_noise
    from lightning_modules.data.examples import load_examples

    def load(spec: str, part: Literal["train", "test"], every: int = 1, limit: int | None = None) -> Examples:
        return load_examples(
            spec, part, every=every, limit=limit, image_size=options.image_size, num_classes=options.num_classes
        )

    def flat(examples: Examples) -> np.ndarray:
        inputs = examples.inputs.reshape(len(examples), -1)
        return inputs.astype(np.float64) / (255 if examples.inputs.dtype == np.uint8 else 1)

    test = load(options.test or options.data, "test", options.every, options.limit)
    if options.stream:
        from lightning_modules.data.tables import TableStream

        stream = TableStream.open(options.data)
        classes, identity = stream.classes, stream.identity
    else:
        train = load_training(options, load)
        classes, identity = train.classes, train.identity
    if classes != test.classes:
        raise InputError(
            f"test: has the classes {_few(test.classes)}, the training data {_few(classes)}; give data of the same classes"
        )
    for q in options.q:
        check_noise(q, len(classes))
    task = "binary" if len(classes) == 2 else "multiclass"
    certifier = LabelFlipCertifier((options.lam or [1.0])[0], (options.q or [0.05])[0], task)
    features = FeatureMap.parse(options.features, options.seed)
    if options.stream:
        certifier.fit_stream(stream)
        fitted = Fitted(certifier, None, flat(test), test.labels, test.indices)
        described = "raw"
    else:
        features.fit(flat(train))
        mapped = features(flat(train))
        certifier.fit(mapped, train.labels)
        # Inputs as they came, not their features, decide which part an example belongs to.
        ensemble = (mapped, train.labels, train.inputs.reshape(len(train), -1)) if options.partitions else None
        fitted = Fitted(certifier, ensemble, features(flat(test)), test.labels, test.indices)
        described = features.describe()
    width = certifier.system.width
    if fitted.test.shape[1] != width:
        raise InputError(f"test: has {fitted.test.shape[1]} features, the training data {width}; give equal ones")
    return fitted, {"train": identity, "test": test.identity, "features": described}, len(classes)


def load_training(options: Labels, load: Any) -> Examples:
    """Load the training part; data without parts serve whole where the test examples are named by themselves."""
    from lightning_modules.data.examples import load_examples

    if options.test is None:
        found: Examples = load(options.data, "train")
        return found
    return load_examples(options.data, "all", image_size=options.image_size, num_classes=options.num_classes)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)})" if len(names) > 5 else "")


def plan(options: Labels, fitted: Fitted, about: dict[str, Scalar], lams: Sequence[float]) -> list[Trial]:
    """List the trials, a test example under one setting each; those of an example stand together, to share its work."""
    dataset = str(about["test"])
    common = {name: value for name, value in about.items() if name != "test"}
    trials = []
    for index in fitted.indices.tolist():
        for lam in lams:
            values: dict[str, Scalar] = {**common, "lam": lam, "index": index}
            trials += [Trial.create(RIDGE, dataset, (), {**values, "q": q}) for q in options.q]
            for parts in options.partitions:
                ensemble = {**values, "partitions": parts, "white_box": options.white_box}
                trials.append(Trial.create(PARTITION, dataset, (), ensemble))
    return trials


def shape(trial: Trial) -> tuple[Any, ...]:
    """What trials must share to be certified together: the kind of rule."""
    return trial.method, trial.dataset


class Certify:
    """Certifies test examples on a worker, which shares the training data with the others of its node."""

    def __init__(self, fitted: Fitted) -> None:
        import torch

        torch.set_num_threads(1)
        self._fitted = fitted
        self._rows = {index: row for row, index in enumerate(fitted.indices.tolist())}
        self._ensembles: dict[tuple[float, int, bool], PartitionEnsemble] = {}

    def __call__(self, trial: Trial) -> Tables:
        """Certify one example."""
        return self.pack([trial])[0]

    def pack(self, trials: Sequence[Trial]) -> list[Tables]:
        """Certify several examples, under several settings of one rule."""
        values = [json.loads(trial.hyperparameters) for trial in trials]
        began = time.perf_counter()
        found = (self._ridge if trials[0].method == RIDGE else self._partition)(values)
        seconds = (time.perf_counter() - began) / len(trials)
        results: list[Tables] = []
        for trial, v, row in zip(trials, values, found, strict=True):
            label = int(self._fitted.labels[self._rows[v["index"]]])
            prediction, flips, abstain, log_wrong, kl, np_, exact = row
            method = "smoothed ridge" if trial.method == RIDGE else "partition" + ", white box" * v["white_box"]
            correct = prediction == label and not abstain
            certificate = (v["index"], label, prediction, flips, correct, abstain, log_wrong, kl, np_, exact, seconds)
            setting = (method, v.get("q"), v["lam"], v.get("partitions"), v["features"], trial.dataset)
            results.append({"flip_certificates": [certificate + setting]})
        return results

    def _ridge(self, values: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
        """One sweep over the pack's lams and qs; examples share the matrix products, q's the coefficients."""
        rows = sorted({self._rows[v["index"]] for v in values})
        place = {row: i for i, row in enumerate(rows)}
        lams, qs = sorted({v["lam"] for v in values}), sorted({v["q"] for v in values})
        swept = self._fitted.certifier.sweep(self._fitted.test[rows], lams, qs)

        def one(c: FlipCertificates, i: int) -> tuple[Any, ...]:
            kl, np_, exact = int(c.flips_kl[i]), int(c.flips_np[i]), int(c.flips_exact[i])
            return int(c.prediction[i]), np_, bool(c.abstain[i]), float(c.log_wrong_prob[i]), kl, np_, exact

        return [one(swept[v["lam"], v["q"]], place[self._rows[v["index"]]]) for v in values]

    def _partition(self, values: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
        from lightning_modules.certification.label_flips import PartitionEnsemble

        assert self._fitted.train is not None, "trials of ensembles come with the training data"
        found: dict[int, tuple[Any, ...]] = {}
        groups: dict[tuple[float, int, bool], list[int]] = {}
        for i, v in enumerate(values):
            groups.setdefault((v["lam"], v["partitions"], v["white_box"]), []).append(i)
        for key, members in groups.items():
            if key not in self._ensembles:
                lam, parts, white_box = key
                self._ensembles[key] = PartitionEnsemble(parts, lam, white_box).fit(*self._fitted.train)
            c = self._ensembles[key].certify(self._fitted.test[[self._rows[values[i]["index"]] for i in members]])
            for i, prediction, flips in zip(members, c.prediction, c.flips, strict=True):
                found[i] = (int(prediction), int(flips), False, None, None, None, None)
        return [found[i] for i in range(len(values))]


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return command(Labels, run, argv, prog="shiftlab certify labels", examples=EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())
