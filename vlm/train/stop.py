"""Being asked to stop: by the user (Ctrl-C), the system (TERM) or a scheduler (USR2)."""

import signal
from types import TracebackType

import torch

from vlm import ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class StopRequest:
    """Remembers a signal until the end of the step, when all ranks agree on it; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self._asked = False

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self, device: torch.device, also: bool = False) -> tuple[bool, bool]:
        """Say whether any rank was asked to stop, and whether rank 0 says `also`; every rank must call."""
        votes = torch.tensor([int(self._asked), int(also and ranks.first())], device=device)
        asked, said = ranks.sum_over_ranks(votes).tolist()
        return asked > 0, said > 0

    def _remember(self, number: int, frame: object) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
