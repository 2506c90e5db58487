"""Stage 02a's work: captions and boxes in, LLaVA JSON out, and every request on the way in a log."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlm.config import InstructConfig
from vlm.data.samples import IMAGE, Reject, Turn
from vlm.endpoint.asker import Asker
from vlm.endpoint.limits import Spent
from vlm.endpoint.log import Cache, Log
from vlm.errors import Unusable
from vlm.files import write_whole
from vlm.instruct.ask import ask_all, outcome
from vlm.instruct.estimate import Tokens, estimate
from vlm.instruct.facts import facts_of
from vlm.instruct.preview import write_preview
from vlm.instruct.prompts import Task, version_of

REQUESTS = "requests.jsonl"
REJECTS = "rejects.jsonl"
CORPORA = "corpora"  # <label>.json for each source: LLaVA JSON beside that source's own pictures
SPEAKERS = {"user": "human", "assistant": "gpt"}


def generate(cfg: InstructConfig, seed: int, tokenizer: Path, cache: Path, out: Path) -> dict[str, Any]:
    """Ask for a sample of each kind for each picture and write what came of it; return the headline figures.

    Goes on where an interrupted call stopped. With `runtime.dry_run` only the estimate is printed.
    Raises Unusable if a source or the endpoint cannot be used, or the money is spent: `out` then holds the samples
    so far.
    """
    if cfg.model is None or not cfg.sources or not cfg.kinds:
        missing = "model" if cfg.model is None else "kinds" if cfg.sources else "sources"
        raise Unusable(f"instruct.{missing} has no value: give it, or choose an experiment= that does")
    labels = [source.label for source in cfg.sources]
    if len({*labels}) < len(labels):
        raise Unusable(f"instruct: two sources are called {max(labels, key=labels.count)}: give them a name=")
    tasks, useless = tasks_of(cfg, seed)
    if not tasks:
        raise Unusable(f"instruct.sources hold no picture with a caption ({useless} rows without use)")
    tokens = Tokens.load(tokenizer)
    log = Log(out / REQUESTS)
    try:
        left = [task for task in tasks if is_open(outcome(task, log, cfg, seed), log)]
        print(estimate(left, tokens, cfg), flush=True)
        if cfg.runtime.dry_run:
            return {}
        asker = Asker(cfg.runtime, "instruct.runtime", tokens.of, log, Cache(cache))
        with tqdm(total=len(tasks), desc="02a_instruct", unit=" samples") as bar:
            ask_all(tasks, cfg, seed, tokens, log, asker, bar.update)
        _check_answered(tasks, log, cfg, seed)
        figures = write_outcomes(cfg, seed, tasks, log, out) | {"rows_without_use": useless}
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in figures["reasons"].items())
        print(
            f"{figures['samples']:,} samples, {figures['rejected']:,} rejected" + (f" ({reasons})" if reasons else "")
        )
        return figures
    except Spent as problem:
        figures = write_outcomes(cfg, seed, tasks, log, out)
        raise Unusable(
            f"{problem}: {figures['samples']} of {len(tasks)} samples are in {out / CORPORA}; raise "
            "instruct.runtime.max_cost and run again to go on"
        ) from None
    finally:
        log.close()
        if (out / REQUESTS).stat().st_size == 0:
            (out / REQUESTS).unlink()  # nothing was asked: other settings may still be chosen


def tasks_of(cfg: InstructConfig, seed: int) -> tuple[list[Task], int]:
    """Return all that is to be written, in the order of the sources, and the number of rows that are of no use.

    Raises Unusable if a source cannot be read.
    """
    versions = {name: version_of(kind) for name, kind in cfg.kinds.items()}
    tasks: list[Task] = []
    useless = 0
    for source in cfg.sources:
        known, skipped = facts_of(source, seed, cfg.limit)
        useless += skipped
        tasks += [Task(facts, name, kind, versions[name]) for facts in known for name, kind in cfg.kinds.items()]
    return tasks, useless


def write_outcomes(cfg: InstructConfig, seed: int, tasks: list[Task], log: Log, out: Path) -> dict[str, Any]:
    """Write corpora, rejects and preview from what is in the log; return the headline figures."""
    samples: dict[str, list[dict[str, Any]]] = {source.label: [] for source in cfg.sources}
    rejects: list[dict[str, str]] = []
    for task, found in _outcomes(cfg, seed, tasks, log):
        if isinstance(found, Reject):
            about = {"source": task.facts.source, "id": task.id, "kind": task.name}
            rejects.append(about | {"reason": found.code, "detail": found.detail})
        else:
            samples[task.facts.source].append(sample_of(task, found, str(cfg.model)))
    (out / CORPORA).mkdir(exist_ok=True)
    for label, records in samples.items():
        written = "[\n" + ",\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n]\n"
        write_whole(out / CORPORA / f"{label}.json", written.encode(errors="backslashreplace"))
    lines = "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects)
    write_whole(out / REJECTS, lines.encode(errors="backslashreplace"))
    write_preview(out, cfg, samples, rejects)
    return {
        "tasks": len(tasks),
        "samples": sum(map(len, samples.values())),
        "rejected": len(rejects),
        "reasons": dict(sorted(Counter(reject["reason"] for reject in rejects).items())),
        "calls": log.calls,
        "prompt_tokens": log.prompt_tokens,
        "answer_tokens": log.answer_tokens,
        "cost": round(log.cost, 6),
    }


def sample_of(task: Task, turns: tuple[Turn, ...], model: str) -> dict[str, Any]:
    """Return LLaVA's record of a sample; where it comes from travels along, through the shards too."""
    said = [{"from": SPEAKERS[turn.role], "value": turn.text} for turn in turns]
    said[0]["value"] = f"{IMAGE}\n{said[0]['value']}"
    return {
        "id": task.id,
        "image": task.facts.image.name,
        "conversations": said,
        "image_id": task.facts.image_id,
        "kind": task.name,
        "prompt_version": task.version,
        "model": model,
        "facts_from": task.facts.source,
    }


def _outcomes(
    cfg: InstructConfig, seed: int, tasks: list[Task], log: Log
) -> Iterator[tuple[Task, tuple[Turn, ...] | Reject]]:
    for task in tasks:
        found = outcome(task, log, cfg, seed)
        if found is not None:
            yield task, found


def is_open(found: tuple[Turn, ...] | Reject | None, log: Log) -> bool:
    """Say whether a task is yet to be asked for, or again; what was refused only if nothing was ever answered."""
    again = {"unanswered", "too_dear"} | (set() if log.answered else {"refused"})
    return found is None or (isinstance(found, Reject) and found.code in again)


def _check_answered(tasks: list[Task], log: Log, cfg: InstructConfig, seed: int) -> None:
    """Raise Unusable if the endpoint refused every request: the settings are wrong, not the requests."""
    if log.answered:
        return
    for _, found in _outcomes(cfg, seed, tasks, log):
        if isinstance(found, Reject) and found.code == "refused":
            raise Unusable(f"no request was answered; {found.detail}: mend what it names and run again")
