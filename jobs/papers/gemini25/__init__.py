"""Gemini 2.5: the parts of the report that are a system, each small, real and measured. Nobody can claim to have rebuilt it.

Each part has a file here that plans its cells and holds its claims, and one ending in `_cells` that computes them:
`experts` (sparse mixture of experts), `patches` (images and text in one sequence), `recall` (long context),
`distillation` (from a k-sparse teacher), `thinking` (with a budget), `rewards` (reinforcement learning from verifiable
rewards), and `slices` (elastic training, silent corruption, goodput). A part's first claim says what the report states.
"""

from __future__ import annotations

from cluster.trial import Trial
from jobs.claims import Claim, MetricRow, NamedFigure, Results, Scale
from jobs.papers.gemini25 import distillation, experts, patches, recall, rewards, slices, thinking

__all__ = ["NOTE", "SOURCE", "TITLE", "claims", "figures", "plan", "run"]

TITLE = "Gemini 2.5: Pushing the Frontier with Advanced Reasoning, Multimodality, Long Context, and Next Generation Agentic Capabilities"
SOURCE = "Gemini Team, Google, 2025, arXiv 2507.06261"
NOTE = (
    "The report publishes no code, sizes or settings. Each part is the field's standard form of what it names, at a size that "
    "two cores train in minutes: what is compared is the mechanism, never the report's scores. Lines that begin 'The paper' "
    "quote the report; no figure beside them was measured on its models."
)

_PARTS = (experts, patches, recall, distillation, thinking, rewards, slices)


def plan(scale: Scale) -> list[Trial]:
    """Cells of all parts; the paper scale has more seeds and larger models, which want a GPU."""
    return [trial for part in _PARTS for trial in part.plan(scale)]


def run(trial: Trial) -> list[MetricRow]:
    """Compute one cell."""
    part = next(part for part in _PARTS if trial.dataset in part.EXPERIMENTS)
    rows: list[MetricRow] = part.run(trial)
    return rows


def claims(results: Results, scale: Scale) -> list[Claim]:
    """What the report states of each part beside what was measured, a row each, and then the checks."""
    made = [claim for part in _PARTS for claim in part.claims(results, scale)]
    return sorted(made, key=lambda claim: not claim.stated)


def figures(results: Results) -> list[NamedFigure]:
    """Each part's figures."""
    return [figure for part in _PARTS for figure in part.figures(results)]
