"""Reinforcement learning from rewards that can be checked: several answers to each prompt, each compared with the others (GRPO)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_modules.errors import InputError
from lightning_modules.sequence.rollouts import Rollouts, RolloutSettings, Runner, items_of, joined, weights_of
from lightning_modules.sequence.schedules import adamw
from lightning_modules.sequence.training import check_numbers
from lightning_modules.sequence.transformer import Transformer
from lightning_modules.sequence.verifiers import Prompt, Spelling

_EPS = 1e-6


def group_advantages(rewards: Tensor) -> Tensor:
    """A = (r - mean) / (std + 1e-6) within each group: rewards [P, G] -> [P, G], of mean 0 in each row.

    The standard deviation divides by G, here and everywhere. A group of equal rewards has A = 0 exactly: it teaches nothing.

    Raises:
        InputError: groups of one answer.

    Source: arXiv 2402.03300, section 4.1.
    """
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise InputError(f"rewards: have shape {list(rewards.shape)}; give [prompts, 2 answers or more]")
    away = rewards - rewards.mean(1, keepdim=True)
    found = away / (rewards.std(1, correction=0, keepdim=True) + _EPS)
    return found.where(differ(rewards)[:, None], 0)


def differ(rewards: Tensor) -> Tensor:
    """Whether a group's rewards [P, G] are not all equal [P]: the others have no say, and are not counted in means."""
    return rewards.amax(1) > rewards.amin(1)


def group_objective(
    new: Tensor,
    old: Tensor,
    weights: Tensor,
    advantages: Tensor,
    counted: Tensor,
    clip: float = 0.2,
    start: Tensor | None = None,
    kl_weight: float = 0.0,
) -> Tensor:
    """-mean over answers, of the mean over their tokens, of min(rho A, clip(rho, 1 - c, 1 + c) A) - kl_weight * KL.

    rho = exp(new - old). KL to the policy at the start is estimated by exp(start - new) - (start - new) - 1 for each token.

    Args:
        new: log-probabilities [B, T] of the tokens under the policy that is trained.
        old: under the one that sampled them.
        weights: 1 where the policy chose the token [B, T], else 0.
        advantages: [B].
        counted: which answers are in the mean [B]: those of groups whose rewards differ.
        clip: c.
        start: log-probabilities under the policy at the start [B, T]; needed for a KL.
        kl_weight: of that.

    Returns:
        A loss, 0 with no gradient where nothing is counted.

    Source: arXiv 2402.03300, equation 3, of which arXiv 2507.06261 states nothing; leaving out groups of equal rewards: ours.
    """
    rho = (new - old).exp()
    gain = advantages[:, None]
    told = torch.minimum(rho * gain, rho.clamp(1 - clip, 1 + clip) * gain)
    if kl_weight and start is not None:
        away = start - new
        told = told - kl_weight * (away.exp() - away - 1)
    each = (told * weights).sum(1) / weights.sum(1).clamp(min=1)
    return -(each * counted).sum() / counted.sum().clamp(min=1)


@dataclass(frozen=True)
class Update:
    """What one update saw and did.

    Args:
        reward: mean over all answers, before the update.
        informative: share of the groups whose rewards differ.
        loss: of the first pass.
        clipped: share of the chosen tokens whose rho lies outside the clip in the last pass.
        length: mean number of tokens that the policy chose for an answer.
    """

    reward: float
    informative: float
    loss: float
    clipped: float
    length: float


