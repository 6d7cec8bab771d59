"""Environments and datasets: one data distribution each, and a list of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lightning_modules.errors import InputError


@dataclass(frozen=True)
class Environment:
    """One data distribution: a name and its examples.

    Args:
        name: unique within its dataset.
        inputs: [n, ...] float32, or uint8 for images whose values are pixels (0 to 255; scaled to [0, 1] when used).
        labels: [n] int64 class indices into the dataset's classes.
        out: optional [n] bool, True for the examples of the "out" split where the data fixes its own split.
    """

    name: str
    inputs: np.ndarray
    labels: np.ndarray
    out: np.ndarray | None = None

    def __len__(self) -> int:
        """Count the examples."""
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A list of environments that share inputs' shape and classes.

    Args:
        identity: name plus, where the name does not fix the content, "@" and a fingerprint of it. It enters trial_id,
            so it must not depend on where the data lie.
        environments: at least two.
        classes: class names in label order.
        network: default network: "linear", "mlp", "small-cnn" or "cnn".
        checkpoint_every: default number of steps between evaluations (DomainBed's for this kind of data).
    """

    identity: str
    environments: tuple[Environment, ...]
    classes: tuple[str, ...]
    network: str
    checkpoint_every: int = 100
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The identity without the fingerprint."""
        return self.identity.split("@")[0]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.environments[0].inputs.shape[1:])

    @property
    def environment_names(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(environment.name for environment in self.environments)


def check_dataset(dataset: Dataset) -> Dataset:
    """Validate a dataset at the border, so that everything behind it can trust it.

    Returns:
        The same dataset.

    Raises:
        InputError: naming the environment and the mend, for fewer than two environments, repeated names, an empty
            environment, a split of its own with an empty side, unequal shapes, NaN or infinite inputs, labels out of
            range, or an environment in which a class of the dataset has no example.
    """
    names = dataset.environment_names
    if len(names) < 2:
        found = f"only {names[0]!r}" if names else "none"
        raise InputError(f"dataset {dataset.name}: needs at least two environments, found {found}; add another")
    if len(set(names)) < len(names):
        raise InputError(f"dataset {dataset.name}: environment names repeat: {sorted(names)}; rename one")
    for environment in dataset.environments:
        where = f"dataset {dataset.name}, environment {environment.name!r}"
        inputs, labels = environment.inputs, environment.labels
        if len(labels) == 0:
            raise InputError(f"{where}: has no examples; fill or remove it")
        if len(inputs) != len(labels):
            raise InputError(f"{where}: {len(inputs)} inputs but {len(labels)} labels; give one label an example")
        if environment.out is not None and (environment.out.all() or not environment.out.any()):
            raise InputError(
                f"{where}: its split has only {'out' if environment.out.all() else 'in'!r} examples; mark both"
            )
        if inputs.shape[1:] != dataset.input_shape:
            raise InputError(
                f"{where}: examples have shape {inputs.shape[1:]}, those of {names[0]!r} have {dataset.input_shape}; "
                "make them equal"
            )
        if inputs.dtype.kind == "f":
            bad = ~np.isfinite(inputs).reshape(len(inputs), -1).all(axis=1)
            if bad.any():
                raise InputError(
                    f"{where}: {int(bad.sum())} examples have NaN or infinite inputs, first at row {int(bad.argmax())}; "
                    "clean or drop them"
                )
        if labels.min() < 0 or labels.max() >= len(dataset.classes):
            raise InputError(
                f"{where}: label {int(labels.min() if labels.min() < 0 else labels.max())} is outside "
                f"0..{len(dataset.classes) - 1}; number the classes from 0"
            )
        counts = np.bincount(labels, minlength=len(dataset.classes))
        if (counts == 0).any():
            missing = [dataset.classes[i] for i in np.flatnonzero(counts == 0)[:5]]
            raise InputError(
                f"{where}: has no example of class {', '.join(map(repr, missing))}; add some or drop the class"
            )
    return dataset
