"""An Optuna study that this process owns: opened, checked against what is asked for, and claimed."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
import psutil

from cluster.errors import InputError
from tuning.search_space import Space

_ABOUT = "shiftlab:about"
_SPACE = "shiftlab:space"
_OWNER = "shiftlab:owner"
_CLAIM_SECONDS = 60.0
"""How long a claim holds after it was last renewed, if its process cannot be asked."""


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna's line a trial, and its words about experimental parts, off the screen."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="optuna.*")
            yield
    finally:
        optuna.logging.set_verbosity(level)


def open_study(
    name: str,
    storage: optuna.storages.BaseStorage,
    directions: Sequence[str],
    space: Space,
    about: Mapping[str, Any],
) -> optuna.Study:
    """Create the study, or load the one of that name if it is about the same; its sampler and pruner are Optuna's own.

    Args:
        name: of the study in its storage.
        storage: where it is kept.
        directions: minimize or maximize, one an objective.
        space: what is searched; stored with the study.
        about: what is tuned (method, data, budget, objectives ...): plain data, stored with the study.

    Raises:
        InputError: when the study of that name is about something else, searched another space, or is being searched
            by another process.
    """
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        directions=list(directions),  # type: ignore[arg-type]
        load_if_exists=True,
    )
    known = study.user_attrs
    if study.trials and (_SPACE not in known or _ABOUT not in known):
        raise InputError(f"study: {name!r} in this storage was not made by shiftlab; give another --study")
    if [d.name.lower() for d in study.directions] != list(directions):
        raise InputError(f"study: {name!r} has other objectives; give another --study")
    for key, wanted, what in ((_ABOUT, _plain(about), "is about"), (_SPACE, space.describe(), "searches")):
        if key in known and (difference := _difference(known[key], wanted)):
            raise InputError(f"study: {name!r} {what} something else ({difference}); give another --study or --run")
        if key not in known:
            study.set_user_attr(key, wanted)
    claim(study)
    return study


def claim(study: optuna.Study) -> None:
    """Claim the study for this process, or renew the claim.

    Raises:
        InputError: when another process, which is alive as far as one can tell, holds it.
    """
    me = {"host": socket.gethostname(), "pid": os.getpid(), "born": round(psutil.Process().create_time(), 1)}
    owner = study.user_attrs.get(_OWNER)
    if owner and {**owner, "at": None} != {**me, "at": None} and (left := _holds(owner, me["host"])) > 0:
        raise InputError(
            f"study: {study.study_name!r} is being searched by process {owner['pid']} on {owner['host']}; stop that one"
            + (f", or wait {left:.0f} s if it is gone" if owner["host"] != me["host"] else "")
        )
    study.set_user_attr(_OWNER, {**me, "at": time.time()})


def release(study: optuna.Study) -> None:
    """Give the claim up."""
    study.set_user_attr(_OWNER, None)


def _holds(owner: Mapping[str, Any], host: str) -> float:
    """How many seconds a claim may still hold; 0 if its process is gone."""
    if owner["host"] == host:
        try:
            alive = abs(psutil.Process(owner["pid"]).create_time() - owner["born"]) < 1
        except psutil.NoSuchProcess:
            alive = False
        return _CLAIM_SECONDS if alive else 0.0
    return float(owner["at"]) + _CLAIM_SECONDS - time.time()


def _plain(about: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(about))
    return plain


def _difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first difference in words, "" if there is none."""
    for name in sorted({*stored, *wanted}):
        old, new = stored.get(name, "absent"), wanted.get(name, "absent")
        if old != new:
            return f"{name}: {old} there, {new} here"
    return ""
