"""Which trial and checkpoint represent a method: the three rules of DomainBed, as pure functions on a run's tables.

Source: Gulrajani & Lopez-Paz, "In Search of Lost Domain Generalization" (ICLR 2021, arXiv 2007.01434), section 3.
Selection happens inside each (dataset, budget, method, held-out environment, seed): among the hyperparameter draws of
one seed and the checkpoints of each draw. What is reported is the held-out environment's accuracy on its "in" split,
and only trials with exactly one held-out environment supply it.

A run may hold millions of measurements: DuckDB reduces them to one row a checkpoint, and a rule to one row a search.
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class Rule:
    """A model selection rule.

    Args:
        key: short name, as in CSV files.
        title: heading of its tables.
        how: one sentence that says what is selected.
        scores: SQL over `runs` and `checkpoints` that yields (trial_id, step, environment, score, accuracy).
    """

    key: str
    title: str
    how: str
    scores: str


TRAINING_DOMAIN = Rule(
    "training-domain",
    "Training-domain validation",
    "the draw and checkpoint with the best mean out-accuracy over the training environments",
    """
    select trial_id, step, environment, training_accuracy as score, in_accuracy as accuracy
    from checkpoints where single
    """,
)
LEAVE_ONE_OUT = Rule(
    "leave-one-out",
    "Leave-one-domain-out cross-validation",
    "the draw and checkpoint with the best mean in-accuracy over the other environments, each measured at the same "
    "step by the trial that held out that environment too",
    """
    select one.trial_id, one.step, one.environment,
           mean_of(list(pair.in_accuracy order by pair.place) filter (pair.in_accuracy is not null)) as score,
           any_value(one.in_accuracy) as accuracy
    from checkpoints one
    join checkpoints pair on pair.draw = one.draw and pair.step = one.step
         and pair.other = one.environment and not pair.single
    where one.single
    group by one.trial_id, one.step, one.environment
    having count(pair.in_accuracy) = any_value(one.environments) - 1
    """,
)
TEST_DOMAIN = Rule(
    "test-domain",
    "Test-domain validation (oracle)",
    "the draw with the best out-accuracy on the held-out environment itself, at the last checkpoint only",
    """
    select trial_id, step, environment, out_accuracy as score, in_accuracy as accuracy
    from checkpoints where single and step = last_step
    """,
)
RULES = (TRAINING_DOMAIN, LEAVE_ONE_OUT, TEST_DOMAIN)

DOMAINBED = "@DomainBed"
"""How the identity of a dataset ends whose trials come from DomainBed; for them its conventions hold to the last bit."""

# Means of the same accuracies summed in another order differ in their last bit: rounding makes ties real, and ties go
# to the earlier step, then to the hyperparameters that come first as text. DomainBed compares the bare sums, and among
# equal ones takes the last of its draws.
_RANKED = f"if(dataset like '%{DOMAINBED}', score, round(score, 12)) desc"
_DRAW = "try_cast(json_extract_string(hyperparameters, '$.hparams_seed') as bigint) desc nulls last, hyperparameters"

# Adds up in numpy's order, which makes scores the very numbers that DomainBed compares (for up to nine values).
_MEAN = """
    create temp macro mean_of(v) as if(
        len(v) < 8, list_sum(v),
        ((v[1] + v[2]) + (v[3] + v[4])) + ((v[5] + v[6]) + (v[7] + v[8])) + coalesce(list_sum(v[9:]), 0)
    ) / len(v)
