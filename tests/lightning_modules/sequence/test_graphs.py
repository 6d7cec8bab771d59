"""Graphs, files of them, and the examples that are made of them."""

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch

from lightning_modules.errors import InputError
from lightning_modules.sequence.graph_files import from_edge_list, read_queries
from lightning_modules.sequence.graphs import Graph, cycle, grid, path_star, rooted, tree_star
from lightning_modules.sequence.path_tasks import NOTHING, InWeightsDataset


def test_a_path_star_has_the_papers_numbers_of_nodes_and_edges():
    graph = path_star(100, 5)
    assert (graph.n, len(graph.edges), len(graph.arms)) == (401, 400, 100)
    assert path_star(5000, 5).n == 20_001
    degrees = np.bincount(graph.edges.ravel(), minlength=graph.n)
    assert degrees[graph.root] == 100
    assert sorted(set(degrees)) == [1, 2, 100]
    nodes = [node for arm in graph.arms for node in arm[1:]]
    assert len(nodes) == len(set(nodes)) == 400
    edges = {tuple(edge) for edge in graph.edges.tolist()}
    assert {pair for arm in graph.arms for pair in zip(arm, arm[1:], strict=False)} == edges


def test_a_seed_renumbers_the_nodes_and_changes_nothing_else():
    plain, one, other = path_star(5, 4), path_star(5, 4, 1), path_star(5, 4, 2)
    assert one.arms == path_star(5, 4, 1).arms != other.arms
    assert plain.root == 0
    assert {one.root, other.root} != {0}
    assert sorted(np.bincount(one.edges.ravel())) == sorted(np.bincount(plain.edges.ravel()))
    assert all(one.shortest_path(one.root, arm[-1]) == arm for arm in one.arms)


def test_tree_stars_branch_below_the_root():
    graph = tree_star(3, 4, 2)
    assert graph.n == 1 + 3 * (1 + 2 + 4)
    assert len(graph.arms) == 12
    assert len({arm[1] for arm in graph.arms}) == 3
    assert all(graph.shortest_path(0, arm[-1]) == arm for arm in graph.arms)
    plain = tree_star(4, 5, 1)
    assert [len(arm) for arm in plain.arms] == [5] * 4
    assert (np.sort(plain.distances().ravel()) == np.sort(path_star(4, 5).distances().ravel())).all()


def test_distances_are_those_of_known_graphs():
    ring = cycle(7).distances()
    gap = np.abs(np.subtract.outer(np.arange(7), np.arange(7)))
    assert (ring == np.minimum(gap, 7 - gap)).all()
    at = np.stack(np.divmod(np.arange(12), 4), 1)
    assert (grid(3, 4).distances() == np.abs(at[:, None] - at).sum(2)).all()
    assert (Graph(4, np.array([[0, 1], [2, 3]])).distances() < 0).sum() == 8
    assert (rooted(grid(1, 4), 0).arms) == ((0, 1, 2, 3),)


@pytest.mark.parametrize("suffix", ["txt", "csv", "arrow", "feather", "parquet"])
def test_files_of_edges_are_read_by_name_with_a_root_and_queries(tmp_path, suffix):
    rows = [("hub", "a1"), ("a2", "a1"), ("hub", "b1"), ("b1", "b2"), ("b1", "hub")]
    file = tmp_path / f"graph.{suffix}"
    table = pa.table({"u": [u for u, _ in rows], "v": [v for _, v in rows]})
    if suffix == "parquet":
        pq.write_table(table, file)
    elif suffix in ("arrow", "feather"):
        pyarrow.feather.write_feather(table, file)
    else:
        file.write_text("# mine\n\n" + "\n".join((", " if suffix == "csv" else " ").join(row) for row in rows))
    graph = from_edge_list(file, "hub")
    names = [[graph.name(node) for node in arm] for arm in graph.arms]
    assert names == [["hub", "a1", "a2"], ["hub", "b1", "b2"]]
    assert len(graph.edges) == 4  # one row was there twice
    outwards = {(graph.name(u), graph.name(v)) for u, v in graph.edges}
    assert outwards == {("hub", "a1"), ("a1", "a2"), ("hub", "b1"), ("b1", "b2")}
    questions = tmp_path / "queries.txt"
    questions.write_text("a2,b2\nhub,b1\n")
    answers = read_queries(questions, graph)
    questions.write_text("source,target\na2,b2\nhub,b1\n")
    assert read_queries(questions, graph) == answers
    assert [[graph.name(node) for node in path] for path in answers] == [["a2", "a1", "hub", "b1", "b2"], ["hub", "b1"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no edges"),
        ("a b\na b c\n", "row 2: has 3 words; give two names"),
        ("a a\n", "row 1: joins a to itself"),
    ],
)
def test_bad_rows_are_named(tmp_path, text, message):
    file = tmp_path / "graph.txt"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        from_edge_list(file)


