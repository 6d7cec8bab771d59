"""Optuna's journal file with one writer: as readable as Optuna's own, without its locks and fsyncs.

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


class OwnedJournal(BaseJournalBackend):
    """A journal file that this process alone writes.

    What was appended survives the death of the process, not of the machine's power. A last line that was cut off in the
    middle, which Optuna's own backend would glue the next one to, is taken away; `repaired` is its length in bytes.

    Args:
        path: of the file; made when absent.

    Raises:
        InputError: when the file cannot be opened or is no journal.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab")  # noqa: SIM115 - held for as long as the study
            content = self.path.read_bytes()
        except OSError as error:
            raise InputError(
                f"storage: cannot open the journal {str(path)!r} ({error.strerror}); choose another"
            ) from None
        whole = content.rfind(b"\n") + 1
        self.repaired = len(content) - whole
        if self.repaired:
            self._file.truncate(whole)
        try:
            self._logs: list[dict[str, Any]] = [json.loads(line) for line in content[:whole].splitlines()]
        except ValueError:
            raise InputError(f"storage: {str(path)!r} is no journal of Optuna; choose another file") from None

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the logs from a number on; those that were read once are not kept."""
        return iter(self._logs[log_number_from:])

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append logs; when this returns they survive the death of the process."""
        lines = [json.dumps(log, separators=(",", ":")) for log in logs]
        self._file.write("".join(f"{line}\n" for line in lines).encode())
        self._file.flush()
        self._logs += logs

    def close(self) -> None:
        """Bring the file to the disk and let go of it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
