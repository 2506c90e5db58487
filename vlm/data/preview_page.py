"""The look of preview.html: style, script and drawings; one file that asks nothing of a network."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 420, 170, 8, 22, 14  # of a histogram's drawing, its own units
BINS = 40

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf8; --card: #fff; --ink: #1d1f24; --soft: #656b76; --line: #e5e2dc;
  --learnt: #14703f; --learnt-bg: #d5efdf; --seen: #3056d3; --seen-bg: #e4e9fb; --cut: #b0441f; --cut-bg: #fbe9e1; }
@media (prefers-color-scheme: dark) { :root { --paper: #14161a; --card: #1c1f25; --ink: #e9e9ec; --soft: #9aa1ad;
  --line: #2d3139; --learnt: #8fe0b3; --learnt-bg: #17402a; --seen: #a3b8ff; --seen-bg: #232c4d; --cut: #ffab8a;
  --cut-bg: #43241a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 56px 24px 96px; }
h1 { font: 600 clamp(34px, 6vw, 52px)/1.1 Georgia, "Times New Roman", serif; letter-spacing: -.01em; margin: 4px 0 8px; }
h2 { font: 600 24px/1.2 Georgia, "Times New Roman", serif; margin: 40px 0 16px; overflow-wrap: anywhere; }
h3 { font: 600 18px/1.3 Georgia, "Times New Roman", serif; margin: 36px 0 12px; overflow-wrap: anywhere; }
h4 { font: 600 15px system-ui, sans-serif; margin: 0 0 8px; }
.over { color: var(--soft); font-size: 13px; letter-spacing: .08em; text-transform: uppercase; margin: 0; }
.lead { color: var(--soft); max-width: 66ch; margin: 0; }
.num { font-variant-numeric: tabular-nums; }
.note, .chips, figcaption { color: var(--soft); font-size: 14px; } .note { margin: 6px 0 0; }
.stats { display: grid; grid-template-columns: repeat(3, 1fr); gap: 12px; }
.stat, .panel, .card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 16px 20px; }
.stat b { display: block; font-size: 28px; line-height: 1.2; font-weight: 650; letter-spacing: -.02em; }
.stat span { color: var(--soft); font-size: 14px; } .stat.learnt b { color: var(--learnt); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 12px;
  margin-top: 12px; }
svg { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; } svg text { fill: var(--soft); }
svg rect { fill: var(--soft); } svg .learnt { fill: var(--learnt); } svg line { stroke: var(--line); }
svg .limit { stroke: var(--cut); stroke-dasharray: 3 3; }
.tabs { position: sticky; top: 0; z-index: 1; display: flex; gap: 8px; overflow-x: auto; padding: 12px 0;
  background: var(--paper); } .tabs.minor { position: static; }
.tabs button { font: inherit; font-size: 15px; color: inherit; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: 8px 14px; min-height: 40px; cursor: pointer; white-space: nowrap; }
.tabs button[aria-selected=true] { background: var(--ink); color: var(--paper); }
:focus-visible { outline: 2px solid var(--seen); outline-offset: 2px; }
[hidden] { display: none !important; }
.legend { display: flex; flex-wrap: wrap; gap: 8px 18px; margin: 14px 0; font-size: 14px; color: var(--soft); }
.card { display: grid; grid-template-columns: fit-content(256px) minmax(0, 1fr); gap: 20px; padding: 16px; margin: 12px 0; }
.card.blind { grid-template-columns: minmax(0, 1fr); }
.pictures { display: flex; flex-wrap: wrap; gap: 8px; align-content: start; } figure { margin: 0; min-width: 0; }
.shown { position: relative; display: inline-block; line-height: 0; } .shown img { max-width: 100%; min-width: 144px;
  border-radius: 8px; }
.shown i { position: absolute; border: 1px dashed #fff; outline: 1px dashed #0009; }
.chips { display: flex; flex-wrap: wrap; gap: 2px 16px; margin-bottom: 10px; } .chips > * { overflow-wrap: anywhere; }
.chips b { color: var(--ink); font-weight: 600; } .chips .learnt { color: var(--learnt); }
.stream { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; line-height: 1.75; color: var(--soft);
  font-size: 15px; }
.stream s, .legend s { text-decoration: none; border-radius: 4px; padding: 1px 0; box-shadow: inset -1px 0 var(--line); }
.stream .t, .legend .t { color: var(--learnt); background: var(--learnt-bg); box-shadow: inset -1px 0 var(--card); }
.stream .p, .legend .p { color: var(--seen); background: var(--seen-bg); padding: 1px 8px; font-size: 13px; }
.stream .z, .legend .z { font: 12px ui-monospace, Menlo, Consolas, monospace; border: 1px solid currentColor;
  padding: 0 4px; margin: 0 1px; }
.stream u { text-decoration: none; opacity: .55; }
.cut { display: inline-block; color: var(--cut); background: var(--cut-bg); border-radius: 6px; padding: 2px 10px;
  margin-top: 8px; font-size: 14px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 15px; }
th, td { text-align: left; vertical-align: top; padding: 7px 16px 7px 0; border-top: 1px solid var(--line); }
th { font-weight: 600; border-top: 0; color: var(--soft); font-size: 13px; } td:nth-child(2) { text-align: right; }
td div { overflow-wrap: anywhere; min-width: 180px; } td div + div { margin-top: 4px; }
@media (max-width: 640px) { main { padding: 32px 16px 64px; } .card { grid-template-columns: minmax(0, 1fr); gap: 12px; }
  .stats { grid-template-columns: repeat(2, 1fr); gap: 8px; } .stat { padding: 12px 14px; } .stat b { font-size: 22px; }
  .panel { padding: 12px 14px; } svg { font-size: 15px; } tr { display: grid;
  grid-template-columns: 1fr auto; } th:last-child { display: none; } td:last-child { grid-column: 1 / -1; border: 0;
  padding: 0 0 7px; color: var(--soft); } td, th { padding-right: 0; } }
"""

