"""preview.html of stage 02a: samples of each kind beside their pictures, and why others were rejected."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from vlm.config import InstructConfig, SourceConfig
from vlm.data.images import Damaged, images_at
from vlm.data.inspect import picture_of, visible
from vlm.data.preview_page import page, reject_table, stats, tabs
from vlm.files import write_whole

PREVIEW = "preview.html"
EXAMPLES = 3  # of each reason


def write_preview(
    out: Path, cfg: InstructConfig, samples: Mapping[str, Sequence[dict[str, Any]]], rejects: Sequence[dict[str, str]]
) -> None:
    """Write out/preview.html: the first `runtime.preview` samples of each kind; none if that is 0."""
    if cfg.runtime.preview < 1:
        return
    sources = {source.label: source for source in cfg.sources}
    good = [(sources[label], record) for label, records in samples.items() for record in records]
    panels = []
    for kind in cfg.kinds:
        those = [(source, record) for source, record in good if record["kind"] == kind]
        cards = "\n".join(_card(source, record) for source, record in those[: cfg.runtime.preview])
        panels.append((f"{kind} ({len(those):,})", cards or '<p class="note">none</p>'))
    figures = [(f"{len(good):,}", "samples", "learnt"), (f"{len(rejects):,}", "rejected", "")]
    body = (
        '<p class="over">Instruction data</p><h1>What the text model wrote</h1>'
        f'<p class="lead">By {escape(str(cfg.model))}, which saw captions and boxes and never a picture. '
        "The first samples of each kind.</p>\n"
        + stats(figures)
        + (f"<h3>Rejected</h3>{_reasons(rejects)}" if rejects else "")
        + "<h3>Samples</h3>"
        + tabs(panels, "kind", 4)
    )
    write_whole(out / PREVIEW, page("What the text model wrote", body).encode(errors="backslashreplace"))


def _card(source: SourceConfig, record: Mapping[str, Any]) -> str:
    try:
        shown = picture_of(images_at(str(source.images))(record["image"]).read())
    except (
        OSError,
        ValueError,
        SyntaxError,
        Damaged,
        Image.DecompressionBombError,
    ) as problem:  # stage 02 rejects the sample; here it shows why
        shown = f'<p class="note">{escape(str(problem))}</p>'
    chips = f'<div class="chips"><b>{visible(record["id"])}</b><span>{visible(record["facts_from"])}</span></div>'
    turns = "\n\n".join(
        f"<b>{said['from']}</b> "
        + (f'<s class="t">{visible(said["value"])}</s>' if said["from"] == "gpt" else visible(said["value"]))
        for said in record["conversations"]
    )
    return f'<article class="card"><div class="pictures">{shown}</div><div>{chips}<p class="stream">{turns}</p></div></article>'


def _reasons(rejects: Sequence[dict[str, str]]) -> str:
    counts = Counter(reject["reason"] for reject in rejects)
    examples: dict[str, list[str]] = {reason: [] for reason in counts}
    for reject in rejects:
        if len(examples[reject["reason"]]) < EXAMPLES:
            examples[reject["reason"]].append(f"{reject['id']}: {reject['detail']}")
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return reject_table([(reason, count, examples[reason]) for reason, count in ordered])
