"""Minimax training: gradients, convexity, who the adversary is, the exact optimum, rates, and problems side by side."""

import math
from dataclasses import replace

import numpy as np
import pytest

from lightning_modules.data.examples import BUILT_IN
from lightning_modules.errors import InputError
from lightning_modules.strategic.baselines import arms, problems
from lightning_modules.strategic.cost_sets import EigenvalueBox
from lightning_modules.strategic.costs import CostStack, LpCost, MahalanobisCost
from lightning_modules.strategic.linear_program import lp_minimax
from lightning_modules.strategic.misestimation import gaussian_error, gaussian_sample, two_point_minimax
from lightning_modules.strategic.responses import strategic_error, strategic_hinge
from lightning_modules.strategic.solvers import Problems, full_batch, gradients, stochastic

HORIZONS = (100, 400, 1600, 6400)
THREE = [LpCost(1, 1.0), LpCost(math.inf, 0.25), LpCost(1, 0.5)]


def blobs(seed, share=0.5, n=200, d=5):
    generator = np.random.default_rng(seed)
    y = np.where(np.arange(n) < share * n, 1.0, -1.0)
    return generator.normal(size=(n, d)) + 0.5 * y[:, None], y


def objective(x, y, w, b, costs, lam):
    """Worst regularised risk [m] of m classifiers, written out."""
    scores, found = w @ x.T + b[:, None], []
    for cost in costs:
        k = cost.shift(w)
        found.append(np.maximum(0, 1 - y * (scores + k[:, None])).mean(1) + lam * k)
    return np.max(found, axis=0)


def box_costs(d, least=0.25, most=4.0):
    return list(EigenvalueBox(np.eye(d), least, most).extreme_costs(np.ones(d)))


@pytest.fixture(scope="module")
def cancer():
    """Six standardised features of 120 benign and 120 malignant rows."""
    inputs, labels, _ = BUILT_IN["BreastCancer"]()
    rows = np.concatenate([np.flatnonzero(labels == c)[:120] for c in (0, 1)])
    x = inputs[rows, :6].astype(np.float64)
    return (x - x.mean(0)) / x.std(0), np.where(labels[rows] == 1, 1.0, -1.0)


# the objective


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_subgradient_equals_finite_differences(kind, lam):
    cost = [MahalanobisCost(np.diag([1.0, 2, 3, 4, 5]), 0.7), LpCost(1, 0.5), LpCost(3, 0.5), LpCost(math.inf, 0.2)][
        kind
    ]
    x, y = blobs(0, 0.4)
    generator = np.random.default_rng(kind)
    for _ in range(5):
        w, b = generator.normal(size=5), generator.normal(size=1)
        problem = Problems(x, y, [[cost]], np.array([lam]), l2=np.array([0.3]))
        stack = CostStack(problem.costs)
        scores, k = w[None] @ x.T + b, stack.shifts(w[None])[:, 0]
        assert np.abs(1 - y * (scores + k)).min() > 1e-5  # no kink nearby
        g_w, g_b = gradients(problem, scores, k, stack.gradients(w[None])[:, 0], w[None])
        steps = 1e-6 * np.vstack([np.eye(6), -np.eye(6)])
        near = np.concatenate([w, b]) + steps
        values = objective(x, y, near[:, :5], near[:, 5], [cost], lam) + 0.15 * (near[:, :5] ** 2).sum(1)
        assert np.concatenate([g_w[0], g_b]) == pytest.approx((values[:6] - values[6:]) / 2e-6, abs=1e-5)


@pytest.mark.parametrize("share", [0.5, 0.8])
@pytest.mark.parametrize("costs", [[LpCost(2)], THREE, box_costs(5)], ids=["l2", "three", "box"])
def test_regularised_by_the_share_of_positives_the_objective_is_convex_and_without_it_is_not(share, costs):
    x, y = blobs(1, share)
    generator, count = np.random.default_rng(3), 4000
    ends = [(0.4 * generator.normal(size=(count, 5)), 2 * generator.normal(size=count)) for _ in range(2)]
    middle = [(a + b) / 2 for a, b in zip(*ends, strict=True)]
    above = {}
    for part in (0.0, 0.5, 1.0):
        values = [objective(x, y, w, b, costs, part * share) for w, b in (*ends, middle)]
        above[part] = int((values[2] > (values[0] + values[1]) / 2 + 1e-12).sum())
    assert above[1.0] == 0
    assert above[0.0] > above[0.5] > 0
    assert above[0.0] > 0.02 * count


