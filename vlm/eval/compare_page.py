"""compare.html: what changed between two runs, task by task and answer by answer, in one file that opens from disk."""

from html import escape
from pathlib import Path

from vlm.eval.gallery import Card, Said, counted, gallery
from vlm.eval.page import GALLERY, page
from vlm.eval.results import Changed, Comparison, TaskComparison
from vlm.eval.tables import link_to
from vlm.files import write_whole

PAGE = "compare.html"
VERDICTS = {"gained": "Better", "lost": "Worse"}


def write_compare(path: Path, comparison: Comparison) -> None:
    """Write the page."""
    before, after = comparison.runs
    cards = [
        _card(one, of, comparison.runs, f"{name}: " if len(comparison.tasks) > 1 else "")
        for name, of in comparison.tasks.items()
        for one in of.changed
    ]
    body = [
        '<p class="over">Comparison</p>',
        f"<h1>{escape(after)} against {escape(before)}</h1>",
        '<p class="lead">The same questions, asked of both; only answers whose mark changed are shown below.</p>',
        _table(comparison),
        f"<h2>Changed answers</h2>\n{gallery(cards, VERDICTS, {})}" if cards else "<p>No answer's mark changed.</p>",
    ]
    html = page(f"{after} against {before}", "\n".join(body), script=GALLERY if cards else "")
    write_whole(path, html.encode(errors="backslashreplace"))


def _table(comparison: Comparison) -> str:
    before, after = (escape(run) for run in comparison.runs)
    heads = ("task", before, after, "difference", "95 % interval", "by chance", "better", "worse", "same")
    head = "".join(f"<th>{text}</th>" for text in heads)
    rows = "".join(_row(name, of, before, after) for name, of in comparison.tasks.items())
    return (
        f'<div class="panel"><table class="stack num"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        '<p class="note">by chance: how probable so large a difference is if both are equally good</p></div>'
    )


def _row(name: str, of: TaskComparison, before: str, after: str) -> str:
    low, high = of.interval
    look = "" if low <= 0 <= high else "up" if of.difference > 0 else "down"
    cells = {
        before: f"{of.values[0]:.1f}",
        after: f"{of.values[1]:.1f}",
        "difference": f'<b class="{look}">{of.difference:+.2f}</b>',
        "95 % interval": f"{low:+.2f} to {high:+.2f}",
        "by chance": f"{of.p:.2g}<small>{escape(of.test)}</small>",
        "better": f'<a href="{link_to(verdict="gained")}">{of.gained:,}</a>',
        "worse": f'<a href="{link_to(verdict="lost")}">{of.lost:,}</a>',
        "same": f"{of.n - len(of.changed):,}",
    }
    columns = "".join(f'<td data-of="{head}">{cell}</td>' for head, cell in cells.items())
    return f"<tr><th>{escape(name)}<small>{escape(of.metric)}, {of.n:,} questions</small></th>{columns}</tr>"


def _card(one: Changed, of: TaskComparison, runs: tuple[str, str], prefix: str) -> Card:
    is_better = one.marks[1] > one.marks[0]
    said = [
        Said(run, answer, mark, "" if mark in (0, 1) else f"{mark:.2f}")
        for run, answer, mark in zip(runs, one.answers, one.marks, strict=True)
    ]
    return Card(
        id=one.question_id,
        category=prefix + one.category,
        question=one.question,
        references=counted(one.references),
        pictures=tuple((one.sample, i) for i in range(one.pictures)),
        said=said,
        verdict="gained" if is_better else "lost",
        verdict_text="better" if is_better else "worse",
        split=of.split,
    )
