"""The look of the report: one HTML page with its style and script inside, which asks nothing of a network."""

from html import escape

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf8; --card: #fff; --ink: #1d1f24; --soft: #656b76; --line: #e5e2dc;
  --seeing: #3056d3; --blind: #b9b4aa; --right: #1b7f4b; --wrong: #c3362b; --right-bg: #e6f4ec; --wrong-bg: #fbeae8; }
@media (prefers-color-scheme: dark) { :root { --paper: #14161a; --card: #1c1f25; --ink: #e9e9ec; --soft: #9aa1ad;
  --line: #2d3139; --seeing: #86a2ff; --blind: #5d626d; --right: #6fd19b; --wrong: #ff8f84; --right-bg: #17301f;
  --wrong-bg: #3a1d1b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 56px 24px 96px; }
h1 { font: 600 clamp(34px, 6vw, 52px)/1.1 Georgia, "Times New Roman", serif; letter-spacing: -.01em; margin: 4px 0 8px;
  overflow-wrap: anywhere; }
h2 { font: 600 24px/1.2 Georgia, "Times New Roman", serif; margin: 64px 0 16px; overflow-wrap: anywhere; }
h3 { font: 600 18px/1.3 Georgia, "Times New Roman", serif; margin: 36px 0 12px; overflow-wrap: anywhere; }
.panel h3 { font: 600 15px system-ui, sans-serif; margin: 0 0 8px; }
.over { color: var(--soft); font-size: 13px; letter-spacing: .08em; text-transform: uppercase; margin: 0; }
.lead { color: var(--soft); max-width: 62ch; margin: 0; }
.num { font-variant-numeric: tabular-nums; }
.stats { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 16px; }
.stat, .panel { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 20px 22px; }
.stat b { display: block; font-size: 40px; line-height: 1.1; font-weight: 650; letter-spacing: -.02em; }
.stat.seeing b { color: var(--seeing); }
.stat b small { font-size: 20px; font-weight: 500; margin-left: 3px; }
.stat span { display: block; margin-top: 6px; }
.stat i, .note { color: var(--soft); font-style: normal; font-size: 14px; }
.bars { display: grid; grid-template-columns: minmax(84px, max-content) 1fr max-content; gap: 16px 18px; align-items: center; }
.bars > div:first-child, .name { overflow-wrap: anywhere; }
.name small { display: block; color: var(--soft); font-size: 13px; }
.track { position: relative; padding: 3px 0; }
.track::before { content: ""; position: absolute; inset: 0; border-left: 1px solid var(--line);
  border-right: 1px dashed var(--line); }
.bar { display: block; height: 14px; border-radius: 0 4px 4px 0; background: var(--seeing); }
.bar.blind { height: 7px; margin-top: 3px; background: var(--blind); }
.whisker { position: absolute; top: 9px; height: 2px; background: var(--ink); opacity: .55; }
.figures { text-align: right; }
.figures small { color: var(--soft); display: block; font-size: 13px; }
.key { display: flex; flex-wrap: wrap; gap: 6px 20px; margin: 18px 0 0; color: var(--soft); font-size: 14px; }
.key i { display: inline-block; width: 22px; height: 10px; border-radius: 3px; margin-right: 7px; background: var(--seeing); }
.key i.blind { background: var(--blind); } .key i.whisker { position: static; height: 2px; vertical-align: 4px;
  background: var(--ink); }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 16px; }
svg { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; }
svg text { fill: var(--soft); } svg .grid { stroke: var(--line); } svg path { fill: none; }
svg .raw { stroke: var(--seeing); opacity: .28; } svg .smooth { stroke: var(--seeing); stroke-width: 2; }
svg .rate { stroke: var(--soft); stroke-dasharray: 3 3; }
.mistakes { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 8px; }
.mistakes li { background: var(--card); border: 1px solid var(--line); border-radius: 99px; padding: 4px 14px;
  overflow-wrap: anywhere; }
.mistakes del { color: var(--wrong); text-decoration: none; } .mistakes small { color: var(--soft); }
.tools { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: 10px; align-items: center;
  background: var(--paper); padding: 12px 0; }
.tools .choice { display: flex; border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.tools button, .tools select, .tools input { font: inherit; font-size: 15px; color: inherit; background: var(--card);
  border: 0; padding: 8px 14px; min-height: 40px; }
.tools button { cursor: pointer; } .tools button[aria-pressed=true] { background: var(--ink); color: var(--paper); }
.tools select, .tools input { border: 1px solid var(--line); border-radius: 10px; min-width: 0; }
.tools input { flex: 1 1 160px; } .tools output { color: var(--soft); font-size: 14px; }
:focus-visible { outline: 2px solid var(--seeing); outline-offset: 2px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(225px, 1fr)); gap: 16px; margin-top: 8px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; overflow: hidden; display: flex;
  flex-direction: column; }
.card[hidden] { display: none; }
.shown { display: flex; background: color-mix(in srgb, var(--line) 55%, var(--card)); }
.shown img { flex: 1 1 0; min-width: 0; aspect-ratio: 1; object-fit: contain; }
.shown p { margin: auto; padding: 28px 0; color: var(--soft); font-size: 14px; }
.words { padding: 14px 16px 16px; display: flex; flex-direction: column; gap: 10px; flex: 1; }
.chips { display: flex; justify-content: space-between; gap: 8px; font-size: 13px; color: var(--soft); }
.chips span { overflow-wrap: anywhere; }
.verdict { font-weight: 600; color: var(--wrong); white-space: nowrap; } .is-right .verdict { color: var(--right); }
.asked { margin: 0; font-weight: 600; white-space: pre-line; overflow-wrap: anywhere; }
dl { margin: auto 0 0; display: grid; grid-template-columns: max-content 1fr; gap: 5px 12px; font-size: 15px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; white-space: pre-line; }
dd.given { border-radius: 5px; padding: 0 7px; margin: 0 -7px; background: var(--wrong-bg); color: var(--wrong); }
.is-right dd.given { background: var(--right-bg); color: var(--right); }
dd img { height: 26px; max-width: 60px; border-radius: 4px; vertical-align: middle; margin-right: 7px; }
@media (max-width: 560px) { main { padding: 32px 16px 64px; } .bars { gap: 14px 12px; } .stat b { font-size: 34px; }
  h2 { margin-top: 48px; } .gallery { grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); gap: 10px; }
  .figures span { display: none; } svg { font-size: 17px; }
  .words { padding: 10px 12px 12px; } dl { grid-template-columns: 1fr; gap: 0; } dd, dd.given { margin-bottom: 6px; }
  .tools { position: static; } }
"""

SCRIPT = """
const cards = [...document.querySelectorAll('.card')], tools = document.querySelector('.tools');
const buttons = [...tools.querySelectorAll('button')], category = tools.querySelector('select');
const words = tools.querySelector('input'), count = tools.querySelector('output');
function show() {
  const verdict = buttons.find(button => button.getAttribute('aria-pressed') === 'true').value;
  const sought = words.value.toLowerCase();
  let shown = 0;
  for (const card of cards) {
    card.hidden = (verdict && card.dataset.verdict !== verdict) ||
      (category.value && card.dataset.category !== category.value) ||
      !card.querySelector('.words').textContent.toLowerCase().includes(sought);
    shown += !card.hidden;
  }
  count.textContent = shown + ' of ' + cards.length;
}
for (const button of buttons) button.addEventListener('click', () => {
  for (const other of buttons) other.setAttribute('aria-pressed', other === button);
  show();
});
category.addEventListener('change', show);
words.addEventListener('input', show);
tools.hidden = false;
show();
"""


def page(title: str, body: str) -> str:
    """Return a whole page; `title` is text, `body` is HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n<main>\n{body}\n</main>\n"
        f"<script>{SCRIPT}</script>\n</html>\n"
    )
