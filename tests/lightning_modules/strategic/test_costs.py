"""Costs, sets of costs, responses and losses: against their definitions, random search and a fine grid."""

import math

import numpy as np
import pytest

from lightning_modules.errors import InputError
from lightning_modules.strategic.cost_sets import BudgetInterval, EigenvalueBox, FiniteCostSet, SpectralBall
from lightning_modules.strategic.costs import CostStack, LpCost, MahalanobisCost
from lightning_modules.strategic.responses import (
    accepted,
    best_response,
    check_labels,
    strategic_error,
    strategic_hinge,
)
from lightning_modules.strategic.worst_case import worst_case_error, worst_case_shift, zero_one_risks


def random_sigma(generator, d):
    a = generator.normal(size=(d, d))
    return a @ a.T + 0.1 * np.eye(d)


def random_costs(seed, d=5):
    generator = np.random.default_rng(seed)
    budget = generator.uniform(0.2, 2)
    return [MahalanobisCost(random_sigma(generator, d), budget)] + [LpCost(p, budget) for p in (1, 1.5, 2, 3, math.inf)]


def orthonormal(generator, d):
    return np.linalg.qr(generator.normal(size=(d, d)))[0]


COSTS = [pytest.param(seed, kind, id=f"{kind}-{seed}") for seed in range(3) for kind in range(6)]


@pytest.mark.parametrize(("seed", "kind"), COSTS)
def test_maximiser_attains_the_dual_norm_and_nothing_of_unit_length_beats_it(seed, kind):
    cost, generator = random_costs(seed)[kind], np.random.default_rng([seed, 1])
    w = generator.normal(size=(40, 5))
    v = cost.dual_maximizer(w)
    assert (w * v).sum(1) == pytest.approx(cost.dual_norm(w), abs=1e-9)
    assert cost.norm(v) == pytest.approx(np.ones(40), abs=1e-9)
    others = generator.normal(size=(5000, 5))
    others = np.concatenate([others, np.sign(others), np.eye(5)])
    others /= cost.norm(others)[:, None]
    assert ((w @ others.T).max(1) <= cost.dual_norm(w) + 1e-9).all()
    assert (cost.dual_maximizer(np.zeros((1, 5))) == 0).all()


@pytest.mark.parametrize(("seed", "kind"), COSTS)
def test_maximiser_is_the_gradient_of_the_dual_norm(seed, kind):
    cost, w = random_costs(seed)[kind], np.random.default_rng([seed, 2]).normal(size=5)
    step = 1e-6 * np.eye(5)
    slope = (cost.dual_norm(w + step) - cost.dual_norm(w - step)) / 2e-6
    assert cost.dual_maximizer(w) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize(("seed", "kind"), COSTS)
def test_people_move_exactly_if_it_pays_and_then_are_accepted(seed, kind):
    cost, generator = random_costs(seed)[kind], np.random.default_rng([seed, 3])
    x, w, b = generator.normal(size=(2000, 5)), generator.normal(size=5), 0.3
    after, moved, paid = best_response(x, w, b, cost)
    scores, shift = x @ w + b, cost.shift(w)
    assert 20 < moved.sum() < 1980
    assert ((after @ w + b >= 0) == (scores + shift >= 0)).all()
    assert (accepted(scores, shift) == (scores + shift >= 0)).all()
    assert not moved[(scores >= 0) | (scores < -shift)].any()
    assert moved[(scores < 0) & (scores >= -shift)].all()
    assert (after[~moved] == x[~moved]).all()
    assert (paid <= cost.budget + 1e-12).all()
    assert (paid[~moved] == 0).all()
    assert cost.norm(after - x) == pytest.approx(paid, abs=1e-8)
    assert np.abs(after[moved] @ w + b).max() <= 1e-7  # and no further than needed


