import json
from dataclasses import replace

import pytest

from vlm.config import Blind, EndpointRuntime, EvalConfig, JudgeConfig, TaskConfig
from vlm.errors import Unusable
from vlm.eval.judge import judging, verdict_of
from vlm.eval.run import evaluate

from ..scripted import TIMEOUT

PROMPT = "Q {question} R {reference} A {answer}"
SECRET = "sk-of-the-judge-31337"


def points(body: dict, _nth: int) -> str:
    """Ten points for an answer with the number 3, four for others."""
    return f"It says so.\nScore: {10 if '3' in body['messages'][0]['content'].split(' A ')[1] else 4}"


@pytest.fixture
def settings(endpoint, monkeypatch):
    monkeypatch.setenv("A_KEY", SECRET)
    endpoint.answer = points

    def make(**runtime) -> EvalConfig:
        fast = {"timeout": TIMEOUT, "backoff": 0.01, "max_backoff": 0.05, "workers": 4, "key_variable": "A_KEY"}
        judge = JudgeConfig("m", PROMPT, runtime=EndpointRuntime(base_url=endpoint.url, **fast | runtime))
        task = TaskConfig(scorer="judge", max_new_tokens=4, blind=[Blind.shuffled])
        return EvalConfig(tasks={"free": task}, judge=judge)

    return make


@pytest.fixture
def mark(settings, make_question, tmp_path):
    """Return a function that has six answers judged in tmp_path/out."""
    questions = [replace(make_question(number), text="What?", reference="a {answer}") for number in range(6)]
    answers = {question.id: f"it is {number}" for number, question in enumerate(questions)}

    def run(name="out", cache="cache", **runtime):
        (tmp_path / name).mkdir(exist_ok=True)
        with judging(settings(**runtime), tmp_path / cache, tmp_path / name) as judge:
            return judge.mark("free", questions, answers), judge

    return run


def bytes_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_judge_reads_question_reference_and_answer_and_its_points_are_the_marks(mark, endpoint, tmp_path):
    marks, judge = mark()
    assert marks == [0.4, 0.4, 0.4, 1.0, 0.4, 0.4]
    assert endpoint.body["messages"][0]["content"].startswith("Q What? R a {answer} A it is ")
    assert json.loads((tmp_path / "out/judged/free.jsonl").read_text().splitlines()[3]) == {
        "question_id": "q3",
        "points": 10.0,
        "reply": "It says so.\nScore: 10",
        "problem": "",
    }
    assert judge.remark("free", "q0") == "It says so.\nScore: 4"
    assert (judge.lines("free"), judge.lines("other"), judge.as_json("other")) == ([], [], {})


def test_equal_replies_make_equal_files_whatever_goes_wrong_and_none_holds_the_key(mark, endpoint, tmp_path):
    mark("plain")
    endpoint.faults = 0.3
    mark("faulty", "empty")
    calls = len(endpoint.calls)
    mark("cached")
    assert len(endpoint.calls) == calls
    assert {*endpoint.answered.values()} == {2}
    assert bytes_of(tmp_path / "plain") == bytes_of(tmp_path / "faulty") == bytes_of(tmp_path / "cached")
    assert {*bytes_of(tmp_path / "plain")} == {"judged/free.jsonl"}
    assert endpoint.keys == {SECRET}
    assert not any(SECRET.encode() in data for data in bytes_of(tmp_path).values())


def test_a_reply_without_points_is_asked_for_once_more_and_then_named_and_never_a_zero(mark, endpoint):
    bad = {"it is 1": 1, "it is 2": 9}  # how often the reply is bad
    endpoint.answer = lambda body, nth: (
        "Well." if nth < bad.get(body["messages"][0]["content"].split(" A ")[1], 0) else points(body, nth)
    )
    marks, judge = mark()
    assert marks == [0.4, 0.4, None, 1.0, 0.4, 0.4]
    assert sum(endpoint.answered.values()) == 8
    assert list(judge.as_json("free")["judge"]["without_points"]["free"]) == ["q2"]
    assert judge.lines("free")[0].startswith(
        "free: 1 answers have no points and count neither way; q2: its reply has no"
    )


