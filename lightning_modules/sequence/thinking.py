"""Thinking before an answer, under a budget of tokens that is chosen when the question is put, not when the model is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.errors import InputError
from lightning_modules.sequence.decoding import Forced, Written, write
from lightning_modules.sequence.transformer import Transformer

_PAD, _THINK, _ANSWER, _END = "_", "?", "=", "."


@dataclass(frozen=True)
class Examples:
    """Tokens [B, T] and what each is worth in the loss [B, T], 0 or 1, as `SelectedTokensModule` takes them."""

    tokens: Tensor
    weights: Tensor


@dataclass(frozen=True)
class ThinkingTask:
    """Chains of additions, whose running sums are what is thought: `3142_____?432=2.` under modulus 5.

    A prompt is the n + 1 numbers of a chain of n additions, padded to the longest chain's, and `?`, after which the model
    thinks. A trace has the n running sums, `=`, the answer and `.`; a letter is a token.

    Args:
        longest: additions of the longest chain.
        modulus: of all sums, 2 to 10.
        shortest: additions of the shortest chain.

    Raises:
        InputError: a value out of range.

    Source: the task is ours; a thinking stage and its budget: arXiv 2507.06261, section 2.5.
    """

    longest: int = 8
    modulus: int = 5
    shortest: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest:
            raise InputError(
                f"shortest, longest: are {self.shortest} and {self.longest}; give 1 <= shortest <= longest"
            )
        if not 2 <= self.modulus <= 10:
            raise InputError(f"modulus: is {self.modulus}; give 2 to 10, a number is one digit")

    @property
    def alphabet(self) -> str:
        """What the tokens stand for, token 0 first."""
        return "0123456789"[: self.modulus] + _PAD + _THINK + _ANSWER + _END

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return len(self.alphabet)

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt."""
        return self.longest + 2

    @property
    def context(self) -> int:
        """Tokens of the longest prompt with its trace."""
        return self.prompt_length + self.longest + 3

    @property
    def answer_token(self) -> int:
        """The token that ends thinking."""
        return self.modulus + 2

    @property
    def end_token(self) -> int:
        """The token that ends a sequence."""
        return self.modulus + 3

    def chains(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw numbers [n, longest + 1] and additions [n] of each chain, uniform; numbers beyond a chain's end are 0."""
        additions = torch.randint(self.shortest, self.longest + 1, (count,), generator=generator)
        numbers = torch.randint(self.modulus, (count, self.longest + 1), generator=generator)
        return numbers * self._within(additions), additions

    def prompts(self, numbers: Tensor, additions: Tensor) -> Tensor:
        """Prompts [n, longest + 2]."""
        padded = numbers.where(self._within(additions), self.modulus)
        return torch.cat([padded, torch.full((len(numbers), 1), self.modulus + 1)], 1)

    def answers(self, numbers: Tensor) -> Tensor:
        """What the chains add up to [n]."""
        return numbers.sum(1) % self.modulus

    def examples(
        self, count: int, generator: torch.Generator, cut: float = 0.5, wrong: float = 0.0, forced_weight: float = 0.0
    ) -> Examples:
        """Draw prompts with their traces, to learn from; only traces have weight.

        Args:
            count: of examples, B.
            generator: of all draws.
            cut: share of traces whose thinking is cut after a number of sums that is uniform from 0 to all but one; the answer
                follows all the same.
            wrong: share of the sums and of the answers that are replaced by another number, each by itself.
            forced_weight: of the `=` of a cut trace. With 1 the model learns to stop early by itself, which no budget asked for.

        Raises:
            InputError: a share outside 0 to 1.
        """
        for name, value in {"cut": cut, "wrong": wrong, "forced_weight": forced_weight}.items():
            if not 0 <= value <= 1:
                raise InputError(f"{name}: is {value}; give 0 to 1")
        numbers, additions = self.chains(count, generator)
        sums = numbers.cumsum(1)[:, 1:] % self.modulus  # [B, longest]
        told = torch.cat([sums, self.answers(numbers)[:, None]], 1)
        other = (told + torch.randint(1, self.modulus, told.shape, generator=generator)) % self.modulus
        told = told.where(torch.rand(told.shape, generator=generator) >= wrong, other)
        kept = (torch.rand(count, generator=generator) * additions).long()  # 0 to n - 1
        is_cut = torch.rand(count, generator=generator) < cut
        kept = torch.where(is_cut, kept, additions)
        # `=`, the answer and the end stand right after the sums that were kept; padding follows.
        trace = torch.full((count, self.longest + 3), self.modulus)
        trace[:, : self.longest] = told[:, :-1]
        rows = torch.arange(count)
        ends = torch.tensor([self.answer_token, 0, self.end_token])
        for place, token in enumerate(ends):
            trace[rows, kept + place] = told[:, -1] if place == 1 else token
        at = torch.arange(self.longest + 3)
        weights = (at <= kept[:, None] + 2).float()
        trace = trace.where(weights > 0, self.modulus)
        weights[rows[is_cut], kept[is_cut]] = forced_weight
        prompts = self.prompts(numbers, additions)
        return Examples(torch.cat([prompts, trace], 1), torch.cat([torch.zeros(prompts.shape), weights], 1))

    def _within(self, additions: Tensor) -> Tensor:
        return torch.arange(self.longest + 1) <= additions[:, None]


@dataclass(frozen=True)
class Thought:
    """What a model answered.

    Args:
        answers: the token after `=` [B]; -1 where there is none.
        used: tokens [B] thought before `=`.
        written: all that was written.
    """

    answers: Tensor
    used: Tensor
    written: Written


def generate(
    model: Transformer, task: ThinkingTask, prompts: Tensor, budget: int, generator: torch.Generator | None = None
) -> Thought:
    """Think for at most `budget` tokens, then answer: where `=` has not come by itself it is put there.

    Args:
        model: the policy.
        task: which tokens mean what.
        prompts: [B, P].
        budget: tokens at most, 0 or more; a model that stops by itself uses fewer. More than the longest chain's additions count
            as these: the context has no room for more.
        generator: of draws; None: the most likely tokens.

    Raises:
        InputError: a budget below 0.
    """
    if budget < 0:
        raise InputError(f"budget: is {budget}; give 0 tokens (answer at once) or more")
    budget = min(budget, task.longest)
    forced = Forced(task.answer_token, budget)
    written = write(model, prompts, budget + 3, task.end_token, generator, forced=forced)
    return read_thought(written, task)


def read_thought(written: Written, task: ThinkingTask) -> Thought:
    """Find the answer in what was written."""
    is_answer = written.tokens == task.answer_token
    used = is_answer.int().argmax(1)
    after = (used + 1).clamp(max=written.tokens.shape[1] - 1)
    answers = written.tokens.gather(1, after[:, None])[:, 0]
    said = is_answer.any(1) & (used + 1 < written.lengths)
    return Thought(answers.where(said, -1), used.where(is_answer.any(1), written.lengths), written)


def budget_bounds(budget: int, task: ThinkingTask) -> tuple[float, float]:
    """Accuracies between which a model lies that thinks rightly for `budget` tokens and guesses what is left.

    With b tokens it solves the chains of up to b additions, or of up to b + 1 where it does the last one within the answer;
    of the others one in `modulus` is right by chance.
    """
    kinds = task.longest - task.shortest + 1

    def solved(additions: int) -> float:
        share = min(max(additions - task.shortest + 1, 0), kinds) / kinds
        return share + (1 - share) / task.modulus

    if budget < 0 or not math.isfinite(budget):
        raise InputError(f"budget: is {budget}; give 0 or more")
    return solved(budget), solved(budget + 1)
