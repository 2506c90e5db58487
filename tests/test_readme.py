"""Every command and path that README.md names exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PATHS = sorted(
    set(re.findall(r"(?:launch|stages|conf|vlm|tests|benchmarks)/[\w./]*\w", README))
    - {"conf/data/mine.yaml", "conf/model/mine.yaml", "conf/experiment/mine.yaml"}
)


@pytest.mark.parametrize("path", PATHS)
def test_a_named_path_exists(path):
    assert (ROOT / path).exists()


def test_there_are_paths_to_check():
    assert {"launch/all.sh", "launch/test.sh", "stages/03_pretrain.py"} <= set(PATHS)