def test_a_spent_cap_ends_the_judging_and_the_next_run_goes_on(mark, endpoint, tmp_path):
    prices = {"input_price": 1000.0, "output_price": 10_000.0}  # a call costs 2, and could cost 4
    with pytest.raises(Unusable, match=r"max_cost=9\.0.*raise eval.judge.runtime.max_cost and run again"):
        mark(max_cost=9.0, workers=2, **prices)
    assert 0 < len(endpoint.calls) < 5
    assert (tmp_path / "out/judge.jsonl").is_file()
    assert mark(max_cost=30.0, **prices)[0] == [0.4, 0.4, 0.4, 1.0, 0.4, 0.4]
    assert {*endpoint.answered.values()} == {1}
    assert not (tmp_path / "out/judge.jsonl").exists()


def test_an_answer_that_waits_for_the_judge_ends_the_evaluation_for_now(mark, endpoint):
    endpoint.faults, endpoint.fault_kinds = 0.5, ("500",)
    with pytest.raises(Unusable, match="answers of free wait for the judge .unanswered: .*: run again"):
        mark(tries=1, workers=1)
    endpoint.faults = 0.0
    assert None not in mark()[0]


def test_what_cannot_be_judged_is_said(settings, make_question, tmp_path, endpoint, mark):
    def judged(cfg, question):
        with judging(cfg, tmp_path / "cache", tmp_path) as judge:
            judge.mark("free", [question], {question.id: "yes"})

    cfg = settings()
    with pytest.raises(Unusable, match="question q0 has no reference answer"):
        judged(cfg, make_question(0, reference=""))
    cfg.judge.model = None
    with pytest.raises(Unusable, match="eval.judge.model has no value"):
        judged(cfg, make_question(0))
    with pytest.raises(Unusable, match="has no {answer}"):
        JudgeConfig(prompt="{question}")
    with pytest.raises(Unusable, match="one group"):
        JudgeConfig(pattern="Score")
    endpoint.answer = lambda body, nth: "I cannot."
    with pytest.raises(Unusable, match="gave no points to any answer of free"):
        mark()
    cfg.tasks["free"].scorer = "none"
    with judging(cfg, tmp_path, tmp_path) as judge:
        assert judge is None


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("Good.\nScore: 7", 7.0),
        ("**Score:** 6.5/10", 6.5),
        ("Score: 3\nNo, better:\n score 8", 8.0),
        ("Score: 11", None),
        ("The score is 7", None),
        ("Score: -2", None),
        ("", None),
    ],
)
def test_points_stand_on_a_line_of_their_own(reply, found):
    verdict = verdict_of(reply, JudgeConfig())
    assert verdict.points == found
    assert bool(verdict.problem) is (found is None)


def test_an_evaluation_with_a_judge_has_scores_with_intervals_and_shows_what_the_judge_said(
    settings, tiny_model, tiny_shards, endpoint, tmp_path
):
    endpoint.answer = lambda body, nth: (
        "Hm." if "square 9?" in str(body) else f"So it is.\nScore: {len(str(body)) % 11}"
    )
    (tmp_path / "04_finetune").mkdir()
    (tmp_path / "04_finetune/model").symlink_to(tiny_model)
    cfg = settings()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        with judging(cfg, tmp_path / f"{name} cache", tmp_path / name) as judge:
            evaluate(cfg, 0, "tiny", tmp_path / "04_finetune", tiny_shards, tmp_path / name, judge)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    found = json.loads((tmp_path / "one/metrics.json").read_text())["tasks"]["free"]
    assert (found["n"], found["metric"]) == (39, "points by a judge")
    assert found["interval"][0] < found["score"] < found["interval"][1]
    assert found["blind"]["shuffled"]["visual_gain"] is not None
    assert found["judge"]["model"] == "m"
    assert {name: list(of) for name, of in found["judge"]["without_points"].items()} == {
        "free": ["q9"],
        "free.shuffled": ["q9"],
    }
    report = (tmp_path / "one/report.html").read_text()
    assert "40 questions, 1 unmarked" in report
    assert "the judge said" in report and "So it is." in report
    assert "Commonest mistakes" not in report