def test_smallest_example_of_the_missing_convexity():
    x, y = np.zeros((1, 1)), np.ones(1)
    values = objective(x, y, np.array([[1.0], [-1.0], [0.0]]), np.zeros(3), [LpCost(2)], 0.0)
    assert values.tolist() == [0, 0, 1]
    assert objective(x, y, np.array([[1.0], [-1.0], [0.0]]), np.zeros(3), [LpCost(2)], 1.0).tolist() == [1, 1, 1]


def test_no_square_penalty_makes_up_for_it():
    x, y = np.zeros((1, 1)), np.ones(1)
    step = 1e-4
    w = np.array([[step], [-step], [0.0]])
    ends, _, middle = objective(x, y, w, np.zeros(3), [LpCost(2)], 0.0) + 500 * w[:, 0] ** 2
    assert middle > ends + 0.9 * step


# who the adversary is


def test_with_that_regularisation_the_cheapest_cost_is_the_worst_of_every_classifier_and_without_it_is_not():
    x, y = blobs(2)
    generator, costs = np.random.default_rng(0), box_costs(5)
    w, b = 0.2 * generator.normal(size=(2000, 5)), generator.normal(size=2000)
    costliest, cheapest = ([objective(x, y, w, b, [c], lam) for lam in (0.5, 0.0)] for c in costs)
    assert (cheapest[0] >= costliest[0] - 1e-12).all()
    assert 0.2 < (cheapest[1] < costliest[1]).mean() < 0.8


def test_then_minimax_training_is_training_against_the_cheapest_cost():
    x, y = blobs(2)
    costliest, cheapest = box_costs(5)
    pairs = [[costliest, cheapest], [cheapest, cheapest]]
    regularised = full_batch(Problems(x, y, pairs, np.array([0.5, 0.5])), 300)
    assert regularised.objective[0] == pytest.approx(regularised.objective[1], abs=1e-9)
    assert regularised.weights[0] == pytest.approx(regularised.weights[1], abs=1e-9)
    bare = full_batch(Problems(x, y, pairs, np.zeros(2)), 300)
    worst = objective(x, y, bare.weights, bare.biases, pairs[0], 0.0)
    assert worst[0] < worst[1] - 0.01


def test_without_it_the_solution_makes_both_extremes_equally_bad():
    x, y = blobs(5, n=300)
    costs = box_costs(5)
    found = full_batch(problems(x, y, arms(EigenvalueBox(np.eye(5), 0.25, 4.0), LpCost(2))), 600)
    names = list(arms(EigenvalueBox(np.eye(5), 0.25, 4.0), LpCost(2)))
    gap = {
        name: np.subtract(*(float(strategic_hinge(x @ w + b, y, c.shift(w)).mean()) for c in costs))
        for name, w, b in zip(names, found.weights, found.biases, strict=True)
    }
    assert abs(gap["minimax"]) <= 0.005
    assert gap["nominal"] < -0.05
    assert gap["cheapest"] > 0.05


# the exact optimum and the rates


def test_linear_program_is_exact_and_below_every_iterate(cancer):
    x, y = cancer
    w, b, value = lp_minimax(x, y, THREE, 0.5)
    each = [objective(x, y, w[None], np.array([b]), [c], 0.5)[0] for c in THREE]
    assert value == pytest.approx(max(each), abs=1e-6)
    assert sorted(each)[1] == pytest.approx(value, abs=1e-6)  # two costs tie
    assert each[2] < value - 0.05
    generator = np.random.default_rng(0)
    near = w + generator.normal(scale=0.1, size=(3000, 6)), b + generator.normal(scale=0.1, size=3000)
    assert objective(x, y, *near, THREE, 0.5).min() >= value - 1e-9
    for lam in (0.5, 0.8):
        optimum = lp_minimax(x, y, THREE, lam)[2]
        found = full_batch(Problems(x, y, [THREE], np.array([lam])), 1600)
        assert optimum - 1e-9 <= found.objective[0] <= optimum + 2e-4


def test_full_batch_falls_as_promised(cancer):
    x, y = cancer
    optimum = lp_minimax(x, y, THREE, 0.5)[2]
    problem = Problems(x, y, [THREE], np.array([0.5]))
    found = {t: full_batch(problem, t, reach=1.0) for t in HORIZONS[:3]}
    gaps = [found[t].average_objective[0] - optimum for t in HORIZONS[:3]]
    assert min(gaps) > 0
    assert np.polyfit(np.log(HORIZONS[:3]), np.log(gaps), 1)[0] <= -0.45
    assert 0 <= found[1600].objective[0] - optimum < 1e-4


