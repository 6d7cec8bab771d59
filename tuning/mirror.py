"""An Optuna storage that answers from memory and keeps a database up to date behind it.

Asking and telling never wait for the database, and an outage stalls nothing: one thread brings there what has changed,
in the order of the first change, and tries again until the server answers. What is not there yet when the process is
killed is not lost either: the run holds every result, and a search puts back what its storage lacks (`tuning.search`).
"""

from __future__ import annotations

import contextlib
import copy
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import sqlalchemy.event
import sqlalchemy.exc
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import ExceptionContext

from cluster.errors import InputError

_Kind = Literal["study", "trial"]
_Found = TypeVar("_Found")

_FIRST_RETRY_SECONDS = 0.1
_LONGEST_RETRY_SECONDS = 1.0
_SLOW_SECONDS = 5.0
"""A write that takes longer counts as a server that does not answer."""


class _OutageError(Exception):
    """The database cannot be reached: the same again later will do."""


class MirroredStorage(InMemoryStorage):
    """A storage in memory whose studies follow in a database; this process alone writes them.

    A study of the database is loaded when its name is first asked for; its trials have the same numbers in both.

    Args:
        backend: the database. From here on its errors of connection are raised as this class needs them.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__()
        self._backend = backend
        # Optuna would try a trial's creation again by itself, and so create it twice when only the answer was lost.
        sqlalchemy.event.listen(backend.engine, "handle_error", _raise_outage)
        self._known_names: set[str] = set()
        # What the backend has, by the ids in memory.
        self._study_ids: dict[int, int] = {}
        self._trial_ids: dict[int, int] = {}
        self._attributes: dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
        self._trials: dict[int, FrozenTrial] = {}
        # What has changed in memory since, in the order of the first change.
        self._waiting: OrderedDict[tuple[_Kind, int], None] = OrderedDict()
        self._changed = threading.Condition(self._lock)
        self._current: tuple[tuple[_Kind, int], float] | None = None
        """What the thread is at, and since when."""
        self._outage: tuple[float, str] | None = None
        self._error: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._follow, name="storage", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many trials and studies have changes that are not in the database yet."""
        with self._lock:
            return len(self._waiting) + (self._current is not None and self._current[0] not in self._waiting)

    @property
    def trouble(self) -> str | None:
        """Since when the database does not answer, and why; None while it does."""
        now, outage, current = time.monotonic(), self._outage, self._current
        if outage is not None:
            return f"storage does not answer since {now - outage[0]:.0f} s ({outage[1]})"
        if current is not None and now - current[1] > _SLOW_SECONDS:
            return f"storage does not answer since {now - current[1]:.0f} s"
        return None

    def flush(self, timeout: float) -> bool:
        """Wait until the database has everything.

        Args:
            timeout: seconds to wait at most.

        Returns:
            Whether it has.

        Raises:
            Exception: what the database refused.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self.waiting or self._error is not None, timeout)
            self._raise()
            return not self.waiting

    def close(self) -> None:
        """End the thread; what is not in the database yet does not get there."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(1.0)  # it may hang in a connection
        self._backend.engine.dispose()

    # Writes: at once in memory, then behind

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Create a study; one of that name in the database counts as existing."""
        if study_name is not None:
            self._load(study_name)
        study_id = super().create_new_study(directions, study_name)
        self._known_names.add(self._studies[study_id].name)
        self._later("study", study_id)
        return study_id

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set an attribute of a study."""
        super().set_study_user_attr(study_id, key, _plain(value))
        self._later("study", study_id)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set an attribute of a study that samplers use."""
        super().set_study_system_attr(study_id, key, _plain(value))
        self._later("study", study_id)

    def delete_study(self, study_id: int) -> None:
        """Delete a study."""
        super().delete_study(study_id)
        self._later("study", study_id)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial; it has the same number in the database."""
        if template_trial is not None:
            known = self._studies[study_id].param_distribution
            for name, distribution in template_trial.distributions.items():  # the database will check it too
                check_distribution_compatibility(known.setdefault(name, distribution), distribution)
        trial_id = super().create_new_trial(study_id, template_trial)
        self._later("trial", trial_id)
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set a parameter of a trial."""
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        self._later("trial", trial_id)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set a trial's state, and its values where it ends."""
        if not super().set_trial_state_values(trial_id, state, values):
            return False
        self._later("trial", trial_id)
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Set what a trial has reached at a step."""
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)
        self._later("trial", trial_id)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute of a trial."""
        super().set_trial_user_attr(trial_id, key, _plain(value))
        self._later("trial", trial_id)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute of a trial that samplers use."""
        super().set_trial_system_attr(trial_id, key, _plain(value))
        self._later("trial", trial_id)

    # Reads that may have to ask the database

    def get_study_id_from_name(self, study_name: str) -> int:
        """Find a study, in the database too."""
        self._load(study_name)
        return super().get_study_id_from_name(study_name)

    def get_all_studies(self) -> list[FrozenStudy]:
        """All studies, those of the database included; they are loaded for it."""
        for study in self._read(self._backend.get_all_studies):
            self._load(study.study_name)
        return super().get_all_studies()

    def _read(self, read: Callable[[], _Found]) -> _Found:
        try:
            return read()
        except _OutageError as error:
            raise InputError(f"storage: does not answer ({error}); start the server, then launch again") from None

    def _load(self, name: str) -> None:
        """Take a study of the database into memory, trial for trial, if there is one that is not there yet."""
        if name in self._known_names:
            return
        for study in self._read(self._backend.get_all_studies):
            if study.study_name != name:
                continue
            trials = self._read(partial(self._backend.get_all_trials, study._study_id, deepcopy=False))
            study_id = super().create_new_study(study.directions, name)
            for key, value in study.user_attrs.items():
                super().set_study_user_attr(study_id, key, value)
            for key, value in study.system_attrs.items():
                super().set_study_system_attr(study_id, key, value)
            self._study_ids[study_id] = study._study_id
            self._attributes[study_id] = study.user_attrs, study.system_attrs
            for trial in sorted(trials, key=lambda t: t.number):
                self._studies[study_id].param_distribution |= trial.distributions
                trial_id = super().create_new_trial(study_id, trial)
                self._trial_ids[trial_id] = trial._trial_id
                self._trials[trial_id] = _snapshot(trial)
        self._known_names.add(name)

    # Behind

    def _later(self, kind: _Kind, key: int) -> None:
        with self._changed:
            self._raise()
            self._waiting[kind, key] = None
            self._changed.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _follow(self) -> None:
        """Bring every change to the database, however often it takes."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or self._closed)
                if self._closed:
                    return
                change, _ = self._waiting.popitem(last=False)
                self._current = change, time.monotonic()
            try:
                self._insist(*change)
            except BaseException as error:  # nobody waits for this thread: whoever writes next is told
                self._error = error
            with self._changed:
                self._current = self._outage = None
                self._changed.notify_all()
                if self._error is not None:
                    return

    def _insist(self, kind: _Kind, key: int) -> None:
        """Bring one change there; after an attempt whose end is not known, see first what there is."""
        pause, again = _FIRST_RETRY_SECONDS, False
        while not self._closed:
            try:
                if kind == "study":
                    self._bring_study(key, again)
                else:
                    self._bring_trial(key, again)
                return
            except _OutageError as error:
                self._outage = self._outage[0] if self._outage else time.monotonic(), str(error)
            with self._changed:
                self._changed.wait_for(lambda: self._closed, pause)
            pause, again = min(2 * pause, _LONGEST_RETRY_SECONDS), True

    def _bring_study(self, study_id: int, again: bool) -> None:
        backend, there = self._backend, self._study_ids.get(study_id)
        with self._lock:
            study = self._studies.get(study_id)
            now = ({}, {}) if study is None else (study.user_attrs, study.system_attrs)
        if study is None:  # deleted since
            with contextlib.suppress(KeyError):
                if there is not None:
                    backend.delete_study(there)
            return
        if there is None:
            try:
                there = backend.create_new_study(study.directions, study.name)
            except DuplicatedStudyError:
                if not again:
                    raise
                there = backend.get_study_id_from_name(study.name)
            self._study_ids[study_id] = there
        known = self._attributes.get(study_id, ({}, {}))
        for key, value in _differences(known[0], now[0]).items():
            backend.set_study_user_attr(there, key, value)
        for key, value in _differences(known[1], now[1]).items():
            backend.set_study_system_attr(there, key, value)
        self._attributes[study_id] = now

    def _bring_trial(self, trial_id: int, again: bool) -> None:
        backend, there = self._backend, self._trial_ids.get(trial_id)
        with self._lock:
            if trial_id not in self._trial_id_to_study_id_and_number:
                return  # its study was deleted
            trial = _snapshot(self._get_trial(trial_id))
            study_id, number = self._trial_id_to_study_id_and_number[trial_id]
        study = self._study_ids[study_id]
        if there is None and again:
            with contextlib.suppress(KeyError):
                there = backend.get_trial_id_from_study_id_trial_number(study, number)
        if there is None:
            there = backend.create_new_trial(study, trial)  # with all that it has by now
            if backend.get_trial_id_from_study_id_trial_number(study, number) != there:
                name = self.get_study_name_from_id(study_id)
                raise InputError(f"storage: another process adds trials to {name!r}; end it, then launch again")
        else:
            self._update(there, backend.get_trial(there) if again else self._trials[trial_id], trial)
        self._trial_ids[trial_id], self._trials[trial_id] = there, trial

    def _update(self, there: int, known: FrozenTrial, trial: FrozenTrial) -> None:
        """Write what of a trial is not known in the database."""
        if known.state.is_finished() and known.state == trial.state:
            return  # it got there by the attempt before: nothing changes in a trial that has ended
        backend = self._backend
        for name in _differences(known.params, trial.params):
            distribution = trial.distributions[name]
            backend.set_trial_param(there, name, distribution.to_internal_repr(trial.params[name]), distribution)
        for step, value in _differences(known.intermediate_values, trial.intermediate_values).items():
            backend.set_trial_intermediate_value(there, step, value)
        for key, value in _differences(known.user_attrs, trial.user_attrs).items():
            backend.set_trial_user_attr(there, key, value)
        for key, value in _differences(known.system_attrs, trial.system_attrs).items():
            backend.set_trial_system_attr(there, key, value)
        if trial.state != known.state:
            backend.set_trial_state_values(there, trial.state, trial.values)


