"""Feature matching: the exact rule against its theory, the penalty against a plain loop, the estimators on known laws."""

import math

import numpy as np
import pytest
import torch

from lightning_modules.data.environments import check_dataset
from lightning_modules.data.simulated.gaussian_environments import (
    GaussianEnvironments,
    gaussian_environments,
    noised_mnist,
)
from lightning_modules.domain_generalization.feature_matching.exact import (
    ExactIFM,
    isotropic_subspace,
    mean_matching_subspace,
    pooled_discriminant,
)
from lightning_modules.domain_generalization.feature_matching.linear import (
    LinearFeatureMatching,
    environment_groups,
    logistic_head,
    match_moments,
    shrinking_widths,
)
from lightning_modules.domain_generalization.feature_matching.moments import (
    ABSENT,
    Moments,
    class_moments,
    moment_matching_penalty,
    stack_environments,
    subspace_leak,
)
from lightning_modules.domain_generalization.feature_matching.network import (
    MatchedMLP,
    margin_slope_penalty,
    train_linear_network,
)
from lightning_modules.domain_generalization.irm import irm_penalty
from lightning_modules.errors import InputError

BAYES = 0.9873263


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def population(law):
    mean, covariance = torch.from_numpy(law.means), torch.from_numpy(law.covariances)
    return Moments(torch.stack([-mean, mean], 1), torch.stack([covariance, covariance], 1))


def features(seed=0, environments=4, examples=30, d=3, classes=3):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(environments, examples, d, generator=g, dtype=torch.float64)
    return x, torch.randint(0, classes, (environments, examples), generator=g)


# The simulator


def test_samples_have_the_moments_of_the_law_and_flipping_negates_spurious_means_only():
    law = GaussianEnvironments(2, 3, 2, seed=1)
    x, y = law.sample(200_000)
    for e in range(2):
        signed = x[e] * y[e][:, None]
        np.testing.assert_allclose(signed.mean(0), law.means[e], atol=0.05)
        np.testing.assert_allclose(np.cov(signed.T), law.covariances[e], atol=0.15)
    inv, spu = law.invariant_basis, law.spurious_basis
    np.testing.assert_allclose(law.flipped().means @ inv, law.means @ inv)
    np.testing.assert_allclose(law.flipped().means @ spu, -law.means @ spu)
    np.testing.assert_allclose(law.means @ inv, 1)
    np.testing.assert_allclose(law.rotation @ law.rotation.T, np.eye(5), atol=1e-12)


def test_the_first_environments_do_not_depend_on_how_many_follow():
    few, many = GaussianEnvironments(2, 3, 2, seed=4), GaussianEnvironments(2, 3, 5, seed=4)
    np.testing.assert_array_equal(few.means, many.means[:2])
    np.testing.assert_array_equal(few.sample(7)[0], many.sample(7)[0][:2])
    assert not np.array_equal(few.sample(7)[0], few.sample(7, stream=1)[0])


def test_exact_accuracy_agrees_with_counting():
    law = GaussianEnvironments(3, 4, 3, mu_scale=1, seed=2)
    w = np.random.default_rng(0).standard_normal(7)
    x, y = law.sample(100_000)
    assert abs(law.accuracy(w, 0.5) - ((x @ w + 0.5 > 0) == (y > 0)).mean()) < 5e-3
    assert law.bayes_accuracy == pytest.approx(0.5 * (1 + math.erf(math.sqrt(1.5))))


def test_the_dataset_has_named_environments_and_a_flipped_one_and_its_identity_fixes_it():
    data = check_dataset(gaussian_environments(environments=3, n=40, spurious=4, seed=5))
    assert data.environment_names == ("train0", "train1", "train2", "flipped")
    assert data.identity == "GaussianEnvironments(environments=3,n=40,invariant=5,spurious=4,flipped=True,seed=5)"
    assert all(len(e) == 40 and e.inputs.dtype == np.float32 for e in data.environments)
    law = GaussianEnvironments(5, 4, 3, seed=5)
    _, *spurious = np.split(
        (2 * data.environments[3].labels - 1) @ data.environments[3].inputs / 40 @ law.rotation, [5]
    )
    np.testing.assert_allclose(spurious[0], (law.flipped().means @ law.rotation).mean(0)[5:], atol=2.5)
    with pytest.raises(InputError, match="environments: 1 is below 2"):
        gaussian_environments(environments=1, flipped=False)
    with pytest.raises(InputError, match="n_envs: 0 is below 1"):
        GaussianEnvironments(n_envs=0)


