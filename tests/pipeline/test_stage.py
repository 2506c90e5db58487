from pathlib import Path

import pytest

from vlm.pipeline.stage import Stage


def stage_that(work, reads=(), settings=("seed",)) -> Stage:
    return Stage("stages/01_y.py", reads, settings, work)


def test_ctrl_c_is_one_line_and_what_was_done_stands(composed, tmp_path, capsys):
    def work(cfg, inputs, out: Path) -> None:
        if (out / "done").exists():
            return
        (out / "done").touch()
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        stage_that(work).run(composed())
    assert left.value.code == 130
    assert capsys.readouterr().err == "01_y: interrupted; run it again to go on\n"
    stage_that(work).run(composed())
    assert (tmp_path / "r" / "01_y" / "done").exists()


def test_a_stage_works_once_and_is_then_up_to_date(composed, tmp_path, capsys):
    calls = []
    stage = stage_that(lambda cfg, inputs, out: calls.append(out))
    stage.run(composed())
    stage.run(composed())
    assert len(calls) == 1
    assert "up to date" in capsys.readouterr().out
    assert (tmp_path / "r/01_y/artifact.json").is_file()


def test_a_setting_that_what_is_whole_no_longer_follows_is_named(composed, capsys):
    stage = Stage("stages/01_y.py", (), ("seed",), lambda cfg, inputs, out: None, when_new="data.preview")
    stage.run(composed("data.preview=3"))
    stage.run(composed("data.preview=3"))
    assert capsys.readouterr().out.endswith("is up to date\n")
    stage.run(composed("data.preview=7"))
    said = capsys.readouterr().out
    assert "up to date with data.preview=3" in said
    assert "data.preview=7 counts in a new run=" in said
    assert said.count("\n") == 1


def test_a_changed_setting_is_refused_by_name_in_one_line(composed):
    stage = stage_that(lambda cfg, inputs, out: None)
    stage.run(composed())
    with pytest.raises(SystemExit) as refused:
        stage.run(composed("seed=7"))
    assert "seed=0, not 7" in refused.value.code
    assert "\n" not in refused.value.code


def test_only_when_asked_a_whole_artifact_is_gone_on_with_and_only_where_it_may_grow(composed, tmp_path):
    found = []
    stage = Stage(
        "stages/01_y.py",
        (),
        ("seed", "finetune"),
        lambda cfg, inputs, out: found.append(len(list(out.glob("step"))) or (out / "step").write_text("")),
        may_grow=("finetune.epochs",),
    )
    stage.run(composed("finetune.epochs=1"))
    for refused in (["finetune.epochs=2"], ["finetune.epochs=2", "seed=7", "extend=true"]):
        with pytest.raises(SystemExit, match="epochs=1.0, not 2.0|seed=0, not 7"):
            stage.run(composed(*refused))
    stage.run(composed("finetune.epochs=2", "extend=true"))
    assert found == [0, 1]
    stage.run(composed("finetune.epochs=2"))
    assert found == [0, 1] and not (tmp_path / "r/01_y.partial").exists()


def test_a_stage_that_is_not_done_in_shares_refuses_one(composed, tmp_path):
    with pytest.raises(SystemExit, match="part=0/2: this stage is not done in shares"):
        stage_that(lambda cfg, inputs, out: None).run(composed("part=0/2"))
    assert not list(tmp_path.glob("r/*"))


def test_a_missing_input_names_the_stage_to_run(composed):
    stage = stage_that(lambda cfg, inputs, out: None, reads=("00_x",))
    with pytest.raises(SystemExit) as missing:
        stage.run(composed())
    assert "python stages/00_x.py run=r" in missing.value.code


def test_an_input_made_anew_makes_the_artifact_stale(composed):
    first = Stage("stages/00_x.py", (), ("seed",), lambda cfg, inputs, out: None)
    second = stage_that(lambda cfg, inputs, out: None, reads=("00_x",), settings=("run",))
    first.run(composed())
    second.run(composed())
    root = Path(composed().runs) / "r"
    (root / "00_x").rename(root / "old")
    first.run(composed("seed=7"))
    with pytest.raises(SystemExit) as stale:
        second.run(composed())
    assert "another 00_x" in stale.value.code
