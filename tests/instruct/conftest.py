"""Pictures with captions and boxes, and settings that join them with the scripted endpoint."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from vlm.config import InstructConfig, InstructRuntime, KindConfig, SourceConfig
from vlm.pipeline.settings import typed

from ..scripted import TIMEOUT

CONF = str(Path(__file__).parents[2] / "conf")


@pytest.fixture(scope="session")
def kinds() -> dict[str, KindConfig]:
    """The kinds of conf/instruct."""
    with initialize_config_dir(CONF, version_base="1.3"):
        return typed(compose("02a_instruct")).instruct.kinds


@pytest.fixture(scope="session")
def captioned(tmp_path_factory) -> SourceConfig:
    """COCO captions and instances of 12 pictures, two captions and one box each."""
    folder = tmp_path_factory.mktemp("captioned")
    (folder / "images").mkdir()
    things = ["dog", "cat", "kite", "boat", "lamp", "tree", "cow", "bus", "cup", "bed", "hat", "pen"]
    images, captions, boxes = [], [], []
    for number, thing in enumerate(things):
        name = f"{number:02d}.png"
        picture = Image.new("RGB", (40, 20), (20 * number, 90, 250 - 20 * number))
        picture.paste((255, 255, 20 * number), (number, 2, number + 9, 4 + number))
        picture.save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": 40, "height": 20})
        captions += [{"id": 2 * number, "image_id": number, "caption": f"A picture of a {thing}"}]
        captions += [{"id": 2 * number + 1, "image_id": number, "caption": f"Somebody looks at a {thing}"}]
        boxes.append({"id": number, "image_id": number, "category_id": number, "bbox": [number, 2, 9, 2 + number]})
    named = [{"id": number, "name": thing} for number, thing in enumerate(things)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    (folder / "instances.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": named}))
    return SourceConfig(
        path=str(folder / "captions.json"),
        annotations=str(folder / "instances.json"),
        images=str(folder / "images"),
        format="coco_captions",
    )


@pytest.fixture
def settings(endpoint, kinds, captioned):
    """Return a function that makes the stage's settings for the scripted endpoint; keywords change `runtime`."""

    def make(limit: int | None = None, **runtime) -> InstructConfig:
        fast = {"timeout": TIMEOUT, "backoff": 0.01, "max_backoff": 0.05, "workers": 4, "preview": 2}
        return InstructConfig(
            sources=[captioned],
            kinds=kinds,
            limit=limit,
            model="m",
            max_tokens=200,
            runtime=InstructRuntime(base_url=endpoint.url, **fast | runtime),
        )

    return make
