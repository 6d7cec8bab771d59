"""The best configuration of a study as a YAML file that `shiftlab train --config` accepts."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import yaml

from cluster.storage import Location
from cluster.trial import Trial

if TYPE_CHECKING:
    import optuna

    from jobs.tune import Tune


def best_trial(study: optuna.Study) -> optuna.trial.FrozenTrial:
    """The best complete trial by the first objective; among equal ones the first."""
    trials = [t for t in study.get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
    sign = 1 if study.directions[0].name == "MINIMIZE" else -1
    return min(trials, key=lambda t: (sign * t.values[0], t.number))


def write_best(options: Tune, setting: tuple[str, ...], settings: int, study: optuna.Study, trial: Trial) -> str:
    """Write a study's best configuration into its run.

    Args:
        options: of the command.
        setting: environments held out.
        settings: how many there are; several studies have a file each.
        study: with at least one complete trial.
        trial: the best suggestion's first replicate.

    Returns:
        Where it was written.
    """
    best = best_trial(study)
    scores = ", ".join(f"{name} {value:.6g}" for name, value in zip(options.objective, best.values, strict=True))
    front = " (the best by the first objective; the report shows the whole front)" if len(best.values) > 1 else ""
    fields = {
        "method": options.method,
        "dataset": options.dataset,
        "held_out": list(setting),
        "hyperparameters": json.loads(trial.hyperparameters),
        **json.loads(trial.budget),
        "seed": options.seed,
        "image_size": options.image_size,
        "run": f"{options.run.rstrip('/')}/best",
    }
    text = f"# Trial {best.number} of the study {study.study_name!r}: {scores}{front}\n"
    name = "best" if settings == 1 else "best-" + re.sub(r"[^\w.+%-]+", "_", "+".join(setting) or "none")
    text += yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    Location.resolve(options.run).write(text.encode(), f"{name}.yaml")
    return f"{options.run.rstrip('/')}/{name}.yaml"
