"""Networks trained on real digits, certified, attacked and priced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.trial import Trial
from jobs.claims import MetricRow, scalar_rows
from jobs.papers.randomized_smoothing.names import (
    ALPHA,
    CLEAN,
    CONSISTENCY,
    DENOISED,
    MACER,
    NOISE,
    RATIOS,
    SMOOTHADV,
    example_seeds,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn


def run_digits(trial: Trial, sigma: float, epochs: int, images: int, lam: float | None = None) -> list[MetricRow]:
    """Train on 4,000 digits and certify others at every sigma."""
    import torch

    from lightning_modules.certification.denoising import DenoisedClassifier, Denoiser, DenoiserTraining, fit_denoiser
    from lightning_modules.certification.training import NoiseAugmentedClassifier, fit_classifier
    from lightning_modules.data.examples import as_tensor, load_examples

    train, test = load_examples("MNIST", "train"), load_examples("MNIST", "test", limit=images)
    inputs, labels = torch.from_numpy(train.inputs.copy()), torch.from_numpy(train.labels.copy())
    x, y = as_tensor(test.inputs), torch.from_numpy(test.labels.copy())
    regulariser = {CONSISTENCY: "consistency", SMOOTHADV: "smoothadv", MACER: "macer"}.get(trial.method, "none")
    options: dict[str, Any] = {}
    if trial.method == SMOOTHADV:
        options = {"epsilon": 1.0, "attack_steps": 2, "warmup_epochs": 2, "draws": 2}
    elif trial.method == MACER:
        options = {"draws": 8}
    elif lam is not None:
        options = {"lam": lam}
    seed = trial.stream("training") % 2**31
    module = NoiseAugmentedClassifier(
        "small-cnn",
        (1, 28, 28),
        10,
        0.0 if trial.method == DENOISED else sigma,
        regulariser,
        optimizer="adam",
        lr=2e-3,
        seed=seed,
        **options,
    )
    fit_classifier(module, inputs, labels, epochs=epochs, batch_size=64, seed=seed)
    network: nn.Module = module.network
    if trial.method == DENOISED:
        denoiser = Denoiser(1, 4, 8, torch.Generator().manual_seed(seed))
        denoising = DenoiserTraining(denoiser, sigma, seed=seed)
        fit_denoiser(denoising, inputs, epochs=2, batch_size=64, seed=seed)
        network = DenoisedClassifier(denoising.denoiser, network)
    network = network.eval().requires_grad_(False)
    rows: list[MetricRow] = []
    sigmas = {NOISE: (0.25, 0.5, 1.0), CLEAN: (0.25, 0.5, 1.0)}.get(trial.method, (0.5,))
    for certified_at in (0.12,) if sigma == 0.12 else sigmas:
        rows += _certify(trial, network, x, y, certified_at)
    if trial.method == NOISE and sigma == 0.5:
        rows += _cost(trial, network, x, y, sigma)
        rows += _attack(trial, network, x, y, sigma)
        rows += _predict(trial, network, x, y, sigma)
    return rows


def _columns(found: Any, labels: np.ndarray, radii: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions, radii, and certified accuracy at some radii."""
    import numpy as np

    from lightning_modules.certification.accuracy import certified_accuracy

    predictions = np.array([c.prediction for c in found])
    certified = np.array([c.radius for c in found])
    return predictions, certified, certified_accuracy(predictions, certified, labels, radii)


def _certify(trial: Trial, network: nn.Module, x: Tensor, y: Tensor, sigma: float) -> list[MetricRow]:
    from lightning_modules.certification.accuracy import average_certified_radius
    from lightning_modules.certification.smoothing import SmoothedClassifier

    smoothed = SmoothedClassifier(network, 10, sigma)
    seeds = example_seeds(trial, f"certify {sigma}", len(x))
    found = smoothed.certify_many(x, seeds, 100, 2000, ALPHA)
    labels = y.numpy()
    grid = [i * 0.05 for i in range(66)]
    predictions, certified, table = _columns(found, labels, [ratio * sigma for ratio in RATIOS])
    where = f"sigma={sigma:g}"
    figures = {f"certified(r/sigma={ratio:g})": value for ratio, value in zip(RATIOS, table, strict=True)}
    figures["abstain"] = float((predictions == -1).mean())
    figures["acr"] = average_certified_radius(predictions, certified, labels)
    rows = scalar_rows(figures, environment=where)
    # The curve's steps are hundredths of a radius.
    curve = _columns(found, labels, grid)[2]
    rows += [
        (round(100 * r), where, "test", "certified_accuracy", float(value))
        for r, value in zip(grid, curve, strict=True)
    ]
    return rows