"""


def _connect() -> duckdb.DuckDBPyConnection:
    db = duckdb.connect()
    db.execute(_MEAN)
    return db


@dataclass(frozen=True)
class Records:
    """What the completed trials of a run measured, reduced to one row a checkpoint.

    Args:
        runs: completed trials with one or two held-out environments: trial_id, dataset, budget, method, held_out,
            seed, hyperparameters, seconds.
        checkpoints: one row a (trial, step, held-out environment): trial_id, step, environment, place (its index among
            the dataset's environments), other (the second held-out environment of a pair), single, draw (equal for
            trials that differ in held_out only), environments (how many the dataset has), last_step, training_accuracy
            (mean over the training environments' out splits; null unless each was measured), in_accuracy,
            out_accuracy.
        environments: by dataset identity, its environments in the dataset's own order.
    """

    runs: pa.Table
    checkpoints: pa.Table
    environments: dict[str, tuple[str, ...]]


def measure(trials: pa.Table, metrics: pa.Table) -> Records:
    """Reduce a run's tables to one row a checkpoint.

    Args:
        trials: rows of the schema TRIALS; only completed ones take part.
        metrics: rows of the schema METRICS; only the metric "accuracy" counts.

    Returns:
        The records that every rule, curve and plot starts from.
    """
    with _connect() as db:
        db.register("all_trials", trials)
        db.register("metrics", metrics)
        # Numbers instead of trial ids and environment sets: the aggregation below sees every row of metrics.
        db.execute("""
            create temp table completed as
            select row_number() over (order by trial_id) as key, trial_id, dataset, budget, method, held_out, seed,
                   hyperparameters, seconds, coalesce(held_out[1], '') as first, coalesce(held_out[2], '') as second,
                   dense_rank() over (order by dataset, budget, method, seed, hyperparameters) as draw
            from all_trials where status = 'completed'
        """)
        db.execute("""
            create temp table accuracies as
            select c.key, m.step, m.environment, m.split, m.value,
                   m.environment in (c.first, c.second) as held
            from metrics m join completed c using (trial_id) where m.metric = 'accuracy' and m.split in ('in', 'out')
        """)
        environments = _environments(db, metrics)
        counts = pa.table({"dataset": list(environments), "environments": [len(e) for e in environments.values()]})
        db.register("counts", counts)
        named = [(dataset, name, place) for dataset, all_ in environments.items() for place, name in enumerate(all_)]
        columns = list(zip(*named, strict=True)) or [(), (), ()]
        kinds = (pa.string(), pa.string(), pa.int64())
        places = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        db.register("places", pa.table(places, names=["dataset", "environment", "place"]))
        db.execute("""
            create temp table steps as
            select key, step,
                   list(value order by place) filter (not held and split = 'out' and value is not null) as outs,
                   max(value) filter (environment = first and split = 'in') as first_in,
                   max(value) filter (environment = first and split = 'out') as first_out,
                   max(value) filter (environment = second and split = 'in') as second_in,
                   max(value) filter (environment = second and split = 'out') as second_out
            from accuracies join (select key, dataset, first, second from completed) using (key)
                 join places using (dataset, environment)
            group by key, step
        """)
        runs = db.sql("""
            select trial_id, dataset, budget, method, held_out, seed, hyperparameters, seconds
            from completed where len(held_out) in (1, 2)
        """).to_arrow_table()
        checkpoints = db.sql("""
            with wide as (
                select *, len(held_out) = 1 as single, max(step) over (partition by key) as last_step,
                       if(len(outs) = environments - len(held_out), mean_of(outs), null) as training_accuracy
                from steps join completed using (key) join counts using (dataset)
                where len(held_out) in (1, 2)
            )
            select trial_id, step, environment, place, other, single, draw, environments, last_step, training_accuracy,
                   in_accuracy, out_accuracy
            from (
                select *, first as environment, nullif(second, '') as other,
                       first_in as in_accuracy, first_out as out_accuracy from wide
                union all
                select *, second, first, second_in, second_out from wide where not single
            ) left join places using (dataset, environment)
        """).to_arrow_table()
    return Records(runs, checkpoints, environments)


def _environments(db: duckdb.DuckDBPyConnection, metrics: pa.Table) -> dict[str, tuple[str, ...]]:
    """Environments of each dataset: in the order in which one trial measured them, then what only others know."""
    samples = db.sql("""
        select dataset, trial_id from accuracies join completed using (key) group by dataset, key, trial_id
        qualify row_number() over (partition by dataset order by count(distinct environment) desc, key) = 1
    """).fetchall()
    known = db.sql("""
        select distinct dataset, environment from accuracies join completed using (key)
        union select dataset, unnest(held_out) from all_trials order by all
    """).fetchall()
    names: dict[str, list[str]] = {dataset: [] for dataset, _ in sorted({*samples, *known})}
    for dataset, trial_id in samples:
        of_trial = metrics.filter(
            pc.and_(pc.equal(metrics["trial_id"], trial_id), pc.equal(metrics["metric"], "accuracy"))
        )
        names[dataset] = pc.unique(of_trial["environment"]).to_pylist()
    for dataset, environment in known:
        if environment not in names[dataset]:
            names[dataset].append(environment)
    return {dataset: tuple(found) for dataset, found in names.items()}


def best_checkpoints(records: Records, rule: Rule) -> pa.Table:
    """Pick each single-held-out trial's checkpoint by a rule.

    Returns:
        trial_id, step, environment, score, accuracy; a trial for which the rule has no finite score is left out.
    """
    with _connect() as db:
        db.register("checkpoints", records.checkpoints)
        db.register("runs", records.runs)
        return db.sql(f"""
            select trial_id, step, environment, score, accuracy from ({rule.scores}) join runs using (trial_id)
            where isfinite(score) and isfinite(accuracy)
            qualify row_number() over (partition by trial_id order by {_RANKED}, step) = 1
        """).to_arrow_table()


def select(records: Records, rule: Rule) -> pa.Table:
    """Select one trial and checkpoint in each search, by a rule.

    Args:
        records: from `measure`.
        rule: one of RULES.

    Returns:
        One row a (dataset, budget, method, environment, seed), sorted so: these, hyperparameters, trial_id, step,
        score, accuracy (held-out environment, "in" split, in [0, 1]) and draws (trials the rule chose among).
    """
    best = best_checkpoints(records, rule)
    with duckdb.connect() as db:
        db.register("best", best)
        db.register("runs", records.runs)
        return db.sql(f"""
            select dataset, budget, method, environment, seed, hyperparameters, trial_id, step, score, accuracy,
                   count(*) over search as draws
            from best join runs using (trial_id)
            window search as (partition by dataset, budget, method, environment, seed)
            qualify row_number() over (search order by {_RANKED}, {_DRAW}) = 1
            order by dataset, budget, method, environment, seed
        """).to_arrow_table()
