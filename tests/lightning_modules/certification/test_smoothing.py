"""The smoothed classifier against classifiers whose true radii are known."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from lightning_modules.certification.binomial import top_two_p_value
from lightning_modules.certification.noise import NoisyCounter, generator_on
from lightning_modules.certification.sequential import LookSchedule, SequentialRule
from lightning_modules.certification.smoothing import ABSTAIN, SmoothedClassifier, _stage_seed
from lightning_modules.errors import InputError


class Halfspace(nn.Module):
    """Class 1 where w.x + b > 0: the smoothed classifier's radius is the distance to the plane, whatever sigma is."""

    def __init__(self, w: torch.Tensor, b: float) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w), b

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = x @ self.w + self.b
        return torch.stack([-score, score], 1)

    def distance(self, x: torch.Tensor) -> np.ndarray:
        return ((x @ self.w + self.b).abs() / self.w.norm()).detach().double().numpy()


class Bands(nn.Module):
    """Three classes by the first coordinate: below -1, between, above 1; their probabilities are known."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = x[:, 0]
        return torch.stack([-1 - first, 1 - first.abs(), first - 1], 1)

    @staticmethod
    def probabilities(x: float, sigma: float) -> np.ndarray:
        low, high = stats.norm.cdf([-1, 1], loc=x, scale=sigma)
        return np.array([low, high - low, 1 - high])


@pytest.fixture
def halfspace():
    generator = torch.Generator().manual_seed(0)
    model = Halfspace(torch.randn(20, generator=generator), 0.3).eval()
    return model, torch.randn(400, 20, generator=generator)


def small_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 13 * 13, 10)).eval()


def test_radii_stay_below_the_distance_to_a_plane_and_come_close(halfspace):
    model, x = halfspace
    x = x[:150]
    found = SmoothedClassifier(model, 2, 0.5).certify_many(x, range(150), 100, 100_000, 0.001, batch_size=4000)
    radii, distance = np.array([c.radius for c in found]), model.distance(x)
    assert (radii > distance).sum() <= 2
    middling = (distance > 0.1) & (distance < 1.5)
    assert np.median((distance - radii)[middling]) == pytest.approx(0.008, abs=0.004)
    assert radii.max() == pytest.approx(1.9057, abs=1e-3)
    predictions = np.array([c.prediction for c in found])
    assert (((x @ model.w + model.b > 0).numpy() == predictions) | (predictions == ABSTAIN)).all()
    assert (predictions[distance > 0.3] != ABSTAIN).all()
    assert {c.n_used for c in found} == {100_100}


@pytest.mark.parametrize("noise", ["independent", "shared"])
def test_sequential_radii_are_grid_points_below_the_distance(halfspace, noise):
    model, x = halfspace
    rule = SequentialRule(0.5, (0.0, 0.25, 0.5, 1.0, 1.5), LookSchedule(10_000), 0.001)
    smoothed = SmoothedClassifier(model, 2, 0.5, noise=noise)
    seeds = [7] * 100 if noise == "shared" else range(100)
    found = smoothed.certify_many_sequential(x[:100], seeds, 100, rule)
    radii, distance = np.array([c.radius for c in found]), model.distance(x[:100])
    assert set(radii) <= set(rule.radii)
    assert (radii <= distance).all()
    sure = distance > 0.6
    assert (radii[sure] >= 0.25).all()
    assert {c.n_used - 100 for c in found} <= set(rule.looks.tolist())
    assert np.mean([c.n_used for c in found]) < 4000


def test_counts_follow_the_binomial_law_of_the_true_probabilities():
    x, sigma, n = 0.7, 0.8, 20_000
    counter = NoisyCounter(Bands().eval(), 3, sigma, 1000)
    counts = counter.count(torch.tensor([[x]]), [generator_on(torch.device("cpu"), 5)], n)[0]
    assert counts.sum() == n
    assert stats.chisquare(counts[:3], n * Bands.probabilities(x, sigma)).pvalue > 1e-3


@pytest.mark.parametrize("method", ["certify", "sequential", "predict", "predict_sequential"])
def test_the_error_rate_over_many_runs_stays_within_alpha(method):
    """On a classifier whose true probabilities are known, at a level high enough to see errors."""
    sigma, alpha, runs = 1.0, 0.1, 600 if "predict" in method else 3000
    x = torch.full((runs, 1), 1.05) if "predict" in method else torch.full((runs, 1), 0.4)
    probabilities = Bands.probabilities(float(x[0]), sigma)
    top, p = int(probabilities.argmax()), probabilities.max()
    smoothed = SmoothedClassifier(Bands().eval(), 3, sigma)
    true = sigma * stats.norm.ppf(p)
    if method == "certify":
        found = smoothed.certify_many(x, range(runs), 10, 200, alpha, batch_size=4000)
        wrong = [c.prediction not in (top, ABSTAIN) or c.radius > true for c in found]
    elif method == "sequential":
        # A target just above the truth: certifying it is the error.
        rule = SequentialRule(sigma, (0.0, true + 1e-6), LookSchedule(400, 48), alpha)
        found = smoothed.certify_many_sequential(x, range(runs), 10, rule, batch_size=4000)
        wrong = [c.prediction not in (top, ABSTAIN) or c.radius > true for c in found]
    elif method == "predict":
        wrong = [smoothed.predict(x[0], 64, alpha, seed=s) not in (top, ABSTAIN) for s in range(runs)]
    else:
        wrong = [smoothed.predict_sequential(x[0], 8, 200, alpha, seed=s)[0] not in (top, ABSTAIN) for s in range(runs)]
    # Three standard errors of a rate of alpha estimated from that many runs.
    assert np.mean(wrong) <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / runs)
    if method == "certify":
        assert np.mean(wrong) > 0.02  # the test can see errors


def test_guess_and_bound_use_different_noise():
    """Bounding with the samples that chose the class doubles the error in a tie; fresh ones do not."""
    smoothed = SmoothedClassifier(Halfspace(torch.tensor([1.0]), 0.0).eval(), 2, 1.0)
    found = smoothed.certify_many(torch.zeros(4000, 1), range(4000), 100, 100, 0.05, batch_size=4000)
    assert np.mean([c.p_lower > 0.5 for c in found]) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)


def test_an_examples_certificate_depends_on_its_seed_alone():
    model, x = small_network(), torch.rand(12, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    rule = SequentialRule(0.5, (0.0, 0.25, 0.5), LookSchedule(1000), 0.001)

    def certified(rows, batch_size):
        smoothed = SmoothedClassifier(model, 10, 0.5)
        fixed = smoothed.certify_many(x[rows], list(rows), 100, 500, 0.001, batch_size=batch_size)
        return fixed, smoothed.certify_many_sequential(x[rows], list(rows), 100, rule, batch_size=batch_size)

    fixed, adaptive = certified(range(12), 400)
    for rows, batch_size in (([7, 2], 400), ([2], 96), (list(range(11, -1, -1)), 640)):
        some_fixed, some_adaptive = certified(rows, batch_size)
        assert some_fixed == [fixed[row] for row in rows]
        assert some_adaptive == [adaptive[row] for row in rows]
    assert certified([2], 400)[0][0] != SmoothedClassifier(model, 10, 0.5).certify(x[2], 100, 500, seed=3)


@pytest.mark.parametrize("amount", [96, 100, 1000])
def test_counts_do_not_depend_on_the_batch_size_whatever_the_inputs_size(amount):
    model = Halfspace(torch.ones(5), 0.1).eval()
    x = torch.full((3, 5), 0.1)

    def counts(batch_size):
        generators = [generator_on(torch.device("cpu"), seed) for seed in range(3)]
        counter = NoisyCounter(model, 2, 1.0, batch_size)
        return [counter.count(x, generators, amount).tolist() for _ in range(2)]

    assert counts(64) == counts(400) == counts(5000)


def test_shared_noise_gives_each_example_the_same_draws_whatever_is_certified_beside_it():
    model, x = small_network(), torch.rand(9, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    smoothed = SmoothedClassifier(model, 10, 0.5, noise="shared")
    together = smoothed.certify_many(x, [3] * 9, 100, 2000, 0.001)
    assert smoothed.certify_many(x[4:5], [3], 100, 2000, 0.001) == together[4:5]
    assert smoothed.certify_many(x[[4, 4]], [3, 3], 100, 2000, 0.001) == [together[4]] * 2
    with pytest.raises(InputError, match="one seed"):
        smoothed.certify_many(x[:2], [1, 2], 100, 2000, 0.001)


def test_scaling_noise_and_inputs_scales_radii_and_permuting_classes_permutes_predictions():
    model, x = small_network(), torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(2))
    base = SmoothedClassifier(model, 10, 0.5).certify_many(x, range(6), 100, 400, 0.001)

    class Rescaled(nn.Module):
        def forward(self, inputs):
            return model(inputs / 4)

    scaled = SmoothedClassifier(Rescaled().eval(), 10, 2.0).certify_many(4 * x, range(6), 100, 400, 0.001)
    assert [c.radius for c in scaled] == pytest.approx([4 * c.radius for c in base])
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))

    class Permuted(nn.Module):
        def forward(self, inputs):
            return model(inputs)[:, order]

    permuted = SmoothedClassifier(Permuted().eval(), 10, 0.5).certify_many(x, range(6), 100, 400, 0.001)
    assert [c.radius for c in permuted] == [c.radius for c in base]
    assert [int(order[c.prediction]) for c in permuted if c.prediction >= 0] == [
        c.prediction for c in base if c.prediction >= 0
    ]


def test_predict_returns_or_abstains_by_the_exact_test():
    smoothed = SmoothedClassifier(Bands().eval(), 3, 0.5)
    assert smoothed.predict(torch.tensor([0.0]), 100, 0.001) == 1
    assert smoothed.predict(torch.tensor([2.5]), 100, 0.001) == 2
    assert smoothed.predict(torch.tensor([1.0]), 100, 0.001) == ABSTAIN
    # Near the boundary the answers are those of the test on the same counts.
    x, decided = torch.tensor([0.85]), []
    for seed in range(200):
        generator = generator_on(torch.device("cpu"), _stage_seed(seed, "predict"))
        counts = NoisyCounter(Bands(), 3, 0.5).count(x[None], [generator], 100)[0, :3]
        second, first = np.sort(counts)[-2:]
        decided.append(bool(top_two_p_value(first, second) <= 0.05))
        assert (smoothed.predict(x, 100, 0.05, seed=seed) != ABSTAIN) is decided[-1]
    assert 20 < sum(decided) < 180


@pytest.mark.parametrize(("share", "most"), [(1.0, 32), (0.9, 60), (0.7, 200)])
def test_sequential_prediction_needs_few_samples(share, most):
    """Median samples at alpha = 0.001, where 1000 are usual."""
    x = torch.tensor([stats.norm.ppf(share)]) if share < 1 else torch.tensor([30.0])
    smoothed = SmoothedClassifier(Halfspace(torch.tensor([1.0]), 0.0).eval(), 2, 1.0)
    found = [smoothed.predict_sequential(x.float(), 48, 10_000, 0.001, seed=s) for s in range(60)]
    assert [prediction for prediction, _ in found].count(1) >= 59  # a wrong leader of the first 48 abstains
    assert np.median([used - 48 for _, used in found]) <= most


def test_skipping_wrong_guesses_spends_nothing_on_them_and_changes_no_other():
    smoothed = SmoothedClassifier(Bands().eval(), 3, 0.3)
    x = torch.tensor([[0.0], [2.0], [-2.0], [0.1]])
    labels = np.array([1, 1, 0, 0])
    found = smoothed.certify_many(x, range(4), 100, 500, 0.001, labels=labels)
    assert [c.skipped for c in found] == [False, True, False, True]
    assert [c.n_used for c in found] == [600, 100, 600, 100]
    assert np.isnan(found[1].radius)
    everything = smoothed.certify_many(x, range(4), 100, 500, 0.001)
    assert [found[0], found[2]] == [everything[0], everything[2]]


def test_logits_that_are_not_finite_are_errors_of_their_example_only():
    class Breaks(nn.Module):
        def forward(self, x):
            logits = torch.stack([x[:, 0], -x[:, 0]], 1)
            return torch.where(x[:, :1] > 3, torch.tensor(float("nan")), logits)

    smoothed = SmoothedClassifier(Breaks().eval(), 2, 0.5)
    found = smoothed.certify_many(torch.tensor([[-1.0], [2.9]]), [0, 1], 100, 500, 0.001)
    assert found[0].error == ""
    assert "NaN or infinite logits" in found[1].error
    assert found[1].prediction == ABSTAIN
    with pytest.raises(InputError, match="NaN or infinite logits"):
        smoothed.certify(torch.tensor([2.9]), 100, 500)
    with pytest.raises(InputError, match="NaN or infinite logits"):
        smoothed.certify_sequential(torch.tensor([2.9]), [0.0, 0.5], 100, 500)
    with pytest.raises(InputError, match="NaN or infinite logits"):
        smoothed.predict(torch.tensor([2.9]), 100, 0.001)


def test_bf16_is_another_classifier_and_runs():
    model, x = small_network(), torch.rand(3, 1, 28, 28)
    found = SmoothedClassifier(model, 10, 0.5, precision="bf16").certify_many(x, range(3), 50, 100, 0.001)
    assert all(c.n_used == 150 for c in found)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: SmoothedClassifier(m, 2, 0.0), "sigma: 0.0 is not positive"),
        (lambda m: SmoothedClassifier(m, 2, -1.0), "sigma: -1.0 is not positive"),
        (lambda m: SmoothedClassifier(m, 1, 0.5), "num_classes: 1"),
        (lambda m: SmoothedClassifier(m.train(), 2, 0.5), "train mode"),
        (lambda m: SmoothedClassifier(m, 2, 0.5, precision="fp8"), "precision: unknown 'fp8'"),
        (lambda m: SmoothedClassifier(m, 2, 0.5).certify(torch.zeros(20), 10, 100, 1.0), "alpha: 1.0 is not between"),
        (lambda m: SmoothedClassifier(m, 2, 0.5).certify(torch.zeros(20), 10, 100, 0.0), "alpha: 0.0 is not between"),
        (lambda m: SmoothedClassifier(m, 2, 0.5).certify(torch.zeros(20), 100, 10), "n: 10 is below n0 = 100"),
        (lambda m: SmoothedClassifier(m, 2, 0.5).certify(torch.zeros(20), 0, 10), "n0: 0 is too small"),
        (lambda m: SmoothedClassifier(m, 2, 0.5).predict(torch.zeros(20), 0, 0.1), "n: 0 is too small"),
        (lambda m: SmoothedClassifier(m, 3, 0.5).predict(torch.zeros(20), 10, 0.1), r"not logits \[.*, 3\]"),
        (lambda m: SmoothedClassifier(m, 2, 0.5).certify(torch.full((20,), np.nan), 10, 100), "x: has NaN"),
        (lambda m: SmoothedClassifier(m, 2, 0.5).certify(torch.zeros(1, 1, 4, 5), 10, 100), "without a batch axis"),
        (lambda m: SmoothedClassifier(m, 2, 0.5).certify_sequential(torch.zeros(20), [0.5]), "must increase from 0"),
    ],
)
def test_bad_values_are_one_line(halfspace, call, message):
    with pytest.raises(InputError, match=message) as error:
        call(halfspace[0])
    assert "\n" not in str(error.value)


@pytest.mark.gpu
def test_on_a_gpu_counts_follow_the_same_law_and_repeat():
    x, sigma, n = 0.7, 0.8, 100_000
    device = torch.device("cuda")

    class OnDevice(Bands):
        def __init__(self):
            super().__init__()
            self.anchor = nn.Buffer(torch.zeros(()))

    model = OnDevice().to(device)

    def counts():
        return NoisyCounter(model, 3, sigma, 10_000).count(
            torch.tensor([[x]], device=device), [generator_on(device, 5)], n
        )[0, :3]

    first = counts()
    assert (first == counts()).all()
    assert stats.chisquare(first, n * Bands.probabilities(x, sigma)).pvalue > 1e-3
