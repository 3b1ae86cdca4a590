"""Training: set up, fit, validate."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from pspfast.config import Config
from pspfast.data import ClassList, colorize
from pspfast.data.datasets import SeededDataset
from pspfast.distributed import any_stops, bar_disabled, make_accelerator, on_main
from pspfast.labelled_data import choose_class_list
from pspfast.model_files import save_weights
from pspfast.scores import ConfusionMatrix, Scores, evaluate, make_confusion
from pspfast.training.batches import Batch, BatchLoader
from pspfast.training.data import make_train_set, make_val_set, steps_per_epoch
from pspfast.training.interrupt import StopRequest, TrainingInterrupted
from pspfast.training.lock import lock_folder, unlock_folder
from pspfast.training.log import RunLog, describe
from pspfast.training.run_state import RunState
from pspfast.training.step import Losses, backward

_REPORT_STEPS = 10  # reading the loss waits for the device, so not at every step
_PICTURES = 3  # validation samples shown in TensorBoard


def train(config: Config) -> Scores | None:
    """Trains on the data of a configuration.

    Returns:
        The validation scores after the last epoch; None without validation data, or when the run
        was complete already.

    Raises:
        ValueError, FileNotFoundError: options, data or checkpoint are wrong; before any training,
            unless files have changed since.
        FloatingPointError: the loss is not finite any more; no file holds weights of then.
        OSError: a file cannot be written; names it.
        TrainingInterrupted: a signal stopped it.
    """
    class_list = choose_class_list(config.data.classes)
    train_set = make_train_set(config, class_list.num_classes)
    val_set = make_val_set(config.data, class_list.num_classes)
    trainer = Trainer(config, train_set, val_set, class_list)
    scores = trainer.fit()
    trainer.accelerator.print(f"weights, log and TensorBoard events are in {trainer.folder}")
    return scores


class Trainer:
    """One run.

    Args:
        config: all options; of the data section only ``ignore_index``, ``workers`` and
            ``skip_bad`` count.
        train_set: items of one size.
        val_set: items of any size, or None.
        class_list: the classes.
    """

    def __init__(
        self,
        config: Config,
        train_set: SeededDataset,
        val_set: SeededDataset | None,
        class_list: ClassList,
    ) -> None:
        options = config.train
        self.config, self.class_list = config, class_list
        self.train_set, self.val_set = train_set, val_set
        self.folder = Path(options.output)
        self.accelerator = make_accelerator(options.precision)
        self.device = self.accelerator.device
        self.batches = BatchLoader(config, self.accelerator, self._agree)
        steps = steps_per_epoch(train_set, options, self.accelerator.num_processes)
        self._lock: FileLock | None = None
        on_main(self.accelerator, self._take_lock)
        try:
            self.state = RunState(config, class_list, self.accelerator, steps)
        except BaseException:
            self._release_lock()
            raise
        self.log: RunLog | None = None
        self.stop = StopRequest()

    def fit(self) -> Scores | None:
        """Trains to the last epoch; see ``train``."""
        options, state = self.config.train, self.state
        scores = None
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.config.save(self.folder / "config.yaml")
            self.log = RunLog(self.folder, state.iteration)
        bar = tqdm(
            total=options.epochs * state.steps * options.batch_size,
            initial=state.iteration * options.batch_size,
            unit=" images",
            smoothing=0.05,
            disable=bar_disabled(self.accelerator),
        )
        with bar, self.stop:
            try:
                while state.epoch < options.epochs:
                    self._agree()
                    bar.set_description(f"epoch {state.epoch + 1}/{options.epochs}")
                    if state.step < state.steps:
                        self._train_epoch(bar)
                    scores = self._finish_epoch(bar)
            except _Stop:
                raise TrainingInterrupted(state.save(), self._resume_command()) from None
            finally:
                if self.log:
                    self.log.close()
                    self.log = None
                self._release_lock()
        return scores

    def validate(self, val_set: SeededDataset) -> Scores:
        """Scores whole validation images, and sends some of them to TensorBoard."""
        self.state.share_statistics()
        with self.accelerator.autocast():
            scores = evaluate(
                self.state.bare_model,
                self.batches.validation(val_set),
                self._confusion(),
                self.device,
                self.batches.memory_format,
            )
            # By all processes, since each has a share of the weights only where they are sharded.
            pictures = [self._picture(val_set, i) for i in range(min(_PICTURES, len(val_set)))]
        if self.log:
            for i, picture in enumerate(pictures):
                self.log.picture(f"validation/{i}", picture, self.state.iteration)
        return scores

    def segment(self, dataset: SeededDataset, index: int) -> tuple[np.ndarray, Tensor, Tensor]:
        """Pixels ``[H, W, 3]`` in uint8, labels and prediction ``[H, W]`` of an item."""
        image, labels = dataset[index]
        predicted = self.state.bare_model.predict(image[None].to(self.device))[0].cpu()
        return dataset.load(index)[0].permute(1, 2, 0).numpy(), labels, predicted

    def _take_lock(self) -> None:
        self._lock = lock_folder(self.folder)

    def _release_lock(self) -> None:
        if self._lock:
            unlock_folder(self._lock)
            self._lock = None

    def _train_epoch(self, bar: tqdm[Any]) -> None:
        options, state = self.config.train, self.state
        confusion, losses = self._confusion(), Losses(self.accelerator, state.iteration)
        first, start = state.step, time.perf_counter()
        state.model.train()
        try:
            for parts in self.batches.train(self.train_set, state.epoch, state.step):
                losses.add(self._step(parts, confusion))
                bar.update(options.batch_size)
                if state.step % _REPORT_STEPS == 1 or state.step == state.steps:
                    self._report(bar, losses, confusion)
        except _Stop:
            losses.read()  # so that no checkpoint follows a loss that is not finite
            raise
        seconds = time.perf_counter() - start
        state.record = {
            "loss": losses.read(),
            "train_mIoU": Scores(confusion.compute()).mean_iou,
            "lr": state.optimizer.param_groups[0]["lr"],
            "images_per_second": (state.step - first) * options.batch_size / seconds,
            "seconds": seconds,
            "skipped": self.batches.skipped(),
        }

    def _step(self, parts: list[Batch], confusion: ConfusionMatrix) -> Tensor:
        """Trains on a batch; the host waits for nothing of it."""
        state = self.state
        loss = backward(self.accelerator, state.model, parts, self.config, confusion)
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.schedule.step()
        state.step += 1
        return loss

    def _finish_epoch(self, bar: tqdm[Any]) -> Scores | None:
        options, state = self.config.train, self.state
        last = state.epoch + 1 == options.epochs
        record = {
            "epoch": state.epoch + 1,
            "iteration": state.iteration,
            **state.record,
        }
        scores = None
        if self.val_set is not None and (last or (state.epoch + 1) % options.eval_every == 0):
            start = time.perf_counter()
            scores = self.validate(self.val_set)
            record |= {**scores.summary(), "val_seconds": time.perf_counter() - start}
        state.epoch, state.step = state.epoch + 1, 0
        if self.log:
            with bar.external_write_mode():
                print(describe(record), flush=True)
            self.log.epoch(record)
        best = state.best_mean_iou
        if scores and (best is None or scores.mean_iou > best):
            state.best_mean_iou = scores.mean_iou
            self._save_weights("best", record)
        if last:
            self._save_weights("final", record)
        every = (options.save_every, options.keep_every or options.epochs)
        if last or any(state.epoch % epochs == 0 for epochs in every):
            state.save()
        return scores

    def _report(self, bar: tqdm[Any], losses: Losses, confusion: ConfusionMatrix) -> None:
        losses.read()
        mean_iou = Scores(confusion.compute()).mean_iou
        bar.set_postfix(loss=f"{losses.last:.3f}", mIoU=f"{mean_iou:.3f}")
        if self.log:
            scalars = {
                "step/loss": losses.last,
                "step/lr": self.state.optimizer.param_groups[0]["lr"],
            }
            self.log.step(scalars, self.state.iteration)

    def _save_weights(self, name: str, record: dict[str, Any]) -> None:
        path, weights = self.folder / f"{name}.safetensors", self.state.weights()
        on_main(
            self.accelerator,
            lambda: save_weights(path, weights, self.config, self.class_list, {"record": record}),
        )

    def _picture(self, val_set: SeededDataset, index: int) -> np.ndarray:
        """Image, labels and prediction side by side ``[h, 3w, 3]``."""
        pixels, *maps = self.segment(val_set, index)
        return np.hstack([pixels, *(colorize(ids, self.class_list) for ids in maps)])

    def _confusion(self) -> ConfusionMatrix:
        ignore_index = self.config.data.ignore_index
        return make_confusion(self.class_list.num_classes, ignore_index, self.device)

    def _agree(self, problem: str = "") -> None:
        """Stops all processes where one was told to, or has a problem."""
        if any_stops(self.accelerator, self.stop.requested, problem):
            raise _Stop

    def _resume_command(self) -> str:
        config = str(self.folder / "config.yaml")
        return shlex.join(["pspfast", "train", "--config", config, "--train.resume", "auto"])


class _Stop(Exception):
    pass
