"""Studies as one plan for the cluster: workers are busy as long as any of the studies has something to run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.packing import packs
from cluster.plan import Outcome
from cluster.store import Run
from cluster.trial import Trial
from cluster.worker import Report
from jobs.launch import Counts
from tuning.search import Ended, Search
from tuning.storage import StudyStorage
from tuning.study import claim, release

_RENEW_SECONDS = 15.0
_FLUSH_SECONDS = 60.0


class StoredTrials:
    """How the trials of a run ended, with their metrics; read when the first is asked for.

    Args:
        run: the run.
    """

    def __init__(self, run: Run) -> None:
        trials = run.read("trials")
        columns = [trials[name].to_pylist() for name in ("trial_id", "status", "seconds", "error")]
        self._trials = {key: rest for key, *rest in zip(*columns, strict=True)}
        self._run = run
        self._metrics: pa.Table | None = None

    def __call__(self, trial_id: str) -> Ended | None:
        """How a trial ended; None if it is not stored."""
        if trial_id not in self._trials:
            return None
        if self._metrics is None:
            self._metrics = self._run.read("metrics")
        status, seconds, error = self._trials[trial_id]
        found = self._metrics.filter(pc.equal(self._metrics["trial_id"], trial_id)).drop_columns("trial_id")
        rows = list(zip(*(column.to_pylist() for column in found.columns), strict=True))
        return Ended(status, rows, seconds or 0.0, (error or "").split("\n")[0])


class SearchPlan:
    """The searches of a launch, in turn.

    Args:
        searches: the studies on their way.
        storage: where they are kept.
        shape: what trials must share to train as one pack; None: each runs alone.
        pack: size of a pack for a number of workers.
    """

    def __init__(
        self,
        searches: Sequence[Search],
        storage: StudyStorage,
        shape: Callable[[Trial], Hashable] | None,
        pack: Callable[[int], int],
    ) -> None:
        self._searches, self._storage, self._shape, self._pack = searches, storage, shape, pack
        self._owner: dict[str, Search] = {}
        self._ran = sum(search.finished for search in searches)
        self._renewed = time.monotonic()

    @property
    def counts(self) -> Counts:
        """Suggestions by how they ended, over all studies."""
        searches = self._searches
        total = sum(
            s.finished if s.done and (s.converged or s.exhausted) else max(s.trials, s.finished) for s in searches
        )
        completed, pruned, failed = (sum(getattr(s, k) for s in searches) for k in ("completed", "pruned", "failed"))
        error = next((s.first_error for s in searches if s.first_error), "")
        ran = completed + pruned + failed - self._ran
        return Counts(total, completed, failed, error, ran, pruned, tolerant=True)

    @property
    def done(self) -> bool:
        """Whether every study is at its end."""
        return all(search.done for search in self._searches)

    def units(self, workers: int) -> Iterator[Sequence[Trial] | None]:
        """Yield packs, asked for when a worker wants them: each suggestion knows all that is known by then."""
        size = self._pack(workers) if self._shape is not None else 1
        while not self.done:
            trials: list[Trial] = []
            for search in sorted(self._searches, key=lambda s: s.asked / s.trials):
                while len(trials) < size and (trial := search.next()) is not None:
                    self._owner[trial.trial_id] = search
                    trials.append(trial)
            if trials:
                yield from packs(trials, self._shape, size) if self._shape is not None else [trials]
            elif not self.done:
                yield None

    def decide(self, reports: Sequence[Report]) -> list[str]:
        """Hear reports; returns the ids of the trials that are to end."""
        ending: list[str] = []
        for report in reports:
            if (search := self._owner.get(report.trial_id)) is not None:
                ending += search.decide([report])
        return ending

    def take(self, outcomes: Iterable[Outcome]) -> Mapping[str, Sequence[Sequence[Any]]]:
        """Hear how trials ended; returns the rows of the suggestions that ended with them."""
        for outcome in outcomes:
            search = self._owner.pop(outcome.trial.trial_id)
            error = (outcome.error or "").split("\n")[0]
            rows = outcome.tables.get("metrics", [])
            search.take(outcome.trial, Ended(outcome.status, rows, outcome.seconds, error))
        now = time.monotonic()
        if now - self._renewed > _RENEW_SECONDS:
            self._renewed = now
            for search in self._searches:
                claim(search.study)
            self._storage.save()
        return {"suggestions": [row for search in self._searches for row in search.rows()]}

    def note(self) -> str:
        """The best value so far, how many were pruned, and whether the storage answers."""
        pruned = sum(search.pruned for search in self._searches)
        parts = [f"{pruned} pruned"] if pruned else []
        if len(self._searches) == 1 and (best := self._searches[0].best) is not None:
            parts.append(f"best {best:.4g}")
        if trouble := self._storage.trouble:
            parts.append(trouble)
        return ", ".join(parts)

    def close(self) -> None:
        """Give back what is on its way, and bring the storage up to date."""
        for search in self._searches:
            search.stop()
            release(search.study)
        if trouble := self._storage.close(_FLUSH_SECONDS):
            print(
                f"storage: {trouble}; all results are in the run, and the same command brings it up to date",
                file=sys.stderr,
            )
