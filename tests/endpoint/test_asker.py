import json
import time

import pytest

from vlm.config import EndpointRuntime
from vlm.endpoint.asker import Asker
from vlm.endpoint.limits import Spent
from vlm.endpoint.log import Cache, Log
from vlm.endpoint.request import Request
from vlm.errors import Unusable

from ..scripted import TIMEOUT

REQUESTS = [
    Request(
        [{"role": "system", "content": "Talk."}, {"role": "user", "content": f"Captions:\na {n}"}], "m", 10, None, {}, 1
    )
    for n in range(12)
]


@pytest.fixture
def ask(endpoint, tmp_path):
    """Return a function that asks all requests and returns for each whether it was answered."""

    def run(count: int = 12, **runtime) -> list[bool]:
        fast = {"timeout": TIMEOUT, "backoff": 0.01, "max_backoff": 0.05, "workers": 4}
        log, found = Log(tmp_path / "log"), {}
        asker = Asker(
            EndpointRuntime(base_url=endpoint.url, **fast | runtime), "at", len, log, Cache(tmp_path / "cache")
        )

        def settle(number: int) -> None:
            found[number] = asker.answered(REQUESTS[number], lambda: 1000)

        try:
            asker.ask_all(range(count), settle, lambda: None)
        finally:
            log.close()
        return [found[number] for number in range(count)]

    return run


def test_every_request_is_answered_once_whatever_goes_wrong(ask, endpoint, tmp_path):
    endpoint.faults = 0.3
    assert ask() == [True] * 12
    assert ask() == [True] * 12
    (tmp_path / "log").unlink()
    assert ask() == [True] * 12  # from the cache
    assert {*endpoint.answered.values()} == {1}
    assert all(json.loads(line)["cached"] for line in (tmp_path / "log").read_text().splitlines())


def test_the_pace_holds_at_the_endpoint(ask, endpoint):
    began = time.monotonic()  # not the first arrival: a busy machine may delay that one alone
    ask(requests_per_minute=1200.0, workers=8)
    assert endpoint.starts[-1] - began >= 11 * 0.05


def test_a_429_holds_all_workers_back_for_as_long_as_it_says(ask, endpoint):
    endpoint.faults, endpoint.fault_kinds, endpoint.retry_after = 0.1, ("429",), "0.6"
    ask()
    first = endpoint.calls.index("429")
    gaps = [later - endpoint.starts[first] for later in endpoint.starts[first + 1 :]]
    assert sum(gap < 0.55 for gap in gaps) <= 3  # the calls that the other workers were about to make
    assert max(gaps) >= 0.6


def test_what_the_endpoint_refuses_is_asked_once(ask, endpoint):
    endpoint.faults, endpoint.fault_kinds = 0.5, ("400",)
    first = ask(workers=1)
    calls = len(endpoint.calls)
    assert sum(first) == 6
    assert ask() == first
    assert len(endpoint.calls) == calls == 12


def test_an_endpoint_that_refuses_everything_ends_the_work_and_is_asked_again_once_the_settings_are_mended(
    ask, endpoint
):
    endpoint.faults, endpoint.fault_kinds = 1.0, ("400",)
    with pytest.raises(Unusable, match="requests in a row had no answer; the endpoint says 400"):
        ask()
    assert len(endpoint.calls) < 12
    endpoint.faults = 0.0
    assert ask() == [True] * 12


def test_the_cap_ends_the_work_before_it_is_passed(ask, endpoint):
    prices = {"input_price": 1000.0, "output_price": 10_000.0}  # a call costs 2, and is thought to cost 1.1
    with pytest.raises(Spent, match="max_cost=9"):
        ask(max_cost=9.0, workers=2, **prices)
    assert 9.0 - 2 * 2.0 <= 2.0 * len(endpoint.calls) <= 9.0 + 2 * 2.0
    assert ask(max_cost=None) == [True] * 12