def _snapshot(trial: FrozenTrial) -> FrozenTrial:
    """A trial as it is now: a write replaces it in memory, but Optuna's `Trial` fills in the first one it was given."""
    snapshot = copy.copy(trial)
    snapshot.params, snapshot.distributions = dict(trial.params), dict(trial.distributions)
    snapshot.intermediate_values = dict(trial.intermediate_values)
    snapshot.user_attrs, snapshot.system_attrs = dict(trial.user_attrs), dict(trial.system_attrs)
    return snapshot


def _differences(known: Mapping[Any, Any], now: Mapping[Any, Any]) -> dict[Any, Any]:
    """The entries that are new or changed, of numbers, strings and JSON."""
    # By what they look like: 1 is not True there, and NaN is NaN.
    return {k: v for k, v in now.items() if k not in known or (known[k] is not v and repr(known[k]) != repr(v))}


def _plain(value: Any) -> Any:
    """An attribute as a database gives it back, and out of reach of whoever set it.

    Raises:
        TypeError: if it cannot be stored as JSON.
    """
    return json.loads(json.dumps(value))


def _raise_outage(context: ExceptionContext) -> None:
    """Tell errors of the connection from those of what was written."""
    error = context.sqlalchemy_exception
    outage = isinstance(error, (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError))
    # A dead connection that is found before it is used is replaced by SQLAlchemy.
    if (outage or context.is_disconnect) and not context.is_pre_ping:
        raise _OutageError(str(context.original_exception).strip().split("\n")[0][:120])
