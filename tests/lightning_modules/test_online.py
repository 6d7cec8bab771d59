"""Online domain generalization: the set, the risks, both sides of the game, and max-cut."""

import itertools
import math

import numpy as np
import pytest

from lightning_modules.data.environments import Dataset, Environment
from lightning_modules.errors import InputError
from lightning_modules.online.adversaries import Alternating, GreedyWorstVertex, HiddenBias, IIDVertices, Scripted
from lightning_modules.online.extrapolation import ExtrapolationSet, group_dro, mm_rex, pooled_erm
from lightning_modules.online.game import (
    Game,
    best_in_hindsight,
    extrapolation_game,
    group_game,
    interpolation_game,
    linear_weights,
    play,
)
from lightning_modules.online.groups import Domain, ModelGroups, QuadraticGroups, standardised
from lightning_modules.online.maxcut import MaxCutExtrapolation, named_graph, random_graph
from lightning_modules.online.players import (
    FollowTheLeader,
    FollowThePerturbedLeader,
    Hedge,
    OnlineGradientDescent,
)


def harmonic(n):
    return sum(1 / i for i in range(1, n + 1))


def random_groups(seed=0, n_groups=3, d=4, ridge=0.1):
    generator = np.random.default_rng(seed)
    X, y = generator.normal(size=(60, d)), generator.normal(size=60)
    return QuadraticGroups.from_data(X, y, np.arange(60) % n_groups, ridge)


# the set of weights


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("n_groups", [1, 2, 5])
def test_projection_lies_in_the_set_is_idempotent_and_nearest(alpha, n_groups):
    generator = np.random.default_rng(0)
    extrapolation = ExtrapolationSet(n_groups, alpha)
    v = generator.normal(scale=3, size=(200, n_groups))
    projected = extrapolation.project(v)
    assert np.abs(projected.sum(1) - 1).max() <= 1e-12
    assert projected.min() >= -alpha
    assert np.abs(extrapolation.project(projected) - projected).max() <= 1e-12
    # nearest: the angle to every point of the set is at least 90 degrees
    others = extrapolation.sample(50, generator)
    assert extrapolation.contains(others, 1e-12).all()
    assert np.einsum("ne,nme->nm", v - projected, others[None] - projected[:, None]).max() <= 1e-10


def test_worst_case_is_the_largest_over_the_vertices_and_the_largest_risk_without_extrapolation():
    risks = np.random.default_rng(1).normal(size=(100, 4))
    for alpha in (0.0, 0.5):
        extrapolation = ExtrapolationSet(4, alpha)
        value, lam = extrapolation.worst_case(risks)
        assert extrapolation.contains(extrapolation.vertices()).all()
        assert np.abs(value - (risks @ extrapolation.vertices().T).max(1)).max() <= 1e-12
        assert np.abs(value - (lam * risks).sum(1)).max() <= 1e-12
    assert np.array_equal(ExtrapolationSet(4, 0.0).worst_case(risks)[0], risks.max(1))


def test_weights_must_sum_to_one_and_stay_above_minus_alpha():
    extrapolation = ExtrapolationSet(3, 0.5)
    assert extrapolation.contains([2.0, -0.5, -0.5])
    assert not extrapolation.contains([2.1, -0.6, -0.5])
    assert not extrapolation.contains([1.0, 0.5, 0.0])


# risks and their minimisation


def test_quadratic_risks_are_the_ridge_losses_and_grad_is_their_slope():
    generator = np.random.default_rng(2)
    X, Y, codes = generator.normal(size=(30, 3)), generator.normal(size=(30, 2)), np.repeat(["b", "a"], [10, 20])
    groups = QuadraticGroups.from_data(X, Y, codes, 0.3)
    b = generator.normal(size=(5, 6))
    matrices = b.reshape(5, 3, 2)
    for e, name in enumerate("ab"):
        rows = codes == name
        loss = ((Y[rows] - X[rows] @ matrices) ** 2).sum((1, 2)) / (2 * rows.sum()) + 0.15 * (b**2).sum(1)
        np.testing.assert_allclose(groups.value(b)[:, e], loss, rtol=1e-12)
    step = 1e-6 * np.eye(6)
    slope = (groups.value(b[0] + step) - groups.value(b[0] - step)) / 2e-6
    np.testing.assert_allclose(groups.grad(b[0]), slope.T, atol=1e-8)
    assert groups.sizes.tolist() == [20, 10]


