"""The corpus as LLaVA JSON: captions for pretraining, conversations for finetuning, a held-out test."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from vlm.demo.questions import ASKERS, ask, ask_several
from vlm.demo.scenes import Scene, draw, imagine

Record = dict[str, object]
CAPTION_REQUESTS = ("Describe the picture.", "What does the picture show?", "Write a caption.")
JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}


@dataclass(frozen=True)
class CorpusSize:
    """How many scenes are drawn, and how much is asked about each."""

    train_scenes: int = 12_000
    test_scenes: int = 600
    turns: int = 4  # questions in a training conversation


def write_corpus(folder: Path, seed: int, size: CorpusSize) -> None:
    """Fill `folder` with images/, pretrain.json, finetune.json and test.json."""
    (folder / "images").mkdir()
    rng = random.Random(f"{seed} corpus")
    pretrain: list[Record] = []
    finetune: list[Record] = []
    for name, scene in _draw_scenes(folder, "train", size.train_scenes, seed, rng):
        request = rng.choice(CAPTION_REQUESTS)
        pretrain.append(_record(name, [(request, scene.caption())], image_first=rng.random() < 0.5))
        turns = [(asked.text, asked.answer) for asked in ask_several(scene, size.turns, rng)]
        finetune.append(_record(name, turns, image_first=True))
    test: list[Record] = []
    for name, scene in _draw_scenes(folder, "test", size.test_scenes, seed, rng):
        test.extend(_test_records(name, scene, rng))
    for split, records in (("pretrain", pretrain), ("finetune", finetune), ("test", test)):
        (folder / f"{split}.json").write_text(json.dumps(records, indent=1) + "\n")


def _draw_scenes(folder: Path, split: str, count: int, seed: int, rng: random.Random) -> Iterator[tuple[str, Scene]]:
    """Write the pictures of a split; yield each one's name and scene."""
    for number in tqdm(range(count), desc=f"corpus: {split} scenes", unit=" scenes"):
        scene = imagine(rng, seed, held_out=split == "test")
        name = f"{split}_{number:05d}"
        draw(scene).save(folder / "images" / f"{name}.jpg", **JPEG)
        yield name, scene


def _test_records(name: str, scene: Scene, rng: random.Random) -> Iterator[Record]:
    """One record for each category that the scene allows a question of."""
    for category in ASKERS:
        if asked := ask(scene, category, rng):
            record = _record(name, [(asked.text, asked.answer)], image_first=True)
            yield record | {"id": f"{name}_{category}", "question_id": f"{name}_{category}", "category": category}


def _record(name: str, turns: list[tuple[str, str]], image_first: bool) -> Record:
    said = []
    for number, (question, answer) in enumerate(turns):
        if number == 0:
            question = f"<image>\n{question}" if image_first else f"{question}\n<image>"
        said += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": f"{name}.jpg", "conversations": said}
