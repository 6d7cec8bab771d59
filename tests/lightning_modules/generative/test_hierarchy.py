"""The hierarchy of perceptrons: normalisation, KL, bijectors, blocks, samples, what is refused."""

import math

import pytest
import torch

from lightning_modules.errors import InputError
from lightning_modules.generative.baselines import ARMS, build_arm
from lightning_modules.generative.bijectors import AffineRankOneBijector
from lightning_modules.generative.hierarchy import self_reflective
from lightning_modules.generative.ladder import merge
from lightning_modules.generative.layers import DiagonalGaussian
from lightning_modules.generative.partition import BlockPartition, binarise
from lightning_modules.generative.posterior import EVIDENCE

BITS = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def lively(model, seed=0, scale=0.25):
    """Make a model's nets less flat than they are at the start, so that every argument matters."""
    source = generator(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn(p.shape, generator=source))
    return model


def widen(model):
    """Make a posterior wider, so that its weights have a variance."""
    if hasattr(model, "posterior"):
        outputs = [(correction.output, 0.3) for correction in model.posterior.corrections]
    else:
        outputs = (
            [(head.output, 1.0) for head in model.heads] if hasattr(model, "heads") else [(model.head.output, 0.3)]
        )
    with torch.no_grad():
        for layer, more in outputs:
            layer.bias[len(layer.bias) // 2 :] += more
    return model


def total(model, k=3000):
    """Sum over all x of the mean weight, and its standard error."""
    with torch.no_grad():
        weights = model.log_weights(BITS, k, generator(1)).double().exp()
    return weights.mean(0).sum().item(), (weights.var(0) / k).sum().sqrt().item()


@pytest.mark.parametrize("prior", ["conditional", "standard"])
@pytest.mark.parametrize("bijector", ["affine", "identity", "spline"])
@pytest.mark.parametrize("posterior", ["self_reflective", "independent"])
def test_any_model_is_normalised(prior, bijector, posterior):
    if bijector == "spline":
        pytest.importorskip("zuko")
    partition = BlockPartition((2, 2, 2))
    model = self_reflective(partition, [3] * 3, (8, 8), prior=prior, bijector=bijector, posterior=posterior, seed=1)
    # Weights of a wild posterior have no variance: only the generator is made lively, and the posterior a little wider.
    lively(model.generator, scale=0.1 if bijector == "spline" else 0.15)
    value, error = total(widen(model), 600 if bijector == "spline" else 3000)
    assert error < 0.05
    assert abs(value - 1) < 4 * error


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_normalised_and_trains_all_it_has(arm):
    if arm == "iaf":
        pytest.importorskip("zuko")
    model = build_arm(arm, 6, 3, 2, 8)
    value, error = total(widen(model))
    assert error < 0.05
    assert abs(value - 1) < 4 * error
    model.elbo(BITS, 1, generator()).elbo.mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []  # DDP needs that
    x, codes = model.sample(5, generator())
    assert x.shape == (5, 6)
    assert set(x.unique().tolist()) <= {0.0, 1.0}
    assert sum(z.shape[1] for z in codes) == 6
    assert ((model.reconstruct(BITS, generator()) >= 0) & (model.reconstruct(BITS, generator()) <= 1)).all()


@pytest.mark.parametrize("arm", ["self_reflective", "ladder", "iaf"])
def test_samples_follow_the_model(arm):
    """Frequencies of ancestral samples against importance estimates of p(x)."""
    if arm == "iaf":
        pytest.importorskip("zuko")
    model = build_arm(arm, 6, 3, 2, 8, seed=3)
    lively(model.generator if arm == "self_reflective" else model.decoder, scale=0.2)
    x, _ = model.sample(40_000, generator())
    code = (x.long() * torch.tensor([32, 16, 8, 4, 2, 1])).sum(1)
    found = torch.bincount(code, minlength=64) / len(x)
    expected = widen(model).log_likelihood(BITS, 3000, generator=generator(1)).exp()
    assert (found - expected).abs().max() < 0.01
    assert expected.max() > 0.02  # not all equal


def test_kl_in_closed_form_is_the_sampled_one_with_and_without_log_determinants():
    model = lively(self_reflective(BlockPartition((2, 2, 2)), [3] * 3, (8, 8), seed=2))
    k, x = 40_000, BITS[[37]]
    with torch.no_grad():
        evidence = model.evidence(x)
        trace = model.trace(x, evidence, k, generator())
        sampled = torch.zeros(k)
        with_determinants = torch.zeros(k)
        z_before = None
        for layer, (eps, z) in enumerate(zip(trace.eps, trace.z, strict=True)):
            prior, bijector = model.generator.conditional(layer, z_before, x)
            law = model.posterior.conditional(layer, z_before, evidence[layer])
            assert torch.allclose(bijector.inverse(z), eps, atol=1e-3)
            sampled += (law.log_prob(eps) - prior.log_prob(eps))[:, 0]
            determinant = bijector.log_abs_det(eps)
            log_q = law.log_prob(bijector.inverse(z)) - determinant
            log_p = prior.log_prob(bijector.inverse(z)) - determinant
            with_determinants += (log_q - log_p)[:, 0]
            z_before = z
    closed = trace.kl.sum(-1)[:, 0]
    for other in (sampled, with_determinants):
        gap = other - closed
        assert gap.std() > 0.01
        assert gap.mean().abs() < 4 * gap.std() / math.sqrt(k)
    assert torch.allclose(-trace.log_ratio[:, 0], sampled, atol=1e-4)


@pytest.mark.parametrize("arm", ARMS)
def test_the_kl_of_every_arm_is_what_its_weights_say(arm):
    if arm == "iaf":
        pytest.importorskip("zuko")
    model = lively(build_arm(arm, 6, 3, 2, 8), 6)
    with torch.no_grad():
        trace = model.trace(BITS[[11]], model.evidence(BITS[[11]]), 20_000, generator())
        gap = trace.kl.sum(-1) + trace.log_ratio
    assert trace.kl.sum(-1).mean() > 0.05
    assert gap.mean().abs() < 4 * gap.std() / math.sqrt(20_000) + 1e-6


def test_the_ladder_multiplies_densities():
    first = DiagonalGaussian(torch.tensor([0.5]), torch.tensor([-0.3]))
    second = DiagonalGaussian(torch.tensor([-1.0]), torch.tensor([0.4]))
    z = torch.linspace(-3, 3, 9)[:, None]
    ratio = merge(first, second).log_prob(z) - first.log_prob(z) - second.log_prob(z)
    assert torch.allclose(ratio, ratio[0].expand(9), atol=1e-5)  # the product, but for a constant


def test_the_bijector():
    d, u = torch.tensor([0.5, 1.2, 2.0]), torch.tensor([0.3, -1.0, 0.7])
    bijector = AffineRankOneBijector(torch.tensor([1.0, 2.0, 3.0]), d, u)
    assert bijector.log_abs_det().item() == pytest.approx(0.99694866, abs=1e-6)
    matrix = torch.diag(d) + torch.outer(u, u)
    assert bijector.log_abs_det().item() == pytest.approx(torch.logdet(matrix).item(), abs=1e-6)
    eps = torch.randn(100, 3, generator=generator())
    assert torch.allclose(bijector.forward(eps), torch.tensor([1.0, 2.0, 3.0]) + eps @ matrix.T, atol=1e-5)
    assert (bijector.inverse(bijector.forward(eps)) - eps).abs().max() < 1e-6
    with pytest.raises(InputError, match="^d: "):
        AffineRankOneBijector(torch.zeros(3), torch.tensor([0.5, 0.0, 2.0]), u)


def test_spline_bijectors_invert_and_know_their_determinant():
    pytest.importorskip("zuko")
    model = lively(self_reflective(BlockPartition((1, 1)), [3, 3], (8,), bijector="spline").double())
    z = torch.randn(3, dtype=torch.double, generator=generator())
    _, bijector = model.generator.conditional(1, z, z)
    eps = torch.randn(3, dtype=torch.double, generator=generator(1))
    assert (bijector.inverse(bijector.forward(eps)) - eps).abs().max() < 1e-9
    jacobian = torch.autograd.functional.jacobian(bijector.forward, eps)
    assert bijector.log_abs_det(eps).item() == pytest.approx(torch.linalg.slogdet(jacobian)[1].item(), abs=1e-9)


def test_only_the_evidence_of_a_layer_reaches_its_posterior():
    seen = {
        "all": [(0, 1, 2)] * 3,
        "from_previous": [(0, 1, 2), (0, 1, 2), (1, 2)],
        "without_previous": [(0, 1, 2), (1, 2), (2,)],
        "previous_and_own": [(0,), (0, 1), (1, 2)],
        "block": [(0,), (1,), (2,)],
    }
    x = torch.rand(1, 6, generator=generator(), requires_grad=True)
    for evidence in EVIDENCE:
        model = self_reflective(BlockPartition((2, 2, 2)), [3] * 3, (8,), evidence=evidence)
        for layer, blocks in enumerate(seen[evidence]):
            (gradient,) = torch.autograd.grad(model.evidence(x)[layer].sum(), x)
            assert tuple(i for i in range(3) if gradient[0, 2 * i : 2 * i + 2].abs().max() > 0) == blocks


def test_a_block_depends_on_the_data_before_it_and_on_nothing_else():
    model = lively(self_reflective(BlockPartition((2, 2, 2)), [3] * 3, (8,)))
    z = torch.randn(1, 1, 3, generator=generator())
    with torch.no_grad():
        one, two = (model.generator.mean(1, z, x) for x in (torch.zeros(1, 2), torch.ones(1, 2)))
        assert (one - two).abs().max() > 1e-3
        # The last block's term of the likelihood moves with x_2 and x_3, not with x_1, if the codes are held.
        x = BITS[[0]].clone()
        codes = model.trace(x, model.evidence(x), 1, generator()).z

        def last(x):
            blocks = model.partition.split(x)
            return model.generator.log_likelihood(2, blocks[2], codes[2], blocks[1])

        changed = {i: (last(x) - last(x.index_fill(1, torch.tensor([i]), 1.0))).abs().item() for i in range(6)}
    assert changed[0] == changed[1] == 0
    assert min(changed[i] for i in range(2, 6)) > 0


def test_log_likelihood_is_logsumexp_in_any_chunks():
    model = lively(build_arm("self_reflective", 6, 3, 2, 8))
    x = BITS[:5]
    with torch.no_grad():
        weights = model.log_weights(x, 50, generator())
    whole = model.log_likelihood(x, 50, 50, generator())
    assert torch.allclose(whole, weights.logsumexp(0) - math.log(50), atol=1e-5)
    source = generator(7)
    with torch.no_grad():
        parts = torch.cat([model.log_weights(x, n, source) for n in (20, 20, 10)])
    assert torch.allclose(model.log_likelihood(x, 50, 20, generator(7)), parts.logsumexp(0) - math.log(50), atol=1e-5)
    assert (whole > weights.mean(0)).all()


def test_partitions():
    partition = BlockPartition.raster(784, 10)
    assert partition.sizes == (78,) * 9 + (82,)
    x = torch.rand(3, 784, generator=generator())
    assert torch.equal(partition.join(partition.split(x)), x)
    with pytest.raises(InputError, match="10 entries, but the sizes"):
        partition.split(torch.zeros(2, 10))
    with pytest.raises(InputError, match="^blocks: "):
        partition.join([torch.zeros(2, 78)] * 10)
    for sizes in ([], [3, 0]):
        with pytest.raises(InputError, match="^sizes: "):
            BlockPartition(sizes)
    with pytest.raises(InputError, match="^blocks: 5 of 4"):
        BlockPartition.raster(4, 5)


def test_binarisation_is_drawn_anew_and_keeps_binary_data():
    intensities = torch.full((10_000,), 0.3)
    source = generator()
    first, second = binarise(intensities, source), binarise(intensities, source)
    assert first.mean().item() == pytest.approx(0.3, abs=0.02)
    assert (first != second).any()
    assert torch.equal(binarise(BITS, source), BITS)
    for wrong in (1.5, -0.1, math.nan):
        with pytest.raises(InputError, match="^intensities: "):
            binarise(torch.tensor([0.5, wrong]), source)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.full((2, 6), 0.5), "Bernoulli likelihood needs entries 0 or 1"),
        (torch.full((2, 6), math.nan), "holds NaN"),
        (torch.zeros(2, 5), "5 entries, but the sizes"),
        (torch.zeros(6), "shape"),
        (torch.zeros(2, 6, dtype=torch.long), "give floats"),
    ],
)
def test_bad_data_are_refused_in_one_line(x, message):
    model = build_arm("self_reflective", 6, 3, 2, 8)
    for ask in (lambda: model.elbo(x), lambda: model.log_weights(x, 2), lambda: model.log_likelihood(x, 2)):
        with pytest.raises(InputError, match=message) as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_bad_settings_are_refused():
    partition = BlockPartition((2, 2, 2))
    for dims in ([3, 3], [3, 3, 0], []):
        with pytest.raises(InputError, match="^latent_dims: "):
            self_reflective(partition, dims)
    for name in ("likelihood", "posterior", "prior", "bijector", "evidence"):
        with pytest.raises(InputError, match=f"^{name}: unknown 'nothing'"):
            self_reflective(partition, [3] * 3, **{name: "nothing"})
    with pytest.raises(InputError, match="^correction: -1"):
        self_reflective(partition, [3] * 3, correction=-1)
    with pytest.raises(InputError, match="^hidden: "):
        self_reflective(partition, [3] * 3, ())
    model = self_reflective(partition, [3] * 3, (4,))
    with pytest.raises(InputError, match="^k: 0"):
        model.log_likelihood(BITS, 0)
    with pytest.raises(InputError, match="^n_samples: 0"):
        model.elbo(BITS, 0)
    with pytest.raises(InputError, match="^n: 0"):
        model.sample(0)
    with pytest.raises(InputError, match="^arm: unknown"):
        build_arm("gan", 6, 3, 2)
