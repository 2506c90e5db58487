"""What an evaluation leaves: marks and figures as files, the report, and a table on the terminal."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm.config import EvalConfig, TaskConfig
from vlm.eval.charts import Curve
from vlm.eval.judge import Judge
from vlm.eval.report import Beside, write_report
from vlm.eval.results import Answered, Result
from vlm.eval.score import Score, TaskScore, as_json
from vlm.eval.tasks import fingerprint, where
from vlm.files import write_whole


def write(
    out: Path,
    run: str,
    results: Sequence[Result],
    cfg: EvalConfig,
    seed: int,
    model: dict[str, Any],
    curves: Mapping[str, Curve],
    judge: Judge | None,
    beside: Beside,
) -> None:
    """Write scored/, metrics.json and report.html, and print the scores; `model` is who answered."""
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
    write_report(out / "report.html", run, results, curves, cfg.gallery, seed, beside)
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
