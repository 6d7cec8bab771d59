"""Domain-adjusted regression: what the constraint, the roots and the solver must do, and the heads beside it."""

import numpy as np
import pytest
import torch

from lightning_modules.data.environments import Dataset, Environment, check_dataset
from lightning_modules.data.simulated.domain_adjusted_sem import domain_adjusted_sem, domain_model
from lightning_modules.data.tables import load_table
from lightning_modules.domain_generalization.domain_adjusted import (
    CheatingExperiment,
    CoralHead,
    DomainAdjustedRegression,
    DomainStats,
    FeatureStore,
    GroupDROHead,
    IRMHead,
    LogisticHead,
    OracleHead,
    PerDomainStandardised,
    VRExHead,
)
from lightning_modules.domain_generalization.domain_adjusted.solver import SoftmaxRisk
from lightning_modules.errors import InputError
from lightning_modules.networks import build_network


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def three_classes(seed=0, n=300, d=8, domains=4):
    """Features with a shift and a stretch of their own in each domain, and three classes."""
    model = domain_model(domains, d, 1.0, 2.0, 0, seed)
    generator = np.random.default_rng(seed)
    drawn = [model.sample(e, n, generator) for e in range(domains)]
    x, signal = np.concatenate([p[0] for p in drawn]), np.concatenate([p[2] for p in drawn])
    y = (signal @ generator.normal(size=(d, 3)) + generator.gumbel(size=(domains * n, 3))).argmax(1)
    return x, y, np.repeat(np.arange(domains), n)


def regression_data(n, seed, d=12, domains=4):
    model = domain_model(domains, d, 1.0, 3.0, 0, seed)
    generator = np.random.default_rng([seed, 9])
    drawn = [model.sample(e, n, generator) for e in range(domains)]
    x, y = np.concatenate([p[0] for p in drawn]), np.concatenate([p[1] for p in drawn])
    return model, x, y, np.repeat(np.arange(domains), n)


def test_whitened_training_domains_have_identity_covariance_and_the_root_is_symmetric():
    x, _, domain = three_classes()
    stats = DomainStats.fit(x, domain)
    root = stats.inv_sqrt
    eye = torch.eye(8, dtype=torch.float64)
    assert (root - root.mT).abs().max() < 1e-12
    assert (root @ stats.covariance @ root - eye).abs().max() < 1e-9
    assert np.allclose(stats.covariance[2], np.cov(x[domain == 2].T, bias=True), atol=1e-12)


def test_statistics_streamed_in_batches_are_those_of_all_data_at_once():
    x, _, domain = three_classes()
    x = x + 100
    order = np.random.default_rng(0).permutation(len(x))
    streamed = DomainStats(0.2)
    for rows in np.array_split(order, 13):
        streamed.update(x[rows], domain[rows])
        streamed.inv_sqrt, streamed.average_adjustment()  # what is cached on the way must not outlive its data
    whole = DomainStats.fit(x, domain, 0.2)
    assert streamed.count.tolist() == whole.count.tolist()
    assert (streamed.mean - whole.mean).abs().max() < 1e-11
    assert (streamed.inv_sqrt - whole.inv_sqrt).abs().max() < 1e-9
    assert (streamed.average_adjustment() - whole.average_adjustment()).abs().max() < 1e-9


def test_shrinkage_and_selection_reuse_one_eigendecomposition_a_domain(monkeypatch):
    x, _, domain = three_classes()
    calls = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: (calls.append(1), eigh(a))[1])
    stats = DomainStats.fit(x, domain)
    for rho in (0.0, 0.1, 0.5):
        chosen = stats.with_shrinkage(rho)
        expected = (1 - rho) * stats.covariance + rho * stats.covariance.diagonal(dim1=1, dim2=2).mean(1)[
            :, None, None
        ] * torch.eye(8, dtype=torch.float64)
        assert (torch.linalg.inv(chosen.inv_sqrt @ chosen.inv_sqrt) - expected).abs().max() < 1e-8
        assert (chosen.select([1, 3]).inv_sqrt - chosen.inv_sqrt[[1, 3]]).abs().max() == 0
        mean = torch.linalg.inv(chosen.average_adjustment() @ chosen.average_adjustment())
        assert (mean - expected.mean(0)).abs().max() < 1e-8
    assert len(calls) == 4 + 1


def test_the_three_test_adjustments_agree_when_all_domains_are_alike():
    x, _, _ = three_classes()
    stats = DomainStats.fit(np.concatenate([x, x]), np.repeat([0, 1], len(x)))
    for kind in ("mean_cov", "mean_sqrt", "mean_inv_sqrt"):
        assert (stats.average_adjustment(kind) - stats.inv_sqrt[0]).abs().max() < 1e-9


