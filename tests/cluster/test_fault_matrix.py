"""The fault matrix: a few of its cells always, all of it where there is time."""

import pytest

from tests.cluster.fault_matrix import FAULTS, Matrix
from tests.cluster.fault_works import WORKS

SEED = 0


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    with Matrix(tmp_path_factory.mktemp("matrix"), SEED) as found:
        yield found


@pytest.mark.timeout(250)
def test_a_certification_survives_the_loss_of_a_node(matrix):
    """The shortest work, and the loss that takes most with it."""
    assert matrix.cell("certify", "node", moments=1).problems == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("work", WORKS)
def test_every_work_survives_every_loss(matrix, work, fault):
    cell = matrix.cell(work, fault, moments=3)
    assert cell.problems == []
    assert cell.survived == 3
