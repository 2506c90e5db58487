"""Being asked to stop: by the user (Ctrl-C), the system (TERM) or a scheduler (USR2)."""

import signal

import torch

from vlm import ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class StopRequest:
    """Remembers a signal until the end of the step, when all ranks agree on it."""

    def __init__(self) -> None:
        """Take over the signals; a second Ctrl-C interrupts at once."""
        self._asked = False
        for number in SIGNALS:
            signal.signal(number, self._remember)

    def agreed(self, device: torch.device) -> bool:
        """Say whether any rank was asked to stop; every rank must call."""
        return bool(ranks.sum_over_ranks(torch.tensor(int(self._asked), device=device)))

    def _remember(self, number: int, frame: object) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
