"""`shiftlab heads`: retrain the last layer on any feature table, and score it on domains it never saw."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError
from cluster.store import Run
from cluster.trial import Trial
from jobs.command import command
from jobs.launch import Counts, Execution, Work, launch

if TYPE_CHECKING:
    import pyarrow as pa

    from lightning_modules.data.environments import Dataset

EXAMPLES = """
shiftlab heads features.parquet                                            # every environment held out in turn
shiftlab heads features.parquet --target hospital_3 --seeds 5 --run runs/heads
shiftlab heads features.parquet --heads ERM DARE-JIT Cheat --shrinkage 0.01 0.1 --l2 1e-4 1e-2
"""

SHRINKING = ("DARE", "DARE-JIT", "DARE-centred", "DARE-centred-JIT")
WEIGHTED = ("IRM", "VREx", "CORAL")
HEADS = ("ERM", "GroupDRO", *WEIGHTED, "Standardised", "Standardised-JIT", *SHRINKING, "Cheat")
"""Heads by name; "-JIT" adapts to the target's unlabelled "in" examples, "Cheat" trains on their labels too."""

LEVEL = 0.1
"""Level of the one-sided tests, the paper's as remembered."""


@dataclass
class Heads(Execution):
    """Compare last layers on the same features: DARE, what it was compared with, and a head that cheats.

    Every head is fitted on the "in" examples of all environments but the target. Hyperparameters are chosen by accuracy
    on the training environments' "out" examples alone. What is stored in the run already is not run again.

    Args:
        table: feature table (.parquet, .arrow, .npz) with features, label, environment and perhaps split.
        target: environments to hold out, each on its own; "each" for all.
        heads: names of heads; "all" for every one.
        shrinkage: covariance shrinkages to try, for DARE.
        l2: ridges to try.
        weight: penalty weights to try, for IRM, VREx and CORAL.
        seeds: repetitions, each with its own splits (without effect where the table brings a split).
        seed: first of these seeds.
        run: where results go: a directory, s3://... or gs://...
    """

    table: str
    target: list[str] = field(default_factory=lambda: ["each"])
    heads: list[str] = field(default_factory=lambda: ["all"])
    shrinkage: list[float] = field(default_factory=lambda: [0.1])
    l2: list[float] = field(default_factory=lambda: [1e-4, 1e-2])
    weight: list[float] = field(default_factory=lambda: [1.0, 100.0])
    seeds: int = 3
    seed: int = 0
    run: str = "runs/heads"

    def __post_init__(self) -> None:
        for name in ("target", "heads", "shrinkage", "l2", "weight"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InputError(f"{name}: {values} is empty or repeats one; name each once")
        for head in self.heads:
            if head not in (*HEADS, "all"):
                raise InputError(f"heads: unknown {head!r}; choose from all, {', '.join(HEADS)}")
        for name, top in (("shrinkage", 1.0), ("l2", math.inf), ("weight", math.inf)):
            for value in getattr(self, name):
                if not 0 <= value <= top or math.isinf(value):
                    raise InputError(f"{name}: {value} is out of range; give 0 {'to 1' if top == 1 else 'or more'}")
        if self.seeds < 1 or self.seed < 0:
            raise InputError("seeds and seed: give 1 or more seeds, the first of them 0 or more")
        super().__post_init__()


def plan(options: Heads, dataset: Dataset) -> list[Trial]:
    """List the trials: target x head x shrinkage x l2 x weight x seed, each factor only where the head has it.

    Raises:
        InputError: for a target the table does not have, or too few environments left to train on.
    """
    names = dataset.environment_names
    targets = names if options.target == ["each"] else tuple(options.target)
    for target in targets:
        if target not in names:
            raise InputError(
                f"target: {dataset.name} has no environment {target!r}; it has {', '.join(names)}, or say each"
            )
    heads = HEADS if "all" in options.heads else tuple(options.heads)
    if len(names) < 3 and any(head not in ("ERM", "Cheat") for head in heads):
        raise InputError(f"table: {dataset.name} has {len(names)} environments; heads but ERM and Cheat need 3 or more")
    seeds = range(options.seed, options.seed + options.seeds)
    trials = []
    for seed, target, head, l2 in itertools.product(seeds, targets, heads, options.l2):
        grid: dict[str, list[float]] = {"shrinkage": options.shrinkage} if head in SHRINKING else {}
        if head in WEIGHTED:
            grid["weight"] = options.weight
        for values in itertools.product(*grid.values()):
            settings = {"l2": float(l2), **{name: float(v) for name, v in zip(grid, values, strict=True)}}
            trials.append(Trial.create(head, dataset.identity, (target,), settings, seed))
    return trials


class Cells:
    """Runs trials on a table; keeps what they share: splits, statistics of environments, and the last DARE fits."""

    def __init__(self, dataset: Dataset) -> None:
        import numpy as np

        from lightning_modules.data.splits import split_environment
        from lightning_modules.domain_generalization.domain_adjusted import DomainAdjustedRegression, DomainStats

        features = [e.inputs.reshape(len(e), -1) for e in dataset.environments]

        @lru_cache(maxsize=4)
        def rows(seed: int) -> dict[tuple[str, str], tuple[Any, Any]]:
            parts = {}
            for number, (x, e) in enumerate(zip(features, dataset.environments, strict=True)):
                for split, chosen in zip(("in", "out"), split_environment(e, seed, number), strict=True):
                    parts[e.name, split] = (x[chosen], e.labels[chosen])
            return parts

        @lru_cache(maxsize=4)
        def stats(seed: int) -> DomainStats:
            # One eigendecomposition an environment serves every target, shrinkage, ridge and variant of the seed.
            found = DomainStats()
            for name in dataset.environment_names:
                x = rows(seed)[name, "in"][0]
                found.update(x, np.full(len(x), name))
            return found

        @lru_cache(maxsize=8)
        def dare(seed: int, target: str, shrinkage: float, l2: float, center: Any) -> DomainAdjustedRegression:
            head = DomainAdjustedRegression(shrinkage=shrinkage, l2=l2, center=center)
            return head.fit(*self._training(seed, target), stats=stats(seed))

        self._dataset, self._rows, self._stats, self._dare = dataset, rows, stats, dare

    def __call__(self, trial: Trial) -> dict[str, list[Any]]:
        """Run a trial as the executor wants it."""
        return {"metrics": self.run_cell(trial)}

    def run_cell(self, trial: Trial) -> list[tuple[int, str, str, str, float]]:
        """Fit one head and score it: accuracy on the target's "in" and "out", on training environments' "out"."""
        (target,) = trial.held_out
        values = json.loads(trial.hyperparameters)
        predictor = self._fitted(trial.method, trial.seed, target, values)
        parts = self._rows(trial.seed)
        metrics = []
        for name in self._dataset.environment_names:
            head = predictor(name)
            for split in ("in", "out") if name == target else ("out",):
                if trial.method == "Cheat" and (name, split) == (target, "in"):
                    continue  # it was trained on these
                metrics.append((0, name, split, "accuracy", head.score(*parts[name, split])))
        return metrics

    def _training(self, seed: int, target: str, cheat: bool = False) -> tuple[Any, Any, Any]:
        import numpy as np

        names = [name for name in self._dataset.environment_names if cheat or name != target]
        parts = [self._rows(seed)[name, "in"] for name in names]
        x, y = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        return x, y, np.repeat(names, [len(p[1]) for p in parts])

    def _fitted(self, name: str, seed: int, target: str, values: Mapping[str, float]) -> Callable[[str], Any]:
        """Return what predicts in an environment; heads that adapt are another one in each."""
        from lightning_modules.domain_generalization.domain_adjusted import heads

        l2 = values["l2"]
        if name in SHRINKING:
            center = "subtract" if "centred" in name else "constraint"
            fitted = self._dare(seed, target, values["shrinkage"], l2, center)
            return (lambda e: fitted.adapt_to(self._stats(seed), e)) if name.endswith("JIT") else lambda e: fitted
        makers: dict[str, Callable[[], heads.LogisticHead]] = {
            "ERM": lambda: heads.LogisticHead(l2),
            "GroupDRO": lambda: heads.GroupDROHead(l2=l2),
            "IRM": lambda: heads.IRMHead(values["weight"], l2),
            "VREx": lambda: heads.VRExHead(values["weight"], l2),
            "CORAL": lambda: heads.CoralHead(values["weight"], l2),
            "Standardised": lambda: heads.PerDomainStandardised(l2),
            "Standardised-JIT": lambda: heads.PerDomainStandardised(l2),
            "Cheat": lambda: heads.OracleHead(l2),
        }
        head = makers[name]().fit(*self._training(seed, target, cheat=name == "Cheat"))
        if isinstance(head, heads.PerDomainStandardised) and name.endswith("JIT"):
            standardised = head
            return lambda e: standardised.adapt(self._rows(seed)[e, "in"][0])
        return lambda e: head


def setup(threads: int, dataset: Dataset) -> Cells:
    """Prepare a worker."""
    import torch

    torch.set_num_threads(threads)
    return Cells(dataset)


def selected(trials: pa.Table, metrics: pa.Table, wanted: Sequence[Trial]) -> dict[str, dict[tuple[str, int], float]]:
    """Choose hyperparameters and return accuracies on the target's "out": {head: {(target, seed): accuracy}}.

    The choice is the best mean accuracy on the training environments' "out"; of equals the larger ridge.
    """
    completed = {
        row["trial_id"] for row in trials.select(["trial_id", "status"]).to_pylist() if row["status"] == "completed"
    }
    by_id = {t.trial_id: t for t in wanted if t.trial_id in completed}
    scores: dict[str, dict[str, float]] = {}
    for row in metrics.to_pylist():
        if row["trial_id"] in by_id and row["split"] == "out" and row["metric"] == "accuracy":
            scores.setdefault(row["trial_id"], {})[row["environment"]] = row["value"]
    best: dict[tuple[str, str, int], tuple[tuple[float, float, str], float]] = {}
    for key, trial in by_id.items():
        (target,) = trial.held_out
        training = [value for name, value in scores[key].items() if name != target]
        rank = (sum(training) / len(training), json.loads(trial.hyperparameters)["l2"], key)
        place = (trial.method, target, trial.seed)
        if place not in best or rank > best[place][0]:
            best[place] = (rank, scores[key][target])
    chosen: dict[str, dict[tuple[str, int], float]] = {head: {} for head in HEADS}
    for (head, target, seed), (_, value) in best.items():
        chosen[head][target, seed] = value
    return {head: found for head, found in chosen.items() if found}


def paired_test(above: Mapping[Any, float], below: Mapping[Any, float]) -> tuple[float, float]:
    """Mean difference over common (target, seed) pairs, and p of the one-sided paired t-test that it is positive.

    p is NaN for fewer than two pairs, or differences that are all equal.
    """
    from scipy.stats import ttest_1samp

    gaps = [above[key] - below[key] for key in sorted(above.keys() & below.keys())]
    if not gaps:
        return math.nan, math.nan
    mean = math.fsum(gaps) / len(gaps)
    if len(gaps) < 2 or max(gaps) - min(gaps) < 1e-12:
        return mean, math.nan
    return mean, float(ttest_1samp(gaps, 0, alternative="greater").pvalue)


def _summarise(options: Heads, wanted: Sequence[Trial]) -> None:
    from rich.console import Console
    from rich.table import Table

    stored = Run(options.run)
    chosen = selected(stored.read("trials"), stored.read("metrics"), wanted)
    targets = list(dict.fromkeys(t.held_out[0] for t in wanted))
    columns = ["head", *targets, "mean", *(["above ERM", "p"] if "ERM" in chosen else [])]
    table = Table(title="accuracy on the target's out examples (hyperparameters by the training environments')")
    for column in columns:
        table.add_column(column, justify="left" if column == "head" else "right")
    for head, found in chosen.items():
        by_target = [[v for (t, _), v in found.items() if t == target] for target in targets]
        means = [sum(v) / len(v) if v else math.nan for v in by_target]
        cells = [head, *(f"{100 * m:.1f}" for m in (*means, sum(found.values()) / len(found)))]
        if "ERM" in chosen:
            gap, p = paired_test(found, chosen["ERM"])
            verdict = "" if math.isnan(p) else f"{p:.3f}{'*' if p < LEVEL else ''}"
            cells += ["" if head == "ERM" else f"{100 * gap:+.1f}", "" if head == "ERM" else verdict]
        table.add_row(*cells)
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(80, 24 + 10 * len(columns)))
    console.print(table)
    print(
        f"* p < {LEVEL} of a paired one-sided t-test over target and seed; pairs of one table's splits are not independent"
    )


def run(options: Heads) -> int:
    """Run the job; 0 if every trial of the plan is completed."""
    from lightning_modules.data.tables import load_table

    trials: list[Trial] = []

    def listed() -> Iterator[Trial]:
        return iter(trials)

    def prepare() -> Work:
        dataset = load_table(options.table)
        trials.extend(plan(options, dataset))
        return Work(len(trials), lambda: listed, setup, (1, dataset))

    def summarise(counts: Counts) -> None:
        _summarise(options, trials)

    return launch("shiftlab heads", options, options.run, prepare, summarise)


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return command(Heads, run, argv, prog="shiftlab heads", examples=EXAMPLES, positional=True)


if __name__ == "__main__":
    sys.exit(main())
