import json

from vlm.instruct.preview import write_preview


def record(kind: str, text: str, image: str = "03.png") -> dict:
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": text}]
    return {"id": f"{image}#{kind}", "image": image, "conversations": said, "kind": kind, "facts_from": "captions"}


def test_samples_show_their_picture_and_rejects_their_reason(settings, tmp_path):
    samples = {
        "captions": [record("detail", f"Answer {i} <b>&\u202e") for i in range(3)] + [record("reasoning", "Why")]
    }
    rejects = [{"id": "a#detail", "reason": "length", "detail": "<i>short"}]
    write_preview(tmp_path, settings(preview=2), samples, rejects)
    page = (tmp_path / "preview.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3  # two of detail, one of reasoning
    assert "Answer 1 &lt;b&gt;&amp;[U+202E]" in page
    assert "Answer 2" not in page
    assert "detail (3)" in page and "conversation (0)" in page
    assert "a#detail: &lt;i&gt;short" in page
    assert json.dumps(samples) not in page


def test_a_picture_that_cannot_be_read_is_no_end(settings, tmp_path):
    write_preview(tmp_path, settings(), {"captions": [record("detail", "It is.", "none.png")]}, [])
    assert "No such file" in (tmp_path / "preview.html").read_text()


def test_no_page_if_none_is_wanted(settings, tmp_path):
    write_preview(tmp_path, settings(preview=0), {"captions": [record("detail", "It is.")]}, [])
    assert not (tmp_path / "preview.html").exists()
