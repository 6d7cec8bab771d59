"""Importing DomainBed's records: the report's tables are compared with what DomainBed's own program printed."""

import hashlib
import itertools
import json
import random
import shutil

import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import InputError
from cluster.store import Run
from jobs.import_domainbed import ENVIRONMENTS, main, plan_size, read_job
from jobs.report.selection import RULES, _connect
from jobs.report.tables import results

SEVEN = ("ColoredMNIST", "RotatedMNIST", "VLCS", "PACS", "OfficeHome", "TerraIncognita", "DomainNet")


def record(dice, args, step, environments, sizes, hparams):
    """Write one checkpoint's line as DomainBed does; accuracies are counts over the sizes of the splits."""
    row = {"args": args, "hparams": hparams, "step": step, "epoch": step / 7, "loss": dice.random(), "step_time": 0.25}
    for environment, split in itertools.product(range(environments), ("in", "out")):
        size = sizes[split]
        held = environment in args["test_envs"]
        level = 0.3 if held else 0.8
        row[f"env{environment}_{split}_acc"] = int(size * level + 0.15 * size * dice.random()) / size
    return json.dumps({**row, "mem_gb": 1.5}, sort_keys=True) + "\n"


def write_job(folder, dice, dataset, algorithm, test_envs, hparams_seed=0, trial_seed=0, **options):
    """Write one job's folder; `options`: environments, steps, sizes, done, data_dir, and further arguments."""
    environments = options.pop("environments", None) or len(ENVIRONMENTS[dataset])
    steps, sizes = options.pop("steps", (0, 300, 500)), options.pop("sizes", {"in": 40, "out": 10})
    done = options.pop("done", True)
    args = {"algorithm": algorithm, "dataset": dataset, "test_envs": list(test_envs), "hparams_seed": hparams_seed}
    args |= {"trial_seed": trial_seed, "holdout_fraction": 0.2, "task": "domain_generalization", "data_dir": "/data"}
    name = hashlib.md5(json.dumps(args, sort_keys=True).encode(), usedforsecurity=False).hexdigest()
    args |= {"seed": int(name[:6], 16), "checkpoint_freq": None, "steps": None, "uda_holdout_fraction": 0}
    args |= {"output_dir": f"/out/{name}", **options}
    # All draws equal: only hparams_seed tells them apart.
    hparams = {"lr": 0.001, "batch_size": 32, "class_balanced": False}
    job = folder / name
    job.mkdir(parents=True)
    lines = [record(dice, args, step, environments, sizes, hparams) for step in steps]
    (job / "results.jsonl").write_text("".join(lines))
    if done:
        (job / "done").write_text("done")
    return job


def write_sweep(folder, seed, datasets, algorithms, draws=3, trials=3, lost=0.0, without=(), **options):
    """Write a sweep's folder: a dataset maps to whether its pairs were run; missing are a share `lost` of all jobs, and
    those of `without`: (algorithm, dataset, test environment, trial seed), None for any."""
    dice = random.Random(seed)
    for (dataset, pairs), algorithm in itertools.product(datasets.items(), algorithms):
        places = range(len(ENVIRONMENTS[dataset]))
        settings = [(i,) for i in places] + (list(itertools.combinations(places, 2)) if pairs else [])
        for trial, setting, draw in itertools.product(range(trials), settings, range(draws)):
            absent = any(
                (a, d) == (algorithm, dataset) and e in (None, *setting) and t in (None, trial)
                for a, d, e, t in without
            )
            if dice.random() >= lost and not absent:
                write_job(folder, dice, dataset, algorithm, setting, draw, trial, **options)
    return folder


def tables_of(run):
    """Map (rule, dataset or "Averages", algorithm) to printed cells; what is not in a table is an X."""
    source = Run(str(run))
    found = results(source.read("trials"), source.read("metrics"))
    algorithms = {method for table in found.tables for method in table.rows}
    printed = {}
    for table in (*found.tables, *found.averages):
        name = table.dataset.split("@")[0] or "Averages"
        columns = ENVIRONMENTS.get(name, table.columns)
        for algorithm in algorithms:
            row = dict(zip((*table.columns, "Avg"), table.rows.get(algorithm, ()), strict=False))
            printed[table.rule.key, name, algorithm] = [
                row[column].text() if column in row else "X" for column in (*columns, "Avg")
            ]
    return printed