def test_noised_mnist_tells_the_label_in_training_and_misleads_in_the_test():
    data = check_dataset(noised_mnist(seed=0))
    assert [len(e) for e in data.environments] == [373] * 12 + [516]
    assert data.environments[0].inputs.shape[1] == 812

    def extra_means(rooms):
        x, y = np.concatenate([e.inputs for e in rooms])[:, 784:], np.concatenate([e.labels for e in rooms])
        return np.stack([x[y == c].mean(0) for c in range(10)])

    assert extra_means(data.environments[:12]).std() > 2
    assert extra_means(data.environments[12:]).std() < 1.2


# The exact rule


def test_the_isotropic_subspace_has_the_largest_dimension_and_the_form_vanishes_on_it():
    rng = np.random.default_rng(0)
    for _ in range(100):
        d = int(rng.integers(2, 15))
        signs = rng.integers(-1, 2, d)
        q = np.linalg.qr(rng.standard_normal((d, d)))[0]
        form = torch.from_numpy((q * signs * rng.uniform(0.1, 10, d)) @ q.T)
        w = isotropic_subspace(form)
        assert len(w) == (signs == 0).sum() + min((signs > 0).sum(), (signs < 0).sum())
        if len(w):
            assert (w @ form @ w.T).abs().max() <= 1e-10 * torch.linalg.matrix_norm(form, 2)
            torch.testing.assert_close(w @ w.T, torch.eye(len(w), dtype=w.dtype), atol=1e-12, rtol=0)


def test_round_off_counts_as_zero_only_by_the_scale_of_the_original_space():
    noise = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-13
    noise = noise + noise.T
    assert len(isotropic_subspace(noise, scale=100.0)) == 6
    assert len(isotropic_subspace(noise)) < 6


