"""What the language model reads: conversations about scenes that are told, never shown.

A document is a list of spans. Its context tells a scene phrase by phrase, in any order, some phrases more than
once and some that say nothing, because it later stands where the patches of a picture will stand.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from vlm.demo.questions import ask_several
from vlm.demo.scenes import PLACES, Scene, imagine

END = "<|endoftext|>"
START_TURN = "<|im_start|>"
END_TURN = "<|im_end|>"
SYSTEM = "You are a helpful assistant."
CAPTION_SHARE = 0.3  # of documents that retell the context as a caption; the others answer questions
REPEATS = (1, 1, 2, 3)  # how often a shape is told
NOTHINGS = 4  # at most so many phrases that say nothing


@dataclass(frozen=True)
class Span:
    """A piece of a document: `learnt` if the model is to write it, `folded` if it is read as one vector."""

    text: str
    learnt: bool = False
    folded: bool = False


def write_document(rng: random.Random, seed: int, turns: int, categories: Sequence[str] = ()) -> list[Span]:
    """A document about a scene of the training side, asking questions of `categories` (all, unless named)."""
    scene = imagine(rng, seed)
    told = tell(scene, rng)
    if rng.random() < CAPTION_SHARE:
        return [*told, Span(scene.caption() + END_TURN, learnt=True)]
    spans = [Span(f"{START_TURN}system\n{SYSTEM}{END_TURN}\n"), Span(f"{START_TURN}user\n"), *told, Span("\n")]
    for number, asked in enumerate(ask_several(scene, turns, rng, categories)):
        opening = f"\n{START_TURN}user\n" if number else ""
        spans.append(Span(f"{opening}{asked.text}{END_TURN}\n{START_TURN}assistant\n"))
        spans.append(Span(asked.answer + END_TURN, learnt=True))
    return spans


def tell(scene: Scene, rng: random.Random) -> list[Span]:
    """The scene's shapes in any order, each at least once, among phrases that say nothing."""
    phrases = [f" {shape.colour} {shape.kind} {PLACES[shape.place]}" for shape in scene.shapes]
    phrases = [phrase for phrase in phrases for _ in range(rng.choice(REPEATS))]
    phrases += [" nothing"] * rng.randint(0, NOTHINGS)
    rng.shuffle(phrases)
    return [Span(phrase, folded=True) for phrase in phrases]