def test_every_domain_mean_is_predicted_uniformly():
    x, y, domain = three_classes()
    head = DomainAdjustedRegression(shrinkage=0.1).fit(x, y, domain)
    means = head.stats_.whitened_mean.numpy()
    logits = means @ head.beta_
    assert head.constraint_violation_ <= 1e-10
    assert np.abs(logits - logits.mean(1, keepdims=True)).max() <= 1e-10
    assert np.abs(torch.from_numpy(logits).softmax(1).numpy() - 1 / 3).max() <= 1e-10
    assert np.linalg.norm(head.beta_) > 0.3
    assert head.nullspace_.shape == (8, 4)
    for e in range(4):  # and so through the predictor of that domain
        own = head.adapt_to(head.stats_, e).predict_proba(x[domain == e].mean(0, keepdims=True))
        assert np.abs(own - 1 / 3).max() <= 1e-10


def test_the_exact_solution_is_stationary_on_the_feasible_space():
    x, y, domain = three_classes()
    head = DomainAdjustedRegression(l2=1e-3).fit(x, y, domain)
    whitened = np.concatenate([x[domain == e] @ head.stats_.inv_sqrt[e].numpy() for e in range(4)])
    weight = torch.full((len(x),), 1 / len(x), dtype=torch.float64)
    _, gradient = SoftmaxRisk(torch.from_numpy(whitened), torch.from_numpy(y), weight, 3, 1e-3)(
        torch.from_numpy(head.beta_)
    )
    assert np.linalg.norm(head.nullspace_.T @ gradient.numpy()) <= 1e-8
    assert gradient.norm() > 1e-3  # the constraint does cost something here


def test_the_penalty_form_tends_to_the_exact_one_as_its_weight_grows():
    x, y, domain = three_classes()
    exact = DomainAdjustedRegression(l2=1e-2).fit(x, y, domain)
    gaps = []
    for penalty in (1e2, 1e3, 1e4):
        soft = DomainAdjustedRegression(l2=1e-2, solver="penalty", penalty=penalty).fit(x, y, domain)
        gaps.append(np.abs(soft.beta_ - exact.beta_).max())
        assert soft.constraint_violation_ > 10 * exact.constraint_violation_
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(10, rel=0.1)


def test_regression_finds_the_projected_coefficients_at_the_rate_of_one_over_root_n():
    errors = []
    for n in (1_000, 10_000):
        for seed in range(3):
            model, x, y, domain = regression_data(n, seed)
            head = DomainAdjustedRegression("regression", shrinkage=0, l2=0).fit(x, y, domain)
            errors.append(np.linalg.norm(head.beta_[:, 0] - model.projected_beta))
            assert head.constraint_violation_ <= 1e-10
    assert max(errors[3:]) <= 0.04
    assert np.mean(errors[:3]) / np.mean(errors[3:]) == pytest.approx(np.sqrt(10), rel=0.4)


def test_regression_equals_its_closed_form():
    _, x, y, domain = regression_data(500, 1)
    head = DomainAdjustedRegression("regression", shrinkage=0, l2=0).fit(x, y, domain)
    roots = head.stats_.inv_sqrt.numpy()
    crosses = [np.cov(x[domain == e].T, y[domain == e], bias=True)[:-1, -1] for e in range(4)]
    mean = np.mean([root @ cross for root, cross in zip(roots, crosses, strict=True)], 0)
    projected = head.nullspace_ @ head.nullspace_.T @ mean
    assert np.abs(head.beta_[:, 0] - projected).max() < 1e-10


def test_a_cholesky_root_would_turn_the_domains_apart():
    class CholeskyStats(DomainStats):
        @property
        def inv_sqrt(self):
            return torch.linalg.inv(torch.linalg.cholesky(self.covariance))

    for seed in range(2):
        model, x, y, domain = regression_data(20_000, seed)
        errors = {}
        for kind in (DomainStats, CholeskyStats):
            head = DomainAdjustedRegression("regression", shrinkage=0, l2=0)
            head.fit(x, y, domain, stats=kind.fit(x, domain))
            errors[kind] = np.linalg.norm(head.beta_[:, 0] - model.projected_beta)
        assert errors[DomainStats] <= 0.04
        assert errors[CholeskyStats] >= 0.1


def test_scaling_one_domain_leaves_beta_as_it_is():
    x, y, domain = three_classes()
    scaled = np.where((domain == 2)[:, None], 7.5 * x, x)
    for center in ("constraint", "subtract"):
        one, other = (DomainAdjustedRegression(shrinkage=0, center=center).fit(v, y, domain) for v in (x, scaled))
        assert np.abs(one.beta_ - other.beta_).max() < 1e-6


