"""Loggers that people know, beside the run's own tables: TensorBoard, MLflow and Weights & Biases, all into files."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError
from cluster.storage import Location
from cluster.trial import Trial

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

_FOLDER = "logs"


def _tensorboard(folder: Path, trial: Trial) -> Logger:
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(folder, name="", version=trial.trial_id, default_hp_metric=False)


def _mlflow(folder: Path, trial: Trial) -> Logger:
    from lightning.pytorch.loggers import MLFlowLogger

    return MLFlowLogger("shiftlab", trial.trial_id, tracking_uri=f"sqlite:///{folder}/mlflow.db")


def _wandb(folder: Path, trial: Trial) -> Logger:
    from lightning.pytorch.loggers import WandbLogger

    os.environ.setdefault("WANDB_SILENT", "true")
    return WandbLogger(name=trial.trial_id, project="shiftlab", save_dir=folder, offline=True)


LOGGERS: dict[str, tuple[str, Callable[[Path, Trial], Logger]]] = {
    "tensorboard": ("tensorboard", _tensorboard),
    "mlflow": ("mlflow", _mlflow),
    "wandb": ("wandb", _wandb),
}
"""By name: the package it needs, and how it is made. Wandb works offline; `wandb sync` sends its folder later."""


def check_loggers(names: Sequence[str]) -> None:
    """Check the names of loggers before anything starts.

    Raises:
        InputError: for an unknown one, or one whose package is missing.
    """
    for name in names:
        if name not in LOGGERS:
            raise InputError(f"logger: unknown logger {name!r}; choose from {', '.join(LOGGERS)}")
        if importlib.util.find_spec(LOGGERS[name][0]) is None:
            raise InputError(f"logger: {name} is not installed; pip install 'shiftlab[{name}]'")


class Loggers:
    """The loggers of one training: in RUN/logs of a local run; for a bucket in a folder that is copied there at the end.

    Args:
        names: of LOGGERS.
        location: of the run.
        trial: what is trained.
    """

    def __init__(self, names: Sequence[str], location: Location, trial: Trial) -> None:
        self._location = location
        self._temporary = None if location.is_local or not names else tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name) if self._temporary else Path(location.root, _FOLDER)
        if names:
            self.folder.mkdir(parents=True, exist_ok=True)
        self._loggers: list[Any] = [LOGGERS[name][1](self.folder, trial) for name in names]
        about: dict[str, Any] = json.loads(trial.hyperparameters)
        for logger in self._loggers:
            logger.log_hyperparams({**about, "method": trial.method, "dataset": trial.dataset, "seed": trial.seed})

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log values of a step."""
        for logger in self._loggers:
            logger.log_metrics(dict(values), step)

    def close(self, status: str = "success") -> None:
        """End the loggers, and copy what they wrote where it belongs."""
        for logger in self._loggers:
            logger.finalize(status)
            finish = getattr(logger.experiment, "finish", None)  # of Weights & Biases, whose run would stay open
            if finish is not None:
                finish()
        if self._temporary is not None:
            for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
                self._location.write(path.read_bytes(), _FOLDER, *path.relative_to(self.folder).parts)
            self._temporary.cleanup()
