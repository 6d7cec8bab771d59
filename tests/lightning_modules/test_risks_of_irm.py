"""Exact risks, IRM's closed form and threshold, feasibility, training and the non-linear failure."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_modules.data.environments import Dataset, Environment, check_dataset
from lightning_modules.data.simulated.gaussian_sem import GaussianSEM, gaussian_sem, random_sem
from lightning_modules.domain_generalization.erm import ERM
from lightning_modules.domain_generalization.invariant_prediction import population as p
from lightning_modules.domain_generalization.invariant_prediction.linear import (
    invariant_direction,
    is_irm_feasible,
    linear_irm_predictor,
    linear_irm_solution,
    train_linear,
)
from lightning_modules.domain_generalization.invariant_prediction.nonlinear import NonlinearFailure, train_mlp
from lightning_modules.domain_generalization.method import Outputs
from lightning_modules.domain_generalization.vrex import VREx
from lightning_modules.errors import InputError

INVARIANT_ACCURACY = 0.5 * (1 + math.erf(0.8 / math.sqrt(2)))


def moments(sem):
    return tuple(map(torch.as_tensor, sem.latent_moments()))


def accuracy(w, sem):
    return p.population_accuracy(torch.as_tensor(w), *moments(sem)).mean().item()


def orthogonal(d):
    return np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))[0]


def test_invariant_predictor_is_stationary_in_the_invariant_weights_and_scores_0788():
    sem = random_sem(3)
    w, bias = sem.optimal_invariant()
    gradient = p.population_grad(torch.as_tensor(w), *moments(sem))
    assert gradient[:, :3].abs().max() <= 1e-10
    assert gradient[:, 3:].abs().max() > 0.01  # but not in the others: they carry information
    assert bias == 0
    assert accuracy(w, sem) == pytest.approx(INVARIANT_ACCURACY, abs=1e-12)
    assert pytest.approx(0.78814, abs=1e-5) == INVARIANT_ACCURACY


@pytest.mark.parametrize(("bias", "eta"), [(None, 0.5), (0.4, 0.3)])
def test_population_engine_agrees_with_autograd_and_with_samples(bias, eta):
    sem = dataclasses.replace(random_sem(2), eta=eta)
    mean, var = moments(sem)
    w = torch.linspace(-0.4, 0.7, 9, dtype=torch.float64).requires_grad_()
    risk = p.population_risk(w, mean, var, bias, eta)
    numeric = torch.autograd.grad(risk[1], w)[0]
    exact = p.population_grad(w, mean, var, bias, eta)
    torch.testing.assert_close(exact[1, :9].detach(), numeric, rtol=1e-8, atol=1e-10)
    x, y, _ = sem.sample(np.arange(2), 30_000, np.random.default_rng(0))
    logits = torch.as_tensor(x @ w.detach().numpy() + (bias or 0))
    risks, slopes = p.risks_and_slopes(logits, torch.as_tensor(y))
    torch.testing.assert_close(risk.detach(), risks, rtol=0, atol=1.5e-2)
    torch.testing.assert_close(
        p.irmv1_penalty(w, mean, var, bias, eta).detach().sqrt(), slopes.abs(), rtol=0, atol=1.5e-2
    )
    hits = torch.as_tensor(y * logits.numpy() > 0).double().mean(1)
    torch.testing.assert_close(p.population_accuracy(w, mean, var, bias, eta).detach(), hits, rtol=0, atol=1.5e-2)
    if bias is not None:
        up, down = (p.population_risk(w.detach(), mean, var, b, eta) for b in (bias + 1e-5, bias - 1e-5))
        torch.testing.assert_close(exact[:, 9].detach(), (up - down) / 2e-5, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("seed", "unequal"), [(3, False), (2, True)])
def test_an_environmental_direction_exists_up_to_d_e_environments_and_not_beyond(seed, unequal):
    means = np.random.default_rng(seed).normal(0, 1, (10, 6))
    variances = np.linspace(0.5, 2, 10) if unequal else np.ones(10)
    for e in range(1, 10):
        p_dir, mu_tilde, residual = invariant_direction(means[:e], variances[:e])
        if e <= 6:
            assert residual <= 1e-12
            np.testing.assert_allclose(means[:e] @ p_dir, variances[:e] * mu_tilde, rtol=1e-10)
            assert np.linalg.norm(p_dir) == pytest.approx(1)
        else:
            assert residual >= 0.05
    if unequal:
        assert all(0.25 < invariant_direction(means[:e], variances[:e]).residual < 0.48 for e in (7, 8, 9))


CLOSED = [
    (3, 2.5600, 0.1636, 0.2542),
    (4, 2.1581, 0.2171, 0.3481),
    (5, 0.7012, 0.4144, 0.7231),
    (6, 0.0180, 0.4487, 0.7881),
    (7, 0.0, 0.4487, 0.7881),
    (8, 0.0, 0.4487, 0.7881),
]


@pytest.mark.parametrize(("e", "norm", "risk", "flip"), CLOSED)
def test_closed_form_has_the_reference_figures_and_is_feasible(e, norm, risk, flip):
    sem = random_sem(e)
    w = linear_irm_solution(sem)
    assert np.linalg.norm(w[3:]) == pytest.approx(norm, abs=5e-4)
    assert p.population_risk(torch.as_tensor(w), *moments(sem)).mean().item() == pytest.approx(risk, abs=5e-4)
    assert accuracy(w, sem.flip()) == pytest.approx(flip, abs=5e-4)
    phi, beta = linear_irm_predictor(sem)
    np.testing.assert_allclose(beta @ phi, w)
    assert len(beta) == (4 if e <= 6 else 3)
    feasible, norms = is_irm_feasible(phi, beta, sem, 1e-10)
    assert feasible
    assert norms.shape == (e,)
    assert not is_irm_feasible(phi, 1.1 * beta, sem, 1e-3)[0]
    u_c, u_e = 0.64, (norm / 2) ** 2
    assert accuracy(w, sem) == pytest.approx(0.5 * (1 + math.erf(math.sqrt((u_c + u_e) / 2))), abs=5e-4)
    assert flip == pytest.approx(0.5 * (1 + math.erf((u_c - u_e) / math.sqrt(2 * (u_c + u_e)))), abs=5e-4)


def test_erm_shows_no_threshold():
    for e, flip in ((3, 0.211), (5, 0.537), (6, 0.519), (7, 0.627), (8, 0.578)):
        mean, var = moments(random_sem(e))
        w = p.population_optimum("erm", mean[None], var[None])[0]
        assert p.population_grad(w, mean, var).mean(0).norm() < 1e-6
        assert accuracy(w, random_sem(e).flip()) == pytest.approx(flip, abs=3e-3)


@pytest.mark.parametrize("name", ["irmv1", "vrex", "mm_rex"])
@pytest.mark.parametrize(("e", "bound"), [(3, 5e-3), (7, 3e-2)])
def test_penalties_reach_the_closed_form_by_continuation(name, e, bound):
    sem = random_sem(e)
    mean, var = moments(sem)
    w = p.population_optimum(name, mean[None], var[None])[0]
    closed = linear_irm_solution(sem)
    assert abs(w[3:].norm().item() - np.linalg.norm(closed[3:])) <= bound
    assert accuracy(w, sem.flip()) == pytest.approx(accuracy(closed, sem.flip()), abs=5e-3)


def test_irmv1_from_the_erm_optimum_alone_can_end_in_a_worse_point():
    sem = random_sem(3, seed=2)
    mean, var = (m[None] for m in moments(sem))
    ends = [p.population_optimum("irmv1", mean, var, restart=restart) for restart in (False, True)]
    penalties = [p.irmv1_penalty(w[:, None], mean, var).mean().item() for w in ends]
    assert penalties[0] > 1e-4 > 1e-8 > penalties[1]


def test_large_means_make_the_spurious_features_alone_better_than_the_invariant_ones():
    sem = random_sem(3, scale=3.0)
    w = linear_irm_solution(sem)
    alone = np.where(np.arange(9) < 3, 0, w)
    risk = p.population_risk(torch.as_tensor(alone), *moments(sem)).mean().item()
    invariant = p.population_risk(torch.as_tensor(sem.optimal_invariant()[0]), *moments(sem)).mean().item()
    assert risk == pytest.approx(2e-4, abs=1e-4)
    assert invariant == pytest.approx(0.4487, abs=5e-4)
    assert accuracy(w, sem.flip()) == pytest.approx(2e-4, abs=1e-4)


def test_training_on_samples_keeps_cells_apart_and_suppresses_spurious_weights_beyond_the_threshold():
    drawn = [random_sem(8, seed=s).sample(np.arange(8), 2000, np.random.default_rng(s))[:2] for s in (0, 1)]
    x, y = (torch.tensor(np.stack([d[k] for d in drawn]), dtype=torch.float32) for k in (0, 1))
    together = train_linear(x, y, ["erm", "irmv1"], steps=500, anneal_steps=100)
    alone = train_linear(x[1:], y[1:], ["irmv1"], steps=500, anneal_steps=100)
    torch.testing.assert_close(together[1, 1], alone[0, 0], rtol=1e-3, atol=1e-4)
    assert (together[:, 1, 3:].norm(dim=1) < 0.5 * together[:, 0, 3:].norm(dim=1)).all()


def test_training_on_samples_follows_the_gradient_of_its_objective():
    x, y = (torch.as_tensor(a) for a in random_sem(3).sample(np.arange(3), 500, np.random.default_rng(0))[:2])
    names = ["erm", "irmv1", "vrex", "rvp", "mm_rex"]
    trained = train_linear(x[None], y[None], names, lam=3.0, steps=40, anneal_steps=20)[0]
    for k, name in enumerate(names):
        w = torch.zeros(9, dtype=torch.float64, requires_grad=True)
        for weight in (0.0, 3.0):
            adam = torch.optim.Adam([w], 0.02)
            for _ in range(20):
                loss = p.objective(name)(*p.risks_and_slopes(x @ w, y), torch.tensor(weight)) / max(1, weight)
                w.grad = torch.autograd.grad(loss, w)[0]
                adam.step()
        torch.testing.assert_close(trained[k], w.detach(), rtol=1e-6, atol=1e-8)


def test_objectives_equal_their_formulas_and_the_trained_methods():
    risks, slopes = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, -2.0, 0.0])
    lam = torch.tensor(10.0)
    assert p.irmv1(risks, slopes, lam) == pytest.approx(3 + 10 * 5 / 3)
    assert p.vrex(risks, slopes, lam) == pytest.approx(3 + 10 * 14 / 3)
    assert p.rvp(risks, slopes, lam) == pytest.approx(3 + 10 * math.sqrt(14 / 3))
    assert p.mm_rex(risks, slopes, lam) == pytest.approx(31 * 6 - 10 * 9)
    equal = torch.ones(3, requires_grad=True)
    assert torch.autograd.grad(p.rvp(equal, slopes, lam), equal)[0].tolist() == pytest.approx([1 / 3] * 3)
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(21).view(3, 7) % 2
    risks, slopes = p.risks_and_slopes(logits, 2.0 * labels - 1)
    two = Outputs(logits, torch.stack([torch.zeros_like(logits), logits], -1))
    weight = SimpleNamespace(vrex_lambda=10.0, vrex_anneal_steps=0)
    for method, form in ((ERM, p.erm), (VREx, p.vrex)):
        torch.testing.assert_close(
            form(risks, slopes, lam), method.objective(two, labels, weight, {}, torch.tensor(5))[0]
        )


def test_rotating_the_inputs_changes_no_logit_risk_or_feasibility():
    sem = random_sem(4)
    turned = dataclasses.replace(sem, mixing=orthogonal(9))
    x, _, z = turned.sample(0, 50, np.random.default_rng(0))
    np.testing.assert_allclose(x @ linear_irm_solution(turned), z @ linear_irm_solution(sem), atol=1e-10)
    np.testing.assert_allclose(x @ turned.optimal_invariant()[0], z @ sem.optimal_invariant()[0], atol=1e-10)
    a, b = (is_irm_feasible(*linear_irm_predictor(s), s, 1e-10) for s in (sem, turned))
    assert (a[0], b[0]) == (True, True)
    plain, mixed = NonlinearFailure(sem, 1.6), NonlinearFailure(turned, 1.6)
    np.testing.assert_allclose(mixed.predict(x), plain.predict(z), atol=1e-10)


def test_order_and_repetition_of_environments_change_nothing():
    sem = random_sem(4)
    mean, var = moments(sem)
    order, twice = [2, 0, 3, 1], [0, 1, 2, 3, 3]
    for name in ("irmv1", "vrex"):
        first, second = (
            p.population_optimum(name, mean[k][None], var[k][None], restart=False) for k in (range(4), order)
        )
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
    whole = invariant_direction(sem.env_means, sem.env_vars)
    for rows in (order, twice):
        part = invariant_direction(sem.env_means[rows], sem.env_vars[rows])
        np.testing.assert_allclose(part.p, whole.p, atol=1e-10)
        assert part.residual <= 1e-12


def test_feasibility_on_data_tells_the_invariant_from_the_spurious_representation():
    data = gaussian_sem(environments=3, n=4000, flipped=False)
    beta = np.full(3, 2 * 0.8 / math.sqrt(3))
    feasible, norms = is_irm_feasible(np.eye(3, 9), beta, data)
    assert feasible
    assert (norms < 0.05).all()
    assert is_irm_feasible(lambda x: x[:, :3], beta, data, bias=0.0)[0]
    assert not is_irm_feasible(np.eye(9), np.r_[beta, np.zeros(6)], data)[0]
    assert not is_irm_feasible(np.eye(3, 9), beta, gaussian_sem(environments=3, n=4000, invariant=2, spurious=7))[0]


@pytest.mark.parametrize("d_e", [16, 64, 128])
def test_the_nonlinear_construction_hides_from_training_and_is_erm_far_away(d_e):
    sem = random_sem(3, spurious=d_e, scale=0.35)
    failure = NonlinearFailure(sem, 1.6)
    tail = {16: 0.0599, 64: 0.00164, 128: 1.9e-5}[d_e]
    bound = {16: 0.487, 64: 0.0561, 128: 3.15e-3}[d_e]
    assert failure.chi_square_tail() == pytest.approx(tail, rel=5e-3)
    assert failure.p_eps_bound() == pytest.approx(bound, rel=2e-3)
    generator = np.random.default_rng(0)
    x, y, z = sem.sample(np.arange(3), 20_000, generator)
    outside = 1 - failure.in_balls(z[..., 3:]).mean()
    assert outside <= tail + 3 * math.sqrt(tail / 60_000)
    assert (y * failure.predict(x) > 0).mean() == pytest.approx(INVARIANT_ACCURACY, abs=0.01)
    assert abs(failure.penalty(x, y)) < {16: 3e-4, 64: 6e-5, 128: 6e-5}[d_e]
    far = dataclasses.replace(sem, env_means=failure.far_mean(1.0)[None], env_vars=np.ones(1))
    x, y, z = far.sample(0, 5_000, generator)
    assert not failure.in_balls(z[:, 3:]).any()
    np.testing.assert_allclose(failure.predict(x), z @ failure.erm)
    assert (y * failure.predict(x) > 0).mean() <= 1e-3
    assert (y * (z @ failure.invariant) > 0).mean() == pytest.approx(INVARIANT_ACCURACY, abs=0.02)
    assert failure.erm_share_bound(2.0) == pytest.approx(6 / (math.sqrt(math.pi) * 2) * math.exp(-4))


def test_the_far_mean_is_as_far_as_promised():
    sem = random_sem(4, spurious=8)
    failure = NonlinearFailure(sem, 1.5)
    centres = np.concatenate([sem.env_means, -sem.env_means])
    gap = np.linalg.norm(centres - failure.far_mean(0.7), axis=1)
    assert gap.min() >= (math.sqrt(1.5) + 0.7) * math.sqrt(8) * (1 - 1e-12)


def test_the_dataset_has_the_models_environments_and_its_identity_fixes_it():
    data = check_dataset(gaussian_sem(environments=2, n=3000, seed=5))
    assert data.environment_names == ("train0", "train1", "flipped")
    assert data.identity == gaussian_sem(environments=2, n=3000, seed=5).identity
    assert len({gaussian_sem(n=50, seed=s, scale=c).identity for s in (1, 2) for c in (1, 2)}) == 4
    np.testing.assert_array_equal(data.environments[0].inputs, gaussian_sem(2, 3000, seed=5).environments[0].inputs)
    means = random_sem(2, seed=5).env_means
    for room, mean in zip(data.environments, (*means, -means.mean(0)), strict=True):
        signed = room.inputs * (2 * room.labels - 1)[:, None]
        np.testing.assert_allclose(signed.mean(0)[3:], mean, atol=0.1)
        np.testing.assert_allclose(signed.mean(0)[:3], 0.8 / math.sqrt(3), atol=0.1)


def sem_with(**changes):
    parts = {"mu_c": np.ones(2), "sigma_c2": 1.0, "env_means": np.ones((2, 3)), "env_vars": np.ones(2)}
    return GaussianSEM(**{**parts, **changes})


ONE = torch.ones(1, 3, 4)
MISTAKES = [
    ("sigma_c2", lambda: sem_with(sigma_c2=0.0)),
    ("env_vars", lambda: sem_with(env_vars=np.array([1.0, -1.0]))),
    ("env_vars", lambda: sem_with(env_vars=np.ones(3))),
    ("env_means", lambda: sem_with(env_means=np.ones(3))),
    ("mu_c", lambda: sem_with(mu_c=np.array([np.nan, 1.0]))),
    ("eta", lambda: sem_with(eta=1.0)),
    ("mixing", lambda: sem_with(mixing=np.ones((5, 5)))),
    ("mixing", lambda: sem_with(mixing=np.eye(4))),
    ("env", lambda: sem_with().sample(2, 5, np.random.default_rng(0))),
    ("n:", lambda: gaussian_sem(n=5)),
    ("spurious", lambda: gaussian_sem(spurious=0)),
    ("scale", lambda: gaussian_sem(scale=-1.0)),
    ("environments", lambda: gaussian_sem(environments=1, flipped=False)),
    ("eps", lambda: NonlinearFailure(sem_with(), 1.0)),
    ("delta", lambda: NonlinearFailure(sem_with(), 1.5).far_mean(0.0)),
    ("z_e", lambda: NonlinearFailure(sem_with(), 1.5).in_balls(np.ones(4))),
    ("variances", lambda: invariant_direction(np.ones((2, 3)), np.array([1.0, 0.0]))),
    ("variances", lambda: invariant_direction(np.ones((2, 3)), np.ones(3))),
    ("mean", lambda: p.population_optimum("vrex", ONE, ONE[:, :1])),
    ("vrex", lambda: p.population_optimum("vrex", ONE[:, :1], ONE[:, :1])),
    ("rvp", lambda: p.rvp(torch.ones(1), torch.ones(1), torch.tensor(1.0))),
    ("objective", lambda: p.objective("dro")),
    ("label 0", lambda: train_linear(ONE[None], torch.zeros(1, 1, 3), ["erm"])),
    ("label 0", lambda: train_mlp(ONE, torch.zeros(1, 3), "erm", torch.Generator())),
    ("label 2", lambda: is_irm_feasible(np.eye(2), np.ones(2), [(np.ones((1, 2)), np.array([2]))])),
    ("phi", lambda: is_irm_feasible(np.eye(3), np.ones(2), sem_with())),
    ("phi", lambda: is_irm_feasible(np.eye(3), np.ones(3), [(np.ones((1, 2)), np.array([1]))])),
    ("tol", lambda: is_irm_feasible(np.eye(5), np.ones(5), sem_with(), 0.0)),
]


@pytest.mark.parametrize(("named", "mistake"), MISTAKES)
def test_a_mistake_is_one_line_that_names_it(named, mistake):
    with pytest.raises(InputError) as caught:
        mistake()
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_feasibility_needs_two_classes():
    rooms = tuple(Environment(n, np.ones((3, 2), np.float32), np.arange(3)) for n in "ab")
    with pytest.raises(InputError, match="3 classes"):
        is_irm_feasible(np.eye(2), np.ones(2), Dataset("three", rooms, ("a", "b", "c"), "linear"))


def test_a_loss_that_is_not_finite_stops_training():
    y = torch.ones(1, 2, 3)
    with pytest.raises(FloatingPointError, match="erm"):
        train_linear(torch.full((1, 2, 3, 2), torch.nan), y, ["erm"], steps=3, anneal_steps=1)
    with pytest.raises(FloatingPointError, match="vrex"):
        train_mlp(torch.full((2, 3, 2), torch.nan), y[0], "vrex", torch.Generator(), steps=3)
    with pytest.raises(FloatingPointError):
        p.population_optimum("erm", torch.full((1, 2, 3), torch.nan, dtype=torch.float64), torch.ones(1, 2, 3).double())