def test_the_order_of_domains_and_features_is_without_effect():
    x, y, domain = three_classes()
    head = DomainAdjustedRegression().fit(x, y, domain)
    renamed = DomainAdjustedRegression().fit(x, y, 3 - domain)
    shuffle = np.random.default_rng(0).permutation(8)
    turned = DomainAdjustedRegression().fit(x[:, shuffle], y, domain)
    assert np.abs(head.predict_proba(x) - renamed.predict_proba(x)).max() < 1e-7
    assert np.abs(head.predict_proba(x) - turned.predict_proba(x[:, shuffle])).max() < 1e-7
    assert (head.predict(x) == renamed.predict(x)).all()
    assert (head.predict(x) == turned.predict(x[:, shuffle])).all()


def test_equal_domains_of_zero_mean_make_it_logistic_regression_on_whitened_features():
    x, y, _ = three_classes()
    x = x - x.mean(0)
    twice, labels, domain = np.concatenate([x, x]), np.concatenate([y, y]), np.repeat([0, 1], len(x))
    head = DomainAdjustedRegression(shrinkage=0, l2=1e-3).fit(twice, labels, domain)
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    whitened = torch.from_numpy(x @ (vectors / np.sqrt(values)) @ vectors.T)
    weight = torch.full((len(x),), 1 / len(x), dtype=torch.float64)
    _, gradient = SoftmaxRisk(whitened, torch.from_numpy(y), weight, 3, 1e-3)(torch.from_numpy(head.beta_))
    assert head.nullspace_.shape == (8, 8)
    assert gradient.norm() < 1e-8


def test_the_problem_is_convex_so_that_every_start_ends_at_one_loss():
    x, y, domain = three_classes()
    generator = np.random.default_rng(0)
    ends = [DomainAdjustedRegression().fit(x, y, domain, start=3 * generator.normal(size=(8, 3))) for _ in range(2)]
    losses = []
    for head in ends:
        parts = [head.adapt_to(head.stats_, e).predict_proba(x[domain == e]) for e in range(4)]
        risks = [-np.log(p[np.arange(len(p)), y[domain == e]]).mean() for e, p in enumerate(parts)]
        losses.append(np.mean(risks) + 0.5e-4 * np.square(head.beta_).sum())
    assert abs(losses[0] - losses[1]) < 1e-7
    assert np.abs(ends[0].beta_ - ends[1].beta_).max() < 1e-3


def test_adapting_to_a_new_domain_recovers_what_its_covariance_cost():
    model = domain_model(5, 20, 1.0, 3.0, 4, 0)
    generator = np.random.default_rng(0)
    drawn = [model.sample(e, 2000, generator) for e in range(9)]
    x, y = np.concatenate([p[0] for p in drawn[:5]]), np.concatenate([p[1] > 0 for p in drawn[:5]]).astype(int)
    head = DomainAdjustedRegression(shrinkage=0).fit(x, y, np.repeat(np.arange(5), 2000))
    jit, average, ideal = (np.zeros(4) for _ in range(3))
    for i, (new, response, signal) in enumerate(drawn[5:]):
        truth = (response > 0).astype(int)
        jit[i], average[i] = head.adapt(new).score(new, truth), head.score(new, truth)
        ideal[i] = ((signal @ model.projected_beta > 0) == truth).mean()
    direction = head.beta_[:, 1] - head.beta_[:, 0]
    cosine = direction @ model.projected_beta / np.linalg.norm(direction) / np.linalg.norm(model.projected_beta)
    assert cosine >= 0.99
    assert abs(jit.mean() - ideal.mean()) <= 0.015
    assert jit.mean() > average.mean() + 0.02


def test_a_small_mean_shift_is_better_left_to_erm():
    data = domain_adjusted_sem(n=2000, spread=0.5, shift=0.5, test=4)
    train = [e for e in data.environments if e.name.startswith("train")]
    x, y = np.concatenate([e.inputs for e in train]), np.concatenate([e.labels for e in train])
    domain = np.repeat([e.name for e in train], 2000)
    erm, dare = LogisticHead().fit(x, y, domain), DomainAdjustedRegression(shrinkage=0).fit(x, y, domain)
    tests = data.environments[5:]
    gaps = [erm.score(e.inputs, e.labels) - dare.adapt(e.inputs).score(e.inputs, e.labels) for e in tests]
    assert np.mean(gaps) > 0


