"""Rollouts: answers that a policy samples, with what each token was worth to it and what the answers earned.

An item's draws come from its own numbers alone, so that it does not matter who computes it, or how often. The weights are
handed over with every call; a worker keeps nothing but the network they go into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.errors import InputError
from lightning_modules.sequence.decoding import Forced, write
from lightning_modules.sequence.draws import generator_of
from lightning_modules.sequence.transformer import Transformer
from lightning_modules.sequence.verifiers import VERIFIERS, Prompt, Spelling, Verifier

Weights = dict[str, np.ndarray]


class Runner(Protocol):
    """Whoever computes items: workers on a cluster, or this process."""

    def run(self, common: Any, items: Sequence[Any]) -> list[Any]:
        """The result of each item under what is common to all, in their order."""


@dataclass(frozen=True)
class RolloutSettings:
    """How answers are sampled and checked.

    Args:
        make: makes the policy's network; its weights come with each call. For other processes it must be picklable.
        letters: of the tokens.
        stop: the letter that ends an answer.
        limit: tokens of an answer at most.
        group: G, answers to each prompt, 2 or more.
        temperature: of the draws.
        forced: a letter that must come within a number of tokens, e.g. ("=", 8), a thinking budget; None: none.
        verifiers: by name.

    Raises:
        InputError: a value out of range.
    """

    make: Callable[[], Transformer]
    letters: str
    stop: str = "."
    limit: int = 16
    group: int = 8
    temperature: float = 1.0
    forced: tuple[str, int] | None = None
    verifiers: Mapping[str, Verifier] = field(default_factory=lambda: dict(VERIFIERS))

    def __post_init__(self) -> None:
        if self.group < 2:
            raise InputError(f"group: is {self.group}; give 2 answers or more, each is compared with the others")
        if self.limit < 1:
            raise InputError(f"limit: is {self.limit}; give 1 or more")
        if not self.temperature > 0:
            raise InputError(f"temperature: is {self.temperature}; give a number above 0")
        for name, letter in (("stop", self.stop), ("forced", self.forced[0] if self.forced else self.stop)):
            if len(letter) != 1 or letter not in self.letters:
                raise InputError(f"{name}: {letter!r} is none of the letters {self.letters!r}; give one of them")


@dataclass(frozen=True)
class RolloutItem:
    """A few prompts of the same length, and the numbers that their draws come from."""

    prompts: tuple[Prompt, ...]
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Rollouts:
    """Answers to P prompts, G to each, prompt by prompt.

    Args:
        tokens: prompts and answers [P G, T]; after an answer's end stands the stop token.
        log_probabilities: of the tokens that were sampled [P G, T], when they were; 0 elsewhere.
        weights: 1 where the policy chose the token [P G, T]; 0 in prompts, after the end and where a token was forced.
        rewards: [P, G].
    """

    tokens: Tensor
    log_probabilities: Tensor
    weights: Tensor
    rewards: Tensor

    def to(self, device: torch.device) -> Rollouts:
        """The same on a device."""
        tokens, logs = self.tokens.to(device), self.log_probabilities.to(device)
        return Rollouts(tokens, logs, self.weights.to(device), self.rewards.to(device))


class RolloutTask:
    """Samples and checks the answers of one item: task(weights, item).

    Args:
        settings: how.
    """

    def __init__(self, settings: RolloutSettings) -> None:
        self._settings = settings
        self._spelling = Spelling(settings.letters)
        self._model = settings.make().eval()

    def __call__(self, common: Weights, item: RolloutItem) -> Rollouts:
        """Answer an item's prompts with the policy whose weights are given."""
        settings, spelling = self._settings, self._spelling
        stop = spelling.encode(settings.stop)[0]
        forced = Forced(spelling.encode(settings.forced[0])[0], settings.forced[1]) if settings.forced else None
        with _one_thread():
            self._model.load_state_dict({name: torch.tensor(values) for name, values in common.items()})
            asked = torch.tensor([spelling.encode(prompt.text) for prompt in item.prompts])
            asked = asked.repeat_interleave(settings.group, 0)
            generator = generator_of(*item.numbers)
            found = write(self._model, asked, settings.limit, stop, generator, settings.temperature, forced)
        longest = int(found.lengths.max())
        answers, lengths = found.tokens[:, :longest], found.lengths
        rewards = []
        for row, (answer, length) in enumerate(zip(answers.tolist(), lengths.tolist(), strict=True)):
            prompt = item.prompts[row // settings.group]
            kept = answer[: length - 1] if answer[length - 1] == stop else answer[:length]
            verifier = settings.verifiers[prompt.checker]
            rewards.append(float(verifier(prompt.text, spelling.decode(kept), prompt.expected)))
        before = torch.zeros(asked.shape)
        weights = found.chosen[:, :longest].float()
        return Rollouts(
            torch.cat([asked, answers], 1),
            torch.cat([before, found.log_probabilities[:, :longest] * weights], 1),
            torch.cat([before, weights], 1),
            torch.tensor(rewards).view(len(item.prompts), settings.group),
        )


class InThisProcess:
    """A `Runner` that computes one item after another.

    Args:
        task: as workers have it.
    """

    def __init__(self, task: Callable[[Any, Any], Any]) -> None:
        self._task = task

    def run(self, common: Any, items: Sequence[Any]) -> list[Any]:
        """The results, in the order of the items."""
        return [self._task(common, item) for item in items]


def weights_of(model: nn.Module) -> Weights:
    """Copies of a network's weights, to be handed to workers."""
    return {name: values.detach().cpu().numpy().copy() for name, values in model.state_dict().items()}


def items_of(prompts: Sequence[Prompt], at_once: int, *numbers: int) -> list[RolloutItem]:
    """Deal prompts into items of at most `at_once` prompts of equal length, numbered; the order of lengths is ascending.

    The items depend on the prompts alone, never on how many workers there are: so do their draws.
    """
    if at_once < 1:
        raise InputError(f"at_once: is {at_once}; give 1 or more")
    parts: list[tuple[Prompt, ...]] = []
    for _, equal in groupby(sorted(prompts, key=lambda prompt: len(prompt.text)), key=lambda prompt: len(prompt.text)):
        same = tuple(equal)
        parts += [same[start : start + at_once] for start in range(0, len(same), at_once)]
    return [RolloutItem(part, (*numbers, place)) for place, part in enumerate(parts)]


def joined(parts: Sequence[Rollouts], stop: int) -> Rollouts:
    """All rollouts together, those shorter than the longest filled up with the stop token."""
    longest = max(part.tokens.shape[1] for part in parts)

    def fill(name: str, value: float) -> Tensor:
        rows = [getattr(part, name) for part in parts]
        return torch.cat([nn.functional.pad(row, (0, longest - row.shape[1]), value=value) for row in rows])

    rewards = torch.cat([part.rewards for part in parts])
    return Rollouts(fill("tokens", stop), fill("log_probabilities", 0), fill("weights", 0), rewards)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute as workers do, who have one thread each: the number of threads can change the last bits of a sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
