"""Scenes to ask about, a small corpus, and backbones after two steps."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vlm.demo.corpus import CorpusSize, write_corpus
from vlm.demo.language import LanguageSettings, train_language_model
from vlm.demo.scenes import Scene, Shape
from vlm.demo.tower import TowerSettings, train_tower
from vlm.demo.training import Training

SMALL = CorpusSize(train_scenes=60, test_scenes=20)
GREY = (0, 0, 0)
TOWER = TowerSettings(pictures=40, training=Training(steps=2, batch=8, lr=1e-3))
LANGUAGE = LanguageSettings(training=Training(steps=2, batch=4, lr=1e-3), tokenizer_documents=200)


def scene_of(*shapes: tuple[str, str, int]) -> Scene:
    return Scene(tuple(Shape(colour, kind, place, 16, 16, 9, GREY) for colour, kind, place in shapes), background=0)


THREADS_BEFORE = torch.get_num_threads()


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """Give the tests that follow back the number of threads that the backbones' training sets."""
    yield
    torch.set_num_threads(THREADS_BEFORE)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus_into(tmp_path / "corpus")
    return tmp_path / "corpus"


def write_corpus_into(folder: Path) -> None:
    folder.mkdir()
    write_corpus(folder, seed=3, size=SMALL)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="session")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision_tower")
    train_tower(folder, 0, TOWER)
    return folder


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language_model")
    train_language_model(folder, 0, LANGUAGE)
    return folder
