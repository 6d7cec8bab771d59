"""A model that thinks about chains of additions, under every budget."""

from __future__ import annotations

import torch

from jobs.claims import MetricRow, scalar_rows
from lightning_modules.sequence.draws import generator_of
from lightning_modules.sequence.selected_tokens import Batch, SelectedTokensData, SelectedTokensModule
from lightning_modules.sequence.thinking import ThinkingTask, budget_bounds, generate
from lightning_modules.sequence.training import fit

_BATCH, _WIDTH, _RATE = 128, 32, 5e-3
_TEST, _SAMPLED = 1, 2  # what generators are for, beside the seed


def trained(
    task: ThinkingTask, seed: int, steps: int, cut: float, wrong: float = 0.0, forced_weight: float = 0.0
) -> SelectedTokensModule:
    """Train a decoder on traces of a task."""

    def draw(count: int, generator: torch.Generator) -> Batch:
        examples = task.examples(count, generator, cut, wrong, forced_weight)
        return examples.tokens, examples.weights

    module = SelectedTokensModule(task.vocabulary, task.context, width=_WIDTH, lr=_RATE, seed=seed)
    fit(module, SelectedTokensData(draw, _BATCH, seed), steps)
    return module


def budget_curve(
    seed: int, longest: int, modulus: int, judged: int, steps: int, forced_weight: float
) -> list[MetricRow]:
    """Accuracy and tokens used under each budget, which is a row's step."""
    task = ThinkingTask(longest, modulus)
    model = trained(task, seed, steps, cut=0.5, forced_weight=forced_weight).model
    numbers, additions = task.chains(judged, generator_of(seed, _TEST))
    prompts, right = task.prompts(numbers, additions), task.answers(numbers)
    rows: list[MetricRow] = []
    for budget in range(longest + 1):
        low, high = budget_bounds(budget, task)
        found = {"low": low, "high": high, "additions": float(additions.double().mean())}
        for name, generator in (("", None), ("sampled_", generator_of(seed, _SAMPLED, budget))):
            thought = generate(model, task, prompts, budget, generator)
            found[f"{name}accuracy"] = float((thought.answers == right).double().mean())
            found[f"{name}used"] = float(thought.used.double().mean())
        rows += scalar_rows(found, budget)
    return rows
