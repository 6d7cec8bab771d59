"""Simulated worlds, the exact log-odds, and the parts of the objective: against independent computations."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from lightning_modules.causal.contrastive.environments import InterventionalDataset, simulate
from lightning_modules.causal.contrastive.losses import (
    CHANCE,
    contrastive_cross_entropy,
    graph_penalty,
    notears_penalty,
)
from lightning_modules.causal.contrastive.mixing import Mixing, render_balls
from lightning_modules.causal.contrastive.networks import ContrastiveHead, StackedEncoder
from lightning_modules.causal.contrastive.scm import (
    NOISES,
    Intervention,
    LinearGaussianSCM,
    bayes_cross_entropy,
    cross_entropy_at,
    is_acyclic,
    log_odds_exact,
    sample_er_dag,
)
from lightning_modules.errors import InputError


def model(d=5, seed=0, degree=2.0):
    rng = np.random.default_rng(seed)
    return LinearGaussianSCM(sample_er_dag(d, degree, rng), rng.uniform(1, 2, d), rng)


def test_log_odds_are_those_of_gaussian_densities():
    for seed in range(5):
        scm = model(seed=seed)
        z = scm.sample(300)
        covariance = np.linalg.inv(scm.precision)
        for t in range(5):
            intervention = Intervention(t, 1.5 - t, 0.5 + 0.3 * t)
            mean, precision = scm.intervened(intervention)
            direct = multivariate_normal(np.zeros(5), covariance).logpdf(z)
            direct -= multivariate_normal(mean, np.linalg.inv(precision)).logpdf(z)
            assert np.abs(direct - log_odds_exact(scm, z, intervention)).max() < 1e-10


def test_precisions_differ_by_rank_one_minus_rank_one():
    ranks = set()
    for seed in range(5):
        scm = model(seed=seed)
        for t in range(5):
            difference = scm.intervened(Intervention(t, 1.0, 1.7))[1] - scm.precision
            e = np.eye(5)[t]
            assert np.abs(difference - np.outer(e, e) / 1.7 + np.outer(scm.B[t], scm.B[t])).max() < 1e-12
            rank = np.linalg.matrix_rank(difference, tol=1e-9)
            assert rank == (2 if scm.W[:, t].any() else 1)
            ranks.add(int(rank))
    assert ranks == {1, 2}


def test_samples_have_the_moments_of_the_model():
    scm, n = model(seed=3), 200_000
    assert np.abs(np.cov(scm.sample(n).T) - np.linalg.inv(scm.precision)).max() < 0.06
    target = int(np.argmax(np.abs(scm.W).sum(0)))  # a node with parents
    rows = scm.sample(n, target, 1.5, 0.25)
    mean, precision = scm.intervened(Intervention(target, 1.5, 0.25))
    assert np.abs(rows.mean(0) - mean).max() < 0.03
    assert np.abs(np.cov(rows.T) - np.linalg.inv(precision)).max() < 0.06
    parents = scm.W[:, target] != 0
    assert np.abs(np.corrcoef(rows.T)[target, parents]).max() < 0.01  # cut


@pytest.mark.parametrize("noise", NOISES)
def test_noise_of_every_law_is_standard(noise):
    drawn = NOISES[noise](np.random.default_rng(0), (400_000, 1))
    assert drawn.mean() == pytest.approx(0, abs=0.01)
    assert drawn.var() == pytest.approx(1, abs=0.02)


def test_graphs_are_acyclic_with_k_d_over_2_edges():
    rng = np.random.default_rng(0)
    drawn = [sample_er_dag(8, 2.0, rng) for _ in range(400)]
    assert all(is_acyclic(w) for w in drawn)
    assert np.mean([(w != 0).sum() for w in drawn]) == pytest.approx(8, abs=0.4)
    weights = np.abs(np.concatenate([w[w != 0] for w in drawn]))
    assert 0.25 <= weights.min() < 0.26
    assert 0.99 < weights.max() <= 1
    assert not all((np.tril(w) == 0).all() for w in drawn)  # the order of nodes is random
    assert not is_acyclic(np.array([[0, 1.0], [1.0, 0]]))
    assert not is_acyclic(np.eye(2))


def test_nothing_beats_the_exact_log_odds():
    scm = model()
    interventions = [Intervention(t, 1.5, 1.0) for t in range(5)]
    best = bayes_cross_entropy(scm, interventions, 50_000)
    assert best < CHANCE - 0.1
    z_obs, z_int = scm.sample(50_000), [scm.sample(50_000, i.target, i.mean, i.var) for i in interventions]
    assert cross_entropy_at(scm, interventions, z_obs, z_int).mean() == pytest.approx(best, abs=0.01)
    for wrong in (Intervention(0, -1.5, 1.0), Intervention(0, 1.5, 3.0), Intervention(0, 0.0, 1.0)):
        assert (
            cross_entropy_at(scm, [wrong], z_obs, z_int[:1])[0]
            > cross_entropy_at(scm, interventions, z_obs, z_int)[0] + 0.005
        )


def test_the_head_can_be_the_exact_log_odds_and_its_sign_matters():
    """Set to the truth on true latents it is log p_obs - log p_int; exchanged classes are worse than chance."""
    scm = model(seed=1)
    interventions = [Intervention(t, 1.0 + 0.1 * t, 1.3) for t in range(5)]
    head = ContrastiveHead(5)
    mean, var = np.array([i.mean for i in interventions]), np.array([i.var for i in interventions])
    with torch.no_grad():
        head.constant[0] = torch.from_numpy(0.5 * mean**2 / var + 0.5 * np.log(var / scm.var))
        head.slope[0] = torch.from_numpy(-mean / var)
        head.curvature[0] = torch.from_numpy((0.5 / var) ** 0.5)
        head.scale[0] = torch.from_numpy((0.5 / scm.var) ** 0.5)
        head.parents[0] = torch.from_numpy(scm.W.T) + torch.eye(5) * 9  # the diagonal does not count
    head = head.double()
    z_obs = scm.sample(4000)
    z_int = np.stack([scm.sample(4000, i.target, i.mean, i.var) for i in interventions])
    found = head(torch.from_numpy(z_obs))
    exact = np.stack([log_odds_exact(scm, z_obs, i) for i in interventions], 1)
    assert np.abs(found.detach().numpy() - exact).max() < 1e-5  # parameters were float32
    own = head.own(torch.from_numpy(z_int)[None])
    exact = np.stack([log_odds_exact(scm, rows, i) for rows, i in zip(z_int, interventions, strict=True)], 1)
    assert np.abs(own[0].detach().numpy() - exact).max() < 1e-5
    right = contrastive_cross_entropy(found[None], own)[0].detach().numpy()
    assert np.abs(right - cross_entropy_at(scm, interventions, z_obs, z_int)).max() < 1e-5
    assert contrastive_cross_entropy(-found[None], -own).min() > CHANCE


def test_a_linear_head_scores_own_rows_as_all():
    head = ContrastiveHead(3, 2, "linear")
    torch.nn.init.normal_(head.matrix, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(head.constant, generator=torch.Generator().manual_seed(1))
    z = torch.randn(2, 3, 7, 3, generator=torch.Generator().manual_seed(2))
    every = torch.stack([head(z[:, t])[..., t] for t in range(3)], 2)
    assert torch.allclose(head.own(z), every, atol=1e-6)


def test_notears_is_zero_for_a_dag_and_known_for_a_two_cycle():
    dag = torch.from_numpy(sample_er_dag(6, 3.0, np.random.default_rng(0)))
    assert notears_penalty(dag).abs() < 1e-10
    a, b = 1.2, 0.8
    cycle = torch.tensor([[0, a], [b, 0]], dtype=torch.float64)
    assert float(notears_penalty(cycle)) == pytest.approx(0.994589, abs=1e-6)
    assert float(notears_penalty(cycle)) == pytest.approx(2 * np.cosh(a * b) - 2)
    both = torch.stack([cycle + torch.eye(2), cycle])
    assert graph_penalty(both, 0.5, 2.0).tolist() == pytest.approx([0.5 * 2 + 2 * 0.994589] * 2, abs=1e-5)


def test_stacked_encoders_are_those_of_their_seeds():
    for kind, dx in (("mlp", 6), ("linear", 6), ("conv", 3 * 16 * 16)):
        x = torch.randn(2, 5, dx, generator=torch.Generator().manual_seed(0))
        both = StackedEncoder(kind, dx, 2, 8, 2, [3, 4])
        for number, seed in enumerate((3, 4)):
            alone = StackedEncoder(kind, dx, 2, 8, 2, [seed])
            assert torch.allclose(both(x)[number], alone(x[number : number + 1])[0], atol=1e-5)
        assert not torch.allclose(both(x[:1].repeat(2, 1, 1))[0], both(x[:1].repeat(2, 1, 1))[1])


def test_balls_stand_where_the_latents_say():
    z = np.array([[0.0, 0.0, -0.25, 0.25], [0.25, -0.25, 0.01, 0.0]])
    images = render_balls(z, 64).astype(float)
    assert images.shape == (2, 3, 64, 64)
    first = 255 - images[:, 2]  # a red ball has no blue
    first[images[:, 0] < 200] = 0  # and the other one no red
    weights = first / first.sum((1, 2), keepdims=True)
    at = np.arange(64) + 0.5
    x, y = ((weights.sum(axis) * at).sum(1) / 64 - 0.5 for axis in (1, 2))  # columns, rows
    assert x == pytest.approx([0, 0.25], abs=0.005)
    assert y == pytest.approx([0, -0.25], abs=0.005)
    moved = render_balls(z[:1] + [[0.004, 0, 0, 0]], 64)  # a quarter of a pixel shows
    assert (moved != render_balls(z[:1], 64)).any()
    world = simulate(4, 2.0, 3 * 32 * 32, 200, "balls", 0, n_test=50)
    assert world.data.is_image
    assert np.abs(world.z_obs).max() < 0.5


def test_worlds_repeat_and_environments_can_be_reordered():
    first, again, other = (simulate(n=50, n_test=5, width=16, seed=s) for s in (0, 0, 1))
    assert (first.data.x_obs == again.data.x_obs).all()
    assert not np.array_equal(first.data.x_obs, other.data.x_obs)
    order = (3, 0, 4, 1, 2)
    turned = first.reordered(order)
    assert turned.targets == list(order)
    assert (turned.data.x_int[0] == first.data.x_int[3]).all()
    assert turned.bayes == pytest.approx(first.bayes)
    for i in range(5):
        for j in range(5):
            assert turned.weights[i, j] == first.weights[order[i], order[j]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LinearGaussianSCM(np.array([[0, 1.0], [1, 0]]), np.ones(2)), "W: has a cycle"),
        (lambda: LinearGaussianSCM(np.zeros((2, 3)), np.ones(2)), "W: has shape"),
        (lambda: LinearGaussianSCM(np.zeros((1, 1)), np.ones(1)), "d of 2 or more"),
        (lambda: LinearGaussianSCM(np.full((2, 2), np.nan), np.ones(2)), "W: has NaN"),
        (lambda: LinearGaussianSCM(np.zeros((2, 2)), np.array([1.0, 0])), "var: give 2 positive"),
        (lambda: LinearGaussianSCM(np.zeros((2, 2)), np.ones(2), noise="cauchy"), "noise: unknown 'cauchy'"),
        (lambda: model().sample(3, 5), "target: 5 is no node"),
        (lambda: Intervention(0, 0.0, 0.0), "positive var"),
        (lambda: sample_er_dag(1, 2.0, np.random.default_rng(0)), "d: 1 nodes"),
        (lambda: Mixing("linear", 5, 4, 0), "dim_x: 4 features cannot hold 5 latents"),
        (lambda: Mixing("spline", 5, 9, 0), "mixing: unknown 'spline'"),
        (lambda: Mixing("balls", 3, 3072, 0), "dim_z: balls have two coordinates"),
        (lambda: Mixing("balls", 4, 100, 0), "no 3 x side x side"),
        (
            lambda: InterventionalDataset(np.ones((4, 3)), [np.ones((4, 3))] * 2, 3),
            "2 interventional environments for 3",
        ),
        (lambda: InterventionalDataset(np.ones((4, 3)), [np.ones((4, 3))] * 3, 2), "more environments than latents"),
        (lambda: InterventionalDataset(np.ones((4, 3)), [np.ones((4, 3))]), "dim_z: 1 latents"),
        (lambda: InterventionalDataset(np.ones((4, 1)), [np.ones((4, 1))] * 2), "dim_x: 1 features cannot hold 2"),
        (
            lambda: InterventionalDataset(np.ones((4, 3)), [np.ones((4, 3)), np.ones((4, 2))]),
            "env_2: has 2 features, obs 3",
        ),
        (lambda: InterventionalDataset(np.ones((4, 3)), [np.ones((4, 3)), np.ones((0, 3))]), "env_2: has no rows"),
        (lambda: InterventionalDataset(np.full((4, 3), np.inf), [np.ones((4, 3))] * 2), "obs: has NaN or infinite"),
        (lambda: InterventionalDataset(np.full((4, 3), 1e300), [np.ones((4, 3))] * 2), "obs: has NaN or infinite"),
        (lambda: InterventionalDataset(np.ones(4), [np.ones((4, 3))] * 2), "obs: has shape"),
        (
            lambda: InterventionalDataset(np.ones((4, 3)), [np.ones((4, 3), np.uint8)] * 2),
            "pixels everywhere or nowhere",
        ),
        (
            lambda: InterventionalDataset(np.ones((1, 3)), [np.ones((4, 3))] * 2).split(0.2, 0),
            "obs: 1 row cannot be split",
        ),
        (lambda: ContrastiveHead(3, 1, "cubic"), "head: unknown 'cubic'"),
        (lambda: StackedEncoder("tree", 4, 2, 8, 1, [0]), "encoder: unknown 'tree'"),
    ],
)
def test_what_does_not_fit_is_said(call, message):
    with pytest.raises(InputError, match=message):
        call()