SWEEP = {
    "seed": 4,
    "datasets": {"ColoredMNIST": True, "RotatedMNIST": False, "PACS": True},
    "algorithms": ["ERM", "IRM", "CORAL"],
    "lost": 0.03,
    # No number on one environment; no environment in two trials of three; one environment in one trial; nothing at all.
    "without": [
        ("IRM", "PACS", 2, None),
        ("ERM", "RotatedMNIST", None, 1),
        ("ERM", "RotatedMNIST", None, 2),
        ("IRM", "RotatedMNIST", 0, 0),
        ("CORAL", "RotatedMNIST", None, None),
    ],
}
# Printed by DomainBed's own program (facebookresearch/DomainBed, domainbed/scripts/collect_results.py, commit b93c22a)
# for exactly this sweep, with its folders listed by trial and test environments. Only the layout is changed.
PRINTED_BY_DOMAINBED = """
training-domain, ColoredMNIST
ERM: 36.7 +/- 2.5 | 34.2 +/- 1.8 | 38.3 +/- 2.5 | 36.4
IRM: 38.3 +/- 0.7 | 35.8 +/- 1.4 | 34.2 +/- 1.8 | 36.1
CORAL: 32.5 +/- 1.2 | 38.3 +/- 1.4 | 35.8 +/- 1.8 | 35.6
training-domain, RotatedMNIST
ERM: 37.5 +/- 0.0 | 40.0 +/- 0.0 | 37.5 +/- 0.0 | 42.5 +/- 0.0 | 37.5 +/- 0.0 | 32.5 +/- 0.0 | 37.9
IRM: 37.5 +/- 1.8 | 36.7 +/- 2.5 | 33.3 +/- 1.4 | 31.7 +/- 0.7 | 38.3 +/- 2.5 | 39.2 +/- 1.4 | 36.1
CORAL: X | X | X | X | X | X | X
training-domain, PACS
ERM: 37.5 +/- 2.0 | 40.0 +/- 1.2 | 36.7 +/- 3.0 | 39.2 +/- 1.8 | 38.3
IRM: 30.8 +/- 0.7 | 38.3 +/- 0.7 | X | 32.5 +/- 2.0 | X
CORAL: 33.3 +/- 2.7 | 30.0 +/- 0.0 | 33.3 +/- 2.7 | 32.5 +/- 1.2 | 32.3
training-domain, Averages
ERM: 36.4 +/- 0.2 | 37.9 +/- 0.0 | 38.3 +/- 1.4 | 37.5
IRM: 36.1 +/- 0.2 | 36.1 +/- 0.8 | 33.9 +/- 0.8 | 35.4
CORAL: 35.6 +/- 1.3 | X | 32.3 +/- 1.1 | X
leave-one-out, ColoredMNIST
ERM: 36.7 +/- 2.5 | 39.2 +/- 1.8 | 38.3 +/- 0.7 | 38.1
IRM: 40.8 +/- 0.7 | 40.8 +/- 1.4 | 38.3 +/- 2.5 | 40.0
CORAL: 38.3 +/- 0.7 | 30.8 +/- 0.7 | 35.8 +/- 3.0 | 35.0
leave-one-out, RotatedMNIST
ERM: X | X | X | X | X | X | X
IRM: X | X | X | X | X | X | X
CORAL: X | X | X | X | X | X | X
leave-one-out, PACS
ERM: 36.7 +/- 1.4 | 33.3 +/- 1.8 | 40.8 +/- 1.4 | 35.8 +/- 2.5 | 36.7
IRM: X | X | X | X | X
CORAL: 31.7 +/- 0.7 | 34.2 +/- 3.4 | 30.8 +/- 0.7 | 36.7 +/- 2.5 | 33.3
leave-one-out, Averages
ERM: 38.1 +/- 0.2 | X | 36.7 +/- 1.2 | X
IRM: 40.0 +/- 0.8 | X | X | X
CORAL: 35.0 +/- 1.2 | X | 33.3 +/- 0.6 | X
test-domain, ColoredMNIST
ERM: 33.3 +/- 1.4 | 35.0 +/- 2.4 | 39.2 +/- 0.7 | 35.8
IRM: 36.7 +/- 2.7 | 40.0 +/- 1.2 | 40.0 +/- 1.2 | 38.9
CORAL: 35.0 +/- 1.2 | 31.7 +/- 1.4 | 40.0 +/- 1.2 | 35.6
test-domain, RotatedMNIST
ERM: 40.0 +/- 0.0 | 37.5 +/- 0.0 | 30.0 +/- 0.0 | 42.5 +/- 0.0 | 37.5 +/- 0.0 | 32.5 +/- 0.0 | 36.7
IRM: 35.0 +/- 1.8 | 32.5 +/- 1.2 | 33.3 +/- 1.4 | 38.3 +/- 2.5 | 37.5 +/- 2.4 | 32.5 +/- 2.0 | 34.9
CORAL: X | X | X | X | X | X | X
test-domain, PACS
ERM: 35.8 +/- 3.0 | 34.2 +/- 1.4 | 37.5 +/- 0.0 | 36.7 +/- 2.5 | 36.0
IRM: 35.8 +/- 2.5 | 38.3 +/- 0.7 | X | 36.7 +/- 3.0 | X
CORAL: 34.2 +/- 2.5 | 38.3 +/- 3.4 | 34.2 +/- 2.5 | 38.3 +/- 1.8 | 36.2
test-domain, Averages
ERM: 35.8 +/- 1.0 | 36.7 +/- 0.0 | 36.0 +/- 1.0 | 36.2
IRM: 38.9 +/- 1.3 | 34.9 +/- 0.2 | 36.9 +/- 1.5 | 36.9
CORAL: 35.6 +/- 1.0 | X | 36.2 +/- 2.1 | X
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The sweep's folder and the run it was imported into."""
    folder = tmp_path_factory.mktemp("domainbed")
    sweep, run = write_sweep(folder / "sweep", **SWEEP), folder / "run"
    assert main([str(sweep), "--run", str(run)]) == 0
    return sweep, run


