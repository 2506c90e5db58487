"""The look of the pages: one HTML file with its style and script inside, which asks nothing of a network."""

import json
from html import escape
from pathlib import Path

ASSETS = Path(__file__).with_name("assets")
STYLE = (ASSETS / "page.css").read_text(encoding="utf-8")
GALLERY = (ASSETS / "gallery.js").read_text(encoding="utf-8")


def page(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """Return a whole page; `title` is text, `body` is HTML, `style` and `script` are added to the page's own."""
    run = f"<script>\n{script}</script>\n" if script else ""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}{style}</style>\n<main>\n{body}\n</main>\n{run}</html>\n"
    )


def data(name: str, value: object) -> str:
    """Return an element that holds JSON for a script; nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'
