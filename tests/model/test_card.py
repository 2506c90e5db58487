import json

import pytest
import yaml

from vlm.config import LearningRates, LoraConfig, Strategy, TrainConfig
from vlm.model.card import lineage, write_cards


@pytest.fixture
def inputs(tiny_shards, tmp_path):
    """Artifacts as stage 04 finds them: 03_pretrain, made of 01_assemble and 02_shard."""
    (tmp_path / "02_shard").symlink_to(tiny_shards)
    made_of = {"01_assemble": [], "03_pretrain": ["01_assemble", "02_shard"], "02_shard": []}
    for stage, reads in made_of.items():
        folder = tmp_path / stage
        folder.mkdir(exist_ok=True)
        record = {"key": f"key of {stage}", "inputs": {name: f"key of {name}" for name in reads}}
        (folder / "artifact.json").write_text(json.dumps(record))
    return {stage: tmp_path / stage for stage in ("03_pretrain", "02_shard")}


def test_a_card_tells_data_recipe_figures_and_lineage(inputs, tiny_shards, tmp_path):
    out = tmp_path / "out"
    for folder in ("model", "adapter"):
        (out / folder).mkdir(parents=True)
    cfg = TrainConfig(
        strategy=Strategy.lora, lr=LearningRates(lora=2e-4), lora=LoraConfig(8, 16.0, 0.0, targets=["q_proj"])
    )
    write_cards(out, inputs, "finetune", cfg, {"step": 6, "export_gate": {"exported model and training": 1e-6}})
    model, adapter = ((out / folder / "README.md").read_text() for folder in ("model", "adapter"))
    front, body = model.split("---\n", 2)[1:]
    assert yaml.safe_load(front) == {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    manifest = json.loads((tiny_shards / "finetune/shards.json").read_text())
    assert f"| **finetune**, as chat | {manifest['samples']} |" in body and manifest["fingerprint"] in body
    recipe = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert recipe["strategy"] == "lora" and recipe["lora"]["alpha"] == 16.0 and "runtime" not in recipe
    assert "| export_gate.exported model and training | 1e-06 |" in body
    for stage in ("01_assemble", "02_shard", "03_pretrain"):
        assert f"| {stage} | key of {stage} |" in body
    assert "PeftModel.from_pretrained" in adapter and "library_name: peft" in adapter
    assert str(tmp_path) not in model + adapter  # equal trainings write equal cards wherever they lie


def test_lineage_reaches_all_that_was_used(inputs):
    keys = {stage: f"key of {stage}" for stage in ("01_assemble", "02_shard", "03_pretrain")}
    assert lineage(inputs) == keys
    (inputs["03_pretrain"].with_name("01_assemble") / "artifact.json").unlink()  # removed since, for its room
    assert lineage(inputs) == keys
