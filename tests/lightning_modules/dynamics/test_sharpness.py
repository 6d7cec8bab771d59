import math

import pytest
import torch
from torch import nn

from lightning_modules.dynamics.curvature import HessianProduct, top_eigenpairs
from lightning_modules.dynamics.flat import FlatParameters, losses_at
from lightning_modules.dynamics.full_batch import FullBatchModule
from lightning_modules.dynamics.full_batch_data import FullBatchData
from lightning_modules.dynamics.lanczos import WarmLanczos
from lightning_modules.dynamics.sharpness import dense_hessian, sharpness, stability_threshold
from lightning_modules.errors import InputError


@pytest.fixture(scope="module")
def network():
    """The MLP 64-12-12-10 in double precision on 300 digits: losses, parameters, dense Hessian."""
    data = FullBatchData(subset=300)
    data.setup()
    x, y = data.train.tensors
    module = FullBatchModule(width=12, seed=1).double()
    losses = losses_at(module, (x.double(), y))
    theta = FlatParameters(module).vector()
    return losses, theta, dense_hessian(losses, theta)


def symmetric(values, seed=0, dtype=torch.double):
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.double))
    return (basis @ torch.diag(torch.as_tensor(values, dtype=torch.double)) @ basis.T).to(dtype), basis.to(dtype)


def test_products_are_those_of_the_dense_hessian(network):
    losses, theta, hessian = network
    assert len(theta) == 1066
    parts = HessianProduct([lambda at: losses(at)[:100], lambda at: losses(at)[100:]], theta)
    whole = HessianProduct([losses], theta)
    vectors = torch.randn(3, 1066, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    for vector in vectors:
        assert float((whole(vector) - hessian @ vector).abs().max()) < 1e-12
        assert float((parts(vector) - hessian @ vector).abs().max()) < 1e-12


def test_both_methods_find_the_largest_eigenvalue_of_the_network(network):
    losses, theta, hessian = network
    top = float(torch.linalg.eigvalsh(hessian)[-1])
    power = sharpness(losses, theta, "power", tolerance=1e-6, iterations=20_000)
    lanczos = sharpness(losses, theta, tolerance=1e-8)
    for found in (power, lanczos):
        assert found.value == pytest.approx(top, rel=1e-6)
        assert float((hessian @ found.vector - top * found.vector).norm()) < 1e-4 * top
    again = sharpness(losses, theta, "power", start=power.vector, tolerance=1e-5)
    assert again.products <= 2  # a warm start


@pytest.mark.parametrize("method", ["power", "lanczos"])
def test_negative_curvature_is_not_taken_for_sharpness(method):
    matrix, _ = symmetric([-9.0, *[0.1 * i for i in range(30)], 5.0])

    def losses(theta):
        return (0.5 * theta @ matrix @ theta)[None]

    found = sharpness(losses, torch.zeros(32, dtype=torch.double), method, tolerance=1e-9, iterations=5000)
    assert found.value == pytest.approx(5.0, rel=1e-6)
    concave = sharpness(lambda t: -t.square().sum()[None], torch.ones(40, dtype=torch.double), method)
    assert concave.value == pytest.approx(-2.0)


def test_a_linear_loss_has_no_curvature():
    assert sharpness(lambda t: t, torch.ones(40, dtype=torch.double), "power").value == 0.0


def test_it_is_the_sharpness_of_the_mean_loss():
    found = sharpness(lambda t: 1.5 * t.square(), torch.ones(30, dtype=torch.double))
    assert found.value == pytest.approx(3.0 / 30)


def test_an_unknown_method_and_an_infinite_loss_are_refused():
    with pytest.raises(InputError, match="method: unknown 'qr'; choose from lanczos, power"):
        sharpness(lambda t: t.square(), torch.ones(3), "qr")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="loss: is inf; .* lower the learning rate"):
        sharpness(lambda t: t / 0, torch.ones(3))


