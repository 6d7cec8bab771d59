"""A policy that learned from wrong traces improves on what a checker says of its answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from jobs.claims import MetricRow, scalar_rows
from jobs.papers.gemini25.thinking_cells import trained
from jobs.rollouts import improve, rollout_crew
from lightning_modules.sequence.draws import generator_of
from lightning_modules.sequence.group_policy import (
    GroupPolicyTrainer,
    Update,
    differ,
    group_advantages,
    group_objective,
)
from lightning_modules.sequence.rollouts import InThisProcess, Rollouts, RolloutSettings, RolloutTask, Runner
from lightning_modules.sequence.thinking import ThinkingTask, generate
from lightning_modules.sequence.transformer import Transformer
from lightning_modules.sequence.verifiers import Prompt, Spelling

_JUDGED = 2000
_ASKED, _GROUP = 24, 8
_TEST, _SAMPLED, _PROMPTS = 1, 2, 3  # what generators are for, beside the seed


def _settings(task: ThinkingTask, policy: Transformer) -> RolloutSettings:
    limit = task.longest + 3
    return RolloutSettings(partial(Transformer, policy.config), task.alphabet, limit=limit, group=_GROUP)


def _asked(task: ThinkingTask, seed: int, update: int) -> list[Prompt]:
    """Fresh sums, which the checker adds up for itself."""
    chains = task.chains(_ASKED, generator_of(seed, _PROMPTS, update))
    spelling = Spelling(task.alphabet)
    return [Prompt(spelling.decode(row), "digit_sum", str(task.modulus)) for row in task.prompts(*chains).tolist()]


class _Recorder:
    """A runner that keeps a digest of all tokens that its own returned."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self._digest = runner, hashlib.sha256()

    def run(self, common: Any, items: Sequence[Any]) -> list[Rollouts]:
        found: list[Rollouts] = self._runner.run(common, items)
        for part in found:
            for values in (part.tokens, part.log_probabilities, part.rewards):
                self._digest.update(values.contiguous().numpy().tobytes())
        return found

    @property
    def digest(self) -> float:
        """48 bits of it, which a float64 holds."""
        return float(int(self._digest.hexdigest()[:12], 16))


def learned(
    seed: int, numbers: int, modulus: int, wrong: float, steps: int, updates: int, workers: int
) -> list[MetricRow]:
    """Accuracies before and after the updates, the rewards on the way, and a digest of all that was sampled."""
    task = ThinkingTask(numbers - 1, modulus, numbers - 1)
    policy = trained(task, seed, steps, cut=0.0, wrong=wrong).model
    made = _settings(task, policy)
    rows = scalar_rows(_accuracies(policy, task, seed), environment="start")

    def watch(number: int, update: Update) -> None:
        rows.extend(scalar_rows({"reward": update.reward, "informative": update.informative}, number, split="curve"))

    with rollout_crew(made, workers) as crew:
        recorder = _Recorder(crew)
        trainer = GroupPolicyTrainer(policy, recorder, made, seed=seed)
        improve(trainer, partial(_asked, task, seed), updates, watch)
        rows += scalar_rows({"digest": recorder.digest, "on_ray": float(not crew.in_process)}, environment="end")
    return rows + scalar_rows(_accuracies(policy, task, seed), environment="end")


def _accuracies(policy: Transformer, task: ThinkingTask, seed: int) -> dict[str, float]:
    chains = task.chains(_JUDGED, generator_of(seed, _TEST))
    right = task.answers(chains[0])
    found = {}
    for name, generator in (("greedy", None), ("sampled", generator_of(seed, _SAMPLED))):
        thought = generate(policy, task, task.prompts(*chains), task.longest, generator)
        found[name] = float((thought.answers == right).double().mean())
    return found


def objective(seed: int) -> list[MetricRow]:
    """What holds exactly of advantages, of the objective at its start, and of groups with nothing to tell."""
    task = ThinkingTask(3, 5, 3)
    policy = trained(task, seed, 50, cut=0.0).model
    made = _settings(task, policy)
    trainer = GroupPolicyTrainer(policy, InThisProcess(RolloutTask(made)), made, seed=seed)
    found = trainer.rollouts(_asked(task, seed, 0))
    # A coin's rewards, so that groups differ whatever the policy can do.
    rewards = torch.randint(2, found.rewards.shape, generator=generator_of(seed, 1)).float()
    advantages = group_advantages(rewards)
    counted = differ(rewards).repeat_interleave(_GROUP)
    policy.double()

    def loss(gains: torch.Tensor, which: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        new = trainer.log_probabilities(found.tokens)
        return new, group_objective(new, new.detach(), found.weights, gains.flatten(), which)

    new, told = loss(advantages.double(), counted)
    ratio = float((((new.detach() - found.log_probabilities).exp() - 1) * found.weights).abs().max())
    parameters = list(policy.parameters())
    slopes = torch.autograd.grad(told, parameters, retain_graph=True)
    each = (new * found.weights).sum(1) / found.weights.sum(1)
    plain = -(each * advantages.flatten().double() * counted).sum() / counted.sum()
    wanted = torch.autograd.grad(plain, parameters)
    largest = max(float(w.abs().max()) for w in wanted)
    apart = max(float((s - w).abs().max()) for s, w in zip(slopes, wanted, strict=True)) / largest
    equal = torch.ones_like(rewards)
    _, nothing = loss(group_advantages(equal).double(), differ(equal).repeat_interleave(_GROUP))
    flat = max(float(s.abs().max()) for s in torch.autograd.grad(nothing, parameters))
    mean = float(group_advantages(rewards).mean(1).abs().max())
    return scalar_rows({"mean_advantage": mean, "equal_gradient": flat, "ratio": ratio, "policy_gradient": apart})
