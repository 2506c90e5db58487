import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="no Gradio: the extra `chat` is not installed")

from vlm.data.samples import Turn  # noqa: E402
from vlm.errors import Unusable  # noqa: E402
from vlm.eval.chat_page import turns_of  # noqa: E402
from vlm.eval.conversation import Writing, pixels_of, question, stream  # noqa: E402

ROOT = Path(__file__).parents[2]
PATIENCE = 180  # seconds for a page or an answer, on a busy machine
WATCH = """
window.seen = [];
new MutationObserver(() => {
  const said = [...document.querySelectorAll('.bot.message')].at(-1)?.innerText ?? '';
  if (said && said !== window.seen.at(-1)) window.seen.push(said);
}).observe(document.body, {subtree: true, childList: true, characterData: true});
"""


def said(role, text, *files):
    parts = [{"type": "file", "file": {"path": file}} for file in files]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def test_messages_become_turns_and_files_in_their_order():
    talk = [said("user", "Which?", "a", "b"), said("assistant", "This."), said("user", "And this?", "c")]
    turns, files = turns_of(talk)
    assert turns == [question("Which?", 2), Turn("assistant", "This."), question("And this?", 1)]
    assert files == ["a", "b", "c"]


def test_a_question_that_got_no_answer_is_left_out_with_its_picture():
    turns, files = turns_of([said("user", "lost", "a"), said("user", "Hello", "b")])
    assert (turns, files) == ([question("Hello", 1)], ["b"])
    with pytest.raises(Unusable, match="empty"):
        turns_of([said("user", "", "a")])


@pytest.fixture
def address(tiny_model):
    """The page of a real server, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vlm.eval.chat", f"model={tiny_model}", "--port", str(port)]
    command += ["--max-new-tokens", "120", "--temperature", "1.5"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        line = server.stdout.readline()
        assert line == f"chat: http://127.0.0.1:{port}  (Ctrl-C ends)\n"
        yield f"http://127.0.0.1:{port}"
        server.terminate()


def waited(get):
    """Return what `get` returns once it is true."""
    until = time.monotonic() + PATIENCE
    while not (found := get()):
        assert time.monotonic() < until, "nothing came"
        time.sleep(0.05)
    return found


def letters(text):
    """Markdown may swallow other marks of what a random model says."""
    return re.sub(r"[^A-Za-z0-9]", "", text)


def test_a_picture_is_uploaded_and_the_answer_comes_word_by_word(browser, address, answerer, tiny_corpus):
    def all_of(selector):
        return browser.find_elements("css selector", selector)

    picture = sorted((tiny_corpus / "images").iterdir())[0]
    browser.get(address)
    waited(lambda: all_of("textarea"))
    all_of("input[type=file]")[0].send_keys(str(picture))
    waited(lambda: all_of(".thumbnails img, .thumbnail-image img, [aria-label=thumbnail] img, .thumbnail-item img"))
    browser.execute_script(WATCH)
    all_of("textarea")[0].send_keys("What colour?\n")
    pixels = pixels_of(answerer, picture.read_bytes(), "")
    expected = list(stream(answerer, [question("What colour?", 1)], [pixels], Writing(120, temperature=1.5)))[-1]
    waited(lambda: letters(browser.execute_script("return window.seen.at(-1) ?? ''")) == letters(expected))
    assert len(browser.execute_script("return window.seen")) > 2, "the answer came at once"
    shown = all_of(".user.message img")[0]
    assert browser.execute_script("return arguments[0].naturalWidth", shown) > 0
    all_of("textarea")[0].send_keys("And now?\n")
    waited(lambda: len(all_of(".bot.message")) == 2)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    asked = {
        event["params"]["request"]["url"]
        for event in (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
        if event["method"] == "Network.requestWillBeSent"
    }
    assert all(re.match(rf"{address}/|data:|blob:|chrome", url) for url in asked), asked
