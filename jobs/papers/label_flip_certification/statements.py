"""What is claimed: of the paper, of those who quote it, and of the analysis."""

from __future__ import annotations

import math
from typing import Any

from jobs.claims import Claim, Relation, Results
from jobs.papers.label_flip_certification.plans import (
    BRUTE_FORCE,
    HEAVY,
    INVARIANCES,
    MONTE_CARLO,
    NO_DEFENCE,
    QS,
    SCALES,
    SEARCHES,
    SMALL_ATTACKS,
    SMALL_PARTS,
    SMALL_RIDGE,
    SPARSE,
    TASKS,
    THRESHOLDS,
    UNDEFENDED,
    WHITE_BOX,
    Setting,
    Task,
    greedy,
    ridge,
    votes,
)
from jobs.papers.label_flip_certification.tally import Tally

DERIVED, OURS = "derived", "ours, prototype"
DPA = "Levine & Feizi, arXiv 2006.14768"
QUOTED = f"the paper, as quoted by {DPA}"

FLIPS = {
    (0.05, 2): ((1, 4, 21), (3, 7, 42)),
    (0.1, 2): ((2, 6, 32), (4, 11, 63)),
    (0.3, 2): ((14, 31, 167), (27, 60, 329)),
    (0.45, 2): ((252, 539, None), (453, 1008, None)),
    (0.05, 10): ((None, 2, 11), (None, 4, 23)),
    (0.0125, 10): ((None, 1, 8), (None, 3, 17)),
}
"""By q and K: closed and tight flips at B = 1e-5, 1e-10, 1e-50."""

MEDIANS = {
    SPARSE: (0.960, 23, {0.05: (6, 12), 0.1: (5, 11), 0.3: (2, 4)}),
    HEAVY: (0.940, 119, {0.05: (45, 89), 0.1: (42, 83), 0.3: (34, 66), 0.45: (7, 12)}),
}
"""Ones and sevens by penalty: accuracy, exact median, and by q closed and tight medians."""

TEN_MEDIANS = {
    SPARSE: (0.857, 23, {0.0125: (8, 17), 0.05: (6, 12)}),
    HEAVY: (0.810, 32, {0.0125: (12, 24)}),
}
"""The same of ten digits."""

VOTES = {25: (0.950, 12, 43), 100: (0.945, 49, 79), 200: (0.940, 96, 96), 400: (0.935, 170, 170)}
"""Ones and sevens by number of parts: accuracy, median by votes, median by their costs."""

TEN_VOTES = {50: (0.823, 17), 200: (0.803, 32), 400: (0.763, 36)}


class _Claims(list[Claim]):
    """The claims so far."""

    def add(
        self, name: str, relation: Relation, reference: float, measured: float, source: str, tolerance: float = 0.0
    ) -> None:
        self.append(Claim(name, reference, measured, tolerance, source, relation))


def small_claims(results: Results) -> list[Claim]:
    """State the claims of the small scale."""
    found, tally = _Claims(), Tally(results)
    _of_thresholds(found, results)
    _of_searches(found, results)
    _of_two_digits(found, tally)
    _of_attacks(found, tally)
    _of_all_data(found, tally)
    _of_votes(found, tally)
    _of_ten_digits(found, tally)
    where: dict[str, Any] = {"experiment": MONTE_CARLO}
    below = results.mean("below", **where)
    name = "20,000 noisy label vectors, q = .3, 20 points: bounds below the frequency by more than 4 standard errors"
    found.add(name, "at most", 0, below, DERIVED)
    for metric, relation, reference in (("least_ratio", "at least", 2), ("largest_ratio", "at most", 6)):
        name = f"The same, bound over frequency, the three least certain points: {metric.partition('_')[0]}"
        found.add(name, relation, reference, results.mean(metric, **where), OURS)  # type: ignore[arg-type]
    changes = {
        "swapped": "when the classes swap names",
        "scaled": "when features are scaled by 8 and lam by 64",
        "alone": "when each test point is certified alone",
    }
    for metric, what in changes.items():
        changed = results.mean(metric, experiment=INVARIANCES)
        found.add(f"1/7, lam 100, q .1: certificates that change {what}", "at most", 0, changed, DERIVED)
    return found


