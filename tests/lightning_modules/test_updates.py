"""Methods with a step of their own, against loops over environments with torch.optim.Adam and autograd, in float64."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_modules.domain_generalization.adam import adam, adam_state, first_adam_step
from lightning_modules.domain_generalization.catalog import find_method
from lightning_modules.domain_generalization.method import Batch, Shapes
from lightning_modules.hyperparameters import build
from lightning_modules.networks import build_network

E, B, C = 3, 6, 3
STEPS = 5


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Setting:
    """A small network, the batches of a few steps, and a method's own steps on them."""

    def __init__(self, name, environments=E, **values):
        self.method = find_method(name)
        self.h = build(self.method.Hyperparameters, {"lr": 0.01, "weight_decay": 1e-3, "batch_size": B, **values}, name)
        self.network = build_network("mlp", (4,), C, torch.Generator().manual_seed(1))
        self.shapes = Shapes(environments, B, 64, C)
        g = torch.Generator().manual_seed(2)
        rng = np.random.default_rng(3)
        self.batches = [
            Batch(
                torch.randn(environments, B, 4, generator=g),
                torch.randint(0, C, (environments, B), generator=g),
                self.method.noise(rng, self.shapes, self.h),
            )
            for _ in range(STEPS)
        ]
        self.start = {name: p.detach().clone() for name, p in self.network.named_parameters()}
        self.state = self.method.initial_state(self.h, self.shapes, self.start, torch.Generator().manual_seed(4))

    def ours(self):
        def model(parameters, inputs):
            return torch.func.functional_call(self.network, dict(parameters), (inputs,))

        parameters, state = self.start, dict(self.state)
        for number, batch in enumerate(self.batches):
            parameters, changed = self.method.update(model, parameters, batch, self.h, state, torch.tensor(number))
            state |= changed
        return parameters, state

    def theirs(self, step):
        """Train a copy of the network by `step(network, optimizer, batch)`."""
        network = copy.deepcopy(self.network)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.h.lr, weight_decay=self.h.weight_decay)
        for batch in self.batches:
            step(network, optimizer, batch)
        return dict(network.named_parameters())


def assert_equal(ours, theirs):
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value.detach(), rtol=0, atol=1e-12)


def risk(network, inputs, labels):
    return F.cross_entropy(network(inputs)[1], labels)


def gradients(network, batch, **options):
    return [
        torch.autograd.grad(risk(network, x, y), list(network.parameters()), **options)
        for x, y in zip(batch.inputs, batch.labels, strict=True)
    ]


def follow(network, optimizer, gradient):
    for parameter, value in zip(network.parameters(), gradient, strict=True):
        parameter.grad = value.detach()
    optimizer.step()


def test_adam_as_a_function_is_torchs():
    g = torch.Generator().manual_seed(0)
    value = torch.randn(7, generator=g)
    parameter = torch.nn.Parameter(value.clone())
    theirs = torch.optim.Adam([parameter], lr=0.03, betas=(0.5, 0.9), weight_decay=0.1)
    ours, state = {"w": value}, adam_state({"w": value})
    for step in range(20):
        gradient = torch.randn(7, generator=g)
        if step == 0:
            fresh = torch.nn.Parameter(value.clone())
            fresh.grad = gradient.clone()
            torch.optim.Adam([fresh], lr=0.03, weight_decay=0.1).step()
            torch.testing.assert_close(first_adam_step(ours, {"w": gradient}, 0.03, 0.1)["w"], fresh.data)
        parameter.grad = gradient.clone()
        theirs.step()
        ours, changed = adam(ours, {"w": gradient}, state, 0.03, 0.1, (0.5, 0.9))
        state |= changed
    torch.testing.assert_close(ours["w"], parameter.data, rtol=0, atol=1e-14)


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
def test_and_mask_follows_what_the_environments_agree_on(tau):
    setting = Setting("ANDMask", andmask_tau=tau)

    def step(network, optimizer, batch):
        masked = []
        for each in zip(*gradients(network, batch), strict=True):
            g = torch.stack(each)
            mask = g.sign().mean(0).abs() >= tau
            masked.append(g.mean(0) * mask / (1e-10 + mask.double().mean()))
        follow(network, optimizer, masked)

    assert_equal(setting.ours()[0], setting.theirs(step))


def erm_step(network, optimizer, batch):
    optimizer.zero_grad()
    risk(network, batch.inputs.flatten(0, 1), batch.labels.flatten()).backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("name", "environments", "off"),
    [("ANDMask", E, {"andmask_tau": 0.0}), ("IGA", E, {"iga_penalty": 0.0}), ("IGA", 1, {"iga_penalty": 1000.0})],
)
def test_without_its_penalty_the_step_is_erms(name, environments, off):
    setting = Setting(name, environments, **off)
    for key, value in setting.theirs(erm_step).items():
        torch.testing.assert_close(setting.ours()[0][key], value.detach(), rtol=0, atol=1e-7)


def test_iga_penalises_the_gradients_variance_through_second_derivatives():
    setting = Setting("IGA", iga_penalty=20.0)

    def step(network, optimizer, batch):
        each = gradients(network, batch, create_graph=True)
        mean = [torch.stack(g).mean(0) for g in zip(*each, strict=True)]
        penalty = sum(((a - b) ** 2).sum() for own in each for a, b in zip(own, mean, strict=True))
        loss = risk(network, batch.inputs.flatten(0, 1), batch.labels.flatten()) + 20 * penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    assert_equal(setting.ours()[0], setting.theirs(step))


