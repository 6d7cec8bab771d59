"""The Lightning module: what it fits, reports, refuses and keeps in a checkpoint."""

import numpy as np
import pytest
import torch

from lightning_modules.errors import InputError
from lightning_modules.lightning_import import pl
from lightning_modules.strategic.classifier import StrategicLinearClassifier
from lightning_modules.strategic.cost_sets import EigenvalueBox, FiniteCostSet
from lightning_modules.strategic.costs import LpCost, MahalanobisCost
from lightning_modules.strategic.responses import best_response
from lightning_modules.strategic.solvers import Problems, full_batch, stochastic

BOX = EigenvalueBox(np.eye(4), 0.25, 4.0)


def blobs(seed=0, n=300, d=4, share=0.5):
    generator = np.random.default_rng(seed)
    y = np.where(np.arange(n) < share * n, 1, -1)
    return generator.normal(size=(n, d)) + 0.7 * y[:, None], y


def test_fit_is_a_lightning_module_that_takes_the_solvers_solution():
    x, y = blobs()
    model = StrategicLinearClassifier(BOX, 0.1, steps=200).fit(x, y)
    assert isinstance(model, pl.LightningModule)
    assert not model.automatic_optimization
    expected = full_batch(Problems(x, y.astype(float), [BOX.training_costs()], np.array([0.1])), 200)
    assert (model.weight.detach().numpy() == expected.weights[0]).all()
    assert model.bias.item() == expected.biases[0]
    assert (model.solution.objective == expected.objective).all()
    assert model.weight.dtype == torch.double


def test_stochastic_solver_is_repeatable_by_its_seed():
    x, y = blobs()
    options = {"lam": 0.1, "solver": "stochastic", "steps": 100, "batch_size": 8}
    one, again, other = (StrategicLinearClassifier(BOX, **options, seed=s).fit(x, y) for s in (1, 1, 2))
    problem = Problems(x, y.astype(float), [BOX.training_costs()], np.array([0.1]))
    assert (one.weight.detach().numpy() == stochastic(problem, 100, 8, [1]).weights[0]).all()
    assert torch.equal(one.weight, again.weight)
    assert not torch.equal(one.weight, other.weight)


def test_tau_plus_is_the_share_of_positives():
    x, y = blobs(share=0.3)
    fitted, explicit = (StrategicLinearClassifier(BOX, lam, steps=50).fit(x, y) for lam in ("tau_plus", 0.3))
    assert torch.equal(fitted.weight, explicit.weight)


def test_a_square_penalty_shortens_the_weights_of_a_naive_classifier():
    x, y = blobs()
    still = FiniteCostSet([LpCost(2, 0.0)])
    free, short = (StrategicLinearClassifier(still, 0.0, l2=l2, steps=200).fit(x, y) for l2 in (0.0, 1.0))
    assert short.weight.norm() < 0.7 * free.weight.norm()


def test_report_is_what_simulated_people_do():
    x, y = blobs()
    test_x, test_y = blobs(1)
    model = StrategicLinearClassifier(BOX, 0.0, steps=200).fit(x, y)
    nominal = MahalanobisCost(np.eye(4))
    report = model.report(test_x, test_y, nominal)
    w, b = model.weight.detach().numpy(), model.bias.item()

    def accuracy(cost):
        after = best_response(test_x, w, b, cost)[0]
        assert (model.predict(after) == model.predict(test_x, cost)).all()
        return float((model.predict(after) == test_y).mean())

    after, moved, paid = best_response(test_x, w, b, nominal)
    assert report.clean == (np.where(test_x @ w + b >= 0, 1, -1) == test_y).mean()
    assert report.nominal == accuracy(nominal)
    assert report.k_min == accuracy(BOX.member(BOX.high))
    assert report.k_max == accuracy(BOX.member(BOX.low))
    members = [BOX.member(np.full(4, v)) for v in np.geomspace(0.25, 4, 200)]
    assert report.worst - 1e-12 <= min(map(accuracy, members)) <= report.worst + 0.01
    assert report.worst <= min(report.k_min, report.k_max) + 1e-12
    assert report.moved == moved.mean() > 0
    assert report.paid_by_positives == pytest.approx(paid[test_y > 0].mean())
    assert model.report(test_x, test_y) == report  # the middle of the box is the identity


