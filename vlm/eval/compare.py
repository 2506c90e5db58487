"""What changed between two evaluations: paired tests over the questions that both were asked, and which answers changed.

    runs/compare/<A>_vs_<B>/compare.json, compare.html

Nothing is answered: stage 05 has left every question with its marks in scored/<task>.jsonl.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vlm.config import RootConfig
from vlm.errors import Unusable
from vlm.eval.compare_page import PAGE, write_compare
from vlm.eval.results import Before, Changed, Comparison, Earlier, TaskComparison
from vlm.eval.stats import intervals, paired_test
from vlm.eval.tasks import Pictures, open_task
from vlm.files import write_whole

STAGE = "05_eval"

Scored = dict[str, Any]
"""A line of scored/<task>.jsonl."""


def compare(runs: Path, before: str, after: str, seed: int) -> Comparison:
    """Compare two runs below `runs`; write compare.json and compare.html, print a table.

    Raises Unusable if one was not evaluated, they have no task in common, or a task's questions are not the same.
    """
    folders = tuple(_evaluated(runs, run) for run in (before, after))
    metrics = [json.loads((folder / "metrics.json").read_text())["tasks"] for folder in folders]
    names = [name for name in metrics[0] if name in metrics[1]]
    if not names:
        raise Unusable(f"{before} and {after} have no task in common: {', '.join(metrics[0])}; {', '.join(metrics[1])}")
    tasks = {}
    for name in names:
        one, other = (found[name] for found in metrics)
        if differing := [what for what in ("scorer", "judge", "questions") if _alike(one, what) != _alike(other, what)]:
            what = differing[0]
            raise Unusable(f"task {name}: {before} and {after} were evaluated with different {what}")
        rows = [_scored(folder / "scored" / f"{name}.jsonl") for folder in folders]
        if one["score"] is not None and other["score"] is not None:
            tasks[name] = compare_task(*rows, one["metric"], _pictures(folders[0], name), seed)
    comparison = Comparison((before, after), tasks)
    out = runs / "compare" / f"{before}_vs_{after}"
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_json(comparison), indent=1, ensure_ascii=False) + "\n"
    write_whole(out / "compare.json", text.encode(errors="backslashreplace"))
    print(table(comparison))
    write_compare(out / PAGE, comparison)
    print(f"comparison: {out / PAGE}")
    return comparison


def _alike(task: dict[str, Any], what: str) -> object:
    """Return what two evaluations must have in common; of a judge all but what it left without points."""
    found = task.get(what)
    return (
        {key: value for key, value in found.items() if key != "without_points"} if what == "judge" and found else found
    )


def earlier(runs: Path, run: str, tasks: Sequence[str]) -> Earlier:
    """Return what another run answered to these tasks, for a report to be compared with.

    Raises Unusable if it was not evaluated, or answered none of them.
    """
    folder = _evaluated(runs, run)
    known = json.loads((folder / "metrics.json").read_text())["tasks"]
    if not any(name in known for name in tasks):
        raise Unusable(f"eval.against={run}: it has none of the tasks {', '.join(tasks)}, but {', '.join(known)}")
    return Earlier(
        run,
        {
            name: {
                one["question_id"]: Before(one["question"], one["answer"], one["mark"])
                for one in _scored(folder / "scored" / f"{name}.jsonl")
            }
            for name in tasks
            if name in known
        },
    )


def compare_task(
    before: Sequence[Scored], after: Sequence[Scored], metric: str, split: Pictures | None, seed: int
) -> TaskComparison:
    """Compare the marks of one task, question by question; both lists are joined by question_id."""
    second = {one["question_id"]: one for one in after}
    both = [(one, second[one["question_id"]]) for one in before]
    pairs = [pair for pair in both if None not in (pair[0]["mark"], pair[1]["mark"])]
    marks = tuple([pair[i]["mark"] for pair in pairs] for i in (0, 1))
    differences = [b - a for a, b in zip(*marks, strict=True)]
    groups = [tuple(one["pictures"]) or one["question_id"] for one, _ in pairs]
    low, high = intervals([differences], groups, seed)[0]
    p, test = paired_test(*marks, seed)
    n = len(pairs)
    return TaskComparison(
        metric=metric,
        n=n,
        values=(100 * sum(marks[0]) / n, 100 * sum(marks[1]) / n),
        difference=100 * sum(differences) / n,
        interval=(100 * low, 100 * high),
        p=p,
        test=test,
        changed=tuple(_changed(*pair) for pair in pairs if pair[0]["mark"] != pair[1]["mark"]),
        split=split,
    )


def table(comparison: Comparison) -> str:
    """Return a few words for each task."""
    lines = []
    for name, of in comparison.tasks.items():
        a, b = of.values
        low, high = of.interval
        lines.append(
            f"{name}: {of.metric} {a:.2f} → {b:.2f}, {of.difference:+.2f} (95 % interval {low:+.2f} to {high:+.2f}; "
            f"p = {of.p:.2g}, {of.test}); of {of.n:,} questions {of.gained:,} gained, {of.lost:,} lost"
        )
    return "\n".join(lines)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return what compare.json says."""
    tasks = {}
    for name, of in comparison.tasks.items():
        tasks[name] = {
            "metric": of.metric,
            "n": of.n,
            "a": round(of.values[0], 2),
            "b": round(of.values[1], 2),
            "difference": round(of.difference, 2),
            "interval": [round(bound, 2) for bound in of.interval],
            "p": float(f"{of.p:.3g}"),
            "test": of.test,
            "gained": of.gained,
            "lost": of.lost,
            "same": of.n - len(of.changed),
            "changed": [_changed_json(one) for one in of.changed],
        }
    return {"runs": list(comparison.runs), "tasks": tasks}


def _changed_json(one: Changed) -> dict[str, Any]:
    record = asdict(one)
    answers, marks = record.pop("answers"), record.pop("marks")
    sides = zip("ab", answers, marks, strict=True)
    return record | {side: {"answer": answer, "mark": mark} for side, answer, mark in sides}


def _changed(before: Scored, after: Scored) -> Changed:
    return Changed(
        before["question_id"],
        before["category"],
        before["question"],
        tuple(before["references"]),
        (before["answer"], after["answer"]),
        (before["mark"], after["mark"]),
        before["sample"],
        len(before["pictures"]),
    )


def _evaluated(runs: Path, run: str) -> Path:
    folder = runs / run / STAGE
    if not (folder / "artifact.json").is_file() or not (folder / "metrics.json").is_file():
        raise Unusable(f"{folder} is not there: run  python stages/{STAGE}.py run={run}  first")
    return folder


def _scored(path: Path) -> list[Scored]:
    if not path.is_file():
        raise Unusable(f"{path} is not there: an older version evaluated this run; evaluate it again")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _pictures(folder: Path, name: str) -> Pictures | None:
    """Return where the pictures of a task are, by the settings that it was evaluated with."""
    try:
        cfg: RootConfig = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(RootConfig), OmegaConf.load(folder / "config.yaml"))
        )
        return open_task(name, cfg.eval.tasks[name], folder.parent / "02_shard", cfg.seed)
    except (Unusable, OSError):
        return None
