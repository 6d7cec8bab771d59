"""`shiftlab certify smoothing`: l2 radii within which a smoothed classifier provably keeps its prediction."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from cluster.errors import InputError
from cluster.trial import Scalar, Trial, derive_seed
from cluster.worker import Tables
from jobs.certify.tables import ADAPTIVE, SCHEMAS, SMOOTHING
from jobs.command import command
from jobs.launch import Counts, Execution, Work, launch

if TYPE_CHECKING:
    import numpy as np

    from lightning_modules.data.examples import Examples
    from lightning_modules.model_files import ClassifierFile

EXAMPLES = """
shiftlab certify smoothing --model runs/digits.ckpt --data MNIST --sigma 0.5 --limit 200 --adaptive --run runs/certified
shiftlab certify smoothing --model net.pt2 --data photos/val --every 100 --sigma 0.25 --n0 100 --n 100000 --alpha 0.001 --run s3://bucket/certified --address auto --workers 8 --gpus_per_worker 1
shiftlab certify smoothing --model my.models:Net --weights net.pt --model_arguments '{"width": 64}' --data test.npz --sigma 0.25 --run runs/certified
"""

# The default grid of radii: its step, and how far it goes in multiples of sigma. To certify more than 3.3 sigma takes
# tens of thousands of samples even where all agree, and every sure example would be charged them.
_GRID_STEP, _GRID_END = 0.25, 3.3
_PROBED = 4


@dataclass
class Smoothing(Execution):
    """Certify a classifier under Gaussian noise: for each example the prediction and the l2 radius it provably survives.

    What is certified is the smoothed classifier g(x) = the class that the model most probably gives to x + noise. Each
    certificate is wrong with probability at most alpha. What is stored is not certified again.

    Args:
        model: the classifier, logits from inputs as --data has them: a checkpoint of `certify train` (.ckpt), a
            torch.export file with a dynamic batch (.pt2), a TorchScript file, or module:Class with --weights.
        data: MNIST, MNIST17, Digits, BreastCancer or a dataset of the sweep by name; a folder ROOT/class/image.png, a
            folder with CIFAR-10's files, an npz file with inputs and labels, or a feature table.
        sigma: standard deviation of the noise, in the inputs' units (pixels: 0 to 1); several give a curve each.
        run: where results go: a directory, s3://... or gs://...
        weights: state dict of module:Class: .pt, .ckpt or .safetensors.
        model_arguments: arguments of module:Class.
        model_name: how tables call the model; null takes its file's or class's name.
        part: which examples, where the data know parts.
        every: certify every k-th example only.
        limit: certify at most so many.
        image_size: side of a folder's images in pixels; null takes 224.
        input_range: smallest and largest allowed input value; null takes 0 1 for images and any for features.
        num_classes: where the data do not name all classes.
        n0: samples that guess the class.
        n: samples that bound its probability; with --adaptive the most that are spent.
        alpha: chance that an example's certificate is wrong.
        adaptive: certify on the grid --radii and stop sampling when the answer is decided; as valid, several times cheaper.
        radii: grid of --adaptive; null takes multiples of 0.25 (of sigma, where that is smaller) up to 3.3 sigma.
        skip_wrong: do not certify examples whose guess is wrong already: they count as wrong whatever their radius.
        noise: independent draws for every example, or shared by all, which costs less for small networks; an example's
            certificate is as good, but examples then err together.
        precision: float32, or autocast to bf16 or fp16, which is another classifier: the certificate says so.
        channels_last: lay images out channels last; faster for many convolutions.
        batch_size: samples a forward pass.
        seed: of the noise.
        pack: examples certified together, which is what an interruption costs; null chooses.
        log: also write the official tab-separated log to this file.
    """

    model: str
    data: str
    sigma: list[float]
    run: str
    weights: str | None = None
    model_arguments: dict[str, Any] = field(default_factory=dict)
    model_name: str | None = None
    part: Literal["test", "train", "all"] = "test"
    every: int = 1
    limit: int | None = None
    image_size: int | None = None
    input_range: list[float] = field(default_factory=list)
    num_classes: int | None = None
    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    adaptive: bool = False
    radii: list[float] = field(default_factory=list)
    skip_wrong: bool = False
    noise: Literal["independent", "shared"] = "independent"
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    channels_last: bool = False
    batch_size: int = 400
    seed: int = 0
    pack: int | None = None
    log: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("every", 1), ("n0", 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: {getattr(self, name)} is too small; give {least} or more")
        for name in ("limit", "pack", "image_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name}: {value} is too small; give 1 or more, or null")
        if not self.sigma or len(set(self.sigma)) < len(self.sigma):
            raise InputError(f"sigma: {self.sigma} is empty or repeats a value; give each once")
        for sigma in self.sigma:
            if not 0 < sigma < math.inf:
                raise InputError(f"sigma: {sigma} is not positive; give the noise's standard deviation, e.g. 0.25")
        if not 0 < self.alpha < 1:
            raise InputError(f"alpha: {self.alpha} is not between 0 and 1; give e.g. 0.001")
        if self.n < self.n0:
            raise InputError(f"n: {self.n} is below n0 = {self.n0}; give more")
        if self.radii and not self.adaptive:
            raise InputError("radii: are the grid of --adaptive and have no effect without it")
        if self.radii and (min(self.radii) < 0 or not all(map(math.isfinite, self.radii))):
            raise InputError(f"radii: {self.radii} must be 0 or more")
        if self.input_range and len(self.input_range) != 2:
            raise InputError(f"input_range: {self.input_range}: give the smallest and the largest value, e.g. 0 1")


@dataclass(frozen=True)
class Settings:
    """What a worker needs to know beside the model and the data; the same for all trials of a launch."""

    num_classes: int
    batch_size: int
    channels_last: bool
    device: str
    threads: int


def run(options: Smoothing) -> int:
    """Certify; 0 if every example has its certificate."""

    def summarise(counts: Counts) -> None:
        from jobs.certify.log import write_log
        from jobs.report import write_report

        write_report(options.run)
        if options.log:
            write_log(options.run, options.log, trials=[t.trial_id for t in plan(options, *_known(found))])

    found: dict[str, Any] = {}

    def prepare() -> Work:
        found["file"], found["examples"] = file, examples = _load(options)
        trials = plan(options, file, examples)

        def listed() -> Iterator[Trial]:
            return iter(trials)

        shared = (file, examples.inputs, examples.labels, examples.indices, _settings(options, examples))
        return Work(len(trials), lambda: listed, setup, shared, shape, _pack(options), schemas=SCHEMAS)

    return launch("shiftlab certify smoothing", options, options.run, prepare, summarise)


def _known(found: dict[str, Any]) -> tuple[ClassifierFile, Examples]:
    return found["file"], found["examples"]


def _load(options: Smoothing) -> tuple[ClassifierFile, Examples]:
    """Load model and data and refuse what cannot be certified, before anything starts."""
    from lightning_modules.certification.smoothing import SmoothedClassifier
    from lightning_modules.data.examples import as_tensor, load_examples
    from lightning_modules.model_files import check_classifier, read_classifier

    examples = load_examples(
        options.data,
        options.part,
        every=options.every,
        limit=options.limit,
        image_size=options.image_size,
        input_range=(options.input_range[0], options.input_range[1]) if options.input_range else None,
        num_classes=options.num_classes,
    )
    file = read_classifier(options.model, options.weights, options.model_arguments)
    module = file.build()
    some = as_tensor(examples.inputs, slice(0, _PROBED))
    check_classifier(module, some if len(some) > 1 else some.repeat(2, *[1] * (some.dim() - 1)), len(examples.classes))
    # A single draw with the largest sigma, so that what breaks under noise breaks now.
    smoothed = SmoothedClassifier(module, len(examples.classes), max(options.sigma))
    smoothed.certify(some[0], 1, 1, 0.5, batch_size=1)
    return file, examples


def _settings(options: Smoothing, examples: Examples) -> Settings:
    device = "cuda" if options.gpus_per_worker else "cpu"
    return Settings(len(examples.classes), options.batch_size, options.channels_last, device, 1)


def _pack(options: Smoothing) -> int | None:
    """Examples certified together: undecided ones share batches and shared noise is drawn once, so these want many."""
    if options.pack or options.adaptive or options.noise == "shared":
        return options.pack
    return max(1, min(32, 20_000 // options.n))


def plan(options: Smoothing, file: ClassifierFile, examples: Examples) -> list[Trial]:
    """List the trials: an example under one sigma each."""
    name = options.model_name or file.model.rsplit("/", 1)[-1].rsplit(":", 1)[-1].removesuffix(".ckpt")
    values: dict[str, Scalar] = {
        "model": f"{name}@{file.fingerprint[:8]}",
        "alpha": options.alpha,
        "noise": options.noise,
        "precision": options.precision,
        "skip_wrong": options.skip_wrong,
    }
    trials = []
    for sigma in options.sigma:
        grid = {"radii": " ".join(f"{r:.17g}" for r in _radii(options, sigma))} if options.adaptive else {}
        for index in examples.indices.tolist():
            trials.append(
                Trial.create(
                    ADAPTIVE if options.adaptive else SMOOTHING,
                    examples.identity,
                    (),
                    {**values, **grid, "sigma": sigma, "index": index},
                    options.seed,
                    {"n0": options.n0, "n": options.n},
                )
            )
    return trials


def _radii(options: Smoothing, sigma: float) -> list[float]:
    if options.radii:
        return sorted({0.0, *options.radii})
    step = min(_GRID_STEP, sigma)
    return [i * step for i in range(int(_GRID_END * sigma / step + 1e-9) + 1)]


def shape(trial: Trial) -> tuple[Any, ...]:
    """What trials certified together must share: all but the example."""
    values = json.loads(trial.hyperparameters)
    values.pop("index")
    return trial.method, trial.dataset, trial.budget, trial.seed, json.dumps(values, sort_keys=True)


class Certify:
    """Certifies examples on a worker, which holds one copy of the model."""

    def __init__(
        self, file: ClassifierFile, inputs: np.ndarray, labels: np.ndarray, indices: np.ndarray, settings: Settings
    ) -> None:
        import torch

        if settings.threads:
            torch.set_num_threads(settings.threads)
        self._module = file.build(settings.device)
        self._inputs, self._labels, self._settings = inputs, labels, settings
        self._rows = {index: row for row, index in enumerate(indices.tolist())}
        self._smoothed: dict[tuple[float, str, str], Any] = {}

    def __call__(self, trial: Trial) -> Tables:
        """Certify one example."""
        (result,) = self.pack([trial])
        if isinstance(result, Exception):
            raise result
        return result

    def pack(self, trials: Sequence[Trial]) -> list[Tables | Exception]:
        """Certify several examples under the same settings."""
        import numpy as np

        from lightning_modules.data.examples import as_tensor

        values, budget = json.loads(trials[0].hyperparameters), json.loads(trials[0].budget)
        rows = np.array([self._rows[json.loads(t.hyperparameters)["index"]] for t in trials])
        began = time.perf_counter()
        found = self._certificates(trials, values, budget, as_tensor(self._inputs, rows), self._labels[rows])
        a_sample = (time.perf_counter() - began) / max(1, sum(c.n_used for c in found))
        results: list[Tables | Exception] = []
        for trial, row, c in zip(trials, rows.tolist(), found, strict=True):
            if c.error:
                results.append(FloatingPointError(c.error))
                continue
            index, label = json.loads(trial.hyperparameters)["index"], int(self._labels[row])
            radius, bound = (None, None) if c.skipped else (c.radius, c.p_lower)
            results.append(
                {
                    "certificates": [
                        (index, label, c.prediction, radius, bound, c.n_used, c.count, c.prediction == label, c.skipped)
                        + (c.n_used * a_sample, values["sigma"], trial.method.removeprefix("certify/"), trial.seed)
                        + (trial.dataset, values["model"], budget["n0"], budget["n"], values["alpha"])
                        + (values["noise"], self._precision(values["precision"]))
                    ]
                }
            )
        return results

    def _certificates(
        self, trials: Sequence[Trial], values: dict[str, Any], budget: dict[str, int], inputs: Any, labels: np.ndarray
    ) -> list[Any]:
        from lightning_modules.certification.sequential import LookSchedule, SequentialRule
        from lightning_modules.certification.smoothing import SmoothedClassifier

        key = (values["sigma"], values["noise"], values["precision"])
        if key not in self._smoothed:
            sigma, noise, precision = key
            self._smoothed[key] = SmoothedClassifier(
                self._module, self._settings.num_classes, sigma, precision, noise, self._settings.channels_last
            )
        smoothed = self._smoothed[key]
        if values["noise"] == "shared":
            seeds = [derive_seed("shared noise", trials[0].seed, values["sigma"])] * len(trials)
        else:
            seeds = [trial.stream("noise") for trial in trials]
        kept = labels if values["skip_wrong"] else None
        size = self._settings.batch_size
        if trials[0].method == SMOOTHING:
            n0, n, alpha = budget["n0"], budget["n"], values["alpha"]
            found = smoothed.certify_many(inputs, seeds, n0, n, alpha, batch_size=size, labels=kept)
        else:
            radii = tuple(map(float, values["radii"].split()))
            rule = SequentialRule(values["sigma"], radii, LookSchedule(budget["n"]), values["alpha"])
            found = smoothed.certify_many_sequential(inputs, seeds, budget["n0"], rule, batch_size=size, labels=kept)
        return list(found)

    def _precision(self, precision: str) -> str:
        return precision + (" autocast" if precision != "float32" else "")


def setup(
    file: ClassifierFile, inputs: np.ndarray, labels: np.ndarray, indices: np.ndarray, settings: Settings
) -> Certify:
    """Prepare a worker."""
    return Certify(file, inputs, labels, indices, settings)


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return command(Smoothing, run, argv, prog="shiftlab certify smoothing", examples=EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())
