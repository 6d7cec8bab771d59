"""`shiftlab bound`: how wrong a classifier can be on unlabelled data of another distribution."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from cluster.errors import InputError
from cluster.schemas import table_schema
from cluster.store import Run
from cluster.trial import Scalar, Trial
from cluster.worker import Tables
from jobs.command import command
from jobs.launch import Counts, Execution, Work, launch

if TYPE_CHECKING:
    from lightning_modules.data.tables import FeatureRows
    from lightning_modules.error_bounds.evidence import Array, Evidence, LinearHead

EXAMPLES = """
shiftlab bound --source held_out.parquet --target production.parquet --head linear.pth --run runs/bound
shiftlab bound --source held_out.parquet --target january.parquet february.parquet --head model.ckpt --delta 0.001 --fail-above 0.2
shiftlab bound --source held_out.parquet --target hospitals.parquet --each_environment   # tables with a column logits
"""

METHOD = "bound"
"""Method of the trials, each of which is one target."""

BOUNDS = table_schema(
    ("trial_id", pa.string()),
    ("source", pa.string()),
    ("target", pa.string()),
    ("head", pa.string()),
    ("method", pa.string()),  # "Dis2 logits", "AC", ...
    ("kind", pa.string()),  # bound | estimate
    ("predicted_error", pa.float64()),
    ("delta", pa.float64()),  # of a bound
    ("discrepancy", pa.float64()),  # this and what follows: of Dis2
    ("source_error", pa.float64()),  # on the source's validation rows
    ("epsilon", pa.float64()),
    ("n_source", pa.int64()),
    ("n_target", pa.int64()),
    ("stability", pa.float64()),
    ("true_error", pa.float64()),  # null where the target has no labels
    ("held", pa.bool_()),  # true_error <= predicted_error
    ("seconds", pa.float64()),
    ("seed", pa.int64()),
)

SCHEMAS = {"bounds": BOUNDS}


@dataclass
class Bound(Execution):
    """Bound a classifier's error on unlabelled targets, beside what other methods estimate.

    The bound holds with probability 1 - delta if the true labelling is not worse for the classifier than the most adversarial
    linear critic of its features. Labels of a target are used for nothing but to say afterwards whether it held.

    Args:
        source: labelled feature table (.parquet, .arrow, .npz) of rows that the classifier was not trained on.
        target: feature tables, each one target; labels are optional.
        head: last layer of the classifier: npz with weight and bias, a state dict or a checkpoint; null takes the tables'
            column logits.
        second_head: of a second classifier on the same features, trained independently; adds GDE.
        outputs: what a column logits holds.
        each_environment: take each environment of a target table as a target of its own.
        delta: probability that a bound fails although its assumption holds.
        feature_spaces: of the critics: logits (the tightest), features (safer), pca:J (features on their top d / J
            directions).
        restarts: critics of a target and space.
        epochs: of a critic's training.
        loss: of critics on the target: dis2, one_minus_p or neg_ce.
        val_frac: share of the rows that the bound is evaluated on.
        fail_above: exit with 3 if the bound in the first feature space exceeds this for any target.
        seed: of splits and critics.
        run: where results go: a directory, s3://... or gs://...
    """

    source: str
    target: list[str]
    head: str | None = None
    second_head: str | None = None
    outputs: Literal["logits", "probabilities"] = "logits"
    each_environment: bool = False
    delta: float = 0.01
    feature_spaces: list[str] = field(default_factory=lambda: ["logits", "features"])
    restarts: int = 30
    epochs: int = 50
    loss: Literal["dis2", "one_minus_p", "neg_ce"] = "dis2"
    val_frac: float = 0.5
    fail_above: float | None = None
    seed: int = 0
    run: str = "runs/bound"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require({"restarts": 1, "epochs": 1, "seed": 0})
        for name in ("target", "feature_spaces"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InputError(f"{name}: {values} is empty or repeats one; name each once")
        for name in ("delta", "val_frac"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)} is not between 0 and 1; give e.g. 0.01 or 0.5")
        if self.fail_above is not None and not 0 <= self.fail_above <= 1:
            raise InputError(f"fail_above: {self.fail_above} is no error; give 0 to 1")
        if self.second_head is not None and self.head is None:
            raise InputError("second_head: goes with --head; give both")


@dataclass(frozen=True)
class Question:
    """A target: what may be used of it, and what is kept aside.

    Args:
        name: of the target, with a fingerprint.
        evidence: without its labels.
        true_error: of the classifier, on all of its labelled rows; None without labels.
    """

    name: str
    evidence: Evidence
    true_error: float | None


def run(options: Bound) -> int:
    """Bound every target; 0 if all was done and no bound is above `fail_above`, 3 if one is."""
    trials: list[Trial] = []

    def prepare() -> Work:
        about, questions = _prepare(options)
        trials.extend(plan(options, about, questions))

        def listed() -> Iterator[Trial]:
            return iter(trials)

        return Work(len(trials), lambda: listed, Assess, (about, questions), shape, 8, schemas=SCHEMAS)

    def summarise(_: Counts) -> None:
        from jobs.report import write_report

        write_report(options.run)

    code = launch("shiftlab bound", options, options.run, prepare, summarise)
    return code or _gate(options, trials)


def _gate(options: Bound, trials: Sequence[Trial]) -> int:
    """Say whether any target's bound is above the threshold."""
    if options.fail_above is None:
        return 0
    method = f"Dis2 {options.feature_spaces[0]}"
    wanted = {trial.trial_id for trial in trials}
    rows = Run(options.run).read_completed("bounds", BOUNDS, KEYS).to_pylist()
    found = {
        row["target"]: row["predicted_error"] for row in rows if row["trial_id"] in wanted and row["method"] == method
    }
    above = {name: value for name, value in found.items() if value > options.fail_above}
    assert len(found) == len(wanted), f"{method} is not stored for every target"  # never let pass what was not seen
    if not above:
        print(f"gate: passed, no {method} bound is above {options.fail_above:g}")
        return 0
    words = ", ".join(f"{name.split('@')[0]} {value:.3f}" for name, value in above.items())
    print(f"gate: FAILED, the {method} bound is above {options.fail_above:g} for {words}", file=sys.stderr)
    return 3


