import json
import multiprocessing
import os
import random
import signal
import time

from vlm.instruct.run import generate

from ..scripted import chat_of

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
