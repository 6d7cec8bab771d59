"""What the cells about recall over a long context compute."""

from __future__ import annotations

from typing import Any

from jobs.claims import MetricRow, scalar_rows
from jobs.papers.gemini25.recall import DEPTHS, ENOUGH, TRAINED
from lightning_modules.lightning_import import pl
from lightning_modules.sequence.language_model import LanguageModel
from lightning_modules.sequence.needles import NeedleData, recall
from lightning_modules.sequence.training import fit
from lightning_modules.sequence.transformer import Positions

_WINDOW = 10


class _Until(pl.Callback):
    """Ends a training once the mean of its last losses is low enough."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def level(self) -> float:
        last = self.losses[-_WINDOW:]
        return sum(last) / len(last)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))
        if len(self.losses) >= _WINDOW and self.level() < ENOUGH:
            trainer.should_stop = True


def needles(
    positions: Positions, seed: int, taps: int, steps: int, longest: int, count: int, layers: int = 2, width: int = 64
) -> list[MetricRow]:
    """Train at one length until the loss is low; recall by length (the row's step) and depth of the needle."""
    data = NeedleData(TRAINED, seed=seed)
    module = LanguageModel(
        data.vocabulary_size, longest + 1, TRAINED, layers, width, init_std=0.1, lr=3e-3, weight_decay=0.0,
        warmup_steps=20, seed=seed, positions=positions, taps=taps,
    )  # fmt: skip
    until = _Until()
    fit(module, data, steps, [until])
    rows = scalar_rows({"steps": len(until.losses), "final_loss": until.level()})
    length = TRAINED
    while length <= longest:
        for depth in DEPTHS:
            found, named = recall(module.transformer, data.task, length, depth, count, seed=seed + 1)
            rows += scalar_rows({"recall": found, "some value": named}, length, f"{depth:.2f}")
        length *= 2
    return rows
