"""The tower after two steps: a folder that transformers loads, and the same weights again."""

from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoModel

from vlm.demo.tower import train_tower

from .conftest import TOWER


def test_tower_loads_and_sees(tower: Path) -> None:
    model, processor = AutoModel.from_pretrained(tower), AutoImageProcessor.from_pretrained(tower)
    assert model.config.model_type == "clip_vision_model"
    pixels = processor(torch.zeros(3, 64, 64, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 64, 64)
    assert model(pixels).last_hidden_state.shape == (1, 1 + 16, model.config.hidden_size)


def test_tower_is_the_same_again(tower: Path, tmp_path: Path) -> None:
    train_tower(tmp_path, 0, TOWER)
    assert (tmp_path / "model.safetensors").read_bytes() == (tower / "model.safetensors").read_bytes()
