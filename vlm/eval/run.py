"""Stage 05 in order: read the questions, answer them with and without their pictures, score, report."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm.config import EvalConfig, Scorer, TaskConfig
from vlm.data.index import Split
from vlm.errors import Unusable
from vlm.eval.answer import Answerer, answer_all
from vlm.eval.charts import read_curve
from vlm.eval.gallery import Answered
from vlm.eval.report import Result, write_report
from vlm.eval.score import Score, TaskScore, as_json, headline, marks, score, yes_no_figures
from vlm.eval.tasks import read_questions, swapped_pictures

TRAININGS = ("03_pretrain", "04_finetune")


def evaluate(cfg: EvalConfig, seed: int, run: str, model: Path, shards: Path, out: Path) -> dict[str, Any]:
    """Write predictions, metrics.json and report.html into `out`, going on with what is there; return the figures.

    `model` is stage 04's artifact, `shards` is stage 02's.
    Raises Unusable if no task is set or a task has no questions.
    """
    if not cfg.tasks:
        raise Unusable("no task is given: set eval.tasks, or choose eval=")
    splits = {name: Split(shards / task.split) for name, task in cfg.tasks.items()}  # before the model is loaded
    answerer = Answerer(model / "model")
    results = [
        ask(name, task, splits[name], answerer, seed, out, cfg.runtime.batch_size) for name, task in cfg.tasks.items()
    ]
    metrics = {result.name: as_json(result.score) for result in results}
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    found = {stage: read_curve(model.parent / stage / "metrics.jsonl") for stage in TRAININGS}
    curves = {stage: curve for stage, curve in found.items() if curve is not None}
    write_report(out / "report.html", run, results, curves, cfg.gallery, seed)
    for result in results:
        print(table(result.name, result.score))
    print(f"report: {out.with_name(out.name.removesuffix('.partial')) / 'report.html'}")
    return {result.name: headline(result.score) for result in results}


def table(name: str, scores: TaskScore) -> str:
    """Return a task's scores as lines of text: percent right with its 95 % interval, shuffled, gain."""
    rows = [("", "questions", "% right", "interval", "shuffled", "gain")]
    rows += [_row(category, of) for category, of in scores.categories.items()]
    rows.append(_row(name, scores.total))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    aligned = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return "\n".join("  ".join(cells) for cells in aligned)


def _row(name: str, of: Score) -> tuple[str, ...]:
    low, high = of.seeing.interval
    shuffled = "" if of.shuffled is None else f"{of.shuffled.percent:.1f}"
    gain = "" if of.visual_gain is None else f"{of.visual_gain:+.1f}"
    return name, f"{of.seeing.n:,}", f"{of.seeing.percent:.1f}", f"{low:.1f}-{high:.1f}", shuffled, gain


def ask(name: str, task: TaskConfig, split: Split, answerer: Answerer, seed: int, out: Path, batch_size: int) -> Result:
    """Answer and score one task."""
    questions = read_questions(name, task, split, answerer.chat)
    others = swapped_pictures(questions, seed) if task.shuffled else [() for _ in questions]
    conditions = {name: [question.own for question in questions]}
    if task.shuffled:
        conditions[f"{name}.shuffled"] = others
    answers = {
        condition: answer_all(
            answerer,
            split,
            list(zip(questions, pictures, strict=True)),
            out / "predictions" / f"{condition}.jsonl",
            batch_size=batch_size,
            max_new_tokens=task.max_new_tokens,
            label=f"05_eval {condition}",
        )
        for condition, pictures in conditions.items()
    }
    seeing, shuffled = answers[name], answers.get(f"{name}.shuffled")
    seen = marks(questions, seeing, task.scorer)
    scores = score(questions, seen, None if shuffled is None else marks(questions, shuffled, task.scorer))
    if task.scorer is Scorer.yes_no:
        scores = replace(scores, yes_no=yes_no_figures(questions, seeing))
    answered = [
        Answered(question, seeing[question.id], mark >= 0.5, shuffled and shuffled[question.id], places)
        for question, mark, places in zip(questions, seen, others, strict=True)
    ]
    return Result(name, split, answered, scores)
