"""Talk with a trained model: in a browser, in the terminal, or with a whole folder of pictures.

    launch/chat.sh run=demo                                        a page on this machine (needs the extra `chat`)
    launch/chat.sh run=demo --terminal [--image a.jpg]             line by line
    launch/chat.sh run=demo --image a.jpg --prompt "What is it?"   one answer
    launch/chat.sh run=demo --images FOLDER --prompt "What is it?" --out answers.jsonl

run=NAME talks with what stage 04 of that run wrote (stage=03_pretrain: stage 03); model= with any LLaVA folder, hub id,
checkpoint of a training or PEFT adapter (base=FOLDER, if it does not name its own).
"""

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from vlm.errors import Unusable
from vlm.model.hub import is_hub_id
from vlm.model.saved import Saved, find

EXTRA = "the page needs Gradio, the extra `chat`: pip install -e '.[chat]' (--terminal and --prompt need nothing more)"
SETTINGS = {"run": "demo", "runs": "runs", "stage": "04_finetune", "model": "", "base": ""}


def main() -> None:
    """Talk as the command line says."""
    parser = argparse.ArgumentParser(
        prog="launch/chat.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="run=, runs=, stage=, model= or base=")
    parser.add_argument("--terminal", action="store_true", help="talk here, line by line")
    parser.add_argument("--prompt", help="ask this, write the answer, and end")
    parser.add_argument("--image", type=Path, action="append", default=[], help="a picture; may be given again")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="ask --prompt about every picture of a folder")
    parser.add_argument("--out", type=Path, help="where the JSON lines of --images go (default: standard output)")
    parser.add_argument(
        "--batch-size", type=int, default=16, help="pictures of --images at once (default: %(default)s)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="who may open the page (default: this machine alone)")
    parser.add_argument("--port", type=int, default=7860, help="of the page (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest answer (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the most probable token (default)")
    parser.add_argument("--top-p", type=float, default=1.0, help="sample from the fewest tokens of this share")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1 avoids what was written before")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    try:
        _run(parser.parse_intermixed_args())
    except Unusable as problem:
        print(f"chat: {problem}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def model_named(settings: list[str]) -> Saved:
    """Return the model that settings such as run=demo name.

    Raises Unusable if there is no such setting or no such model.
    """
    given = dict(SETTINGS)
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in SETTINGS or not value:
            raise Unusable(f"{setting} is no setting: give {', '.join(f'{known}=' for known in SETTINGS)}")
        given[name] = value
    artifact = Path(given["runs"]) / given["run"] / given["stage"]
    if not given["model"] and not (artifact / "model" / "config.json").is_file():
        raise Unusable(f"{artifact} is not there: run  launch/all.sh run={given['run']}  first, or give model=")
    try:
        return find(given["model"] or str(artifact), given["base"] or None)
    except Unusable as problem:
        raise Unusable(str(problem).replace("eval.", "")) from None  # stage 05 calls its settings so


def _run(asked: argparse.Namespace) -> None:
    if not any(setting.startswith("model=") and is_hub_id(setting[6:]) for setting in asked.settings):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all of it is here
    saved = model_named(asked.settings)
    if asked.images is not None and asked.prompt is None:
        raise Unusable("--images needs --prompt: what to ask about every picture")
    if asked.images is not None and not asked.images.is_dir():
        raise Unusable(f"{asked.images} is no folder")
    if asked.batch_size < 1:
        raise Unusable("--batch-size is at least 1")
    in_terminal = asked.terminal or asked.prompt is not None
    if not in_terminal and find_spec("gradio") is None:
        raise Unusable(EXTRA)

    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from vlm.eval.answer import Answerer  # torch enters here, once what was asked for is known to be there
    from vlm.eval.conversation import Writing

    how = Writing(asked.max_new_tokens, asked.temperature, asked.top_p, asked.repetition_penalty, asked.seed)
    if in_terminal:
        _in_terminal(Answerer(saved), asked, how)
    else:
        from vlm.eval.chat_page import serve

        can_open = sys.platform == "darwin" or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
        title = next((one.partition("=")[2] for one in asked.settings if one.startswith(("run=", "model="))), "demo")
        serve(Answerer(saved), title, how, asked.host, asked.port, opens_browser=can_open)


def _in_terminal(answerer: object, asked: argparse.Namespace, how: object) -> None:
    from vlm.eval.chat_terminal import ask_about_each, ask_once, talk, typed

    if asked.images is not None:
        out: TextIO = sys.stdout if asked.out is None else asked.out.open("w", encoding="utf-8")
        with out:
            answered, failed = ask_about_each(answerer, asked.images, asked.prompt, how, asked.batch_size, out)
        print(f"chat: {answered} pictures answered", file=sys.stderr)
        if failed:
            raise Unusable(f"{failed} pictures of {asked.images} cannot be used: their lines say why")
    elif asked.prompt is not None:
        ask_once(answerer, asked.prompt, asked.image, how, sys.stdout)
    else:
        talk(answerer, asked.image, how, typed(), sys.stdout)


if __name__ == "__main__":
    main()