def _of_thresholds(found: _Claims, results: Results) -> None:
    where: dict[str, Any] = {"experiment": THRESHOLDS}

    def flips(kind: str, q: float, classes: int, exponent: int) -> float:
        return results.mean(kind, **where, environment=f"q={q:g}, K={classes}", step=exponent)

    value = results.mean("before_floor", **where)
    found.add("q = .3, B = .01: closed form before the floor", "equals", 4.763564, value, DERIVED, 1e-6)
    found.add("q = .3, B = .01: closed form", "equals", 4, flips("closed", 0.3, 2, 2), DERIVED)
    found.add("q = .3, B = .01: tight", "equals", 7, flips("tight", 0.3, 2, 2), OURS)
    for (q, classes), both in FLIPS.items():
        for kind, numbers in zip(("closed", "tight"), both, strict=True):
            known = {e: number for e, number in zip((5, 10, 50), numbers, strict=True) if number is not None}
            off = math.fsum(abs(flips(kind, q, classes, e) - number) for e, number in known.items())
            at = ", ".join(f"{number} at 1e-{e}" for e, number in known.items())
            name = f"K = {classes}, q = {q:g}: {kind} flips from B ({at}), off by"
            found.add(name, "equals", 0, off, DERIVED if kind == "closed" else OURS)
    below = results.mean("np_below_kl", **where)
    found.add("Tight below closed form, 3,000 pairs of B and q", "at most", 0, below, DERIVED)
    least, largest = (results.mean(f"{which}_ratio", **where) for which in ("least", "largest"))
    found.add("Tight over closed form at B = 1e-50: least", "at least", 1.9, least, OURS)
    found.add("Tight over closed form at B = 1e-50: largest", "at most", 2.15, largest, OURS)
    sure = results.mean("sure_closed", **where)
    found.add("A point with ln B = -2000, q = .05: closed form", "equals", 377, sure, DERIVED)
    tight = results.mean("sure_tight", **where)
    found.add("A point with ln B = -2000, q = .05: tight, at most -ln B / D", "at most", 754, tight, DERIVED)


def _of_searches(found: _Claims, results: Results) -> None:
    said = {
        "Chernoff bound": "bounds below the probability",
        "certificates": "certificates above the true radius",
        "exact": "exact certificates that differ from the search",
        "ensembles": "SS-DPA and white box above the truth",
    }
    for method, values in SEARCHES:
        where: dict[str, Any] = {"experiment": BRUTE_FORCE, "method": method, **values}
        rate = f", q = {values['q']:g}" if "q" in values else ""
        name = f"All label vectors, K = {values['classes']}, n = {values['n']}{rate}, {values['points']} points: {said[method]}"
        found.add(name, "at most", 0, results.mean("violations", **where), DERIVED)
        if method == "ensembles" and values["classes"] == 2:
            name = "The same, two classes: white box that is not the truth"
            found.add(name, "at most", 0, results.mean("differ", **where), DERIVED)


def _of_two_digits(found: _Claims, tally: Tally) -> None:
    for lam, (accuracy, exact, by_q) in MEDIANS.items():
        setting, name = ridge("MNIST17", lam=lam), f"1/7, lam {lam:g}"
        found.add(f"{name}: accuracy", "equals", accuracy, tally.accuracy(setting), OURS, 0.0005)
        _medians(found, tally, setting, name, exact, by_q)
        if lam == SPARSE:
            share = tally.share("np", setting, 0.45, 0)
            found.add(f"{name}, q = 0.45: share of points with any certificate", "equals", 0, share, OURS)
        first, *others = (tally.median("np", setting, q) for q in QS)
        gap = first - max(others)
        found.add(f"{name}: q = .05 certifies further than .1, .3 and .45 (tight medians)", "at least", 0, gap, OURS)


def _medians(
    found: _Claims,
    tally: Tally,
    setting: Setting,
    name: str,
    exact: float,
    by_q: dict[float, tuple[int, int]],
) -> None:
    measured = tally.median("exact", setting)
    found.add(f"{name}: plain ridge, exact median of flips", "equals", exact, measured, OURS, 1)
    for q, both in by_q.items():
        for metric, kind, reference in zip(("kl", "np"), ("closed form", "tight"), both, strict=True):
            measured = tally.median(metric, setting, q)
            found.add(f"{name}, q = {q:g}: {kind}, median", "equals", reference, measured, OURS, 1)