def test_features_that_cannot_change_stay_and_do_not_count():
    w, mask = np.array([1.0, -2.0, 3.0]), np.array([True, True, False])
    for cost, reduced in (
        (LpCost(1, 0.5, mask), LpCost(1, 0.5)),
        (LpCost(3, 0.5, mask), LpCost(3, 0.5)),
        (MahalanobisCost(np.diag([2.0, 4, 8]), 0.5, mask), MahalanobisCost(np.diag([2.0, 4]), 0.5)),
    ):
        assert cost.shift(w) == pytest.approx(reduced.shift(w[:2]), abs=1e-12)
        assert cost.dual_maximizer(w) == pytest.approx([*reduced.dual_maximizer(w[:2]), 0], abs=1e-12)
        assert cost.norm(np.array([[0.0, 0, 1], [1, 0, 0]]))[0] == math.inf
        after, moved, _ = best_response(np.random.default_rng(0).normal(size=(200, 3)), w, 0.0, cost)
        assert moved.any()
        assert (after[:, 2] == np.random.default_rng(0).normal(size=(200, 3))[:, 2]).all()


def test_a_cheaper_cost_moves_scores_further():
    w = np.array([3.0, 4.0])
    assert MahalanobisCost(np.eye(2) / 4).shift(w) == pytest.approx(10)
    assert MahalanobisCost(np.eye(2) * 4).shift(w) == pytest.approx(2.5)
    assert LpCost(2, 2.0).shift(w) == pytest.approx(10)  # Levanon & Rosenfeld's 2 ||w||


def test_a_stack_gives_what_each_cost_gives():
    generator = np.random.default_rng(0)
    w = generator.normal(size=(3, 5))
    mixed = [random_costs(seed)[:4] for seed in range(3)]
    quadratic = [[MahalanobisCost(random_sigma(generator, 5), u) for u in (0.5, 2.0)] for _ in range(3)]
    shared = [quadratic[0]] * 3
    for costs in (mixed, quadratic, shared):
        stack = CostStack(costs)
        expected = [[c.shift(w[p]) for c in row] for p, row in enumerate(costs)]
        slopes = [[c.budget * c.dual_maximizer(w[p]) for c in row] for p, row in enumerate(costs)]
        assert stack.shifts(w) == pytest.approx(np.array(expected), abs=1e-12)
        assert stack.gradients(w) == pytest.approx(np.array(slopes), abs=1e-12)
        assert (stack.gradients(np.zeros((3, 5))) == 0).all()


def test_hinge_is_convex_in_the_shift_and_bounds_the_error():
    generator = np.random.default_rng(0)
    scores, y, shifts = generator.normal(scale=2, size=300), generator.choice([-1.0, 1.0], 300), np.linspace(0, 5, 401)
    losses = strategic_hinge(scores, y, shifts[:, None])
    assert np.diff(losses, 2, axis=0).min() >= -1e-12
    assert np.diff(losses.mean(1), 2).min() >= -1e-12
    assert (losses >= strategic_error(scores, y, shifts[:, None])).all()


def test_a_score_that_just_reaches_the_boundary_is_accepted():
    scores, y = np.array([-1.0, -1.0]), np.array([1.0, -1.0])
    assert strategic_error(scores, y, 1.0).tolist() == [False, True]
    assert zero_one_risks(scores, y, np.array([0.99, 1.0])).tolist() == [0.5, 0.5]


def test_worst_zero_one_shift_lies_between_the_ends():
    scores, y = np.array([-1.5, -1.0]), np.array([1.0, -1.0])
    assert worst_case_shift(scores, y, 0.5, 2.0, "zero_one") == (1.0, 1.0)
    assert [strategic_error(scores, y, k).mean() for k in (0.5, 2.0)] == [0.5, 0.5]


