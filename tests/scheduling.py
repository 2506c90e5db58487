"""How the tests are shared out among several processes: `pytest -n auto`, with pytest-xdist.

Each test is work of its own, the slow ones first, so that no long one is left over for the end. What is in TOGETHER is
done by one process each, and begun before all else: a machine has room for one SLURM, and the rest would be made in
every process. (pytest-xdist's own marks for this do nothing under pytest 9.2.)
"""

import os

import pytest
from xdist.scheduler import LoadScopeScheduling

TOGETHER = (
    "tests/slurm/",  # the cluster; these tests mostly wait
    "tests/stages/test_pipeline.py",  # a run of all stages
    "tests/stages/test_eval.py",
    "tests/instruct/test_served.py",  # a server
)


class SharedOut(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        """Return what a test is done together with: itself alone, as a rule."""
        return next((place for place in TOGETHER if nodeid.startswith(place)), nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> SharedOut:
    return SharedOut(config, log)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes `-n auto` means: one more than there are cores, since many tests wait for others.

    What is chosen by its place or name stays in this process: a few tests are over before others have started.
    """
    chosen = config.args_source is not pytest.Config.ArgsSource.TESTPATHS or config.option.keyword
    return 0 if chosen else len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)
