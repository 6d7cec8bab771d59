"""Progress of long work: a live bar on a terminal, plain lines in a job log."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

_LINE_SECONDS = 10.0


def format_duration(seconds: float) -> str:
    """Format seconds for people: 8 s, 3 min 20 s, 2 h 5 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


class PlanProgress:
    """Shows how far a plan is: done, running, failed, rate and time left.

    Args:
        what: the unit of work in the plural, e.g. "trials".
        total: size of the plan.
        done: how many were stored before this launch.
        failed: how many of these had failed.
        console: where to show it; a terminal gets a live bar, anything else a line every ten seconds.
    """

    def __init__(self, what: str, total: int, done: int = 0, failed: int = 0, console: Console | None = None) -> None:
        self._what, self._total = what, total
        self._done = self._done_before = done
        self._failed, self._running, self._note = failed, 0, ""
        self._console = console or Console(stderr=True)
        self._began = self._shown = time.monotonic()
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("starting workers", total=total, completed=done)

    def __enter__(self) -> PlanProgress:
        """Start showing."""
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show the last state."""
        if self._bar:
            self._bar.stop()
        elif self._done > self._done_before:
            self._console.print(self._line(), highlight=False, soft_wrap=True)

    def update(self, completed: int, failed: int, running: int, note: str = "") -> None:
        """Count newly ended trials (completed, failed) and set how many are running; a note is shown behind."""
        self._note = note
        self._done += completed + failed
        self._failed += failed
        self._running = running
        now = time.monotonic()
        if self._bar:
            self._bar.update(self._task, completed=self._done, description=self._state())
        elif now - self._shown >= _LINE_SECONDS:
            self._shown = now
            self._console.print(self._line(), highlight=False, soft_wrap=True)

    def _line(self) -> str:
        return f"{self._done}/{self._total} {self._what} done, {self._state()}"

    def _state(self) -> str:
        elapsed = time.monotonic() - self._began
        here = self._done - self._done_before
        parts = [f"{self._running} running", f"{self._failed} failed"]
        if here:
            rate = here / elapsed
            parts += [f"{rate:.3g} {self._what}/s", f"{format_duration((self._total - self._done) / rate)} left"]
        elif not self._running:
            parts = ["waiting for workers"]
        return ", ".join([*parts, self._note] if self._note else parts)