@pytest.mark.parametrize("seed", range(5))
def test_worst_zero_one_shift_equals_a_fine_grid(seed):
    generator = np.random.default_rng(seed)
    scores, y = generator.normal(size=500) - 0.5, generator.choice([-1.0, 1.0], 500)
    low, high = np.sort(generator.uniform(0, 2, 2))
    k, value = worst_case_shift(scores, y, low, high, "zero_one")
    grid = np.linspace(low, high, 200_000)
    assert value == zero_one_risks(scores, y, grid).max()
    assert value == strategic_error(scores, y, k).mean()
    assert low <= k <= high
    for shift in generator.uniform(low, high, 20):  # the counting itself
        assert zero_one_risks(scores, y, np.array([shift]))[0] == strategic_error(scores, y, shift).mean()


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_worst_hinge_shift_equals_a_fine_grid(lam):
    generator = np.random.default_rng(4)
    for _ in range(20):
        scores, y = generator.normal(size=50), generator.choice([-1.0, 1.0], 50)
        grid = np.linspace(0.2, 1.5, 301)
        k, value = worst_case_shift(scores, y, 0.2, 1.5, "hinge", lam)
        assert k in (0.2, 1.5)
        assert value == pytest.approx((strategic_hinge(scores, y, grid[:, None]).mean(1) + lam * grid).max(), abs=1e-12)


def test_of_a_list_of_costs_only_its_own_shifts_count():
    x, y, w = np.array([[-1.5], [-1.0]]), np.array([1.0, -1.0]), np.ones(1)
    ends = [LpCost(2, 0.5), LpCost(2, 2.0)]
    assert worst_case_error(x, y, w, 0.0, FiniteCostSet(ends)) == (0.5, 0.5)
    assert worst_case_error(x, y, w, 0.0, BudgetInterval(LpCost(2), 0.5, 2.0)) == (1.0, 1.0)


def test_every_member_of_an_eigenvalue_box_lies_between_its_corners():
    generator = np.random.default_rng(0)
    d, vectors = 6, orthonormal(generator, 6)
    low = generator.uniform(0.2, 1, d)
    box = EigenvalueBox(vectors, low, low + generator.uniform(0, 3, d), 1.5)
    for _ in range(2000):
        member, w = box.member(generator.uniform(box.low, box.high)), generator.normal(size=d)
        least, most = box.shift_interval(w)
        assert least - 1e-12 <= member.shift(w) <= most + 1e-12
    assert box.contains(member)
    assert not box.contains(box.member(box.high * 1.1))
    assert not box.contains(MahalanobisCost(random_sigma(generator, d), 1.5))
    assert not box.contains(MahalanobisCost(member.sigma, 1.0))
    assert all(box.contains(cost) for cost in (*box.grid(5), box.nominal(), *box.extreme_costs(w)))


def test_every_member_of_a_spectral_ball_lies_between_its_extremes():
    generator = np.random.default_rng(1)
    center = random_sigma(generator, 5)
    ball = SpectralBall(center, 0.9 * np.linalg.eigvalsh(center)[0], 0.7)
    for _ in range(2000):
        values = generator.uniform(-1, 1, 5)
        values[0] = generator.choice([-1, 1])  # on the surface
        turned = orthonormal(generator, 5)
        member = MahalanobisCost(center + ball.radius * (turned * values) @ turned.T, 0.7)
        w = generator.normal(size=5)
        least, most = ball.shift_interval(w)
        assert least - 1e-9 <= member.shift(w) <= most + 1e-9
    assert ball.contains(member)
    assert not ball.contains(MahalanobisCost(center + 1.1 * ball.radius * np.eye(5), 0.7))
    assert all(ball.contains(cost) for cost in (*ball.grid(4), *ball.extreme_costs(w)))


def test_lists_and_budget_intervals_have_the_extremes_of_their_members():
    w = np.array([3.0, 4.0])
    listed = FiniteCostSet([LpCost(1), LpCost(math.inf), LpCost(2)])
    assert listed.shift_interval(w) == (4.0, 7.0)
    assert listed.extreme_costs(w) == (listed.costs[0], listed.costs[1])
    assert len(listed.training_costs()) == 3
    assert listed.contains(LpCost(2))
    assert not listed.contains(LpCost(2, 1.1))
    interval = BudgetInterval(LpCost(2), 0.5, 2.0)
    assert interval.shift_interval(w) == (2.5, 10.0)
    assert [cost.budget for cost in interval.grid(3)] == [0.5, 1.25, 2.0]
    assert interval.contains(LpCost(2, 1.0))
    assert not interval.contains(LpCost(2, 2.1))
    assert not interval.contains(LpCost(1, 1.0))


