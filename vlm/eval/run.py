"""Stage 05 in order: read the questions, answer them with and without their pictures, score, report.

predictions/<task>.jsonl           what was answered; <task>.shuffled.jsonl, <task>.removed.jsonl without looking
scored/<task>.jsonl                each question with its references, answers and marks: all that comparing takes
metrics.json, report.html
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm import ranks
from vlm.config import Blind, EvalConfig, TaskConfig
from vlm.errors import Unusable
from vlm.eval.answer import Answerer, Share, answer_all
from vlm.eval.batch import Ask
from vlm.eval.captions import check_captions
from vlm.eval.charts import read_curve
from vlm.eval.judge import Judge
from vlm.eval.outcome import write
from vlm.eval.predictions import Prediction, read_given
from vlm.eval.question import Place, Question
from vlm.eval.report import NOTHING, Beside
from vlm.eval.results import Answered, Result, Unseen
from vlm.eval.score import Marked, check_answers, headline, mark, score
from vlm.eval.scorers import CAPTIONS, JUDGE, SCORERS
from vlm.eval.tasks import (
    Pictures,
    open_task,
    read_questions,
    swapped_pictures,
)
from vlm.model.saved import Saved, find

TRAININGS = ("03_pretrain", "04_finetune")


def evaluate(
    cfg: EvalConfig,
    seed: int,
    run: str,
    finetuned: Path | None,
    shards: Path | None,
    out: Path,
    judge: Judge | None = None,
    beside: Beside = NOTHING,
) -> dict[str, Any]:
    """Write predictions, marks, metrics.json and report.html into `out`, going on with what is there; return the figures.

    `finetuned` is stage 04's artifact, which is asked unless the settings name another model; `shards` is stage 02's;
    `beside` is what the report shows beside what is found here.
    Every rank calls; the first one writes all but its answers. Raises Unusable if no task is set, a task has no
    questions, or something that a task needs is missing, before the model is loaded.
    """
    if not cfg.tasks:
        raise Unusable("no task is given: set eval.tasks, or choose eval=")
    for task in cfg.tasks.values():
        if task.scorer in CAPTIONS:
            check_captions(chinese=task.scorer == "captions_zh")
    samples = {name: open_task(name, task, shards, seed) for name, task in cfg.tasks.items()}
    if cfg.predictions is not None:
        results = [
            given(name, task, samples[name], Path(cfg.predictions), seed, judge) for name, task in cfg.tasks.items()
        ]
        if ranks.first():
            write(out, run, results, cfg, seed, {"name": cfg.predictions, "fingerprint": None}, {}, judge, beside)
        return {result.name: headline(result.score) for result in results}
    ranks.pin_threads(cfg.runtime.threads)
    saved = _model(cfg, finetuned)
    ranks.join()
    answerer = Answerer(saved, dtype=cfg.dtype)
    share = (ranks.rank(), ranks.world())
    with ranks.in_contact():
        results = [
            ask(name, task, samples[name], answerer, seed, out, cfg.runtime.batch_size, share, judge)
            for name, task in cfg.tasks.items()
        ]
    if ranks.first():
        name = (
            finetuned.name if cfg.model is None else saved.name
        )  # no run's name: another run of the same key is equal
        model = {"name": name, "fingerprint": answerer.fingerprint}
        write(out, run, results, cfg, seed, model, _curves(saved), judge, beside)
    ranks.barrier()
    return {result.name: headline(result.score) for result in results}


def ask(
    name: str,
    task: TaskConfig,
    samples: Pictures,
    answerer: Answerer,
    seed: int,
    out: Path,
    batch_size: int,
    share: Share = (0, 1),
    judge: Judge | None = None,
) -> Result:
    """Answer and score one task."""
    questions = read_questions(name, task, samples, answerer.chat)
    conditions = {name: [Ask(one, one.prompt, one.own) for one in questions]}
    for blind in task.blind:
        conditions[f"{name}.{blind.value}"] = _blind(questions, blind, seed)
    predictions = {
        condition: answer_all(
            answerer,
            samples,
            asks,
            out / "predictions" / f"{condition}.jsonl",
            task,
            seed=seed,
            batch_size=batch_size,
            label=f"05_eval {condition}",
            share=share,
        )
        for condition, asks in conditions.items()
    }
    seeing, *rest = predictions.values()
    places = {blind.value: [ask.places for ask in conditions[f"{name}.{blind.value}"]] for blind in task.blind}
    return result_of(name, task, samples, questions, seeing, dict(zip(places, rest, strict=True)), places, seed, judge)


def given(
    name: str, task: TaskConfig, samples: Pictures, folder: Path, seed: int, judge: Judge | None = None
) -> Result:
    """Score answers that are there already, whoever gave them."""
    questions = read_questions(name, task, samples, None)
    found = read_given(folder / f"{name}.jsonl", [question.id for question in questions])
    return result_of(name, task, samples, questions, found, {}, {}, seed, judge)


def result_of(
    name: str,
    task: TaskConfig,
    samples: Pictures,
    questions: Sequence[Question],
    seeing: Mapping[str, Prediction],
    blind: Mapping[str, Mapping[str, Prediction]],
    places: Mapping[str, Sequence[tuple[Place, ...]]],
    seed: int,
    judge: Judge | None = None,
) -> Result:
    """Mark the answers and count the marks; `blind` and `places` (what was shown) are by condition.

    Without its judge, as on every rank but the first, a task that needs one is left without marks.
    """

    def marked(found: Mapping[str, Prediction], condition: str) -> Marked:
        answers = {identity: one.answer for identity, one in found.items()}
        if task.scorer != JUDGE:
            return mark(questions, answers, task.scorer)
        check_answers(questions, answers)
        return Marked([None] * len(questions) if judge is None else judge.mark(condition, questions, answers))

    marks = marked(seeing, name)
    unseen = {condition: marked(found, f"{name}.{condition}") for condition, found in blind.items()}
    answered = []
    for number, question in enumerate(questions):
        others = {
            condition: Unseen(
                found[question.id].answer, unseen[condition].marks[number], tuple(places[condition][number])
            )
            for condition, found in blind.items()
        }
        one = seeing[question.id]
        remark = "" if judge is None else judge.remark(name, question.id)
        answered.append(Answered(question, one.answer, marks.marks[number], one.tokens, others, remark))
    return Result(name, samples, answered, score(questions, marks, unseen, seed), SCORERS[task.scorer].metric)


def _blind(questions: Sequence[Question], blind: Blind, seed: int) -> list[Ask]:
    """Return the questions as they are asked without their own pictures."""
    if blind is Blind.shuffled:
        shown = swapped_pictures(questions, seed)
        return [Ask(one, one.prompt, places) for one, places in zip(questions, shown, strict=True)]
    return [Ask(one, one.prompt if one.blind_prompt is None else one.blind_prompt, ()) for one in questions]


def _model(cfg: EvalConfig, finetuned: Path | None) -> Saved:
    if cfg.model is not None:
        return find(cfg.model, cfg.base)
    if finetuned is None:
        raise Unusable("there is no model to be asked: give eval.model=, or run stage 04")
    return find(str(finetuned))


def _curves(saved: Saved) -> dict[str, Any]:
    """Return the loss curves of the run that a model comes from, by stage."""
    roots = [
        folder for folder in Path(saved.name).resolve().parents if any((folder / one).is_dir() for one in TRAININGS)
    ]
    if not roots:
        return {}
    found = {stage: read_curve(roots[0] / stage / "metrics.jsonl") for stage in TRAININGS}
    return {stage: curve for stage, curve in found.items() if curve is not None}
