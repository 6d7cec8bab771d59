"""Every objective against an independent computation: autograd, numpy in float64, and identities between methods."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_modules.domain_generalization.catalog import all_methods, find_method
from lightning_modules.domain_generalization.coral import coral_distance
from lightning_modules.domain_generalization.domain_adjusted.regression import DomainAdjustedRegression
from lightning_modules.domain_generalization.eqrm import kernel_quantile
from lightning_modules.domain_generalization.fishr import gradient_variances
from lightning_modules.domain_generalization.irm import invariance_gradients, irm_penalty
from lightning_modules.domain_generalization.method import Method, Outputs, Readings, Shapes
from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import build, search_space

E, B, D, C = 3, 16, 5, 4
METHODS = [name for name, method in all_methods().items() if method.objective is not Method.objective]
"""Those that are an objective; the others have their own step: test_updates.py."""


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def batch(seed=0, environments=E):
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(environments, B, D, generator=g, dtype=torch.float64)
    weight, bias = torch.randn(C, D, generator=g), torch.randn(C, generator=g)
    labels = torch.randint(0, C, (environments, B), generator=g)
    noise = {"partner": (torch.arange(environments) + 1) % environments, "weight": torch.ones(environments)}
    return of_features(features, weight, bias, noise), labels


def of_features(features, weight, bias, noise):
    return Outputs(features, features @ weight.T + bias, weight, bias, (features,), noise)


def initial(method, h, environments=E):
    return method.initial_state(h, Shapes(environments, B, D, C), {}, torch.Generator().manual_seed(0))


def loss(name, outputs, labels, step=10**6, state=None, **values):
    method = find_method(name)
    h = build(method.Hyperparameters, values, name)
    state = initial(method, h, labels.shape[0]) if state is None else state
    return method.objective(outputs, labels, h, state, torch.tensor(step))


def risks(outputs, labels):
    return torch.stack([F.cross_entropy(f, y) for f, y in zip(outputs.logits, labels, strict=True)])


def test_methods_are_found_by_file_and_wrong_names_get_the_nearest():
    assert list(all_methods())[0] == "ERM"
    assert set(METHODS) <= set(all_methods())
    with pytest.raises(InputError, match="unknown method 'VRex'; did you mean 'VREx'"):
        find_method("VRex")
    with pytest.raises(InputError, match="unknown method 'zzz'; choose from ERM"):
        find_method("zzz")


def test_irm_penalty_is_the_product_of_half_batch_derivatives_by_autograd():
    outputs, labels = batch()
    expected = []
    for logits, y in zip(outputs.logits, labels, strict=True):
        scale = torch.ones((), requires_grad=True)
        halves = [F.cross_entropy(logits[k::2] * scale, y[k::2]) for k in (0, 1)]
        first, second = (torch.autograd.grad(half, scale)[0] for half in halves)
        expected.append(first * second)
    torch.testing.assert_close(irm_penalty(outputs.logits, labels), torch.stack(expected), rtol=1e-12, atol=1e-12)
    value, _ = loss("IRM", outputs, labels, irm_lambda=50.0)
    torch.testing.assert_close(value, risks(outputs, labels).mean() + 50 * torch.stack(expected).mean())


def test_irm_penalty_has_no_bias():
    """The mean of half-batch products over all ways to pair examples is the squared mean without its diagonal."""
    g = torch.Generator().manual_seed(3)
    logits, labels = torch.randn(1, 4, 2, generator=g, dtype=torch.float64), torch.tensor([[0, 1, 1, 0]])
    slopes = (logits.softmax(-1) * logits).sum(-1)[0] - logits[0, torch.arange(4), labels[0]]
    orders = list(itertools.permutations(range(4)))
    mean = torch.stack([irm_penalty(logits[:, list(o)], labels[:, list(o)])[0] for o in orders]).mean()
    off_diagonal = (slopes.sum() ** 2 - (slopes**2).sum()) / 12
    torch.testing.assert_close(mean, off_diagonal)


def test_vrex_adds_the_population_variance():
    outputs, labels = batch()
    r = risks(outputs, labels).numpy()
    value, _ = loss("VREx", outputs, labels, vrex_lambda=7.0)
    assert float(value) == pytest.approx(r.mean() + 7 * np.var(r), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "weight", "anneal"),
    [("IRM", "irm_lambda", "irm_anneal_steps"), ("VREx", "vrex_lambda", "vrex_anneal_steps")],
)
def test_the_penalty_weighs_one_before_annealing_ends_and_adam_restarts_there(name, weight, anneal):
    outputs, labels = batch()
    before, _ = loss(name, outputs, labels, step=4, **{weight: 30.0, anneal: 5})
    after, _ = loss(name, outputs, labels, step=5, **{weight: 30.0, anneal: 5})
    mean = risks(outputs, labels).mean()
    torch.testing.assert_close(after - mean, 30 * (before - mean))
    method = find_method(name)
    assert method.optimizer_reset_step(build(method.Hyperparameters, {anneal: 5}, name)) == 5


def test_group_dro_moves_weight_by_exponentiated_risks():
    outputs, labels = batch()
    r = risks(outputs, labels)
    q = np.array([0.2, 0.3, 0.5])
    value, state = loss("GroupDRO", outputs, labels, state={"q": torch.tensor(q)}, groupdro_eta=0.5)
    expected = q * np.exp(0.5 * r.numpy())
    expected /= expected.sum()
    np.testing.assert_allclose(state["q"].numpy(), expected, rtol=1e-12)
    assert float(value) == pytest.approx(float((expected * r.numpy()).sum()), rel=1e-12)


def test_group_dro_survives_huge_risks():
    outputs, labels = batch()
    huge = of_features(outputs.features, 1e6 * outputs.weight, outputs.bias, outputs.noise)
    value, state = loss("GroupDRO", huge, labels, groupdro_eta=1.0)
    assert torch.isfinite(value)
    assert float(state["q"].sum()) == pytest.approx(1)


def test_coral_matches_means_and_covariances_over_all_pairs():
    outputs, labels = batch()
    z = outputs.features.numpy()
    gaps = []
    for i, j in itertools.combinations(range(E), 2):
        covariance = np.cov(z[i].T) - np.cov(z[j].T)
        gaps.append(((z[i].mean(0) - z[j].mean(0)) ** 2).mean() + (covariance**2).mean())
    value, _ = loss("CORAL", outputs, labels, mmd_gamma=3.0)
    assert float(value) == pytest.approx(float(risks(outputs, labels).mean()) + 3 * np.mean(gaps), rel=1e-12)
    assert float(coral_distance(outputs.features[:1].repeat(2, 1, 1))) < 1e-30
    assert float(coral_distance(outputs.features[:1])) == 0


@pytest.mark.parametrize(
    ("name", "off"),
    [
        ("MMD", {"mmd_gamma": 0.0}),
        ("SD", {"sd_reg": 0.0}),
        ("Fishr", {"fishr_lambda": 0.0}),
        ("EQRM", {"eqrm_burnin_steps": 10**7}),
        ("Mixup", {}),  # with the weight 1 that the batch's noise has
        ("IRM", {"irm_lambda": 0.0}),
        ("VREx", {"vrex_lambda": 0.0}),
        ("CORAL", {"mmd_gamma": 0.0}),
        ("GroupDRO", {"groupdro_eta": 1e-12}),
    ],
)
def test_without_its_penalty_every_method_is_erm(name, off):
    outputs, labels = batch()
    pooled = F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(loss("ERM", outputs, labels)[0], pooled, rtol=0, atol=1e-6)
    torch.testing.assert_close(loss(name, outputs, labels, **off)[0], pooled, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["VREx", "GroupDRO", "CORAL", "MMD", "Fishr", "EQRM"])
def test_on_identical_environments_a_penalty_has_nothing_to_say(name):
    one, labels = batch(environments=1)
    same = of_features(one.features.repeat(3, 1, 1), one.weight, one.bias, one.noise)
    erm = loss("ERM", same, labels.repeat(3, 1))[0]
    torch.testing.assert_close(loss(name, same, labels.repeat(3, 1))[0], erm, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("Mixup", "IterativeFeatureMatching")])
def test_order_of_environments_does_not_matter(name):
    outputs, labels = batch()
    order = [2, 0, 1]
    permuted = of_features(outputs.features[order], outputs.weight, outputs.bias, outputs.noise)
    torch.testing.assert_close(loss(name, permuted, labels[order])[0], loss(name, outputs, labels)[0])


@pytest.mark.parametrize("name", METHODS)
def test_objectives_are_pure_and_run_under_vmap(name):
    method = find_method(name)
    h = build(method.Hyperparameters, {}, name)
    numbers = [f.name for f in dataclasses.fields(h) if type(getattr(h, f.name)) in (int, float)]
    batches = [batch(seed) for seed in range(3)]
    many = [torch.stack(parts) for parts in zip(*((o.features, o.weight, o.bias, y) for o, y in batches), strict=True)]
    state = {k: v.expand(3, *v.shape) for k, v in initial(method, h).items()}
    values = {n: torch.tensor([float(getattr(h, n)) * (1 + k / 4) for k in range(3)]) for n in numbers}
    rest = {f.name: getattr(h, f.name) for f in dataclasses.fields(h) if f.name not in numbers}

    def one(features, weight, bias, labels, state, values, step):
        outputs = of_features(features, weight, bias, batches[0][0].noise)
        return method.objective(outputs, labels, SimpleNamespace(**values, **rest), state, step)

    steps = torch.tensor([0, 600, 10**6])
    together, after = torch.func.vmap(one)(*many, state, values, steps)
    for k in range(3):
        alone, state_alone = one(
            *(part[k] for part in many),
            {n: v[k] for n, v in state.items()},
            {n: v[k] for n, v in values.items()},
            steps[k],
        )
        torch.testing.assert_close(together[k], alone)
        for key, value in state_alone.items():
            torch.testing.assert_close(after[key][k], value)


def test_sd_adds_the_mean_square_of_the_logits():
    outputs, labels = batch()
    expected = risks(outputs, labels).mean() + 0.3 * (outputs.logits**2).mean()
    torch.testing.assert_close(loss("SD", outputs, labels, sd_reg=0.3)[0], expected)


def test_mmd_is_the_biased_estimate_in_a_sum_of_gaussian_kernels_over_all_pairs():
    outputs, labels = batch()
    z = outputs.features.numpy()

    def kernel(x, y):
        squares = ((x[:, None] - y[None]) ** 2).sum(-1)
        return sum(np.exp(-gamma * squares) for gamma in (1e-3, 1e-2, 1e-1, 1, 10, 100, 1000)).mean()

    gaps = [
        kernel(z[i], z[i]) + kernel(z[j], z[j]) - 2 * kernel(z[i], z[j]) for i, j in itertools.combinations(range(E), 2)
    ]
    value, _ = loss("MMD", outputs, labels, mmd_gamma=3.0)
    assert float(value) == pytest.approx(float(risks(outputs, labels).mean()) + 3 * np.mean(gaps), rel=1e-12)


def test_mixup_mixes_pairs_along_a_cycle_and_weighs_both_labels():
    generator = np.random.default_rng(0)
    method, h = find_method("Mixup"), build(find_method("Mixup").Hyperparameters, {}, "Mixup")
    weights = []
    for environments in (2, 3, 5):
        for _ in range(200):
            noise = method.noise(generator, Shapes(environments, B, D, C), h)
            place, seen = 0, []
            for _ in range(environments):
                seen.append(place)
                place = int(noise["partner"][place])
            assert place == 0
            assert sorted(seen) == list(range(environments))
            weights += noise["weight"].tolist()
    # Beta(0.2, 0.2): mean 1/2, variance 1 / (4 (2 alpha + 1)).
    assert np.mean(weights) == pytest.approx(0.5, abs=0.04)
    assert np.var(weights) == pytest.approx(0.25 / 1.4, abs=0.015)
    inputs = torch.arange(3.0).view(3, 1, 1).expand(3, B, 2)
    noise = {"partner": torch.tensor([1, 2, 0]), "weight": torch.tensor([0.5, 0.25, 1.0])}
    assert method.augment(inputs, noise)[:, 0, 0].tolist() == [0.5, 1.75, 2.0]
    outputs, labels = batch()
    mixed = dataclasses.replace(outputs, noise=noise)
    expected = 0
    for e, (j, a) in enumerate(zip((1, 2, 0), (0.5, 0.25, 1.0), strict=True)):
        expected += a * F.cross_entropy(outputs.logits[e], labels[e])
        expected += (1 - a) * F.cross_entropy(outputs.logits[e], labels[j])
    torch.testing.assert_close(loss("Mixup", mixed, labels)[0], expected / 3)


def test_fishr_has_the_variance_of_every_examples_gradient_by_autograd():
    outputs, labels = batch()
    weight, bias = outputs.weight.clone().requires_grad_(), outputs.bias.clone().requires_grad_()
    variances = []
    for z, y in zip(outputs.features, labels, strict=True):
        gradients = []
        for example, label in zip(z, y, strict=True):
            risk = F.cross_entropy((example @ weight.T + bias)[None], label[None])
            dw, db = torch.autograd.grad(risk, (weight, bias))
            gradients.append(torch.cat([dw, db[:, None]], 1).flatten())
        variances.append(torch.stack(gradients).var(0, correction=0))
    v = torch.stack(variances)
    torch.testing.assert_close(gradient_variances(outputs.features, outputs.logits, labels), v)
    mean = risks(outputs, labels).mean()
    first, state = loss("Fishr", outputs, labels, fishr_lambda=5.0, fishr_ema=0.9)
    torch.testing.assert_close(first, mean + 5 * (v - v.mean(0)).square().mean())
    torch.testing.assert_close(state["variance"], 0.1 * v)
    second, _ = loss("Fishr", outputs, labels, fishr_lambda=5.0, fishr_ema=0.9, state=state)
    torch.testing.assert_close(second, mean + 5 * 1.9**2 * (v - v.mean(0)).square().mean())
    before, _ = loss("Fishr", outputs, labels, step=7, fishr_anneal_steps=8)
    torch.testing.assert_close(before, mean)


@pytest.mark.parametrize("quantile", [0.5, 0.75, 0.99])
def test_eqrm_has_the_quantile_of_the_density_and_its_derivative(quantile):
    values = torch.tensor([0.2, 0.9, 0.4, 1.5], requires_grad=True)
    found = kernel_quantile(values, quantile)
    width = 1.06 * float(values.detach().std()) * 4**-0.2
    inside = torch.distributions.Normal(values.detach(), width).cdf(found.detach()).mean()
    assert float(inside) == pytest.approx(quantile, abs=1e-9)
    (slope,) = torch.autograd.grad(found, values)
    for k in range(4):
        step = torch.zeros(4)
        step[k] = 1e-6
        up, down = (kernel_quantile(values.detach() + s, quantile) for s in (step, -step))
        assert float(slope[k]) == pytest.approx(float((up - down) / 2e-6), abs=1e-5)
    assert float(slope.sum()) == pytest.approx(1, abs=1e-8)  # a constant added to all risks adds itself


def ifm_gap(a, b, labels_a, labels_b):
    """Distance of the class-conditional moments of two environments, by numpy, classes with one example left out."""
    total = 0.0
    for c in range(C):
        x, y = a[labels_a == c], b[labels_b == c]
        if len(x) >= 2 and len(y) >= 2:
            total += ((x.mean(0) - y.mean(0)) ** 2).mean() + ((np.cov(x.T) - np.cov(y.T)) ** 2).mean()
    return total


def test_iterative_feature_matching_adds_every_layers_distances_of_consecutive_environments():
    outputs, labels = batch(environments=4)
    labels[1, labels[1] == 2] = 3
    labels[1, 0] = 2  # one example of class 2 has no covariance
    hidden = torch.randn(4, B, 3, generator=torch.Generator().manual_seed(9))
    outputs = dataclasses.replace(outputs, layers=(hidden, outputs.features))
    y, mean = labels.numpy(), risks(outputs, labels).mean()

    def layer(values, pairs):
        return np.mean([ifm_gap(values[i], values[i + 1], y[i], y[i + 1]) for i in pairs])

    h, z = hidden.numpy(), outputs.features.numpy()
    every = layer(h, (0, 1, 2)) + layer(z, (0, 1, 2))
    value, _ = loss("IterativeFeatureMatching", outputs, labels, ifm_lambda=3.0)
    assert float(value - mean) == pytest.approx(3 * every, rel=1e-10)
    value, _ = loss("IterativeFeatureMatching", outputs, labels, ifm_lambda=3.0, ifm_match="disjoint")
    assert float(value - mean) == pytest.approx(3 * (layer(h, (0,)) + layer(z, (2,))), rel=1e-10)
    three = dataclasses.replace(outputs, layers=(hidden[:3], outputs.features[:3]))
    with pytest.raises(InputError, match="'disjoint' needs two environments for each of 2 layers, got 3"):
        loss("IterativeFeatureMatching", three, labels[:3], ifm_match="disjoint")


@pytest.mark.parametrize("adjustment", ["target", "mean_cov"])
def test_dare_fits_its_last_layer_on_training_labels_and_whitens_the_rest_without_labels(adjustment):
    rng = np.random.default_rng(0)
    n = 240
    features = torch.from_numpy(rng.normal(size=(n, D)) * rng.uniform(0.5, 2, size=D)).float()
    room = torch.arange(n) // 80
    labels = ((features[:, 0] + features[:, 1] > 0).long() + (torch.arange(n) % 7 == 0)) % 2
    rows = [torch.nonzero(room == e).squeeze(1) for e in range(3)]
    inside = tuple(r[:60] for r in rows)
    readings = Readings(labels, (inside[0], inside[2]), tuple(rows), inside, 2, (True, False, True))
    method = find_method("DARE")
    h = build(method.Hyperparameters, {"dare_adjustment": adjustment}, "DARE")
    logits = method.readout(features, readings, h)
    x, y = features.double().numpy(), labels.numpy()
    train = np.concatenate([inside[0], inside[2]])
    fitted = DomainAdjustedRegression(shrinkage=0.1, l2=1e-4).fit(x[train], y[train], np.repeat([0, 1], 60))
    held_out = fitted.adapt(x[inside[1]]) if adjustment == "target" else fitted
    np.testing.assert_allclose(logits[rows[1]], held_out.decision_function(x[rows[1]]), rtol=1e-9)
    own = fitted.adapt(x[inside[2]])
    np.testing.assert_allclose(logits[rows[2]], own.decision_function(x[rows[2]]), rtol=1e-9)
    unseen = torch.ones(n, dtype=torch.bool)
    unseen[train] = False
    shuffled = dataclasses.replace(readings, labels=torch.where(unseen, 1 - labels, labels))
    assert torch.equal(method.readout(features, shuffled, h), logits)
    with pytest.raises(FloatingPointError, match="features are not finite"):
        method.readout(features / 0, readings, h)


def test_rsc_mutes_the_features_that_help_most_in_the_examples_that_suffer_most():
    """Step by step in numpy, with its own percentile, after equations 1 to 5 of the paper."""
    outputs, labels = batch()
    f, b = 0.3, 0.4
    z, y = outputs.features.flatten(0, 1).numpy(), labels.flatten().numpy()
    weight, bias = outputs.weight.numpy(), outputs.bias.numpy()

    def softmax(values):
        e = np.exp(values - values.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    slopes = weight[y]
    kept = slopes < np.percentile(slopes, 100 * (1 - f), axis=1, keepdims=True)
    rows = np.arange(len(y))
    change = softmax(z @ weight.T + bias)[rows, y] - softmax((z * kept) @ weight.T + bias)[rows, y]
    spared = change < np.percentile(change, 100 * (1 - b))
    final = softmax((z * (kept | spared[:, None])) @ weight.T + bias)
    expected = -np.log(final[rows, y]).mean()
    value, _ = loss("RSC", outputs, labels, rsc_f_drop_factor=f, rsc_b_drop_factor=b)
    assert float(value) == pytest.approx(expected, rel=1e-12)
    assert spared.mean() == pytest.approx(0.6, abs=0.02)


def test_the_exact_linear_check_tells_the_invariant_predictor_from_a_spurious_one():
    """y = +-1, z_c | y ~ N(y mu_c, 1), z_e | y ~ N(y mu_e, 1): 2 mu_c on z_c alone is feasible in every environment."""
    rng = np.random.default_rng(0)
    mu_c, n = 0.8, 200_000
    features, labels = [], []
    for mu_e in (0.5, 1.5):
        y = rng.choice([-1.0, 1.0], n)
        features.append(torch.tensor(np.stack([y * mu_c + rng.normal(size=n), y * mu_e + rng.normal(size=n)], 1)))
        labels.append(torch.tensor(y))
    only_c = [phi * torch.tensor([1.0, 0.0]) for phi in features]
    assert (invariance_gradients(torch.tensor([2 * mu_c, 0.0]), only_c, labels) < 5e-3).all()
    spurious = invariance_gradients(torch.tensor([2 * mu_c, 2.0]), features, labels)  # feasible only where mu_e = 1
    assert (spurious > 0.02).all()


@pytest.mark.parametrize("name", all_methods())
def test_random_draws_stay_in_their_range_and_centre(name):
    for field, law in search_space(find_method(name).Hyperparameters).items():
        rng = np.random.default_rng(1)
        values = np.array([law.sample(rng) for _ in range(10_000)])
        kind = type(law).__name__
        if kind == "Choice":
            assert set(values.tolist()) == set(law.values), field
            continue
        values = values.astype(float)
        assert values.min() >= law.low - kind.startswith("Int"), field
        assert values.max() <= law.high, field
        ends = np.array([law.low, law.high], dtype=float)
        if kind == "LogUniform":
            values, ends = np.log10(values), np.log10(ends)
        if not kind.startswith("Int"):
            error = (ends[1] - ends[0]) / np.sqrt(12) / 100
            assert abs(values.mean() - ends.mean()) < 3 * error, field


def test_defaults_and_laws_are_domainbeds():
    """Its registry for digit-sized inputs, as (default, low, high) or (default, values)."""
    expected = {
        "ERM": {"lr": (1e-3, 10**-4.5, 10**-2.5), "batch_size": (64, 8, 512)},
        "IRM": {"irm_lambda": (100, 0.1, 1e5), "irm_anneal_steps": (500, 1, 1e4)},
        "VREx": {"vrex_lambda": (10, 0.1, 1e5), "vrex_anneal_steps": (500, 1, 1e4)},
        "GroupDRO": {"groupdro_eta": (1e-2, 1e-3, 1e-1)},
        "Mixup": {"mixup_alpha": (0.2, 0.1, 10)},
        "CORAL": {"mmd_gamma": (1, 0.1, 10)},
        "MMD": {"mmd_gamma": (1, 0.1, 10)},
        "MLDG": {"mldg_beta": (1, 0.1, 10), "mldg_meta_test": (2, (1, 2))},
        "RSC": {"rsc_f_drop_factor": (1 / 3, 0, 0.5), "rsc_b_drop_factor": (1 / 3, 0, 0.5)},
        "SD": {"sd_reg": (0.1, 1e-5, 1e-1)},
        "ANDMask": {"andmask_tau": (1, 0.5, 1)},
        "IGA": {"iga_penalty": (1000, 10, 1e5)},
        "Fish": {"fish_meta_lr": (0.5, (0.05, 0.1, 0.5))},
        "Fishr": {
            "fishr_lambda": (1000, 10, 1e4),
            "fishr_anneal_steps": (1500, 0, 5000),
            "fishr_ema": (0.95, 0.9, 0.99),
        },
        "EQRM": {
            "eqrm_quantile": (0.75, 0.5, 0.99),
            "eqrm_burnin_steps": (2500, 10**2.5, 10**3.5),
            "eqrm_lr": (1e-6, 1e-7, 1e-5),
        },
    }
    expected["DANN"] = expected["CDANN"] = {
        "dann_lambda": (1, 1e-2, 1e2),
        "lr_d": (1e-3, 10**-4.5, 10**-2.5),
        "weight_decay_d": (0, 1e-6, 1e-2),
        "d_steps_per_g_step": (1, 1, 8),
        "grad_penalty": (0, 1e-2, 10),
        "beta1": (0.5, (0.0, 0.5)),
        "mlp_width": (256, 64, 1024),
        "mlp_depth": (3, (3, 4, 5)),
        "mlp_dropout": (0, (0.0, 0.1, 0.5)),
    }
    for name, fields in expected.items():
        kind = find_method(name).Hyperparameters
        laws = search_space(kind)
        assert set(laws) == {*expected["ERM"], *fields}, name
        for field, (default, *law) in fields.items():
            assert getattr(kind(), field) == pytest.approx(default), (name, field)
            found = laws[field]
            values = [found.values] if hasattr(found, "values") else [found.low, found.high]
            assert values == (law if isinstance(law[0], tuple) else pytest.approx(law)), (name, field)


def test_wrong_hyperparameters_are_named():
    kind = find_method("IRM").Hyperparameters
    with pytest.raises(InputError, match="IRM has no 'irm_lamda'; did you mean 'irm_lambda'"):
        build(kind, {"irm_lamda": 1.0}, "IRM")
    with pytest.raises(InputError, match="lr of IRM is 'fast'; give a float"):
        build(kind, {"lr": "fast"}, "IRM")
    with pytest.raises(InputError, match="lr is -1.0; give a number above 0"):
        build(kind, {"lr": -1}, "IRM")
    with pytest.raises(InputError, match="batch_size is 1; give 2 or more"):
        build(kind, {"batch_size": 1}, "IRM")