KEYS = ("trial_id", "method")
"""What tells the rows of `bounds` apart."""


def _prepare(options: Bound) -> tuple[dict[str, Scalar], list[Question]]:
    """Load tables and heads and check everything that can be checked."""
    from lightning_modules.data.tables import load_feature_rows
    from lightning_modules.error_bounds.discrepancy import check_space, spaces_of
    from lightning_modules.error_bounds.evidence import Evidence, error_rate
    from lightning_modules.error_bounds.head_files import read_head

    source = load_feature_rows(options.source)
    if source.labels is None:
        raise InputError(f"{options.source}: column 'label' is missing; the source must be labelled")
    width = source.features.shape[1]
    for space in options.feature_spaces:
        if not spaces_of(width, [space]):
            raise InputError(
                f"feature_spaces: {space} leaves {width // (check_space(space) or 1)} of {width} directions; 4 are the least"
            )
    heads = [read_head(path, width) for path in (options.head, options.second_head) if path is not None]
    about: dict[str, Scalar] = {"source": source.identity, "head": _fingerprint(heads, options.outputs)}
    source_logits = _logits(options, options.source, source, heads)
    classes = source_logits[0].shape[1]
    names = _class_names(options.source, source.classes, classes)
    labels = _numbers(source, names)
    questions: list[Question] = []
    for path in options.target:
        rows = load_feature_rows(path)
        if rows.features.shape[1] != width:
            raise InputError(
                f"{path}: has {rows.features.shape[1]} features, the source {width}; use one encoder for both"
            )
        logits = _logits(options, path, rows, heads)
        if rows.labels is not None and not set(rows.classes) & set(names):
            raise InputError(
                f"{path}: none of its classes ({', '.join(rows.classes[:5])}) is one of the source's "
                f"({', '.join(names[:5])}); give data of the same classes, or drop the column label"
            )
        parts: dict[str, Any] = {"": slice(None)}
        if options.each_environment:
            if not rows.environments:
                raise InputError(f"{path}: column 'environment' is missing; leave --each_environment out")
            parts = {f":{name}": chosen for name, chosen in rows.environments.items()}
        for suffix, chosen in parts.items():
            stem, _, fingerprint = rows.identity.partition("@")
            name = f"{stem}{suffix.replace('@', '_')}@{fingerprint}"
            if any(question.name == name for question in questions):
                raise InputError(f"target: {path} holds the same rows as another target of its name; name it once")
            second = (source_logits[1], logits[1][chosen]) if len(logits) > 1 else None
            try:
                evidence = Evidence(
                    source.features, source_logits[0], labels, rows.features[chosen], logits[0][chosen], second
                )
            except ValueError as error:
                raise InputError(f"{path}{suffix}: {error}") from None
            true = None if rows.labels is None else error_rate(logits[0][chosen], _numbers(rows, names)[chosen])
            questions.append(Question(name, evidence, true))
    return about, questions


