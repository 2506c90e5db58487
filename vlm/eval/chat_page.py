"""A talk with the model in a browser, by Gradio: pictures, several turns, the answer as it is written.

Nothing leaves the machine: no analytics, no shared link, and the page asks only its own server.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio

from vlm.data.samples import Turn
from vlm.errors import Unusable
from vlm.eval.answer import Answerer
from vlm.eval.conversation import Writing, pixels_of, question, stream

FILES = ["image"]  # what may be uploaded
# No advertisement, and no button that would send a picture to somebody else's server.
STYLE = "footer, button[aria-label=Share], button[title=Share] { display: none !important; }"


def serve(answerer: Answerer, title: str, how: Writing, host: str, port: int, *, opens_browser: bool) -> None:
    """Serve the page until Ctrl-C; `how` is what its settings begin with.

    Raises Unusable if the port is taken.
    """
    page = build(answerer, title, how)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            inbrowser=opens_browser,
            share=False,
            show_error=True,
            quiet=True,
            footer_links=[],
            css=STYLE,
            max_file_size="64mb",
            prevent_thread_lock=True,
        )
    except OSError:
        raise Unusable(f"{host} port {port} cannot be had: choose another with --port") from None
    print(f"chat: http://{host}:{port}  (Ctrl-C ends)", flush=True)
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)


def build(answerer: Answerer, title: str, how: Writing) -> gradio.ChatInterface:
    """Return the page."""

    def answer(
        message: Mapping[str, Any], history: Sequence[Mapping[str, Any]], *settings: float
    ) -> Iterator[str]:  # the order of settings is that of the sliders below
        try:
            yield from _answer(answerer, message, history, Writing(int(settings[0]), *settings[1:4], int(settings[4])))
        except Unusable as problem:
            raise gradio.Error(str(problem), print_exception=False, title="Not asked") from None

    return gradio.ChatInterface(
        answer,
        multimodal=True,
        title=title,
        description="Add one or more pictures, ask, and ask on.",
        textbox=gradio.MultimodalTextbox(
            file_types=FILES,
            file_count="multiple",
            placeholder="Ask about a picture",
            show_label=False,
            sources=["upload"],
        ),
        chatbot=gradio.Chatbot(height="62vh", show_label=False, placeholder="Add a picture and ask.", buttons=["copy"]),
        additional_inputs_accordion=gradio.Accordion("Settings", open=False),
        additional_inputs=[
            gradio.Slider(1, 2048, how.max_new_tokens, step=1, label="Longest answer", info="tokens"),
            gradio.Slider(0, 2, how.temperature, step=0.05, label="Temperature", info="0: the most probable token"),
            gradio.Slider(0.05, 1, how.top_p, step=0.05, label="Top p", info="share of the probable tokens"),
            gradio.Slider(0.5, 2, how.repetition_penalty, step=0.05, label="Repetition penalty", info="1: none"),
            gradio.Number(how.seed, precision=0, label="Seed", info="of the sampling"),
        ],
        analytics_enabled=False,
        flagging_mode="never",
        api_visibility="private",
    )


def _answer(
    answerer: Answerer, message: Mapping[str, Any], history: Sequence[Mapping[str, Any]], how: Writing
) -> Iterator[str]:
    turns, files = turns_of([*history, {"role": "user", "content": _content(message)}])
    pictures = [pixels_of(answerer, Path(file).read_bytes(), Path(file).name) for file in files]
    yield from stream(answerer, turns, pictures, how)


def turns_of(messages: Sequence[Mapping[str, Any]]) -> tuple[list[Turn], list[str]]:
    """Return what Gradio's messages say as turns, and the files of all pictures in order.

    A question that got no answer, as one that was refused, is left out with its pictures.
    Raises Unusable if the last question is empty or holds the placeholder of a picture.
    """
    turns: list[Turn] = []
    files: list[str] = []
    waiting: tuple[str, list[str]] = ("", [])
    for message in messages:
        text = "\n".join(part["text"] for part in message["content"] if part["type"] == "text")
        if message["role"] == "user":
            waiting = (text, [part["file"]["path"] for part in message["content"] if part["type"] == "file"])
        elif text.strip():
            turns += [question(waiting[0], len(waiting[1])), Turn("assistant", text)]
            files += waiting[1]
    return [*turns, question(waiting[0], len(waiting[1]))], files + waiting[1]


def _content(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a new message in the form of the history."""
    files = [{"type": "file", "file": {"path": path}} for path in message["files"]]
    return [*files, {"type": "text", "text": message["text"]}]
