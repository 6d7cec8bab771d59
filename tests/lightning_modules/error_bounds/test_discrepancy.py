"""The bound: closed forms, packs against solo runs, an independent loop, stability, bad input."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_modules.error_bounds.concentration import concentration_term
from lightning_modules.error_bounds.critics import CriticEnsemble, Problem, Side, Training, _packs, train_critics
from lightning_modules.error_bounds.discrepancy import (
    DisagreementDiscrepancy,
    bound_of_critic,
    estimate_many,
    select_by_stability,
    singular_vectors,
    spaces_of,
    stability_score,
)
from lightning_modules.error_bounds.evidence import Evidence, LinearHead, error_rate, logits_of_probabilities
from lightning_modules.error_bounds.losses import agreement_loss, disagreement_loss
from lightning_modules.error_bounds.network_critic import bound_with_networks
from lightning_modules.errors import InputError

FEW = Training(restarts=4, epochs=4, batch_size=64)


def circle(seed, arc=math.pi / 6, count=4000, flip=False):
    """Classifier sign(x1); the source lives on two arcs, the target everywhere."""
    generator = np.random.default_rng(seed)
    source = generator.uniform(-arc, arc, count) + math.pi * generator.integers(0, 2, count)
    target = generator.uniform(0, 2 * math.pi, count)
    points = [np.stack([np.cos(a), np.sin(a)], 1).astype(np.float32) for a in (source, target)]
    logits = [np.stack([-x[:, 0], x[:, 0]], 1) for x in points]
    labels = (points[0][:, 0] > 0).astype(np.int64)
    truth = (points[1][:, 0] > 0).astype(np.int64)
    if flip:
        truth = np.where(np.abs(points[1][:, 0]) < math.cos(arc), 1 - truth, truth)
    return Evidence(points[0], logits[0], labels, points[1], logits[1]), truth, target


def clouds(seed=0, count=600, target_count=500, width=24, classes=5, shift=0.4):
    generator = np.random.default_rng(seed)
    head = LinearHead(generator.standard_normal((classes, width)).astype(np.float32), np.zeros(classes, np.float32))
    source = generator.standard_normal((count, width)).astype(np.float32)
    target = (generator.standard_normal((target_count, width)) + shift).astype(np.float32)
    labels = (head(source) + generator.standard_normal((count, classes))).argmax(1)
    return Evidence(source, head(source), labels, target, head(target))


def test_concentration_term():
    assert concentration_term(750, 750, 0.01) == pytest.approx(0.123897, abs=1e-6)
    assert concentration_term(5000, 5000, 0.01) == pytest.approx(0.047985, abs=1e-6)
    assert concentration_term(5000, 2000, 0.01) == pytest.approx(0.054712, abs=1e-6)
    assert concentration_term(2000, 5000, 0.01) > 0.06
    for values in ((0, 5, 0.1), (5, 0, 0.1), (5, 5, 0.0), (5, 5, 1.0)):
        with pytest.raises(InputError):
            concentration_term(*values)


def test_violations_of_the_concentration_stay_below_delta():
    """Two given classifiers: err_T - (err_S + Delta-hat) exceeds eps in less than a share delta of 4,000 draws."""
    generator = np.random.default_rng(0)
    n_source, n_target, delta = 60, 80, 0.2
    # err_S(h) 0.3, h' differs from h on half of these rows and on none else; P_T[h != h'] = 0.5 = err_T: h' is the truth there.
    wrong = generator.random((4000, n_source)) < 0.3
    differs = wrong & (generator.random((4000, n_source)) < 0.5)
    target = generator.random((4000, n_target)) < 0.5
    estimate = wrong.mean(1) + target.mean(1) - differs.mean(1)
    true = 0.3 + 0.5 - 0.15
    assert (true > estimate + concentration_term(n_source, n_target, delta)).mean() <= delta
    assert (true > estimate).mean() > delta  # without it, more often


@pytest.mark.parametrize("seed", range(3))
def test_circle_reaches_the_supremum_over_linear_critics(seed):
    evidence, truth, target = circle(seed)
    result = DisagreementDiscrepancy("features", seed=seed).estimate(evidence)
    assert result.discrepancy == pytest.approx(1 / 2 - 1 / 6, abs=0.04)
    assert result.source_error == 0
    # The worst labelling that a linear critic can give is covered.
    worst = (np.cos(target - (math.pi / 2 - math.pi / 6)) > 0).astype(np.int64)
    assert error_rate(evidence.target_logits, worst) == pytest.approx(1 / 3, abs=0.03)
    assert error_rate(evidence.target_logits, worst) <= result.error_bound
    assert error_rate(evidence.target_logits, truth) <= result.error_bound


def test_a_broken_assumption_shows_as_a_violation():
    evidence, truth, _ = circle(0, arc=math.pi / 3, flip=True)
    result = DisagreementDiscrepancy("features").estimate(evidence)
    true = error_rate(evidence.target_logits, truth)
    assert true == pytest.approx(1 / 3, abs=0.03)
    assert result.error_bound == pytest.approx(0.26, abs=0.04)
    assert true > result.error_bound


def test_without_a_shift_the_discrepancy_is_small():
    for seed in range(5):
        evidence = clouds(seed, 2000, 2000, width=10, shift=0.0)
        assert 0 <= DisagreementDiscrepancy("logits", seed=seed).estimate(evidence).discrepancy <= 0.08


def test_the_true_labelling_as_critic_gives_the_target_error_itself():
    evidence = clouds()
    truth = np.random.default_rng(1).integers(0, 5, len(evidence.target_logits))
    bound, exact = bound_of_critic(evidence, evidence.source_labels, truth)
    assert exact == pytest.approx(error_rate(evidence.target_logits, truth), abs=1e-7)
    assert bound == pytest.approx(exact + concentration_term(600, 500, 0.01))


def plain_loop(problem, training):
    """One restart after the other with autograd and torch's AdamW, from the same weights and orders of rows."""
    restarts, classes, size = training.restarts, problem.classes, training.batch_size
    module = CriticEnsemble([problem], training)
    generator = torch.Generator().manual_seed(problem.seed)
    module._start(problem, generator)  # moves the generator on as the pack's
    orders = []
    for _ in range(training.epochs):
        orders.append(
            [torch.randperm(len(side.train), generator=generator) for side in (problem.source, problem.target)]
        )
    curves = torch.zeros(2, training.epochs, restarts, dtype=torch.double)
    for r in range(restarts):
        weight = module.weight.detach()[0, r::restarts].clone().requires_grad_()
        bias = module.bias.detach()[0, r::restarts, 0].clone().requires_grad_()
        assert weight.shape == (classes, problem.width)
        optimizer = torch.optim.AdamW([weight, bias], lr=training.lr, weight_decay=training.weight_decay)
        for epoch, (source, target) in enumerate(orders):
            for start in range(0, min(len(source), len(target)), size):
                s, t = source[start : start + size], target[start : start + size]
                a = agreement_loss(problem.source.train[s] @ weight.T + bias, problem.source.train_target[s]).mean()
                d = disagreement_loss(
                    problem.target.train[t] @ weight.T + bias, problem.target.train_target[t], training.loss
                ).mean()
                optimizer.zero_grad()
                ((a + d) / 2).backward()
                optimizer.step()
            for number, side in enumerate((problem.source, problem.target)):
                found = (side.validation @ weight.T + bias).argmax(1)
                curves[number, epoch, r] = (found == side.validation_target).double().mean()
    return curves, weight.detach(), bias.detach()


