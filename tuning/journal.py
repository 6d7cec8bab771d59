"""Optuna's journal file, kept open by the one process that searches: Optuna's format without its locks and fsyncs.

`optuna.storages.journal.JournalFileBackend` and optuna-dashboard open the file as it stands, while it is written too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from cluster.errors import InputError

_START = b'{"op_code":'
"""How a line of a journal begins."""


class OwnedJournal(BaseJournalBackend):
    """A journal file that this process writes.

    What was appended survives the death of the process, though not a power cut before `close`. A last line that was cut
    off in the middle, which Optuna's own backend would glue the next one to, is taken away before the first line is
    appended; until then the file is not touched. Lines that others append meanwhile (`enqueue_trial` from a notebook,
    a note in optuna-dashboard) are taken up with the next line of this process, in the order of the file.

    Args:
        path: of the file; made when absent.

    Attributes:
        path: of the file.
        repaired: how many bytes a torn last line had; 0 if it was whole.

    Raises:
        InputError: when the file cannot be opened or is no journal.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 - held for as long as the study
            content = self.path.read_bytes()
        except OSError as error:
            raise InputError(
                f"storage: cannot open the journal {str(path)!r} ({error.strerror}); choose another"
            ) from None
        self._size = content.rfind(b"\n") + 1
        """How far the file has been read or written by this process."""
        torn = content[self._size :]
        self.repaired = len(torn)
        try:
            self._unread = _parse(content[: self._size])
            if not self._unread and torn[: len(_START)] != _START[: len(torn)]:
                raise ValueError("line 1")
        except ValueError as error:
            self._file.close()
            raise InputError(f"storage: {str(path)!r} is no journal of Optuna ({error}); choose another file") from None
        self._first = 0
        """Number of the first log in `_unread`."""

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the logs from a number on. Those before it are not asked for again as a rule, and are let go."""
        if log_number_from < self._first:
            self._unread, self._first = _parse(os.pread(self._file.fileno(), self._size, 0)), 0
        del self._unread[: log_number_from - self._first]
        self._first = log_number_from
        return iter(self._unread[:])

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append logs; when this returns they survive the death of the process.

        Raises:
            OSError: when they cannot be written; nothing of them stays in the file then.
        """
        data = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        descriptor = self._file.fileno()
        if self.repaired and os.fstat(descriptor).st_size == self._size + self.repaired:
            os.ftruncate(descriptor, self._size)
        written = 0
        try:
            while written < len(data):  # one write, unless the disk is full
                written += os.write(descriptor, data[written:])
        except OSError:
            # A piece would be glued to the next line, a whole line would be one that this process does not know of.
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
            raise
        end = os.lseek(descriptor, 0, os.SEEK_CUR)
        others = os.pread(descriptor, end - len(data) - self._size, self._size)
        self._unread += _parse(others + data)
        self._size = end

    def close(self) -> None:
        """Bring the file to the disk and let go of it."""
        os.fsync(self._file.fileno())
        self._file.close()


def _parse(lines: bytes) -> list[dict[str, Any]]:
    """Read whole lines of a journal.

    Raises:
        ValueError: naming the first line that is something else.
    """
    logs = []
    for number, line in enumerate(lines.splitlines(), 1):
        try:
            log = json.loads(line)
        except ValueError:
            log = None
        if not (isinstance(log, dict) and "op_code" in log):
            raise ValueError(f"line {number}")
        logs.append(log)
    return logs
