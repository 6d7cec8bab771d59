"""Students of a source whose next-token probabilities are known."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from jobs.claims import MetricRow, scalar_rows
from jobs.papers.gemini25.distillation import KEPT, VOCABULARY
from lightning_modules.sequence.distillation import (
    DistillationData,
    DistillationModule,
    Targets,
    divergence,
    teach,
)
from lightning_modules.sequence.draws import generator_of
from lightning_modules.sequence.sparse_targets import TAILS, KSparseTargets
from lightning_modules.sequence.target_files import StoredTargets, write_targets
from lightning_modules.sequence.token_source import TokenSource
from lightning_modules.sequence.training import fit

_LENGTH = 3
"""A window shows a student just what the source depends on; its last two tokens are learned."""
_WINDOWS = 1000
_TEACHER_WINDOWS = 40_000


def _windows(source: TokenSource, seed: int, part: int, count: int = _WINDOWS) -> Tensor:
    return source.draw(count, _LENGTH, generator_of(seed, part))


def _student(
    tokens: Tensor,
    targets: Targets | StoredTargets | None,
    seed: int,
    steps: int,
    batch_size: int = 128,
    width: int = 32,
) -> DistillationModule:
    module = DistillationModule(VOCABULARY, _LENGTH - 1, width=width, seed=seed)
    fit(module, DistillationData(tokens, targets, batch_size, seed), steps)
    return module


def curve(method: str, seed: int, steps: int) -> list[MetricRow]:
    """Students of the truth, or of what is kept of it; `step` of a row is k, and 0 for hard labels."""
    source = TokenSource(VOCABULARY, seed=seed)
    tokens, unseen = _windows(source, seed, 0), _windows(source, seed, 1)
    p, truth = source.after_each(tokens), source.after_each(unseen)
    kept: dict[int, Targets | None] = {0: None} if method == "hard" else {VOCABULARY: p}
    for tail in TAILS:
        if method == tail:
            kept = {k: KSparseTargets.from_probs(p, k, tail) for k in KEPT}
    rows: list[MetricRow] = []
    for k, targets in kept.items():
        found = {"kl": divergence(truth, _student(tokens, targets, seed, steps).probabilities(unseen))}
        if isinstance(targets, KSparseTargets):
            found["mass"] = float(targets.mass.double().mean())
        rows += scalar_rows(found, k)
    return rows


def taught(seed: int, k: int, steps: int) -> list[MetricRow]:
    """A larger transformer learns from many tokens; small ones learn from its stored targets on few."""
    source = TokenSource(VOCABULARY, seed=seed)
    many = _windows(source, seed, 2, _TEACHER_WINDOWS)
    tokens, unseen = _windows(source, seed, 0), _windows(source, seed, 1)
    truth = source.after_each(unseen)
    teacher = _student(many, None, seed, 2 * steps, 256, 64)
    rows = scalar_rows({"kl": divergence(truth, teacher.probabilities(unseen))}, environment="teacher")
    with tempfile.TemporaryDirectory() as folder:
        learned: dict[str, Targets | StoredTargets | None] = {"hard": None, "full": teacher.probabilities(tokens)}
        for tail in TAILS:
            path = Path(folder) / f"{tail}.arrow"
            learned[tail] = StoredTargets(write_targets(path, teach(teacher, tokens, k, tail)))
        for name, targets in learned.items():
            student = _student(tokens, targets, seed, steps)
            rows += scalar_rows({"kl": divergence(truth, student.probabilities(unseen))}, environment=name)
    return rows


def stored(seed: int, vocabulary: int, k: int, tokens: int) -> list[MetricRow]:
    """Bytes a token of a file of targets and of all probabilities, and the identity KL(renormalised || p) = -log m."""
    logits = torch.randn(tokens, vocabulary, generator=generator_of(seed, vocabulary), dtype=torch.float64) * 3
    p = logits.softmax(-1)
    gaps = []
    for kept in {1, 4, k, vocabulary // 2}:
        targets = KSparseTargets.from_probs(p, kept)
        q, _ = targets.weights()
        divergences = (q * (q / targets.probabilities).log()).sum(1)
        gaps.append(float((divergences + targets.probabilities.sum(1).log()).abs().max()))
    small = KSparseTargets.from_probs(p, k, "uniform")
    with tempfile.TemporaryDirectory() as folder:
        path = write_targets(Path(folder) / "targets.arrow", small)
        found = StoredTargets(path)
        moved = (found.rows(slice(0, tokens)).dense() - small.dense()).abs().sum(1).max()
        values = {"identity": max(gaps), "file": found.bytes_per_token, "dense": 4.0 * vocabulary}
    return scalar_rows(values | {"moved": float(moved)})