def test_what_a_graph_cannot_be_is_said(tmp_path):
    for make, message in (
        (lambda: path_star(1, 5), "arms: 1; give 2 or more"),
        (lambda: path_star(5, 2), "length: 2 nodes"),
        (lambda: tree_star(3, 4, 0), "branch: is 0"),
        (lambda: cycle(2), "give 3 or more"),
        (lambda: grid(0, 3), "2 nodes or more"),
        (lambda: Graph(3, np.array([[0, 1], [1, 0]])), "given twice"),
        (lambda: Graph(3, np.array([[0, 3]])), "from 0 to 2"),
        (lambda: Graph(3, np.array([[0, 0]])), "to itself"),
        (lambda: Graph(3, np.array([[0, 1]])).check_connected(), "node 2 has no edge"),
        (lambda: Graph(4, np.array([[0, 1], [2, 3]])).check_connected(), "node 2 is not connected with 0"),
        (lambda: from_edge_list(tmp_path / "none"), "there is no file"),
        (lambda: rooted(cycle(5), 0), "no arm ends"),
    ):
        with pytest.raises(InputError, match=message):
            make()
    file = tmp_path / "graph.txt"
    file.write_text("a b\nc d\n")
    with pytest.raises(InputError, match="none called 'z'"):
        from_edge_list(file, "z")
    questions = tmp_path / "q.txt"
    for text, message in (("a z\n", "row 1: node: the graph has none"), ("a d\n", "no path leads from a to d")):
        questions.write_text(text)
        with pytest.raises(InputError, match=message):
            read_queries(questions, from_edge_list(file))
    (tmp_path / "bad.parquet").write_text("no table")
    with pytest.raises(InputError, match="cannot be read"):
        from_edge_list(tmp_path / "bad.parquet")


def test_examples_ask_for_what_the_options_say():
    graph = path_star(8, 4, 3)
    both, forward, backward = (InWeightsDataset(graph, directions=d) for d in ("both", "forward", "backward"))
    assert (len(both.edges), len(forward.edges)) == (48, 24)
    assert (forward.edges == backward.edges.flip(1)).all()
    assert both.vocabulary == graph.n + 3
    arms = torch.tensor(graph.arms)
    assert (both.paths[:, 0] == both.path_token).all()
    assert (both.paths[:, 1] == arms[:, -1]).all()
    assert (both.paths[:, 2:4] == both.pause_token).all()
    assert (both.paths[:, 4:] == arms).all()
    reverse = InWeightsDataset(graph, 0, target="reverse")
    assert (reverse.paths[:, 2:] == arms.flip(1)).all()
    hardest = InWeightsDataset(graph, 1, target="hardest")
    assert (hardest.paths[:, 3:] == arms[:, 1:2]).all()
    assert not (both.paths[:, : both.prefix] == graph.root).any()  # a question does not tell the root
    for data in (both, reverse, hardest):
        answers = data.paths[:, data.prefix :]
        assert (answers.gather(1, data.first[:, None])[:, 0] == arms[:, 1]).all()


def test_held_out_paths_are_not_trained_but_all_edges_are():
    graph = path_star(20, 5, 0)
    data = InWeightsDataset(graph, seed=1)
    assert (len(data.train), len(data.held_out)) == (15, 5)
    assert not set(data.train.tolist()) & set(data.held_out.tolist())
    assert data.train.tolist() != InWeightsDataset(graph, seed=2).train.tolist()
    pairs = {tuple(edge) for edge in data.edges.tolist()}
    for row in data.held_out.tolist():
        arm = graph.arms[row]
        assert all((u, v) in pairs and (v, u) in pairs for u, v in zip(arm, arm[1:], strict=False))
    leaves, firsts = data.held_out_ends()
    assert [(graph.arms[row][-1], graph.arms[row][1]) for row in data.held_out] == list(
        zip(leaves, firsts, strict=True)
    )
    tree = tree_star(8, 4, 2, 0)
    split = InWeightsDataset(tree, split_by="first")
    first = np.array([arm[1] for arm in tree.arms])
    assert len(split.train) == 24
    assert not set(first[split.train]) & set(first[split.held_out])


def test_queries_are_asked_by_both_ends_and_may_differ_in_length(tmp_path):
    graph = cycle(6)
    data = InWeightsDataset(graph, 1, target="reverse", queries=((0, 1, 2, 3), (4, 5)), train_fraction=0.5)
    assert data.prefix == 4
    assert data.paths.tolist() == [[7, 0, 3, 8, 3, 2, 1, 0], [7, 4, 5, 8, 5, 4, NOTHING, NOTHING]]
    assert data.first.tolist() == [2, 0]
    assert data.ask("4", "5").tolist() == [[7, 4, 5, 8]]
    assert data.spell(data.paths[1:, 4:]) == [["5", "4", "NOTHING", "NOTHING"]]
    with pytest.raises(InputError, match="1 names; give source and target"):
        data.ask("4")
    assert InWeightsDataset(path_star(3, 4), 1).ask("3").tolist() == [[11, 3, 12]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directions": "up"}, "directions: unknown 'up'; choose from both"),
        ({"target": "leaf"}, "target: unknown"),
        ({"split_by": "root"}, "split_by: unknown"),
        ({"pauses": -1}, "pauses: is -1"),
        ({"train_fraction": 0.0}, "train_fraction: is 0.0"),
        ({"train_fraction": 0.01}, "of 8 paths is none"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        InWeightsDataset(path_star(8, 4), **options)
