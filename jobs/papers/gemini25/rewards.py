"""Reinforcement learning from rewards that a function can check, its answers sampled by workers on Ray."""

from __future__ import annotations

import math
from typing import Any

from cluster.trial import Trial
from jobs.claims import Claim, MetricRow, NamedFigure, Results, Scale, cell, least, most, settings

REWARDS, OBJECTIVE = "gemini25/rewards", "gemini25/reward_objective"
EXPERIMENTS = (REWARDS, OBJECTIVE)

_PROTOTYPE = "ours, prototype"
_SMALL: dict[str, Any] = {"numbers": 4, "modulus": 5, "wrong": 0.3, "steps": 500, "updates": 150}
_LARGER: dict[str, Any] = {**_SMALL, "numbers": 6, "steps": 2000, "updates": 400}


def plan(scale: Scale) -> list[Trial]:
    """Cells; the paper scale has more seeds, longer sums and more workers."""
    paper = scale == "paper"
    cells = [cell(REWARDS, "group policy", seed, **_SMALL, workers=2) for seed in range(8 if paper else 3)]
    cells.append(cell(REWARDS, "group policy", 0, **_SMALL, workers=1))
    cells += [cell(OBJECTIVE, "group policy", 0)]
    if paper:
        cells.append(cell(REWARDS, "group policy", 0, **_SMALL, workers=3))
        cells += [cell(REWARDS, "group policy", seed, **_LARGER, workers=8) for seed in range(3)]
    return cells


def run(trial: Trial) -> list[MetricRow]:
    """Compute one cell."""
    from jobs.papers.gemini25 import rewards_cells as cells

    if trial.dataset == OBJECTIVE:
        return cells.objective(trial.seed)
    return cells.learned(trial.seed, **settings(trial))


def claims(results: Results, scale: Scale) -> list[Claim]:
    """What the report states of its post-training, beside sums that a function checks."""
    at: dict[str, Any] = {"experiment": REWARDS, "numbers": 4, "split": "test"}
    before = {name: results.values(name, **at, environment="start", workers=2) for name in ("sampled", "greedy")}
    after = {name: results.values(name, **at, environment="end", workers=2) for name in ("sampled", "greedy")}
    counts = (1, 2, 3) if scale == "paper" else (1, 2)
    pairs = {workers: results.values("digest", **at, seed=0, workers=workers) for workers in counts}
    alike = math.nan if not all(pairs.values()) else float(len({value for found in pairs.values() for value in found}))
    other = results.values("digest", **at, workers=2)
    exact: dict[str, Any] = {"experiment": OBJECTIVE}
    made = [
        Claim(
            "rewards from a checker, sums of 4 numbers: sampled accuracy after 150 updates, least over seeds",
            0.9,
            least(after["sampled"]),
            0.0,
            f"{_PROTOTYPE}: 0.993",
            "at least",
            stated="more compute went into reinforcement learning, from verifiable and from model-based rewards, and the share of it "
            "grows; no algorithm, settings or curves are given. Rewards from models and environments of many steps are not built here.",
        ),
        Claim("the same before, a start on traces with 30 % wrong tokens: largest", 0.4, most(before["sampled"]), 0.0, f"{_PROTOTYPE}: 0.292", "at most"),
        Claim("greedy accuracy after the updates, least", 0.95, least(after["greedy"]), 0.0, f"{_PROTOTYPE}: 1.000", "at least"),
        Claim("greedy accuracy before them, least: the wrong tokens are no rule to be learned", 0.8, least(before["greedy"]), 0.0, f"{_PROTOTYPE}: 0.906", "at least"),
        Claim("one worker and more, the same seed: number of different streams of answers", 1.0, alike, 0.0, "derived: draws come from seed, update and item"),
        Claim("other seeds: different streams among those of two workers", float(max(len(other), 2)), float(len(set(other))), 0.0, "derived"),
        Claim("mean advantage of a group, largest", 0.0, most(results.values("mean_advantage", **exact)), 1e-6, _PROTOTYPE),
        Claim("groups of equal rewards: largest gradient", 0.0, most(results.values("equal_gradient", **exact)), 0.0, _PROTOTYPE),
        Claim("the first pass's ratio of probabilities, new over sampled: farthest from 1", 0.0, most(results.values("ratio", **exact)), 1e-4, "derived"),
        Claim("gradient of the objective at ratio 1 against -mean A grad log p, largest relative difference", 0.0, most(results.values("policy_gradient", **exact)), 1e-6, "derived, policy gradient"),
    ]  # fmt: skip
    if scale == "paper":
        larger = results.values("sampled", experiment=REWARDS, numbers=6, split="test", environment="end")
        made.append(Claim("sums of 6 numbers: sampled accuracy at the end, least", 0.9, least(larger), 0.0, "ours", "at least"))  # fmt: skip
    return made


def figures(results: Results) -> list[NamedFigure]:
    """Draw the rewards over the updates."""
    from jobs.drawing import panels

    at: dict[str, Any] = {"experiment": REWARDS, "numbers": 4, "workers": 2, "split": "curve"}
    seeds = sorted({row["seed"] for row in results.rows(**at)})
    if not seeds:
        return []
    figure, (axis,) = panels()
    for seed in seeds:
        axis.plot(*results.curve("reward", "step", **at, seed=seed), color="#0072b2", linewidth=0.8, alpha=0.6)
    axis.plot(*results.curve("reward", "step", **at), color="#0072b2", label="answers that are right")
    axis.plot(*results.curve("informative", "step", **at), color="#d55e00", label="groups that differ")
    axis.set(xlabel="update", ylabel="share", ylim=(0, 1.05))
    axis.legend(frameon=False, fontsize="small", loc="center right")
    words = "Sampled answers become right; groups whose answers are all right teach nothing more. Thin: single seeds."
    return [NamedFigure("Rewards that a function checks", words, figure)]