def test_subtracting_means_helps_where_the_new_mean_leaves_the_span():
    x, y, domain = three_classes()
    centred = DomainAdjustedRegression(center="subtract").fit(x, y, domain)
    constrained = DomainAdjustedRegression().fit(x, y, domain)
    new = x[domain == 0] + 20 * constrained.nullspace_[:, 0]
    truth = y[domain == 0]
    assert centred.adapt(new).score(new, truth) > constrained.adapt(new).score(new, truth) + 0.1
    assert centred.adapt(new).score(new, truth) > centred.score(new, truth) + 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, e: (x, y, np.zeros_like(e)), "domains"),
        (lambda x, y, e: (x[:, :4], y, e), "span all 4"),
        (lambda x, y, e: (x, np.where(y == 1, 2, y), e), "class 1 has no example"),
        (lambda x, y, e: (np.where(np.arange(8) == 3, np.nan, x), y, e), "first row 0"),
        (lambda x, y, e: (x, y + 0.5, e), "integers"),
        (lambda x, y, e: (np.where(np.arange(8) == 3, 1.0, x), y, e), "singular"),
        (lambda x, y, e: (x, y[:-1], e), "one each"),
    ],
)
def test_wrong_training_data_are_refused_with_the_reason(change, message):
    with pytest.raises(InputError, match=message):
        DomainAdjustedRegression(shrinkage=0).fit(*change(*three_classes()))


def test_wrong_test_data_and_settings_are_refused_with_the_reason():
    x, y, domain = three_classes()
    head = DomainAdjustedRegression(shrinkage=0).fit(x, y, domain)
    for call, message in (
        (lambda: head.predict(x[:, :5]), "5 features"),
        (lambda: head.score(x, y + 1), "class 3"),
        (lambda: head.adapt(x[:1]), "at least 2"),
        (lambda: head.adapt(x[:8]), "more than 8"),
        (lambda: head.adapt(x[:50, :5]), "5 features"),
        (lambda: DomainAdjustedRegression().predict(x), "not fitted"),
        (lambda: DomainAdjustedRegression(shrinkage=2), "shrinkage"),
        (lambda: DomainAdjustedRegression(center="mean"), "center"),
        (lambda: DomainStats.fit(x, domain).select([9]), "9 has no statistics"),
        (lambda: domain_adjusted_sem(environments=5, dimensions=5), "dimensions"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert DomainAdjustedRegression(shrinkage=0.1).fit(x, y, domain).adapt(x[:8]).predict(x).shape == (1200,)


def test_the_logistic_head_is_stationary_in_the_units_of_the_features():
    x, y, domain = three_classes()
    x = x * np.array([1, 1, 1, 1, 30, 1, 0.1, 1]) + 4
    head = LogisticHead(1e-3).fit(x, y, domain)
    p = head.predict_proba(x) - np.eye(3)[y]
    assert np.linalg.norm(x.T @ p / len(x) + 1e-3 * head.beta_) < 1e-6
    assert np.linalg.norm(p.mean(0)) < 1e-8


def domain_risks(head, x, y, domain):
    p = head.predict_proba(x)[np.arange(len(y)), y]
    return np.array([-np.log(p[domain == e]).mean() for e in np.unique(domain)])


def test_each_head_lowers_what_it_penalises():
    x, y, domain = three_classes(n=200)
    y = np.where((domain == 0) & (np.arange(len(y)) % 2 == 0), 0, y)  # one domain is harder than the others
    erm = LogisticHead().fit(x, y, domain)
    dro, vrex = GroupDROHead().fit(x, y, domain), VRExHead(100.0).fit(x, y, domain)
    assert domain_risks(dro, x, y, domain).max() < domain_risks(erm, x, y, domain).max() - 0.01
    assert domain_risks(vrex, x, y, domain).var() < 0.1 * domain_risks(erm, x, y, domain).var()

    def spread_of_logits(head):
        return np.var([head.decision_function(x[domain == e]).mean(0) for e in range(4)], axis=0).sum()

    def slopes(head):
        logits, p = head.decision_function(x), head.predict_proba(x)
        each = (p * logits).sum(1) - logits[np.arange(len(y)), y]
        return np.square([each[domain == e].mean() for e in range(4)]).mean()

    assert spread_of_logits(CoralHead(10.0).fit(x, y, domain)) < 0.5 * spread_of_logits(erm)
    assert slopes(IRMHead(1e3).fit(x, y, domain)) < 0.1 * slopes(erm)
    for plain in (VRExHead(0.0), IRMHead(0.0), CoralHead(0.0)):  # equal domains and no penalty: that is ERM
        assert np.abs(plain.fit(x, y, domain).predict_proba(x) - erm.predict_proba(x)).max() < 1e-4


def test_standardising_by_domain_undoes_scales_and_shifts_of_single_features():
    generator = np.random.default_rng(0)
    clean, domain = generator.normal(size=(900, 4)), np.repeat([0, 1, 2], 300)
    y = (clean @ [1.0, -1, 0.5, 0] > 0).astype(int)
    x = clean * np.exp(generator.normal(size=(3, 4)))[domain] + 5 * generator.normal(size=(3, 4))[domain]
    head = PerDomainStandardised().fit(x, y, domain)
    new = clean[:300] * [9, 0.2, 3, 1] + [50, 2, -7, 1]
    assert head.adapt(new).score(new, y[:300]) > 0.95
    assert head.score(new, y[:300]) < 0.8


def test_features_are_extracted_once_in_eval_mode_and_read_back_by_any_reader_of_tables(tmp_path):
    data = domain_adjusted_sem(environments=2, n=50, dimensions=6)
    network = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Dropout(0.5)).train()
    store = FeatureStore(tmp_path)
    path = store.extract(network, data, ["test0"], 3)
    assert network[1].training
    found = store.load(data.identity, ["test0"], 3)
    rows = found.index[found.environment == "train1"]
    expected = network[0](torch.from_numpy(data.environments[1].inputs[rows])).detach().numpy()
    assert np.allclose(found.features[found.environment == "train1"], expected, atol=1e-6)
    assert (found.split == "out").mean() == pytest.approx(0.2)
    assert load_table(path).input_shape == (4,)
    before = path.stat().st_mtime_ns
    assert store.extract(torch.nn.Linear(6, 2), data, ["test0"], 3) == path
    assert path.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="extract them"):
        store.load(data.identity, ["test0"], 4)


