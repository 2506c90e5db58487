"""Each recipe of conf/experiment/ from its corpora's own layout to its report, on tiny parts."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm.data.index import Split
from vlm.data.samples import Sample
from vlm.pipeline.predictions import comparison

from ..forked import Forked
from .conftest import ROOT, STAGES

ROWS = 12
RECIPES = ("train_llava", "okvqa", "basic_vlm", "llava15_7b")
VARIANTS = {"llava15_7b": ["experiment=llava15_7b_lora"], "train_llava": ["finetune=full", "finetune=freeze_vision"]}
ONLY_LARGER = {"llava15_13b", "llava15_13b_lora"}  # than those of 7B: tests/conf/test_compose.py


def pictures(folder: Path, names: list[str]) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        noise = np.random.default_rng(len(name) + sum(map(ord, name))).integers(0, 256, (20, 24, 3), np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(folder / name)
    return names


def written(path: Path, records: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, ensure_ascii=False))


def conversations(names: list[str], tag: str) -> Iterator[dict]:
    for number, name in enumerate(names):
        turns = [
            {"from": "human", "value": f"<image>\nWhat is in {tag} {number}?"},
            {"from": "gpt", "value": f"red {number}"},
        ]
        yield {"id": f"{tag}{number}", "image": name, "conversations": turns}


def zipped(folder: Path, names: list[str]) -> None:
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for name in pictures(folder / "loose", names):
            archive.write(folder / "loose" / name, name)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with corpora/, each in the layout it is published in."""
    place = tmp_path_factory.mktemp("workplace")
    corpora = place / "corpora"
    cc3m = [f"GCC_train_{n:09d}.jpg" for n in range(ROWS)]
    written(corpora / "LLaVA-CC3M-Pretrain-595K/chat.json", list(conversations(cc3m, "cc3m")))
    zipped(corpora / "LLaVA-CC3M-Pretrain-595K", cc3m)
    blip = [f"00453/{n:09d}.jpg" for n in range(ROWS)]
    written(corpora / "LLaVA-Pretrain/blip_laion_cc_sbu_558k.json", list(conversations(blip, "blip")))
    zipped(corpora / "LLaVA-Pretrain", blip)

    coco = pictures(corpora / "coco/train2017", [f"{n:012d}.jpg" for n in range(ROWS)])
    gqa = pictures(corpora / "gqa/images", [f"{n}.jpg" for n in range(ROWS)])
    mixed = list(conversations([f"coco/train2017/{n}" for n in coco] + [f"gqa/images/{n}" for n in gqa], "mix"))
    turns = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Yes."}]
    written(
        corpora / "LLaVA-Instruct-150K/llava_v1_5_mix665k.json",
        [*mixed, {"id": 7, "model": "", "conversations": turns}],
    )
    for name in ("detail_23k", "complex_reasoning_77k"):  # both show the same pictures
        written(corpora / f"LLaVA-Instruct-150K/{name}.json", list(conversations(coco, name)))

    chinese = pictures(corpora / "ai_challenger/caption_train_images_20170902", [f"{n:040x}.jpg" for n in range(ROWS)])
    captions = [{"url": "", "image_id": name, "caption": [f"草地上有{n}只鹅"] * 5} for n, name in enumerate(chinese)]
    written(corpora / "ai_challenger/caption_train_annotations_20170902.json", captions)

    for part, first in (("train", 100), ("val", 200)):
        numbers = range(first, first + ROWS)
        pictures(corpora / f"coco/{part}2014", [f"COCO_{part}2014_{n:012d}.jpg" for n in numbers])
        questions = [{"image_id": n, "question": f"What is {n}?", "question_id": 10 * n} for n in numbers]
        answers = [{"answer_id": at, "answer": "red" if at < 6 else "blue"} for at in range(1, 11)]
        known = [
            {"image_id": n, "question_id": 10 * n, "question_type": "four", "answer_type": "other", "answers": answers}
            for n in numbers
        ]
        written(corpora / f"okvqa/OpenEnded_mscoco_{part}2014_questions.json", {"questions": questions})
        written(corpora / f"okvqa/mscoco_{part}2014_annotations.json", {"annotations": known})
    return place


