"""Scenes, questions and the corpus: right answers, a clean split, LLaVA's JSON, the same bytes again."""

import hashlib
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from vlm.demo.corpus import CorpusSize, write_corpus
from vlm.demo.parts import make_part
from vlm.demo.prose import write_document
from vlm.demo.questions import ASKERS, ask, ask_several
from vlm.demo.scenes import COLOURS, KINDS, PIXELS, Scene, Shape, draw, imagine, is_held_out

SMALL = CorpusSize(train_scenes=60, test_scenes=20)
GREY = (0, 0, 0)


def scene_of(*shapes: tuple[str, str, int]) -> Scene:
    return Scene(tuple(Shape(colour, kind, place, 16, 16, 9, GREY) for colour, kind, place in shapes), background=0)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus_into(tmp_path / "corpus")
    return tmp_path / "corpus"


def write_corpus_into(folder: Path) -> None:
    folder.mkdir()
    write_corpus(folder, seed=3, size=SMALL)


def test_training_and_test_share_no_set_of_shapes() -> None:
    rng = random.Random(0)
    trained = {imagine(rng, seed=1).key() for _ in range(2000)}
    tested = {imagine(rng, seed=1, held_out=True).key() for _ in range(500)}
    assert not trained & tested


def test_a_scenes_side_depends_on_its_set_alone() -> None:
    near = Shape("red", "circle", 0, 14, 15, 9, (225, 45, 45))
    far = Shape("red", "circle", 0, 18, 16, 11, (220, 50, 40))
    assert is_held_out(Scene((near,), 0), seed=5) == is_held_out(Scene((far,), 40), seed=5)


def test_the_language_model_reads_of_no_held_out_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr("vlm.demo.prose.imagine", lambda *given: told.append(imagine(*given)) or told[-1])
    rng = random.Random(0)
    for _ in range(200):
        write_document(rng, 2, turns=4)
    assert len(told) == 200 and not any(is_held_out(scene, 2) for scene in told)


@pytest.mark.parametrize(
    ("category", "question", "answer"),
    [
        ("colour", "What colour is the circle?", "red"),
        ("shape", "What shape is at the bottom right?", "cross"),
        ("count", "How many crosses are there?", "one"),
        ("count", "How many shapes are there?", "two"),
        ("position", "Where is the blue cross?", "bottom right"),
        ("relation", "Is the red circle above the blue cross?", "yes"),
        ("relation", "Is the red circle right of the blue cross?", "no"),
        ("existence", "Is there a red circle?", "yes"),
        ("existence", "Is there a blue circle?", "no"),
    ],
)
def test_answers_agree_with_the_scene(category: str, question: str, answer: str) -> None:
    assert question in ASKERS[category](scene_of(("red", "circle", 0), ("blue", "cross", 3)))[answer]


def test_no_question_has_two_answers() -> None:
    rng = random.Random(0)
    for _ in range(300):
        scene = imagine(rng, seed=0)
        for candidates in (asker(scene) for asker in ASKERS.values()):
            texts = Counter(text for answer in candidates.values() for text in set(answer))
            assert all(count == 1 for count in texts.values())


def test_questions_that_would_be_ambiguous_are_not_asked() -> None:
    twins = scene_of(("red", "circle", 0), ("blue", "circle", 1))
    asked = [text for texts in ASKERS["colour"](twins).values() for text in texts]
    assert "What colour is the circle?" not in asked


def test_one_shape_allows_no_relation_but_still_four_questions() -> None:
    scene = scene_of(("red", "circle", 0))
    assert ask(scene, "relation", random.Random(0)) is None
    questions = ask_several(scene, 4, random.Random(0))
    assert len({asked.text for asked in questions}) == 4


def test_answers_are_balanced() -> None:
    rng = random.Random(0)
    asked = [ask(imagine(rng, 0), category, rng) for _ in range(400) for category in ("existence", "relation")]
    share = sum(each.answer == "yes" for each in asked if each) / sum(each is not None for each in asked)
    assert 0.42 < share < 0.58


def test_captions_name_shapes_in_reading_order() -> None:
    scene = scene_of(("red", "circle", 0), ("blue", "cross", 1), ("white", "square", 3))
    assert scene.caption() == (
        "a red circle at the top left, a blue cross at the top right and a white square at the bottom right."
    )


def test_every_kind_and_colour_looks_different() -> None:
    pictures = [
        draw(Scene((Shape(colour, kind, 0, 16, 16, 9, fill),), 0)).tobytes()
        for colour, fill in COLOURS.items()
        for kind in KINDS
    ]
    assert len(set(pictures)) == len(pictures)
    assert draw(scene_of(("red", "circle", 0))).size == (PIXELS, PIXELS)


def test_corpus_is_llava_json(corpus: Path) -> None:
    splits = {split: json.loads((corpus / f"{split}.json").read_text()) for split in ("pretrain", "finetune", "test")}
    for record in (record for records in splits.values() for record in records):
        said = record["conversations"]
        assert (corpus / "images" / record["image"]).is_file()
        assert [turn["from"] for turn in said] == ["human", "gpt"] * (len(said) // 2)
        assert [turn["value"].count("<image>") for turn in said] == [1] + [0] * (len(said) - 1)
    assert {len(record["conversations"]) for record in splits["finetune"]} == {8}
    questions = splits["test"]
    assert len({record["question_id"] for record in questions}) == len(questions)
    assert {record["category"] for record in questions} == set(ASKERS)
    assert not {record["image"] for record in questions} & {record["image"] for record in splits["finetune"]}


def test_corpus_is_the_same_bytes_again_even_after_an_interruption(tmp_path: Path, corpus: Path) -> None:
    left = tmp_path / "again.partial"
    (left / "images").mkdir(parents=True)
    (left / "images" / "half.jpg").write_bytes(b"\xff\xd8")
    make_part(tmp_path / "again", lambda folder: write_corpus(folder, seed=3, size=SMALL))
    assert digests(tmp_path / "again") == digests(corpus)
    assert not left.exists()


def test_a_part_that_exists_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "part").mkdir()
    make_part(tmp_path / "part", lambda folder: pytest.fail("built again"))
    assert capsys.readouterr().out.count("\n") == 1


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
