"""Rounds that take turns, so that a busy machine is as busy for one as for another; medians and their spread."""

import os
import statistics
from collections.abc import Callable, Mapping, Sequence


def in_turns(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run every contender once a round; each returns its own figure."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, run in contenders.items():
            figures[name].append(run())
            print(f"  round {number + 1}: {name} {figures[name][-1]:,.2f}", flush=True)
    return figures


def spread(figures: Sequence[float]) -> str:
    """Return the median and the lowest and highest figure."""
    return f"{statistics.median(figures):>9,.1f} ({min(figures):,.1f} to {max(figures):,.1f})"


def load() -> float:
    """Return the load average of the last minute."""
    return round(os.getloadavg()[0], 2)
