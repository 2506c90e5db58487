"""samples.html: a few questions with their pictures, and what the model answered at each look; one file, no network."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vlm.eval.gallery import thumbnail
from vlm.eval.page import STYLE
from vlm.eval.results import Result
from vlm.eval.score import headline
from vlm.files import write_whole

PAGE = "samples.html"
SHOWN_PIXELS = 144  # longest edge of a picture
LOOKS = 8  # columns; of more looks, the first and some in between

TABLE_STYLE = """
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 14px; background: var(--card); }
table { border-collapse: collapse; width: 100%; }
th, td { padding: 10px 14px; text-align: left; vertical-align: top; border-top: 1px solid var(--line); min-width: 7em; }
th:first-child, td:first-child { padding-left: 14px; }
thead th { border-top: 0; padding-top: 10px; font: 600 13px system-ui, sans-serif; color: var(--soft); white-space: nowrap; }
td.pictures img { display: block; max-width: 144px; border-radius: 8px; margin-bottom: 6px; }
td.question { min-width: 14em; font-weight: 600; white-space: pre-line; }
td { overflow-wrap: anywhere; } td.right { color: var(--right); } td.wrong { color: var(--wrong); }
td.latest.right { background: var(--right-bg); } td.latest.wrong { background: var(--wrong-bg); }
"""

Looks = Mapping[int, Mapping[str, Sequence[Mapping[str, Any]]]]
"""By step and task: id, answer and right or not, of each question."""


def write_samples(path: Path, title: str, results: Sequence[Result], looks: Looks, shown: int) -> None:
    """Write the page: the first `shown` questions of each task, the latest answer first, then those before it."""
    latest = max(looks)
    body = [
        '<p class="over">Answers while training</p>',
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">Held-out questions, asked at step {latest:,} and before.</p>',
        *(_task(result, looks, shown) for result in results),
    ]
    page = (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} · samples</title>\n<style>{STYLE}{TABLE_STYLE}</style>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</html>\n"
    )
    write_whole(path, page.encode())


def columns(steps: Sequence[int], most: int) -> list[int]:
    """Return up to `most` of the steps, the latest first: it, the first, and others evenly between."""
    ordered = sorted(steps, reverse=True)
    if len(ordered) <= most:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (most - 1))] for i in range(most)]


def _task(result: Result, looks: Looks, shown: int) -> str:
    steps = columns([step for step, tasks in looks.items() if result.name in tasks], LOOKS)
    answers = {step: {one["id"]: one for one in looks[step][result.name]} for step in steps}
    names = "".join(f"<th>{'' if i else 'latest, '}step {step:,}</th>" for i, step in enumerate(steps))
    rows = []
    for one in result.answered[:shown]:
        pictures = "".join(thumbnail(result.split, place, SHOWN_PIXELS) for place in one.question.own) or "none"
        cells = "".join(
            _cell(answers[step].get(one.question.id), "" if i else "latest ") for i, step in enumerate(steps)
        )
        rows.append(
            f'<tr><td class="pictures">{pictures}</td><td class="question">{escape(one.question.text)}</td>'
            f"<td>{escape(one.question.reference)}</td>{cells}</tr>"
        )
    found = headline(result.score)
    low, high = found["interval"]
    return (
        f"<h2>{escape(result.name)}</h2>\n"
        f'<p class="lead num">{found["score"]:.1f} % of {found["n"]:,} right at the latest look, 95 % interval '
        f"{low:.1f} to {high:.1f}.</p>\n"
        f'<div class="scroll"><table><thead><tr><th>picture</th><th>question</th><th>expected</th>{names}</tr></thead>\n'
        "<tbody>\n" + "\n".join(rows) + "\n</tbody></table></div>"
    )


def _cell(one: Mapping[str, Any] | None, latest: str) -> str:
    """Return an answer as a cell; None if the question was not asked then."""
    if one is None:
        return "<td></td>"
    answer = escape(one["answer"]) if one["answer"] else "<em>nothing</em>"
    return f'<td class="{latest}{"right" if one["right"] else "wrong"}">{answer}</td>'
