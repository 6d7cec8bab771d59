"""Every objective against an independent computation: autograd, numpy in float64, and identities between methods."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_modules.domain_generalization.catalog import all_methods, find_method
from lightning_modules.domain_generalization.coral import coral_distance
from lightning_modules.domain_generalization.irm import invariance_gradients, irm_penalty
from lightning_modules.domain_generalization.method import Outputs
from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import build, search_space

E, B, D, C = 3, 16, 5, 4
METHODS = ["ERM", "IRM", "VREx", "GroupDRO", "CORAL"]


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def batch(seed=0, environments=E):
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(environments, B, D, generator=g, dtype=torch.float64)
    head = torch.randn(D, C, generator=g, dtype=torch.float64)
    labels = torch.randint(0, C, (environments, B), generator=g)
    return Outputs(features, features @ head), labels


def loss(name, outputs, labels, step=10**6, state=None, **values):
    method = find_method(name)
    h = build(method.Hyperparameters, values, name)
    state = method.initial_state(h, labels.shape[0]) if state is None else state
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
    huge = Outputs(outputs.features, outputs.logits * 1e6)
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


@pytest.mark.parametrize("name", ["VREx", "GroupDRO", "CORAL"])
def test_on_identical_environments_a_penalty_has_nothing_to_say(name):
    outputs, labels = batch(environments=1)
    same = Outputs(outputs.features.repeat(3, 1, 1), outputs.logits.repeat(3, 1, 1))
    erm = loss("ERM", same, labels.repeat(3, 1))[0]
    torch.testing.assert_close(loss(name, same, labels.repeat(3, 1))[0], erm, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_order_of_environments_does_not_matter(name):
    outputs, labels = batch()
    order = [2, 0, 1]
    permuted = Outputs(outputs.features[order], outputs.logits[order])
    torch.testing.assert_close(loss(name, permuted, labels[order])[0], loss(name, outputs, labels)[0])


@pytest.mark.parametrize("name", METHODS)
def test_objectives_are_pure_and_run_under_vmap(name):
    method = find_method(name)
    h = build(method.Hyperparameters, {}, name)
    fields = [f.name for f in dataclasses.fields(h) if isinstance(getattr(h, f.name), int | float)]
    batches = [batch(seed) for seed in range(3)]
    features, logits, labels = (
        torch.stack([o.features for o, _ in batches]),
        torch.stack([o.logits for o, _ in batches]),
        torch.stack([y for _, y in batches]),
    )
    state = {k: v.expand(3, *v.shape) for k, v in method.initial_state(h, E).items()}
    values = {n: torch.tensor([float(getattr(h, n)) * (1 + k) for k in range(3)]) for n in fields}

    class Bag:
        def __init__(self, values):
            self.__dict__.update(values)

    def one(features, logits, labels, state, values, step):
        return method.objective(Outputs(features, logits), labels, Bag(values), state, step)

    steps = torch.tensor([0, 600, 10**6])
    together, _ = torch.func.vmap(one)(features, logits, labels, state, values, steps)
    for k in range(3):
        single = {n: v[k] for n, v in values.items()}
        alone, _ = one(features[k], logits[k], labels[k], {n: v[k] for n, v in state.items()}, single, steps[k])
        torch.testing.assert_close(together[k], alone)


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


@pytest.mark.parametrize("name", METHODS)
def test_random_draws_stay_in_their_range_and_centre(name):
    for field, law in search_space(find_method(name).Hyperparameters).items():
        rng = np.random.default_rng(1)
        values = np.array([law.sample(rng) for _ in range(10_000)], dtype=float)
        assert values.min() >= law.low - (type(law).__name__ == "IntLogUniform"), field
        assert values.max() <= law.high
        middle = (np.log10(law.low) + np.log10(law.high)) / 2
        if type(law).__name__ == "LogUniform":
            spread = (np.log10(law.high) - np.log10(law.low)) / np.sqrt(12)
            assert abs(np.log10(values).mean() - middle) < 3 * spread / 100


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
