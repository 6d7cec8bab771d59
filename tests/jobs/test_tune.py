"""`shiftlab tune` and `shiftlab train` as a person types them: studies, their tables, the best configuration, bad input."""

import json
import re
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from optuna.trial import TrialState

from cluster.store import Run
from jobs.command import command_line
from jobs.train import main as train
from jobs.tune import Tune
from jobs.tune import main as tune
from tuning.tables import SUGGESTIONS

DATA = "GaussianSEM:n=200"
WORDS = ["--method=ERM", f"--dataset={DATA}", "--steps=20", "--checkpoint_every=5", "--workers=0"]


def rows(run, table="suggestions"):
    return Run(str(run)).read(table, SUGGESTIONS if table == "suggestions" else None).to_pylist()


def studies(run):
    path = str(Path(run, "study.journal"))
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(path))
    return {name: optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)}


def only(run):
    (study,) = studies(run).values()
    return study


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished study of eight trials."""
    run = tmp_path_factory.mktemp("tuned")
    assert tune([*WORDS, "--trials=8", f"--run={run}"]) == 0
    return run


def test_the_study_is_an_ordinary_one_and_the_tables_agree(finished):
    study = only(finished)
    assert study.study_name == "ERM on GaussianSEM without flipped"
    assert [d.name for d in study.directions] == ["MAXIMIZE"]
    assert {t.state for t in study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    trials = {t["trial_id"]: t for t in rows(finished, "trials")}
    assert len(trials) == len(study.trials) == 8
    for row, trial in zip(rows(finished), study.trials, strict=True):
        assert (row["study"], row["number"], row["values"]) == (study.study_name, trial.number, trial.values)
        stored = trials[row["trial_ids"][0]]
        assert stored["held_out"] == ["flipped"]
        assert {k: json.loads(stored["hyperparameters"])[k] for k in trial.params} == trial.params
    first = study.trials[0].params  # the method's own
    assert first == {"batch_size": 64, "lr": 1e-3}


def test_the_same_command_does_nothing_and_more_trials_go_on(finished, tmp_path, capsys):
    assert tune([*WORDS, "--trials=8", f"--run={finished}"]) == 0
    assert "8 trials: 8 completed, 0 failed, 0 run now" in re.sub(
        r"\d+ completed, \d+ pruned", "8 completed", capsys.readouterr().out
    )
    before = only(finished).trials
    assert tune([*WORDS, "--trials=10", f"--run={finished}"]) == 0
    after = only(finished).trials
    assert [t.params for t in after[:8]] == [t.params for t in before]
    assert len({json.dumps(t.params) for t in after}) == 10  # a resumed sampler draws no point again


def test_the_best_configuration_can_be_trained(finished, tmp_path, capsys):
    text = (finished / "best.yaml").read_text()
    best = max((r for r in rows(finished) if r["state"] == "complete"), key=lambda r: (r["values"][0], -r["number"]))
    assert text.startswith(f"# Trial {best['number']} of the study 'ERM on GaussianSEM without flipped': validation ")
    config = yaml.safe_load(text)
    assert config["hyperparameters"].items() >= json.loads(best["parameters"]).items()
    assert train([f"--config={finished}/best.yaml", f"--run={tmp_path}"]) == 0
    out = capsys.readouterr().out
    (stored,) = rows(tmp_path, "trials")
    assert stored["trial_id"] == best["trial_ids"][0]  # the very trial, and its very numbers
    mine = [m for m in rows(finished, "metrics") if m["trial_id"] == stored["trial_id"]]
    assert sorted(map(repr, rows(tmp_path, "metrics"))) == sorted(map(repr, mine))
    assert "flipped, held out" in out
    path = re.search(r"weights: (.*)", out)[1]
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["shiftlab"]["method"] == "ERM"
    assert {name.split(".")[0] for name in checkpoint["state_dict"]} >= {"classifier"}
    assert train([f"--config={finished}/best.yaml", f"--run={tmp_path}"]) == 0
    assert "trained before: nothing to do" in capsys.readouterr().out


def test_the_weights_are_those_that_were_measured(tmp_path):
    words = ["--method=ERM", "--dataset=GaussianSEM:n=200", "--steps=30", "--checkpoint_every=30"]
    assert train([*words, f"--run={tmp_path}"]) == 0
    from lightning_modules.data.catalog import load_dataset
    from lightning_modules.networks import build_network

    dataset = load_dataset("GaussianSEM:n=200")
    (path,) = Path(tmp_path, "models").iterdir()
    network = build_network(dataset.network, dataset.input_shape, len(dataset.classes), torch.Generator())
    network.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    for environment in dataset.environments:
        with torch.no_grad():
            right = network(torch.from_numpy(environment.inputs))[1].argmax(1) == torch.from_numpy(environment.labels)
        measured = [
            m["value"]
            for m in rows(tmp_path, "metrics")
            if m["environment"] == environment.name and m["metric"] == "accuracy"
        ]
        assert min(measured) - 1e-6 <= right.double().mean() <= max(measured) + 1e-6  # between its two splits


def test_every_setting_is_a_study_of_its_own(tmp_path):
    assert tune([*WORDS, "--trials=3", "--held_out", "train0", "train1", f"--run={tmp_path}"]) == 0
    found = studies(tmp_path)
    assert set(found) == {"ERM on GaussianSEM without train0", "ERM on GaussianSEM without train1"}
    assert [len(s.trials) for s in found.values()] == [3, 3]
    assert {p.name for p in tmp_path.glob("*.yaml")} == {"best-train0.yaml", "best-train1.yaml"}
    by_id = {t["trial_id"]: t["held_out"] for t in rows(tmp_path, "trials")}
    assert all(by_id[r["trial_ids"][0]] == [r["study"].split()[-1]] for r in rows(tmp_path))


def test_replicates_differ_in_their_seed_and_are_averaged(tmp_path):
    words = [*WORDS, "--trials=3", "--seeds=3", "--seed=5", "--pruner=none", f"--run={tmp_path}"]
    assert tune(words) == 0
    seeds = {t["trial_id"]: t["seed"] for t in rows(tmp_path, "trials")}
    assert all([seeds[key] for key in row["trial_ids"]] == [5, 6, 7] for row in rows(tmp_path))
    for trial in only(tmp_path).trials:
        assert trial.value == pytest.approx(sum(s[0] for s in trial.user_attrs["scores"]) / 3)


def test_the_oracle_is_asked_for_by_name_and_said(tmp_path, capsys):
    assert tune([*WORDS, "--trials=3", "--objective", "oracle", f"--run={tmp_path}"]) == 0
    assert "held-out environment" in capsys.readouterr().out
    assert [r["objectives"] for r in rows(tmp_path)] == [["oracle"]] * 3


def test_several_objectives_give_a_front(tmp_path):
    words = ["--trials=6", "--objective", "validation", "worst", "--sampler=nsga-ii"]
    assert tune([*WORDS, *words, f"--run={tmp_path}"]) == 0
    study = only(tmp_path)
    assert len(study.directions) == 2
    assert all(t.values[1] <= t.values[0] for t in study.trials)  # the worst is no better than the mean
    assert "whole front" in (tmp_path / "best.yaml").read_text().splitlines()[0]


def test_known_good_points_come_after_the_defaults(tmp_path):
    words = ["--trials=3", "--enqueue", "{lr: 0.002, batch_size: 32}", f"--run={tmp_path}"]
    assert tune([*WORDS, *words]) == 0
    assert [t.params for t in only(tmp_path).trials[:2]] == [
        {"lr": 1e-3, "batch_size": 64},
        {"lr": 0.002, "batch_size": 32},
    ]


def test_a_space_from_a_file_and_a_grid(tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text("lr: {choices: [0.001, 0.01]}\nbatch_size: {low: 16, high: 48, step: 16}\n")
    assert tune([*WORDS, f"--space={space}", "--sampler=grid", "--no-defaults", f"--run={tmp_path}/run"]) == 2
    words = [f"--space={space}", "--sampler=grid", "--defaults=false", f"--run={tmp_path}/run"]
    assert tune([*WORDS, *words]) == 0
    found = {(t.params["lr"], t.params["batch_size"]) for t in only(tmp_path / "run").trials}
    assert found == {(lr, size) for lr in (0.001, 0.01) for size in (16, 32, 48)}
    assert len(rows(tmp_path / "run", "trials")) == 6


def test_suggestions_of_one_shape_train_as_a_pack_and_the_pruned_leave_it(tmp_path, monkeypatch):
    """One call trains four; those whose learning rate leads nowhere end early, the others do not notice."""
    from lightning_modules.domain_generalization import pack as packs

    sizes = []
    train_pack = packs.train_pack
    monkeypatch.setattr(
        packs, "train_pack", lambda m, members, *rest: sizes.append(len(members)) or train_pack(m, members, *rest)
    )
    words = ["--trials=16", "--pack=4", "--hyperparameters.batch_size=32", "--pruner_args", "{n_startup_trials: 4}"]
    space = "--space={lr: {choices: [1.0e-8, 1.0e-2, 2.0e-2, 3.0e-2]}, weight_decay: {low: 0.0, high: 1.0e-3}}"
    assert tune([*WORDS, *words, space, "--sampler=random", f"--run={tmp_path}"]) == 0
    assert max(sizes) == 4
    states = Counter(t.state.name for t in only(tmp_path).trials)
    assert states["PRUNED"] >= 2
    for row in rows(tmp_path):
        (key,) = row["trial_ids"]
        steps = {m["step"] for m in rows(tmp_path, "metrics") if m["trial_id"] == key}
        assert (max(steps) < 20) == (row["state"] == "pruned")
    completed = next(t for t in rows(tmp_path, "trials") if t["status"] == "completed")
    alone = ["--hyperparameters", completed["hyperparameters"], "--steps=20", "--checkpoint_every=5"]
    assert train(["--method=ERM", f"--dataset={DATA}", *alone, f"--run={tmp_path}/alone"]) == 0
    (same,) = rows(tmp_path / "alone", "trials")
    assert same["trial_id"] == completed["trial_id"]

    def by_place(run):
        found = [m for m in rows(run, "metrics") if m["trial_id"] == same["trial_id"]]
        return {tuple(value for name, value in m.items() if name != "value"): m["value"] for m in found}

    # To float rounding: some matrix libraries take other kernels for one model than for several.
    assert by_place(tmp_path / "alone") == pytest.approx(by_place(tmp_path), rel=1e-6)
    assert len(by_place(tmp_path)) == len(rows(tmp_path / "alone", "metrics"))


def test_a_study_of_trials_that_all_fail_fails(tmp_path, capsys):
    words = ["--trials=2", "--space={lr: {low: 1.0e+39, high: 1.0e+40}}", "--retries=0", "--defaults=false"]
    assert tune([*WORDS, *words, f"--run={tmp_path}"]) == 1
    assert "2 trials: 0 completed, 2 failed" in capsys.readouterr().out
    assert {t.state for t in only(tmp_path).trials} == {TrialState.FAIL}
    assert rows(tmp_path)[0]["error"].startswith("FloatingPointError")


def test_a_search_that_waits_for_its_decisions(tmp_path, ray_session):
    words = [*WORDS[:-1], "--trials=12", "--pruning=wait", "--pack=1", "--workers=2"]
    space = "--space={lr: {choices: [1.0e-8, 1.0e-2, 2.0e-2, 3.0e-2]}, weight_decay: {low: 0.0, high: 1.0e-3}}"
    assert tune([*words, space, "--sampler=random", "--pruner_args", "{n_startup_trials: 2}", f"--run={tmp_path}"]) == 0
    pruned = [t for t in only(tmp_path).trials if t.state == TrialState.PRUNED]
    assert pruned
    by_number = {row["number"]: row for row in rows(tmp_path)}
    for trial, row in ((t, by_number[t.number]) for t in pruned):
        steps = {m["step"] for m in rows(tmp_path, "metrics") if m["trial_id"] == row["trial_ids"][0]}
        assert max(steps) == trial.last_step  # it ended at the very evaluation that was judged


MODULE = """
    from typing import Annotated
    import lightning.pytorch as pl, torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset
    from lightning_modules.hyperparameters import Choice, LogUniform, IntLogUniform, When

    class Small(pl.LightningModule):
        def __init__(
            self,
            lr: Annotated[float, LogUniform(1e-4, 1e-1)] = 1e-2,
            kind: Annotated[str, Choice(("linear", "mlp"))] = "mlp",
            width: Annotated[int, IntLogUniform(4, 32), When("kind", "mlp")] = 8,
        ):
            super().__init__()
            self.lr = lr
            hidden = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))
            self.net = nn.Linear(4, 2) if kind == "linear" else hidden

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, _):
            self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=self.lr)

    class Data(pl.LightningDataModule):
        def __init__(self, batch_size: int = 32):
            super().__init__()
            self.size = batch_size

        def setup(self, stage=None):
            inputs = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
            labels = (inputs[:, 0] * inputs[:, 1] > 0).long()
            self.parts = TensorDataset(inputs[:200], labels[:200]), TensorDataset(inputs[200:], labels[200:])

        def train_dataloader(self):
            return DataLoader(self.parts[0], batch_size=self.size, shuffle=True)

        def val_dataloader(self):
            return DataLoader(self.parts[1], batch_size=100)