SCRIPT = """
for (const tabs of document.querySelectorAll('.tabs')) {
  const buttons = [...tabs.children], panels = buttons.map(one => document.getElementById(one.value));
  const choose = chosen => buttons.forEach((one, i) => {
    one.setAttribute('aria-selected', one === chosen);
    panels[i].hidden = one !== chosen;
  });
  buttons.forEach((one, i) => {
    one.addEventListener('click', () => choose(one));
    one.addEventListener('keydown', event => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!step) return;
      const next = buttons[(i + step + buttons.length) % buttons.length];
      next.focus();
      choose(next);
    });
  });
  tabs.hidden = false;
  panels.forEach(panel => panel.firstElementChild.hidden = true);  // the tab says it
  choose(buttons[0]);
}
"""
LEGEND = (
    '<p class="legend"><span><s class="p">&lt;image&gt; × 4</s> tokens of a picture</span>'
    "<span><s>context</s> read, not learnt</span>"
    '<span><s class="t">supervised</s> what the loss counts</span>'
    '<span><s class="z">special</s> token of the tokenizer’s own</span></p>'
)


def page(title: str, body: str) -> str:
    """Return a whole page; `title` is text, `body` is HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n<main>\n{body}\n</main>\n"
        f"<script>{SCRIPT}</script>\n</html>\n"
    )


def tabs(panels: Sequence[tuple[str, str]], prefix: str, level: int) -> str:
    """Return named panels of HTML of which one is shown at a time; all are, with headings, where no script runs."""
    minor = " minor" if level > 2 else ""
    buttons = "".join(
        f'<button role="tab" value="{prefix}{i}" aria-controls="{prefix}{i}">{escape(name)}</button>'
        for i, (name, _) in enumerate(panels)
    )
    sections = "".join(
        f'<section role="tabpanel" id="{prefix}{i}"><h{level}>{escape(name)}</h{level}>\n{content}</section>\n'
        for i, (name, content) in enumerate(panels)
    )
    return (f'<div class="tabs{minor}" role="tablist" hidden>{buttons}</div>\n' if len(panels) > 1 else "") + sections


def stats(figures: Sequence[tuple[str, str, str]]) -> str:
    """Return headline figures: value, what it counts, CSS class."""
    cells = "".join(
        f'<div class="stat {look}"><b>{escape(value)}</b><span>{escape(what)}</span></div>'
        for value, what, look in figures
    )
    return f'<div class="stats num">{cells}</div>'


def histogram(title: str, lengths: NDArray[np.integer], *, limit: int | None = None, look: str = "") -> str:
    """Return a panel that draws how many samples have which length, in tokens; `limit` is marked if it is near."""
    if not len(lengths):
        return ""
    longest = int(lengths.max())
    wide = math.ceil((longest + 1) / BINS)  # tokens in a bar
    counts = np.bincount(lengths // wide, minlength=math.ceil((longest + 1) / wide))
    shown_to = len(counts) * wide
    if limit is not None and longest <= limit <= 1.5 * shown_to:
        shown_to = max(shown_to, limit)
    unit = (WIDTH - 2 * LEFT) / shown_to
    base = HEIGHT - BOTTOM
    bars = "".join(
        f'<rect class="{look}" x="{LEFT + i * wide * unit:.1f}" y="{base - height:.1f}" '
        f'width="{max(wide * unit - 1, 0.5):.1f}" height="{height:.1f}"><title>{i * wide}–{(i + 1) * wide - 1} tokens: '
        f"{count:,}</title></rect>"
        for i, count in enumerate(counts.tolist())
        if count and (height := max(count / counts.max() * (base - TOP), 1.0))
    )
    lines = f'<line x1="{LEFT}" x2="{WIDTH - LEFT}" y1="{base}" y2="{base}"/>'
    if limit is not None and limit <= shown_to:
        x = LEFT + limit * unit
        lines += f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{base}"/>'
    middle, high = (int(np.quantile(lengths, share, method="lower")) for share in (0.5, 0.95))
    note = f"half have at most {middle:,}, 95 % at most {high:,}, the longest {longest:,}"
    axis = f'<text x="{LEFT}" y="{HEIGHT - 6}">0</text>'
    axis += f'<text x="{WIDTH - LEFT}" y="{HEIGHT - 6}" text-anchor="end">{shown_to:,}</text>'
    axis += f'<text x="{LEFT}" y="{TOP - 3}">{counts.max():,} samples</text>'
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}: {note}">'
    drawing += f"{lines}{bars}{axis}</svg>"
    return f'<div class="panel"><h4>{escape(title)}</h4>{drawing}<p class="note num">{note}</p></div>'


def reject_table(reasons: Sequence[tuple[str, int, Sequence[str]]]) -> str:
    """Return a table of reasons: the code, how often, and examples as text."""
    rows = "".join(
        f"<tr><td>{escape(code)}</td><td>{count:,}</td><td>"
        + "".join(f"<div>{escape(example)}</div>" for example in examples)
        + "</td></tr>"
        for code, count, examples in reasons
    )
    head = "<tr><th>reason</th><th>samples</th><th>for example</th></tr>"
    return f'<div class="panel scroll"><table class="num">{head}{rows}</table></div>'