def problem_of(evidence, seed=0, space="features", val=0.5):
    method = DisagreementDiscrepancy(space, seed=seed, val_frac=val)
    halves = method.halves(evidence)
    sides = []
    for features, logits, (train, validation) in (
        (evidence.source_features, evidence.source_logits, halves[0]),
        (evidence.target_features, evidence.target_logits, halves[1]),
    ):
        x, y = torch.from_numpy(features), torch.from_numpy(logits.argmax(1))
        sides.append(Side(x[train], y[train], x[validation], y[validation]))
    return Problem(sides[0], sides[1], evidence.classes, seed)


@pytest.mark.parametrize("loss", ["dis2", "one_minus_p", "neg_ce"])
def test_a_pack_equals_separate_loops(loss):
    training = replace(FEW, loss=loss, restarts=3)
    problem = problem_of(clouds())  # 300 and 250 training rows: the last batches differ in size
    (critics,) = train_critics([problem], training)
    curves, _, _ = plain_loop(problem, training)
    # An agreement may differ by a row whose two largest logits are equal to rounding.
    assert (critics.source_agreement - curves[0]).abs().max() <= 1 / 300 + 1e-9
    assert (critics.target_agreement - curves[1]).abs().max() <= 1 / 250 + 1e-9
    gaps = curves[0] - curves[1]
    assert critics.discrepancy == pytest.approx(float(gaps.max()), abs=1e-9)
    one = replace(training, restarts=1, epochs=1)
    (alone,) = train_critics([problem], one)
    _, weight, bias = plain_loop(problem, one)
    assert torch.allclose(alone.weight, weight, atol=1e-5)
    assert torch.allclose(alone.bias, bias, atol=1e-5)


