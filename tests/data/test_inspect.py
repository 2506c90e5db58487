import json
import re
from html import unescape
from html.parser import HTMLParser

import pytest

from vlm.config import Form
from vlm.data import inspect as preview
from vlm.data.index import Split, Stored
from vlm.data.inspect import choose, pieces, visible, write_preview
from vlm.data.samples import Sample, Turn
from vlm.data.shards import build
from vlm.errors import Unusable

NASTY = 'Say "红色" 👩‍🔬 & <b>é</b>\n</s> <|im_end|> ⟦0⟧ \x07 \u202e done </script>'


class Shape(HTMLParser):
    """Collects what a page consists of, and fails if tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.links = [], [], []
        self.feed(text)
        assert self.open == ["html"] or not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"src", "href"}]
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def sharded(corpus, record, encoded, data_of, chats, tmp_path):
    """A split of two sources, with pictures, without, with nasty text, and with rejects."""
    seen = [record(i, f"{i}.png") for i in range(9)] + [record("both", "0.png", "1.png"), record("lost", "gone.png")]
    pictures = {f"{i}.png": encoded(i, (24, 12)) for i in range(9)}
    turns = [{"from": "human", "value": NASTY}, {"from": "gpt", "value": NASTY}]
    read = [{"id": f"<i>{i}</i>", "conversations": turns} for i in range(3)] + [{"id": "x", "conversations": []}]
    sources = {"seen": corpus(seen, "seen", pictures), "read": corpus(read, "read")}
    build(data_of(max_tokens=2048, max_reject_fraction=0.5, **sources), chats["qwen"], 0, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("name", ["qwen", "vicuna", "llama_2"])
@pytest.mark.parametrize("form", Form)
def test_the_pieces_are_the_tokens_and_their_text_is_the_whole_text(chats, name, form):
    chat = chats[name]
    turns = [Turn("user", f"<image>\n{NASTY}"), Turn("assistant", NASTY), Turn("user", "more"), Turn("assistant", "no")]
    encoded = chat.encode(tuple(turns), 1, form, 4096)
    shown = list(pieces(encoded, chat))
    assert [token for piece in shown for token in piece.ids] == encoded.ids.tolist()
    assert [piece.is_target for piece in shown for _ in piece.ids] == encoded.is_target.tolist()
    written = "".join(piece.text * (len(piece.ids) if piece.is_image else 1) for piece in shown)
    assert written == chat.tokenizer.decode(encoded.ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert [len(piece.ids) for piece in shown if piece.is_image] == [chat.image_tokens]
    assert any("红" in piece.text for piece in shown if piece.is_target)


def test_two_pictures_side_by_side_are_two_pieces(chats):
    turns = (Turn("user", "<image><image>"), Turn("assistant", "two"))
    shown = list(pieces(chats["qwen"].encode(turns, 2, Form.plain, 99), chats["qwen"]))
    assert [len(piece.ids) for piece in shown if piece.is_image] == [4, 4]
    assert [piece.is_target for piece in shown][:2] == [False, False]


def test_the_page_shows_samples_rejects_and_lengths_and_needs_no_other_file(sharded, chats):
    write_preview(sharded, chats["qwen"], 5, 0)
    text = (sharded / "preview.html").read_text()
    shape = Shape(text)
    assert shape.tags.count("article") == 5 + 3
    assert shape.tags.count("svg") == 2
    assert shape.links
    assert all(link.startswith("data:image/jpeg;base64,") for link in shape.links)
    assert "missing_image" in text
    assert "gone.png" in text
    assert "&lt;image&gt; × 4" in text
    assert "24 × 12" in text


def test_text_of_a_corpus_is_text_on_the_page(sharded, chats):
    write_preview(sharded, chats["qwen"], 99, 0)
    text = (sharded / "preview.html").read_text()
    assert "<b>é" not in text
    assert "<i>0" not in text
    assert text.count("</script>") == 1
    assert "\u202e" not in text
    assert "[U+202E]" in text
    assert "␇" in text
    learnt = "".join(re.findall(r'<s class="t[^"]*" title="[^"]*">(.*?)</s>', text, re.DOTALL))
    assert visible("红色") in learnt
    assert "</script>" in unescape(learnt)


def test_the_page_is_the_same_bytes_again_and_another_seed_shows_others(sharded, chats):
    pages = []
    for seed in (0, 0, 1):
        write_preview(sharded, chats["qwen"], 3, seed)
        pages.append((sharded / "preview.html").read_bytes())
    assert pages[0] == pages[1] != pages[2]


def test_samples_are_chosen_by_source_and_none_is_shown_twice(sharded):
    rows = Split(sharded / "finetune").rows
    for source in (0, 1):
        chosen = choose(rows, source, 3, 0)
        assert len({*chosen}) == 3
        assert {*rows["source"][chosen].tolist()} == {source}
    assert len(choose(rows, 1, 99, 0)) == 3


def test_no_page_is_written_if_none_is_wanted(sharded, chats):
    write_preview(sharded, chats["qwen"], 0, 0)
    assert not (sharded / "preview.html").exists()


def test_another_tokenizer_than_the_shards_is_noticed(sharded, chats):
    with pytest.raises(Unusable, match="another tokenizer"):
        write_preview(sharded, chats["vicuna"], 3, 0)


def test_cut_turns_are_marked(sharded, chats, monkeypatch):
    turns = (Turn("user", "What colour is it?"), Turn("assistant", "red"))
    split = Split(sharded / "finetune")
    chat = chats["qwen"]
    tokens = len(chat.encode(turns, 0, Form.chat, 99).ids)
    split.rows = split.rows[:1].copy()
    split.rows[["tokens", "targets"]] = tokens, int(chat.encode(turns, 0, Form.chat, 99).is_target.sum())
    monkeypatch.setattr(split, "read", lambda number: Stored(Sample("a", "read", turns), (), cut_turns=2))
    assert "2 turns cut here" in preview._card(split, 0, chat)


def test_rejects_are_counted_by_reason_with_a_few_examples(tmp_path):
    path = tmp_path / "rejects.jsonl"
    rejects = [{"source": "s", "id": f"<{i}>", "reason": "corrupt", "detail": "d\ud800"} for i in range(1200)]
    path.write_text("".join(json.dumps(one) + "\n" for one in [*rejects, rejects[0] | {"reason": "aspect"}]))
    table = preview._reasons(path, "Rejected")
    assert "1,200" in table
    assert table.count("s &lt;") == 4
    assert table.index("corrupt") < table.index("aspect")
    assert preview._reasons(tmp_path / "none.jsonl", "Rejected") == ""
