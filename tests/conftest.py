"""One Ray for the whole test session: starting it takes longer than most tests."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def ray_session():
    from cluster.session import connect

    with connect(cpus=2) as ray:
        yield ray