def test_many_targets_and_spaces_equal_their_solo_runs():
    tasks = [
        (DisagreementDiscrepancy(space, FEW, seed=seed), clouds(seed, target_count=count))
        for seed, count in ((0, 500), (1, 500), (2, 700))
        for space in ("logits", "features", "pca:4")
    ]
    together = estimate_many(tasks)
    for (method, evidence), result in zip(tasks, together, strict=True):
        alone = method.estimate(evidence)
        assert torch.equal(result.critics.source_agreement, alone.critics.source_agreement)
        assert result.error_bound == alone.error_bound
        assert torch.allclose(result.critics.weight, alone.critics.weight, atol=1e-5)
        assert result.critics.weight.shape[1] == {"logits": 5, "features": 24, "pca:4": 6}[method.feature_space]
    sizes = sorted(map(len, _packs([problem_of(clouds(s)) for s in range(3)] + [problem_of(clouds(3, 640))])))
    assert sizes == [1, 3]


def test_the_best_critic_is_kept_from_its_epoch():
    evidence = clouds()
    problem = problem_of(evidence)
    (critics,) = train_critics([problem], replace(FEW, epochs=12))
    gaps = critics.source_agreement - critics.target_agreement
    assert critics.discrepancy == pytest.approx(float(gaps.max()))
    agreement = []
    for side in (problem.source, problem.target):
        found = (side.validation @ critics.weight.T + critics.bias).argmax(1)
        agreement.append(float((found == side.validation_target).double().mean()))
    assert agreement[0] - agreement[1] == pytest.approx(critics.discrepancy, abs=1 / 300 + 1e-9)


def test_more_restarts_never_lower_the_discrepancy():
    (critics,) = train_critics([problem_of(clouds())], replace(FEW, restarts=10))
    gaps = (critics.source_agreement - critics.target_agreement).amax(0)
    assert (gaps.cummax(0).values.diff() >= 0).all()
    assert critics.discrepancy == float(gaps.max())


def test_the_source_error_is_that_of_the_validation_rows():
    evidence = clouds()
    method = DisagreementDiscrepancy("logits", FEW)
    (_, validation), (_, target) = method.halves(evidence)
    result = method.estimate(evidence)
    assert result.source_error == error_rate(evidence.source_logits[validation], evidence.source_labels[validation])
    assert (result.n_source_val, result.n_target_val) == (len(validation), len(target)) == (300, 250)
    assert result.epsilon == concentration_term(300, 250, 0.01)
    assert result.error_bound == pytest.approx(result.source_error + result.discrepancy + result.epsilon)
    assert method.estimate(evidence).error_bound == result.error_bound
    assert replace(method, seed=1).estimate(evidence).error_bound != result.error_bound


def test_labels_of_the_source_do_not_reach_the_critics():
    evidence = clouds()
    other = replace(evidence, source_labels=(evidence.source_labels + 1) % 5)
    method = DisagreementDiscrepancy("logits", FEW)
    assert torch.equal(method.estimate(evidence).critics.weight, method.estimate(other).critics.weight)


def test_projections_are_those_of_the_singular_value_decomposition():
    features = clouds().source_features
    ours = singular_vectors(features)[:, :6]
    theirs = np.linalg.svd(features)[2][:6].T
    assert np.allclose(np.abs((ours * theirs).sum(0)), 1, atol=1e-4)
    assert spaces_of(24, ["logits", "pca:4", "pca:16"]) == ["logits", "pca:4"]


def test_a_projection_is_of_the_training_half_alone():
    evidence = clouds()
    method = DisagreementDiscrepancy("pca:4", FEW)
    train = method.halves(evidence)[0][0]
    basis = singular_vectors(evidence.source_features[train])[:, :6]
    projected = replace(
        evidence,
        source_features=evidence.source_features @ basis,
        target_features=evidence.target_features @ basis,
    )
    by_hand = replace(method, feature_space="features").estimate(projected)
    assert torch.allclose(method.estimate(evidence).critics.weight, by_hand.critics.weight, atol=1e-6)


