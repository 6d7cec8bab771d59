"""What a study optimises: honest scores that never read the held-out environment, and one checkpoint for all of them."""

import pytest

from cluster.errors import InputError
from cluster.trial import Trial
from jobs.objectives import EvaluationObjective, LoggedObjective, by_step

TRIAL = Trial.create("ERM", "D", ["c"], {}, 0, {"steps": 20})
STEPS = {
    10: {"a": (0.5, 0.8, 0.7), "b": (0.5, 0.6, 0.4), "c": (0.1, 0.2, 3.0)},
    20: {"a": (0.9, 0.9, 0.3), "b": (0.9, 0.4, 0.9), "c": (0.7, 0.6, 2.0)},
}


def rows(steps=STEPS):
    """By environment: accuracy on "in", accuracy and loss on "out"."""
    found = []
    for step, environments in steps.items():
        for name, (inside, out, loss) in environments.items():
            found += [(step, name, "in", "accuracy", inside), (step, name, "in", "loss", 9.0)]
            found += [(step, name, "out", "accuracy", out), (step, name, "out", "loss", loss)]
    return found


@pytest.mark.parametrize(
    ("names", "final"),
    [
        (["validation"], [0.7]),  # step 10: (0.8 + 0.6) / 2; step 20: 0.65
        (["worst"], [0.6]),  # step 10: 0.6; step 20: 0.4
        (["validation-loss"], [0.55]),  # step 10: 0.55; step 20: 0.6
        (["oracle"], [0.6]),  # the last step's, whatever came before
        (["validation", "worst", "seconds"], [0.7, 0.6, 12.5]),  # all read at the checkpoint that is best by the first
        (["validation-loss", "oracle"], [0.55, 0.2]),
    ],
)
def test_final_scores(names, final):
    objective = EvaluationObjective(names)
    assert objective.final(TRIAL, rows(), 12.5) == pytest.approx(final)


def test_directions():
    objective = EvaluationObjective(["validation", "validation-loss", "seconds"])
    assert objective.directions == ["maximize", "minimize", "minimize"]


@pytest.mark.parametrize("name", ["validation", "worst", "validation-loss"])
def test_what_is_held_out_is_never_read(name):
    """Whatever the held-out environment measures, also nothing at all, the score is the same."""
    objective = EvaluationObjective([name])
    honest = objective.final(TRIAL, rows(), 1.0)
    lied = [(s, e, p, m, 1.0 if e == "c" else v) for s, e, p, m, v in rows()]
    silent = [row for row in rows() if row[1] != "c"]
    assert objective.final(TRIAL, lied, 1.0) == objective.final(TRIAL, silent, 1.0) == honest
    for step, found in by_step(rows()).items():
        assert objective.at_step(TRIAL, found) == objective.at_step(TRIAL, by_step(lied)[step])


def test_the_in_split_is_never_read():
    objective = EvaluationObjective(["validation"])
    lied = [(s, e, p, m, 0.0 if p == "in" else v) for s, e, p, m, v in rows()]
    assert objective.final(TRIAL, lied, 1.0) == objective.final(TRIAL, rows(), 1.0)


def test_only_the_oracle_reads_what_is_held_out():
    objective = EvaluationObjective(["oracle"])
    lied = [(s, e, p, m, 0.25 if e == "c" else v) for s, e, p, m, v in rows()]
    assert objective.final(TRIAL, lied, 1.0) == [0.25]


def test_what_a_module_logs():
    logged = [(10, "all", "out", "val_loss", 3.0), (20, "all", "out", "val_loss", 2.0), (20, "all", "in", "x", 1.0)]
    assert LoggedObjective(["val_loss:min"]).final(TRIAL, logged, 1.0) == [2.0]
    assert LoggedObjective(["val_loss:max"]).final(TRIAL, logged, 1.0) == [3.0]
    with pytest.raises(InputError, match="the module logs no 'val_acc'; it logs val_loss"):
        LoggedObjective(["val_acc:max"]).final(TRIAL, logged[:1], 1.0)


@pytest.mark.parametrize(
    ("kind", "names", "message"),
    [
        (EvaluationObjective, ["accuracy"], "unknown objective 'accuracy'; choose from validation, worst"),
        (EvaluationObjective, ["worst", "worst"], "worst, worst: name one or more, each once"),
        (EvaluationObjective, [], "none: name one or more"),
        (EvaluationObjective, ["seconds"], "seconds alone would choose the shortest training"),
        (LoggedObjective, ["val_loss"], "'val_loss' has no direction"),
    ],
)
def test_wrong_objectives_are_one_line(kind, names, message):
    with pytest.raises(InputError) as caught:
        kind(names)
    assert message in str(caught.value)
