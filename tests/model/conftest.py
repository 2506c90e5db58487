"""Small towers and language models of each kind, and a LLaVA of any two of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    GemmaConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipTextConfig,
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
LANGUAGE_MODELS = {
    "qwen2": Qwen2Config(**LANGUAGE),
    "qwen3": Qwen3Config(**LANGUAGE, head_dim=16),
    "llama": LlamaConfig(**LANGUAGE),
}
FAMILIES = {  # as published, but for the sizes: tied or not, with or without spare rows for a new word
    "qwen2": (Qwen2Config, {"vocab_size": 384}),
    "qwen2_5": (Qwen2Config, {"vocab_size": 384, "tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, {"vocab_size": 384, "tie_word_embeddings": True, "head_dim": 16}),
    "llama": (LlamaConfig, {}),
    "mistral": (MistralConfig, {"sliding_window": 64}),
    "gemma": (GemmaConfig, {"tie_word_embeddings": True, "head_dim": 16}),
}


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


@pytest.fixture(scope="session")
def siglip2_tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SigLIP 2 of one resolution as published: the siglip classes, both halves, another picture processor."""
    folder = tmp_path_factory.mktemp("siglip2")
    torch.manual_seed(6)
    text = SiglipTextConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9
    )
    vision = SiglipVisionConfig(**VISION, image_size=24, patch_size=8)
    SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 24, "width": 24}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def family(tiny_language_model, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that makes a language model of a family, random float32 weights, with the tiny tokenizer."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            tokenizer = AutoTokenizer.from_pretrained(tiny_language_model)
            config_class, changes = FAMILIES[name]
            config = config_class(**(LANGUAGE | {"vocab_size": len(tokenizer)} | changes))
            torch.manual_seed(7)
            AutoModelForCausalLM.from_config(config).save_pretrained(made[name])
            tokenizer.save_pretrained(made[name])
        return made[name]

    return make


def save_processor(folder: Path) -> None:
    edges = {"height": 16, "width": 16}
    processor = CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size=edges, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]
    )
    processor.save_pretrained(folder)