def test_every_table_equals_the_one_that_domainbed_prints(imported):
    printed = tables_of(imported[1])
    expected, heading = {}, ()
    for line in PRINTED_BY_DOMAINBED.strip().splitlines():
        name, _, cells = line.partition(": ")
        if cells:
            expected[*heading, name] = cells.split(" | ")
        else:
            heading = tuple(line.split(", "))
    assert len(expected) == 3 * 4 * 3
    assert printed == expected


def test_averages_over_missing_environments_and_single_seeds_are_pointed_out(imported):
    source = Run(str(imported[1]))
    found = results(source.read("trials"), source.read("metrics"))
    (averages,) = [t for t in found.averages if t.rule is RULES[0]]
    assert averages.columns == ("ColoredMNIST", "RotatedMNIST", "PACS")
    assert any(note.endswith("so do not compare: IRM on RotatedMNIST, IRM on PACS.") for note in averages.notes)
    (table,) = [t for t in found.tables if t.rule is RULES[0] and t.dataset == "RotatedMNIST@DomainBed"]
    assert any("rests on one seed has +/- 0.0" in note for note in table.notes)


@pytest.mark.parametrize("length", range(1, 10))
def test_scores_are_summed_as_numpy_sums_them(length):
    values = np.random.default_rng(length).integers(0, 2333, (2000, length)) / 2333
    with _connect() as db:
        db.register("t", pa.table({"v": list(values)}))
        found = db.sql("select mean_of(v) as mean from t").fetchnumpy()["mean"]
    assert (found == [np.mean(list(row)) for row in values]).all()


def test_plan_sizes_are_those_of_domainbed():
    assert plan_size("PACS") == 600
    assert plan_size("PACS", pairs=False) == 240
    assert sum(map(plan_size, SEVEN)) == 5280
    assert sum(plan_size(name, pairs=False) for name in SEVEN) == 1860
    assert plan_size("PACS", trials=1, hparams=2) == 20
    with pytest.raises(InputError, match="DomainBed has no 'Pacs'"):
        plan_size("Pacs")


def trials_of(run):
    return Run(str(run)).read("trials").to_pylist()


