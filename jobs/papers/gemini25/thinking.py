"""Thinking with a budget: one model, and how many tokens it may think before it answers."""

from __future__ import annotations

from typing import Any

from cluster.trial import Trial
from jobs.claims import Claim, MetricRow, NamedFigure, Results, Scale, cell, least, most, settings

THINKING = "gemini25/thinking"
EXPERIMENTS = (THINKING,)

LONGEST, MODULUS = 8, 5
_STEPS = 600
_PROTOTYPE = "ours, prototype"
_MEASURED = (0.343, 0.411, 0.501, 0.579, 0.659, 0.774, 0.889, 0.967, 1.0)


def plan(scale: Scale) -> list[Trial]:
    """Cells; the paper scale has more seeds."""
    paper = scale == "paper"
    made: dict[str, Any] = {"longest": LONGEST, "modulus": MODULUS, "judged": 4000}
    cells = [cell(THINKING, "budget", seed, **made, steps=_STEPS) for seed in range(10 if paper else 3)]
    # The mistake that the method warns of, and what longer training changes.
    cells += [cell(THINKING, "forced learned", seed, **made, steps=_STEPS) for seed in range(10 if paper else 1)]
    return cells + [cell(THINKING, "longer", seed, **made, steps=3 * _STEPS) for seed in range(10 if paper else 0)]


def run(trial: Trial) -> list[MetricRow]:
    """Compute one cell."""
    from jobs.papers.gemini25 import thinking_cells as cells

    return cells.budget_curve(trial.seed, forced_weight=float(trial.method == "forced learned"), **settings(trial))


def claims(results: Results, scale: Scale) -> list[Claim]:
    """What the report states of its thinking budget, beside chains of additions."""
    at: dict[str, Any] = {"experiment": THINKING, "method": "budget"}
    budgets, curve = results.curve("accuracy", "step", **at)
    seeds = sorted({row["seed"] for row in results.rows(**at)})
    single = [results.curve("accuracy", "step", **at, seed=seed)[1] for seed in seeds]
    rises = [later - earlier for earlier, later in zip(curve[:-1], curve[1:], strict=True)]
    outside = [
        max(results.mean("low", **at, step=b) - value, value - results.mean("high", **at, step=b), 0.0)
        for one in single
        for b, value in zip(budgets, one, strict=True)
    ]
    away = [abs(value - told) for value, told in zip(curve, _MEASURED, strict=False)]
    used = [
        abs(row["value"] - results.mean("additions", **at, seed=row["seed"]))
        for row in results.rows(metric="used", **at, step=LONGEST)
    ]
    gain = results.mean("accuracy", **at, step=LONGEST) - results.mean("accuracy", **at, step=0)
    early = results.mean("sampled_used", **at, step=LONGEST)
    forced = results.mean("sampled_used", experiment=THINKING, method="forced learned", step=LONGEST)
    lost = results.mean("sampled_accuracy", **at, step=LONGEST) - results.mean(
        "sampled_accuracy", experiment=THINKING, method="forced learned", step=LONGEST
    )
    made = [
        Claim(
            "one model, budgets of 0 and of 8 tokens: accuracy gained",
            0.5,
            gain,
            0.0,
            f"{_PROTOTYPE}: 0.343 to 1.000",
            "at least",
            stated="AIME 2025 rises from 67 to 88 %, LiveCodeBench from 48 to 76 % and GPQA diamond from 80 to 86 % as the budget grows "
            "from 1,024 to 32,768 tokens (read off a plot). What such a model thinks of cannot be shown here: these chains of "
            "additions need one token a step.",
        ),
        Claim("budgets 0 to 8: least rise of accuracy from one to the next, mean over seeds", 0.0, least(rises), 0.01, f"{_PROTOTYPE}: monotone", "at least"),
        Claim("budgets 0 to 8, every seed: how far accuracy lies outside b/8 + (1 - b/8)/5 and the same of b + 1, most", 0.0, most(outside), 0.06, "derived; 0.06 is the prototype's room", "at most"),
        Claim("the same against the prototype's curve, mean over seeds: largest gap", 0.0, most(away), 0.08, _PROTOTYPE),
        Claim("budget 8: accuracy, least", 0.97, least(results.values("accuracy", **at, step=LONGEST)), 0.0, f"{_PROTOTYPE}: 1.0", "at least"),
        Claim("budget 8: tokens used against additions of the chains, largest gap of means", 0.0, most(used), 0.05, f"{_PROTOTYPE}: 4.52 and 4.52, it stops by itself"),
        Claim("loss on the forced answer token: tokens thought under budget 8, sampled, fewer by", 0.5, early - forced, 0.0, "ours: it learns to stop where training was cut", "at least"),
        Claim("the same: sampled accuracy under budget 8 lost", 0.1, lost, 0.0, "ours", "at least"),
    ]  # fmt: skip
    if scale == "paper":
        longer = results.mean("accuracy", experiment=THINKING, method="longer", step=0)
        made.append(Claim("trained three times as long: accuracy without a thought", 0.36, longer, 0.0, "ours: it adds more within the answer than the bound of b + 1 allows for", "at least"))  # fmt: skip
    return made


def figures(results: Results) -> list[NamedFigure]:
    """Draw accuracy against the budget and against the tokens used."""
    from jobs.drawing import panels

    at: dict[str, Any] = {"experiment": THINKING, "method": "budget"}
    budgets, curve = results.curve("accuracy", "step", **at)
    if not budgets:
        return []
    low, high, used = (results.curve(name, "step", **at)[1] for name in ("low", "high", "sampled_used"))
    figure, axes = panels(2)
    axes[0].fill_between(budgets, low, high, color="#56b4e9", alpha=0.3, label="right up to b or b + 1, else a guess")
    axes[0].plot(budgets, curve, "o-", color="#0072b2", label="one model")
    longer = results.curve("accuracy", "step", experiment=THINKING, method="longer")
    if longer[0]:
        axes[0].plot(*longer, "s--", color="#009e73", label="trained longer")
    axes[0].set(xlabel="budget, tokens", ylabel="accuracy", ylim=(0, 1.05))
    axes[0].legend(frameon=False, fontsize="small", loc="lower right")
    axes[1].plot(budgets, used, "o-", color="#0072b2", label="answer token: no loss where forced")
    forced = results.curve("sampled_used", "step", experiment=THINKING, method="forced learned")
    axes[1].plot(*forced, "s--", color="#d55e00", label="loss on it")
    axes[1].axhline(results.mean("additions", **at), color="black", linewidth=0.8, linestyle=":", label="additions")
    axes[1].set(xlabel="budget, tokens", ylabel="tokens thought, sampled, mean")
    axes[1].legend(frameon=False, fontsize="small", loc="lower right")
    words = "A chain of n additions wants n tokens. The budget cuts the thinking, the model then guesses; with enough it stops by itself."
    return [NamedFigure("Accuracy against the thinking budget", words, figure)]