@pytest.mark.parametrize("d_spu", [8, 16, 32, 64, 128])
def test_exact_matching_leaves_the_invariant_directions_after_logarithmically_many_environments(d_spu):
    bound = 2 * (int(math.log2(d_spu)) + 1)
    law = GaussianEnvironments(5, d_spu, bound, seed=3)
    found = ExactIFM().fit(population(law))
    assert found.environments_used <= bound
    assert found.environments_used == 2 * found.dims.index(5)
    assert found.dims[-1] == 5
    assert subspace_leak(found.U, law.spurious_basis) <= 1e-8
    rule = pooled_discriminant(population(law), found.U)
    assert law.flipped().accuracy(rule.numpy()) == pytest.approx(BAYES, abs=1e-3)
    left = [d - 5 for d in found.dims]
    assert all(after <= before // 2 for before, after in zip(left, left[1:], strict=False))
    for u in found.history:
        kept = torch.linalg.svdvals(u @ torch.from_numpy(law.invariant_basis))
        torch.testing.assert_close(kept, torch.ones(5, dtype=kept.dtype), atol=1e-8, rtol=0)


def test_matching_means_too_drops_one_dimension_more_a_round_and_keeps_the_invariant_ones():
    law = GaussianEnvironments(5, 32, 12, seed=0)
    found, plain = ExactIFM(use_mean=True).fit(population(law)), ExactIFM().fit(population(law))
    left = [d - 5 for d in found.dims]
    assert all(after <= max(before - 1, 0) // 2 for before, after in zip(left, left[1:], strict=False))
    assert found.environments_used <= plain.environments_used
    assert found.dims[-1] == 5
    assert subspace_leak(found.U, law.spurious_basis) <= 1e-8


def test_mean_matching_alone_needs_one_environment_a_spurious_dimension():
    for environments, left in ((12, 26), (24, 14), (33, 5)):
        law = GaussianEnvironments(5, 32, environments, seed=0)
        u = mean_matching_subspace(population(law))
        assert len(u) == left
    assert law.flipped().accuracy(pooled_discriminant(population(law), u).numpy()) == pytest.approx(BAYES, abs=1e-3)


def test_equal_environments_keep_every_dimension_and_equal_covariances_cannot_be_pruned_by_covariance():
    law = GaussianEnvironments(3, 8, 6, shared_covariance=True, seed=0)
    moments = population(law)
    assert ExactIFM().fit(moments).dims == [11] * 4
    assert ExactIFM().fit(moments).environments_used == 0
    assert ExactIFM(use_mean=True).fit(moments).dims == [11, 10, 9, 8]
    same = Moments(moments.means[:1].repeat(4, 1, 1), moments.covariances[:1].repeat(4, 1, 1, 1))
    assert ExactIFM(use_mean=True).fit(same).dims == [11] * 3


def test_exact_matching_of_samples_needs_a_tolerance_above_the_noise():
    law = GaussianEnvironments(5, 32, 12, seed=0)
    x, y = law.sample(5000)
    found = ExactIFM(tol=0.01, pool_classes=True).fit(x, y)
    moments = class_moments(torch.from_numpy(x), torch.from_numpy(y > 0).long(), 2)
    assert law.flipped().accuracy(pooled_discriminant(moments, found.U).numpy()) > 0.9
    assert found.transform(x[0]).shape == (5000, found.dims[-1])
    assert ExactIFM(pool_classes=True).fit(x, y).dims[-1] == 0


# The penalty


def penalty_by_loop(x, y, classes, pairs):
    environments = len(x)
    chosen = [(i, j) for i in range(environments) for j in range(i + 1, environments) if pairs == "all" or j == i + 1]
    total = 0.0
    for i, j in chosen:
        for c in range(classes):
            a, b = x[i][y[i] == c].numpy(), x[j][y[j] == c].numpy()
            if len(a) >= 2 and len(b) >= 2:
                total += ((a.mean(0) - b.mean(0)) ** 2).mean() + ((np.cov(a.T) - np.cov(b.T)) ** 2).mean()
    return total / len(chosen)


@pytest.mark.parametrize("pairs", ["consecutive", "all"])
def test_the_penalty_agrees_with_a_plain_loop_and_skips_missing_classes(pairs):
    x, y = features()
    y[1][y[1] == 2] = 0  # class 2 is missing in environment 1, and has a single example in environment 3
    y[3][y[3] == 2] = 1
    y[3, 0] = 2
    assert float(moment_matching_penalty(x, y, 3, pairs)) == pytest.approx(penalty_by_loop(x, y, 3, pairs))
    expected = penalty_by_loop(x, torch.zeros_like(y), 1, pairs)
    assert float(moment_matching_penalty(x, pairs=pairs)) == pytest.approx(expected)
    padded = torch.cat([x, 100 * torch.ones_like(x[:, :2])], 1)
    marks = torch.cat([y, torch.full((4, 2), ABSENT)], 1)
    assert float(moment_matching_penalty(padded, marks, 3, pairs)) == pytest.approx(penalty_by_loop(x, y, 3, pairs))


def test_the_penalty_runs_under_vmap_and_its_gradient_is_finite_with_a_missing_class():
    x, y = features()
    y[1][y[1] == 2] = 0
    stack = torch.stack([x, 2 * x]).requires_grad_()
    together = torch.func.vmap(lambda z: moment_matching_penalty(z, y, 3))(stack)
    alone = torch.stack([moment_matching_penalty(x, y, 3), moment_matching_penalty(2 * x, y, 3)])
    torch.testing.assert_close(together, alone)
    together.sum().backward()
    assert torch.isfinite(stack.grad).all()


def test_identical_environments_and_a_single_one_have_no_penalty_and_rotation_changes_none():
    x, y = features()
    assert float(moment_matching_penalty(x[:1].repeat(3, 1, 1), y[:1].repeat(3, 1), 3)) == 0
    assert float(moment_matching_penalty(x[:1], y[:1], 3)) == 0
    q = torch.linalg.qr(x[0, :3]).Q
    rotated = float(moment_matching_penalty(x @ q, y, 3))
    assert rotated == pytest.approx(float(moment_matching_penalty(x, y, 3)))
    with pytest.raises(InputError, match="classes: missing"):
        moment_matching_penalty(x, y)
    with pytest.raises(InputError, match="pairs: unknown 'some'"):
        moment_matching_penalty(x, y, 3, "some")


# The gradient version


def test_widths_shrink_as_published_and_groups_are_refused_when_they_cannot_be_made():
    assert shrinking_widths(5, 32, 3) == [16, 9, 5]
    assert shrinking_widths(5, 32, 1) == [5]
    assert shrinking_widths(0 + 1, 64, 3) == [17, 5, 1]
    assert environment_groups(6, 3, "disjoint") == [slice(0, 2), slice(2, 4), slice(4, 6)]
    for environments in (3, 7):
        with pytest.raises(InputError, match="cannot make 3 disjoint groups"):
            environment_groups(environments, 3, "disjoint")
    law = GaussianEnvironments(2, 2, 2)
    stacked = Moments(*(m.unsqueeze(0) for m in (population(law).means, population(law).covariances)))
    with pytest.raises(InputError, match="widths: 5 outputs of 4 inputs"):
        match_moments(stacked, [5], torch.Generator())


def test_three_matched_layers_beat_logistic_regression_by_far_on_three_data_sets():
    laws = [GaussianEnvironments(5, 32, 9, seed=seed) for seed in range(3)]
    x, y = (torch.from_numpy(np.stack(parts)) for parts in zip(*(law.sample(800) for law in laws), strict=True))
    y = (y > 0).long()
    each = [class_moments(x[k], y[k], 2) for k in range(3)]
    moments = Moments(torch.stack([m.means for m in each]), torch.stack([m.covariances for m in each]))
    u, history = match_moments(moments, shrinking_widths(5, 32, 3), torch.Generator().manual_seed(0))
    assert history.shape == (3, 3, 400)
    assert (history[:, :, -1] < 0.5 * history[:, :, 0]).all()
    torch.testing.assert_close(u @ u.mT, torch.eye(5, dtype=u.dtype).expand(3, 5, 5))

    def flip(features, projection):
        w, b = logistic_head(features.flatten(1, 2), y.flatten(1), 2)
        w, b = (w[:, 1] - w[:, 0]).unsqueeze(1) @ projection, b[:, 1] - b[:, 0]
        return np.mean([law.flipped().accuracy(w[k, 0].numpy(), float(b[k])) for k, law in enumerate(laws)])

    matched, erm = flip(x @ u.mT.unsqueeze(1), u), flip(x, torch.eye(37, dtype=x.dtype))
    assert matched >= 0.93
    assert matched >= erm + 0.5


def test_stacked_problems_are_solved_as_if_alone_and_the_best_restart_is_kept():
    laws = [GaussianEnvironments(2, 6, 4, seed=seed) for seed in range(2)]
    means, covariances = (torch.stack([getattr(population(law), k) for law in laws]) for k in ("means", "covariances"))
    solve = lambda k, restarts: match_moments(  # noqa: E731
        Moments(means[k], covariances[k]), [4, 2], torch.Generator().manual_seed(0), restarts=restarts, steps=40
    )
    both, history = solve(slice(0, 2), 3)
    alone, history_alone = solve(slice(1, 2), 3)
    torch.testing.assert_close(both[1:], alone, atol=1e-8, rtol=0)
    torch.testing.assert_close(history[1:], history_alone, atol=1e-8, rtol=1e-6)
    assert history[0, 0, -1] <= solve(slice(0, 1), 1)[1][0, 0, -1]


def test_disjoint_groups_show_each_layer_its_own_environments_only():
    moments = population(GaussianEnvironments(2, 6, 4, seed=0))
    changed = Moments(moments.means.clone(), moments.covariances.clone())
    changed.covariances[3] *= 2
    history = {}
    for match in ("disjoint", "all"):
        history[match] = [
            match_moments(
                Moments(m.means.unsqueeze(0), m.covariances.unsqueeze(0)),
                [4, 2],
                torch.Generator().manual_seed(0),
                match,
                steps=5,
            )[1][0]
            for m in (moments, changed)
        ]
    torch.testing.assert_close(history["disjoint"][0][0], history["disjoint"][1][0])
    assert (history["disjoint"][0][1] != history["disjoint"][1][1]).all()
    assert (history["all"][0][0] != history["all"][1][0]).all()


def test_the_estimator_keeps_labels_ragged_environments_and_predictions_under_rotation():
    law = GaussianEnvironments(2, 4, 6, seed=1)
    x, y = law.sample(300)
    names = np.where(y > 0, "yes", "no")
    parts, labels = [part[: 300 - 10 * e] for e, part in enumerate(x)], [n[: 300 - 10 * e] for e, n in enumerate(names)]
    settings = {"layers": 2, "steps": 200, "restarts": 2, "match": "disjoint"}
    model = LinearFeatureMatching(2, 4, **settings).fit(parts, labels)
    assert model.transform(x[0]).shape == (300, 2)
    assert model.loss_history.shape == (2, 200)
    assert set(model.predict(x[0])) == {"yes", "no"}
    accuracy = np.mean([(model.predict(part) == label).mean() for part, label in zip(x, names, strict=True)])
    assert accuracy > 0.85
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
    # The exact rule is equivariant to round-off; what the gradient finds depends on its start as well.
    turned = Moments(
        population(law).means @ torch.from_numpy(q).T, torch.from_numpy(q @ population(law).covariances.numpy() @ q.T)
    )
    u, v = ExactIFM().fit(population(law)).U, ExactIFM().fit(turned).U
    torch.testing.assert_close(v.T @ v, torch.from_numpy(q) @ u.T @ u @ torch.from_numpy(q).T, atol=1e-8, rtol=0)


def test_the_gradient_version_is_as_accurate_on_rotated_inputs():
    law = GaussianEnvironments(3, 8, 8, seed=1)
    x, y = law.sample(800)
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((11, 11)))[0]
    flipped, truth = law.flipped().sample(500, stream=1)
    accuracy = []
    for turn in (np.eye(11), q):
        model = LinearFeatureMatching(3, 8, layers=3, steps=200, restarts=2).fit(x @ turn.T, y)
        assert subspace_leak(model.U, turn @ law.spurious_basis) < 0.25
        accuracy.append(np.mean(model.predict((flipped @ turn.T).reshape(-1, 11)) == truth.reshape(-1)))
    assert accuracy[0] == pytest.approx(law.bayes_accuracy, abs=0.02)
    assert accuracy[1] == pytest.approx(accuracy[0], abs=0.01)


def test_what_a_user_can_get_wrong_is_said_in_one_line():
    x, y = GaussianEnvironments(2, 4, 4).sample(20)
    model = LinearFeatureMatching(2, 4, layers=1)
    with pytest.raises(InputError, match="environment 1: inputs have shape \\(20, 5\\)"):
        model.fit([x[0], x[1][:, :5]], y[:2])
    with pytest.raises(InputError, match="6 features, but d_inv \\+ d_spu is 7"):
        LinearFeatureMatching(2, 5).fit(x, y)
    few = y.copy()
    few[2] = 1
    with pytest.raises(InputError, match="environment 2: 0 examples of class -1; a covariance needs at least 2"):
        model.fit(x, few)
    with pytest.raises(InputError, match="environment 0: inputs have NaN"):
        model.fit([np.full((20, 6), np.nan)], y[:1])
    with pytest.raises(InputError, match="environments: 1 is below 2"):
        ExactIFM().fit(x[:1], y[:1])
    stacked, labels, classes = stack_environments([x[0], x[1][:15]], [y[0], y[1][:15]])
    assert stacked.shape == (2, 20, 6)
    assert (labels[1, 15:] == ABSENT).all()
    assert classes.tolist() == [-1, 1]


def test_the_logistic_head_solves_each_problem_as_if_alone_and_ignores_absent_rows():
    x, y = features(environments=2, examples=200)
    w, b = logistic_head(x, y, 3, ridge=0.1)
    longer = torch.cat([x[1:], 1e3 * torch.ones(1, 5, 3, dtype=x.dtype)], 1)
    w1, b1 = logistic_head(longer, torch.cat([y[1:], torch.full((1, 5), ABSENT)], 1), 3, ridge=0.1)
    torch.testing.assert_close(w[1:], w1, atol=1e-4, rtol=0)
    torch.testing.assert_close(b[1:], b1, atol=1e-4, rtol=0)
    p = (x @ w.mT + b.unsqueeze(1)).softmax(-1)
    residual = torch.nn.functional.one_hot(y, 3) - p  # the intercept's optimality condition: its mean is zero
    assert residual.mean(1).abs().max() < 1e-4


# Trained together with a classifier


def test_linear_networks_of_several_weights_train_as_if_alone_and_weight_zero_is_plain_risk():
    laws = [GaussianEnvironments(2, 4, 3, seed=seed) for seed in range(2)]
    x, y = (torch.from_numpy(np.stack(parts)) for parts in zip(*(law.sample(50) for law in laws), strict=True))
    y = (y > 0).long()
    each = [class_moments(x[k], y[k], 2) for k in range(2)]
    moments = Moments(torch.stack([m.means for m in each]), torch.stack([m.covariances for m in each]))
    train = lambda name, lam, k=slice(0, 2): train_linear_network(  # noqa: E731
        x[k],
        y[k],
        Moments(moments.means[k], moments.covariances[k]),
        name,
        lam,
        [3, 2],
        torch.Generator().manual_seed(0),
        40,
    )
    for name in ("IRM", "CORAL", "CORAL+ON"):
        w, b = train(name, (0.0, 1.0, 10.0))
        w1, b1 = train(name, (10.0,), slice(1, 2))
        torch.testing.assert_close(w[1:, 2:], w1)
        torch.testing.assert_close(b[1:, 2:], b1)
        assert (w[:, 2] - w[:, 0]).abs().max() > 1e-3
    torch.testing.assert_close(train("IRM", (0.0,)), train("CORAL", (0.0,)))
    with pytest.raises(InputError, match="method: unknown 'MMD'"):
        train("MMD", (1.0,))


def test_the_scalar_penalty_of_irm_is_that_of_the_method_of_this_family():
    margins = torch.randn(3, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(20).repeat(3, 1) % 3 % 2
    expected = irm_penalty(torch.stack([-margins / 2, margins / 2], -1), y).mean()
    found = margin_slope_penalty(((2 * y - 1) * margins)[None, :, :, None])
    torch.testing.assert_close(found, expected.view(1, 1))


def test_the_matched_mlp_sums_the_penalties_of_the_layers_it_is_told_to_match():
    x, y = features(environments=4, examples=40, d=6)
    x = x.float()
    by = {m: MatchedMLP([6, 5, 4], 3, m, seed=1) for m in ("none", "last", "disjoint", "all")}
    first, second = by["all"].features(x)
    terms = [moment_matching_penalty(layer, y, 3) for layer in (first, second)]
    expected = {
        "none": torch.zeros(()),
        "last": terms[1],
        "disjoint": moment_matching_penalty(first[:2], y[:2], 3) + moment_matching_penalty(second[2:], y[2:], 3),
        "all": sum(terms),
    }
    for match, model in by.items():
        risk, penalty = model.objective(x, y)
        torch.testing.assert_close(penalty, expected[match])
        torch.testing.assert_close(risk, torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten()))
    pooled = MatchedMLP([6, 5, 4], 3, "last", conditional=False, seed=1)
    marks = y.clone()
    marks[:, 30:] = ABSENT
    torch.testing.assert_close(pooled.objective(x, marks)[1], moment_matching_penalty(second[:, :30]))
    with pytest.raises(InputError, match="match: unknown 'some'"):
        MatchedMLP([6, 5], 3, "some")
    with pytest.raises(InputError, match="widths: \\[6\\] has no hidden layer"):
        MatchedMLP([6], 3)
    with pytest.raises(InputError, match="cannot make 2 disjoint groups"):
        by["disjoint"].objective(x[:3], y[:3])


def test_training_the_matched_mlp_is_reproducible_and_lowers_both_risk_and_penalty():
    x, y = features(environments=4, examples=40, d=6)
    x = x.float() * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None] + y.unsqueeze(-1)
    results = {}
    for lam in (0.0, 5.0, 5.0):
        model = MatchedMLP([6, 5, 4], 3, "all", lam, seed=1).fit_full_batch(x, y, 60)
        risk, penalty = (float(v.detach()) for v in model.objective(x, y))
        assert results.setdefault(lam, (risk, penalty)) == (risk, penalty)
    start = [float(v.detach()) for v in MatchedMLP([6, 5, 4], 3, "all", seed=1).objective(x, y)]
    assert results[0.0][0] < start[0]
    assert results[5.0][1] < min(start[1], results[0.0][1])
