"""`shiftlab passwords`: how many passwords of a schema that people run in the head may leak before the others are known."""

from __future__ import annotations

import hashlib
import math
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from cluster.errors import InputError
from cluster.schemas import table_schema
from cluster.store import Run
from cluster.trial import Trial
from cluster.worker import Tables
from jobs.command import command
from jobs.launch import Counts, Execution, Work, launch

if TYPE_CHECKING:
    from rich.table import Table

    from lightning_modules.passwords.challenges import Challenge
    from lightning_modules.passwords.pairs import Attack, Pair
    from lightning_modules.passwords.schemas import Schema

EXAMPLES = """
shiftlab passwords --schema mental-hash --sites sites.txt             # how many of these sites' passwords may leak?
shiftlab passwords --schema my_schema.yaml --random 8 --random_keys 10       # a schema of your own, on random letters
shiftlab passwords --schema my_schema.yaml --pairs leaked.csv         # which other sites' passwords follow from those that leaked?
shiftlab passwords --schema pointer-sum-1-1-26 --random 0 --leaks 13 26 39 52 --random_keys 5
"""

NOTICE = (
    "This evaluates schemas and is no password manager: it stores no key and no password, and shows none. "
    "What a solver leaves unsolved within its limit is not secure, only unknown."
)
METHOD = "passwords"

PASSWORD_SITES = table_schema(
    ("trial_id", pa.string()),
    ("site", pa.string()),
    # determined | open | undecided by the leaked pairs; of random keys: known | open when it leaked itself
    ("status", pa.string()),
    ("leaks", pa.int64()),  # other leaks until the response was known; null where it was not
)
SCHEMAS = {"password_sites": PASSWORD_SITES}
KEYS = ("trial_id", "site")


@dataclass
class Passwords(Execution):
    """Evaluate a password schema that people run in the head; this is no password manager.

    Without pairs random keys are drawn, the sites' passwords leak in random orders, and after every leak an attack that knows the
    schema answers the rest. With pairs, passwords that leaked, it says which other sites' follow from them.

    Args:
        schema: word-sum, running-sum, mental-hash, skip-sum, two-pass-NAME, pointer-sum-K1-K2-N, or the .yaml file of one's own.
        sites: text file of challenges, one a line; null takes 60 well-known site names.
        random: letters of random challenges in place of sites; pointer-sum has its own length, whatever is given.
        pairs: CSV file challenge,response of what leaked. It is read in this process only, and not stored.
        normalise: drop everything but letters from the sites' and pairs' challenges, and case.
        random_keys: how many, each a trial.
        leaks: numbers of leaks after which is asked; null takes all up to 40, of schemas that need a solver every fifth.
        solver: for schemas that are not direct.
        limit: of one search: deterministic seconds of cp-sat, conflicts of glucose; null takes 10 or 50,000.
        seed: of keys and challenges.
        run: where results go: a directory, s3://... or gs://...
    """

    schema: str = "mental-hash"
    sites: str | None = None
    random: int | None = None
    pairs: str | None = None
    normalise: bool = False
    random_keys: int = 30
    leaks: list[int] | None = None
    solver: Literal["cp-sat", "glucose"] = "cp-sat"
    limit: float | None = None
    seed: int = 0
    run: str = "runs/passwords"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require({"random_keys": 1, "seed": 0}, above_zero=("limit",))
        if self.random is not None and (self.sites is not None or self.pairs is not None):
            raise InputError("random: goes with neither --sites nor --pairs; leave one out")
        if self.random is not None and self.random < 0:
            raise InputError(f"random: {self.random} is too small; give the number of letters")
        if self.leaks is not None and (not self.leaks or min(self.leaks) < 1):
            raise InputError(f"leaks: {self.leaks} is empty or has a number below 1; give 1 or more")


def run(options: Passwords) -> int:
    """Evaluate; 0 if all was done."""
    print(NOTICE)
    trials: list[Trial] = []
    if options.pairs is not None:
        # What leaked stays in this process.
        options = replace(options, workers=0)

    def prepare() -> Work:
        setup, shared, found = _prepare_pairs(options) if options.pairs is not None else _prepare_keys(options)
        trials.extend(found)

        def listed() -> Iterator[Trial]:
            return iter(trials)

        return Work(len(trials), lambda: listed, setup, shared, schemas=SCHEMAS)

    def summarise(_: Counts) -> None:
        _show(options, trials)

    return launch("shiftlab passwords", options, options.run, prepare, summarise)