@pytest.mark.parametrize(("kind", "d"), [("box", 1), ("ball", 1), ("ball", 3)])
def test_minimiser_beats_every_other_point_for_curvature_of_any_sign(kind, d):
    generator = np.random.default_rng(3)
    A = generator.normal(size=(20, d, d))
    groups = QuadraticGroups(A + A.swapaxes(1, 2), generator.normal(size=(20, d)), np.zeros(20))
    domain = Domain(kind, 1.5)
    b = groups.minimise(np.eye(20), None, domain)
    others = domain.project(generator.uniform(-1.5, 1.5, (20_000, d)))
    assert np.allclose(domain.project(b), b)
    found, best = np.diag(groups.value(b)), groups.value(others).min(0)
    assert (found <= best + 1e-9).all()
    assert (found >= best - 0.2).all()


def test_ball_minimiser_handles_the_hard_case():
    groups = QuadraticGroups(np.diag([-1.0, 2.0])[None], np.array([[0.0, 0.6]]), np.zeros(1))
    b = groups.minimise(np.ones((1, 1)), None, Domain("ball", 1.0))[0]
    assert abs(b[1]) == pytest.approx(0.2)  # 0.6 / (2 + 1), as mu = 1
    assert np.linalg.norm(b) == pytest.approx(1.0)


def test_box_minimiser_meets_the_optimality_conditions():
    groups = random_groups(4, 2, 5)
    weights = np.array([[0.3, 0.7]])
    b = groups.minimise(weights, np.full((1, 5), 0.5), Domain("box", 0.2))
    slope = weights @ groups.grad(b)[0] + 0.5
    np.testing.assert_allclose((b - slope).clip(-0.2, 0.2), b, atol=1e-10)


