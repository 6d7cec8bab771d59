"""What somebody outside hears of a long training run, and may ask of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lightning_modules.dynamics.probe import ProbeRows
from lightning_modules.watching import MetricRow


@dataclass(frozen=True)
class Mismatch:
    """Two processes computed the same and came to different results.

    Args:
        step: parameter updates done before.
        suspects: ranks that may be to blame; one where the others' votes decide it.
        what: that differed, in words.
    """

    step: int
    suspects: tuple[int, ...]
    what: str


class Follower(Protocol):
    """Follows one training run. Every call returns at once."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hear of the training itself, e.g. its loss, from rank 0."""

    def evaluated(self, step: int, rows: Sequence[MetricRow]) -> None:
        """Hear of an evaluation, from rank 0."""

    def save(self, step: int, content: bytes, rows: Sequence[MetricRow]) -> None:
        """Keep a checkpoint, from rank 0; `rows` are the evaluations so far."""

    def verified(self, step: int) -> None:
        """Hear that the processes agreed bit for bit about what brought them to a step, from rank 0."""

    def probed(self, rows: ProbeRows) -> None:
        """Hear what a probe found, from rank 0."""

    def pausing(self) -> bool:
        """Whether the run is to be saved and ended for now; rank 0 is asked now and then."""


class Paused(Exception):  # noqa: N818 - not an error: the run did what it was told
    """A training run was saved and ended for now."""

    def __init__(self, step: int) -> None:
        super().__init__(f"paused after step {step}")
        self.step = step


class Corrupted(Exception):  # noqa: N818 - the finding of a check
    """Processes disagreed where they must not."""

    def __init__(self, mismatch: Mismatch) -> None:
        super().__init__(f"{mismatch.what} differed at step {mismatch.step}")
        self.mismatch = mismatch