def test_stochastic_falls_as_promised(cancer):
    x, y = cancer
    optimum = lp_minimax(x, y, THREE, 0.5)[2]
    problem = Problems(x, y, [THREE] * 6, np.full(6, 0.5))
    found = {t: stochastic(problem, t, 16, reach=1.0) for t in HORIZONS}
    gaps = [(found[t].objective - optimum).mean() for t in HORIZONS]
    assert np.polyfit(np.log(HORIZONS), np.log(gaps), 1)[0] <= -0.35
    assert 0 < gaps[-1] < 0.01
    adversary = found[6400].adversary
    assert adversary.sum(1) == pytest.approx(np.ones(6))
    assert adversary[:, 2].max() < 0.05  # the cost that is never the worst
    assert adversary[:, 2].min() >= 1 / (3 * 6400)  # it is the mean over all steps, which begin at a third each


def test_stochastic_steps_foresee_the_response():
    x, y = blobs(0, n=300)
    cheap = box_costs(5)[1]
    aware = Problems(x, y, [[cheap]], np.zeros(1))
    drawn, found = stochastic(aware, 3000, 32), full_batch(aware, 600)
    naive = full_batch(Problems(x, y, [[replace(cheap, budget=0.0)]], np.zeros(1)), 600)
    blind = objective(x, y, naive.weights, naive.biases, [cheap], 0.0)[0]
    assert found.objective[0] - 1e-3 <= drawn.objective[0] < found.objective[0] + 0.05 < blind - 0.1


def test_stochastic_steps_take_the_square_penalty():
    x, y = blobs(0)
    free, short = stochastic(Problems(x, y, [[LpCost(2, 0.1)]] * 2, np.zeros(2), l2=np.array([0, 1.0])), 500).weights
    assert np.linalg.norm(short) < 0.7 * np.linalg.norm(free)


# problems side by side


@pytest.mark.parametrize("solve", [full_batch, stochastic])
def test_problems_side_by_side_come_out_as_alone(solve):
    data = [blobs(seed, share) for seed, share in ((0, 0.5), (1, 0.5), (2, 0.8))]
    x, y = (np.stack(part) for part in zip(*data, strict=True))
    costs, lam, l2 = [box_costs(5), box_costs(5, 0.5, 2.0), THREE[:2]], np.array([0.0, 0.1, 0.8]), np.array([0, 0.1, 0])
    more = {"seeds": [0, 1, 2]} if solve is stochastic else {}
    together = solve(Problems(x, y, costs, lam, l2=l2), 100, **more)
    for p in range(3):
        more = {"seeds": [p]} if solve is stochastic else {}
        alone = solve(Problems(x[p], y[p], [costs[p]], lam[[p]], l2=l2[[p]]), 100, **more)
        assert (alone.weights[0] == together.weights[p]).all()  # to the last bit
        assert alone.average_objective[0] == together.average_objective[p]
        assert (alone.adversary[0] == together.adversary[p]).all()


@pytest.mark.parametrize("solve", [full_batch, stochastic])
def test_so_do_problems_on_shared_examples(solve):
    x, y = blobs(0, n=300, d=30)
    box = EigenvalueBox(np.eye(30), 0.25, 4.0).training_costs()
    quadratic = [box, box, [box[0], box[0]], [box[1], box[1]]]
    mixed = [[LpCost(1), box[0]], [LpCost(3), LpCost(1)], [box[1], LpCost(2)], [box[0], LpCost(1)]]
    for costs in (quadratic, mixed):
        more = {"seeds": [0, 1, 2, 3]} if solve is stochastic else {}
        together = solve(Problems(x, y, costs, np.array([0.0, 0.5, 0, 0])), 400, **more)
        for p, lam in enumerate((0.0, 0.5, 0, 0)):
            more = {"seeds": [p]} if solve is stochastic else {}
            alone = solve(Problems(x, y, [costs[p]], np.array([lam])), 400, **more)
            assert (alone.weights[0] == together.weights[p]).all()
            assert alone.biases[0] == together.biases[p]
            assert alone.objective[0] == together.objective[p]