def _fingerprint(heads: Sequence[LinearHead], outputs: str) -> str:
    import hashlib

    digest = hashlib.sha256()
    for head in heads:
        digest.update(head.weight.tobytes() + head.bias.tobytes())
    return digest.hexdigest()[:8] if heads else f"column {outputs}"


def _logits(options: Bound, path: str, rows: FeatureRows, heads: Sequence[LinearHead]) -> list[Array]:
    """Logits of the classifier, and of the second one where there is one."""
    from lightning_modules.error_bounds.evidence import logits_of_probabilities

    if heads:
        return [head(rows.features) for head in heads]
    if rows.logits is None:
        raise InputError(f"{path}: column 'logits' is missing; give --head, or write the classifier's outputs there")
    if options.outputs == "probabilities":
        return [logits_of_probabilities(rows.logits, f"{path}: column 'logits'")]
    return [rows.logits]


def _class_names(path: str, found: Sequence[str], classes: int) -> tuple[str, ...]:
    """Name the classifier's outputs: the source's labels in order, or the numbers from 0 where some have no row."""
    if len(found) == classes:
        return tuple(found)
    if len(found) < classes and all(name.isdecimal() and int(name) < classes for name in found):
        return tuple(map(str, range(classes)))
    raise InputError(
        f"{path}: column 'label' has {len(found)} classes, the head {classes} outputs; number the labels from 0 in the "
        "order of the outputs, or give the head they go with"
    )


def _numbers(rows: FeatureRows, names: Sequence[str]) -> Array:
    """Labels as outputs of the classifier; -1, which is never predicted, for a class that it does not know."""
    import numpy as np

    place = {name: number for number, name in enumerate(names)}
    assert rows.labels is not None
    found: Array = np.array([place.get(name, -1) for name in rows.classes], np.int64)[rows.labels]
    return found


def plan(options: Bound, about: dict[str, Scalar], questions: Sequence[Question]) -> list[Trial]:
    """List the trials, one a target."""
    settings: dict[str, Scalar] = {
        **about,
        "delta": options.delta,
        "spaces": " ".join(options.feature_spaces),
        "loss": options.loss,
        "val_frac": options.val_frac,
    }
    budget = {"restarts": options.restarts, "epochs": options.epochs}
    return [Trial.create(METHOD, question.name, (), settings, options.seed, budget) for question in questions]


def shape(trial: Trial) -> tuple[Any, ...]:
    """What targets must share for their critics to train together."""
    return trial.method, trial.hyperparameters, trial.budget, trial.seed


class Assess:
    """Bounds targets on a worker, which shares the tables with the others of its node."""

    def __init__(self, about: dict[str, Scalar], questions: Sequence[Question]) -> None:
        import torch

        torch.set_num_threads(1)
        self._about = about
        self._questions = {question.name: question for question in questions}

    def __call__(self, trial: Trial) -> Tables:
        """Bound one target."""
        return self.pack([trial])[0]

    def pack(self, trials: Sequence[Trial]) -> list[Tables]:
        """Bound several targets; their critics train together."""
        from lightning_modules.error_bounds.catalog import assess
        from lightning_modules.error_bounds.critics import Training
        from lightning_modules.error_bounds.discrepancy import DisagreementDiscrepancy

        values, budget = json.loads(trials[0].hyperparameters), json.loads(trials[0].budget)
        training = Training(budget["restarts"], budget["epochs"], loss=values["loss"])
        method = DisagreementDiscrepancy(
            training=training, val_frac=values["val_frac"], delta=values["delta"], seed=trials[0].seed
        )
        questions = [self._questions[trial.dataset] for trial in trials]
        began = time.perf_counter()
        found = assess([question.evidence for question in questions], method, values["spaces"].split())
        seconds = (time.perf_counter() - began) / len(trials)
        results: list[Tables] = []
        for trial, question, estimates in zip(trials, questions, found, strict=True):
            rows = []
            for e in estimates:
                details, true = dict(e.details), question.true_error
                sizes = [None if (n := details.get(name)) is None else int(n) for name in ("n_source", "n_target")]
                dis2 = [details.get(name) for name in ("discrepancy", "source_error", "epsilon")]
                held = None if true is None else true <= e.error
                rows.append(
                    (values["source"], trial.dataset, values["head"], e.method, e.kind, e.error, e.delta, *dis2, *sizes)
                    + (details.get("stability"), true, held, seconds, trial.seed)
                )
            results.append({"bounds": rows})
        return results


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return command(Bound, run, argv, prog="shiftlab bound", examples=EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())
