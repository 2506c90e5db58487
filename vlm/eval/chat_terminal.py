"""A talk in the terminal, one question from the command line, and one question about every picture of a folder."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from torch import Tensor
from tqdm import tqdm

from vlm.data.samples import Turn
from vlm.errors import Unusable
from vlm.eval.answer import Answerer
from vlm.eval.conversation import Writing, answer_each, pixels_of, question, stream

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
HELP = "/image FILE adds a picture to your next question, /new begins again, /quit ends (so does Ctrl-D)"


def ask_once(answerer: Answerer, prompt: str, images: Sequence[Path], how: Writing, out: TextIO) -> None:
    """Write the answer to one question about some pictures, as it comes.

    Raises Unusable if a picture cannot be read.
    """
    pictures = [_read(answerer, path) for path in images]
    _print(stream(answerer, [question(prompt, len(pictures))], pictures, how), out)


def talk(answerer: Answerer, images: Sequence[Path], how: Writing, lines: Iterable[str], out: TextIO) -> None:
    """Answer line after line; the first question is about `images`. What cannot be used is said, and the talk goes on."""
    turns: list[Turn] = []
    pictures: list[Tensor] = []
    added = [_read(answerer, path) for path in images]
    print(HELP, file=out)
    for line in lines:
        command, _, rest = line.strip().partition(" ")
        try:
            if command == "/quit":
                return
            if command == "/new":
                turns, pictures, added = [], [], []
            elif command == "/image":
                added.append(_read(answerer, Path(rest.strip()).expanduser()))
                print(f"{len(added)} of your next question", file=out)
            elif command.startswith("/"):
                print(HELP, file=out)
            elif command:
                asked = question(line, len(added))
                answer = _print(stream(answerer, [*turns, asked], [*pictures, *added], how), out)
                turns, pictures, added = [*turns, asked, Turn("assistant", answer)], [*pictures, *added], []
        except Unusable as problem:
            print(problem, file=out)


def typed() -> Iterator[str]:
    """Yield what a person types, line by line, with the keys of an editor where the terminal has them."""
    with suppress(ImportError):
        import readline  # noqa: F401  input() uses it once it is imported
    with suppress(EOFError):
        while True:
            yield input("> ")


def ask_about_each(
    answerer: Answerer, folder: Path, prompt: str, how: Writing, batch_size: int, out: TextIO
) -> tuple[int, int]:
    """Write a JSON line for each picture of a folder; return how many were answered, and how many cannot be used.

    A line holds image (its path below the folder), prompt and answer, or error where the picture cannot be used.
    Raises Unusable if there is no picture.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not paths:
        raise Unusable(f"{folder} holds no picture ({', '.join(sorted(PICTURES))})")
    question(prompt)  # a fault of the prompt is said before the first picture is read
    failed = 0
    with tqdm(desc="chat", total=len(paths), unit=" pictures", file=sys.stderr) as progress:
        for at in range(0, len(paths), batch_size):
            batch = paths[at : at + batch_size]
            records = dict(_read_all(answerer, batch))
            good = [path for path in batch if isinstance(records[path], Tensor)]
            answers = dict(zip(good, answer_each(answerer, prompt, [records[path] for path in good], how), strict=True))
            for path in batch:
                said = {"answer": answers[path]} if path in answers else {"error": records[path]}
                record = {"image": path.relative_to(folder).as_posix(), "prompt": prompt, **said}
                print(json.dumps(record, ensure_ascii=False), file=out, flush=True)
            failed += len(batch) - len(good)
            progress.update(len(batch))
    return len(paths) - failed, failed


def _read_all(answerer: Answerer, paths: Sequence[Path]) -> Iterator[tuple[Path, Tensor | str]]:
    """Yield each path with its picture, or with what is wrong with it."""
    for path in paths:
        try:
            yield path, _read(answerer, path)
        except Unusable as problem:
            yield path, str(problem)


def _read(answerer: Answerer, path: Path) -> Tensor:
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise Unusable(f"{path} cannot be read: {problem.strerror}") from None
    return pixels_of(answerer, data, str(path))


def _print(answer: Iterator[str], out: TextIO) -> str:
    """Write an answer as it grows; return it."""
    written = ""
    for sofar in answer:
        print(sofar[len(written) :], end="", flush=True, file=out)
        written = sofar
    print(file=out)
    return written
