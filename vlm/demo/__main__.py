"""Make the demo's stand-ins for downloads: a corpus, a vision tower and a language model.

    python -m vlm.demo [--folder demo] [--seed 0]

Three parts, each whole or not there: running it again after an interruption completes what is missing.
"""

import argparse
from pathlib import Path

from vlm.demo.corpus import CorpusSize, write_corpus
from vlm.demo.parts import make_part


def main() -> None:
    """Make what is not there yet."""
    parser = argparse.ArgumentParser(prog="python -m vlm.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of scenes and weights alike (default: %(default)s)")
    asked = parser.parse_args()
    make_part(asked.folder / "corpus", lambda folder: write_corpus(folder, asked.seed, CorpusSize()))
    make_part(asked.folder / "vision_tower", lambda folder: _train_tower(folder, asked.seed))
    make_part(asked.folder / "language_model", lambda folder: _train_language_model(folder, asked.seed))


def _train_tower(folder: Path, seed: int) -> None:
    from vlm.demo.tower import train_tower  # torch enters here: the corpus needs none

    train_tower(folder, seed)


def _train_language_model(folder: Path, seed: int) -> None:
    from vlm.demo.language import train_language_model

    train_language_model(folder, seed)


if __name__ == "__main__":
    main()
