"""preview.html: what will be learnt, read back from the finished shards.

Of each source it shows the samples that training would read first, each as the exact tokens with what of them is
supervised; beside them how long the samples are and what was left out for which reason.
"""

import base64
import io
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlm.data.chat import Chat, Encoded
from vlm.data.index import MANIFEST, Split
from vlm.data.pictures import to_rgb
from vlm.data.plan import epoch_order
from vlm.data.preview_page import LEGEND, histogram, page, reject_table, stats, tabs
from vlm.errors import Unusable
from vlm.files import write_whole

PREVIEW = "preview.html"
REASONS = (("rejects.jsonl", "Rejected"), ("left_out.jsonl", "Left out"))  # files that stage 02 writes, and headings
EXAMPLES = 3  # of each reason
SHOWN_PIXELS = 256  # longest edge of a picture
ORDER = ("pretrain", "pretrain_held_out", "finetune", "finetune_held_out")
# What would not be seen, or would move the text around it: control characters and changes of direction.
HIDDEN = {i: chr(0x2400 + i) for i in range(32) if chr(i) not in "\n\t"} | {0x7F: "␡"}
HIDDEN |= {i: f"[U+{i:04X}]" for i in (*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF)}


@dataclass(frozen=True)
class Piece:
    """One or more tokens that are shown together, since their text cannot be told apart or they are one picture."""

    ids: tuple[int, ...]
    text: str  # what they add to the text before them
    is_target: bool
    is_image: bool
    is_special: bool


