"""Builds what `shiftlab tune` runs: space, studies and their plan, from the command's options."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import optuna
import yaml

from cluster.errors import InputError
from cluster.store import Run
from cluster.trial import Scalar, derive_seed
from jobs.best import best_trial, write_best
from jobs.launch import Counts, Work
from jobs.objectives import ORACLE
from jobs.search_plan import SearchPlan, StoredTrials
from jobs.subjects import Subject, find_subject
from tuning.convergence import Convergence
from tuning.samplers import INDEPENDENT, build_pruner, build_sampler
from tuning.search import Ended, Search
from tuning.search_space import Space, build_space
from tuning.storage import StudyStorage, open_storage
from tuning.study import open_study
from tuning.tables import SUGGESTIONS

if TYPE_CHECKING:
    from jobs.tune import Tune

_ANSWER_SECONDS = 60.0


class Tuner:
    """Builds the studies of a launch."""

    def __init__(self, options: Tune) -> None:
        self.options = options

    def prepare(self) -> Work:
        """Check everything that can be checked before anything starts, and load the data."""
        o = self.options
        wait = _ANSWER_SECONDS if o.pruning == "wait" else 0.0
        self.subject = find_subject(o.method, o.dataset, o.image_size, wait)
        self.settings = self.subject.settings(o.held_out)
        self.objective = self.subject.objective(o.objective)
        if ORACLE in o.objective and () in self.settings:
            raise InputError("objective: an oracle reads the held-out environment, and --held_out none has none")
        self.space = _space(o, self.subject, min(len(self.subject.environments) - len(s) for s in self.settings))
        self.points = _points(o, self.space, self.subject)
        every = min(o.checkpoint_every or self.subject.checkpoint_every, o.steps)
        self.budget = {"steps": o.steps, "checkpoint_every": every}
        self._build(0)  # refuses what cannot be, before anything starts
        return Work(
            total=o.trials * len(self.settings),
            make_plan=None,
            setup=self.subject.setup,
            shared=self.subject.shared,
            schemas={"suggestions": SUGGESTIONS},
            make_search=self.plan,
            acknowledge=bool(wait),
        )

    def plan(self, run: Run) -> SearchPlan:
        """Open the storage and the studies, and take up what earlier launches left."""
        storage = open_storage(self.options.storage, run.location)
        stored, rows = StoredTrials(run), run.read("suggestions", SUGGESTIONS).to_pylist()
        self.searches = [self._search(setting, storage, stored, rows) for setting in self.settings]
        for search in self.searches:
            if text := str(search.recovered):
                print(f"{search.study.study_name}: {text}", file=sys.stderr)
        return SearchPlan(self.searches, storage, self.subject.shape, self._pack)

    def summarise(self, _: Counts) -> None:
        """Show the results, and write the best configurations."""
        from jobs.report import write_report

        write_report(self.options.run)
        for setting, search in zip(self.settings, self.searches, strict=True):
            if search.converged:
                print(f"{search.study.study_name}: converged after {search.finished} trials")
            if search.completed:
                parameters = search.parameters(best_trial(search.study))
                trial = self.subject.trial(parameters, setting, self.options.seed, self.budget)
                path = write_best(self.options, setting, len(self.settings), search.study, trial)
                print(f"best configuration: {path}")

    def _search(
        self,
        setting: tuple[str, ...],
        storage: StudyStorage,
        stored: Callable[[str], Ended | None],
        rows: list[dict[str, Any]],
    ) -> Search:
        o, subject, objective = self.options, self.subject, self.objective
        name = o.study or f"{subject.method} on {subject.title.partition('(')[0]}"
        if setting and (o.study is None or len(self.settings) > 1):
            name += f" without {', '.join(setting)}"
        about = {
            "method": subject.method,
            "dataset": subject.dataset,
            "held out": ", ".join(setting) or "nothing",
            "objective": ", ".join(objective.names),
            "seeds": o.seeds,
            "first seed": o.seed,
            **self.budget,
        }
        study = open_study(name, storage.optuna, objective.directions, self.space, about)
        known = len(study.get_trials(deepcopy=False))
        # Seeded by how far the study is: a study that goes on does not draw the same points again.
        study.sampler, study.pruner, convergence = self._build(derive_seed("sampler", name, o.seed, known))
        trials = o.trials
        if isinstance(study.sampler, optuna.samplers.GridSampler):
            trials = min(trials, math.prod(map(len, self.space.grid().values())))
        return Search(
            study,
            self.space,
            objective,
            lambda values, replicate: subject.trial(values, setting, o.seed + replicate, self.budget),
            trials,
            seeds=o.seeds,
            steps=o.steps,
            pairwise=isinstance(study.pruner, optuna.pruners.WilcoxonPruner),
            stored=stored,
            rows=[row for row in rows if row["study"] == name],
            convergence=convergence,
            enqueue=self.points,
            retry_failed=o.retry_failed,
        )

    def _build(self, seed: int) -> tuple[optuna.samplers.BaseSampler, optuna.pruners.BasePruner, Convergence | None]:
        """Build sampler, pruner and terminator.

        Raises:
            InputError: for names and arguments that they do not have, and for what they cannot serve.
        """
        o, count = self.options, len(self.objective.names)
        sampler = build_sampler(o.sampler, o.sampler_args, self.space, count, seed % 2**32)
        pruner = o.pruner or ("median" if count == 1 else "none")
        built = build_pruner(pruner, o.pruner_args, count, o.seeds, o.steps, self.budget["checkpoint_every"])
        convergence = None
        if o.terminator is not None:
            maximise = self.objective.directions[0] == "maximize"
            convergence = Convergence(o.terminator, o.terminator_args, count, maximise, seed % 2**32)
        return sampler, built, convergence

    def _pack(self, workers: int) -> int:
        """Choose how many suggestions train at once: many at once are fast, few at once know more of each other."""
        o = self.options
        if o.pack is not None:
            return o.pack
        independent = o.sampler.lower() in INDEPENDENT
        return max(1, min(32, o.trials // (4 * workers)) if independent else min(8, o.trials // (10 * workers)))


def _space(options: Tune, subject: Subject, left: int) -> Space:
    """Build the space, and try its ends on the method."""
    overrides = _overrides(options.space)
    for name in options.hyperparameters:
        if name in overrides:
            raise InputError(f"space: {name} is fixed by --hyperparameters; leave it out of one of them")
    space = build_space(
        subject.laws, {**overrides, **options.hyperparameters}, subject.defaults, subject.kinds, subject.method
    )
    subject.check(space.fixed, left)
    for name, ends in space.ends().items():
        for value in ends:
            subject.check({**space.fixed, name: value}, left)
    return space


def _overrides(given: dict[str, Any] | str) -> dict[str, Any]:
    if isinstance(given, dict):
        return given
    try:
        with open(given, encoding="utf-8") as file:
            found = yaml.safe_load(file)
    except OSError as error:
        raise InputError(f"space: cannot read {given!r} ({error.strerror}); give a YAML file or a mapping") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"space: {given!r} is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(found, dict):
        raise InputError(f"space: {given!r} is no mapping of names to ranges")
    return found


def _points(options: Tune, space: Space, subject: Subject) -> list[dict[str, Scalar]]:
    """What is tried first: the defaults where they lie in the space, then the points that were given."""
    points = [space.within(subject.defaults)] if options.defaults else []
    for point in options.enqueue:
        subject.complete(point)
        inside = space.within(point)
        for name, value in point.items():
            if name not in inside and space.fixed.get(name, subject.defaults[name]) != value:
                ranges = space.describe()
                why = f"it goes from {ranges[name]}" if name in ranges else "it is not searched"
                raise InputError(f"enqueue: {name} = {value} lies outside the space: {why}")
        points.append(inside)
    return points