def test_fish_walks_through_the_environments_and_goes_part_of_the_way():
    setting = Setting("Fish", fish_meta_lr=0.3)
    network = copy.deepcopy(setting.network)
    clone = copy.deepcopy(network)
    inner = torch.optim.Adam(clone.parameters(), lr=setting.h.lr, weight_decay=setting.h.weight_decay)
    for batch in setting.batches:
        clone.load_state_dict(network.state_dict())
        for x, y in zip(batch.inputs, batch.labels, strict=True):
            inner.zero_grad()
            risk(clone, x, y).backward()
            inner.step()
        with torch.no_grad():
            for parameter, moved in zip(network.parameters(), clone.parameters(), strict=True):
                parameter += 0.3 * (moved - parameter)
    assert_equal(setting.ours()[0], dict(network.named_parameters()))


@pytest.mark.parametrize("tests", [1, 2])
def test_mldg_adds_the_gradient_after_an_inner_step_on_another_environment(tests):
    setting = Setting("MLDG", mldg_beta=0.7, mldg_meta_test=tests)

    def step(network, optimizer, batch):
        total = [torch.zeros_like(p) for p in network.parameters()]
        for i, j in zip(batch.noise["train"].tolist(), batch.noise["test"].tolist(), strict=True):
            inner = copy.deepcopy(network)
            fresh = torch.optim.Adam(inner.parameters(), lr=setting.h.lr, weight_decay=setting.h.weight_decay)
            own = torch.autograd.grad(risk(network, batch.inputs[i], batch.labels[i]), list(network.parameters()))
            follow(inner, fresh, own)
            other = torch.autograd.grad(risk(inner, batch.inputs[j], batch.labels[j]), list(inner.parameters()))
            total = [t + (a + 0.7 * b) / E for t, a, b in zip(total, own, other, strict=True)]
        follow(network, optimizer, total)

    assert_equal(setting.ours()[0], setting.theirs(step))


@pytest.mark.parametrize(("environments", "tests", "pairs"), [(2, 2, 1), (3, 2, 1), (3, 1, 2), (5, 2, 3), (5, 1, 4)])
def test_mldg_pairs_every_meta_train_environment_with_a_meta_test_one(environments, tests, pairs):
    method = find_method("MLDG")
    h = build(method.Hyperparameters, {"mldg_meta_test": tests}, "MLDG")
    seen = set()
    for seed in range(50):
        noise = method.noise(np.random.default_rng(seed), Shapes(environments, B, 4, C), h)
        train, test = noise["train"].tolist(), noise["test"].tolist()
        assert len(train) == len(test) == pairs
        assert not set(train) & set(test)
        assert len(set(train) | set(test)) <= environments
        seen |= set(zip(train, test, strict=True))
    assert seen == set(itertools.permutations(range(environments), 2))


@pytest.mark.parametrize("name", ["DANN", "CDANN"])
@pytest.mark.parametrize("d_steps", [1, 3])
def test_an_adversary_and_the_network_take_turns(name, d_steps):
    values = {"dann_lambda": 0.8, "lr_d": 0.02, "weight_decay_d": 1e-2, "grad_penalty": 0.6, "beta1": 0.5}
    setting = Setting(name, d_steps_per_g_step=d_steps, mlp_width=16, mlp_depth=3, mlp_dropout=0.5, **values)
    adversary = {
        key.split(" ")[1]: torch.nn.Parameter(value.clone())
        for key, value in setting.state.items()
        if key.startswith("adversary ")
    }
    network = copy.deepcopy(setting.network)
    of_network = torch.optim.Adam(network.parameters(), lr=0.01, betas=(0.5, 0.9), weight_decay=1e-3)
    of_adversary = torch.optim.Adam(adversary.values(), lr=0.02, betas=(0.5, 0.9), weight_decay=1e-2)
    environments = torch.arange(E).repeat_interleave(B)
    turns = []
    for number, batch in enumerate(setting.batches, start=1):
        labels = batch.labels.flatten()
        layers, logits = network(batch.inputs.flatten(0, 1))
        entry = layers[-1] + (adversary["embedding"][labels] if name == "CDANN" else 0)
        values = entry
        for layer in range(3):
            values = values @ adversary[f"{layer}.weight"] + adversary[f"{layer}.bias"]
            if layer < 2:
                values = (values * batch.noise["masks"][layer]).relu()
        losses = F.cross_entropy(values, environments, reduction="none")
        if name == "CDANN":
            counts = torch.bincount(labels, minlength=C)
            loss = (losses / (counts[labels] * C)).sum()
        else:
            loss = losses.mean()
        (slopes,) = torch.autograd.grad(losses.sum(), entry, create_graph=True)
        loss = loss + 0.6 * (slopes**2).sum(1).mean()
        of_network.zero_grad()
        of_adversary.zero_grad()
        turns.append("adversary" if number % (1 + d_steps) < d_steps else "network")
        if turns[-1] == "adversary":
            loss.backward()
            of_adversary.step()
        else:
            (F.cross_entropy(logits, labels) - 0.8 * loss).backward()
            of_network.step()
    assert set(turns) == {"adversary", "network"}
    parameters, state = setting.ours()
    assert_equal(parameters, dict(network.named_parameters()))
    assert_equal({key: state[f"adversary {key}"] for key in adversary}, adversary)


def test_dropout_masks_keep_their_share_and_their_mean():
    method = find_method("DANN")
    h = build(method.Hyperparameters, {"mlp_dropout": 0.1}, "DANN")
    masks = method.noise(np.random.default_rng(0), Shapes(2, 64, 8, C), h)["masks"]
    assert masks.shape == (2, 128, 256)
    assert set(masks.unique().tolist()) == {0.0, 1 / 0.9}
    assert float(masks.mean()) == pytest.approx(1, abs=0.01)
