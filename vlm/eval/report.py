"""report.html: what the model can do, at a glance and answer by answer, in one file that opens from disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from vlm.eval.charts import Curve, curve_panel
from vlm.eval.gallery import Card, Said, choose, commonest_mistakes, counted, gallery
from vlm.eval.lengths import length_panels
from vlm.eval.page import GALLERY, page
from vlm.eval.results import Answered, Earlier, Result
from vlm.eval.scorers import JUDGE, SCORERS
from vlm.eval.tables import BLIND, Line, figures_table, forecast_panel, gain_panel, link_to, score_table
from vlm.files import write_whole

MISTAKES = 10  # kinds of mistakes listed for each task
VERDICTS = {"right": "Right", "wrong": "Wrong"}
LOOKS = {"needs": "right only with its picture", "blind": "right without it, too"}
SHOWN = {"shuffled": "shuffled", "removed": "no picture"}  # by blind condition, on a card

Forecasts = Mapping[str, Sequence[Mapping[str, Any]]]
"""By stage: name, unit, predicted and measured of each figure that was foreseen before a training."""


@dataclass(frozen=True)
class Beside:
    """What a report shows beside what an evaluation found."""

    forecasts: Forecasts = field(default_factory=dict)
    earlier: Earlier | None = None  # another run's answers, to be compared with


NOTHING = Beside()


def write_report(
    path: Path,
    run: str,
    results: Sequence[Result],
    curves: Mapping[str, Curve],
    count: int,
    seed: int,
    beside: Beside = NOTHING,
) -> None:
    """Write the page; `curves` are by stage, `count` is how many answers are shown in full."""
    asked = sum(len(result.answered) for result in results)
    shown = {name for result in results for one in result.answered for name in one.blind}
    again = "".join(f", and again with {BLIND[name]}" for name in BLIND if name in shown)
    parts = [
        '<p class="over">Evaluation</p>',
        f"<h1>{escape(run)}</h1>",
        f'<p class="lead">{asked:,} held-out questions, asked with their own pictures{again}.</p>',
        _headline(results),
        *(_task(result, len(results) > 1) for result in results),
        _training(curves, beside.forecasts),
        _gallery(results, count, seed, beside.earlier),
    ]
    html = page(f"{run} · evaluation", "\n".join(filter(None, parts)), script=GALLERY)
    write_whole(path, html.encode(errors="backslashreplace"))


def _headline(results: Sequence[Result]) -> str:
    """Return the table of all tasks; of one task alone, its categories below it."""
    lines = [
        Line(result.name, _note(result), result.score.total, is_total=True)
        for result in results
        if result.score.total is not None
    ]
    if len(results) == 1:
        lines += _categories(results[0], "")
    return score_table("task", lines) if lines else ""


def _categories(result: Result, prefix: str) -> list[Line]:
    found = result.score.categories
    if len(found) < 2:
        return []
    return [Line(name, f"{of.n:,} questions", of, link=link_to(category=prefix + name)) for name, of in found.items()]


def _note(result: Result) -> str:
    unmarked = sum(None in (one.mark, *(seen.mark for seen in one.blind.values())) for one in result.answered)
    missing = f", {unmarked:,} unmarked" if unmarked else ""
    return f"{result.metric}, {len(result.answered):,} questions{missing}"


def _task(result: Result, is_one_of_many: bool) -> str:
    """Return what a task has to say: categories, what the pictures add, other figures, lengths, mistakes."""
    prefix = f"{result.name}: " if is_one_of_many else ""
    parts = [f"<h2>{escape(result.name)}</h2>"] if is_one_of_many else []
    lines = _categories(result, prefix) if is_one_of_many else []
    if lines:
        parts.append(score_table("category", lines))
    if figures := figures_table(result.score.figures):
        parts.append(f"<h3>Other figures</h3>{figures}")
    scores = dict(result.score.categories) if len(result.score.categories) > 1 else {}
    if result.score.total is not None:
        scores = {"all": result.score.total, **scores}
    panels = [*(gain_panel(name, scores) for name in BLIND), length_panels(result.answered)]
    if any(panels):
        parts.append(
            f'<h3>What the pictures add, and how long the answers are</h3><div class="pair">{"".join(panels)}</div>'
        )
    if mistakes := _mistakes(result):
        parts.append(f"<h3>Commonest mistakes</h3>{mistakes}")
    return "\n".join(parts)


def _mistakes(result: Result) -> str:
    if result.metric == SCORERS[JUDGE].metric:
        return ""  # free answers are each given once
    items = "".join(
        f'<li><a href="{escape(link_to(verdict="wrong", search=f"{reference} {answer}"))}">{escape(reference)} → '
        f"<del>{escape(answer) or 'nothing'}</del> <small>× {times:,}</small></a></li>"
        for reference, answer, times in commonest_mistakes(result.answered, MISTAKES)
    )
    return f'<ul class="mistakes num">{items}</ul>' if items else ""


def _training(curves: Mapping[str, Curve], forecasts: Forecasts) -> str:
    panels = [curve_panel(stage, curve) for stage, curve in curves.items()]
    panels += [forecast_panel(stage, rows) for stage, rows in forecasts.items() if rows]
    return f'<h2>Training</h2><div class="pair">{"".join(panels)}</div>' if panels else ""


def _gallery(results: Sequence[Result], count: int, seed: int, earlier: Earlier | None) -> str:
    """Return the answers shown in full, as many of each task."""
    cards: list[Card] = []
    for number, result in enumerate(results):
        share = count // len(results) + (number < count % len(results))
        prefix = f"{result.name}: " if len(results) > 1 else ""
        cards += [_card(one, result, prefix, earlier) for one in choose(result.answered, share, seed)]
    looks = {name: text for name, text in LOOKS.items() if any(one.others["look"] == name for one in cards)}
    asked = sum(len(result.answered) for result in results)
    few = "" if len(cards) == asked else ", right and wrong ones half and half as far as there are enough of both"
    lead = f"{len(cards):,} of {asked:,} answers{few}, in mixed order." if few else f"All {asked:,}, in mixed order."
    if earlier:
        lead += f" Changed are those that {escape(earlier.run)} answered otherwise."
    verdicts = VERDICTS | ({"changed": "Changed"} if earlier else {})
    choices = {"look": ("with and without pictures", looks)} if looks else {}
    return f'<h2>Answers</h2>\n<p class="lead">{lead}</p>\n{gallery(cards, verdicts, choices)}'


def _card(one: Answered, result: Result, prefix: str, earlier: Earlier | None) -> Card:
    question = one.question
    before = earlier.answer_to(result.name, question) if earlier else None
    said = [Said("answered", one.answer, one.mark)]
    if one.remark:
        said.append(Said("the judge said", one.remark, None))
    if before:
        said.append(Said(f"in {earlier.run}", before.answer, before.mark))
    if question.pictures:
        said += [
            Said(SHOWN[name], seen.answer, None, _score(seen.mark, result.metric), seen.pictures)
            for name, seen in one.blind.items()
        ]
    verdict = {True: "right", False: "wrong", None: "unmarked"}[one.is_right]
    score = _score(one.mark, result.metric)
    return Card(
        id=question.id,
        category=prefix + question.category,
        question=question.text,
        references=counted(question.references),
        pictures=question.own,
        said=said,
        verdict=verdict,
        verdict_text=score or {"unmarked": "not marked"}.get(verdict, verdict),
        split=result.split,
        others={"look": _look(one)},
        is_changed=before is not None and (before.answer, before.mark) != (one.answer, one.mark),
    )


def _look(one: Answered) -> str:
    """Return whether a right answer needs its picture; "" where nothing tells."""
    marks = [seen.mark for seen in one.blind.values() if seen.mark is not None]
    if not one.is_right or not marks or not one.question.pictures:
        return ""
    return "needs" if max(marks) < 0.5 else "blind"


def _score(mark: float | None, metric: str) -> str:
    """Return a mark in words where right or wrong does not say it."""
    if metric == "CIDEr":
        return "" if mark is None else f"CIDEr {mark:.2f}"
    return "" if mark is None or mark in (0, 1) else f"{100 * mark:.0f} %"