def test_risks_of_a_network_agree_with_quadratic_ones_for_a_linear_module():
    import torch

    generator = np.random.default_rng(5)
    X, y = generator.normal(size=(40, 3)), generator.normal(size=40)
    module = torch.nn.Linear(3, 1, bias=False).double()
    parts = [(torch.as_tensor(X[e::2]), torch.as_tensor(y[e::2])) for e in (0, 1)]
    network = ModelGroups(
        module, parts, lambda out, t: ((out[:, 0] - t) ** 2).mean() / 2, steps=150, learning_rate=0.1, l2=0.2
    )
    quadratic = QuadraticGroups.from_data(X, y, np.arange(40) % 2, 0.2)
    b, weights = generator.normal(size=(4, 3)), generator.uniform(0.1, 1, (4, 2))
    np.testing.assert_allclose(network.value(b), quadratic.value(b), rtol=1e-10)
    np.testing.assert_allclose(network.grad(b), quadratic.grad(b), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(network.minimise(weights), quadratic.minimise(weights), atol=1e-3)
    game = Game(network, ExtrapolationSet(2, 0.0))
    record = play(game, FollowTheLeader(), GreedyWorstVertex(), 4, seed=0)
    exact = play(Game(quadratic, ExtrapolationSet(2, 0.0)), FollowTheLeader(), Scripted(record.weights), 4, seed=0)
    np.testing.assert_allclose(record.actions[:, 1:], exact.actions[:, 1:], atol=1e-3)
    assert record.regret[0, -1] == pytest.approx(
        record.losses.sum() - (exact.losses.sum() - exact.regret[0, -1]), abs=1e-3
    )


# the game


def test_fair_coin_regret_of_erm_is_the_harmonic_formula():
    regret = play(interpolation_game(), FollowTheLeader(), IIDVertices(), 100, seed=0, games=4000).regret
    for t in (1, 10, 100):
        column = regret[:, t - 1]
        assert abs(column.mean() - (1 + harmonic(t - 1)) / 2) <= 4 * column.std() / math.sqrt(4000) + 1e-12


def test_erm_is_a_constant_above_the_bayes_floor_under_a_hidden_bias():
    games, rounds = 6000, 100
    ftl, bayes = (
        play(interpolation_game(), FollowTheLeader(prior), HiddenBias(), rounds, 1, games).regret
        for prior in (0.0, 1.0)
    )
    for t in (10, 100):
        for regret, exact in ((ftl, harmonic(t - 1) / 3 + 0.5), (bayes, harmonic(t + 1) / 3)):
            column = regret[:, t - 1]
            assert abs(column.mean() - exact) <= 4 * column.std() / math.sqrt(games)
    assert (ftl - bayes).mean(0).max() <= 0.51


def test_bayes_player_is_the_rule_of_succession():
    record = play(interpolation_game(), FollowTheLeader(1.0), HiddenBias(), 30, 2, 5)
    t = np.arange(1, 31)
    successes = np.concatenate([np.zeros((5, 1)), record.weights[:, :-1, 0].cumsum(1)], 1)
    np.testing.assert_allclose(record.actions[:, :, 0], 2 * (successes + 1) / (t + 1) - 1, atol=1e-12)


def test_gradient_descent_with_step_one_over_t_is_erm_and_stays_under_the_logarithmic_bound():
    adversary = Scripted(np.eye(2)[np.random.default_rng(3).integers(0, 2, (300, 200))])
    ftl = play(interpolation_game(), FollowTheLeader(), adversary, 200, 0, 300)
    ogd = play(interpolation_game(), OnlineGradientDescent(1.0, 1.0), adversary, 200, 0, 300)
    assert np.abs(ftl.regret - ogd.regret).max() <= 1e-9
    assert (ftl.regret <= 2 * (1 + np.log(np.arange(1, 201)))).all()


def test_regret_compares_with_the_best_fixed_parameters_of_the_played_losses():
    game = interpolation_game()
    record = play(game, OnlineGradientDescent(0.3), HiddenBias(), 20, 5, 3)
    grid = np.linspace(-1, 1, 20_001)[:, None]
    losses = np.einsum("ste,ge->sgt", record.weights, game.groups.value(grid)).cumsum(2)
    np.testing.assert_allclose(record.regret, record.losses.cumsum(1) - losses.min(1), atol=1e-6)
    best, values = best_in_hindsight(game, record.weights)
    np.testing.assert_allclose(best[:, 0], grid[losses[:, :, -1].argmin(1), 0], atol=1e-4)
    np.testing.assert_allclose(values[:, -1], losses.min(1)[:, -1], atol=1e-6)


def test_extrapolation_of_strongly_convex_risks_can_be_linear():
    game = extrapolation_game()
    b, slopes = np.linspace(-1, 1, 21)[:, None], np.linspace(-4, 4, 17)
    weights = np.array([linear_weights(s) for s in slopes])
    assert game.extrapolation.contains(weights).all()
    assert np.abs(game.groups.value(b) @ weights.T - b * slopes).max() <= 1e-12


def test_alternating_signs_cost_erm_every_round_and_noisy_erm_or_gradient_descent_only_sqrt_t():
    adversary = Alternating([linear_weights(-1), linear_weights(1)], first=linear_weights(0.5))
    horizons = (100, 400, 1600)
    ends = {
        "ftl": [play(extrapolation_game(), FollowTheLeader(), adversary, t, 0).regret[0, -1] for t in horizons],
        "ogd": [
            play(extrapolation_game(), OnlineGradientDescent(2.0), adversary, t, 0).regret[0, -1] for t in horizons
        ],
        "ftpl": [
            play(extrapolation_game(), FollowThePerturbedLeader(t**-0.5), adversary, t, 0, 200).regret[:, -1].mean()
            for t in horizons
        ],
    }
    assert ends["ftl"] == [99.5, 399.5, 1599.5]
    assert ends["ogd"] == pytest.approx([18.64, 38.64, 78.64], abs=0.01)
    slopes = {name: np.polyfit(np.log(horizons), np.log(values), 1)[0] for name, values in ends.items()}
    assert slopes["ftl"] >= 0.98
    assert slopes["ogd"] <= 0.65
    assert slopes["ftpl"] <= 0.65


def test_random_signs_cost_every_player_the_spread_of_a_random_walk():
    rounds, games = 100, 400
    adversary = IIDVertices([linear_weights(-1), linear_weights(1)])
    exact = rounds * math.comb(rounds, rounds // 2) / 2**rounds
    players = (
        FollowTheLeader(),
        FollowThePerturbedLeader(0.1),
        OnlineGradientDescent(2.0),
        Hedge([[-1.0], [1.0]], 0.1),
    )
    for seed, player in enumerate(players):
        end = play(extrapolation_game(), player, adversary, rounds, seed, games).regret[:, -1]
        assert abs(end.mean() - exact) <= 4 * end.std() / math.sqrt(games)


def test_noise_is_fresh_every_round():
    record = play(
        extrapolation_game(), FollowThePerturbedLeader(0.01), Scripted(np.tile(linear_weights(0), (200, 1))), 200, 0
    )
    assert 60 < (record.actions > 0).sum() < 140


def test_hedge_finds_the_best_candidate():
    always_up = Scripted(np.tile(linear_weights(1), (200, 1)))
    record = play(extrapolation_game(), Hedge([[1.0], [0.0], [-1.0]], 0.2), always_up, 200, 0, 50)
    assert (record.actions[:, -1] == -1).all()
    assert record.regret[:, -1].mean() <= 2 * math.log(3) / 0.2


def test_first_move_is_zero_and_a_tie_leads_back_to_it():
    there_and_back = Scripted([linear_weights(1), linear_weights(-1), linear_weights(1)])
    record = play(extrapolation_game(), FollowTheLeader(), there_and_back, 3, 0)
    assert record.actions[0, :, 0].tolist() == [0, -1, 0]


def test_an_oblivious_adversary_plays_the_same_against_every_player_and_seeds_repeat():
    a, b, c = (
        play(extrapolation_game(), player, IIDVertices(), 10, seed, 4)
        for player, seed in ((FollowThePerturbedLeader(0.1), 1), (FollowTheLeader(), 1), (FollowTheLeader(), 2))
    )
    assert np.array_equal(a.weights, b.weights)
    assert not np.array_equal(b.weights, c.weights)
    again = play(extrapolation_game(), FollowThePerturbedLeader(0.1), IIDVertices(), 10, 1, 4)
    assert np.array_equal(a.actions, again.actions)


def test_record_has_one_arrow_row_a_game_and_round():
    record = play(interpolation_game(), FollowTheLeader(), HiddenBias(), 5, 0, 3)
    table = record.to_arrow()
    assert table.num_rows == 15
    row = table.slice(7, 1).to_pylist()[0]  # game 1, round 3
    assert (row["game"], row["round"]) == (1, 3)
    assert row["weights"] == record.weights[1, 2].tolist()
    assert row["action"] == record.actions[1, 2].tolist()
    assert (row["loss"], row["regret"]) == (record.losses[1, 2], record.regret[1, 2])


# one-shot problems and real groups


@pytest.mark.parametrize("alpha", [0.0, 0.05])
def test_one_shot_minimax_beats_every_other_point_and_certifies_it(alpha):
    groups = random_groups()
    extrapolation = ExtrapolationSet(3, alpha)
    solution = mm_rex(groups, alpha)
    assert groups.smallest_curvature(extrapolation.vertices()) > 0
    assert extrapolation.contains(solution.weights)
    assert 0 <= solution.gap <= 1e-8
    near = solution.b + 0.05 * np.random.default_rng(0).normal(size=(2000, 4))
    assert extrapolation.worst_case(groups.value(near))[0].min() >= solution.value - 1e-8
    assert extrapolation.worst_case(groups.value(pooled_erm(groups)))[0] > solution.value + 1e-4


def test_one_shot_extrapolation_without_convexity_needs_a_domain_and_beats_random_search():
    groups, domain = random_groups(1), Domain("ball", 2.0)
    with pytest.raises(InputError, match=r"alpha: with 2.0 .* give a domain"):
        mm_rex(groups, 2.0)
    solution = mm_rex(groups, 2.0, domain)
    others = domain.project(np.random.default_rng(0).normal(size=(50_000, 4)))
    assert solution.value <= ExtrapolationSet(3, 2.0).worst_case(groups.value(others))[0].min()
    assert math.isnan(solution.gap)


def test_erm_against_the_greedy_adversary_solves_group_dro():
    groups = random_groups(7)
    game = group_game(groups, 0.0, 2000)
    summary = game.summary()
    assert summary["worst_group_final"] - group_dro(groups).value <= 1e-3
    assert summary["worst_group_pooled_erm"] - group_dro(groups).value > 3e-3
    assert game.record.regret[0, -1] < 5


@pytest.mark.parametrize("classes", [("no", "yes"), ("a", "b", "c")])
def test_group_game_takes_any_dataset(classes):
    generator = np.random.default_rng(0)
    environments = []
    for name in ("x", "y", "z"):
        labels = generator.integers(0, len(classes), 50)
        inputs = generator.normal(size=(50, 2, 2)).astype(np.float32)
        inputs[:, 0, 0] += labels
        environments.append(Environment(name, inputs, labels.astype(np.int64)))
    game = group_game(Dataset("toy", tuple(environments), classes, "linear"), 0.0, 50, 0.1)
    outputs = 1 if len(classes) == 2 else 3
    assert game.groups.dimension == 5 * outputs
    assert game.groups.value(np.zeros(5 * outputs)) == pytest.approx([0.5] * 3)  # |target|^2 / 2 is 1/2 in both codings
    assert game.summary()["worst_group_minimax"] <= game.summary()["worst_group_pooled_erm"]


def test_features_are_standardised_and_constant_ones_vanish():
    X = standardised(np.array([[1.0, 5], [3, 5]]))
    assert X.tolist() == [[-1, 0, 1], [1, 0, 1]]


# max-cut


@pytest.mark.parametrize(("name", "cut"), [("C5", 4), ("K6", 9), ("Petersen", 12)])
def test_extrapolated_minimum_is_minus_twice_the_largest_cut(name, cut):
    problem = MaxCutExtrapolation(named_graph(name))
    value, corner = problem.exact()
    assert value == cut
    assert problem.objective(corner) == -2 * cut
    assert problem.groups().value(corner) @ [2, -1] == pytest.approx(-2 * cut)
    assert problem.groups().smallest_curvature(np.eye(2)) > 0
    assert problem.groups().smallest_curvature(np.array([[2.0, -1.0]])) < 0


def test_blockwise_enumeration_agrees_with_trying_every_corner():
    for seed, n in enumerate((2, 3, 7, 11)):
        generator = np.random.default_rng(seed)
        graph = random_graph(n, 0.6, generator) * generator.integers(1, 5)
        problem = MaxCutExtrapolation(graph)
        corners = np.array(list(itertools.product((-1.0, 1.0), repeat=n)))
        assert problem.exact()[0] == -problem.objective(corners).min() / 2
        assert problem.objective(problem.exact()[1]) == -2 * problem.exact()[0]


def test_largest_enumerable_graph_takes_blocks():
    left = np.arange(24) % 3 == 0
    assert MaxCutExtrapolation((left[:, None] != left[None]).astype(float)).exact()[0] == 8 * 16


def test_descent_succeeds_less_often_on_larger_graphs_while_interpolation_always_does():
    reports = [MaxCutExtrapolation(random_graph(n, 0.5, np.random.default_rng(0))).report(400, 0) for n in (6, 10, 16)]
    success = [report.success for report in reports]
    assert success[0] > success[1] > success[2]
    assert success[2] <= 0.02
    assert all(report.best >= report.minimum and report.mean_gap > 0.05 for report in reports)
    assert max(report.mixture_gradient for report in reports) <= 1e-8


# errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ExtrapolationSet(2, -0.1), r"alpha: -0.1 .* 0 is interpolation"),
        (lambda: ExtrapolationSet(0, 0.0), r"n_groups: 0"),
        (lambda: ExtrapolationSet(3, 0.0).project(np.ones(2)), r"shape \(2,\): the last axis must have 3 groups"),
        (lambda: play(interpolation_game(), FollowTheLeader(), IIDVertices(), 0, 0), r"rounds: 0 is too few"),
        (
            lambda: play(interpolation_game(), FollowTheLeader(), Scripted([[1, 0], [1.5, -0.5]]), 2, 0),
            r"weights: \[1.5, -0.5\] of Scripted in round 2 .* raise alpha",
        ),
        (lambda: play(interpolation_game(), FollowTheLeader(), Scripted([[1, 0]]), 2, 0), r"script: has 1 rounds"),
        (lambda: play(interpolation_game(), FollowTheLeader(), IIDVertices([[1.0]]), 2, 0), r"points: shape \(1, 1\)"),
        (lambda: Game(random_groups(), ExtrapolationSet(2, 0.0)), r"game: the risks have 3 groups"),
        (lambda: MaxCutExtrapolation(np.zeros((25, 25))).exact(), r"graph: 25 nodes are too many .* up to 24"),
        (lambda: MaxCutExtrapolation(np.triu(np.ones((3, 3)), 1)), r"graph: is not symmetric"),
        (lambda: random_groups().minimise(np.array([[5.0, -3.0, -1.0]])), r"domain: none is given, .* unbounded below"),
        (
            lambda: random_groups().minimise(np.array([[5.0, -3.0, -1.0]]), None, Domain("box", 1.0)),
            r"domain: .* NP-hard .* see MaxCutExtrapolation",
        ),
        (lambda: group_game(random_groups(), 2.0, 10), r"domain: none is given"),
        (lambda: QuadraticGroups.from_data(np.ones((3, 2)), np.ones(2), np.ones(3)), r"give one row an example"),
        (lambda: QuadraticGroups.from_data(np.full((3, 2), np.nan), np.ones(3), np.ones(3)), r"NaN or infinite"),
        (lambda: FollowThePerturbedLeader(0.0), r"eta: 0.0"),
        (lambda: OnlineGradientDescent(-1.0), r"step: -1.0"),
        (
            lambda: play(interpolation_game(), Hedge([[3.0]], 1.0), IIDVertices(), 2, 0),
            r"candidates: one lies outside",
        ),
    ],
)
def test_errors_name_the_value_and_the_mend(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
