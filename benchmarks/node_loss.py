"""A sweep that loses a node: seconds until what ran there runs again, and until as many workers are back."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python benchmarks/node_loss.py` has only this folder

from benchmarks.harness import Figure, quick_asked, show
from tests.cluster.nodes import Nodes

SECONDS = 0.3


def lose(frozen: bool) -> tuple[float, float, float]:
    """Lose a node of three while two workers run short trials.

    Args:
        frozen: whether the node hangs instead of dying.

    Returns:
        Seconds from the loss to when the driver knows, to when a trial that ran there runs again, and to the first
        outcome of the worker in its place.
    """
    from cluster.executor import execute
    from cluster.plan import Event, Settings
    from cluster.session import connect
    from cluster.signals import StopRequest
    from cluster.trial import Trial

    with Nodes(3) as nodes:
        os.environ.update(nodes.environment)
        events: list[tuple[float, Event]] = []
        lost_at, again, back, before, stop = 0.0, 0.0, 0.0, set[str](), StopRequest()

        def plan() -> Iterator[Trial]:
            return (Trial.create("sleep", str(SECONDS), seed=number) for number in range(100_000))

        with connect(nodes.address) as ray:
            steps = execute(
                plan(),
                setup,
                settings=Settings(workers=2),
                stop=stop,
                ray=ray,
                note=lambda event: events.append((time.time(), event)),
            )
            for outcomes, _ in steps:
                now = time.time()
                for outcome in outcomes:
                    worker = str(outcome.tables["metrics"][0][1])
                    if not lost_at:
                        before.add(worker)
                    elif worker not in before and not back:
                        back = now - lost_at
                    elif events and not again and outcome.started_at.timestamp() > events[0][0]:
                        again = outcome.started_at.timestamp() - lost_at
                if not lost_at and len(before) == 2 and len(outcomes):
                    number = next(n for n, found in nodes.workers().items() if found)
                    (nodes.freeze_node if frozen else nodes.kill_node)(number)
                    lost_at = time.time()
                if (again and back) or (lost_at and now - lost_at > 60):
                    stop.request()
        assert {event.kind for _, event in events} == {"node_lost"}, events
        return events[0][0] - lost_at, again, back


def setup():  # type: ignore[no-untyped-def]
    """Build a task that sleeps, and says which process slept."""

    def task(trial):  # type: ignore[no-untyped-def]
        time.sleep(float(trial.dataset))
        return {"metrics": [(0, str(os.getpid()), "out", "value", 1.0)]}

    return task


def main() -> None:
    """Measure and print."""
    rounds = 1 if quick_asked(__doc__) else 3
    figures = []
    for name, frozen in (("dies", False), ("hangs", True)):
        known, again, back = zip(*(lose(frozen) for _ in range(rounds)), strict=True)
        figures += [
            Figure(
                f"a node {name}: known", statistics.median(known), "s", None, statistics.median(known), at_most=True
            ),
            Figure(f"a node {name}: its trial runs again", max(again), "s", 5, max(again), at_most=True),
            Figure(
                f"a node {name}: a worker in its place", statistics.median(back), "s", None, statistics.median(back)
            ),
        ]
    notes = [
        f"two workers on three nodes of one machine, trials of {SECONDS} s, health checks tuned as docs/reliability.md says; "
        "the bar is held against the slowest of the rounds",
    ]
    show("Loss of a node during a sweep", figures, notes)


if __name__ == "__main__":
    main()
