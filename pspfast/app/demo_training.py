"""Training of the demo's model beside the page, which watches it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from pspfast.demo.demo import make_trainer, model_file, unseen_scenes
from pspfast.demo.options import DemoConfig
from pspfast.training.interrupt import TrainingInterrupted
from pspfast.training.log import read_log
from pspfast.training.trainer import Trainer


@dataclass(frozen=True)
class Progress:
    """How far it is.

    Attributes:
        done: share of the steps, 0 to 1.
        text: the epoch, and the scores so far.
    """

    done: float
    text: str


class DemoTraining:
    """One run of the demo, whoever starts it, in a thread.

    Args:
        folder: of the demo.
        epochs: passes over the training scenes.
    """

    def __init__(self, folder: str, epochs: int) -> None:
        # What an earlier page was stopped in goes on.
        self.options = DemoConfig(folder, epochs, resume=True)
        self.model = model_file(self.options)
        self.problem = ""
        self._trainer: Trainer | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._is_stopped = False

    def start(self) -> None:
        """Does nothing where it is running already."""
        with self._lock:
            if not self.is_running and not self._is_stopped:
                self.problem = ""
                self._thread = threading.Thread(target=self._run)
                self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Until it is over, but no longer than so many seconds."""
        if self._thread is not None:
            self._thread.join(seconds)

    def stop(self) -> None:
        """Ends it after its step; a checkpoint is left, from which it goes on another time."""
        with self._lock:
            self._is_stopped = True
        while self._thread is not None and self._thread.is_alive():
            # Time and again: its trainer may not be there yet, or not have begun.
            if self._trainer is not None:
                self._trainer.stop.requested = True
            self._thread.join(0.1)

    def progress(self) -> Progress:
        trainer = self._trainer
        if trainer is None:
            return Progress(0, "drawing the first scenes")
        state, epochs = trainer.state, self.options.epochs
        text = f"epoch {min(state.epoch + 1, epochs)} of {epochs}"
        if records := read_log(Path(trainer.folder)):
            last = records[-1]
            text += f" · loss {last['loss']:.2f} · mIoU {last['mIoU']:.2f} on scenes not trained on"
        return Progress(state.iteration / (epochs * state.steps), text)

    def _run(self) -> None:
        try:
            self._trainer = make_trainer(self.options, unseen_scenes())
            self._trainer.fit()
        except TrainingInterrupted:
            pass
        # A thread has nobody above it who would tell of the error.
        except Exception as error:
            self.problem = str(error)
        finally:
            self._trainer = None
