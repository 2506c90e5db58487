"""Small towers and language models of each kind, and a LLaVA of any two of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
    SiglipVisionModel,
)

VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
TOWERS = {
    "clip": CLIPVisionConfig(**VISION, image_size=16, patch_size=8, projection_dim=16, initializer_factor=8.0),
    "siglip": SiglipVisionConfig(**VISION, image_size=16, patch_size=8),
}
LANGUAGE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LANGUAGE_MODELS = {"qwen2": Qwen2Config(**LANGUAGE), "llama": LlamaConfig(**LANGUAGE)}


@pytest.fixture(scope="session")
def llava() -> Callable[..., LlavaForConditionalGeneration]:
    """Return a function that makes a LLaVA with random float32 weights; token 63 is its picture."""

    def make(
        language: str = "qwen2", tower: str = "clip", layer: int = -2, attention: str = "sdpa"
    ) -> LlavaForConditionalGeneration:
        torch.manual_seed(3)
        config = LlavaConfig(
            vision_config=TOWERS[tower].to_dict(),
            text_config=LANGUAGE_MODELS[language].to_dict(),
            image_token_index=63,
            image_seq_length=4,
            vision_feature_layer=layer,
            vision_feature_select_strategy="default" if tower == "clip" else "full",
            tie_word_embeddings=False,
        )
        model = LlavaForConditionalGeneration(config).eval()
        model.set_attn_implementation(attention)
        for name, weight in model.named_parameters():
            if "vision_tower" in name or "multi_modal" in name:
                torch.nn.init.normal_(weight, std=0.3)
        return model

    return make


@pytest.fixture(scope="session")
def siglip_tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SigLIP tower's folder: 4 tokens a picture and no CLS."""
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(4)
    SiglipVisionModel(TOWERS["siglip"]).save_pretrained(folder)
    save_processor(folder)
    return folder


@pytest.fixture(scope="session")
def whole_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP folder as published, with the text half beside the vision half."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(5)
    text = CLIPTextConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=TOWERS["clip"].to_dict(), projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    save_processor(folder)
    return folder


def save_processor(folder: Path) -> None:
    edges = {"height": 16, "width": 16}
    processor = CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size=edges, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]
    )
    processor.save_pretrained(folder)
