"""Stage 05 in order: read the questions, answer them with and without their pictures, score, report.

predictions/<task>.jsonl           what was answered; <task>.shuffled.jsonl, <task>.removed.jsonl without looking
scored/<task>.jsonl                each question with its references, answers and marks: all that comparing takes
metrics.json, report.html
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm import ranks
from vlm.config import Blind, EvalConfig, Scorer, TaskConfig
from vlm.errors import Unusable
from vlm.eval.answer import Answerer, Share, answer_all
from vlm.eval.batch import Ask
from vlm.eval.captions import check_captions
from vlm.eval.charts import read_curve
from vlm.eval.judge import Judge
from vlm.eval.predictions import Prediction, read_given
from vlm.eval.report import write_report
from vlm.eval.results import Answered, Result, Unseen
from vlm.eval.score import METRICS, Marked, Score, TaskScore, as_json, check_answers, headline, mark, score
from vlm.eval.tasks import (
    CAPTIONS,
    Pictures,
    Place,
    Question,
    fingerprint,
    open_task,
    read_questions,
    swapped_pictures,
    where,
)
from vlm.files import write_whole
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
) -> dict[str, Any]:
    """Write predictions, marks, metrics.json and report.html into `out`, going on with what is there; return the figures.

    `finetuned` is stage 04's artifact, which is asked unless the settings name another model; `shards` is stage 02's.
    Every rank calls; the first one writes all but its answers. Raises Unusable if no task is set, a task has no
    questions, or something that a task needs is missing, before the model is loaded.
    """
    if not cfg.tasks:
        raise Unusable("no task is given: set eval.tasks, or choose eval=")
    for task in cfg.tasks.values():
        if task.scorer in CAPTIONS:
            check_captions(chinese=task.scorer is Scorer.captions_zh)
    samples = {name: open_task(name, task, shards, seed) for name, task in cfg.tasks.items()}
    if cfg.predictions is not None:
        results = [
            given(name, task, samples[name], Path(cfg.predictions), seed, judge) for name, task in cfg.tasks.items()
        ]
        if ranks.first():
            _write(out, run, results, cfg, seed, {"name": cfg.predictions, "fingerprint": None}, {}, judge)
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
        _write(out, run, results, cfg, seed, model, _curves(saved), judge)
    ranks.barrier()
    return {result.name: headline(result.score) for result in results}


def table(name: str, scores: TaskScore, metric: str) -> str:
    """Return a task's scores as lines of text: percent with its 95 % interval, without looking, gain with interval."""
    if scores.total is None:
        return f"{name}: {metric}"
    blind = list(scores.total.blind)
    rows = [
        ("", "questions", f"{metric}, %", "interval", *(cell for one in blind for cell in (one, "gain", "interval")))
    ]
    rows += [_row(category, of, blind) for category, of in scores.categories.items() if len(scores.categories) > 1]
    rows.append(_row(name, scores.total, blind))
    lines = [_aligned(rows)]
    if scores.figures:
        names = list(dict.fromkeys(column for row in scores.figures.values() for column in row))
        lines.append(
            _aligned(
                [("", *names), *((row, *(_shown(of.get(one)) for one in names)) for row, of in scores.figures.items())]
            )
        )
    return "\n".join(lines)


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    cells = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return "\n".join("  ".join(row) for row in cells)


def _row(name: str, of: Score, blind: Sequence[str]) -> tuple[str, ...]:
    cells = [name, f"{of.n:,}", f"{of.value:.1f}", "{:.1f}-{:.1f}".format(*of.interval)]
    for condition in blind:
        one = of.blind[condition]
        cells += [f"{one.value:.1f}", f"{one.gain:+.1f}", "{:+.1f} to {:+.1f}".format(*one.gain_interval)]
    return tuple(cells)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


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
        if task.scorer is not Scorer.judge:
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
    return Result(name, samples, answered, score(questions, marks, unseen, seed), METRICS[task.scorer])


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


def _write(
    out: Path,
    run: str,
    results: Sequence[Result],
    cfg: EvalConfig,
    seed: int,
    model: dict[str, Any],
    curves: dict,
    judge: Judge | None = None,
) -> None:
    for result in results:
        folder = out / "scored"
        folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(_scored(one), ensure_ascii=False) + "\n" for one in result.answered)
        write_whole(folder / f"{result.name}.jsonl", lines.encode(errors="backslashreplace"))
    tasks = {result.name: _task_json(result, cfg.tasks[result.name]) for result in results}
    for name in tasks if judge else ():
        tasks[name] |= judge.as_json(name)
    text = json.dumps({"model": model, "tasks": tasks}, indent=1, ensure_ascii=False) + "\n"
    write_whole(out / "metrics.json", text.encode())
    write_report(out / "report.html", run, results, curves, cfg.gallery, seed)
    for result in results:
        print(table(result.name, result.score, result.metric))
        if judge:
            print("".join(f"{line}\n" for line in judge.lines(result.name)), end="")
    print(f"report: {out.with_name(out.name.removesuffix('.partial')) / 'report.html'}")


def _scored(one: Answered) -> dict[str, Any]:
    question = one.question
    return {
        "question_id": question.id,
        "category": question.category,
        "question": question.text,
        "references": list(question.references),
        "answer": one.answer,
        "mark": one.mark,
        "tokens": one.tokens,
        "pictures": list(question.pictures),
        "sample": question.sample,
        "blind": {name: {"answer": seen.answer, "mark": seen.mark} for name, seen in one.blind.items()},
    }


def _task_json(result: Result, task: TaskConfig) -> dict[str, Any]:
    answered = result.answered
    references = [len(text.split()) for one in answered for text in one.question.references]
    lengths = {
        "tokens_mean": round(sum(one.tokens for one in answered) / len(answered), 2),
        "words_mean": round(sum(len(one.answer.split()) for one in answered) / len(answered), 2),
        "reference_words_mean": round(sum(references) / len(references), 2) if references else None,
        "empty": sum(not one.answer for one in answered),
        "cut": sum(one.tokens >= task.max_new_tokens for one in answered),
    }
    return {
        **as_json(result.score, task.scorer),
        "answers": lengths,
        "source": where(result.split),
        "questions": fingerprint([one.question for one in answered]),
    }
