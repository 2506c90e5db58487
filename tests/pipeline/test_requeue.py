import pytest

from vlm.errors import Hindered, Stopped, Unusable
from vlm.pipeline import requeue
from vlm.pipeline.requeue import Leg, Limits, decide

LIMITS = Limits(max_requeues=5, max_failures=3, max_idle_failures=1, retry_seconds=10)


def failed(*progress: int) -> list[Leg]:
    return [Leg(i, 137, step, is_failure=True, put_back=True) for i, step in enumerate(progress)]


def after(status: int, before: list[Leg], progress: int = 100) -> tuple[bool, int]:
    leg = decide(status, "", progress, len(before), before, LIMITS)
    return leg.put_back, leg.delay


@pytest.mark.parametrize("status", [0, 1, 2])
def test_what_is_done_or_would_come_again_is_not_put_back(status):
    assert after(status, []) == (False, 0)


def test_a_rank_that_was_killed_because_another_ended_does_not_hide_the_reason(tmp_path, monkeypatch):
    left = tmp_path / "verdict"
    monkeypatch.setenv(requeue.VERDICT, str(left))
    requeue.leave_verdict(Hindered("lost"))
    assert requeue.take_verdict(left, 137) == (137, "")
    requeue.leave_verdict(Stopped("saved"))
    assert requeue.take_verdict(left, 143) == (3, "saved")
    for problem in (Stopped("saved"), Unusable("bad data")):
        requeue.leave_verdict(problem)
    assert requeue.take_verdict(left, 137) == (1, "bad data")
    assert requeue.take_verdict(left, 137) == (137, "")
    assert decide(1, "bad data", 5, 0, [], LIMITS).why == "bad data"


def test_what_was_saved_at_a_signal_goes_on_at_once_but_not_for_ever():
    stopped = [Leg(i, Stopped.status, 10 * i, put_back=True) for i in range(5)]
    assert after(Stopped.status, stopped[:4]) == (True, 0)
    assert after(Stopped.status, stopped) == (False, 0)


@pytest.mark.parametrize("status", [9, 137, 139, Hindered.status])
def test_failures_are_put_back_with_growing_delay_up_to_a_limit(status):
    assert after(status, []) == (True, 10)
    assert after(status, failed(10)) == (True, 20)
    assert after(status, failed(10, 20)) == (True, 40)
    assert after(status, failed(10, 20, 30)) == (False, 0)


def test_a_failure_without_progress_since_the_last_is_final():
    assert after(137, failed(10), progress=10) == (False, 0)
    saved = [*failed(10), Leg(1, Stopped.status, 20, put_back=True)]
    assert after(137, saved, progress=20) == (True, 20)


def test_progress_is_the_newest_checkpoint_or_the_files_that_are_there(tmp_path):
    partial = tmp_path / "03_pretrain.partial"
    assert requeue.progress_of(tmp_path / "03_pretrain") == 0
    for name in ("step_000002", "step_000010", "step_000012.tmp"):
        (partial / "checkpoints" / name).mkdir(parents=True)
    assert requeue.progress_of(tmp_path / "03_pretrain") == 10
    (tmp_path / "02_shard.partial").mkdir()
    (tmp_path / "02_shard.partial/000000.tar").touch()
    assert requeue.progress_of(tmp_path / "02_shard") == 1
