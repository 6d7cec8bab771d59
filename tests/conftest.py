"""One Ray for the whole test session: starting it takes longer than most tests."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def shiftlab_cache(tmp_path_factory):
    """Keep decoded images out of the user's cache; processes that tests start inherit the choice."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("shiftlab_cache")
        patch.setenv("SHIFTLAB_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def ray_session():
    from cluster.session import connect

    with connect(cpus=2) as ray:
        yield ray
