"""Demands that the nodes at hand can hold pass without a word; without an autoscaler others are warned of."""

from cluster.feasibility import check_feasible, node_types


def test_what_a_node_can_hold_passes(ray_session, capsys):
    check_feasible(ray_session, {"CPU": 1, "GPU": 0})
    check_feasible(ray_session, {"CPU": 2})
    assert capsys.readouterr().err == ""


def test_without_an_autoscaler_a_node_may_still_join(ray_session, capsys):
    assert node_types(ray_session) == {}
    check_feasible(ray_session, {"CPU": 1, "GPU": 8}, "the training")
    assert capsys.readouterr().err == (
        "the training needs 1 CPU and 8 GPU on one node, which no node has now; waiting for one to join\n"
    )
