"""Figures of the report as tables and bars: scores with their intervals, and what the pictures add."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote

from vlm.eval.score import Figures, Score

BLIND = {"shuffled": "shuffled pictures", "removed": "no picture"}  # by condition: what was shown instead


@dataclass(frozen=True)
class Line:
    """A line of a table of scores."""

    name: str
    note: str  # below the name
    score: Score
    is_total: bool = False
    link: str = ""  # where its name leads


def score_table(first: str, lines: Sequence[Line]) -> str:
    """Return a table with bars: score, interval, and for each blind condition its score and the visual gain.

    The bars share one scale, which ends at 100 or at what is higher (CIDEr).
    """
    conditions = [name for name in BLIND if any(name in line.score.blind for line in lines)]
    top = max(100.0, *(line.score.interval[1] for line in lines))
    heads = [escape(first), "", "score, 95 % interval", *(BLIND[name] for name in conditions)]
    heads += [f"gain over {BLIND[name]}" for name in conditions]
    head = "".join(f"<th>{text}</th>" for text in heads)
    body = "".join(_line(line, conditions, top) for line in lines)
    key = '<p class="key"><span><i></i>with its pictures</span>'
    key += '<span><i class="blind"></i>without them</span>' if conditions else ""
    key += '<span><i class="whisker"></i>95 % interval</span></p>'
    table = f'<table class="scores stack num"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="panel">{table}{key}</div>'


def gain_panel(condition: str, scores: Mapping[str, Score]) -> str:
    """Return a panel with the visual gain of each category over a blind condition, largest first; "" without any."""
    found = sorted(
        ((name, score.blind[condition]) for name, score in scores.items() if condition in score.blind),
        key=lambda item: -item[1].gain,
    )
    if not found:
        return ""
    low = min(0.0, *(blind.gain_interval[0] for _, blind in found))
    high = max(10.0, *(blind.gain_interval[1] for _, blind in found))

    def at(value: float) -> float:
        return 100 * (value - low) / (high - low)

    rows = []
    for name, blind in found:
        start, end = sorted((0.0, blind.gain))
        left, right = blind.gain_interval
        rows.append(
            f'<div class="name">{escape(name)}</div><div class="track">'
            f'<i class="zero" style="left:{at(0):.2f}%"></i>'
            f'<i class="bar{" loss" if blind.gain < 0 else ""}" style="left:{at(start):.2f}%;width:{at(end) - at(start):.2f}%"></i>'
            f'<i class="whisker" style="left:{at(left):.2f}%;width:{at(right) - at(left):.2f}%"></i></div>'
            f'<div class="figure">{blind.gain:+.1f}<small>{_span(blind.gain_interval, "+.1f")}</small></div>'
        )
    return (
        f'<div class="panel num"><h3>Visual gain over {BLIND.get(condition, escape(condition))}</h3>'
        f'<div class="bars">{"".join(rows)}</div>'
        '<p class="note">points that come from looking, with 95 % intervals</p></div>'
    )


def figures_table(figures: Figures) -> str:
    """Return a scorer's own figures as a table; "" without any."""
    columns = list(dict.fromkeys(name for row in figures.values() for name in row))
    if not columns:
        return ""
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in columns)
    body = "".join(
        f"<tr><th>{escape(name)}</th>" + "".join(f"<td>{_number(row.get(column))}</td>" for column in columns) + "</tr>"
        for name, row in figures.items()
    )
    return _scrolled(f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody>")


def forecast_panel(stage: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what was predicted before a training beside what it took; rows hold name, unit, predicted, measured."""
    body = "".join(
        f"<tr><th>{escape(row['name'])}<small>{escape(row['unit'])}</small></th>"
        f"<td>{_amount(row['predicted'])}</td><td>{_amount(row['measured'])}</td><td>{_off(row)}</td></tr>"
        for row in rows
    )
    head = "<thead><tr><th></th><th>predicted</th><th>measured</th><th>off by</th></tr></thead>"
    return (
        f'<div class="panel num"><h3>{escape(stage)}: predicted and measured</h3>'
        f"<table>{head}<tbody>{body}</tbody></table></div>"
    )


def link_to(**filters: str) -> str:
    """Return an address that leads to those answers of the gallery."""
    return "#" + "&".join(f"{name}={quote(value)}" for name, value in filters.items())


def _line(line: Line, conditions: Sequence[str], top: float) -> str:
    score = line.score
    low, high = (min(max(bound, 0.0), top) for bound in score.interval)
    bars = f'<i class="bar" style="width:{100 * score.value / top:.2f}%"></i>'
    bars += f'<i class="whisker" style="left:{100 * low / top:.2f}%;width:{100 * (high - low) / top:.2f}%"></i>'
    if conditions and (blind := score.blind.get(conditions[0])):
        bars += f'<i class="bar blind" style="width:{100 * blind.value / top:.2f}%"></i>'
    name = f'<a href="{escape(line.link)}">{escape(line.name)}</a>' if line.link else escape(line.name)
    cells = [
        f"<th>{name}<small>{escape(line.note)}</small></th>",
        f'<td class="look"><span class="track">{bars}</span></td>',
        f'<td class="score"><b>{score.value:.1f}</b><small>{_span(score.interval, ".1f")}</small></td>',
    ]
    for condition in conditions:
        blind = score.blind.get(condition)
        cells.append(f'<td data-of="{BLIND[condition]}">{"" if blind is None else f"{blind.value:.1f}"}</td>')
    for condition in conditions:
        blind = score.blind.get(condition)
        shown = "" if blind is None else f"{blind.gain:+.1f} <small>{_span(blind.gain_interval, '+.1f')}</small>"
        cells.append(f'<td data-of="gain over {BLIND[condition]}">{shown}</td>')
    return f'<tr class="{"total" if line.is_total else "part"}">{"".join(cells)}</tr>'


def _span(interval: tuple[float, float], form: str) -> str:
    low, high = interval
    return f"{low:{form}} to {high:{form}}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _amount(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _off(row: Mapping[str, Any]) -> str:
    if not row["predicted"] or row["measured"] is None:
        return ""
    off = round(100 * (row["predicted"] / row["measured"] - 1)) if row["measured"] else 0
    return f"{off:+d} %" if off else "0 %"


def _scrolled(table: str) -> str:
    return f'<div class="panel num" style="overflow-x:auto"><table>{table}</table></div>'
