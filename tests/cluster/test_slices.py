"""Steps over slices: the same bits whoever lives, faults found and their slices named, and the arithmetic of lost time."""

import math
import time
from functools import partial

import numpy as np
import pytest

from cluster.crew import WorkersLostError
from cluster.errors import InputError
from cluster.slices.controller import ElasticController
from cluster.slices.corruption import Detector
from cluster.slices.faults import BitFlip, Kill, SignFlip, Slow, Stuck
from cluster.slices.goodput import goodput, simulated_goodput
from cluster.slices.shards import Answered, Part, Shard, digest

SHARDS, EXAMPLES, WIDTH = 8, 6, 5


def make_regression(noise=0.1):
    """Least squares on rows that follow from (step, shard) alone."""
    truth = np.arange(1.0, WIDTH + 1)

    def compute(parameters, shard):
        generator = np.random.default_rng([7, shard.step, shard.number])
        x = generator.normal(size=(EXAMPLES, WIDTH))
        wrong = x @ (parameters - truth) + noise * generator.normal(size=EXAMPLES)
        return Part(x.T @ wrong, float(0.5 * wrong @ wrong), EXAMPLES)

    return compute


def train(steps=30, slices=4, happen=None, **options):
    parameters, reports = np.zeros(WIDTH), []
    with ElasticController(
        make_regression, slices=slices, shards=SHARDS, **{"in_process": True, **options}
    ) as controller:
        for step in range(steps):
            if happen:
                happen(controller, step)
            reports.append(controller.step(parameters, step))
            parameters = parameters - 0.2 * reports[-1].gradient
    return parameters, reports


def test_a_step_is_the_mean_over_all_examples():
    _, (report,) = train(1)
    compute = make_regression()
    parts = [compute(np.zeros(WIDTH), Shard(0, number)) for number in range(SHARDS)]
    assert report.gradient == pytest.approx(sum(p.gradient for p in parts) / (SHARDS * EXAMPLES))
    assert report.loss == pytest.approx(sum(p.loss for p in parts) / (SHARDS * EXAMPLES))
    assert report.examples == SHARDS * EXAMPLES
    assert report.rounds == 2


def test_a_run_that_loses_and_wins_slices_ends_in_the_same_bits():
    def happen(controller, step):
        if step == 10:
            controller.lose(1)
        if step == 20:
            controller.join()

    clean, _ = train()
    found, reports = train(happen=happen)
    assert found.tobytes() == clean.tobytes()
    assert [report.rounds for report in (reports[9], reports[10], reports[20])] == [2, 3, 2]
    assert train(slices=1)[0].tobytes() == clean.tobytes()
    assert np.abs(clean - np.arange(1.0, WIDTH + 1)).max() < 0.1


def test_dropping_keeps_the_time_of_a_step_and_changes_the_run():
    def happen(controller, step):
        if step == 10:
            controller.lose(1)
        if step == 20:
            controller.join()

    clean, _ = train()
    found, reports = train(happen=happen, policy="drop")
    assert [report.rounds for report in reports] == [2] * 30
    assert [reports[n].examples for n in (9, 10, 20)] == [48, 36, 48]
    assert found.tobytes() != clean.tobytes()
    assert np.abs(found - clean).max() < 0.1
    assert train(policy="drop")[0].tobytes() == clean.tobytes()


def test_slices_on_actors_give_the_bits_of_this_process_though_one_is_killed_within_a_step(ray_session):
    clean, _ = train(8)
    found, reports = train(8, fault=Kill(2, step=3), in_process=None)
    assert found.tobytes() == clean.tobytes()
    assert [report.lost for report in reports] == [(2,) if step == 3 else () for step in range(8)]


def test_a_last_slice_that_goes_ends_the_run():
    with ElasticController(make_regression, slices=1, shards=2, in_process=True) as controller:
        controller.lose(0)
        with pytest.raises(WorkersLostError, match="no slice is left"):
            controller.step(np.zeros(WIDTH), 0)


@pytest.mark.parametrize("policy", ["redeal", "drop"])
def test_without_faults_nothing_is_suspicious(policy):
    clean, _ = train(60)
    found, reports = train(60, detector=Detector(), policy=policy)
    assert found.tobytes() == clean.tobytes()
    assert sum(report.replays for report in reports) == 0


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_fault_that_comes_and_goes_is_found_by_repetition():
    # Late, when entries are below 2: the top exponent bit makes them huge then, and larger ones vanish (see below).
    fault = BitFlip(2, probability=0.4, seed=1, first=15)
    clean, _ = train()
    broken, _ = train(fault=fault)
    assert not np.abs(broken).max() < 1e100
    found, reports = train(fault=fault, detector=Detector())
    assert found.tobytes() == clean.tobytes()
    (report,) = [report for report in reports if report.excluded]
    assert report.excluded == (2,)
    assert report.found_by == "repetition"
    assert report.replays == 1
    assert sum(r.replays for r in reports) == 1


