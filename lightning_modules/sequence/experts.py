"""Sparse mixture of experts: each token goes through the few feed-forward networks that a router chooses for it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_modules.errors import InputError


@dataclass(frozen=True)
class ExpertsConfig:
    """Sizes and choices of `SparseExperts`.

    Args:
        experts: E, feed-forward networks.
        per_token: k, of which each token uses so many.
        hidden: H of each; None: a dense network's hidden width divided by k, so that a token costs what it costs there.
        capacity_factor: in training an expert takes ceil(capacity_factor k tokens / E) assignments and drops the others;
            None: it takes all. In evaluation nothing is dropped.

    Raises:
        InputError: fewer experts than a token uses, a token that uses none, a capacity of 0 or less.
    """

    experts: int = 8
    per_token: int = 2
    hidden: int | None = None
    capacity_factor: float | None = 1.25

    def __post_init__(self) -> None:
        for name in ("experts", "per_token", "hidden"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}: is {value}; give 1 or more")
        if self.per_token > self.experts:
            raise InputError(
                f"per_token: {self.per_token} of {self.experts} experts cannot be chosen; give {self.experts} or fewer"
            )
        factor = self.capacity_factor
        if factor is not None and not 0 < factor < math.inf:
            raise InputError(f"capacity_factor: is {factor}; give a number above 0, or None for no limit")

    def capacity(self, tokens: int) -> int:
        """Assignments that an expert takes of so many tokens in training: C = ceil(capacity_factor k tokens / E)."""
        if self.capacity_factor is None:
            return tokens
        # An expert is chosen once a token at most. Rounding keeps 1.1 * 10 from becoming 12.
        share = round(self.capacity_factor * self.per_token * tokens / self.experts, 9)
        return max(1, min(tokens, math.ceil(share)))


@dataclass(frozen=True)
class Routing:
    """What a router decided for N tokens.

    Args:
        experts: [N, k], best first; of experts that are as likely the lower number comes first.
        weights: [N, k] of the experts' outputs, summing to 1.
        logits: [N, E] of the router.
        probabilities: [N, E], softmax of the logits.
        kept: [N, k], whether the expert had room.
    """

    experts: Tensor
    weights: Tensor
    logits: Tensor
    probabilities: Tensor
    kept: Tensor

    def load(self) -> Tensor:
        """f [E]: share of the assignments that each expert was chosen for, dropped ones with them. Not differentiable."""
        count = self.probabilities.shape[1]
        chosen = nn.functional.one_hot(self.experts.flatten(), count).sum(0)
        return chosen.to(self.probabilities.dtype) / self.experts.numel()

    def balance_loss(self) -> Tensor:
        """E sum_e f_e P_e, with P_e the mean probability: 1 where either is uniform, E where all goes to one expert.

        Gradients go through P alone.

        Source: field standard (arXiv 2101.03961, equation 4).
        """
        return len(self.load()) * (self.load() * self.probabilities.mean(0)).sum()

    def z_loss(self) -> Tensor:
        """Mean squared logsumexp of the logits, which keeps them small.

        Source: field standard (arXiv 2202.08906, equation 5).
        """
        return self.logits.logsumexp(-1).square().mean()

    def statistics(self) -> dict[str, Tensor]:
        """Of the tokens' shares among experts.

        Returns:
            load_entropy: of f over log E, 1 when uniform. fullest: the largest f over 1 / E. dropped: share of the assignments.
        """
        load = self.load()
        entropy = torch.special.entr(load).sum() / math.log(max(len(load), 2))
        dropped = 1 - self.kept.to(load.dtype).mean()
        return {"load_entropy": entropy, "fullest": load.max() * len(load), "dropped": dropped}


class SparseExperts(nn.Module):
    """y = sum over a token's k experts of g_e FFN_e(x), with g a softmax over all experts, cut to the k largest and renormalised.

    In training an expert takes the first choices of tokens, in their order, then the second ones, until it is full. What it drops
    adds nothing to y: the residual stream around this layer carries such a token. Who is dropped depends on the whole batch, later
    positions included; in evaluation nothing is dropped, so that no position sees a later one and a cache changes nothing.

    Tokens are sorted by expert and go through all experts in two batched products [E, C, W]; C is the fullest expert's count where
    that is less than the capacity. No step adds in an order that is left to chance, on a GPU neither. The router works in float32
    or better also under autocast.

    Args:
        width: W.
        config: sizes and choices.
        hidden: of a dense network of the same cost; None: 4 W. Used where `config.hidden` is None.
        std: of the first weights of the router and of the experts' first layers.
        out_std: of the experts' second layers.
        generator: of the first weights; None: torch's global one.

    Source: field standard (arXiv 1701.06538; capacity and priorities: arXiv 2006.16668).

    Example:
        >>> layer = SparseExperts(16, ExpertsConfig(experts=4, per_token=2), generator=torch.Generator().manual_seed(0))
        >>> y, routing = layer.routed(torch.ones(10, 16))
        >>> y.shape, routing.experts.shape
        (torch.Size([10, 16]), torch.Size([10, 2]))
    """

    def __init__(
        self,
        width: int,
        config: ExpertsConfig,
        hidden: int | None = None,
        std: float = 0.02,
        out_std: float = 0.02,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        each = config.hidden or max(1, (hidden or 4 * width) // config.per_token)
        self.router = nn.Parameter(torch.empty(config.experts, width).normal_(0, std, generator=generator))
        self.up = nn.Parameter(torch.empty(config.experts, width, each).normal_(0, std, generator=generator))
        self.up_bias = nn.Parameter(torch.zeros(config.experts, 1, each))
        self.down = nn.Parameter(torch.empty(config.experts, each, width).normal_(0, out_std, generator=generator))
        self.down_bias = nn.Parameter(torch.zeros(config.experts, 1, width))
        self._watchers: list[list[Routing]] = []

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] -> [..., W]."""
        found, routing = self.routed(x)
        for watcher in self._watchers:
            watcher.append(routing)
        return found

    def routed(self, x: Tensor) -> tuple[Tensor, Routing]:
        """The output [..., W] of x [..., W], and how its tokens were routed, in their order."""
        tokens = x.reshape(-1, x.shape[-1])
        count, config = len(tokens), self.config
        experts, weights, logits, probabilities = self._choose(tokens)
        # Assignments in the order in which experts take them: all first choices, then all second ones.
        wanted = experts.T.flatten()
        place, counts = places(wanted, config.experts)
        room = config.capacity(count) if self.training else count
        room = max(1, min(room, int(counts.max())))
        kept = place < room
        full = config.experts * room
        slots = torch.where(kept, wanted * room + place, full)  # one more slot is for what is dropped
        # Every assignment has its own copy of its token, so that both directions are copies and sums of k terms.
        copies = tokens.expand(config.per_token, -1, -1).reshape(-1, tokens.shape[1])
        buffer = tokens.new_zeros(full + 1, tokens.shape[1]).index_copy(0, slots, copies)
        served = self._serve(buffer[:-1].view(config.experts, room, -1)).flatten(0, 1)
        # What is dropped reads the last real slot and counts 0 times.
        mixed = served.index_select(0, slots.clamp(max=full - 1)).view(config.per_token, count, tokens.shape[1])
        shares = weights.T * kept.view(config.per_token, count)
        found = (shares[..., None] * mixed).sum(0).to(x.dtype)
        routing = Routing(experts, weights, logits, probabilities, kept.view(config.per_token, count).T)
        return found.view(x.shape), routing

    def _choose(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        precise = torch.promote_types(tokens.dtype, torch.float32)
        with torch.autocast(tokens.device.type, enabled=False):
            logits = tokens.to(precise) @ self.router.to(precise).T
            probabilities = logits.softmax(-1)
            best, order = probabilities.sort(dim=-1, descending=True, stable=True)
            weights = best[:, : self.config.per_token]
            weights = weights / weights.sum(-1, keepdim=True)
        return order[:, : self.config.per_token], weights, logits, probabilities

    def _serve(self, x: Tensor) -> Tensor:
        """Each expert's own tokens [E, C, W] -> [E, C, W]."""
        inner = nn.functional.gelu(torch.baddbmm(self.up_bias, x, self.up))
        return torch.baddbmm(self.down_bias, inner, self.down)


def places(wanted: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Each assignment's place [n] in the queue of its expert, and the queues' lengths [E].

    Args:
        wanted: expert of each assignment [n], in the order in which they are served.
        experts: E.
    """
    order = wanted.argsort(stable=True)
    borders = torch.searchsorted(wanted[order], torch.arange(experts + 1, device=wanted.device))
    at = torch.arange(len(wanted), device=wanted.device)
    place = torch.empty_like(at).index_copy(0, order, at - borders[wanted[order]])
    return place, borders.diff()


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Routing]]:
    """Collect the routing of every layer of experts within `model`, call by call, while the block runs.

    Example:
        >>> layer = SparseExperts(8, ExpertsConfig(experts=4))
        >>> with watched(layer) as routings:
        ...     _ = layer(torch.ones(3, 8))
        >>> len(routings)
        1
    """
    layers = [module for module in model.modules() if isinstance(module, SparseExperts)]
    found: list[Routing] = []
    for layer in layers:
        layer._watchers.append(found)
    try:
        yield found
    finally:
        for layer in layers:
            layer._watchers[:] = [watcher for watcher in layer._watchers if watcher is not found]


def router_loss(routings: list[Routing], balance: float = 0.01, z: float = 0.0) -> Tensor:
    """What is added to a model's loss: balance * balance_loss + z * z_loss, summed over layers.

    Args:
        routings: of one forward pass, one a layer.
        balance: weight of each layer's balance loss.
        z: weight of each layer's z-loss; 1e-3 is usual.

    Raises:
        InputError: no layer of experts was called.
    """
    if not routings:
        raise InputError(
            "routings: there are none; call the model within `watched(model)`, and give it layers of experts"
        )
    losses = [balance * routing.balance_loss() + z * routing.z_loss() for routing in routings]
    return torch.stack(losses).sum()