def _prepare_keys(options: Passwords) -> tuple[Any, tuple[Any, ...], list[Trial]]:
    """Check schema and sites; a trial a key."""
    from lightning_modules.passwords.catalog import make_schema
    from lightning_modules.passwords.challenges import SITES, RandomSource, SiteSource
    from lightning_modules.passwords.schemas import check_deterministic

    schema = make_schema(options.schema)
    check_deterministic(schema)
    _attack(schema, options)
    if options.random is not None:
        source: Any = RandomSource(options.random or 8)
        name, most = f"random-{options.random}", 40
    else:
        sites: Sequence[Challenge] = SITES if options.sites is None else _sites(options)
        _check(schema, sites)
        source = SiteSource(sites)
        name = Path(options.sites).stem if options.sites is not None else "sites"
        name, most = f"{name}@{_fingerprint(*sites)}", min(40, len(sites) - 1)
    step = 1 if _is_direct(schema) else 5
    at = sorted(set(options.leaks)) if options.leaks is not None else list(range(step, most + 1, step)) or [most]
    about = _about(options) | {"leaks": " ".join(map(str, at))}
    trials = [Trial.create(METHOD, name, (), about, options.seed, {"key": key}) for key in range(options.random_keys)]
    return Keys, (schema, source, at, options), trials


def _prepare_pairs(options: Passwords) -> tuple[Any, tuple[Any, ...], list[Trial]]:
    """Check schema, pairs and sites, and find a key; one trial, made anew by every launch, since nothing of the pairs is stored."""
    from lightning_modules.passwords.catalog import make_schema
    from lightning_modules.passwords.challenges import SITES, normalise
    from lightning_modules.passwords.pairs import read_pairs

    assert options.pairs is not None
    schema = make_schema(options.schema)
    pairs = [(normalise(str(c)) if options.normalise else c, r) for c, r in read_pairs(options.pairs)]
    _check(schema, [challenge for challenge, _ in pairs])
    sites: Sequence[Challenge] = SITES if options.sites is None else _sites(options)
    leaked = {challenge for challenge, _ in pairs}
    asked = [site for site in sites if site not in leaked]
    _check(schema, asked)
    if not asked:
        raise InputError("sites: all of them have leaked; give some that have not")
    attack = _attack(schema, options)
    for challenge, response in pairs:
        attack.observe(challenge, response)
    attack.predict_many(asked[:1])  # says here and now if the pairs contradict each other
    about = _about(options) | {"launch": uuid.uuid4().hex}
    return Leaked, (attack, pairs, asked), [Trial.create(f"{METHOD}/pairs", Path(options.pairs).stem, (), about)]


def _about(options: Passwords) -> dict[str, Any]:
    own = options.schema.endswith((".yaml", ".yml"))
    name = f"{Path(options.schema).stem}@{_fingerprint(Path(options.schema).read_text())}" if own else options.schema
    return {"schema": name, "solver": options.solver, "limit": options.limit}


def _fingerprint(*texts: Any) -> str:
    return hashlib.sha256("\n".join(map(str, texts)).encode()).hexdigest()[:8]


def _is_direct(schema: Schema) -> bool:
    from lightning_modules.passwords.direct import DirectSchema

    return isinstance(schema, DirectSchema)


def _attack(schema: Schema, options: Passwords) -> Attack:
    from lightning_modules.passwords.linear import LinearAttack
    from lightning_modules.passwords.solving import ConstraintAttack

    return LinearAttack(schema) if _is_direct(schema) else ConstraintAttack(schema, options.limit, options.solver)


def _sites(options: Passwords) -> list[Challenge]:
    """Read challenges, one a line."""
    from lightning_modules.passwords.challenges import normalise

    assert options.sites is not None
    try:
        lines = Path(options.sites).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise InputError(f"sites: {options.sites} cannot be read ({reason}); give a text file, a site a line") from None
    names = [line.strip() for line in lines if line.strip()]
    return [normalise(name) if options.normalise else name for name in names]


def _check(schema: Schema, challenges: Sequence[Challenge]) -> None:
    for challenge in challenges:
        schema.codes(challenge)


class Keys:
    """Attacks random keys on a worker."""

    def __init__(self, schema: Schema, source: Any, at: list[int], options: Passwords) -> None:
        self._schema, self._source, self._at, self._options = schema, source, at, options

    def __call__(self, trial: Trial) -> Tables:
        """Attack one key."""
        import json

        from lightning_modules.passwords.challenges import SiteSource
        from lightning_modules.passwords.quality import key_curve

        key = int(json.loads(trial.budget)["key"])
        curve = key_curve(
            self._schema, lambda schema: _attack(schema, self._options), self._source, key, self._at, trial.seed
        )
        named = {"success": curve.success, "wrong": curve.errors, "unsolved": curve.unsolved}
        metrics = [
            (int(m), "", "test", metric, float(values[row]))
            for row, m in enumerate(curve.pairs)
            for metric, values in named.items()
        ]
        sites: list[tuple[Any, ...]] = []
        if isinstance(self._source, SiteSource):
            for number, site in enumerate(curve.tests):
                hits = (curve.right[:, number] & curve.asked[:, number]).nonzero()[0]
                leaks = int(curve.pairs[hits[0]]) if len(hits) else None
                sites.append((str(site), "open" if leaks is None else "known", leaks))
        return {"metrics": metrics, "password_sites": sites}


