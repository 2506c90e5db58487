import json
from collections import Counter

import pytest

from vlm.config import DataConfig, SourceConfig, SplitConfig
from vlm.data.index import Split
from vlm.data.shards import build
from vlm.errors import Unusable
from vlm.instruct.run import generate

PRICES = {"input_price": 1000.0, "output_price": 10_000.0}  # a call of the scripted endpoint costs 2


@pytest.fixture
def run(tmp_path, tiny_tokenizer):
    """Return a function that runs the stage's work in tmp_path/out."""

    def work(cfg, name="out"):
        (tmp_path / name).mkdir(exist_ok=True)
        return generate(cfg, 0, tiny_tokenizer, tmp_path / "cache", tmp_path / name)

    return work


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("stream", [False, True])
def test_every_picture_gets_a_sample_of_each_kind_whatever_the_endpoint_does(settings, endpoint, run, tmp_path, stream):
    endpoint.faults = 0.3
    figures = run(settings(stream=stream))
    assert {*endpoint.calls} == {"ok", "429", "500", "timeout", "cut", "malformed", "slow"}
    assert sum(call != "ok" for call in endpoint.calls) >= 0.29 * len(endpoint.calls)
    records = json.loads((tmp_path / "out/corpora/captions.json").read_text())
    ids = [record["id"] for record in records] + [reject["id"] for reject in lines(tmp_path / "out/rejects.jsonl")]
    names = ("conversation", "detail", "reasoning")
    assert sorted(ids) == sorted(f"{number:02d}.png#{kind}" for number in range(12) for kind in names)
    assert figures["samples"] + figures["rejected"] == 36
    assert set(figures["reasons"]) <= {"unanswered"}
    assert {*endpoint.answered.values()} == {1}  # nothing that was answered is asked again
    assert figures["calls"] == len(endpoint.calls)


def test_a_bad_answer_is_asked_for_once_more_and_then_rejected_with_its_reason(settings, endpoint, run, tmp_path):
    bad = {"dog": 1, "cat": 9}  # how often the answer about it is bad

    def answer(body, nth):
        thing = body["messages"][-1]["content"].splitlines()[1].split()[-1]
        is_bad = nth < bad.get(thing, 0)
        return "Question: What is it?\nAnswer: The caption says it is a cat." if is_bad else good(body, nth)

    good, endpoint.answer = endpoint.answer, answer
    cfg = settings(limit=3)
    cfg.kinds = {"reasoning": cfg.kinds["reasoning"]}
    figures = run(cfg)
    assert figures["reasons"] == {"length": 1}
    assert [one["id"] for one in json.loads((tmp_path / "out/corpora/captions.json").read_text())] == [
        "00.png#reasoning",
        "02.png#reasoning",
    ]
    assert lines(tmp_path / "out/rejects.jsonl")[0]["id"] == "01.png#reasoning"
    assert sum(endpoint.answered.values()) == 5


@pytest.mark.parametrize(("workers", "faults"), [(1, 0.0), (4, 0.0), (4, 0.3)])
def test_the_cost_never_passes_the_cap_and_all_that_was_answered_is_kept(
    settings, endpoint, run, tmp_path, workers, faults
):
    endpoint.faults = faults
    cfg = settings(max_cost=41.0, workers=workers, **PRICES)
    with pytest.raises(Unusable, match=r"max_cost=41\.0.*samples are in .* run again"):
        run(cfg)
    answered = sum(endpoint.answered.values())
    most = 2.0 + 4.0  # a request is only begun if its longest answer could be paid; the prompts here are about 2,000
    written = sum(call not in {"429", "500"} for call in endpoint.calls)  # also those that were lost on the way
    assert 2.0 * written <= 41.0
    assert faults or 41.0 - workers * most <= 2.0 * answered
    assert len(json.loads((tmp_path / "out/corpora/captions.json").read_text())) == answered
    cfg.runtime.max_cost, endpoint.faults = None, 0.0
    assert run(cfg)["samples"] == 36
    assert {*endpoint.answered.values()} == {1}


def test_a_request_that_could_cost_too_much_is_not_sent(settings, endpoint, run):
    figures = run(settings(limit=1, max_request_cost=0.001, **PRICES))
    assert figures["reasons"] == {"too_dear": 3}
    assert endpoint.calls == []


def test_a_dry_run_asks_nothing_and_leaves_nothing(settings, endpoint, run, tmp_path, capsys):
    run(settings(dry_run=True, **PRICES))
    assert endpoint.calls == []
    assert [*(tmp_path / "out").iterdir()] == []
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in said[1:]] == [
        ["conversation", "12"],
        ["detail", "12"],
        ["reasoning", "12"],
        ["all", "36"],
    ]


def test_another_run_takes_its_answers_from_the_cache(settings, endpoint, run, tmp_path):
    run(settings(limit=2))
    figures = run(settings(limit=3), "other")
    assert len(endpoint.calls) == 9
    assert figures["calls"] == 3
    assert Counter(bool(line.get("cached")) for line in lines(tmp_path / "other/requests.jsonl")) == {True: 6, False: 3}


def test_an_endpoint_that_is_down_ends_the_stage_and_the_next_run_goes_on(settings, endpoint, run):
    endpoint.faults, endpoint.fault_kinds = 1.0, ("500",)
    with pytest.raises(Unusable, match=r"in a row had no answer; the endpoint says 500"):
        run(settings(tries=2))
    endpoint.faults = 0.0
    assert run(settings())["samples"] == 36


def test_stage_02_reads_the_output_and_leaves_out_held_out_pictures(settings, run, tmp_path, tiny_chat, captioned):
    run(settings())
    made = SourceConfig(path=str(tmp_path / "out/corpora/captions.json"), images=captioned.images)
    question = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A tree."}]
    (tmp_path / "test.json").write_text(json.dumps([{"image": "05.png", "conversations": question}]))
    data = DataConfig(
        finetune=SplitConfig(sources=[made]),
        exclude=[SourceConfig(path=str(tmp_path / "test.json"), images=captioned.images)],
        exclude_distance=None,
        max_tokens=4096,
    )
    figures = build(data, tiny_chat, 0, tmp_path / "shards")["finetune"]
    assert (figures["samples"], figures["reasons_left_out"]) == (33, {"excluded_same": 3})
    sample = Split(tmp_path / "shards/finetune").read(0).sample
    assert sample.turns[0].text == "<image>\nWhat is in it?"
    assert [sample.extra[name] for name in ("image_id", "kind", "model")] == [0, "conversation", "m"]
