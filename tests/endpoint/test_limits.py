import threading
import time

import pytest

from vlm.endpoint.limits import Pace, Purse, Spent, Stopped


def starts_of(pace: Pace, tokens: int, calls: int) -> list[float]:
    """When calls of several threads may start, in order."""
    started = []

    def call() -> None:
        for _ in range(calls // 4):
            pace.wait(tokens, threading.Event())
            started.append(time.monotonic())

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(started)


@pytest.mark.parametrize(("requests", "tokens"), [(3000.0, None), (None, 300_000.0), (3000.0, 1e9)])
def test_neither_requests_nor_tokens_go_faster_than_allowed(requests, tokens):
    started = starts_of(Pace(requests, tokens), 100, 12)  # 20 ms apart, by either limit
    assert started[-1] - started[0] >= 11 * 0.02 - 0.005


def test_a_pause_holds_every_call_back():
    pace = Pace(None, None)
    pace.pause(0.2)
    before = time.monotonic()
    assert starts_of(pace, 1, 4)[0] - before >= 0.19


def test_a_stop_ends_the_waiting():
    pace, stop = Pace(None, None), threading.Event()
    pace.pause(60)
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(Stopped):
        pace.wait(1, stop)


def test_the_purse_never_gives_more_than_the_cap():
    purse = Purse(1.0, 0.1)
    purse.reserve(0.4)
    purse.reserve(0.4)
    waiting = threading.Thread(target=purse.reserve, args=(0.4,))
    waiting.start()
    time.sleep(0.05)
    assert waiting.is_alive()  # 0.1 + 3 x 0.4 would be too much
    purse.settle(0.4, 0.1)
    waiting.join(1)
    assert not waiting.is_alive()
    purse.settle(0.4, 0.4)
    purse.settle(0.4, 0.4)
    assert purse.spent == pytest.approx(1.0)
    with pytest.raises(Spent):
        purse.reserve(0.01)