class Leaked:
    """Says of every site whether the leaked pairs determine its password."""

    def __init__(self, attack: Attack, pairs: Sequence[Pair], asked: Sequence[Challenge]) -> None:
        self._attack, self._pairs, self._asked = attack, pairs, asked

    def __call__(self, trial: Trial) -> Tables:
        """Prove it site by site."""
        found = [self._status(c, a) for c, a in zip(self._asked, self._attack.predict_many(self._asked), strict=True)]
        rows = [(str(c), status, None) for c, status in zip(self._asked, found, strict=True)]
        metrics = [
            (len(self._pairs), "", "test", status, found.count(status) / len(found))
            for status in ("determined", "open", "undecided")
        ]
        return {"metrics": metrics, "password_sites": rows}

    def _status(self, challenge: Challenge, answer: str | None) -> str:
        from lightning_modules.passwords.solving import ConstraintAttack

        if not isinstance(self._attack, ConstraintAttack):
            return "open" if answer is None else "determined"
        known = None if answer is None else self._attack.determined(self._pairs, challenge, answer)
        return {True: "determined", False: "open", None: "undecided"}[known]


def _show(options: Passwords, trials: Sequence[Trial]) -> None:
    """Print what is stored."""
    from rich.console import Console

    console = Console()
    console = console if console.is_terminal else Console(width=120)
    wanted = {trial.trial_id for trial in trials}
    rows = [
        row
        for row in Run(options.run).read_completed("password_sites", PASSWORD_SITES, KEYS).to_pylist()
        if row["trial_id"] in wanted
    ]
    if options.pairs is not None:
        console.print(_pairs_table(options, rows))
        known = sum(row["status"] == "determined" for row in rows)
        print(f"{known} of {len(rows)} other passwords follow from the pairs in {options.pairs}")
        return
    metrics = [row for row in Run(options.run).read("metrics").to_pylist() if row["trial_id"] in wanted]
    curve = {name: _means(metrics, name) for name in ("success", "wrong", "unsolved")}
    console.print(_curve_table(options, curve, len({row["trial_id"] for row in metrics})))
    for p, words in ((0.5, "half"), (0.9, "nine tenths")):
        reached = min((m for m, share in curve["success"].items() if share >= p), default=math.inf)
        print(
            f"{words} of the other passwords are known after {reached:g} leaks"
            if reached < math.inf
            else f"{words} of the other passwords: not reached with {max(curve['success'], default=0)} leaks"
        )
    if any(curve["unsolved"].values()):
        limit = "its default" if options.limit is None else f"{options.limit:g}"
        print(f"some searches ended at the limit ({options.solver}, {limit}): unsolved is not secure")
    if rows:
        console.print(_sites_table(rows))


def _means(metrics: Sequence[dict[str, Any]], name: str) -> dict[int, float]:
    values: dict[int, list[float]] = {}
    for row in metrics:
        if row["metric"] == name:
            values.setdefault(row["step"], []).append(row["value"])
    return {m: math.fsum(found) / len(found) for m, found in sorted(values.items())}


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table()
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    return table


def _curve_table(options: Passwords, curve: dict[str, dict[int, float]], keys: int) -> Table:
    print(f"{options.schema}: share of fresh passwords after so many leaks, mean of {keys} random keys")
    table = _table("leaks", "known", "wrong guesses", "unsolved")
    for m in curve["success"]:
        table.add_row(str(m), *(f"{curve[name][m]:.3f}" for name in ("success", "wrong", "unsolved")))
    return table


def _sites_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The sites that fall first."""
    by_site: dict[str, list[int | None]] = {}
    for row in rows:
        by_site.setdefault(row["site"], []).append(row["leaks"])
    print("the 20 sites whose password was known most often before it leaked itself, and the other leaks it took")
    table = _table("site", "known before", "leaks, median")
    shares = {site: sum(m is not None for m in found) / len(found) for site, found in by_site.items()}
    for site in sorted(shares, key=lambda name: (-shares[name], name))[:20]:
        kept = sorted(m for m in by_site[site] if m is not None)
        table.add_row(site, f"{shares[site]:.0%}", str(kept[len(kept) // 2]) if kept else "")
    return table


def _pairs_table(options: Passwords, rows: Sequence[dict[str, Any]]) -> Table:
    print(f"{options.schema}: what the leaked pairs say about other passwords")
    table = _table("site", "status")
    order = {"determined": 0, "undecided": 1, "open": 2}
    for row in sorted(rows, key=lambda row: (order[row["status"]], row["site"])):
        table.add_row(row["site"], row["status"])
    return table


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return command(Passwords, run, argv, prog="shiftlab passwords", examples=EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())
