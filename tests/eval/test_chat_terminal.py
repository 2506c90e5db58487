import io
import json
import shutil

import pytest

from vlm.errors import Unusable
from vlm.eval.chat_terminal import ask_about_each, ask_once, talk
from vlm.eval.conversation import Writing, answer_each, pixels_of, question, stream

HOW = Writing(max_new_tokens=8)


@pytest.fixture
def folder(tiny_corpus, tmp_path):
    """Three pictures, one of them below, and a file that only looks like one."""
    (tmp_path / "below").mkdir()
    files = sorted((tiny_corpus / "images").iterdir())[:3]
    for file, name in zip(files, ("b", "a", "below/c"), strict=True):
        shutil.copy(file, tmp_path / f"{name}{file.suffix}")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("left alone")
    return tmp_path


def test_a_folder_becomes_a_line_for_each_picture_whatever_the_batch(answerer, folder):
    def lines(batch_size):
        out = io.StringIO()
        assert ask_about_each(answerer, folder, "What colour?", HOW, batch_size, out) == (3, 1)
        return [json.loads(line) for line in out.getvalue().splitlines()]

    records = lines(2)
    assert [record["image"].split(".")[0] for record in records] == ["a", "b", "below/c", "broken"]
    assert "cannot be used as a picture" in records.pop()["error"]
    for record in records:
        picture = pixels_of(answerer, (folder / record["image"]).read_bytes(), "")
        assert record["answer"] == answer_each(answerer, "What colour?", [picture], HOW)[0]
    assert lines(8)[:3] == records


def test_a_folder_without_a_picture_is_refused(answerer, tmp_path):
    with pytest.raises(Unusable, match="holds no picture"):
        ask_about_each(answerer, tmp_path, "What?", HOW, 2, io.StringIO())


def test_a_talk_keeps_its_turns_until_a_new_one_is_begun(answerer, folder):
    out = io.StringIO()
    picture = next(folder.glob("a.*"))
    lines = ["What colour?", "And now?", "/image nowhere.jpg", "What is <image>?", "/new", "And now?", "/quit", "lost"]
    talk(answerer, [picture], HOW, lines, out)
    pixels = pixels_of(answerer, picture.read_bytes(), "")
    first = list(stream(answerer, [question("What colour?", 1)], [pixels], HOW))[-1]
    fresh = list(stream(answerer, [question("And now?")], [], HOW))[-1]
    said = out.getvalue()
    assert first in said and said.rstrip("\n").endswith(fresh.rstrip("\n"))
    assert "nowhere.jpg cannot be read: No such file" in said and "the question holds <image>" in said
    assert said.count(fresh) == 1  # with the first turn before it, the same question got another answer


def test_one_question_is_answered_about_all_its_pictures(answerer, folder):
    out = io.StringIO()
    images = sorted(folder.glob("[ab].*"))
    ask_once(answerer, "Which?", images, HOW, out)
    pixels = [pixels_of(answerer, image.read_bytes(), "") for image in images]
    assert out.getvalue() == list(stream(answerer, [question("Which?", 2)], pixels, HOW))[-1] + "\n"