def test_a_warm_start_needs_few_products_and_agrees_with_arpack(network):
    losses, theta, _ = network
    theta, top, arpack = theta.clone(), WarmLanczos(k=2), 0
    for _ in range(5):
        product = HessianProduct([losses], theta)
        expected = top_eigenpairs(product, len(theta), 2, tolerance=1e-8, dtype=torch.double)
        arpack = product.products
        found = top(product, len(theta), dtype=torch.double)
        torch.testing.assert_close(found.values, expected.values, rtol=1e-3, atol=0.0)
        true = torch.stack([product(v) - value * v for value, v in zip(found.values, found.vectors, strict=True)])
        torch.testing.assert_close(true.norm(dim=1), found.residuals, rtol=1e-4, atol=1e-9)
        theta -= 0.05 * product.gradient()
    assert top.products < arpack / 2


def test_an_eigenvector_that_overtakes_the_first_is_found():
    """At the crossing the start is exactly the old eigenvector, and the new one is not in it."""
    _, basis = symmetric(torch.zeros(200))
    top = WarmLanczos()
    others = torch.linspace(-1, 1, 198, dtype=torch.double)
    for first, second in ((5.0, 4.0), (5.0, 4.9), (5.0, 5.1), (5.0, 6.0)):
        matrix = basis @ torch.diag(torch.cat([torch.tensor([first, second], dtype=torch.double), others])) @ basis.T
        found = top(lambda v, m=matrix: m @ v, 200, dtype=torch.double)
        assert float(found.values[0]) == pytest.approx(max(first, second), rel=1e-3)
    top.start = basis[:, 1].clone()
    matrix = basis @ torch.diag(torch.cat([torch.tensor([9.0, 6.0], dtype=torch.double), others])) @ basis.T
    assert float(top(lambda v: matrix @ v, 200, dtype=torch.double).values[0]) == pytest.approx(9.0, rel=1e-3)


def test_in_single_precision_no_eigenvalue_appears_twice():
    matrix, _ = symmetric([*torch.linspace(-1, 1, 97).tolist(), 20.0, 30.0, 40.0], dtype=torch.float32)
    top = WarmLanczos(k=3, tolerance=1e-6)
    for _ in range(3):
        found = top(lambda v: matrix @ v, 100)
        torch.testing.assert_close(found.values, torch.tensor([40.0, 30.0, 20.0]), rtol=1e-4, atol=0.0)


def test_a_matrix_of_few_rows_is_found_whole():
    matrix, _ = symmetric([3.0, 2.0, -8.0])
    found = WarmLanczos(k=3, tolerance=1e-9)(lambda v: matrix @ v, 3, dtype=torch.double)
    torch.testing.assert_close(found.values, torch.tensor([3.0, 2.0, -8.0], dtype=torch.double))


def growth(make, curvature):
    """How much 400 steps of an optimizer on 0.5 curvature x^2 grow |x|."""
    x = nn.Parameter(torch.tensor([1e-3], dtype=torch.double))
    optimizer = make([x])
    for _ in range(400):
        x.grad = curvature * x.detach()
        optimizer.step()
    return abs(float(x.detach())) / 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.5},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.5, "weight_decay": 2.0},
    ],
)
def test_the_threshold_is_where_steps_on_a_quadratic_begin_to_grow(options):
    def make(parameters):
        return torch.optim.SGD(parameters, lr=0.1, **options)

    bound = stability_threshold(make([nn.Parameter(torch.zeros(1))]))
    assert growth(make, 0.95 * bound) < 1
    assert growth(make, 1.05 * bound) > 1e3


def test_adam_and_groups_of_several_learning_rates_have_no_threshold():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    assert math.isnan(stability_threshold(torch.optim.Adam([a])))
    assert math.isnan(stability_threshold(torch.optim.SGD([{"params": [a], "lr": 0.1}, {"params": [b]}], lr=0.2)))
    assert math.isnan(stability_threshold(None))
    assert stability_threshold(torch.optim.SGD([{"params": [a]}, {"params": [b]}], lr=0.2)) == pytest.approx(10.0)
