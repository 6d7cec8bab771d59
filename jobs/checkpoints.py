"""The checkpoints of a training in its run: RUN/checkpoints/TRIAL_ID, the last few and the best, with an index."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass

from cluster.errors import InputError
from cluster.storage import Location

_FOLDER, _INDEX = "checkpoints", "index.json"


@dataclass(frozen=True)
class Entry:
    """A checkpoint that is kept.

    Args:
        step: parameter updates done.
        file: its name.
        sha256: of its content.
        score: the higher the better; null where nothing was evaluated.
        verified: whether the workers were found to agree at this step or later.
    """

    step: int
    file: str
    sha256: str
    score: float | None = None
    verified: bool = False


class Checkpoints:
    """Keeps the last few checkpoints of a training, the best one, and the last one that was verified.

    A file is written whole before the index names it, and leaves the index before it is deleted, so whatever the
    index names can be read; what it does not name is litter of a launch that was killed, and is deleted.

    Args:
        location: of the run.
        trial_id: of the training.
        keep: how many of the last ones.

    Raises:
        InputError: for an index that cannot be read.
    """

    def __init__(self, location: Location, trial_id: str, keep: int) -> None:
        self._location, self._parts, self._keep = location, (_FOLDER, trial_id), keep
        self.entries: list[Entry] = []
        self._verified = 0
        if location.exists(*self._parts, _INDEX):
            try:
                found = json.loads(location.read(*self._parts, _INDEX))
                self.entries = [Entry(**entry) for entry in found]
            except (ValueError, TypeError) as error:
                where = "/".join(self._parts)
                raise InputError(
                    f"run: {where}/{_INDEX} cannot be read ({error}); delete {where} to begin anew"
                ) from None
            self._sweep()

    @property
    def best(self) -> Entry | None:
        """The entry with the highest score, of equal ones the latest."""
        scored = [entry for entry in self.entries if entry.score is not None and math.isfinite(entry.score)]
        return max(scored, key=lambda entry: (entry.score, entry.step), default=None)

    def path(self, entry: Entry) -> str:
        """Where an entry lies, for people."""
        return "/".join([self._location.uri.rstrip("/"), *self._parts, entry.file])

    def save(self, step: int, content: bytes, score: float | None) -> None:
        """Write a checkpoint and forget those that are not kept any longer; one at the same step is replaced."""
        digest = hashlib.sha256(content).hexdigest()
        entry = Entry(step, f"step-{step:09d}-{digest[:8]}.ckpt", digest, score, step <= self._verified)
        self._location.write(content, *self._parts, entry.file)
        older = [e for e in self.entries if e.step < step]  # later ones are of a past that was rewound
        self._replace([*older, entry])

    def latest(self) -> tuple[Entry, bytes] | None:
        """Return the last checkpoint whose content is what was written; damaged ones are forgotten."""
        while self.entries:
            entry = self.entries[-1]
            try:
                content = self._location.read(*self._parts, entry.file)
            except FileNotFoundError:
                content = b""
            if hashlib.sha256(content).hexdigest() == entry.sha256:
                return entry, content
            self._write(self.entries[:-1])
        return None

    def verify(self, step: int) -> None:
        """Mark the checkpoints until a step as verified, those too that come later."""
        self._verified = step
        marked = [dataclasses.replace(e, verified=True) if e.step <= step else e for e in self.entries]
        if marked != self.entries:
            self._replace(marked)

    def rewind(self) -> int:
        """Forget the checkpoints after the last verified one; returns its step, 0 where there is none."""
        self._verified = 0
        self._replace([entry for entry in self.entries if entry.verified])
        return self.entries[-1].step if self.entries else 0

    def _replace(self, entries: list[Entry]) -> None:
        before = self.entries
        self.entries = entries
        verified = [entry for entry in entries if entry.verified]
        kept = {entry.file for entry in [*entries[-self._keep :], *verified[-1:], *([self.best] if self.best else [])]}
        self._write([entry for entry in entries if entry.file in kept])
        names = {entry.file for entry in self.entries}
        for entry in before:
            if entry.file not in names:
                self._location.delete(*self._parts, entry.file)

    def _write(self, entries: list[Entry]) -> None:
        self.entries = entries
        content = json.dumps([dataclasses.asdict(entry) for entry in entries], indent=1)
        self._location.write(content.encode(), *self._parts, _INDEX)

    def _sweep(self) -> None:
        names = {entry.file for entry in self.entries} | {_INDEX}
        for name in self._location.list_files(*self._parts):
            if name not in names:
                self._location.delete(*self._parts, name)