def test_the_cheating_experiment_scores_target_examples_no_arm_has_seen():
    # The target swaps the two classes: only arms that see target labels can know, and only on a minority of examples.
    generator = np.random.default_rng(0)
    parts = []
    for name, swap in (("a", 0), ("b", 0), ("target", 1)):
        labels = np.arange(200) % 2
        x = generator.normal(size=(200, 5)).astype(np.float32)
        x[:, 0] += 4 * (labels ^ swap) - 2
        x[:, 1] = 3 * swap
        parts.append(Environment(name, x, labels.astype(np.int64)))
    data = check_dataset(Dataset("swap", tuple(parts), ("0", "1"), "mlp"))
    experiment = CheatingExperiment(
        lambda g: build_network("mlp", (5,), 2, g), data, "target", epochs=10, batch_size=16
    )
    arms = experiment.arms()
    assert list(arms) == ["head", "source_refit", "cheat_head", "cheat_random_features", "cheat_all"]
    assert arms["head"] < 0.1
    assert arms["source_refit"] < 0.1
    assert arms["cheat_all"] > 0.9
    assert arms["cheat_head"] > 0.8
    assert arms == experiment.arms()
    with pytest.raises(InputError, match="no 'nowhere'"):
        CheatingExperiment(lambda g: build_network("mlp", (5,), 2, g), data, "nowhere")


def test_the_cheating_head_is_a_logistic_head_on_all_that_it_is_given():
    x, y, domain = three_classes(n=100)
    assert np.array_equal(OracleHead().fit(x, y, domain).beta_, LogisticHead().fit(x, y, domain).beta_)


def test_the_simulated_dataset_names_its_parameters_and_is_sound():
    data = check_dataset(domain_adjusted_sem(environments=3, n=40, dimensions=6, test=2, seed=5))
    assert data.environment_names == ("train0", "train1", "train2", "test0", "test1")
    assert data.identity == "DomainAdjustedSEM(environments=3,n=40,dimensions=6,spread=1,shift=3,test=2,seed=5)"
    model = domain_model(3, 6, 1.0, 3.0, 2, 5)
    basis = np.linalg.svd(model.shifts[:3], full_matrices=False)[2]
    assert np.abs(model.shifts - model.shifts @ basis.T @ basis).max() < 1e-12  # test shifts stay in the span
    assert np.abs(basis @ model.projected_beta).max() < 1e-12
    assert np.abs(model.roots - model.roots.swapaxes(1, 2)).max() < 1e-12
    logs = np.log(np.linalg.eigvalsh(model.roots @ model.roots))
    assert -1 <= logs.min() < logs.max() <= 1
    assert (
        data.environments[0].inputs.tolist()
        == domain_adjusted_sem(3, 40, 6, test=2, seed=5).environments[0].inputs.tolist()
    )
