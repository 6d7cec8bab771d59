"""POLCA itself: identities that must hold exactly, its orders, and errors a person can mend."""

import numpy as np
import pytest
import torch

from lightning_modules.dynamics.basis import (
    AxisBasis,
    Basis,
    RandomBasis,
    TrajectoryPCABasis,
    orthonormality_error,
)
from lightning_modules.dynamics.curvature import HessianProduct
from lightning_modules.dynamics.flat import FlatParameters, directional_derivatives, losses_at
from lightning_modules.dynamics.hessian_basis import HessianBasis, next_directions
from lightning_modules.dynamics.planted_skill import train_planted
from lightning_modules.dynamics.polca import (
    ORDERS,
    directional_curvatures,
    polca,
    polca_bases,
    polca_intervals,
    polca_orders,
)
from lightning_modules.dynamics.recorder import Checkpoints
from lightning_modules.dynamics.token_losses import TokenLossesAt
from lightning_modules.errors import InputError
from lightning_modules.sequence.addition import AdditionData, AdditionLM
from lightning_modules.sequence.language_model import TokenLosses


@pytest.fixture(scope="module")
def quadratic():
    """Losses of 50 rows, two points, and the eigenvectors of the mean's Hessian."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(50, 12, generator=generator, dtype=torch.double)
    y = torch.randn(50, generator=generator, dtype=torch.double)
    ends = torch.randn(2, 12, generator=generator, dtype=torch.double)
    values, vectors = torch.linalg.eigh(2 * a.T @ a / 50)
    return lambda theta: (a @ theta - y).square(), Checkpoints([0, 7], ends, torch.double), vectors.T, values


@pytest.fixture(scope="module")
def planted():
    return train_planted(0, steps=200, n=100)


def test_ratio_and_trapezoid_are_exact_row_by_row_where_the_loss_is_quadratic(quadratic):
    losses, checkpoints, vectors, values = quadratic
    first, trapezoid, ratio, exact = polca_orders(losses, checkpoints, vectors, ORDERS)
    true = losses(checkpoints[1]) - losses(checkpoints[0])
    for found in (trapezoid, ratio):
        assert torch.allclose(found.values[0].sum(0), true, atol=1e-10, rtol=0)
        assert found.captured == pytest.approx(found.total, abs=1e-10)
        assert found.share == pytest.approx(1, abs=1e-10)
    assert torch.allclose(trapezoid.values, ratio.values, atol=1e-10, rtol=0)
    # Each row's own curvature along b leaves out what b shares with other directions: right on average only.
    error = exact.values[0].sum(0) - true
    assert error.abs().max() > 1
    assert abs(float(error.mean())) < 1e-10
    assert first.captured_first == pytest.approx(first.captured)
    assert first.captured != pytest.approx(first.total, rel=0.01)
    curvature = directional_curvatures(losses, checkpoints[0], vectors)
    assert torch.allclose(curvature.mean(1), values, atol=1e-10)


def test_the_ratio_form_falls_back_where_nothing_bends():
    def losses(theta):
        return torch.stack([3 * theta[0], theta[0] - 2 * theta[1]])

    checkpoints = Checkpoints([0, 1], [torch.zeros(2), torch.tensor([1.0, 2.0])])
    found = polca(losses, checkpoints, torch.eye(2), "ratio")
    assert found.values[0].tolist() == [[3.0, 1.0], [0.0, -4.0]]
    assert found.captured == found.total == 0
    # Gradients that bend, and whose mean does not.
    opposed = polca(lambda theta: torch.stack([theta[0] ** 2, -(theta[0] ** 2)]), checkpoints, torch.eye(2), "ratio")
    assert opposed.values[0].tolist() == [[1.0, -1.0], [0.0, 0.0]]
    # The mean is rounding alone: divided by, it would blow the ratio up.
    slopes = torch.tensor([1.0, -1.0 + 1e-7])
    nearly = polca(lambda theta: slopes * theta[0] ** 2, checkpoints, torch.eye(2), "ratio")
    assert nearly.values[0].abs().max() < 1.001


def tiny(**more):
    module = AdditionLM(digits=1, layers=1, width=4, heads=2, hidden=4, init_std=0.5, **more).double()
    tokens = AdditionData(digits=1, train=20).train_tokens
    return losses_at(TokenLosses(module), tokens), FlatParameters(module).vector(), tokens


def test_a_complete_basis_gives_the_whole_first_order_change_of_every_token():
    losses, theta, _ = tiny()
    moved = 0.1 * torch.randn(len(theta), generator=torch.Generator().manual_seed(1), dtype=torch.double)
    checkpoints = Checkpoints([0, 1], [theta, theta + moved], torch.double)
    found = polca(losses, checkpoints, RandomBasis(len(theta)).fit(checkpoints), 1)
    whole = directional_derivatives(losses, theta, moved[None])[0]
    assert found.values.shape == (1, len(theta), 40)
    assert torch.allclose(found.values[0].sum(0), whole, atol=1e-12)


def test_tokens_curves_average_to_the_curve_of_the_mean_and_chunks_make_no_difference():
    losses, theta, tokens = tiny()
    steps = torch.randn(3, len(theta), generator=torch.Generator().manual_seed(2), dtype=torch.double)
    checkpoints = Checkpoints([0, 5, 9], theta + 0.1 * steps, torch.double)
    basis = RandomBasis(3, seed=4).fit(checkpoints)
    module = AdditionLM(digits=1, layers=1, width=4, heads=2, hidden=4, init_std=0.5).double()
    parts = [losses_at(TokenLosses(module), part) for part in (tokens[:7], tokens[7:])]
    for order in ORDERS[:2]:
        each = polca(losses, checkpoints, basis, order)
        mean = polca(lambda at: losses(at).mean()[None], checkpoints, basis, order)
        assert torch.allclose(each.values.mean(2), mean.values[..., 0], atol=1e-12)
        assert torch.allclose(each.values, polca(parts, checkpoints, basis, order).values, atol=1e-12)
    curves = each.curves(1)
    assert curves.shape == (40, 3)
    assert torch.equal(curves[:, 0], torch.zeros(40, dtype=torch.double))
    assert torch.allclose(curves[:, 2], each.values[:, 1].sum(0))
    assert torch.allclose(each.losses[2], losses(checkpoints[2]))
    assert len(list(polca_intervals([losses], checkpoints, basis.vectors))) == 2


def test_forward_mode_is_every_tokens_own_gradient_in_float32():
    module, data = AdditionLM(), AdditionData(train=3)
    losses, theta = losses_at(TokenLosses(module), data.train_tokens), FlatParameters(module).vector()
    vectors = torch.linalg.qr(torch.randn(len(theta), 3, generator=torch.Generator().manual_seed(0))).Q.T
    leaf = theta.clone().requires_grad_()
    gradients = torch.stack([torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in losses(leaf)])
    products = vectors @ gradients.T
    for chunk in (1, 2, 16):
        along = directional_derivatives(losses, theta, vectors, chunk)
        assert float((along - products).abs().max() / products.abs().max()) < 1e-5


def test_many_directions_go_through_tokens_gradients_and_give_the_same():
    module = AdditionLM(digits=1, layers=1, width=4, heads=2, hidden=4, init_std=0.5).double()
    losses, theta, tokens = tiny()
    each = TokenLossesAt(module, tokens)
    assert torch.equal(each(theta), losses(theta))
    vectors = torch.linalg.qr(
        torch.randn(len(theta), 12, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    )
    for count in (2, 12):
        some = vectors.Q.T[:count]
        assert torch.allclose(each.slopes(theta, some), directional_derivatives(losses, theta, some), atol=1e-12)


def test_several_bases_in_one_pass_are_what_each_is_alone(planted):
    checkpoints = planted.checkpoints
    bases = {"random": RandomBasis(3).fit(checkpoints), "axes": AxisBasis(2).fit(checkpoints)}
    found = polca_bases(planted.held_out, checkpoints, bases, ORDERS)
    for name, basis in bases.items():
        for order, together in zip(ORDERS, found[name], strict=True):
            alone = polca(planted.held_out, checkpoints, basis, order)
            assert torch.allclose(together.values, alone.values, atol=1e-12)
            assert torch.allclose(together.slopes, alone.slopes, atol=1e-12)
            assert together.captured == pytest.approx(alone.captured)
            assert together.captured_first == pytest.approx(alone.captured_first)
            assert together.captured == pytest.approx(float(alone.values.mean(2).sum()))


def test_the_hessian_basis_is_what_dense_eigenvectors_of_the_projected_hessian_are(planted):
    basis = HessianBasis(2, 40, tolerance=0.0).fit(planted.checkpoints, [planted.training])
    assert basis.steps == (0, 0, 40, 40, 80, 80, 120, 120, 160, 160, 200, 200)
    assert orthonormality_error(basis.vectors) < 1e-12
    assert float(basis.residuals.max()) < 1e-8
    eye = torch.eye(64, dtype=torch.double)
    for start in range(0, 12, 2):
        theta = planted.checkpoints[planted.checkpoints.steps.index(basis.steps[start])]
        product = HessianProduct([planted.training], theta)
        hessian = torch.stack([product(row) for row in eye])
        before = basis.vectors[:start]
        p = eye - before.T @ before
        values, vectors = torch.linalg.eigh(p @ (hessian + hessian.T) @ p / 2)
        for number in range(2):
            assert abs(float(vectors[:, -1 - number] @ basis.vectors[start + number])) > 1 - 1e-10
            assert float(values[-1 - number]) == pytest.approx(float(basis.values[start + number]), abs=1e-12)


@pytest.mark.parametrize("size", [12, 40])  # computed whole, and by Lanczos
def test_directions_are_found_where_the_loss_bends_down_only(size):
    generator = torch.Generator().manual_seed(0)
    turned, basis = (torch.linalg.qr(torch.randn(size, size, dtype=torch.double, generator=generator)).Q for _ in "ab")
    hessian = -turned @ torch.diag(torch.arange(1.0, size + 1, dtype=torch.double)) @ turned.T

    def losses(theta):
        return (0.5 * theta @ hessian @ theta)[None]

    before, left = basis[:3], basis[3:]
    expected, mixes = torch.linalg.eigh(left @ hessian @ left.T)
    product = HessianProduct([losses], torch.ones(size, dtype=torch.double))
    found, values, _ = next_directions(product, before, 2, 0.0)
    assert values.tolist() == pytest.approx(expected[[-1, -2]].tolist())
    assert (found @ left.T @ mixes[:, [-1, -2]]).diagonal().abs().tolist() == pytest.approx([1.0, 1.0])
    assert float((found @ before.T).abs().max()) < 1e-12


def test_a_shuffled_basis_looks_at_the_same_checkpoints_in_another_order(planted):
    plain = HessianBasis(1, 40).fit(planted.checkpoints, [planted.training])
    mixed = HessianBasis(1, 40, shuffle=1).fit(planted.checkpoints, [planted.training])
    assert sorted(mixed.steps) == list(plain.steps)
    assert mixed.steps != plain.steps
    assert HessianBasis(1, 40, limit=2).fit(planted.checkpoints, [planted.training]).steps == (0, 40)


def test_principal_components_random_directions_and_axes(planted):
    checkpoints = planted.checkpoints
    rows = torch.stack([checkpoints[t] for t in range(len(checkpoints))])
    pca = TrajectoryPCABasis(3).fit(checkpoints)
    _, singular, right = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    assert (pca.vectors * right[:3]).sum(1).abs().tolist() == pytest.approx([1.0] * 3, abs=1e-9)
    assert pca.values.tolist() == pytest.approx((singular[:3] ** 2 / len(rows)).tolist())
    one, two = (RandomBasis(64, seed).fit(checkpoints) for seed in (0, 1))
    assert orthonormality_error(one.vectors) < 1e-12
    assert not torch.allclose(one.vectors, two.vectors)
    axes = AxisBasis(4).fit(checkpoints)
    assert torch.equal(axes.vectors.sum(0).nonzero()[:, 0].sort().values, rows[-1].abs().topk(4).indices.sort().values)
    moved = AxisBasis(1, "moved").fit(checkpoints).vectors.argmax()
    assert int(moved) == int((rows[-1] - rows[0]).abs().argmax())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda run: RandomBasis(65).fit(run.checkpoints), "65 directions for 64 parameters"),
        (lambda run: AxisBasis(65).fit(run.checkpoints), "65 directions for 64 parameters"),
        (lambda run: HessianBasis(13, 40).fit(run.checkpoints, [run.training]), "78 directions for 64 parameters"),
        (lambda run: TrajectoryPCABasis(11).fit(run.checkpoints), "11 principal components of 11 checkpoints"),
        (lambda run: RandomBasis(0), "0 directions are asked for"),
        (lambda run: HessianBasis(0), "k: is 0"),
        (lambda run: HessianBasis(1, limit=0), "limit: is 0"),
        (lambda run: HessianBasis(1, iterations=0), "iterations: is 0"),
        (lambda run: run.checkpoints.every(0), "every 0 steps; give 1 or more"),
        (lambda run: AxisBasis(3, "age"), "by: unknown 'age'; choose from size, moved"),
        (lambda run: polca(run.held_out, run.checkpoints, torch.ones(2, 64)), r"\|B B\^T - I\| is 64"),
        (lambda run: polca(run.held_out, run.checkpoints, torch.eye(64)[:, :63]), r"shape \[64, 63\]"),
        (
            lambda run: polca(run.held_out, run.checkpoints, torch.eye(5)),
            "basis: is of 5 parameters, the checkpoints have 64",
        ),
        (
            lambda run: polca(run.held_out, run.checkpoints, torch.eye(64), 2),
            "order: unknown 2; choose from 1, trapezoid",
        ),
        (
            lambda run: polca(lambda at: run.held_out(at) * np.nan, run.checkpoints, torch.eye(64)),
            "at step 0 a loss is not",
        ),
        (lambda run: Basis(torch.ones(2, 3), torch.ones(2), (0, 0), torch.ones(2)), "give orthonormal rows"),
        (lambda run: TokenLosses(torch.nn.Linear(2, 2)), "Linear has no token_losses"),
    ],
)
def test_errors_say_what_is_wrong_in_one_line(planted, make, message):
    with pytest.raises(InputError, match=message) as caught:
        make(planted)
    assert "\n" not in str(caught.value)