class GroupPolicyTrainer:
    """Improves a policy update by update: it hands out its weights, takes answers and rewards back, and follows them.

    Args:
        policy: trained in place.
        runner: whose workers have `RolloutTask(settings)`.
        settings: how answers are sampled; the workers' own.
        lr: of AdamW, constant.
        clip: of the probability ratio, between 0 and 1.
        passes: gradient steps for each update's answers; with 1 the ratio is 1 and the clip without effect.
        kl_weight: of the divergence from the policy at the start; 0: none.
        max_norm: that gradients are clipped to.
        prompts_at_once: prompts that a worker answers as one item. It is part of the draws, the number of workers is not.
        seed: of the draws.

    Raises:
        InputError: a value out of range.

    Source: arXiv 2402.03300.
    """

    def __init__(
        self,
        policy: Transformer,
        runner: Runner,
        settings: RolloutSettings,
        lr: float = 1e-3,
        clip: float = 0.2,
        passes: int = 2,
        kl_weight: float = 0.0,
        max_norm: float = 1.0,
        prompts_at_once: int = 6,
        seed: int = 0,
    ) -> None:
        check_numbers({"lr": lr, "clip": clip, "max_norm": max_norm}, {"kl_weight": kl_weight})
        if clip >= 1:
            raise InputError(f"clip: is {clip}; give a number between 0 and 1")
        for name, value in {"passes": passes, "prompts_at_once": prompts_at_once}.items():
            if value < 1:
                raise InputError(f"{name}: is {value}; give 1 or more")
        self._policy, self._runner, self._settings = policy, runner, settings
        self._clip, self._passes, self._kl_weight, self._max_norm = clip, passes, kl_weight, max_norm
        self._at_once, self._seed, self._done = prompts_at_once, seed, 0
        self._optimizer = adamw(policy, lr, 0.0)
        self._start = copy.deepcopy(policy).eval().requires_grad_(False) if kl_weight else None
        self._stop = Spelling(settings.letters).encode(settings.stop)[0]

    def rollouts(self, prompts: Sequence[Prompt]) -> Rollouts:
        """Answers of the policy as it is now, drawn from (seed, number of the update, item)."""
        if not prompts:
            raise InputError("prompts: there are none; give one or more")
        items = items_of(prompts, self._at_once, self._seed, self._done)
        found = joined(self._runner.run(weights_of(self._policy), items), self._stop)
        return found.to(next(self._policy.parameters()).device)

    def update(self, prompts: Sequence[Prompt]) -> Update:
        """Sample answers to prompts and take the gradient steps of one update; none where all groups have equal rewards."""
        found = self.rollouts(prompts)
        self._done += 1
        counted = differ(found.rewards)
        each = counted.repeat_interleave(found.rewards.shape[1])
        advantages = group_advantages(found.rewards).flatten()
        loss, clipped = 0.0, 0.0
        if bool(counted.any()):
            start = self._at_start(found.tokens)
            for number in range(self._passes):
                new = self.log_probabilities(found.tokens)
                old = found.log_probabilities
                objective = group_objective(
                    new, old, found.weights, advantages, each, self._clip, start, self._kl_weight
                )
                self._optimizer.zero_grad()
                objective.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self._policy.parameters(), self._max_norm)
                self._optimizer.step()
                if number == 0:
                    loss = float(objective.detach())
                outside = ((new.detach() - old).exp() - 1).abs() > self._clip
                clipped = float((outside * found.weights).sum() / found.weights.sum())
        reward, length = float(found.rewards.mean()), float(found.weights.sum(1).mean())
        return Update(reward, float(counted.float().mean()), loss, clipped, length)

    def log_probabilities(self, tokens: Tensor) -> Tensor:
        """Of each token [B, T] given those before it under the policy, at the temperature of the draws; 0 for the first."""
        return _log_probabilities(self._policy, tokens, self._settings.temperature)

    @torch.no_grad()
    def _at_start(self, tokens: Tensor) -> Tensor | None:
        if self._start is None:
            return None
        return _log_probabilities(self._start, tokens, self._settings.temperature)


def _log_probabilities(model: Transformer, tokens: Tensor, temperature: float) -> Tensor:
    logs = (model(tokens[:, :-1]) / temperature).log_softmax(-1)
    told = logs.gather(2, tokens[:, 1:, None])[..., 0]
    return nn.functional.pad(told, (1, 0))
