"""Reinforcement learning whose rollouts are sampled on Ray: this process has the policy, a crew of workers answers.

Once an update the weights go into the object store; each worker answers and checks some of the prompts. What is sampled
comes from (seed, update, item), so that neither the number of workers nor the loss of one changes a result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cluster.crew import Crew

if TYPE_CHECKING:
    from lightning_modules.sequence.group_policy import GroupPolicyTrainer, Update
    from lightning_modules.sequence.rollouts import RolloutSettings
    from lightning_modules.sequence.verifiers import Prompt

Ask = Callable[[int], "Sequence[Prompt]"]
"""The prompts of an update, by its number."""


@contextmanager
def rollout_crew(
    settings: RolloutSettings, workers: int = 2, cpus_per_worker: float = 0, in_process: bool | None = None
) -> Iterator[Crew]:
    """Workers that sample answers, for a `GroupPolicyTrainer` of the same settings.

    Args:
        settings: how answers are sampled and checked.
        workers: how many.
        cpus_per_worker: CPUs each reserves; 0 where whoever calls waits for them and has some.
        in_process: sample in this process; None does so where it is not connected to Ray.

    Raises:
        InputError: fewer than one worker.

    Example:
        >>> settings = RolloutSettings(partial(Transformer, policy.config), letters="01234+=.")
        >>> with connect(), rollout_crew(settings, workers=8, cpus_per_worker=1) as crew:
        ...     trainer = GroupPolicyTrainer(policy, crew, settings)
        ...     updates = improve(trainer, shuffled(read_prompts("sums.jsonl", Spelling(settings.letters)), 24), 100)
    """
    from lightning_modules.sequence.rollouts import RolloutTask

    with Crew(RolloutTask, [settings], workers, cpus_per_worker, in_process) as crew:
        yield crew


def improve(
    trainer: GroupPolicyTrainer, ask: Ask, updates: int, watch: Callable[[int, Update], None] | None = None
) -> list[Update]:
    """Make updates one after another.

    Args:
        trainer: with its policy.
        ask: which prompts each update answers.
        updates: how many.
        watch: called after each with its number and what it did.
    """
    made = []
    for number in range(updates):
        made.append(trainer.update(ask(number)))
        if watch is not None:
            watch(number, made[-1])
    return made


def shuffled(prompts: Sequence[Prompt], at_once: int, seed: int = 0) -> Ask:
    """Ask a person's own prompts, `at_once` an update, each once before any comes again.

    Args:
        prompts: to choose from.
        at_once: prompts of an update; all of them where there are fewer.
        seed: of the order, which is drawn anew for each round.

    Raises:
        InputError: there are no prompts, or at_once is below 1.
    """
    import numpy as np

    from cluster.errors import InputError

    if not prompts or at_once < 1:
        raise InputError(f"prompts, at_once: {len(prompts)} prompts, {at_once} an update; give one or more of each")
    size = min(at_once, len(prompts))
    a_round = len(prompts) // size

    def ask(number: int) -> list[Prompt]:
        order = np.random.default_rng([seed, number // a_round]).permutation(len(prompts))
        start = (number % a_round) * size
        return [prompts[place] for place in order[start : start + size]]

    return ask
