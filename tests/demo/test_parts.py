"""Parts are whole or not there."""

from pathlib import Path

import pytest

from vlm.demo.parts import make_part


def test_a_part_that_exists_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "part").mkdir()
    make_part(tmp_path / "part", lambda folder: pytest.fail("built again"))
    assert capsys.readouterr().out.count("\n") == 1
