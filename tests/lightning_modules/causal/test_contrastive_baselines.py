"""Baselines: closed forms on exact moments and on rows, the autoencoder with a graph, the contrast on a code."""

import numpy as np
import pytest
import torch

from lightning_modules.causal.contrastive.autoencoders import GraphAutoencoder
from lightning_modules.causal.contrastive.baselines import contrast_code, fit_autoencoder, fit_graph_autoencoder
from lightning_modules.causal.contrastive.environments import InterventionalDataset, simulate
from lightning_modules.causal.contrastive.linear_disentanglement import (
    disentangle,
    disentangle_by_shifts,
    linear_disentanglement,
)
from lightning_modules.causal.contrastive.pack import Training
from lightning_modules.causal.contrastive.recovery import graph_found, latents_found, recovery
from lightning_modules.causal.contrastive.scm import Intervention, LinearGaussianSCM, sample_er_dag
from lightning_modules.causal.metrics import linear_r2
from lightning_modules.errors import InputError


def moments(seed, d=5, dx=7, variances=(1.0, 2.0)):
    """A model, its mixing, the latents' order in the environments, and the exact moments of what is observed."""
    rng = np.random.default_rng(seed)
    scm = LinearGaussianSCM(sample_er_dag(d, 2.0, rng), rng.uniform(1, 2, d), rng)
    mixing, order = rng.standard_normal((dx, d)), rng.permutation(d)
    cut = [scm.intervened(Intervention(int(t), rng.uniform(1, 2), rng.uniform(*variances))) for t in order]
    first, *others = (mixing @ np.linalg.inv(p) @ mixing.T for p in (scm.precision, *(p for _, p in cut)))
    return scm, mixing, order, first, others, [mixing @ mean for mean, _ in cut]


@pytest.mark.parametrize("by_shifts", [False, True])
def test_closed_forms_are_exact_on_exact_moments(by_shifts):
    for seed in range(8):
        scm, mixing, order, first, others, shifts = moments(seed)
        found = disentangle_by_shifts(first, others, shifts) if by_shifts else disentangle(first, others)
        latents = (found.unmixing @ mixing)[:, order]
        assert np.abs(latents / np.diag(latents)[:, None] - np.eye(5)).max() < 1e-8
        spread = np.sqrt(np.diag(np.linalg.inv(scm.precision)))
        scores = np.abs(scm.B.T) * spread[:, None] * (1 - np.eye(5))
        assert np.abs(found.edge_scores() - scores[np.ix_(order, order)]).max() < 1e-8
        covariance = found.unmixing @ first @ found.unmixing.T
        assert np.abs(found.b @ covariance @ found.b.T - np.eye(5)).max() < 1e-8  # B z ~ N(0, I)


def test_closed_forms_on_rows():
    for seed in range(3):
        world = simulate(5, 2.0, 8, 10_000, "linear", seed)
        found = linear_disentanglement(world.data, shifts=True)
        assert latents_found(world, found.transform(world.x_test))["MCC"] >= 0.98
        assert graph_found(world, found.edge_scores())["SHD"] == 0
    # Covariances alone want interventions that change the variance, or many rows.
    scm, mixing, order, *_ = moments(0, variances=(0.05, 0.1))
    rows = [scm.sample(20_000, int(t), 0.0, 0.1) @ mixing.T for t in order]
    z = scm.sample(20_000)
    found = linear_disentanglement(InterventionalDataset(z @ mixing.T, rows))
    pairs = np.abs(np.corrcoef(found.transform(z @ mixing.T).T, z.T)[:5, 5:])
    assert pairs.argmax(1).tolist() == order.tolist()
    assert pairs[np.arange(5), order].mean() >= 0.98


def test_features_in_other_units_change_nothing():
    world = simulate(3, 2.0, 5, 2000, "linear", 1)
    units = np.array([1e-3, 1, 10, 1e3, 2], np.float32)
    other = InterventionalDataset(world.data.x_obs * units, [x * units for x in world.data.x_int])
    for shifts in (False, True):
        one, two = (linear_disentanglement(data, shifts) for data in (world.data, other))
        z = one.transform(world.x_test)
        assert two.transform(world.x_test * units) == pytest.approx(z, rel=1e-2, abs=1e-2 * z.std())
        assert two.edge_scores() == pytest.approx(one.edge_scores(), abs=1e-2)


