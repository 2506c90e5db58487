"""The two backbones, as folders that transformers loads: what a real run would download."""

from vlm.demo.language import LanguageSettings, train_language_model
from vlm.demo.tower import TowerSettings, train_tower

__all__ = ["LanguageSettings", "TowerSettings", "train_language_model", "train_tower"]