def write_preview(out: Path, chat: Chat, count: int, seed: int) -> None:
    """Write out/preview.html: up to `count` samples of each source of each split below `out`; none if `count` is 0.

    Raises Unusable if a shard is damaged or was written with another tokenizer.
    """
    if count < 1:
        return
    names = sorted(path.parent.name for path in out.glob(f"*/{MANIFEST}"))
    names.sort(key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    panels = [(name, _split(Split(out / name), chat, count, seed)) for name in names]
    body = (
        '<p class="over">Data</p><h1>What will be learnt</h1>'
        f'<p class="lead">The first samples of each source in training’s own order (seed {seed}), read back from the '
        "shards, token by token. What is held out is shown as it would be learnt.</p>\n" + tabs(panels, "split", 2)
    )
    write_whole(out / PREVIEW, page("What will be learnt", body).encode(errors="backslashreplace"))


def choose(rows: NDArray[np.void], source: int, count: int, seed: int) -> list[int]:
    """Return the numbers of the first `count` samples of a source in the order of the first epoch."""
    order = epoch_order(seed, 0, len(rows))
    return order[rows["source"][order] == source][:count].tolist()


def pieces(encoded: Encoded, chat: Chat) -> Iterator[Piece]:
    """Yield the tokens of a sample with their text, which in a row is the text that the whole sample decodes to."""
    ids, is_target = encoded.ids.tolist(), encoded.is_target.tolist()
    specials = {*chat.tokenizer.all_special_ids, *chat.tokenizer.added_tokens_decoder}
    context, start = 0, 0  # ids[context:start] is what the next text follows; it decides on the space between them
    while start < len(ids):
        if ids[start] == chat.image_id:
            end = start + chat.image_tokens
            yield Piece(tuple(ids[start:end]), chat.image_token, is_target[start], True, False)
            context = start = end
            continue
        before = _text(chat, ids[context:start])
        end = start + 1
        while "\ufffd" in (text := _text(chat, ids[context:end])[len(before) :]):  # part of a character
            if end == len(ids) or ids[end] in {*specials, chat.image_id} or is_target[end] != is_target[start]:
                break
            end += 1
        yield Piece(tuple(ids[start:end]), text, is_target[start], False, ids[start] in specials)
        context, start = start, end


def _text(chat: Chat, ids: list[int]) -> str:
    return chat.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _split(split: Split, chat: Chat, count: int, seed: int) -> str:
    """Return the panel of a split: figures, lengths, samples by source, reasons."""
    manifest, rows = split.manifest, split.rows
    share = f"{100 * manifest['targets'] / max(manifest['tokens'], 1):.1f} % of the tokens are supervised"
    figures = [
        (f"{manifest['samples']:,}", "samples", ""),
        (f"{manifest['images']:,}", "pictures", ""),
        (f"{manifest['tokens']:,}", "tokens", ""),
        (f"{manifest['targets']:,}", share, "learnt"),
        (f"{manifest['rejected']:,}", f"rejected of {manifest['read']:,} read", ""),
        (f"{manifest['cut_turns']:,}", f"turns cut at {manifest['max_tokens']:,} tokens", ""),
    ]
    charts = histogram("Tokens of a sample", rows["tokens"].astype(np.int64), limit=manifest["max_tokens"])
    charts += histogram("Supervised tokens of a sample", rows["targets"].astype(np.int64), look="learnt")
    panels = []
    for number, source in enumerate(manifest["sources"]):
        chosen = choose(rows, number, count, seed)
        if chosen:
            cards = "\n".join(_card(split, i, chat) for i in chosen)
            panels.append((f"{source} ({(rows['source'] == number).sum():,})", cards))
    prefix = f"{split.folder.name}-source".replace(" ", "-")
    return "\n".join(
        [
            stats(figures),
            f'<div class="charts">{charts}</div>',
            *(_reasons(split.folder / name, heading) for name, heading in REASONS),
            f"<h3>Samples</h3>{LEGEND}",
            tabs(panels, escape(prefix), 4),
        ]
    )


def _card(split: Split, number: int, chat: Chat) -> str:
    """Return one sample: its pictures, its counts, its tokens."""
    stored = split.read(number)
    encoded = chat.encode(stored.sample.turns, len(stored.pictures), split.form, split.manifest["max_tokens"])
    targets = int(encoded.is_target.sum())
    if (len(encoded.ids), targets) != tuple(split.rows[number][["tokens", "targets"]].tolist()):
        raise Unusable(f"{split.folder}: sample {stored.sample.id} was sharded with another tokenizer or template")
    chips = (
        f'<div class="chips num"><b>{visible(stored.sample.id)}</b><span>no. {number:,}</span>'
        f'<span>{len(encoded.ids):,} tokens</span><span class="learnt">{targets:,} supervised</span></div>'
    )
    stream = "".join(_mark(piece) for piece in pieces(encoded, chat))
    cut = f'<span class="cut">✂ {stored.cut_turns} turns cut here</span>' if stored.cut_turns else ""
    shown = "".join(picture_of(data) for data in stored.pictures)
    pictures = f'<div class="pictures">{shown}</div>' if shown else ""
    blind = "" if shown else " blind"
    return f'<article class="card{blind}">{pictures}<div>{chips}<p class="stream">{stream}</p>{cut}</div></article>'


def _mark(piece: Piece) -> str:
    looks = [("t", piece.is_target), ("p", piece.is_image), ("z", piece.is_special)]
    look = " ".join(name for name, is_so in looks if is_so)
    if piece.is_image:
        text, title = f"{visible(piece.text)} × {len(piece.ids):,}", f"{piece.ids[0]}"
    else:
        text, title = visible(piece.text).replace("\n", "<u>↵</u>\n"), " ".join(map(str, piece.ids))
    return f'<s class="{look}" title="{title}">{text}</s>' if look else f'<s title="{title}">{text}</s>'


def visible(text: str) -> str:
    """Return text as HTML in which control characters and changes of direction are written out."""
    return escape(text.translate(HIDDEN))


def picture_of(data: bytes) -> str:
    """Return a picture as HTML that holds its own data, with the square that geometry=crop keeps dashed in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own size warning: stage 02 has accepted the picture
        picture = to_rgb(Image.open(io.BytesIO(data)))
    width, height = picture.size
    picture.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
    saved = io.BytesIO()
    picture.save(saved, "JPEG", quality=85)
    encoded = base64.b64encode(saved.getvalue()).decode()
    side, top = (50 * (edge - min(width, height)) / edge for edge in (width, height))  # percent, on either side
    crop = "" if width == height else f'<i style="inset:{top:.2f}% {side:.2f}%"></i>'
    note = "" if width == height else " · dashed: what geometry=crop keeps"
    return (
        f'<figure><div class="shown"><img alt="" loading="lazy" src="data:image/jpeg;base64,{encoded}">{crop}</div>'
        f'<figcaption class="num">{width} × {height}{note}</figcaption></figure>'
    )


def _reasons(path: Path, heading: str) -> str:
    """Return the table of a file of rejects; nothing if there are none."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    if path.is_file():
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                reject = json.loads(line)
                counts[reject["reason"]] += 1
                known = examples.setdefault(reject["reason"], [])
                if len(known) < EXAMPLES:
                    known.append(f"{reject['source']} {reject['id']}: {reject['detail']}".translate(HIDDEN))
    if not counts:
        return ""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return f"<h3>{heading}</h3>" + reject_table([(code, times, examples[code]) for code, times in ordered])
