"""A few fixed questions to a model while it trains, scored as in stage 05, and samples.html: how its answers change.

samples/step_000100.json    by task: id, category, question, reference, answer, right or not
samples.html                the first of them with their pictures, a column for each look
"""

import io
import json
import tempfile
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

from transformers import LlavaForConditionalGeneration

from vlm import ranks
from vlm.config import EvaluationConfig, TaskConfig
from vlm.errors import Unusable
from vlm.eval.answer import Answerer
from vlm.eval.results import Result
from vlm.eval.run import ask
from vlm.eval.samples_page import PAGE, write_samples
from vlm.eval.score import headline
from vlm.eval.scorers import CAPTIONS, SCORERS
from vlm.eval.tasks import Pictures, open_task
from vlm.files import write_whole

ANSWERS = "samples"
BATCH = 16  # questions that are answered at once


class Suite:
    """The questions of all tasks; called with a model and its step, it returns the scores."""

    def __init__(
        self, tasks: dict[str, TaskConfig], splits: dict[str, Pictures], shown: int, seed: int, base: Path, out: Path
    ) -> None:
        """Ask about `splits`, one for each task; `base` is the folder that the model began as."""
        self.tasks = tasks
        self.splits = splits
        self.shown = shown
        self.seed = seed
        self.base = base
        self.out = out

    @classmethod
    def of(cls, cfg: EvaluationConfig, seed: int, *, base: Path, shards: Path, out: Path) -> "Suite | None":
        """Return the suite of a training's settings; None if it asks nothing.

        Raises Unusable if a task's split was not sharded.
        """
        if not (cfg.is_on and cfg.answers):
            return None
        tasks = {
            name: replace(task, limit=min(cfg.answers, task.limit or cfg.answers)) for name, task in cfg.tasks.items()
        }
        for name, task in tasks.items():
            if SCORERS[task.scorer].mark is None and task.scorer not in CAPTIONS:
                raise Unusable(f"task {name}: scorer={task.scorer} gives no score while training: leave it to stage 05")
        splits = {name: open_task(name, task, shards, seed) for name, task in tasks.items()}
        return cls(tasks, splits, cfg.shown, seed, base, out)

    def __call__(self, model: LlavaForConditionalGeneration, step: int) -> dict[str, float]:
        """Return accuracy and its 95 % interval by task, percent; the first rank writes the answers down.

        Every rank asks everything, so that all run as many forwards, which ZeRO-3 needs.
        """
        answerer = Answerer(self.base, model)
        results = []
        for name, task in self.tasks.items():
            with (
                tempfile.TemporaryDirectory() as folder,
                redirect_stderr(io.StringIO()),
            ):  # the training has its own bar
                results.append(ask(name, task, self.splits[name], answerer, self.seed, Path(folder), BATCH))
        if ranks.first():
            self._write(results, step)
        return {key: value for result in results for key, value in _figures(result).items()}

    def _write(self, results: list[Result], step: int) -> None:
        answers = {
            result.name: [
                {
                    "id": one.question.id,
                    "category": one.question.category,
                    "question": one.question.text,
                    "reference": one.question.reference,
                    "answer": one.answer,
                    "right": bool(one.is_right),
                }
                for one in result.answered
            ]
            for result in results
        }
        folder = self.out / ANSWERS
        folder.mkdir(exist_ok=True)
        content = json.dumps(answers, indent=1, ensure_ascii=False)
        write_whole(folder / f"step_{step:06d}.json", content.encode())
        looks = {}  # of steps up to this one: a killed run may have left later ones, which come again
        for file in sorted(folder.glob("step_*.json")):
            if (at := int(file.stem.removeprefix("step_"))) <= step:
                looks[at] = json.loads(file.read_text())
        write_samples(self.out / PAGE, self.out.name.removesuffix(".partial"), results, looks, self.shown)


def _figures(result: Result) -> dict[str, float]:
    found = headline(result.score)
    low, high = found["interval"]
    figures = {"accuracy": found["score"], "low": low, "high": high}
    figures |= {key: value for key, value in found.items() if key.startswith("visual_gain")}
    return {f"{result.name}/{key}": value for key, value in figures.items()}
