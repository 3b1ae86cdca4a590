"""Stop on Ctrl-C or SIGTERM at a place from which training can be resumed."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any


class TrainingInterrupted(KeyboardInterrupt):
    """Training stopped on a signal, after it wrote ``checkpoint``.

    Args:
        checkpoint: the file that was written.
        resume: the command that continues from it.
    """

    def __init__(self, checkpoint: Path, resume: str) -> None:
        super().__init__(f"stopped; wrote {checkpoint}\nto continue: {resume}")
        self.checkpoint = checkpoint
        self.resume = resume


class StopRequest:
    """Context in which the first SIGINT or SIGTERM sets ``requested`` and the second interrupts.

    In another thread than the main one, which alone may handle signals, it sets nothing.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopRequest:
        self.requested = False
        is_main = threading.current_thread() is threading.main_thread()
        self._previous: dict[int, Any] = {
            number: signal.signal(number, self._handle)
            for number in ((signal.SIGINT, signal.SIGTERM) if is_main else ())
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        # print() may be what the signal interrupted, and cannot be entered twice.
        os.write(2, b"\nstopping after this step; once more to quit at once\n")