def samples_of(folder: Path) -> list[Sample]:
    split = Split(folder)
    return [split.read(number).sample for number in range(len(split))]


@pytest.fixture
def run(workplace: Path, forked: Forked):
    def run_stage(stage: str, overrides: list[str]) -> str:
        status, said = forked.start([str(ROOT / f"stages/{stage}.py"), *overrides], cwd=workplace).wait()
        assert status == 0, said
        return said

    return run_stage


def test_every_recipe_is_tried_here():
    variants = {one.removeprefix("experiment=") for of in VARIANTS.values() for one in of if "experiment=" in one}
    tried = {*RECIPES, *variants, *ONLY_LARGER}
    assert {path.stem for path in (ROOT / "conf/experiment").glob("*.yaml")} == {*tried, "demo", "none"}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_from_its_corpora_to_its_report(run, workplace, tiny_language_model, tiny_tower, recipe):
    small = [
        *("model=demo", f"model.language_model={tiny_language_model}", f"model.vision_tower={tiny_tower}"),
        *("data.limit=10", "data.finetune.held_out_fraction=0.5", "eval.tasks.questions.max_new_tokens=2"),
        *(f"{stage}.{setting}=2" for stage in ("pretrain", "finetune") for setting in ("steps", "samples_per_step")),
    ]
    overrides = [f"run={recipe}", f"experiment={recipe}", *small]
    said = {stage: run(stage, overrides) for stage in STAGES[:4]}
    assert "2 steps" in run("04_finetune", [*overrides, "preflight=true", "hardware=a100_80"])
    said |= {stage: run(stage, overrides) for stage in STAGES[4:]}
    made = workplace / "runs" / recipe
    for row in (one for stage in STAGES[3:5] for one in comparison(made / stage)[:5]):  # what is counted, not measured
        assert row["predicted"] == row["measured"], row
    assert "export gate: exported model and training differ by" in said["04_finetune"]
    last = json.loads((made / "04_finetune/metrics.jsonl").read_text().splitlines()[-1])
    assert last["kind"] == "evaluation" and last["held_out/loss"] > 0
    learnt, held = (
        json.loads((made / f"02_shard/finetune{part}/shards.json").read_text()) for part in ("", "_held_out")
    )
    assert learnt["rejected"] == held["rejected"] == 0
    for source, of in learnt["by_source"].items():
        assert of["read"] + held["by_source"].get(source, {"read": 0})["read"] == 10, source
        assert of["samples"] and held["by_source"][source]["samples"], source
    assert (made / "05_eval/report.html").is_file()
    card = (made / "04_finetune/model/README.md").read_text()
    assert all(source in card for source in learnt["by_source"])
    for number, variant in enumerate(VARIANTS.get(recipe, [])):
        (made / "04_finetune").rename(made / f"04_before_{number}")
        others = [one for one in overrides if one.split("=")[0] != variant.split("=")[0]]
        run("04_finetune", [*others, variant])
        assert (made / "04_finetune/adapter").is_dir() is ("lora" in variant)

    if recipe == "basic_vlm":  # both languages, each with its own prompts
        samples = samples_of(made / "02_shard/finetune")
        chinese = [sample.turns for sample in samples if sample.source == "ai_challenger"]
        assert all(
            "只鹅" in answer.text and "图" in question.text or "看到" in question.text for question, answer in chinese
        )
        assert any(sample.turns[0].text.startswith("<image>\nWhat is in detail_23k") for sample in samples)
    if recipe == "okvqa":  # its 03 leaves the published projector, as everything, as it is
        asked = json.loads((made / "05_eval/metrics.json").read_text())["tasks"]["questions"]
        assert asked["n"] == 10 and 0 <= last["questions/accuracy"] <= 100
        for before in (made / "01_assemble/model").glob("*.safetensors"):
            assert before.read_bytes() == (made / "03_pretrain/model" / before.name).read_bytes()
