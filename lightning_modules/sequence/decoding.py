"""Writing sequences token by token, with a key-value cache: a fixed number of tokens, or until a sequence stops by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.errors import InputError
from lightning_modules.sequence.cache import Cache
from lightning_modules.sequence.transformer import Transformer

Choose = Callable[[Tensor], Tensor]
"""Maps logits [B, V] to tokens [B]."""


def most_likely(logits: Tensor) -> Tensor:
    """The tokens [B] of the largest logits [B, V]."""
    return logits.argmax(-1)


def sampled(generator: torch.Generator, temperature: float = 1.0) -> Choose:
    """Tokens drawn from softmax(logits / temperature)."""

    def choose(logits: Tensor) -> Tensor:
        return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]

    return choose


@torch.no_grad()
def decode(model: Transformer, prefix: Tensor, count: int, choose: Choose = most_likely) -> Tensor:
    """Go on from prefixes [B, T] by `count` tokens [B, count], each chosen from what stands before it.

    The model is put into evaluation mode for it.
    """
    cache, tokens, found = Cache(), prefix, []
    with _evaluating(model):
        for _ in range(count):
            tokens = choose(model(tokens, cache)[:, -1])[:, None]
            found.append(tokens)
    return torch.cat(found, 1) if found else prefix[:, :0]


@dataclass(frozen=True)
class Forced:
    """A token that every sequence has to have written by a certain place: a sequence that has not gets it there.

    Args:
        token: what is written.
        after: tokens [B], or one number for all, that a sequence may write before it; 0: at once.

    Raises:
        InputError: `after` below 0.
    """

    token: int
    after: int | Tensor

    def __post_init__(self) -> None:
        least = self.after if isinstance(self.after, int) else int(self.after.min())
        if least < 0:
            raise InputError(f"after: is {least}; give 0 or more")


@dataclass(frozen=True)
class Written:
    """What `write` wrote after B prefixes, N tokens at most.

    Args:
        tokens: [B, N]; after a sequence's end there is the stop token.
        log_probabilities: of each token under the model [B, N], in nats, at the temperature it was drawn with; 0 after the end.
        lengths: tokens [B] of each sequence, its stop token counted.
        chosen: whether the model chose the token [B, N]: False where it was forced, and after the end.
    """

    tokens: Tensor
    log_probabilities: Tensor
    lengths: Tensor
    chosen: Tensor


@torch.no_grad()
def write(
    model: Transformer,
    prefix: Tensor,
    limit: int,
    stop: int,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    forced: Forced | None = None,
) -> Written:
    """Go on from each of the prefixes [B, T] until it writes `stop`, or for `limit` tokens.

    Sequences that have ended leave the batch. One random number a sequence and place is drawn beforehand, so that what a
    sequence draws does not depend on when others end.

    Args:
        model: in evaluation mode for it.
        prefix: what stands before.
        limit: tokens at most.
        stop: the token after which a sequence ends.
        generator: of draws from softmax(logits / temperature); None: the most likely token.
        temperature: above 0; without a generator it only scales the log-probabilities.
        forced: a token that has to come by a certain place, a thinking budget's.

    Raises:
        InputError: a limit or a temperature out of range.
    """
    if limit < 1:
        raise InputError(f"limit: is {limit}; give 1 or more")
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature: is {temperature}; give a number above 0")
    rows, device = len(prefix), prefix.device
    draws = None if generator is None else torch.rand(rows, limit, generator=generator).to(device)
    tokens = torch.full((rows, limit), stop, device=device)
    log_probabilities = torch.zeros(rows, limit, device=device)
    lengths = torch.full((rows,), limit, device=device)
    chosen = torch.zeros(rows, limit, dtype=torch.bool, device=device)
    bound = None if forced is None else torch.as_tensor(forced.after, device=device).expand(rows)
    wanting = torch.ones(rows, dtype=torch.bool, device=device)  # sequences without the forced token so far
    active, cache, last = torch.arange(rows, device=device), Cache(), prefix
    with _evaluating(model):
        for place in range(limit):
            logs = (model(last, cache)[:, -1] / temperature).log_softmax(-1)
            told = logs.argmax(-1) if draws is None else _drawn(logs, draws[active, place])
            free = torch.ones_like(told, dtype=torch.bool)
            if forced is not None and bound is not None:
                free = ~(wanting[active] & (bound[active] <= place))
                told = torch.where(free, told, forced.token)
                wanting[active] &= told != forced.token
            tokens[active, place], chosen[active, place] = told, free
            log_probabilities[active, place] = logs.gather(1, told[:, None])[:, 0].to(log_probabilities.dtype)
            ended = told == stop
            lengths[active[ended]] = place + 1
            if ended.any():
                going = (~ended).nonzero()[:, 0]
                active, told, cache = active[going], told[going], cache.select(going)
            if not len(active):
                break
            last = told[:, None]
    return Written(tokens, log_probabilities, lengths, chosen)


def _drawn(logs: Tensor, draws: Tensor) -> Tensor:
    """Tokens [B] where the cumulated probabilities of logs [B, V] pass uniform draws [B]."""
    below = logs.exp().cumsum(-1) <= draws[:, None]
    return below.sum(-1).clamp(max=logs.shape[-1] - 1)


@contextmanager
def _evaluating(model: Transformer) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
