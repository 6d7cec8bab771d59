"""Groups the trials of a plan that can run at once into packs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator

from cluster.trial import Trial

_WAITING = 4096


def packs(plan: Iterable[Trial], key: Callable[[Trial], Hashable], size: int) -> Iterator[tuple[Trial, ...]]:
    """Group trials of equal key, in the order in which the first of a group appears.

    Args:
        plan: trials, read lazily.
        key: trials of equal key can run at once; one of key None runs alone.
        size: trials in a pack at most.

    Yields:
        Packs of 1 to `size` trials. At most a few thousand trials wait for their pack to fill; past that the oldest
        pack goes as it is.
    """
    if size == 1:
        yield from ((trial,) for trial in plan)
        return
    waiting: dict[Hashable, list[Trial]] = {}
    count = 0
    for trial in plan:
        if (kind := key(trial)) is None:
            yield (trial,)
            continue
        group = waiting.setdefault(kind, [])
        group.append(trial)
        count += 1
        if len(group) == size:
            count -= len(group)
            yield tuple(waiting.pop(kind))
        elif count >= _WAITING:
            oldest = next(iter(waiting))
            count -= len(waiting[oldest])
            yield tuple(waiting.pop(oldest))
    yield from map(tuple, waiting.values())