def _of_attacks(found: _Claims, tally: Tally) -> None:
    for setting in SMALL_ATTACKS:
        name = f"1/7, lam {setting.lam:g}, greedy attack, rule trained anew"
        missed = tally.points(setting) - tally.total("turned", setting)
        found.add(f"{name}: predictions not turned by exact + 1 flips", "at most", 0, missed, DERIVED)
        found.add(f"{name}: turned by the exact number", "at most", 0, tally.total("fallen", setting), DERIVED)
        differ = tally.total("differ", setting)
        found.add(f"{name}: (r, point) where attack and certificate disagree", "at most", 0, differ, DERIVED)
    size = tally.first_below("attacked", greedy(UNDEFENDED), 0.01)
    setting = ridge("MNIST17", lam=HEAVY)
    for metric, kind in (("np", "tight"), ("kl", "closed form")):
        kept = math.nan if size is None else tally.share(metric, setting, 0.05, size)
        name = f"1/7, an attack that takes the undefended classifier below 1%: smoothed, lam 1e4, q = .05 keeps, {kind}"
        found.add(name, "at least", 0.813, kept, "paper, abstract: 81.3% on Dogfish; here other data")
    kept = math.nan if size is None else tally.share("exact", setting, None, size)
    smoothed = math.nan if size is None else tally.share("np", setting, 0.05, size)
    name = "The same attack: plain ridge, lam 1e4, exact, above the smoothed rule"
    found.add(name, "at least", 0, kept - smoothed, DERIVED)


def _of_all_data(found: _Claims, tally: Tally) -> None:
    pairs = [(setting, q) for setting, (qs, _) in SMALL_RIDGE.items() for q in qs]
    _violations(found, tally, pairs, "All data and features")
    ratios = [tally.total("largest_ratio", ridge("MNIST17", lam=lam), q) for lam in MEDIANS for q in QS]
    found.add("1/7: largest tight flips over exact ones", "equals", 0.82, _max(ratios), OURS, 0.005)


def _violations(
    found: _Claims, tally: Tally, pairs: list[tuple[Setting, float]], name: str, source: str = DERIVED
) -> None:
    said = {
        "too_certain": "-ln B above (exact + 1) D",
        "kl_above_half": "closed form above (exact + 1)/2",
        "np_above_exact": "tight above exact",
        "np_below_kl": "tight below closed form",
    }
    for metric, what in said.items():
        found.add(f"{name}: points with {what}", "at most", 0, tally.totals(metric, pairs), source)


def _of_votes(found: _Claims, tally: Tally) -> None:
    for parts, (accuracy, counted, costed) in VOTES.items():
        setting, white = votes("MNIST17", parts, 100.0), votes("MNIST17", parts, 100.0, method=WHITE_BOX)
        name = f"1/7, SS-DPA, {parts} parts"
        found.add(f"{name}: accuracy", "equals", accuracy, tally.accuracy(setting), OURS, 0.0005)
        found.add(f"{name}: median of flips", "equals", counted, tally.median("votes", setting), OURS, 1)
        found.add(f"{name}, white box: median of flips", "equals", costed, tally.median("votes", white), OURS, 1)
    below = tally.totals("below_votes", [(s, None) for s in SMALL_PARTS if s.method == WHITE_BOX])
    found.add("1/7, breast cancer and ten digits (50 parts): white box below votes", "at most", 0, below, DERIVED)
    order = f"{DPA} (order); size ours"
    many = tally.median("votes", votes("MNIST17", 400, 100.0))
    smoothed = _max([tally.median("np", ridge("MNIST17", lam=SPARSE), q) for q in QS])
    found.add("1/7, lam 100: SS-DPA, 400 parts, above smoothing (best q)", "equals", 158, many - smoothed, order, 2)
    order = f"{DPA} (order); other data"
    many = tally.median("votes", votes("BreastCancer", 200, 10.0, "raw"))
    smoothed = _max([tally.median("np", ridge("BreastCancer", "raw", 10.0), q) for q in QS[:3]])
    found.add(
        "Breast cancer, lam 10: SS-DPA, 200 parts, above smoothing (best q)", "at least", 0, many - smoothed, order
    )


def _of_ten_digits(found: _Claims, tally: Tally) -> None:
    for lam, (accuracy, exact, by_q) in TEN_MEDIANS.items():
        setting, name = ridge("MNIST", lam=lam), f"Ten digits, lam {lam:g}"
        found.add(f"{name}: accuracy", "equals", accuracy, tally.accuracy(setting), OURS, 0.0005)
        _medians(found, tally, setting, name, exact, by_q)
    for parts, (accuracy, median) in TEN_VOTES.items():
        setting, name = votes("MNIST", parts, 100.0), f"Ten digits, SS-DPA, {parts} parts"
        found.add(f"{name}: accuracy", "equals", accuracy, tally.accuracy(setting), OURS, 0.0005)
        found.add(f"{name}: median of flips", "equals", median, tally.median("votes", setting), OURS, 1)