@pytest.mark.parametrize("solve", [full_batch, stochastic])
def test_iterates_stay_in_the_ball_and_the_objective_is_that_of_the_weights(solve):
    x, y = blobs(0)
    costs = box_costs(5)
    found = solve(Problems(3 * x, y, [costs], np.array([0.1]), radius=0.3), 200, reach=5.0)
    assert np.linalg.norm(found.weights, axis=1).max() <= 0.3 + 1e-12
    assert np.abs(found.biases).max() <= 0.3
    expected = objective(3 * x, y, found.weights, found.biases, costs, 0.1)
    assert found.objective == pytest.approx(expected, abs=1e-12)


def test_baselines_train_against_what_their_names_say():
    box, nominal = EigenvalueBox(np.eye(3), 0.25, 4.0), MahalanobisCost(np.eye(3))
    found, w = arms(box, nominal, 0.2), np.array([3.0, 0, 4])
    shifts = {name: [float(cost.shift(w)) for cost in arm.costs] for name, arm in found.items()}
    assert shifts["naive"] == shifts["l2"] == [0, 0]
    assert shifts["nominal"] == shifts["nominal_tau"] == [5, 5]
    assert shifts["costliest"] == [2.5, 2.5]
    assert shifts["cheapest"] == [10, 10]
    assert shifts["minimax"] == shifts["minimax_0.05"] == [2.5, 10]
    x, y = blobs(0, 0.8, d=3)
    problem = problems(x, y, found)
    assert dict(zip(found, problem.lam.tolist(), strict=True))["cheapest_tau"] == 0.8
    assert problem.lam.max() == 0.8
    assert problem.l2.tolist() == [0.2 if name == "l2" else 0 for name in found]


# misestimation


@pytest.mark.parametrize(
    ("epsilon", "gap", "error"), [(0.1, 0.04, 0.5), (0.1, 0.2, 0), (0.01, 0.004, 0.5), (0.1, 0.06, 0)]
)
def test_two_points_near_the_boundary(epsilon, gap, error):
    assert two_point_minimax(epsilon, gap) == error


def test_collapse_of_the_classifier_that_is_exact_for_another_cost():
    x, y = gaussian_sample(400_000, 0.5, 0)
    for epsilon, error in ((0, 0.30854), (0.25, 0.31063), (0.5, 0.32306), (0.75, 0.37913), (0.9, 0.47783)):
        assert gaussian_error(epsilon) == pytest.approx(error, abs=5e-6)
        shift = MahalanobisCost((1 - epsilon) * np.eye(2)).shift(np.array([1.0, 0]))
        assert strategic_error(x[:, 0] - 1, y, shift).mean() == pytest.approx(error, abs=0.002)


# errors


def problem(**changes):
    x, y = blobs(0)
    return replace(Problems(x, y, [[LpCost()]], np.zeros(1)), **changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: problem(y=np.ones(3)), r"y: has shape \[3\], inputs \[200, 5\]; give one label a row"),
        (lambda: problem(y=np.zeros(200)), r"y: holds other values than -1 and"),
        (lambda: problem(inputs=np.full((200, 5), np.nan)), r"inputs: hold NaN"),
        (lambda: problem(lam=np.zeros(2)), r"lam: give one weight a problem, 1 of 0 or more"),
        (lambda: problem(lam=np.array([-1.0])), r"lam: give one weight"),
        (lambda: problem(lam=np.array([np.nan])), r"lam: give one weight"),
        (lambda: problem(radius=0.0), r"radius: 0.0 is not above 0"),
        (lambda: problem(inputs=np.zeros((2, 200, 5)), y=np.zeros((2, 200))), r"costs: for 1 problems, inputs for 2"),
        (lambda: full_batch(problem(), 0), r"steps: 0 is too few"),
        (lambda: stochastic(problem(), 10, 0), r"batch_size: 0; give 1"),
        (lambda: lp_minimax(*blobs(0), THREE, 0.4), r"lam: 0.4 is below the share of positives, 0.5"),
        (lambda: lp_minimax(*blobs(0), [LpCost(2)], 0.5), r"costs: the program takes l1 and l-infinity"),
        (lambda: two_point_minimax(0.0, 1.0), r"epsilon: 0.0 and gap: 1.0; give numbers above 0"),
        (lambda: gaussian_error(1.0), r"epsilon: 1.0 is not in \[0, 1\)"),
    ],
)
def test_errors_name_the_value_and_the_mend(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
