"""Spectra, layouts, tables and cosines against closed forms."""

import numpy as np
import pytest
import torch

from lightning_modules.dynamics.geometry.associative import AssociativeMemory, memory_complexity
from lightning_modules.dynamics.geometry.cosines import (
    distance_correlation,
    distance_profile,
    edge_cosine,
    end_cosines,
    path_cosines,
)
from lightning_modules.dynamics.geometry.node2vec import Node2VecSpectral, gradient_matrix, objective
from lightning_modules.dynamics.geometry.recall import neighbour_recall, top_k_recall
from lightning_modules.dynamics.geometry.spectrum import laplacian_spectrum, transition_matrix
from lightning_modules.errors import InputError
from lightning_modules.sequence.graphs import Graph, cycle, grid, path_star

GRAPHS = {"cycle": cycle(15), "star": path_star(4, 5), "grid": grid(4, 4)}


def test_the_gradient_is_c_v():
    for graph in GRAPHS.values():
        r = torch.from_numpy(transition_matrix(graph))
        v = torch.from_numpy(np.random.default_rng(0).standard_normal((graph.n, 7))).requires_grad_()
        (gradient,) = torch.autograd.grad(objective(v, r), v)
        assert (gradient - gradient_matrix(v, r) @ v).abs().max() < 1e-12


def test_spectra_are_the_known_ones():
    for n in (5, 8, 15):
        expected = np.sort(-2 + 2 * np.cos(2 * np.pi * np.arange(n) / n))[::-1]
        assert np.abs(laplacian_spectrum(cycle(n)).values - expected).max() < 1e-12
    star, square = laplacian_spectrum(GRAPHS["star"]), laplacian_spectrum(GRAPHS["grid"])
    assert star.values[:5] == pytest.approx([0.062, -0.095, -0.095, -0.095, -0.5], abs=5e-4)
    assert square.values[:3] == pytest.approx([0.021, -0.414, -0.414], abs=5e-4)
    assert (laplacian_spectrum(GRAPHS["cycle"]).kept, star.kept, square.kept) == (3, 4, 3)
    for graph in GRAPHS.values():
        found = laplacian_spectrum(graph)
        r = transition_matrix(graph)
        assert np.abs((r + r.T - 2 * np.eye(graph.n)) @ found.vectors - found.vectors * found.values).max() < 1e-12
        assert sum(map(len, found.groups)) == graph.n


def test_layouts_fall_onto_the_first_eigenvectors():
    fits = Node2VecSpectral().fit_many(list(GRAPHS.values()), [7, 7, 7])
    for (name, graph), fit in zip(GRAPHS.items(), fits, strict=True):
        spectrum, r = laplacian_spectrum(graph), torch.from_numpy(transition_matrix(graph))
        assert neighbour_recall(torch.from_numpy(fit.v @ fit.v.T), r) == 1.0
        assert spectrum.share(fit.v) >= {"cycle": 0.999, "star": 0.97, "grid": 0.98}[name]
        assert spectrum.share(fit.history[0][1]) == pytest.approx(spectrum.kept / graph.n, abs=0.08)
        assert fit.learned is not None
        assert fit.learned > 5
        table = AssociativeMemory().fit(graph, 2)
        assert table[0] < 0.5
        assert table[1:] == [1.0, 1.0]
    spectrum, fit = laplacian_spectrum(GRAPHS["cycle"]), fits[0]
    energies, left = spectrum.energies(fit.v), np.linalg.norm(fit.c @ spectrum.vectors, axis=0)
    assert energies[1] == pytest.approx(energies[2], rel=1e-3)
    assert energies[3:5].max() < 0.01
    assert left[:3].max() < 1e-3
    assert left[3:5] == pytest.approx(0.060, abs=1e-3)


def test_an_update_is_a_step_along_the_gradient():
    fit = Node2VecSpectral(m=5, lr=0.03, steps=1).fit(cycle(6), 3)
    v, r = torch.from_numpy(fit.history[0][1]), torch.from_numpy(transition_matrix(cycle(6)))
    assert np.array_equal(v, np.random.default_rng(3).standard_normal((6, 5)))
    assert torch.allclose(torch.from_numpy(fit.v), v + 0.03 * gradient_matrix(v, r) @ v, atol=1e-12)
    assert np.allclose(fit.c, gradient_matrix(torch.from_numpy(fit.v), r), atol=1e-12)


def test_graphs_laid_out_together_come_out_as_alone():
    few = Node2VecSpectral(m=20, steps=30)
    together = few.fit_many(list(GRAPHS.values()), [1, 2, 3], marks=(10,))
    for graph, seed, fit in zip(GRAPHS.values(), (1, 2, 3), together, strict=True):
        alone = few.fit(graph, seed, marks=(10,))
        assert np.abs(fit.v - alone.v).max() < 1e-12
        assert np.abs(fit.c - alone.c).max() < 1e-12
        assert [step for step, _ in fit.history] == [0, 10, 30]
        assert fit.learned == alone.learned


