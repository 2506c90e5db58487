"""What a process that knows nothing of this one sees in a model folder: `python -m vlm.model.fresh FOLDER…`.

Texts come in as a JSON list; a JSON line for each folder goes out. Only transformers is used.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vlm.errors import require_success


@dataclass(frozen=True)
class Seen:
    """What AutoProcessor makes of a folder."""

    processor: str  # its class
    decoded: list[str]  # decode(encode(text)) of each text
    image_tokens: int  # written for one picture that is not square
    picture: list[int]  # shape of the pixel values


def ask(folders: list[Path], texts: list[str]) -> list[Seen]:
    """Start a process that loads each folder's AutoProcessor, and return what it saw.

    Raises Unusable with the last line of its complaint if it fails, Hindered if it is killed.
    """
    command = [sys.executable, "-m", "vlm.model.fresh", *map(str, folders)]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, encoding="utf-8")
    require_success(done, f"a fresh process cannot load {folders[0].name}'s processor")
    return [Seen(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]


def look(folder: Path, texts: list[str]) -> Seen:
    """Load the folder's AutoProcessor and try it."""
    import numpy as np
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    ids = [processor.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    picture = np.zeros((40, 60, 3), np.uint8)
    inputs = processor(images=picture, text=f"{processor.image_token}\nWhat?", return_tensors="pt")
    return Seen(
        type(processor).__name__,
        [processor.decode(each) for each in ids],
        int((inputs["input_ids"] == processor.image_token_id).sum()),
        list(inputs["pixel_values"].shape),
    )


if __name__ == "__main__":
    sys.stdin.reconfigure(encoding="utf-8")
    given = json.load(sys.stdin)
    for argument in sys.argv[1:]:
        print(json.dumps(vars(look(Path(argument), given))))