def test_a_flip_that_makes_a_number_vanish_is_not_suspicious_and_is_left_to_audits():
    gradient = np.array([3.0, 1.0])
    assert BitFlip(0, 1.0, seed=2)(0, Shard(0, 0), 0, gradient).min() < 1e-300
    clean, _ = train(3)
    fault = BitFlip(2, probability=1.0)  # the first gradients are large
    assert train(3, fault=fault, detector=Detector(audit_every=1))[0].tobytes() == clean.tobytes()


def test_a_fault_that_stays_is_found_by_a_vote():
    clean, _ = train()
    found, reports = train(fault=Stuck(3), detector=Detector())
    assert found.tobytes() == clean.tobytes()
    assert (reports[0].excluded, reports[0].found_by) == ((3,), "vote")
    assert all(not report.excluded for report in reports[1:])


def test_with_two_slices_a_fault_that_stays_is_seen_and_nobody_is_blamed():
    _, reports = train(1, slices=2, fault=Stuck(1), detector=Detector(ratio=1.5))
    assert (reports[0].excluded, reports[0].found_by) == ((), "undecided")


def test_what_never_looks_suspicious_is_found_by_an_audit_and_stays_until_then():
    fault = SignFlip(1, probability=1.0, first=7)
    clean, _ = train()
    missed, reports = train(fault=fault, detector=Detector())
    assert missed.tobytes() != clean.tobytes()
    found, reports = train(fault=fault, detector=Detector(audit_every=5))
    assert [step for step, report in enumerate(reports) if report.excluded] == [10]
    assert found.tobytes() != clean.tobytes()  # the errors of steps 7 to 9 stay
    assert train(fault=SignFlip(1, 1.0, first=5), detector=Detector(audit_every=5))[0].tobytes() == clean.tobytes()


def test_a_slow_slice_is_waited_for_and_not_blamed():
    began = time.perf_counter()
    found, reports = train(2, fault=Slow(1, 0.01), detector=Detector(audit_every=2))
    assert time.perf_counter() - began >= 0.04
    assert found.tobytes() == train(2)[0].tobytes()
    assert not any(report.excluded for report in reports)


def test_an_audit_that_finds_nothing_changes_nothing():
    clean, _ = train()
    found, reports = train(detector=Detector(audit_every=10))
    assert found.tobytes() == clean.tobytes()
    assert [step for step, report in enumerate(reports) if report.replays] == [0, 10, 20]


def test_a_training_that_diverges_by_itself_blames_nobody():
    def make_huge():
        return lambda parameters, shard: Part(np.full(2, np.inf if shard.number == 1 else 1.0), 0.0, 1)

    with ElasticController(make_huge, slices=3, shards=3, detector=Detector(), in_process=True) as controller:
        report = controller.step(np.zeros(2), 0)
    assert report.suspicion == "shard 1: not finite"
    assert report.excluded == ()
    assert np.isinf(report.gradient).all()


def answers_of(gradients, loss=1.0):
    return {n: Answered(Part(np.array(g), loss, 1), digest(np.array(g))) for n, g in enumerate(gradients)}


def test_what_raises_suspicion():
    owners = {0: 0, 1: 1, 2: 2}
    fine = answers_of([[1.0, 2.0], [2.0, 1.0], [3.0, 0.0]])
    detector = Detector(window=3)
    assert detector.suspicion(1, fine, owners) == ""
    assert "slice 2: largest gradient entry 9" in detector.suspicion(1, answers_of([[1.0], [2.0], [9.0]]), owners)
    assert "not finite" in detector.suspicion(1, answers_of([[1.0], [math.nan], [1.0]]), owners)
    assert "not finite" in detector.suspicion(1, answers_of([[1.0], [1.0], [1.0]], loss=math.inf), owners)
    altered = fine | {1: fine[1]._replace(part=fine[1].part._replace(gradient=np.array([2.0, 1.5])))}
    assert "not those that slice 1 computed" in detector.suspicion(1, altered, owners)
    for loss in (1.0, 0.9, 1.1):
        detector.accept(answers_of([[1.0]], loss))
    assert "loss 3 against 1" in detector.suspicion(1, answers_of([[1.0]], 3.0), {0: 0})
    assert detector.suspicion(1, answers_of([[1.0]], 0.1), {0: 0}) == ""