def test_labels_become_signs():
    assert check_labels(np.array([0, 1, 1]), zero_one=True).tolist() == [-1, 1, 1]
    assert check_labels(np.array([-1, 1])).tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MahalanobisCost(np.array([[1.0, 0.5], [0.0, 1.0]])), r"sigma: is not symmetric; give"),
        (lambda: MahalanobisCost(np.diag([1.0, -1.0])), r"sigma: is not positive definite"),
        (lambda: MahalanobisCost(np.diag([1.0, 0.0])), r"sigma: is not positive definite"),
        (lambda: MahalanobisCost(np.ones((2, 3))), r"sigma: has shape \[2, 3\]; give"),
        (lambda: MahalanobisCost(np.full((2, 2), np.nan)), r"sigma: holds NaN"),
        (lambda: MahalanobisCost(np.eye(2), -0.1), r"budget: -0.1 .* give 0 or more"),
        (lambda: MahalanobisCost(np.eye(2)).shift(np.ones(3)), r"weights: have 3 features, the cost 2"),
        (lambda: LpCost(0.5), r"p: 0.5 is below 1"),
        (lambda: LpCost(2, -1.0), r"budget: -1.0"),
        (
            lambda: LpCost(2, 1.0, np.array([True, False])).dual_norm(np.ones(3)),
            r"weights: have 3 features, the cost 2",
        ),
        (lambda: LpCost(2, 1.0, np.array([False, False])), r"manipulable: give 2 truth values"),
        (lambda: CostStack([[LpCost()], [LpCost(), LpCost()]]), r"costs: give every problem equally many"),
        (lambda: FiniteCostSet([]), r"costs: is empty"),
        (lambda: EigenvalueBox(np.eye(2), 0.0, 1.0), r"low: must be above 0"),
        (lambda: EigenvalueBox(np.eye(2), 2.0, 1.0), r"low: must be above 0 and at most high"),
        (lambda: EigenvalueBox(np.ones((2, 2)), 1.0, 1.0), r"vectors: .* not orthonormal"),
        (lambda: EigenvalueBox(np.eye(2), np.ones(3), 1.0), r"low: and high: give 2 eigenvalues"),
        (lambda: EigenvalueBox(np.eye(2), 1.0, 1.0).grid(1), r"count: 1 is too few"),
        (lambda: SpectralBall(np.eye(2), 1.0), r"radius: 1.0 is not in \[0, 1\)"),
        (lambda: SpectralBall(np.eye(2), -0.1), r"radius: -0.1"),
        (lambda: BudgetInterval(LpCost(), 2.0, 1.0), r"low: 2.0 and high: 1.0"),
        (lambda: BudgetInterval(LpCost(), -1.0, 1.0), r"low: -1.0"),
        (lambda: worst_case_shift(np.ones(2), np.ones(2), 2.0, 1.0), r"k_min: 2.0 and k_max: 1.0"),
        (lambda: worst_case_shift(np.ones(2), np.ones(2), 1.0, 2.0, "log"), r"loss: unknown 'log'"),
        (lambda: worst_case_shift(np.ones(2), np.ones(2), 1.0, 2.0, "zero_one", 0.1), r"lam: goes with the hinge"),
        (lambda: check_labels(np.array([0, 1])), r"y: holds \[0\], .* say zero_one=True"),
        (lambda: check_labels(np.array([0, 2]), zero_one=True), r"y: holds \[2\]"),
        (lambda: check_labels(np.array([1, 1])), r"y: is .* alone; give both classes"),
    ],
)
def test_errors_name_the_value_and_the_mend(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)
