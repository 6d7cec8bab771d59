"""An Optuna storage that answers from memory and keeps a database up to date behind it.

Asking and telling never wait for the database, and an outage stalls nothing: what was written waits in order, and one
thread brings it there when the server answers again. What waits when the process is killed is not lost either: the run
holds every result, and a search puts back what its storage lacks (`tuning.search`).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy.exc
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

_OUTAGES = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError, StorageInternalError)
_FIRST_RETRY_SECONDS = 0.1
_LONGEST_RETRY_SECONDS = 2.0


class MirroredStorage(InMemoryStorage):
    """A storage in memory whose every write follows in a backend; one process writes.

    Args:
        backend: the storage behind, e.g. Optuna's RDBStorage. A study of it is loaded when it is first asked for.
    """

    def __init__(self, backend: BaseStorage) -> None:
        super().__init__()
        self._backend = backend
        self._study_ids: dict[int, int] = {}
        self._trial_ids: dict[int, int] = {}
        self._writes: deque[Callable[[bool], None]] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._outage: tuple[float, str] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._follow, name="storage", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Writes that are not in the backend yet."""
        return len(self._writes)

    @property
    def trouble(self) -> str | None:
        """Since when and why the backend does not answer; None while it does."""
        outage = self._outage
        return outage and f"storage does not answer since {time.monotonic() - outage[0]:.0f} s ({outage[1]})"

    def flush(self, seconds: float) -> bool:
        """Wait until the backend has everything; returns whether it has.

        Raises:
            Exception: what the backend refused.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._writes or self._error is not None, seconds)
        self._raise()
        return not self._writes

    def close(self) -> None:
        """End the thread; what still waits is left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # Writes: at once in memory, then behind

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Create a study; one of the backend of that name counts as existing."""
        if study_name is not None and study_name not in self._study_name_to_id:
            self._load(study_name)
        study_id = super().create_new_study(directions, study_name)
        name = self.get_study_name_from_id(study_id)

        def write(again: bool) -> None:
            known = {s.study_name: s._study_id for s in self._backend.get_all_studies()} if again else {}
            self._study_ids[study_id] = known.get(name) or self._backend.create_new_study(directions, name)

        self._later(write)
        return study_id

    def get_study_id_from_name(self, study_name: str) -> int:
        """Find a study, in the backend too."""
        if study_name not in self._study_name_to_id:
            self._load(study_name)
        return super().get_study_id_from_name(study_name)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set an attribute of a study."""
        super().set_study_user_attr(study_id, key, value)
        self._later(lambda _: self._backend.set_study_user_attr(self._study_ids[study_id], key, value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set an attribute of a study that samplers use."""
        super().set_study_system_attr(study_id, key, value)
        self._later(lambda _: self._backend.set_study_system_attr(self._study_ids[study_id], key, value))

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial; it has the same number in the backend."""
        trial_id = super().create_new_trial(study_id, template_trial)
        number = self.get_trial_number_from_id(trial_id)

        def write(again: bool) -> None:
            study = self._study_ids[study_id]
            if again and len(self._backend.get_all_trials(study, deepcopy=False)) > number:
                found = self._backend.get_trial_id_from_study_id_trial_number(study, number)
            else:
                found = self._backend.create_new_trial(study, template_trial)
            self._trial_ids[trial_id] = found

        self._later(write)
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set a parameter of a trial."""
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

        def write(again: bool) -> None:
            trial = self._trial_ids[trial_id]
            if not (again and param_name in self._backend.get_trial(trial).params):
                self._backend.set_trial_param(trial, param_name, param_value_internal, distribution)

        self._later(write)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set a trial's state, and its values where it ends."""
        if not super().set_trial_state_values(trial_id, state, values):
            return False

        def write(again: bool) -> None:
            trial = self._trial_ids[trial_id]
            try:
                self._backend.set_trial_state_values(trial, state, values)
            except UpdateFinishedTrialError:
                if not again or self._backend.get_trial(trial).state != state:
                    raise

        self._later(write)
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Set what a trial has reached at a step."""
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)
        self._later(
            lambda _: self._backend.set_trial_intermediate_value(self._trial_ids[trial_id], step, intermediate_value)
        )

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute of a trial."""
        super().set_trial_user_attr(trial_id, key, value)
        self._later(lambda _: self._backend.set_trial_user_attr(self._trial_ids[trial_id], key, value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute of a trial that samplers use."""
        super().set_trial_system_attr(trial_id, key, value)
        self._later(lambda _: self._backend.set_trial_system_attr(self._trial_ids[trial_id], key, value))

    def delete_study(self, study_id: int) -> None:
        """Delete a study."""
        super().delete_study(study_id)
        self._later(lambda _: self._backend.delete_study(self._study_ids[study_id]))

    # Behind

    def _load(self, name: str) -> None:
        """Take a study of the backend into memory, trial for trial, if there is one."""
        for study in self._backend.get_all_studies():
            if study.study_name == name:
                study_id = super().create_new_study(study.directions, name)
                self._study_ids[study_id] = study._study_id
                for key, value in study.user_attrs.items():
                    super().set_study_user_attr(study_id, key, value)
                for key, value in study.system_attrs.items():
                    super().set_study_system_attr(study_id, key, value)
                for trial in self._backend.get_all_trials(study._study_id):
                    behind = trial._trial_id
                    self._trial_ids[super().create_new_trial(study_id, trial)] = behind

    def _later(self, write: Callable[[bool], None]) -> None:
        self._raise()
        with self._changed:
            self._writes.append(write)
            self._changed.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _follow(self) -> None:
        """Bring every write to the backend, in order, however often it takes."""
        pause, again = _FIRST_RETRY_SECONDS, False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._writes) or self._closed)
                if self._closed:
                    return
                write = self._writes[0]
            try:
                write(again)
            except _OUTAGES as error:
                since = self._outage[0] if self._outage else time.monotonic()
                self._outage = since, " ".join(str(error.__cause__ or error).split())[:80]
                again = True  # whether it got there before the connection broke is not known
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_RETRY_SECONDS)
                continue
            except BaseException as error:  # nobody waits for this thread: whoever writes next is told
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            pause, again, self._outage = _FIRST_RETRY_SECONDS, False, None
            with self._changed:
                self._writes.popleft()
                self._changed.notify_all()