# The paper's sizes


def paper_claims(results: Results) -> list[Claim]:
    """State the claims of the paper's tasks, for those whose cells were run."""
    found, tally = _Claims(), Tally(results)
    for data, task in TASKS.items():
        defended = [(ridge(data, task.features, lam_scale=scale), q) for scale in SCALES for q in task.qs]
        points = max((tally.points(setting) for setting, _ in defended), default=0)
        if points:
            name = f"{task.title} ({points} points)"
            _violations(found, tally, defended, name)
            best, q = max(defended, key=lambda pair: _known(tally.median("np", *pair)))
            gap = tally.median("exact", best) - tally.median("np", best, q)
            found.add(f"{name}: plain ridge, exact median, above the smoothed rule's best", "at least", 0, gap, DERIVED)
            if data in _QUOTES:
                _QUOTES[data](found, tally, name, defended)
        for parts in task.parts:
            _of_parts(found, tally, data, task, parts)
    return found


def _two_thousand(found: _Claims, tally: Tally, name: str, defended: list[tuple[Setting, float]]) -> None:
    best, q = max(defended, key=lambda pair: _known(tally.share("kl", pair[0], pair[1], 2000)))
    kept, clean = (tally.share("kl", best, q, r) for r in (2000, 0))
    found.add(f"{name}: closed form, certified accuracy at 2000 flips, best setting", "at most", 0.70, kept, QUOTED)
    found.add(f"{name}: clean accuracy of that setting", "equals", 0.945, clean, QUOTED, 0.02)


def _below_two_hundred(found: _Claims, tally: Tally, name: str, defended: list[tuple[Setting, float]]) -> None:
    best, q = max(defended, key=lambda pair: _known(tally.median("kl", *pair)))
    median, clean = tally.median("kl", best, q), tally.share("kl", best, q, 0)
    found.add(f"{name}: closed form, median, best setting", "at most", 200, median, QUOTED)
    found.add(f"{name}: clean accuracy of that setting", "at most", 0.60, clean, QUOTED)


def _near_175(found: _Claims, tally: Tally, name: str, defended: list[tuple[Setting, float]]) -> None:
    median = _max([tally.median("kl", *pair) for pair in defended])
    found.add(f"{name}: closed form, median, best setting", "equals", 175, median, QUOTED, 45)


def _headline(found: _Claims, tally: Tally, name: str, defended: list[tuple[Setting, float]]) -> None:
    size = tally.first_below("exact", ridge("dogfish.npz", "raw", lam_scale=NO_DEFENCE), 0.01)
    kept = [math.nan if size is None else tally.share("np", setting, q, size) for setting, q in defended]
    name = f"{name}: kept, best setting, where the attack takes the undefended classifier below 1%"
    found.add(name, "at least", 0.813, _max(kept), "paper, abstract", 0.03)


_QUOTES = {
    "mnist17.npz": _two_thousand,
    "mnist.npz": _below_two_hundred,
    "cifar10.npz": _near_175,
    "dogfish.npz": _headline,
}

_PARTS = {
    ("mnist.npz", 1200): (0.956, 485),
    ("mnist.npz", 3000): (0.939, 647),
    ("cifar10.npz", 50): (0.909, 25),
    ("cifar10.npz", 250): (0.903, 124),
    ("cifar10.npz", 1000): (0.890, 392),
}
"""Clean accuracy and median of SS-DPA with its authors' learners."""


def _of_parts(found: _Claims, tally: Tally, data: str, task: Task, parts: int) -> None:
    setting = votes(data, parts, features=task.features)
    points = tally.points(setting)
    if not points:
        return
    name, source = f"{task.title} ({points} points), SS-DPA, {parts} parts", f"{DPA} (neural learners; here ridge)"
    if data == "mnist17.npz":
        kept = tally.share("votes", setting, None, 5952)
        found.add(f"{name}: certified accuracy at 5952 flips", "equals", 0.955, kept, source, 0.02)
        return
    clean, median = _PARTS[data, parts]
    found.add(f"{name}: clean accuracy", "equals", clean, tally.accuracy(setting), source, 0.02)
    found.add(f"{name}: median of flips", "equals", median, tally.median("votes", setting), source, 0.1 * median)


def _max(values: list[float]) -> float:
    """The largest; NaN if any is."""
    return math.nan if any(map(math.isnan, values)) else max(values)


def _known(value: float) -> float:
    return -math.inf if math.isnan(value) else value
