"""Stage 01 as a whole: assemble, then the gates; a folder that does not pass them is not left behind."""

import shutil
from pathlib import Path
from typing import Any

from vlm.config import ModelConfig
from vlm.model.assemble import plan, write_model
from vlm.model.gates import check


def build(model: ModelConfig, tokenizer_folder: Path, seed: int, out: Path) -> dict[str, Any]:
    """Write the assembled model into `out` and put it through the gates; return the headline figures.

    Raises Unusable, leaving no `out`, if a part is unusable or a gate fails.
    """
    shutil.rmtree(out, ignore_errors=True)  # of an interrupted run
    ready = plan(model, tokenizer_folder)
    try:
        figures = write_model(ready, model, seed, out)
        return figures | {"gates": check(ready, out)}
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
