"""What the language model reads: conversations about scenes that are told, never shown.

A document is a list of spans, (text, whether it is learnt). Its context tells a scene in one of many orders
and wordings, because it later stands where the tokens of a picture will stand.
"""

import random

from vlm.demo.questions import ask_several
from vlm.demo.scenes import PLACES, Scene, Shape, imagine

Document = list[tuple[str, bool]]
END = "<|endoftext|>"
START_TURN = "<|im_start|>"
END_TURN = "<|im_end|>"
SYSTEM = "You are a helpful assistant."
CAPTION_SHARE = 0.3  # of documents that retell the context as a caption; the others answer questions


def write_document(rng: random.Random, seed: int, turns: int) -> Document:
    """A document about a scene of the training side."""
    scene = imagine(rng, seed)
    told = tell(scene, rng)
    if rng.random() < CAPTION_SHARE:
        return [(told, False), (scene.caption() + END_TURN, True)]
    spans: Document = [(f"{START_TURN}system\n{SYSTEM}{END_TURN}\n", False)]
    for number, asked in enumerate(ask_several(scene, turns, rng)):
        request = f"{told}\n{asked.text}" if number == 0 else asked.text
        spans.append((f"{START_TURN}user\n{request}{END_TURN}\n{START_TURN}assistant\n", False))
        spans.append((asked.answer + END_TURN, True))
        spans.append(("\n", False))
    return spans


def tell(scene: Scene, rng: random.Random) -> str:
    """The scene in words: its caption, or its shapes in any order, each once or twice in any wording."""
    if rng.random() < 0.25:
        return scene.caption()
    shapes = [shape for shape in scene.shapes for _ in range(rng.choice((1, 1, 2)))]
    rng.shuffle(shapes)
    return "".join(f" {_word(shape, rng)}." for shape in shapes)


def _word(shape: Shape, rng: random.Random) -> str:
    words = [shape.colour, shape.kind, PLACES[shape.place]]
    rng.shuffle(words)
    return " ".join(words)
