"""Rows of the comparison: figures of ours and of the peers, the ratio to the best of them, and the goal."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

OURS = "ours"


@dataclass
class Row:
    """One line of the comparison, by contestant: a figure of each round.

    The ratio says how many times better ours is than the best peer (or than `against`); where `goal_is_share` it is our
    share of the best peer's figure, and the goal is to stay below. With `goal_is_figure` the goal is for our own figure.
    """

    name: str
    unit: str
    goal: float | None = None
    less_is_better: bool = False
    goal_is_share: bool = False
    goal_is_figure: bool = False
    against: str | None = None
    figures: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # who took no part, and why
    notes: dict[str, str] = field(default_factory=dict)  # beside a contestant's figures

    def median(self, contestant: str) -> float:
        """Return the median of a contestant's rounds."""
        return statistics.median(self.figures[contestant])

    @property
    def best_peer(self) -> str | None:
        """The peer that the ratio is to."""
        peers = [name for name in self.figures if not name.startswith(OURS)]  # ours with other settings is none
        if self.against is not None:
            return self.against if self.against in peers else None
        pick = min if self.less_is_better else max
        return pick(peers, key=self.median, default=None)

    @property
    def ratio(self) -> float | None:
        """Ours beside the best peer, by the medians."""
        if OURS not in self.figures or self.best_peer is None:
            return None
        return self._ratio(self.median(OURS), self.median(self.best_peer))

    @property
    def ratios(self) -> list[float]:
        """The same of every round: contestants took turns, so a round's figures belong together."""
        if self.ratio is None:
            return []
        return [self._ratio(*pair) for pair in zip(self.figures[OURS], self.figures[self.best_peer], strict=False)]

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None if there is none, or nothing to compare with."""
        if self.goal_is_figure and OURS in self.figures:
            return self.median(OURS) <= self.goal if self.less_is_better else self.median(OURS) >= self.goal
        if self.goal is None or self.ratio is None:
            return None
        return self.ratio <= self.goal if self.goal_is_share else self.ratio >= self.goal

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        found = {"best_peer": self.best_peer, "ratio": self.ratio, "ratios": self.ratios, "met": self.met}
        return asdict(self) | found

    def _ratio(self, ours: float, theirs: float) -> float:
        upside_down = self.less_is_better and not self.goal_is_share
        above, below = (theirs, ours) if upside_down else (ours, theirs)
        return above / below if below else float("inf") if above else 1.0


def show(rows: Sequence[Row]) -> None:
    """Print rows in full: every contestant with its median, lowest and highest round."""
    for row in rows:
        print(f"\n{row.name}, {row.unit}")
        for name, rounds in row.figures.items():
            spread = f"{digits(min(rounds))} to {digits(max(rounds))}" if len(rounds) > 1 else ""
            print(f"  {name:32}{digits(row.median(name)):>12}   {spread:24} {row.notes.get(name, '')}".rstrip())
        for name, reason in row.missing.items():
            print(f"  {name:32}           -   {reason}")
        if row.ratio is not None:
            print(f"  {told(row)}", flush=True)


def summary(rows: Sequence[Row]) -> str:
    """Return the last table: a line for each row."""
    wide = max(len(f"{row.name}, {row.unit}") for row in rows) + 2
    lines = [f"{'':{wide}}{'ours':>12}{'best peer':>12}{'ratio':>9}  {'lowest-highest':18}{'goal':>11}"]
    for row in rows:
        ours = digits(row.median(OURS)) if OURS in row.figures else "-"
        peer = digits(row.median(row.best_peer)) if row.best_peer else "-"
        ratio = f"{digits(row.ratio)} x" if row.ratio is not None else "-"
        spread = f"{digits(min(row.ratios))} - {digits(max(row.ratios))}" if row.ratios else ""
        sign = "<=" if row.goal_is_share or (row.goal_is_figure and row.less_is_better) else ">="
        goal = f"{sign} {row.goal:g}" if row.goal is not None else ""
        goal += "" if not goal else " own" if row.goal_is_figure else " x"
        verdict = {True: "met", False: "NOT MET", None: "open" if row.goal is not None else ""}[row.met]
        named = f"{row.name}, {row.unit}"
        lines.append(
            f"{named:{wide}}{ours:>12}{peer:>12}{ratio:>9}  {spread:18}{goal:>11}  {verdict:8} {row.best_peer or ''}".rstrip()
        )
    lines += [f"took no part in {row.name}: {name}: {why}" for row in rows for name, why in row.missing.items()]
    return "\n".join(lines)


def told(row: Row) -> str:
    """Return the ratio of a row as a sentence."""
    spread = f" ({digits(min(row.ratios))} to {digits(max(row.ratios))})" if len(row.ratios) > 1 else ""
    what = "of" if row.goal_is_share else "x"
    verdict = "" if row.met is None else f"; the goal of {row.goal:g} is {'' if row.met else 'not '}met"
    return f"ours: {digits(row.ratio)} {what} {row.best_peer}{spread}{verdict}"


def digits(figure: float) -> str:
    """Return a figure with three or more digits that mean something."""
    size = abs(figure)
    if size >= 100 or figure == 0:
        return f"{figure:,.0f}"
    return f"{figure:.1f}" if size >= 10 else f"{figure:.2f}" if size >= 1 else f"{figure:.3g}"