"""


def test_a_module_of_ones_own_is_tuned_and_trained(tmp_path, monkeypatch, capsys, ray_session):
    (tmp_path / "own_nets.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    words = ["--method=own_nets:Small", "--dataset=own_nets:Data", "--steps=40", "--checkpoint_every=10"]
    assert tune([*words, "--objective", "val_loss:min", "--trials=10", "--workers=2", "--run=run"]) == 0
    study = only("run")
    assert study.study_name == "own_nets:Small on own_nets:Data"
    assert study.directions[0].name == "MINIMIZE"
    assert {("width" in t.params) == (t.params["kind"] == "mlp") for t in study.trials} == {True}
    assert {t.params["kind"] for t in study.trials} == {"linear", "mlp"}
    assert train(["--config=run/best.yaml", "--trust=own_nets"]) == 0
    out = capsys.readouterr().out
    checkpoint = torch.load(re.search(r"weights: (.*)", out)[1], weights_only=True)
    assert checkpoint["hyper_parameters"]["kind"] == study.best_trial.params["kind"]
    metrics = [m["value"] for m in rows("run/best", "metrics") if m["metric"] == "val_loss"]
    assert min(metrics) == study.best_value
    assert tune([*words, "--objective", "val_acc:max", "--trials=2", "--workers=0", "--run=other"]) == 2
    assert "the module logs no 'val_acc'; it logs val_loss" in capsys.readouterr().err


def test_a_dashboard_opens_the_storage(finished):
    """optuna-dashboard on the journal as it stands: it lists the study and its trials."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(sys.executable).with_name("optuna-dashboard")
    process = subprocess.Popen(
        [program, str(finished / "study.journal"), "--port", str(port), "--host", "127.0.0.1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        listed = _get(process, f"http://127.0.0.1:{port}/api/studies")["study_summaries"]
        assert [s["study_name"] for s in listed] == ["ERM on GaussianSEM without flipped"]
        detail = _get(process, f"http://127.0.0.1:{port}/api/studies/{listed[0]['study_id']}?after=0")
        assert len(detail["trials"]) == len(only(finished).trials)
        assert detail["trials"][0]["state"] == "Complete"
    finally:
        process.kill()
        process.wait()


def _get(process, url):
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)
        except (urllib.error.URLError, ConnectionError):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method=IRMM"], "unknown method 'IRMM'; did you mean 'IRM'?"),
        (["--dataset=Nothing"], "unknown dataset 'Nothing'"),
        (["--objective", "accuracy"], "objective: unknown objective 'accuracy'"),
        (["--objective", "oracle", "--held_out", "none"], "objective: an oracle reads the held-out environment"),
        (["--space={lrr: 0.1}"], "space: ERM has no hyperparameter 'lrr'; did you mean 'lr'?"),
        (["--space={lr: {low: 0.1, high: 0.01}}"], "space: the range of lr is empty"),
        (["--space={lr: {low: -1.0, high: 0.1}}"], "hyperparameters: lr is -1.0; give a number above 0"),
        (["--space={network: {choices: [mlp, transformer]}}"], "network: unknown 'transformer'"),
        (["--space=nowhere.yaml"], "space: cannot read 'nowhere.yaml'"),
        (["--space={lr: 0.1}", "--hyperparameters.lr=0.1"], "space: lr is fixed by --hyperparameters"),
        (["--sampler=cma-es", "--space={lr: {choices: [0.1, 0.2]}, batch_size: 32}"], "cma-es needs two numbers"),
        (["--sampler=annealing"], "sampler: unknown sampler 'annealing'"),
        (["--pruner=wilcoxon"], "pruner: wilcoxon compares replicates, and there are 1"),
        (["--terminator=soon"], "terminator: unknown terminator 'soon'"),
        (["--enqueue", "{lr: 5.0}"], "enqueue: lr = 5.0 lies outside the space: it goes from"),
        (["--enqueue", "{lrr: 5.0}"], "ERM has no 'lrr'; did you mean 'lr'?"),
        (["--held_out", "E9"], "has no environment 'E9'"),
        (["--trials=0"], "trials: 0 is too small"),
        (["--storage=postgresql://nobody:secret@127.0.0.1:1/none"], "storage: "),
        (["--storage=oracle9://x"], "storage: "),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(words, message, tmp_path, capsys):
    run = tmp_path / "run"
    assert tune([*WORDS, f"--run={run}", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert "secret" not in error
    assert not run.exists()


def test_a_study_of_another_space_under_the_same_name_is_refused(tmp_path, capsys):
    words = ["--trials=2", "--study=mine", f"--run={tmp_path}"]
    assert tune([*WORDS, *words]) == 0
    assert tune([*WORDS, *words, "--space={lr: {low: 0.001, high: 0.1}}"]) == 2
    error = capsys.readouterr().err
    assert "study: 'mine' searches something else (lr: " in error
    assert "give another --study" in error
    assert tune([*WORDS, *words, "--steps=25"]) == 2
    assert "'mine' is about something else (steps: 20 there, 25 here)" in capsys.readouterr().err


def test_a_password_is_not_shown_in_the_command_that_resumes():
    options = Tune("ERM", "D", "run", storage="postgresql://me:hush@host/db")
    assert "hush" not in command_line("shiftlab tune", options)
    assert "postgresql://me:PASSWORD@host/db" in command_line("shiftlab tune", options)
