import json
import multiprocessing
import os
import random
import signal
import time

from vlm.instruct.run import generate

from .conftest import chat_of

SAME = ("corpora/captions.json", "rejects.jsonl", "preview.html")


def recorded(path) -> list[str]:
    """The chats whose answers are in the log, leaving out a last line that is not whole."""
    whole = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.is_file() else []
    return [chat_of(line["messages"]) for line in whole if "answer" in line]


def test_killed_ten_times_the_result_is_the_same_and_no_recorded_answer_is_asked_for_again(
    settings, endpoint, tmp_path, tiny_tokenizer
):
    """In a forked process, whose libraries are there already; tests/instruct/test_stage.py runs the script."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    generate(settings(), 0, tiny_tokenizer, tmp_path / "cache", whole)
    endpoint.faults, endpoint.delay = 0.3, 0.03
    endpoint.fault_kinds = ("429", "500", "cut", "malformed", "slow")
    endpoint.asked.clear(), endpoint.calls.clear()
    at_random, work = random.Random(0), (settings(), 0, tiny_tokenizer, tmp_path / "other", killed)
    kills = []  # the number of calls and the recorded answers at each
    while len(kills) < 10:
        process = multiprocessing.get_context("fork").Process(target=generate, args=work)
        process.start()
        until = len(endpoint.calls) + at_random.randint(3, 6)
        while process.is_alive() and len(endpoint.calls) < until:
            time.sleep(0.002)
        time.sleep(at_random.uniform(0, 0.04))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL  # it was not through
        time.sleep(0.3)  # what it had asked for has ended
        kills.append((len(endpoint.asked), {*recorded(killed / "requests.jsonl")}))
    generate(*work)
    assert len(kills[-1][1]) >= 5
    for asked, answers in kills:
        assert not answers & {*endpoint.asked[asked:]}
    assert len(recorded(killed / "requests.jsonl")) == len({*recorded(killed / "requests.jsonl")}) == 36
    for name in SAME:
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_the_pace_and_the_number_at_once_hold_at_the_endpoint(settings, endpoint, tmp_path, tiny_tokenizer):
    cfg = settings(limit=4, requests_per_minute=1200.0, workers=8)
    generate(cfg, 0, tiny_tokenizer, tmp_path / "cache", tmp_path)
    assert len(endpoint.starts) == 12
    assert endpoint.starts[-1] - endpoint.starts[0] >= 11 * 0.05 - 0.04


def test_a_429_holds_all_workers_back_for_as_long_as_it_says(settings, endpoint, tmp_path, tiny_tokenizer):
    endpoint.faults, endpoint.fault_kinds, endpoint.retry_after = 0.1, ("429",), "0.6"
    generate(settings(limit=4), 0, tiny_tokenizer, tmp_path / "cache", tmp_path)
    first = endpoint.calls.index("429")
    gaps = [later - endpoint.starts[first] for later in endpoint.starts[first + 1 :]]
    assert sum(gap < 0.55 for gap in gaps) <= 3  # the calls that the other workers were about to make
    assert max(gaps) >= 0.6


def test_what_the_endpoint_refuses_is_asked_once(settings, endpoint, tmp_path, tiny_tokenizer):
    endpoint.faults, endpoint.fault_kinds = 1.0, ("400",)
    for _ in range(2):
        figures = generate(settings(limit=4), 0, tiny_tokenizer, tmp_path / "cache", tmp_path)
    assert figures["reasons"] == {"refused": 12}
    assert len(endpoint.calls) == 12
