"""The claims."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from jobs.claims import Claim, Results, Scale, least, mean, most
from jobs.papers.rep4ex.names import (
    ALPHA,
    ASSUMPTIONS,
    BENDS,
    CONFOUNDING,
    CURVE,
    GAMMAS,
    HIDDEN,
    MLP,
    MMR,
    NO_CONTROL,
    NOISES,
    OLS,
    ORACLE,
    SPRITES,
    STATISTIC,
    STRENGTHS,
    STUDY,
    TWO_STAGE,
    VANILLA,
    VARIANTS,
)

_PROTOTYPE = "ours, reference prototype"
_MEMORY = "paper, from memory: no table of numbers could be confirmed; threshold ours"


def claims(results: Results, scale: Scale) -> list[Claim]:
    """State the claims; measured over whatever seeds the scale has."""
    return [
        *_foundations(results),
        *_curve(results),
        *_supports(results),
        *_strengths(results),
        *_plane(results),
        *_variants(results),
        *_study(results),
        *_confounding(results),
        *_assumptions(results),
        *_sprites(results),
    ]


def _foundations(results: Results) -> list[Claim]:
    def null(name: str) -> float:
        return results.mean(name, experiment=STATISTIC)

    def stage(name: str) -> float:
        return results.mean(name, experiment=TWO_STAGE)

    return [
        Claim("V-statistic of latents independent of actions: mean less 2 tr(RKR) / n^2, in standard errors", 0.0, null("errors"), 3.0, "derived"),
        Claim("U-statistic of such latents: share of negative values", 0.94, null("negative"), 0.15, _PROTOTYPE),
        Claim("linear second stage: largest distance of its coefficients from two-stage least squares", 1e-10, stage("to two stages"), 0.0, "derived", "at most"),
        Claim("the same: largest error of a coefficient, truth (1, -2), 500 rows", 0.009, stage("error"), 0.1, _PROTOTYPE),
        Claim("the same: largest error of plain least squares", 0.212, stage("plain error"), 0.1, _PROTOTYPE),
    ]  # fmt: skip


def _curve(results: Results) -> list[Claim]:
    at = {"experiment": CURVE, "gamma": GAMMAS[-1]}

    def outside(name: str, metric: str = "outside") -> list[float]:
        return results.values(metric, **at, environment=name)

    words = "one action, gamma 1.2: squared error outside the support"
    mmr, mlp = mean(outside(MMR)), mean(outside(MLP))
    both = "outside, networks"
    return [
        Claim("one action: variance of the true curve on [-2.5, 2.5]", 1.20, results.mean("variance", **at), 0.03, "derived"),
        Claim("one action, gamma 1.2, true Z: squared error inside the support, largest", 0.02, most(results.values("inside", **at, environment=ORACLE)), 0.0, "derived; threshold ours", "at most"),
        Claim(f"{words}, true Z", 0.011, mean(outside(ORACLE)), 0.03, _PROTOTYPE),
        Claim(f"{words}, AE-MMR, median", 0.25, _median(outside(MMR)), 0.0, _PROTOTYPE + ": 0.065 over six seeds", "at most"),
        Claim(f"{words}, MLP on A", 0.80, mlp, 0.3, _PROTOTYPE),
        Claim(f"{words}, OLS on A", 2.4, mean(outside(OLS)), 0.6, _PROTOTYPE),
        Claim(f"{words}, no control", 8.0, mean(outside(NO_CONTROL)), 1.0, _PROTOTYPE),
        Claim(f"{words}, AE-Vanilla", 0.5, mean(outside(VANILLA)), 0.0, _PROTOTYPE + ": 1.0 and 6.7", "at least"),
        Claim("the same: AE-MMR over MLP on A", 0.5, _ratio(mmr, mlp), 0.0, _MEMORY, "at most"),
        Claim("the same: AE-MMR over AE-Vanilla", 0.5, _ratio(mmr, mean(outside(VANILLA))), 0.0, _PROTOTYPE, "at most"),
        Claim(f"{words}, true Z, two networks in the second stage", 0.003, mean(outside(ORACLE, both)), 0.02, _PROTOTYPE),
        Claim(f"{words}, AE-MMR, two networks, median", 0.05, _median(outside(MMR, both)), 0.05, _PROTOTYPE),
        Claim("one action, true Z: squared error of E[Y | X, do(A = 2)], largest", 0.3, most(results.values("conditional", **at)), 0.0, _PROTOTYPE + ": 0.06 to 0.10", "at most"),
        Claim("one action: reconstruction error of AE-MMR, largest", 0.01, most(results.values("reconstruction", **at, environment=MMR)), 0.0, "ours: more means a folded encoder", "at most"),
    ]  # fmt: skip


def _supports(results: Results) -> list[Claim]:
    made = []
    for gamma, figures in zip(GAMMAS, ((0.09, 0.18, 1.05), (0.02, 0.09, 0.76)), strict=False):
        for name, figure in zip((ORACLE, MMR, MLP), figures, strict=True):
            value = results.mean("outside", experiment=CURVE, gamma=gamma, environment=name, seed=0)
            words = f"one action, gamma {gamma:g}, seed 0: squared error outside the support, {name}"
            made.append(Claim(words, figure, value, 0.25 if name == MLP else 0.15, _PROTOTYPE))
    for name in (ORACLE, MMR, MLP):
        small, large = (
            results.mean("outside", experiment=CURVE, gamma=g, environment=name, seed=0)
            for g in (GAMMAS[0], GAMMAS[-1])
        )
        words = f"one action, seed 0, {name}: error at gamma 1.2 over that at 0.2"
        made.append(Claim(words, 1.0, _ratio(large, small), 0.0, _MEMORY, "at most"))
    return made


def _strengths(results: Results) -> list[Claim]:
    def score(name: str, alpha: float, **more: int) -> list[float]:
        return results.values(name, experiment=ALPHA, environment=f"alpha={alpha:g}", **more)

    made = []
    for alpha, figure, tolerance in zip(STRENGTHS, (0.52, 0.88, 0.98, 0.996), (0.3, 0.08, 0.02, 0.01), strict=True):
        found = mean(score(f"R2 {MMR}", alpha, seed=0))
        made.append(Claim(f"two actions, alpha {alpha:g}, seed 0: R^2 of AE-MMR", figure, found, tolerance, _PROTOTYPE))
        found = mean(score(f"R2 {VANILLA}", alpha, seed=0))
        made.append(Claim(f"two actions, alpha {alpha:g}, seed 0: R^2 of AE-Vanilla", 0.785, found, 0.06, _PROTOTYPE))
    strong, none = 2.0, 0.0
    gaps = [a - b for a, b in zip(score(f"R2 {MMR}", strong), score(f"R2 {VANILLA}", strong), strict=False)]
    gain = [a - b for a, b in zip(score(f"R2 {MMR}", none), score(f"R2 {VANILLA}", none), strict=False)]
    rises = [mean(score(f"R2 {MMR}", alpha)) for alpha in STRENGTHS]
    steps = [b - a for a, b in zip(rises, rises[1:], strict=False)]
    return [
        *made,
        Claim("two actions, alpha 2: R^2 of AE-MMR, least over seeds", 0.96, least(score(f"R2 {MMR}", strong)), 0.0, _PROTOTYPE + ": 0.978 to 0.991", "at least"),
        Claim("two actions, alpha 2: R^2 of AE-MMR less AE-Vanilla's, least over seeds", 0.1, least(gaps), 0.0, _PROTOTYPE, "at least"),
        Claim("two actions, alpha 0: R^2 of AE-MMR less AE-Vanilla's", 0.05, mean(gain), 0.0, "derived: nothing identifies", "at most"),
        Claim("two actions: R^2 of AE-MMR grows with alpha, least step", 0.0, least(steps), 0.0, _MEMORY, "at least"),
        Claim("two actions, alpha 2, fresh rows: linearity ratio of the true Z", 1.07, mean(score(f"ratio {ORACLE}", strong, seed=0)), 0.2, _PROTOTYPE),
        Claim("the same: of AE-MMR, largest", 3.0, most(score(f"ratio {MMR}", strong)), 0.0, _PROTOTYPE + ": 1.28", "at most"),
        Claim("the same: of AE-Vanilla, least", 5.0, least(score(f"ratio {VANILLA}", strong)), 0.0, _PROTOTYPE + ": 11.1", "at least"),
        Claim("alpha 0: linearity ratio of AE-Vanilla, which says nothing there", 3.0, most(score(f"ratio {VANILLA}", none)), 0.0, _PROTOTYPE + ": 0.8", "at most"),
    ]  # fmt: skip


def _plane(results: Results) -> list[Claim]:
    def outside(name: str, **more: int) -> list[float]:
        return results.values(name, experiment=ALPHA, environment="alpha=2", **more)

    words = "two actions, alpha 2, seed 1, 1 < max |a*| <= 1.75: squared error, share of the variance,"
    variance, made = mean(outside("variance", seed=1)), []
    for name, figure in ((ORACLE, 0.074), (MMR, 0.147), (MLP, 0.77)):
        share = _ratio(mean(outside(f"outside {name}", seed=1)), variance)
        made.append(Claim(f"{words} {name}", figure, share, 0.3, _PROTOTYPE + ", another outcome"))
    mmr = mean(outside(f"outside {MMR}", seed=1))
    for name in (OLS, NO_CONTROL, VANILLA):
        times = _ratio(mean(outside(f"outside {name}", seed=1)), mmr)
        made.append(Claim(f"the same: {name} over AE-MMR", 2.0, times, 0.0, _PROTOTYPE, "at least"))
    mlp = mean(outside(f"outside {MLP}", seed=1))
    made.append(
        Claim("two actions, alpha 2, seed 1: AE-MMR over MLP on A", 0.5, _ratio(mmr, mlp), 0.0, _MEMORY, "at most")
    )
    pairs = zip(outside(f"outside {MMR}"), outside(f"outside {MLP}"), strict=False)
    ratios = [_ratio(a, b) for a, b in pairs]
    made.append(Claim("the same, median over seeds", 0.5, _median(ratios), 0.0, _MEMORY, "at most"))
    return made


def _variants(results: Results) -> list[Claim]:
    figures = {"wide kernel": 0.93, "not whitened": 0.92, "u-statistic": 0.92}
    default = results.mean(f"R2 {MMR}", experiment=ALPHA, environment="alpha=2", seed=0)
    made = []
    for name, figure in figures.items():
        value = results.mean("R2", experiment=VARIANTS, method=name, seed=0)
        made.append(Claim(f"two actions, alpha 2, seed 0: R^2 with a variant, {name}", figure, value, 0.05, _PROTOTYPE))
        made.append(
            Claim(f"the same: what it loses against the default, {name}", 0.0, default - value, 0.0, _PROTOTYPE, "at least")
        )  # fmt: skip
    spread = results.mean("spread", experiment=VARIANTS, method="not whitened", seed=0)
    made.append(
        Claim("the same, not whitened: standard deviation of the latents", 0.1, spread, 0.1, _PROTOTYPE + ": they shrink")
    )  # fmt: skip
    return made


def _study(results: Results) -> list[Claim]:
    regrets = []
    for seed in sorted({row["seed"] for row in results.rows(experiment=STUDY)}):
        scores = {r["environment"]: r["value"] for r in results.rows(experiment=STUDY, seed=seed, metric="R2")}
        objectives = {
            r["environment"]: r["value"] for r in results.rows(experiment=STUDY, seed=seed, metric="objective")
        }
        chosen = min(objectives, key=lambda place: objectives[place])
        regrets.append(max(scores.values()) - scores[chosen])
    words = (
        "lambda and bandwidth chosen by held-out reconstruction + 30 Q: R^2 lost against the best of the grid, largest"
    )
    return [Claim(words, 0.03, most(regrets), 0.0, "ours", "at most")]


def _confounding(results: Results) -> list[Claim]:
    def outside(name: str, strength: float) -> float:
        return results.mean(f"outside {name}", experiment=CONFOUNDING, environment=f"confounding={strength:g}")

    errors = [outside(NO_CONTROL, strength) for strength in HIDDEN]
    steps = [b - a for a, b in zip(errors, errors[1:], strict=False)]
    gap = abs(outside(NO_CONTROL, 0.0) - outside(MMR, 0.0))
    return [
        Claim("one action: without control the error grows with confounding, least step", 0.0, least(steps), 0.0, "derived", "at least"),
        Claim("one action, no confounding: with and without control differ by", 0.05, gap, 0.0, "derived; threshold ours", "at most"),
        Claim("one action, confounding 2: squared error outside the support, AE-MMR", 0.3, outside(MMR, 2.0), 0.0, "ours", "at most"),
    ]  # fmt: skip


def _assumptions(results: Results) -> list[Claim]:
    def worth(metric: str, place: str) -> float:
        return results.mean(metric, experiment=ASSUMPTIONS, environment=place)

    made = []
    for metric, sign, words in (("R2", -1, "R^2 lost"), ("outside", 1, "share of the variance added to the error")):
        for name, values in (("noise_x", NOISES), ("nonlinearity", BENDS)):
            place = f"{name}={values[-1]:g}"
            change = sign * (worth(metric, place) - worth(metric, "none"))
            text = f"two actions, alpha 2, an assumption broken, {name} {values[-1]:g}: {words}"
            made.append(Claim(text, 0.0, change, 0.0, "ours: it must not help", "at least"))
    return made


def _sprites(results: Results) -> list[Claim]:
    def found(metric: str, name: str) -> list[float]:
        return results.values(metric, experiment=SPRITES, environment=name)

    gaps = [a - b for a, b in zip(found("R2", MMR), found("R2", VANILLA), strict=True)]
    words = "a digit of MNIST at place Z, two actions, alpha 2"
    return [
        Claim(f"{words}: R^2 of AE-MMR, least over seeds", 0.98, least(found("R2", MMR)), 0.0, "ours", "at least"),
        Claim("the same: R^2 of AE-MMR less AE-Vanilla's, least over seeds", 0.0, least(gaps), 0.0, "ours", "at least"),
        Claim("the same: linearity ratio of AE-MMR, largest", 3.0, most(found("ratio", MMR)), 0.0, "ours", "at most"),
        Claim("the same: reconstruction error of AE-MMR, largest", 0.01, most(found("reconstruction", MMR)), 0.0, "ours: more means a folded encoder", "at most"),
    ]  # fmt: skip


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


def _ratio(above: float, below: float) -> float:
    return above / below if below else math.nan
