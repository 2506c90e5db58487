import email.utils
import time
from dataclasses import replace

import pytest

from vlm.config import EndpointRuntime
from vlm.endpoint.client import Answer, Endpoint, Failed
from vlm.endpoint.request import Request
from vlm.errors import Unusable

from ..scripted import TIMEOUT

REQUEST = Request([{"role": "user", "content": "Captions:\na dog"}], "m", 10, 0.5, {"image": "i"}, 1)
SECRET = "sk-secret-1234567890"


@pytest.fixture
def client(endpoint, monkeypatch):
    monkeypatch.setenv("A_KEY", SECRET)
    return lambda **runtime: Endpoint(
        EndpointRuntime(base_url=endpoint.url, key_variable="A_KEY", timeout=TIMEOUT, **runtime), "at"
    )


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_comes_whole_with_its_counts(client, endpoint, stream):
    endpoint.answer = lambda body, nth: "ja 是\n  nein"
    assert client(stream=stream).ask(REQUEST) == Answer("ja 是\n  nein", "stop", 1000, 100)
    assert endpoint.keys == {SECRET}
    sent = {name: endpoint.body[name] for name in ("model", "messages", "max_tokens", "temperature")}
    assert sent == {"model": "m", "messages": REQUEST.messages, "max_tokens": 10, "temperature": 0.5}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "passes", "may_cost"),
    [
        ("429", True, False),
        ("500", True, False),
        ("503", True, False),
        ("400", False, False),
        ("timeout", True, True),
        ("cut", True, True),
        ("malformed", True, True),
    ],
)
def test_each_fault_says_whether_it_passes_and_may_cost_without_the_key(
    client, endpoint, fault, passes, may_cost, stream
):
    endpoint.faults, endpoint.fault_kinds = 1.0, (fault,)
    with pytest.raises(Failed) as failed:
        client(stream=stream).ask(REQUEST)
    assert (failed.value.passes, failed.value.may_cost) == (passes, may_cost)
    assert SECRET not in str(failed.value)


@pytest.mark.parametrize("status", ["401", "403", "404"])
def test_what_no_request_can_mend_is_unusable(client, endpoint, status):
    endpoint.faults, endpoint.fault_kinds = 1.0, (status,)
    with pytest.raises(Unusable, match=status) as problem:
        client().ask(REQUEST)
    assert SECRET not in str(problem.value)


def test_retry_after_is_a_number_or_a_date(client, endpoint):
    endpoint.faults, endpoint.fault_kinds = 1.0, ("429",)
    for said, wait in (
        ("7", 7),
        (email.utils.formatdate(time.time() + 30, usegmt=True), 30),
        ("soon", 0),
        ("1e9", 3600),
    ):
        endpoint.retry_after = said
        with pytest.raises(Failed) as failed:
            client().ask(REQUEST)
        assert failed.value.wait == pytest.approx(wait, abs=2)


def test_other_models_name_the_limit_otherwise_and_take_no_temperature(client, endpoint):
    client(max_tokens_name="max_completion_tokens").ask(replace(REQUEST, temperature=None))
    assert endpoint.body["max_completion_tokens"] == 10
    assert {"max_tokens", "temperature"} & {*endpoint.body} == set()


def test_a_stream_that_drips_beyond_the_timeout_is_given_up(client, endpoint, monkeypatch):
    endpoint.answer = lambda body, nth: "word " * 60
    chunk = endpoint._server.RequestHandlerClass.chunk

    def slow(self, data):
        time.sleep(0.05)
        chunk(self, data)

    monkeypatch.setattr(endpoint._server.RequestHandlerClass, "chunk", slow)
    with pytest.raises(Failed, match=r"more than 0\.5 s"):
        client(stream=True).ask(REQUEST)


def test_nobody_there_costs_nothing(endpoint):
    endpoint.close()
    with pytest.raises(Failed, match="connection broke") as failed:
        Endpoint(EndpointRuntime(base_url=endpoint.url), "at").ask(REQUEST)
    assert (failed.value.passes, failed.value.may_cost) == (True, False)


def test_a_far_endpoint_needs_a_key_and_its_address_none(monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(Unusable, match="the environment has no NO_KEY"):
        Endpoint(EndpointRuntime(base_url="https://example.org/v1", key_variable="NO_KEY"), "at")
    with pytest.raises(Unusable, match="holds a secret"):
        EndpointRuntime(base_url="https://me:secret@example.org/v1")
    with pytest.raises(Unusable, match="at.base_url has no value"):
        Endpoint(EndpointRuntime(), "at")
