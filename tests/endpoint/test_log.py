import json

import pytest

from vlm.endpoint.log import Cache, Log
from vlm.errors import Unusable


def answered(request: str, text: str = "ja 是") -> dict:
    return {"request": request, "answer": text, "prompt_tokens": 3, "answer_tokens": 2, "cost": 0.5}


def test_what_was_appended_is_found_again_after_reopening(tmp_path):
    log = Log(tmp_path / "log")
    log.append(answered("a"))
    log.append({"request": "b", "error": "500", "cost": 0.25})
    log.append({"request": "b", "error": "500", "reason": "unanswered", "cost": 0.25})
    for found in (log, Log(tmp_path / "log")):
        assert found.answer("a")["answer"] == "ja 是"
        assert found.answer("b") is None
        assert found.given_up("b")["reason"] == "unanswered"
        assert (found.cost, found.calls, found.prompt_tokens, found.answer_tokens) == (1.0, 3, 3, 2)


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_a_line_that_an_interrupted_run_left_unfinished_is_dropped(tmp_path, cut):
    log = Log(tmp_path / "log")
    log.append(answered("a"))
    whole = (tmp_path / "log").read_bytes()
    log.append(answered("b"))
    (tmp_path / "log").write_bytes((tmp_path / "log").read_bytes()[:-cut])
    log = Log(tmp_path / "log")
    assert (tmp_path / "log").read_bytes() == whole
    log.append(answered("c", "x"))
    assert (log.answer("b"), log.answer("c")["answer"]) == (None, "x")


@pytest.mark.parametrize("damage", [b"{]\n", b"[]\n", b'{"answer": "x"}\n'])
def test_damage_elsewhere_is_named(tmp_path, damage):
    (tmp_path / "log").write_bytes(json.dumps(answered("a")).encode() + b"\n" + damage)
    with pytest.raises(Unusable, match="line 2 is damaged"):
        Log(tmp_path / "log")


def test_the_cache_gives_back_what_it_got_and_nothing_from_a_damaged_file(tmp_path):
    cache = Cache(tmp_path)
    assert cache.get("ab1") is None
    cache.put("ab1", {"answer": "ja"})
    assert Cache(tmp_path).get("ab1") == {"answer": "ja"}
    next(tmp_path.rglob("ab1*")).write_text('{"answer')
    assert cache.get("ab1") is None