def test_a_shard_of_more_examples_is_no_suspect_for_its_larger_sum():
    found = answers_of([[1.0], [1.0], [10.0]])
    found[2] = found[2]._replace(part=found[2].part._replace(examples=10))
    assert Detector().suspicion(1, found, {0: 0, 1: 1, 2: 2}) == ""


def test_bytes_that_change_on_their_way_are_asked_for_again_and_nobody_is_blamed():
    clean, _ = train(3)
    parameters, altered = np.zeros(WIDTH), []
    with ElasticController(
        make_regression, slices=4, shards=SHARDS, detector=Detector(), in_process=True
    ) as controller:
        call = controller._crew.call

        def altering(common, dealt):
            answer = call(common, dealt)
            if not altered:  # once, after the slice has taken its digest
                altered.append(answer.results[1][0].part.gradient)
                altered[0][2] += 1e-9
            return answer

        controller._crew.call = altering
        for step in range(3):
            report = controller.step(parameters, step)
            if step == 0:
                assert (report.found_by, report.excluded, report.replays) == ("transit", (), 2)
            parameters = parameters - 0.2 * report.gradient
    assert parameters.tobytes() == clean.tobytes()


def test_faults_depend_on_slice_step_and_attempt_alone():
    gradient = np.linspace(0.1, 1, 20)
    flip = BitFlip(1, probability=0.5, seed=3)
    struck = [flip(1, Shard(step, 0), 0, gradient).tobytes() != gradient.tobytes() for step in range(200)]
    assert 70 < sum(struck) < 130
    assert struck == [flip(1, Shard(step, 4), 0, gradient).tobytes() != gradient.tobytes() for step in range(200)]
    assert struck != [flip(1, Shard(step, 0), 1, gradient).tobytes() != gradient.tobytes() for step in range(200)]
    assert flip(0, Shard(0, 0), 0, gradient) is gradient
    broken = BitFlip(1, 1.0)(1, Shard(0, 0), 0, gradient)
    assert (broken != gradient).sum() == 1
    assert broken.max() > 1e300
    assert gradient.max() == 1
    turned = SignFlip(1, 1.0)(1, Shard(0, 0), 0, gradient)
    assert np.abs(turned).tobytes() == gradient.tobytes()
    assert (turned < 0).sum() == 1


@pytest.mark.parametrize(("per_hour", "without", "with_elasticity"), [(3, 0.5, 0.96), (5, 1 / 6, 0.9333)])
def test_goodput(per_hour, without, with_elasticity):
    assert goodput(per_hour, 600) == pytest.approx(without)
    assert goodput(per_hour, 30, 600, 0.97) == pytest.approx(with_elasticity, abs=1e-4)
    for arguments in ((600, 0, 0), (30, 600, 0.97)):
        assert simulated_goodput(per_hour, *arguments, hours=20_000, seed=0) == pytest.approx(
            goodput(per_hour, *arguments), abs=2e-3
        )
    assert goodput(100, 600) == 0
    assert simulated_goodput(0, 600, 0, 0, 1, 0) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ElasticController(make_regression, slices=0, shards=1), "slices: is 0"),
        (lambda: ElasticController(make_regression, slices=1, shards=0), "shards: is 0"),
        (
            lambda: ElasticController(make_regression, slices=3, shards=4, policy="drop"),
            "shards: 4 cannot be dealt evenly",
        ),
        (lambda: ElasticController(make_regression, slices=3, shards=4, policy="wait"), "policy: unknown 'wait'"),
        (lambda: train(1, fault=Kill(0, 0)), "fault: Kill would end this process"),
        (lambda: Detector(ratio=1.0), "ratio: is 1.0"),
        (lambda: Detector(deviations=0), "deviations: is 0"),
        (lambda: Detector(window=1), "window: is 1"),
        (lambda: Detector(audit_every=-1), "audit_every: is -1"),
        (lambda: BitFlip(0, 1.5), "probability: is 1.5"),
        (lambda: goodput(-1, 600), "per_hour: is -1"),
        (lambda: goodput(1, 600, 600, 1.5), "throughput: is 1.5"),
        (lambda: simulated_goodput(6, 600, 600, 0.97, 10, 0), "per_hour: 6 interruptions of 1200 s fill the hour"),
        (
            partial(Detector().suspicion, 0, {0: Answered(Part(np.ones(1), 1.0, 1), "")}, {0: 4}),
            "digest: shard 0 of slice 4",
        ),
    ],
)
def test_wrong_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
