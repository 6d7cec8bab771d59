"""Certificates: samples per second against the bare forward pass and the usual loop, samples spent, label flips."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `python benchmarks/certify.py` has only this folder

SIGMA, BATCH = 0.5, 400
SETTINGS = {
    "LeNet": ("lenet", (1, 28, 28), "independent", 4800),
    "ResNet-110": ("resnet110", (3, 32, 32), "independent", 96),
    "small CNN, noise shared by 32 images": ("small-cnn", (1, 28, 28), "shared", 40_000),
    "small CNN, own noise": ("small-cnn", (1, 28, 28), "independent", 40_000),
}
"""Network, input, noise, and samples of a measurement."""


def counted_one_by_one(model: Any, x: Any, samples: int, batch: int) -> Any:
    """The usual loop: one image at a time, repeated into a batch, its answers counted from NumPy one after another."""
    import numpy as np
    import torch

    counts = np.zeros(10, dtype=int)
    with torch.no_grad():
        while samples > 0:
            size = min(batch, samples)
            copies = x.repeat((size, 1, 1, 1))
            answers = model(copies + torch.randn_like(copies) * SIGMA).argmax(1).cpu().numpy()
            for answer in answers:
                counts[answer] += 1
            samples -= size
    return counts


def throughput(quick: bool) -> list[Any]:
    """Samples per second of each network: certifying, the bare forward pass, and the usual loop, in turn."""
    import torch

    from benchmarks.harness import alternate, ratio
    from lightning_modules.certification.noise import NoisyCounter, generator_on
    from lightning_modules.vision_networks import build_classifier

    figures = []
    for title, (name, shape, noise, samples) in SETTINGS.items():
        samples = samples // 4 if quick else samples
        batch = min(BATCH, samples // 2)
        model = build_classifier(name, shape, 10, torch.Generator().manual_seed(0)).eval().requires_grad_(False)
        images = torch.rand(32, *shape, generator=torch.Generator().manual_seed(1))
        counter = NoisyCounter(model, 10, SIGMA, batch)
        resident = torch.rand(batch, *shape)
        generator = generator_on(torch.device("cpu"), 0)

        def rate(call: Callable[[], Any], samples: int = samples) -> Callable[[], float]:
            def measure() -> float:
                began = time.perf_counter()
                call()
                return samples / (time.perf_counter() - began)

            return measure

        def certify(
            counter: Any = counter, images: Any = images, noise: str = noise, n: int = samples, g: Any = generator
        ) -> None:
            if noise == "shared":
                counter.count_shared(images, g, n // len(images))
            else:
                counter.count(images[:1], [g], n)

        def forward(model: Any = model, x: Any = resident, n: int = samples) -> None:
            with torch.inference_mode():
                for _ in range(n // len(x)):
                    model(x)

        def loop(model: Any = model, x: Any = images[0], n: int = samples, size: int = batch) -> None:
            counted_one_by_one(model, x, n, size)

        for warm in (certify, forward, loop):
            warm()
        rates = alternate({"ours": rate(certify), "forward": rate(forward), "loop": rate(loop)}, 3 if quick else 9)
        figures.append(ratio(f"{title}: samples/s against the bare forward pass", rates["ours"], rates["forward"], 0.9))
        figures.append(ratio(f"{title}: against a loop over images", rates["ours"], rates["loop"], None))
    return figures


def samples_spent(quick: bool) -> tuple[list[Any], list[str]]:
    """Samples an example, fixed n against stopping when decided, on real digits, and what it costs in accuracy."""
    import numpy as np
    import torch

    from benchmarks.harness import Figure
    from lightning_modules.certification.accuracy import certified_accuracy
    from lightning_modules.certification.sequential import LookSchedule, SequentialRule
    from lightning_modules.certification.smoothing import SmoothedClassifier
    from lightning_modules.certification.training import NoiseAugmentedClassifier, fit_classifier
    from lightning_modules.data.examples import as_tensor, load_examples

    n, count = (10_000, 50) if quick else (100_000, 100)
    train, test = load_examples("MNIST", "train"), load_examples("MNIST", "test", limit=count)
    figures, notes = [], []
    for sigma in (0.25, 0.5, 1.0):
        module = NoiseAugmentedClassifier("small-cnn", (1, 28, 28), 10, sigma, optimizer="adam", lr=2e-3)
        inputs, labels = torch.from_numpy(train.inputs.copy()), torch.from_numpy(train.labels.copy())
        fit_classifier(module, inputs, labels, epochs=3 if quick else 10, batch_size=64, seed=0)
        # Noise shared by the images makes the fixed n affordable here; each image's law is the same.
        fixed_way = SmoothedClassifier(module.network, 10, sigma, noise="shared")
        adaptive_way = SmoothedClassifier(module.network, 10, sigma)
        x, seeds = as_tensor(test.inputs), range(count)
        step = min(0.25, sigma)
        radii = tuple(i * step for i in range(int(3.3 * sigma / step + 1e-9) + 1))
        rule = SequentialRule(sigma, radii, LookSchedule(n), 0.001)
        took = []
        for call in (
            lambda s=fixed_way, x=x: s.certify_many(x, [0] * count, 100, n, 0.001),
            lambda s=adaptive_way, x=x, r=rule, i=seeds: s.certify_many_sequential(x, i, 100, r),
        ):
            began = time.perf_counter()
            found = call()
            took.append((found, time.perf_counter() - began))
        (fixed, fixed_s), (adaptive, adaptive_s) = took
        columns = [
            certified_accuracy(
                np.array([c.prediction for c in found]), np.array([c.radius for c in found]), test.labels, radii
            )
            for found in (fixed, adaptive)
        ]
        spent = [statistics.fmean(c.n_used for c in found) for found in (fixed, adaptive)]
        name = f"digits, sigma {sigma:g}, n = {n:,}: samples an example, fixed against adaptive"
        figures.append(Figure(name, spent[0] / spent[1], "x", 5, spent[1], spent[0]))
        gap = columns[0] - columns[1]
        notes.append(
            f"sigma {sigma:g}: certified accuracy at r = {radii[0]:g} to {radii[-1]:g}, fixed minus adaptive: mean "
            f"{gap.mean():+.4f}, largest {gap[np.abs(gap).argmax()]:+.3f} of {count} images; {fixed_s:.0f} s against {adaptive_s:.0f} s"
        )
    return figures, notes


def label_flips(quick: bool) -> tuple[list[Any], list[str]]:
    """Certify test examples against 60,000 training rows in matrix passes, and one by one from scratch."""
    import numpy as np

    from benchmarks.harness import alternate, ratio
    from lightning_modules.certification.label_flips import FeatureMap, LabelFlipCertifier
    from lightning_modules.data.digits import load_digits

    images, digits = load_digits()
    shifts = [(a, b) for a in (-2, -1, 0, 1) for b in (-1, 0, 1)]
    x = np.concatenate([np.roll(images, shift, (1, 2)) for shift in shifts]).reshape(-1, 784) / 255.0
    y = np.tile(digits < 5, len(shifts)).astype(np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    figures, notes = [], []
    for kind, every, few in (("pca:50", 25 if quick else 5, 2 if quick else 4), ("raw", 25, 1 if quick else 2)):
        features = FeatureMap.parse(kind).fit(x[:: len(shifts)])
        train, labels = features(x[order]), y[order]
        tests = features(np.roll(images, 1, 1).reshape(-1, 784)[::every] / 255.0)
        certifier = LabelFlipCertifier(100.0, 0.1).fit(train, labels)
        rates = alternate(
            {
                "ours": lambda c=certifier, h=tests: _seconds(lambda: c.certify(h)) / len(h),
                "naive": lambda f=train, y=labels, h=tests[:few]: (
                    _seconds(lambda: [from_scratch(f, y, point, 100.0, 0.1) for point in h]) / len(h)
                ),
            },
            3 if quick else 5,
        )
        ours = certifier.certify(tests[:few])
        naive = [from_scratch(train, labels, h, 100.0, 0.1) for h in tests[:few]]
        gap = max(abs(a / b - 1) for a, (b, _) in zip(ours.log_wrong_prob, naive, strict=True))
        equal = all(int(a) == b for a, (_, b) in zip(ours.flips_exact, naive, strict=True))
        name = (
            f"label flips, {len(train):,} x {train.shape[1]}: seconds a test example, one by one against matrix passes"
        )
        figures.append(ratio(name, rates["naive"], rates["ours"], 50))
        notes.append(
            f"{kind}: {len(tests)} test examples; log bounds differ by at most {100 * gap:.2f} % (the matrix pass does not "
            f"polish t, which any value of keeps valid), exact certificates are {'equal' if equal else 'NOT EQUAL'}"
        )
    return figures, notes


def from_scratch(train: Any, labels: Any, h: Any, lam: float, q: float) -> tuple[float, int]:
    """One test example by itself: solve the ridge system, minimise the bound over t, sort the gains."""
    import numpy as np
    from scipy.optimize import minimize_scalar

    centred = np.concatenate([train - train.mean(0), np.ones((len(train), 1))], 1)
    point = np.append(h - train.mean(0), 1.0)
    alpha = centred @ np.linalg.solve(centred.T @ centred + lam * np.eye(centred.shape[1]), point)
    signs = np.where(labels == 1, 1.0, -1.0)
    score = float(alpha @ signs)
    b = alpha * signs * (1 if score > 0 else -1)

    def log_bound(t: float) -> float:
        return float(np.log((1 - q) * np.exp(-t * b) + q * np.exp(t * b)).sum())

    top = 5 / np.abs(b).max()
    best = minimize_scalar(log_bound, bounds=(0, top), method="bounded").fun
    gains = np.cumsum(np.sort(2 * np.maximum(b, 0))[::-1])
    strict = score <= 0  # a tie goes to class 0
    exact = int((gains < abs(score)).sum()) if not strict else int((gains <= abs(score)).sum())
    return best, exact


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    """Run the benchmark."""
    import torch

    from benchmarks.harness import quick_asked, show

    quick = quick_asked(__doc__)
    torch.set_num_threads(1)
    figures = throughput(quick)
    for more, notes in (samples_spent(quick), label_flips(quick)):
        figures += more
        NOTES.extend(notes)
    show("Certificates", figures, NOTES)


NOTES = [
    f"one thread, batches of {BATCH} (ResNet-110: 48); the bare forward pass runs on a batch that is in memory already",
]

if __name__ == "__main__":
    main()