def test_memories_cost_what_the_formulas_say():
    graph = path_star(100, 5)
    one, two = memory_complexity(graph, 64, 4), memory_complexity(graph, 64, 4, both=True, tied=False)
    assert one.associative_bits == pytest.approx(400 * np.log2(401))
    assert two.associative_bits == 2 * one.associative_bits
    assert one.associative_norm == 20
    assert two.associative_norm == pytest.approx(20 * np.sqrt(2))
    assert one.geometric_bits == 401 * 64 * 2
    assert two.geometric_norm / one.geometric_norm == pytest.approx(np.sqrt(2))


def test_cosines_of_arms_are_means_over_pairs():
    graph = path_star(3, 4)
    vectors = np.random.default_rng(0).standard_normal((graph.n, 5))
    cosine = lambda a, b: vectors[a] @ vectors[b] / np.linalg.norm(vectors[a]) / np.linalg.norm(vectors[b])  # noqa: E731
    leaves, firsts = [arm[-1] for arm in graph.arms], [arm[1] for arm in graph.arms]
    ends = end_cosines(vectors, leaves, firsts)
    assert ends.table[0, 2] == pytest.approx(cosine(leaves[0], firsts[2]))
    assert ends.diagonal == pytest.approx(np.mean([cosine(a, b) for a, b in zip(leaves, firsts, strict=True)]))
    paths = path_cosines(vectors, graph.arms)
    between = [cosine(a, b) for a in graph.arms[0][1:] for b in graph.arms[1][1:]]
    within = [cosine(a, b) for a in graph.arms[2][1:] for b in graph.arms[2][1:] if a != b]
    assert paths.table[0, 1] == pytest.approx(np.mean(between))
    assert paths.table[2, 2] == pytest.approx(np.mean(within))
    assert edge_cosine(vectors, graph.edges) == pytest.approx(np.mean([cosine(u, v) for u, v in graph.edges]))
    lone = np.eye(graph.n)
    assert end_cosines(lone, leaves, firsts).nearest < 1
    assert path_cosines(lone, graph.arms).diagonal == 0
    arms = np.repeat(np.eye(3), 3, 0)
    pointed = np.concatenate([np.zeros((1, 3)), arms])
    assert path_cosines(pointed, graph.arms).diagonal == pytest.approx(1)
    assert path_cosines(pointed, graph.arms).off_diagonal == 0
    assert end_cosines(pointed, leaves, firsts).nearest == 1


def test_a_circle_of_embeddings_follows_its_distances():
    angles = 2 * np.pi * np.arange(12) / 12
    circle, distances = np.stack([np.cos(angles), np.sin(angles)], 1), cycle(12).distances()
    at, mean = distance_profile(circle, distances)
    assert at.tolist() == [1, 2, 3, 4, 5, 6]
    assert mean == pytest.approx(np.cos(2 * np.pi * at / 12))
    assert distance_correlation(circle, distances) == pytest.approx(1)


def test_recall_counts_a_nodes_own_number_of_targets():
    table = torch.tensor([[0.0, 3.0, 2.0, 1.0], [5.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    sources, targets = np.array([0, 0, 1, 2, 3]), np.array([1, 3, 0, 3, 2])
    table = torch.cat([table, torch.tensor([[1.0, 0.0, 0.0, 0.0]])])
    assert top_k_recall(lambda nodes: table[nodes], sources, targets) == pytest.approx((0.5 + 1 + 1 + 0) / 4)
    targets[1] = 2
    assert top_k_recall(lambda nodes: table[nodes], sources, targets) == pytest.approx((1 + 1 + 1 + 0) / 4)


def test_what_cannot_be_measured_is_said():
    parts = Graph(4, np.array([[0, 1], [2, 3]]))
    for make, message in (
        (lambda: Node2VecSpectral().fit(parts), "not connected"),
        (lambda: Node2VecSpectral().fit(Graph(3, np.array([[0, 1]]))), "node 2 has no edge"),
        (lambda: laplacian_spectrum(parts), "not connected"),
        (lambda: AssociativeMemory().fit(parts), "not connected"),
        (lambda: Node2VecSpectral(m=0), "m, steps"),
        (lambda: Node2VecSpectral(lr=0.0), "lr: is 0.0"),
        (lambda: AssociativeMemory(dim=0), "dim, lr"),
        (lambda: memory_complexity(parts, 1, 1), "2 cells"),
        (lambda: end_cosines(np.eye(3), np.array([], int), np.array([], int)), "no arm"),
        (lambda: path_cosines(np.eye(3), [(0, 1)]), "three nodes"),
        (lambda: distance_correlation(np.eye(3), cycle(3).distances()), "equally far"),
        (lambda: top_k_recall(lambda n: n, np.array([]), np.array([])), "no edge"),
    ):
        with pytest.raises(InputError, match=message):
            make()


def test_neighbours_recalled_are_those_among_as_many_largest_scores():
    r = torch.tensor([[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0.0]])  # a path of three, and a node apart
    scores = torch.tensor([[9, 3, 2, 8], [3, 9, 1, 8], [2, 1, 9, 8], [8, 8, 8, 9.0]])
    # Node 0 has its neighbour first, node 1 both, node 2 ranks 0 before its own; itself and the node apart never count.
    assert neighbour_recall(scores, r) == pytest.approx((1 + 1 + 0) / 3)
    assert scores[0, 0] == 9  # left as they were
