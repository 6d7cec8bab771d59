"""The paper's own experiments: its networks on CIFAR-10 and ImageNet, from a person's folder."""

from __future__ import annotations

from pathlib import Path

from cluster.errors import InputError
from cluster.trial import Trial, derive_seed
from jobs.claims import MetricRow, scalar_rows, settings
from jobs.papers.randomized_smoothing.names import ALPHA, CIFAR, IMAGENET

CHUNK = 25
"""Images of a cell."""

GUESS, SAMPLES = 100, 100_000
"""n0 and n."""

RADII = {CIFAR: (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5), IMAGENET: (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)}

TABLE = {
    (CIFAR, 0.12): (0.81, 0.59, 0, 0, 0, 0, 0),
    (CIFAR, 0.25): (0.75, 0.60, 0.43, 0.27, 0, 0, 0),
    (CIFAR, 0.5): (0.65, 0.55, 0.41, 0.32, 0.23, 0.15, 0.09),
    (CIFAR, 1.0): (0.47, 0.39, 0.34, 0.28, 0.22, 0.17, 0.14),
    (IMAGENET, 0.25): (0.67, 0.49, 0, 0, 0, 0, 0),
    (IMAGENET, 0.5): (0.57, 0.46, 0.37, 0.29, 0, 0, 0),
    (IMAGENET, 1.0): (0.44, 0.38, 0.33, 0.26, 0.19, 0.15, 0.12),
}
"""Certified accuracy by radius, recomputed from the logs that the authors published."""

NETWORKS = {
    CIFAR: ("resnet110", 10, 20, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), (3, 32, 32)),
    IMAGENET: ("resnet50", 1000, 100, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (3, 224, 224)),
}
"""Network, classes, every which image, normalisation and input shape of the paper's experiments."""


def files(trial: Trial, data: str) -> dict[str, tuple[Path, str]]:
    """Where a cell's images and network are in the folder `data`, and what to call them."""
    sigma = f"{settings(trial)['sigma']:.2f}"
    if trial.dataset == CIFAR:
        images, network = "cifar-10-batches-py", f"models/cifar10/resnet110/noise_{sigma}/checkpoint.pth.tar"
    else:
        images, network = "imagenet/val", f"models/imagenet/resnet50/noise_{sigma}/checkpoint.pth.tar"
    return {"images": (Path(data, images), images), "network": (Path(data, network), network)}


def run_published(trial: Trial, data: str, sigma: float, first: int, images: int) -> list[MetricRow]:
    """Certify a chunk of the paper's images with a published network."""
    import torch

    from lightning_modules.certification.smoothing import SmoothedClassifier
    from lightning_modules.data.examples import as_tensor, load_examples
    from lightning_modules.state_dicts import find_state_dict, load_tensors, load_weights
    from lightning_modules.vision_networks import build_classifier

    name, classes, every, mean, std, shape = NETWORKS[trial.dataset]
    (folder, _), (checkpoint, _) = files(trial, data).values()
    network = build_classifier(name, shape, classes, torch.Generator(), mean, std)
    content = checkpoint.read_bytes()
    load_weights(network, find_state_dict(load_tensors(content, str(checkpoint)), str(checkpoint)), str(checkpoint))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device).eval().requires_grad_(False)
    examples = load_examples(str(folder), "all" if trial.dataset == IMAGENET else "test", every=every)
    rows = slice(first, first + images)
    x, y = as_tensor(examples.inputs, rows), examples.labels[rows]
    if not len(x):
        raise InputError(f"{folder}: has fewer images than the paper's 500 x {every}; give the whole set")
    smoothed = SmoothedClassifier(network, classes, sigma)
    seeds = [derive_seed(trial.trial_id, int(i)) for i in examples.indices[rows]]
    size = 1000 if trial.dataset == CIFAR else 400
    found = smoothed.certify_many(x, seeds, GUESS, SAMPLES, ALPHA, batch_size=size)
    metrics: list[MetricRow] = []
    for index, label, c in zip(examples.indices[rows].tolist(), y.tolist(), found, strict=True):
        if c.error:
            raise FloatingPointError(c.error)
        figures = {"radius": c.radius, "right": float(c.prediction == label), "abstain": float(c.prediction == -1)}
        metrics += scalar_rows(figures, step=index)
    return metrics
