"""Training: set up, fit, validate."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix
from tqdm import tqdm

from pspfast.data import Taxonomy, colorize
from pspfast.data.datasets import SeededDataset
from pspfast.engine.config import Config
from pspfast.engine.evaluate import Scores, evaluate, make_confusion
from pspfast.engine.inputs import (
    choose_taxonomy,
    make_loader,
    make_train_set,
    make_val_set,
    steps_per_epoch,
    train_batches,
)
from pspfast.engine.interrupt import StopRequest, TrainingInterrupted
from pspfast.engine.log import RunLog, describe
from pspfast.engine.predict import segment_item
from pspfast.engine.state import RunState
from pspfast.engine.weights import save_weights

_REPORT_STEPS = 10  # reading the loss waits for the device, so not at every step
_PICTURES = 3  # validation samples shown in TensorBoard


def train(config: Config) -> Scores | None:
    """Trains on the data of a configuration.

    Returns:
        The validation scores after the last epoch; None without validation data, or when the run
        was complete already.

    Raises:
        ValueError, FileNotFoundError: options, data or checkpoint are wrong; before any training.
        FloatingPointError: the loss is not finite any more.
        TrainingInterrupted: a signal stopped it.
    """
    taxonomy = choose_taxonomy(config.data.classes)
    train_set = make_train_set(config, taxonomy.num_classes)
    val_set = make_val_set(config.data, taxonomy.num_classes)
    trainer = Trainer(config, train_set, val_set, taxonomy)
    scores = trainer.fit()
    trainer.accelerator.print(f"weights, log and TensorBoard events are in {trainer.folder}")
    return scores


class Trainer:
    """One run.

    Args:
        config: all options; of the data section only ``ignore_index`` and ``workers`` count.
        train_set: items of one size.
        val_set: items of any size, or None.
        taxonomy: the classes.
    """

    def __init__(
        self,
        config: Config,
        train_set: SeededDataset,
        val_set: SeededDataset | None,
        taxonomy: Taxonomy,
    ) -> None:
        options = config.train
        self.config, self.taxonomy = config, taxonomy
        self.train_set, self.val_set = train_set, val_set
        self.folder = Path(options.output)
        self.accelerator = Accelerator(mixed_precision=options.precision)
        self.device = self.accelerator.device
        self.rank, self.world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.memory_format = (
            torch.channels_last if options.channels_last else torch.contiguous_format
        )
        steps = steps_per_epoch(train_set, options.batch_size, self.world_size)
        self.state = RunState(config, taxonomy, self.accelerator, steps, self.memory_format)
        self.log: RunLog | None = None

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
            disable=self._bar_disabled,
        )
        with bar, StopRequest() as self.stop:
            try:
                while state.epoch < options.epochs:
                    if self._stopping():
                        raise _Stop
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
        return scores

    def validate(self, val_set: SeededDataset) -> Scores:
        """Scores whole validation images, and sends some of them to TensorBoard."""
        # Single images, since sizes may differ.
        batches = [[i] for i in range(self.rank, len(val_set), self.world_size)]
        loader = make_loader(val_set, batches, self.config.data.workers)
        bar = tqdm(loader, desc="validation", leave=False, disable=self._bar_disabled)
        # Processes have different numbers of images, so they could not agree on where to stop.
        stoppable = self._until_stopped(bar) if self.world_size == 1 else bar
        with self.accelerator.autocast():
            scores = evaluate(
                self.state.bare_model, stoppable, self._confusion(), self.device, self.memory_format
            )
            if self.log:
                for i in range(min(_PICTURES, len(val_set))):
                    self.log.picture(
                        f"validation/{i}", self._picture(val_set, i), self.state.iteration
                    )
        return scores

    def _train_epoch(self, bar: tqdm[Any]) -> None:
        options, state = self.config.train, self.state
        stride, ignore_index = 8 // self.config.model.zoom_factor, self.config.data.ignore_index
        self.train_set.set_epoch(state.epoch)
        seed = options.seed + state.epoch
        batches = train_batches(len(self.train_set), options.batch_size, seed, self.world_size)
        rest = batches[state.step :, self.rank].tolist()
        loader = make_loader(self.train_set, rest, self.config.data.workers)
        confusion = self._confusion()
        first, start = state.step, time.perf_counter()
        loss_sum = torch.zeros((), device=self.device)
        state.model.train()
        for images, labels in loader:
            images = images.to(self.device, memory_format=self.memory_format, non_blocking=True)
            labels = labels[:, ::stride, ::stride].to(self.device, non_blocking=True)
            predicted, main_loss, aux_loss = state.model(images, labels)
            loss = main_loss + options.aux_weight * aux_loss
            # The mean over the labelled pixels is NaN where a batch has none.
            loss = torch.where((labels != ignore_index).any(), loss, 0.0)
            self.accelerator.backward(loss)
            state.optimizer.step()
            state.optimizer.zero_grad()
            state.schedule.step()
            state.step += 1
            loss_sum += loss.detach()
            confusion.update(predicted, labels)
            bar.update(options.batch_size)
            if state.step % _REPORT_STEPS == 1 or state.step == state.steps:
                self._report(bar, loss, Scores(confusion.compute()))
            # After the last step the epoch's record is completed first.
            if state.step < state.steps and self._stopping():
                raise _Stop
        seconds = time.perf_counter() - start
        state.record = {
            "loss": self.accelerator.reduce(loss_sum, "mean").item() / (state.step - first),
            "train_mIoU": Scores(confusion.compute()).mean_iou,
            "lr": state.optimizer.param_groups[0]["lr"],
            "images_per_second": (state.step - first) * options.batch_size / seconds,
            "seconds": seconds,
        }

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
        if scores and scores.mean_iou > state.best_mean_iou:
            state.best_mean_iou = scores.mean_iou
            self._save_weights("best", record)
        if last:
            self._save_weights("final", record)
        if last or state.epoch % options.save_every == 0:
            state.save()
        return scores

    def _report(self, bar: tqdm[Any], loss: Tensor, scores: Scores) -> None:
        state = self.state
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value} after step {state.iteration}; a smaller train.lr may help"
            )
        bar.set_postfix(loss=f"{value:.3f}", mIoU=f"{scores.mean_iou:.3f}")
        if self.log:
            lr = state.optimizer.param_groups[0]["lr"]
            self.log.step({"step/loss": value, "step/lr": lr}, state.iteration)

    def _save_weights(self, name: str, record: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            path = self.folder / f"{name}.safetensors"
            weights = self.state.bare_model.state_dict()
            save_weights(path, weights, self.config, self.taxonomy, {"record": record})

    def _picture(self, val_set: SeededDataset, index: int) -> np.ndarray:
        """Image, labels and prediction side by side ``[h, 3w, 3]``."""
        pixels, *maps = segment_item(self.state.bare_model, val_set, index, self.device)
        return np.hstack([pixels, *(colorize(ids, self.taxonomy) for ids in maps)])

    def _confusion(self) -> MulticlassConfusionMatrix:
        ignore_index = self.config.data.ignore_index
        return make_confusion(self.taxonomy.num_classes, ignore_index, self.device)

    @property
    def _bar_disabled(self) -> bool | None:
        # None leaves it to tqdm, which shows bars on a terminal only.
        return None if self.accelerator.is_main_process else True

    def _until_stopped(self, batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            yield batch
            if self._stopping():
                raise _Stop

    def _stopping(self) -> bool:
        if self.world_size == 1:
            return self.stop.requested
        # The signal reaches the processes at different steps; they agree on one.
        if self.stop.requested:
            self.accelerator.set_trigger()
        return self.accelerator.check_trigger()

    def _resume_command(self) -> str:
        config = str(self.folder / "config.yaml")
        return shlex.join(["pspfast", "train", "--config", config, "--train.resume", "auto"])


class _Stop(Exception):
    pass