def test_what_closed_forms_cannot_see_is_said():
    _, _, _, first, others, shifts = moments(0)
    with pytest.raises(InputError, match="env_3: its covariance is that of obs"):
        disentangle(first, [*others[:2], first, *others[3:]])
    with pytest.raises(InputError, match="env_2: its mean is that of obs"):
        disentangle_by_shifts(first, others, [shifts[0], 0 * shifts[1], *shifts[2:]])
    with pytest.raises(InputError, match="covariances have a rank below 5"):
        disentangle(*(np.ones((7, 7)), [np.ones((7, 7))] * 5))
    with pytest.raises(InputError, match="dim_x: 7 features for 1 environments"):
        disentangle(first, others[:1])
    x = np.random.default_rng(0).standard_normal((9, 4))
    with pytest.raises(InputError, match="env_2: 2 rows have no covariance of rank 2"):
        linear_disentanglement(InterventionalDataset(x, [x, x[:2]]))


def test_the_graph_autoencoders_loss_is_its_formula():
    """Against a computation of its own: the decoder is fed with B z and noise, Huber is summed, the KL averaged."""
    module = GraphAutoencoder(6, 3, width=8, seed=4)
    with torch.no_grad():
        module.head.parents += torch.arange(9.0).view(3, 3) / 10
        module.head.scale += torch.tensor([0.5, 0.0, -0.5])
    module.log = lambda *_: None
    data = simulate(3, 2.0, 6, 64, "linear", 0, n_test=4).data
    x_obs, x_int = torch.from_numpy(data.x_obs) * 2, torch.from_numpy(np.stack(data.x_int, 1))
    module._generator.manual_seed(9)
    loss = module.training_step((x_obs, x_int), 0).item()
    with torch.no_grad():
        code = module.encoder(x_obs[None])[0]
        z, log_var = code[:, :3], code[:, 3:]
        b = torch.diag(module.head.scale[0]) @ (torch.eye(3) - module.head.parents[0] * (1 - torch.eye(3)))
        noise = torch.stack([b @ row for row in z])
        xi = torch.randn(64, 3, generator=torch.Generator().manual_seed(9))
        gap = (module.decoder((noise + (log_var / 2).exp() * xi)[None])[0] - x_obs).abs()
        huber = torch.where(gap < 1, gap**2 / 2, gap - 0.5).sum() / 64
        divergence = ((noise**2 + log_var.exp() - log_var - 1) / 2).mean()
        off = module.head.parents[0] * (1 - torch.eye(3))
        penalty = 1e-4 * off.abs().sum() + 1e-5 * (torch.linalg.matrix_exp(off * off).trace() - 3)
        entropy = torch.nn.functional.softplus(-module.head(z)).mean()
        own = torch.stack([module.head(module(x_int[:, t]))[:, t] for t in range(3)], 1)
        entropy += torch.nn.functional.softplus(own).mean()
    assert loss == pytest.approx(float(entropy + huber + divergence + penalty), rel=1e-5)
    assert torch.allclose(module(x_obs), z)


def test_the_graph_autoencoder_trains_all_its_parts():
    world = simulate(3, 2.0, 6, 1500, "linear", 0, n_test=500)
    start = GraphAutoencoder(6, 3)
    trained = fit_graph_autoencoder(world.data, 300)
    for name, value in trained.module.named_parameters():
        assert not torch.equal(value, start.get_parameter(name)), name
    found = recovery(trained.module, world)
    assert found["R2"] > 0.9
    assert trained.cross_entropy < world.bayes + 0.2
    assert found["SHD"] >= 0


def test_the_code_is_contrasted_on_the_very_rows_that_were_held_out():
    world = simulate(2, 1.0, 3 * 16 * 16, 1200, "balls", 0, n_test=300)
    seen, trained = contrast_code(world, Training(steps=150, batch_size=64))
    assert seen.data.dx == 25
    assert seen.x_test.shape == (300, 25)
    assert linear_r2(world.z_test, seen.x_test) > 0.6
    coder = fit_autoencoder(world.data, 150, dim_z=25, batch_size=64)
    training, pixels = world.data.split(0.2, 0)
    assert np.array_equal(coder.mean.numpy(), training.scales[0].astype(np.float32))
    assert coder.transform(pixels.x_obs) == pytest.approx(trained.held_out.x_obs, abs=1e-3)
    assert recovery(trained.module, seen)["MCC"] > 0.6
