"""The smoothed classifier: prediction and certified l2 radius by sampling, with a bounded chance of being wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.certification.binomial import clopper_pearson_lower, radius_of, top_two_p_value
from lightning_modules.certification.noise import Noise, NoisyCounter, Precision, generator_on
from lightning_modules.certification.sequential import (
    LookSchedule,
    SequentialRule,
    check_alpha,
    check_sigma,
    log_e_value,
)
from lightning_modules.errors import InputError

ABSTAIN = -1
"""What is predicted where the samples do not decide."""

_NOT_FINITE = "model: gives NaN or infinite logits under noise; mend the model or lower sigma"


@dataclass(frozen=True)
class Certificate:
    """What is known of one example.

    Args:
        prediction: class, or ABSTAIN.
        radius: l2 radius in the inputs' units within which the smoothed classifier's answer provably is `prediction`;
            0 where it abstains, NaN where nothing was certified because the guess was wrong already.
        p_lower: lower confidence bound on the probability of `prediction` under noise; NaN as `radius`.
        n_used: noisy samples spent, those of the guess included.
        count: samples of the second stage that agreed with the guess.
        skipped: not certified, because the guess was not the label.
        error: why there is no certificate, "" where there is one.
    """

    prediction: int
    radius: float
    p_lower: float
    n_used: int
    count: int
    skipped: bool = False
    error: str = ""


@dataclass
class SmoothedClassifier:
    """g(x) = argmax_c P(f(x + e) = c), e ~ N(0, sigma^2 I), for any classifier f.

    Certificates hold for g, with the f that runs here: its precision and device included. They treat the noise as real
    numbers; a network built against float32 sampling can fool them.

    Args:
        base_classifier: f, in eval mode; maps [B, ...] to logits [B, C], each row by itself.
        num_classes: C.
        sigma: standard deviation of the noise, in the inputs' units.
        precision: "float32", or autocast to "bf16" or "fp16": then the certificate is about that other network.
        noise: "independent" draws every example its own; "shared" draws one for all, which is cheaper: each example's
            certificate is as good, but examples then err together.
        channels_last: lay images out channels last.

    Raises:
        InputError: sigma not positive, fewer than two classes, or a classifier in train mode.

    Source: Cohen, Rosenfeld & Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019,
    arXiv 1902.02918, section 3.2.

    Example:
        >>> network = nn.Linear(2, 2).eval()
        >>> smoothed = SmoothedClassifier(network, num_classes=2, sigma=0.5)
        >>> smoothed.certify(torch.tensor([3.0, -1.0]), n0=100, n=1000, seed=0).n_used
        1100
    """

    base_classifier: nn.Module
    num_classes: int
    sigma: float
    precision: Precision = "float32"
    noise: Noise = "independent"
    channels_last: bool = False
    _counters: dict[int, NoisyCounter] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_sigma(self.sigma)
        if self.num_classes < 2:
            raise InputError(f"num_classes: {self.num_classes} is too few; give 2 or more")
        if self.precision not in ("float32", "bf16", "fp16"):
            raise InputError(f"precision: unknown {self.precision!r}; choose float32, bf16 or fp16")
        if self.noise not in ("independent", "shared"):
            raise InputError(f"noise: unknown {self.noise!r}; choose independent or shared")
        if any(module.training for module in self.base_classifier.modules()):
            raise InputError("model: is in train mode (dropout and batch norm on); call model.eval() first")

    def predict(self, x: Tensor, n: int, alpha: float, *, batch_size: int = 400, seed: int = 0) -> int:
        """Return g(x), or ABSTAIN where the two leading counts are too close: P(returned class != g(x)) <= alpha.

        Args:
            x: one example [...].
            n: noisy samples.
            alpha: level of the test.
            batch_size: samples a forward pass.
            seed: of the noise.
        """
        check_alpha(alpha)
        self._check(x, n)
        sampler = self._sampler(x.unsqueeze(0), [seed], batch_size)
        (counts,) = sampler.count("predict", np.array([0]), n)
        sampler.check()
        second, first = np.sort(counts)[-2:]
        return int(counts.argmax()) if top_two_p_value(first, second) <= alpha else ABSTAIN

    def certify(
        self, x: Tensor, n0: int = 100, n: int = 100_000, alpha: float = 0.001, *, batch_size: int = 400, seed: int = 0
    ) -> Certificate:
        """Certify one example [...] with a fixed number of samples; see `certify_many`."""
        self._check(x, n)
        (found,) = self.certify_many(x.unsqueeze(0), [seed], n0, n, alpha, batch_size=batch_size)
        return _or_raise(found)

    def certify_sequential(
        self,
        x: Tensor,
        radii: Sequence[float],
        n0: int = 100,
        n_max: int = 100_000,
        alpha: float = 0.001,
        *,
        rule: SequentialRule | None = None,
        batch_size: int = 400,
        seed: int = 0,
    ) -> Certificate:
        """Certify one example [...] on a grid of radii, stopping when decided; see `certify_many_sequential`."""
        self._check(x, n_max)
        rule = rule or SequentialRule(self.sigma, tuple(radii), LookSchedule(n_max), alpha)
        (found,) = self.certify_many_sequential(x.unsqueeze(0), [seed], n0, rule, batch_size=batch_size)
        return _or_raise(found)

    def certify_many(
        self,
        inputs: Tensor,
        seeds: Sequence[int],
        n0: int,
        n: int,
        alpha: float,
        *,
        batch_size: int = 400,
        labels: np.ndarray | None = None,
    ) -> list[Certificate]:
        """Certify examples: n0 samples guess the class, n fresh ones bound its probability (CERTIFY).

        The guess is wrong with whatever probability; it then leads to abstention. A returned radius is larger than the
        true one with probability at most alpha, by the Clopper-Pearson bound.

        Args:
            inputs: [A, ...] float32.
            seeds: of the examples' noise; with shared noise all must be equal.
            n0: samples of the guess.
            n: samples of the bound.
            alpha: chance of a wrong certificate, of each example.
            batch_size: samples a forward pass.
            labels: [A]; where given, examples whose guess is not the label are skipped, for they count as wrong
                whatever their radius.

        Returns:
            A certificate an example.

        Raises:
            InputError: alpha outside (0, 1), n0 < 1 or n < n0.
        """
        check_alpha(alpha)
        _check_amounts(n0, n)
        sampler, guesses, found = self._begin(inputs, seeds, n0, batch_size, labels)
        rows = np.flatnonzero([certificate is None for certificate in found])
        if len(rows):
            counts = sampler.count("certify", rows, n)
            agreed = counts[np.arange(len(rows)), guesses[rows]]
            lower = clopper_pearson_lower(agreed, n, alpha)
            for i, row in enumerate(rows):
                bound, count = float(lower[i]), int(agreed[i])
                decided = bound >= 0.5
                radius = float(radius_of(bound, self.sigma))
                found[row] = Certificate(int(guesses[row]) if decided else ABSTAIN, radius, bound, n0 + n, count)
        return sampler.blame(found)

    def certify_many_sequential(
        self,
        inputs: Tensor,
        seeds: Sequence[int],
        n0: int,
        rule: SequentialRule,
        *,
        batch_size: int = 400,
        labels: np.ndarray | None = None,
    ) -> list[Certificate]:
        """Certify examples on the rule's grid of radii; each stops as soon as its answer is decided.

        All examples still undecided are sampled together up to the next look, so batches stay full.

        Args:
            inputs: [A, ...] float32.
            seeds: as in `certify_many`.
            n0: samples of the guess, drawn apart: the rule's level is conditional on the guess.
            rule: targets, looks and level.
            batch_size: samples a forward pass.
            labels: as in `certify_many`.

        Raises:
            InputError: n0 < 1, n < n0, or a rule made for another sigma.
        """
        if rule.sigma != self.sigma:
            raise InputError(f"rule: was made for sigma {rule.sigma}, the classifier has {self.sigma}; make it anew")
        looks = rule.looks
        _check_amounts(n0, int(looks[-1]))
        sampler, guesses, found = self._begin(inputs, seeds, n0, batch_size, labels)
        active = np.flatnonzero([certificate is None for certificate in found])
        agreed, crossed = np.zeros(len(inputs), dtype=np.int64), np.zeros(len(inputs), dtype=np.int64)
        before = 0
        for j, n in enumerate(looks):
            if not len(active):
                break
            counts = sampler.count("certify", active, int(n - before))
            agreed[active] += counts[np.arange(len(active)), guesses[active]]
            crossed[active], stop = rule.look(j, agreed[active], crossed[active])
            for row in active[stop]:
                radius, bound = rule.outcome(int(crossed[row]))
                prediction = int(guesses[row]) if crossed[row] else ABSTAIN
                found[row] = Certificate(prediction, radius, bound, n0 + int(n), int(agreed[row]))
            active, before = active[~stop], int(n)
        return sampler.blame(found)

    def predict_sequential(
        self, x: Tensor, n0: int, n_max: int, alpha: float, *, batch_size: int = 400, seed: int = 0
    ) -> tuple[int, int]:
        """Predict g(x) with as few samples as it needs; returns (class or ABSTAIN, samples used).

        The leader of the first n0 samples is tested against every rival by an e-process on their two counts, uniform
        prior on the leader's share above one half. It is returned when all tests cross 1/alpha. Wrong only if the true
        top class's own test crosses, so the level needs no correction for the number of rivals.

        Args:
            x: one example [...].
            n0: samples that choose the leader.
            n_max: most samples after these.
            alpha: P(returned class != g(x)) is at most this.
            batch_size: samples a forward pass.
            seed: of the noise.
        """
        check_alpha(alpha)
        self._check(x, n_max)
        _check_amounts(n0, n_max)
        sampler = self._sampler(x.unsqueeze(0), [seed], batch_size)
        row = np.array([0])
        leader = int(sampler.count("guess", row, n0)[0].argmax())
        counts, before = np.zeros(self.num_classes, dtype=np.int64), 0
        for n in LookSchedule(n_max, start=16, ratio=1.05).looks:
            counts += sampler.count("certify", row, int(n - before))[0]
            sampler.check()
            before = int(n)
            rivals = np.delete(counts, leader)
            if (log_e_value(counts[leader], rivals, 0.5, (1.0, 1.0)) >= -np.log(alpha)).all():
                return leader, n0 + before
        return ABSTAIN, n0 + before

    def _begin(
        self, inputs: Tensor, seeds: Sequence[int], n0: int, batch_size: int, labels: np.ndarray | None
    ) -> tuple[_Sampler, np.ndarray, list[Certificate | None]]:
        """Guess the classes [A] of examples; with labels, what is wrong already gets its final certificate."""
        sampler = self._sampler(inputs, seeds, batch_size)
        guesses = sampler.count("guess", np.arange(len(inputs)), n0).argmax(1)
        found: list[Certificate | None] = [None] * len(inputs)
        if labels is not None:
            for row in np.flatnonzero(guesses != labels):
                found[row] = Certificate(int(guesses[row]), np.nan, np.nan, n0, 0, skipped=True)
        return sampler, guesses, found

    def _sampler(self, inputs: Tensor, seeds: Sequence[int], batch_size: int) -> _Sampler:
        if batch_size < 1:
            raise InputError(f"batch_size: {batch_size} is too small; give 1 or more")
        if batch_size not in self._counters:
            self._counters[batch_size] = NoisyCounter(
                self.base_classifier, self.num_classes, self.sigma, batch_size, self.precision, self.channels_last
            )
        counter = self._counters[batch_size]
        return _Sampler(counter, inputs.to(counter.device, torch.float32), seeds, self.noise, self.num_classes)

    def _check(self, x: Tensor, n: int) -> None:
        if n < 1:
            raise InputError(f"n: {n} is too small; give 1 or more")
        if not x.isfinite().all():
            raise InputError("x: has NaN or infinite values; clean it")
        if x.dim() == 4:
            raise InputError(f"x: has shape {list(x.shape)}; give one example without a batch axis")


class _Sampler:
    """Draws for a set of examples, and remembers which of them met a logit that is not finite."""

    def __init__(self, counter: NoisyCounter, inputs: Tensor, seeds: Sequence[int], noise: Noise, classes: int) -> None:
        self._counter, self._inputs, self._seeds = counter, inputs, list(seeds)
        self._shared, self._classes = noise == "shared", classes
        if self._shared and len(set(self._seeds)) > 1:
            raise InputError("seeds: shared noise needs one seed for all examples; give equal ones")
        self._streams: dict[str, list[torch.Generator]] = {}
        self._not_finite = np.zeros(len(inputs), dtype=bool)

    def count(self, stage: str, rows: np.ndarray, amount: int) -> np.ndarray:
        """Count classes [len(rows), C] of `amount` fresh samples of some examples, from the stage's own streams."""
        if stage not in self._streams:
            seeds = self._seeds[:1] if self._shared else self._seeds
            self._streams[stage] = [generator_on(self._counter.device, _stage_seed(s, stage)) for s in seeds]
        inputs, streams = self._inputs[torch.from_numpy(rows)], self._streams[stage]
        if self._shared:
            counts = self._counter.count_shared(inputs, streams[0], amount)
        else:
            counts = self._counter.count(inputs, [streams[row] for row in rows], amount)
        self._not_finite[rows] |= counts[:, self._classes] > 0
        return counts[:, : self._classes]

    def blame(self, found: Sequence[Certificate | None]) -> list[Certificate]:
        """Take back the certificates of examples with logits that were not finite."""
        return [
            Certificate(ABSTAIN, np.nan, np.nan, c.n_used, c.count, error=_NOT_FINITE) if bad else c
            for c, bad in zip(found, self._not_finite, strict=True)
            if c is not None
        ]

    def check(self) -> None:
        """Raise InputError if a logit was not finite."""
        if self._not_finite.any():
            raise InputError(_NOT_FINITE)


def _stage_seed(seed: int, stage: str) -> int:
    digest = hashlib.sha256(f"{stage} {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _check_amounts(n0: int, n: int) -> None:
    if n0 < 1:
        raise InputError(f"n0: {n0} is too small; give 1 or more")
    if n < n0:
        raise InputError(f"n: {n} is below n0 = {n0}; the bound needs at least as many samples as the guess")


def _or_raise(certificate: Certificate) -> Certificate:
    if certificate.error:
        raise InputError(certificate.error)
    return certificate
