from dataclasses import replace

from vlm.endpoint.request import Request

REQUEST = Request([{"role": "user", "content": "What?"}], "m", 10, 0.7, {"image": "i", "kind": "k"}, 1)


def test_requests_are_equal_if_they_say_the_same_and_a_second_attempt_is_another():
    changes = [
        {"messages": [{"role": "user", "content": "Why?"}]},
        {"model": "n"},
        {"max_tokens": 11},
        {"temperature": None},
        {"about": {"image": "j", "kind": "k"}},
        {"attempt": 2},
    ]
    assert len({REQUEST.hash, *(replace(REQUEST, **change).hash for change in changes)}) == 7
    assert replace(REQUEST, about={"kind": "k", "image": "i"}).hash == REQUEST.hash
