"""Where a study is kept: a journal file in its run, one elsewhere, or any database that Optuna knows."""

from __future__ import annotations

import re
from pathlib import Path

import optuna
import sqlalchemy
import sqlalchemy.exc
from optuna.exceptions import StorageInternalError

from cluster.errors import InputError
from cluster.storage import Location
from tuning.journal import OwnedJournal
from tuning.mirror import MirroredStorage

JOURNAL = "study.journal"
_CONNECT = {"connect_timeout": 5}
# A server that is gone without a word is noticed in about 20 s too.
_LIBPQ = {
    **_CONNECT,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,
}
_PATIENCE = {"psycopg": _LIBPQ, "psycopg2": _LIBPQ, "pymysql": _CONNECT, "mysqldb": _CONNECT}
"""How long a driver waits for its server; others have their own words for it."""


class StudyStorage:
    """An open storage.

    Args:
        storage: what studies are created in.
        bucket: where a journal's copy goes when the run is in a bucket.
    """

    def __init__(
        self,
        storage: MirroredStorage | optuna.storages.JournalStorage,
        journal: OwnedJournal | None,
        bucket: Location | None,
    ) -> None:
        self.optuna: optuna.storages.BaseStorage = storage
        self._mirror = storage if isinstance(storage, MirroredStorage) else None
        self._journal, self._bucket = journal, bucket
        self._not_copied: str | None = None

    @property
    def trouble(self) -> str | None:
        """One line if a database or bucket does not answer at present."""
        return self._not_copied if self._mirror is None else self._mirror.trouble

    def save(self) -> None:
        """Copy a journal to its bucket; what goes wrong there is `trouble` until the next copy."""
        if self._journal is not None and self._bucket is not None:
            try:
                self._bucket.write(self._journal.path.read_bytes(), JOURNAL)
                self._not_copied = None
            except OSError as error:
                self._not_copied = f"the bucket does not take {JOURNAL} ({' '.join(str(error).split())[:80]})"

    def close(self, seconds: float) -> str:
        """Bring everything to its place, waiting so long at most; returns one line on what did not get there, or "".

        Raises:
            Exception: what a database refused.
        """
        if self._journal is not None:
            self._journal.close()
            self.save()
        if self._mirror is None:
            return self._not_copied or ""
        try:
            done = self._mirror.flush(seconds)
            left, trouble = self._mirror.waiting, self._mirror.trouble
        finally:
            self._mirror.close()
        return "" if done else f"{left} changes are not in it yet" + (f", {trouble}" if trouble else "")


def open_storage(spec: str | None, run: Location) -> StudyStorage:
    """Open the storage of a run's studies.

    Args:
        spec: None takes the journal of the run; a URL with :// a database; anything else is the path of a journal.
        run: where the run is.

    Raises:
        InputError: naming the mend, if it cannot be reached or opened.
    """
    if spec is not None and "://" in spec:
        return StudyStorage(MirroredStorage(_database(spec)), None, None)
    bucket = None
    if spec is not None:
        path = Path(spec).expanduser()
    elif run.is_local:
        path = Path(run.root, JOURNAL)
    else:
        path, bucket = run.log_directory() / JOURNAL, run
        if run.exists(JOURNAL):  # another machine may have gone on with it
            copy = run.read(JOURNAL)
            if not path.exists() or path.stat().st_size < len(copy):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(copy)
    journal = OwnedJournal(path)
    return StudyStorage(optuna.storages.JournalStorage(journal), journal, bucket)


def hide_password(spec: str) -> str:
    """A storage's URL as it may be shown."""
    try:
        shown = sqlalchemy.make_url(spec).render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # it may hold one all the same
        shown = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", spec)
    return re.sub(r"([?&]password)=[^&]*", r"\1=***", shown)


def _database(spec: str) -> optuna.storages.RDBStorage:
    shown = hide_password(spec)
    try:
        url = sqlalchemy.make_url(spec)
        if url.drivername in ("postgresql", "postgres"):
            url = url.set(drivername="postgresql+psycopg")
        driver = url.get_dialect().driver
    except sqlalchemy.exc.NoSuchModuleError:
        raise InputError(
            f"storage: nobody knows the kind of database of {shown!r}; take postgresql or sqlite"
        ) from None
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise InputError(
            f"storage: {shown!r} is no URL of a database; write e.g. postgresql://user@host/name"
        ) from None
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise InputError(f"storage: {shown!r} keeps nothing; give a file, sqlite:///FILE")
    try:
        return optuna.storages.RDBStorage(
            url.render_as_string(hide_password=False),
            # What the URL says itself goes first. A connection that died unseen is replaced before it is used.
            engine_kwargs={
                "pool_pre_ping": True,
                "connect_args": {k: v for k, v in _PATIENCE.get(driver, {}).items() if k not in url.query},
            },
        )
    except ImportError as error:
        mend = "pip install 'shiftlab[postgresql]'" if driver == "psycopg" else f"install the driver {driver}"
        raise InputError(
            f"storage: {shown!r} needs a driver that is missing ({error.__cause__ or error}); {mend}"
        ) from None
    except (sqlalchemy.exc.DBAPIError, StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        why = " ".join(str(getattr(cause, "orig", cause)).split())[:200]
        raise InputError(f"storage: cannot open {shown!r} ({why}); start the server, or mend the URL") from None
    except RuntimeError as error:
        mend = f"back it up, then run `optuna storage upgrade --storage {shown}`"
        if "storage upgrade" not in str(error):
            mend = "install the Optuna that made it"
        raise InputError(f"storage: {shown!r} has the tables of another Optuna; {mend}") from None