def test_stability_score_and_selection():
    rising = torch.tensor([[0.2], [0.6], [0.9]], dtype=torch.double)
    assert stability_score(rising) == pytest.approx(1)
    unsteady = torch.tensor([[0.5], [0.1], [0.9]], dtype=torch.double)
    assert stability_score(unsteady) == pytest.approx(0.9 / (0.5 + 0.4 + 0.8))
    assert stability_score(torch.cat([rising, unsteady], 1)) == pytest.approx(0.9 / 1.7)
    assert stability_score(torch.zeros(3, 1)) == 0
    evidence = clouds(width=64, classes=5)
    results = [DisagreementDiscrepancy(s, FEW).estimate(evidence) for s in ("logits", "pca:4", "pca:16")]
    chosen = select_by_stability(results, 0.0)
    assert chosen.error_bound == min(r.error_bound for r in results)
    assert select_by_stability(results, 1.0).feature_space == "logits"
    with pytest.raises(InputError, match="logits is missing"):
        select_by_stability(results[1:])


def test_a_whole_network_can_be_the_critic():
    evidence = clouds(width=6, classes=3)

    def make(generator):
        network = torch.nn.Linear(6, 3)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.uniform_(-0.4, 0.4, generator=generator)
        return network

    method = DisagreementDiscrepancy("features", Training(restarts=2, epochs=60, lr=1e-2, batch_size=64))
    networks = bound_with_networks(method, evidence, evidence.source_features, evidence.target_features, make)
    linear = method.estimate(evidence)
    assert networks.feature_space == "network"
    assert networks.discrepancy == pytest.approx(linear.discrepancy, abs=0.05)
    assert networks.epsilon == linear.epsilon
    assert networks.critics.source_agreement.shape == (60, 2)
    again = bound_with_networks(method, evidence, evidence.source_features, evidence.target_features, make)
    assert torch.equal(networks.critics.target_agreement, again.critics.target_agreement)
    with pytest.raises(InputError, match="source: 3 inputs"):
        bound_with_networks(method, evidence, evidence.source_features[:3], evidence.target_features, make)


def broken(**changes):
    return lambda: replace(clouds(), **changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (broken(source_labels=np.full(600, 5)), "5 in row 0 is outside 0 to 4"),
        (broken(source_labels=np.zeros(599, np.int64)), "source labels"),
        (broken(source_labels=np.zeros(600)), "not integers"),
        (broken(target_logits=np.zeros((500, 4), np.float32)), "4 classes, the source has 5"),
        (broken(target_features=np.zeros((500, 9), np.float32)), "9 columns, the source has 24"),
        (broken(target_features=np.full((500, 24), np.nan, np.float32)), "500 rows have NaN"),
        (broken(target_features=np.zeros((499, 24), np.float32)), "499 rows of features, 500 of logits"),
        (lambda: clouds(target_count=4), "4 rows for 5 classes are too few"),
        (lambda: DisagreementDiscrepancy("pixels"), "feature_space: unknown 'pixels'"),
        (lambda: DisagreementDiscrepancy(val_frac=1.0), "val_frac"),
        (lambda: DisagreementDiscrepancy(delta=0.0), "delta"),
        (lambda: DisagreementDiscrepancy(training=Training(restarts=0)), "restarts: 0 is too small"),
        (lambda: DisagreementDiscrepancy("pca:16", FEW).estimate(clouds()), "pca:16 leaves 1 of 24 directions"),
        (lambda: LinearHead(np.zeros((3, 4)), np.zeros(2)), r"\[3, 4\] and \[2\]"),
        (lambda: LinearHead(np.zeros((3, 4)), np.zeros(3))(np.zeros((2, 5))), "takes 4 features, the table has 5"),
        (lambda: logits_of_probabilities(np.full((2, 3), 0.5)), "row 0 sums to 1.5, not to 1"),
        (lambda: logits_of_probabilities(np.array([[1.5, -0.5]])), "negative"),
        (lambda: logits_of_probabilities(np.array([[np.nan, 1.0]])), "NaN"),
    ],
)
def test_bad_input_is_one_line_that_names_the_field(make, message):
    with pytest.raises(InputError, match=message) as found:
        make()
    assert "\n" not in str(found.value)