def test_a_job_becomes_a_trial_with_its_accuracies(tmp_path):
    job = write_job(tmp_path / "sweep", random.Random(0), "PACS", "ERM", [3, 1], hparams_seed=4, trial_seed=2)
    (job / "out.txt").write_text("Environment:\n\tPython: 3.7.6\n\tPyTorch: 1.7.0\nArgs:\n\tPIL: no\n")
    assert main([str(job), "--run", str(tmp_path / "run")]) == 0  # a job's own folder serves too
    (trial,) = trials_of(tmp_path / "run")
    assert (trial["method"], trial["dataset"], trial["held_out"]) == ("ERM", "PACS@DomainBed", ["C", "S"])
    assert (trial["seed"], trial["status"]) == (2, "completed")
    assert json.loads(trial["hyperparameters"]) == {
        "lr": 0.001,
        "batch_size": 32,
        "class_balanced": False,
        "hparams_seed": 4,
    }
    assert json.loads(trial["budget"]) == {"steps": 501, "checkpoint_every": 300}
    assert json.loads(trial["versions"]) == {"python": "3.7.6", "torch": "1.7.0"}
    assert trial["seconds"] == 0.25 * 501  # every record says 0.25 s an update
    rows = Run(str(tmp_path / "run")).read("metrics").to_pylist()
    assert len(rows) == 3 * 4 * 2
    lines = {r["step"]: r for r in map(json.loads, (job / "results.jsonl").read_text().splitlines())}
    for row in rows:
        place = ENVIRONMENTS["PACS"].index(row["environment"])
        assert row["value"] == lines[row["step"]][f"env{place}_{row['split']}_acc"]


def edit(job, change):
    """Rewrite every record of a job."""
    records = [json.loads(line) for line in (job / "results.jsonl").read_text().splitlines()]
    (job / "results.jsonl").write_text("".join(json.dumps(change(r) or r) + "\n" for r in records))
    return job


def test_uda_splits_are_those_of_the_test_environments(tmp_path):
    job = write_job(tmp_path, random.Random(0), "PACS", "DANN", [3, 1], task="domain_adaptation")
    edit(job, lambda r: r.update(env0_uda_acc=0.25, env1_uda_acc=0.5))
    read = read_job(str(job))
    uda = {column: set(read.accuracies[:, i]) for i, column in enumerate(read.columns) if column[1] == "uda"}
    assert uda == {("C", "uda"): {0.25}, ("S", "uda"): {0.5}}


def test_environments_of_an_unknown_dataset_are_numbered(tmp_path):
    job = write_job(tmp_path, random.Random(0), "Mine", "ERM", [10], environments=11)
    read = read_job(str(job))
    assert read.trial.held_out == ("env10",)
    assert [environment for environment, split in read.columns if split == "in"] == [f"env{i}" for i in range(11)]


def test_identity_is_what_was_run_and_not_where(tmp_path):
    def trial(**options):
        shutil.rmtree(tmp_path / "jobs", ignore_errors=True)
        return read_job(str(write_job(tmp_path / "jobs", random.Random(0), "PACS", "ERM", [0], **options))).trial

    usual = trial()
    assert trial(data_dir="/elsewhere", output_dir="/there", seed=5, skip_model_save=True) == usual
    assert trial(steps=(0, 300, 500), checkpoint_freq=300) == usual
    others = [trial(hparams_seed=1), trial(trial_seed=1), trial(steps=(0, 300)), trial(holdout_fraction=0.5)]
    others += [trial(task="domain_adaptation"), trial(uda_holdout_fraction=0.1)]
    assert len({usual, *others}) == 1 + len(others)
    assert json.loads(others[3].budget)["holdout_fraction"] == 0.5


