"""The paper's cells are independent and repeatable, and its claims follow from the stored rows alone."""

import math

import pytest

from cluster.errors import InputError
from jobs.claims import cell, settings
from jobs.papers import iterative_feature_matching as paper
from tests.jobs.papers.measured import results_of


def chosen(experiment, **conditions):
    small = [t for t in paper.plan("small") if t.dataset == f"iterative_feature_matching/{experiment}"]
    return [t for t in small if all({**settings(t), "method": t.method}[k] in v for k, v in conditions.items())]


def test_plans_have_distinct_cells_all_seven_methods_and_no_group_of_fewer_than_two_environments():
    for scale in ("small", "paper"):
        trials = paper.plan(scale)
        assert len({t.trial_id for t in trials}) == len(trials)
        gaussian = [t for t in trials if t.dataset.endswith("/gaussian")]
        assert len({t.method for t in gaussian}) == 7
        assert {settings(t)["environments"] for t in gaussian} == {3, 6, 9, 12, 15}
        assert all(settings(t)["environments"] >= 6 for t in gaussian if t.method.endswith("disjoint"))
        assert all(t.dataset.startswith("iterative_feature_matching/") for t in trials)


def test_the_exact_rule_and_mean_matching_meet_their_claims_and_the_rest_is_missing_not_made_up():
    results = results_of(
        chosen("exact_scaling", method=("exact IFM",), d_spu=(8, 32))
        + chosen("exact_scaling", method=("mean matching",), d_spu=(32,))
        + chosen("exact_scaling", method=("mean matching at E",))
        + chosen("exact_samples", n=(800, 5000)),
        paper.run,
    )
    claims = {c.name: c for c in paper.claims(results, "small")}
    exact = [c for name, c in claims.items() if name.startswith(("Exact IFM", "Means alone", "Pooled"))]
    assert len(exact) == 15  # two sizes, six of exactness, seven of means
    assert all(c.holds for c in exact), [c for c in exact if not c.holds]
    assert claims["Exact rule on 5,000 points an environment, flip accuracy"].holds
    rest = [c for c in claims.values() if c not in exact and "Exact rule" not in c.name]
    assert all(math.isnan(c.measured) and not c.holds for c in rest)
    titles = [f.title for f in paper.figures(results)]  # drawn although most cells are missing
    assert len(titles) == len(set(titles)) == 2


def test_a_gaussian_cell_is_repeatable_and_selects_by_validation():
    trials = [
        cell("iterative_feature_matching/gaussian", m, environments=3, seeds=2, steps=30) for m in ("CORAL", "ERM")
    ]
    rows = paper.run(trials[0])
    assert rows == paper.run(trials[0])
    results = results_of(trials, paper.run)
    where = {"method": "CORAL", "environment": "seed0"}
    each = [results.mean(f"flip_accuracy(lam={lam:g})", **where) for lam in (0.1, 1, 10)]
    assert results.mean("flip_accuracy", **where) in each
    assert results.mean("best_flip_accuracy", **where) == max(each)
    assert results.mean("accuracy", method="ERM", split="out") > 0.99
    assert results.mean("flip_accuracy", method="ERM") < 0.1


def test_a_matched_network_and_its_baseline_learn_noised_digits():
    trials = [cell("iterative_feature_matching/noised_mnist", m, steps=25, lam=1.0) for m in ("ERM", "matched, all")]
    results = results_of(trials, paper.run)
    for method in ("ERM", "matched, all"):
        assert results.mean("accuracy", method=method, split="in") > 0.9
        assert results.mean("accuracy", method=method, split="out") > 0.8
    test = [results.mean("accuracy", method=m, split="test") for m in ("ERM", "matched, all")]
    assert 0.2 < test[0] < 0.8
    assert test[0] != test[1]


def test_a_trial_of_another_paper_is_refused():
    with pytest.raises(InputError, match="experiment: unknown 'other/gaussian'"):
        paper.run(cell("other/gaussian", "ERM"))
