"""How long the answers are: against their references, and how often each length is right; as inline SVG."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean

from vlm.eval.results import Answered

WIDTH, HEIGHT = 420, 260  # of a drawing, its own units
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 38  # margins
BINS = 12  # steps of an axis
WORD = re.compile(r"[぀-ヿ㐀-鿿豈-﫿]|[^\s぀-ヿ㐀-鿿豈-﫿]+")  # each Chinese or Japanese letter is one


def words(text: str) -> int:
    """Count the words of a text."""
    return len(WORD.findall(text))


def length_panels(answered: Sequence[Answered]) -> str:
    """Return two panels: answers' lengths against their references', and marks by length; fewer where one says nothing."""
    pairs = [
        (fmean(map(words, one.question.references)), words(one.answer)) for one in answered if one.question.references
    ]
    panels = [_against(pairs)] if pairs else []
    marked = [(words(one.answer), min(one.mark, 1.0)) for one in answered if one.mark is not None]
    if len({length for length, _ in marked}) > 1:
        panels.append(_marks(marked))
    return "".join(panels)


def _against(pairs: Sequence[tuple[float, int]]) -> str:
    """Return a map: how many answers of which length to references of which length, and where both are equal."""
    wide = _wide(max(max(one, other) for one, other in pairs))
    spots = Counter((int(expected // wide), said // wide) for expected, said in pairs)
    most = max(spots.values())
    cells = max(max(spot) for spot in spots) + 1
    step_x, step_y = (WIDTH - LEFT - RIGHT) / cells, (HEIGHT - TOP - BOTTOM) / cells
    radius = min(step_x, step_y) / 2
    circles = "".join(
        f'<circle cx="{LEFT + (x + 0.5) * step_x:.1f}" cy="{HEIGHT - BOTTOM - (y + 0.5) * step_y:.1f}" '
        f'r="{max(radius * math.sqrt(count / most), 1.2):.1f}"><title>{_bin(x, wide)} expected, {_bin(y, wide)} answered: '
        f"{count:,}</title></circle>"
        for (x, y), count in sorted(spots.items())
    )
    even = f'<line class="even" x1="{LEFT}" y1="{HEIGHT - BOTTOM}" x2="{WIDTH - RIGHT}" y2="{TOP}"/>'
    labels = _axis(cells, wide, step_x)
    labels += "".join(
        f'<text x="{LEFT - 8}" y="{HEIGHT - BOTTOM - (y + 0.5) * step_y + 4:.1f}" text-anchor="end">{_bin(y, wide)}</text>'
        for y in range(0, cells, math.ceil(cells / 8))
    )
    expected, said = fmean(one for one, _ in pairs), fmean(other for _, other in pairs)
    empty = sum(not other for _, other in pairs)
    note = f"{said:.1f} words on average where {expected:.1f} are expected; on the dashed line both are equal"
    note += f"; {empty:,} answers are empty" if empty else ""
    return _panel("Length of the answers, in words", "words expected", even + circles + labels, note)


def _marks(marked: Sequence[tuple[int, float]]) -> str:
    """Return bars: the mean mark of answers of each length; pale where there are few."""
    wide = _wide(max(length for length, _ in marked))
    groups: dict[int, list[float]] = defaultdict(list)
    for length, mark in marked:
        groups[length // wide].append(mark)
    cells = max(groups) + 1
    step, tall = (WIDTH - LEFT - RIGHT) / cells, HEIGHT - TOP - BOTTOM
    grid = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM - share * tall:.1f}" '
        f'y2="{HEIGHT - BOTTOM - share * tall:.1f}"/><text x="{LEFT - 8}" y="{HEIGHT - BOTTOM - share * tall + 4:.1f}" '
        f'text-anchor="end">{100 * share:.0f}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    )
    bars = "".join(
        f'<rect class="{"few" if len(marks) < 30 else ""}" x="{LEFT + at * step + step * 0.15:.1f}" '
        f'y="{HEIGHT - BOTTOM - fmean(marks) * tall:.1f}" width="{step * 0.7:.1f}" height="{fmean(marks) * tall:.1f}">'
        f"<title>{_bin(at, wide)} words: {100 * fmean(marks):.1f} % of {len(marks):,}</title></rect>"
        f'<text x="{LEFT + (at + 0.5) * step:.1f}" y="{HEIGHT - BOTTOM - fmean(marks) * tall - 4:.1f}" '
        f'text-anchor="middle">{len(marks):,}</text>'
        for at, marks in sorted(groups.items())
    )
    note = "mean mark, percent, and the number of answers; pale: fewer than 30"
    return _panel("Marks by length of the answer", "words answered", grid + bars + _axis(cells, wide, step), note)


def _panel(title: str, axis: str, drawing: str, note: str) -> str:
    name = f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{axis}</text>'
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}: {note}">{drawing}{name}</svg>'
    return f'<div class="panel num"><h3>{title}</h3>{svg}<p class="note">{note}</p></div>'


def _axis(cells: int, wide: int, step: float) -> str:
    return "".join(
        f'<text x="{LEFT + (x + 0.5) * step:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_bin(x, wide)}</text>'
        for x in range(0, cells, math.ceil(cells / 8))
    )


def _wide(longest: float) -> int:
    """Return how many lengths share one step of an axis, so that there are at most BINS."""
    return max(1, math.ceil((longest + 1) / BINS))


def _bin(number: int, wide: int) -> str:
    return str(number) if wide == 1 else f"{number * wide}–{(number + 1) * wide - 1}"