def test_importing_again_adds_only_what_is_new(tmp_path, capsys):
    run, dice = str(tmp_path / "run"), random.Random(0)
    write_job(tmp_path / "a", dice, "PACS", "ERM", [0])
    late = write_job(tmp_path / "a", dice, "PACS", "ERM", [1], done=False)
    assert main([str(tmp_path / "a"), "--run", run]) == 0
    assert "1 jobs have no file `done` and were skipped" in capsys.readouterr().out
    before = Run(run).read("metrics")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert main(["--run", run, str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    assert "1 jobs repeat the arguments of another" in out
    assert f"0 added to {run}, 1 in it before" in out
    assert Run(run).read("metrics").equals(before)
    (late / "done").touch()
    assert main([str(tmp_path / "a"), "--run", run]) == 0
    out = capsys.readouterr().out
    assert "1 added" in out
    assert "ERM on PACS: 2 of the 600 jobs of DomainBed's full plan, 2 of its 240 with one test environment" in out
    assert len(trials_of(run)) == 2


def test_damaged_files_are_reported_by_file_and_line_and_cost_nothing_else(tmp_path, capsys):
    sweep, dice = tmp_path / "sweep", random.Random(0)
    jobs = [write_job(sweep, dice, "PACS", "ERM", [0], draw) for draw in range(6)]
    paths = [job / "results.jsonl" for job in jobs]
    lines = [path.read_text().splitlines(keepends=True) for path in paths]
    paths[0].write_text(lines[0][0] + "{broken\n\n" + lines[0][1] + "\x00\xff\n" + lines[0][2])
    paths[1].write_text("".join(lines[1])[:-90])  # cut short by a crash
    earlier = edit(jobs[2], lambda r: r.update(env0_in_acc=1.0) or r).joinpath("results.jsonl").read_text()
    paths[2].write_text("".join(earlier.splitlines(keepends=True)[:2]) + "".join(lines[2]))  # started again
    paths[3].unlink()
    paths[4].write_text("")
    paths[5].write_text(lines[5][0] + lines[4][1] + lines[5][2])  # a line of another job
    (sweep / "never started").mkdir()
    (sweep / "results.txt").write_text("a file of DomainBed's own")
    assert main([str(sweep), "--run", str(tmp_path / "run")]) == 1
    out, err = capsys.readouterr()
    reported = [line for line in err.splitlines() if str(sweep) in line]
    expected = [
        f"{paths[0]}:2: not JSON, perhaps cut short; line skipped",
        f"{paths[0]}:5: not JSON, perhaps cut short; line skipped",
        f"{paths[1]}:3: not JSON, perhaps cut short; line skipped",
        f"{paths[1]}: its last record, which selection needs, is lost; job skipped",
        f"{paths[2]}:1: step 0 comes again in line 3; line skipped",
        f"{paths[2]}:2: step 300 comes again in line 4; line skipped",
        f"{paths[3]}: No such file or directory; job skipped",
        f"{paths[4]}: holds no readable record; job skipped",
        f"{paths[5]}:2: arguments of another job than the lines above; line skipped",
    ]
    assert sorted(reported) == sorted(expected)
    assert "1 folders hold no results.jsonl and were skipped, the first of them " + str(sweep / "never started") in out
    assert "3 finished jobs could not be read and were skipped" in out
    draws = {json.loads(t["hyperparameters"])["hparams_seed"]: t["trial_id"] for t in trials_of(tmp_path / "run")}
    assert set(draws) == {0, 2, 5}
    metrics = Run(str(tmp_path / "run")).read("metrics").to_pylist()
    steps = {draw: sorted({m["step"] for m in metrics if m["trial_id"] == key}) for draw, key in draws.items()}
    assert steps == {0: [0, 300, 500], 2: [0, 300, 500], 5: [0, 500]}
    assert 1.0 not in [m["value"] for m in metrics if m["trial_id"] == draws[2]]  # the later attempt counts


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: [1], "not a record with args and hparams"),
        (lambda r: r.pop("args"), "lacks 'args'"),
        (lambda r: r["args"].pop("test_envs") and None, "lacks 'test_envs'"),
        (lambda r: r["args"].update(test_envs=[4]), "test_envs [4] are no list of indices below 4"),
        (lambda r: r["args"].update(test_envs=[[0]]), "test_envs [[0]] are no list"),
        (lambda r: r["args"].update(trial_seed="0"), "trial_seed '0' is no whole number"),
        (lambda r: r["args"].update(algorithm=None), "algorithm None is no name"),
        (lambda r: r.update(step=10**30), "is no whole number"),
        (lambda r: r.update(env2_out_acc=None), "holds an accuracy that is no number"),
        (lambda r: r["hparams"].update(lr=float("nan")), "Out of range float values"),
        (lambda r: {"args": r["args"], "hparams": {}, "step": 0}, "holds no accuracy"),
    ],
)
def test_records_that_are_none_are_refused_with_the_reason(tmp_path, change, reason):
    job = edit(write_job(tmp_path, random.Random(0), "PACS", "ERM", [0]), change)
    read = read_job(str(job))
    assert (read.state, read.lost) == ("unreadable", 3)
    assert reason in read.problems[0]


def test_an_accuracy_that_some_records_lack_is_missing_there_only(tmp_path):
    job = write_job(tmp_path, random.Random(0), "PACS", "ERM", [0])
    edit(job, lambda r: r["step"] == 300 and r.pop("env3_out_acc") and None)
    read = read_job(str(job))
    missing = [read.columns[column] for column in np.isnan(read.accuracies).nonzero()[1]]
    assert missing == [("S", "out")]
    assert np.isnan(read.accuracies).any(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: folders, run"),
        (["nowhere", "--run", "r"], "'nowhere' is no folder; give the output folder of a DomainBed sweep"),
        (["empty", "--run", "r"], "no job in 'empty' has a results.jsonl"),
        (["empty", "--rum", "r"], "did you mean 'run'?"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "r").exists()
