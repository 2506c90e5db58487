from collections.abc import Iterator

import pytest

from .cluster import Cluster, Unavailable


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster of cluster.py, for all tests together."""
    try:
        with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
            yield cluster
    except Unavailable as reason:
        pytest.skip(f"no SLURM here: {reason}")