def _cost(trial: Trial, network: nn.Module, x: Tensor, y: Tensor, sigma: float) -> list[MetricRow]:
    """Fixed n against stopping when decided, on the same images."""
    import numpy as np

    from lightning_modules.certification.sequential import LookSchedule, SequentialRule
    from lightning_modules.certification.smoothing import SmoothedClassifier

    n, radii = 10_000, (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
    x, labels = x[:100], y.numpy()[:100]
    smoothed = SmoothedClassifier(network, 10, sigma)
    fixed = smoothed.certify_many(x, example_seeds(trial, "fixed", len(x)), 100, n, ALPHA)
    rule = SequentialRule(sigma, radii, LookSchedule(n), ALPHA)
    adaptive = smoothed.certify_many_sequential(x, example_seeds(trial, "adaptive", len(x)), 100, rule)
    gaps = _columns(fixed, labels, radii)[2] - _columns(adaptive, labels, radii)[2]
    spent = [float(np.mean([c.n_used for c in found])) for found in (fixed, adaptive)]
    figures = {"fixed_samples": spent[0], "adaptive_samples": spent[1], "largest_gap": float(np.abs(gaps).max())}
    return scalar_rows(figures, environment=f"sigma={sigma:g}")


def _attack(trial: Trial, network: nn.Module, x: Tensor, y: Tensor, sigma: float) -> list[MetricRow]:
    """Attack the smoothed classifier just inside the certified radii, and well beyond them."""
    import torch

    from lightning_modules.certification.attacks import smoothed_pgd
    from lightning_modules.certification.smoothing import ABSTAIN, SmoothedClassifier

    smoothed = SmoothedClassifier(network, 10, sigma)
    count = min(60, len(x))
    found = smoothed.certify_many(x[:count], example_seeds(trial, "attacked", count), 100, 5000, ALPHA)
    rows = [i for i, c in enumerate(found) if c.prediction != ABSTAIN and c.radius > 0]
    predicted = torch.tensor([found[i].prediction for i in rows])
    radii = torch.tensor([found[i].radius for i in rows])
    generator = torch.Generator().manual_seed(trial.stream("attack") % 2**63)
    noise = torch.randn((16, len(rows), *x.shape[1:]), generator=generator)
    figures: dict[str, float] = {}
    for name, budget in (("inside", 0.99 * radii), ("beyond", 3.0 * radii)):
        attacked = smoothed_pgd(network, x[rows], predicted, sigma, budget, 20, noise, clip=None)
        moved = (attacked - x[rows]).flatten(1).norm(dim=1)
        answers = [
            smoothed.predict(image, 2000, ALPHA / len(rows), seed=seed)
            for image, seed in zip(attacked, example_seeds(trial, name, len(rows)), strict=True)
        ]
        changed = [a not in (p, ABSTAIN) for a, p in zip(answers, predicted.tolist(), strict=True)]
        figures[f"{name}_changed"] = sum(changed)
        figures[f"{name}_share_of_budget"] = float((moved / budget).min())
    return scalar_rows({**figures, "attacked": len(rows)}, environment=f"sigma={sigma:g}")


def _predict(trial: Trial, network: nn.Module, x: Tensor, y: Tensor, sigma: float) -> list[MetricRow]:
    from lightning_modules.certification.smoothing import ABSTAIN, SmoothedClassifier

    smoothed = SmoothedClassifier(network, 10, sigma)
    x, y = x[:100], y[:100]
    rows: list[MetricRow] = []
    for n in (100, 1000, 10_000):
        answers = [
            smoothed.predict(i, n, ALPHA, seed=s)
            for i, s in zip(x, example_seeds(trial, f"n={n}", len(x)), strict=True)
        ]
        right = sum(a == label for a, label in zip(answers, y.tolist(), strict=True)) / len(x)
        figures = {"predict_right": right, "predict_abstain": answers.count(ABSTAIN) / len(x)}
        rows += scalar_rows(figures, step=n, environment=f"sigma={sigma:g}")
    used = []
    for image, seed in zip(x, example_seeds(trial, "sequential", len(x)), strict=True):
        used.append(smoothed.predict_sequential(image, 32, 1000, ALPHA, seed=seed)[1])
    return rows + scalar_rows({"predict_samples": sum(used) / len(used)}, environment=f"sigma={sigma:g}")