def test_minimax_has_the_better_worst_case_and_knows_it():
    x, y = blobs()
    alone = FiniteCostSet([MahalanobisCost(np.eye(4))])
    minimax, nominal = (StrategicLinearClassifier(s, 0.0, steps=300).fit(x, y) for s in (BOX, alone))
    nominal.uncertainty_set = BOX
    assert minimax.report(x, y).worst > nominal.report(x, y).worst + 0.01


def test_labels_zero_and_one_need_the_flag_and_come_back_as_such():
    x, y = blobs()
    ones = (y > 0).astype(int)
    model = StrategicLinearClassifier(BOX, steps=50, zero_one=True).fit(x, ones)
    assert set(model.predict(x)) == {0, 1}
    same = StrategicLinearClassifier(BOX, steps=50).fit(x, y)
    assert torch.equal(model.weight, same.weight)
    assert (np.where(model.predict(x) == 1, 1, -1) == same.predict(x)).all()
    assert model.report(x, ones) == same.report(x, y)


def test_weights_come_back_from_a_checkpoint(tmp_path):
    x, y = blobs()
    model = StrategicLinearClassifier(BOX, steps=50).fit(x, y)
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = StrategicLinearClassifier.load_from_checkpoint(tmp_path / "model.ckpt", uncertainty_set=BOX)
    assert (loaded.decision_function(x) == model.decision_function(x)).all()
    assert loaded.decision_function(x) == pytest.approx(x @ model.weight.detach().numpy() + model.bias.item())


X, Y = blobs(n=20)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: StrategicLinearClassifier(BOX, -0.1), r"lam: -0.1 is no weight; give 0 or more"),
        (lambda: StrategicLinearClassifier(BOX, float("nan")), r"lam: nan is no weight"),
        (lambda: StrategicLinearClassifier(BOX, "tau"), r"lam: 'tau' is no weight"),
        (lambda: StrategicLinearClassifier(BOX, l2=-1.0), r"l2: -1.0 is no weight"),
        (lambda: StrategicLinearClassifier(BOX, solver="adam"), r"solver: unknown 'adam'; choose"),
        (lambda: StrategicLinearClassifier(BOX, steps=0), r"steps: 0"),
        (lambda: StrategicLinearClassifier(BOX, batch_size=0), r"batch_size: 0"),
        (lambda: StrategicLinearClassifier(BOX, radius=0.0), r"radius: 0.0 is not above 0"),
        (lambda: StrategicLinearClassifier(BOX).fit(X, (Y > 0).astype(int)), r"y: holds \[0\], .* say zero_one=True"),
        (lambda: StrategicLinearClassifier(BOX).fit(X, 2 * Y), r"y: holds \[-2, 2\]"),
        (lambda: StrategicLinearClassifier(BOX, zero_one=True).fit(X, Y), r"y: holds \[-1\], not only \[0, 1\]"),
        (lambda: StrategicLinearClassifier(BOX).fit(X, np.ones(20)), r"y: is .* alone; give both classes"),
        (lambda: StrategicLinearClassifier(BOX).fit(X, Y[:5]), r"y: has 5 labels, inputs are \[20, 4\]"),
        (lambda: StrategicLinearClassifier(BOX).fit(X * np.nan, Y), r"inputs: hold NaN"),
        (lambda: StrategicLinearClassifier(BOX).fit(X[:, :2], Y), r"weights: have 2 features, the cost 4"),
        (lambda: StrategicLinearClassifier(BOX).predict(X), r"inputs: .* call fit first"),
        (lambda: StrategicLinearClassifier(BOX, steps=1).fit(X, Y).predict(X[:, :2]), r"inputs: .* it was fitted to"),
    ],
)
def test_errors_name_the_value_and_the_mend(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
