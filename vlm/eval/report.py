"""report.html: what the model can do, at a glance and answer by answer, in one file that opens from disk."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from vlm.eval.charts import Curve, category_bars, curve_panel
from vlm.eval.gallery import card, choose, commonest_mistakes, tools
from vlm.eval.page import page
from vlm.eval.results import Result
from vlm.eval.score import Score

MISTAKES = 10  # kinds of mistakes listed for each task


def write_report(
    path: Path, run: str, results: Sequence[Result], curves: Mapping[str, Curve], gallery: int, seed: int
) -> None:
    """Write the page; `curves` are by stage, `gallery` is the number of answers shown in full."""
    asked = sum(len(result.answered) for result in results)
    twice = any(result.score.total and "shuffled" in result.score.total.blind for result in results)
    how = "their own pictures, and again with the pictures of other samples" if twice else "their pictures"
    parts = [
        '<p class="over">Evaluation</p>',
        f"<h1>{escape(run)}</h1>",
        f'<p class="lead">{asked:,} held-out questions, asked with {how}.</p>',
        *(_task(result) for result in results),
    ]
    if curves:
        panels = "".join(curve_panel(stage, curve) for stage, curve in curves.items())
        parts.append(f'<h2>Training</h2><div class="curves">{panels}</div>')
    parts.append(_gallery(results, gallery, seed))
    waiting = path.with_name(path.name + ".tmp")
    waiting.write_text(page(f"{run} · evaluation", "\n".join(parts)), encoding="utf-8")
    waiting.rename(path)


def _task(result: Result) -> str:
    """Return headline figures, bars for each category and the commonest mistakes."""
    parts = [f"<h2>{escape(result.name)}</h2>", _stats(result.score.total) if result.score.total else ""]
    if len(result.score.categories) > 1:
        shuffled = "shuffled" in result.score.total.blind
        key = '<p class="key"><span><i></i>percent right, with pictures</span>'
        key += '<span><i class="blind"></i>with shuffled pictures</span>' if shuffled else ""
        key += '<span><i class="whisker"></i>95 % interval</span></p>'
        bars = category_bars(result.score.categories)
        parts.append(f'<h3>By category</h3><div class="panel">{bars}{key}</div>')
    mistakes = commonest_mistakes(result.answered, MISTAKES)
    if mistakes:
        items = "".join(
            f"<li>{escape(reference)} → <del>{escape(answer) or 'nothing'}</del> <small>× {times:,}</small></li>"
            for reference, answer, times in mistakes
        )
        parts.append(f'<h3>Commonest mistakes</h3><ul class="mistakes num">{items}</ul>')
    return "\n".join(parts)


def _stats(total: Score) -> str:
    low, high = total.interval
    stats = [
        f'<div class="stat seeing"><b>{total.value:.1f}<small>%</small></b><span>answered right</span>'
        f"<i>95 % interval {low:.1f} to {high:.1f}; {total.n:,} questions</i></div>"
    ]
    if shuffled := total.blind.get("shuffled"):
        low, high = shuffled.interval
        stats.append(
            f'<div class="stat"><b>{shuffled.value:.1f}<small>%</small></b><span>with shuffled pictures</span>'
            f"<i>95 % interval {low:.1f} to {high:.1f}; what guessing gives</i></div>"
            f'<div class="stat"><b>{shuffled.gain:+.1f}</b><span>visual gain</span>'
            "<i>points that come from looking</i></div>"
        )
    return f'<div class="stats num">{"".join(stats)}</div>'


def _gallery(results: Sequence[Result], count: int, seed: int) -> str:
    """Return the answers shown in full, as many of each task."""
    cards = []
    categories: list[str] = []
    for number, result in enumerate(results):
        share = count // len(results) + (number < count % len(results))
        prefix = f"{result.name}: " if len(results) > 1 else ""
        categories += [prefix + name for name in result.score.categories]
        chosen = choose(result.answered, share, seed)
        cards += [card(one, prefix + one.question.category, result.split) for one in chosen]
    lead = f"{len(cards):,} of them, right and wrong ones half and half as far as there are enough of both."
    return (
        f'<h2>Answers</h2>\n<p class="lead">{lead}</p>\n{tools(categories)}\n'
        '<div class="gallery">\n' + "\n".join(cards) + "\n</div>"
    )
