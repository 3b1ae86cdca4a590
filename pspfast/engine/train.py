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
from accelerate.utils import gather_object, set_seed
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics.classification import MulticlassConfusionMatrix
from tqdm import tqdm

from pspfast.data import Taxonomy, colorize
from pspfast.engine.checkpoint import (
    build_model,
    describe_taxonomy,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from pspfast.engine.config import Config
from pspfast.engine.evaluate import Scores, evaluate, make_confusion
from pspfast.engine.inputs import (
    choose_taxonomy,
    make_train_set,
    make_val_set,
    train_batches,
    val_batches,
)
from pspfast.engine.interrupt import StopRequest, TrainingInterrupted
from pspfast.engine.log import RunLog
from pspfast.engine.optimizer import make_optimizer, make_schedule
from pspfast.models import PSPNet

_REPORT_STEPS = 10  # reading the loss waits for the device, so not at every step
_PICTURES = 3


def train(config: Config) -> Scores | None:
    """Trains on the data of a configuration.

    Returns:
        The validation scores after the last epoch; None without validation data.

    Raises:
        ValueError, FileNotFoundError: options, data or checkpoint are wrong; before any training.
        TrainingInterrupted: a signal stopped it.
    """
    taxonomy = choose_taxonomy(config.data.classes)
    classes = len(taxonomy.names)
    train_set = make_train_set(config.data, config.augment, classes, config.train.seed)
    val_set = make_val_set(config.data, classes)
    return Trainer(config, train_set, val_set, taxonomy).fit()


class Trainer:
    """One run.

    ``epoch`` and ``step`` are the position: ``step`` steps of ``epoch`` are done. All steps done
    and the epoch not advanced means that its validation is outstanding.

    Args:
        config: all options.
        train_set: items ``(image [3, h, w], labels [h, w])`` of one size; has ``set_epoch``.
        val_set: items of any size, or None.
        taxonomy: the classes.
    """

    def __init__(
        self,
        config: Config,
        train_set: Dataset[Any],
        val_set: Dataset[Any] | None,
        taxonomy: Taxonomy,
    ) -> None:
        options = config.train
        self.config, self.taxonomy = config, taxonomy
        self.train_set, self.val_set = train_set, val_set
        self.folder = Path(options.output)
        self.accelerator = Accelerator(mixed_precision=options.precision)
        self.device = self.accelerator.device
        self.is_main = self.accelerator.is_main_process
        self.memory_format = (
            torch.channels_last if options.channels_last else torch.contiguous_format
        )
        self.steps = self._steps_per_epoch()
        self.epoch = self.step = 0
        self.best_mean_iou = -math.inf

        # One seed for the weights of all processes, then one for each process's dropout.
        set_seed(options.seed)
        model = build_model(config, len(taxonomy.names)).to(memory_format=self.memory_format)
        if self.accelerator.num_processes > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        optimizer = make_optimizer(model, options)
        self.schedule = make_schedule(optimizer, options.epochs * self.steps, options.power)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        set_seed(options.seed, device_specific=True)
        self._claim_folder()

    @property
    def iteration(self) -> int:
        """Steps done since the start."""
        return self.epoch * self.steps + self.step

    def fit(self) -> Scores | None:
        """Trains to the last epoch; see ``train``."""
        options = self.config.train
        scores = None
        self.log = RunLog(self.folder, self.iteration) if self.is_main else None
        bar = tqdm(
            total=options.epochs * self.steps * options.batch_size,
            initial=self.iteration * options.batch_size,
            unit="image",
            smoothing=0.05,
            disable=None if self.is_main else True,
        )
        with bar, StopRequest() as self.stop:
            try:
                while self.epoch < options.epochs:
                    record = self._train_epoch(bar)
                    scores = self._finish_epoch(record, bar)
            except _Stop:
                raise TrainingInterrupted(self.save(), self._resume_command()) from None
            finally:
                if self.log:
                    self.log.close()
        return scores

    def _train_epoch(self, bar: tqdm[Any]) -> dict[str, Any]:
        options = self.config.train
        stride = 8 // self.config.model.zoom_factor
        batches = train_batches(
            self.train_set,
            options.batch_size,
            self.config.data.workers,
            options.seed,
            self.epoch,
            skip=self.step,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        confusion = self._confusion()
        loss_sum, done, start = torch.zeros((), device=self.device), 0, time.perf_counter()
        bar.set_description(f"epoch {self.epoch + 1}/{options.epochs}")
        self.model.train()
        for images, labels in self._until_stopped(batches):
            images = images.to(self.device, memory_format=self.memory_format, non_blocking=True)
            labels = labels[:, ::stride, ::stride].to(self.device, non_blocking=True)
            predicted, main_loss, aux_loss = self.model(images, labels)
            loss = main_loss + options.aux_weight * aux_loss
            self.accelerator.backward(loss)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedule.step()
            self.step += 1
            done += 1
            loss_sum += loss.detach()
            confusion.update(predicted, labels)
            bar.update(options.batch_size)
            if done % _REPORT_STEPS == 1 or self.step == self.steps:
                self._report(bar, loss, Scores(confusion.compute()))
        seconds = time.perf_counter() - start
        return {
            "loss": (loss_sum / done).item() if done else math.nan,
            "train_mIoU": Scores(confusion.compute()).mean_iou,
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_second": done * options.batch_size / seconds,
            "seconds": seconds,
        }

    def _finish_epoch(self, record: dict[str, Any], bar: tqdm[Any]) -> Scores | None:
        options = self.config.train
        last = self.epoch + 1 == options.epochs
        record = {"epoch": self.epoch + 1, "iteration": self.iteration, **record}
        scores = None
        if self.val_set is not None and (last or (self.epoch + 1) % options.eval_every == 0):
            start = time.perf_counter()
            scores = self.validate()
            record |= {**scores.summary(), "val_seconds": time.perf_counter() - start}
        self.epoch, self.step = self.epoch + 1, 0
        if self.is_main:
            bar.write(_line(record, options.epochs))
            self.log.epoch(record)
        if scores and not scores.mean_iou <= self.best_mean_iou:
            self.best_mean_iou = scores.mean_iou
            self._save_weights("best", record)
        if last:
            self._save_weights("final", record)
        if last or self.epoch % options.save_every == 0:
            self.save()
        return scores

    def validate(self) -> Scores:
        """Scores whole validation images, and sends some to TensorBoard."""
        model = self._bare_model()
        batches = val_batches(
            self.val_set,
            self.config.data.workers,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        bar = tqdm(
            batches, desc="validation", leave=False, disable=None if self.is_main else True
        )
        with self.accelerator.autocast():
            scores = evaluate(
                model, self._until_stopped(bar), self._confusion(), self.device, self.memory_format
            )
            if self.log:
                for i in range(min(_PICTURES, len(self.val_set))):
                    self.log.picture(f"val/{i}", self._picture(model, i), self.iteration)
        return scores

    def save(self) -> Path:
        """Writes a checkpoint of the current position; called by every process."""
        random_states = gather_object([_random_state()])
        scaler = self.accelerator.scaler
        path = self.folder / f"checkpoint-{self.iteration:08d}.pt"
        if self.is_main:
            state = {
                "model": self._bare_model().state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": scaler.state_dict() if scaler else None,
                "random": random_states,
                "epoch": self.epoch,
                "step": self.step,
                "steps_per_epoch": self.steps,
                "iteration": self.iteration,
                "best_mIoU": self.best_mean_iou,
                "config": self.config.to_dict(),
                "taxonomy": describe_taxonomy(self.taxonomy),
            }
            path = save_checkpoint(self.folder, state, self.config.train.keep_checkpoints)
        self.accelerator.wait_for_everyone()
        return path

    def _claim_folder(self) -> None:
        options = self.config.train
        found = list_checkpoints(self.folder)
        if options.resume == "auto":
            resume = found[-1] if found else None
        else:
            resume = Path(options.resume) if options.resume else None
            if found and not resume and not options.overwrite:
                raise ValueError(
                    f"train.output: {self.folder} already holds a run; continue it with "
                    "--train.resume auto, replace it with --train.overwrite true, or choose "
                    "another folder"
                )
        if resume:
            self._restore(load_checkpoint(resume), resume)
        if self.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            for old in [] if resume else found:
                old.unlink()
            self.config.save(self.folder / "config.yaml")

    def _restore(self, state: dict[str, Any], path: Path) -> None:
        here = {
            "model": self.config.to_dict()["model"],
            "taxonomy": describe_taxonomy(self.taxonomy),
            "steps_per_epoch": self.steps,
        }
        there = {**state, "model": state["config"]["model"]}
        for name, value in here.items():
            if there[name] != value:
                raise ValueError(
                    f"{path}: cannot continue: {name} was {there[name]}, now it is {value}"
                )
        self._bare_model().load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.best_mean_iou = state["best_mIoU"]
        rank = self.accelerator.process_index
        if len(state["random"]) == self.accelerator.num_processes:
            _set_random_state(state["random"][rank])

    def _save_weights(self, name: str, record: dict[str, Any]) -> None:
        if self.is_main:
            weights = self._bare_model().state_dict()
            path = self.folder / f"{name}.safetensors"
            save_weights(path, weights, self.config, self.taxonomy, {"record": record})

    def _bare_model(self) -> PSPNet:
        return self.accelerator.unwrap_model(self.model)

    def _confusion(self) -> MulticlassConfusionMatrix:
        ignore_index = self.config.data.ignore_index
        return make_confusion(self.taxonomy.num_classes, ignore_index, self.device)

    def _steps_per_epoch(self) -> int:
        options, processes = self.config.train, self.accelerator.num_processes
        if options.batch_size % processes:
            raise ValueError(
                f"train.batch_size: expected a multiple of the {processes} processes, "
                f"got {options.batch_size}"
            )
        steps = len(self.train_set) // options.batch_size
        if not steps:
            raise ValueError(
                f"train.batch_size: expected at most the {len(self.train_set)} training samples, "
                f"got {options.batch_size}"
            )
        return steps

    def _until_stopped(self, batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            yield batch
            if self._stopping():
                raise _Stop

    def _stopping(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self.stop.requested
        # The signal reaches the processes at different steps; they agree on one.
        if self.stop.requested:
            self.accelerator.set_trigger()
        return self.accelerator.check_trigger()

    def _resume_command(self) -> str:
        config = self.folder / "config.yaml"
        return shlex.join(["pspfast", "train", "--config", str(config), "--train.resume", "auto"])

    def _report(self, bar: tqdm[Any], loss: Tensor, scores: Scores) -> None:
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value} after step {self.iteration}; a smaller train.lr may help"
            )
        bar.set_postfix(loss=f"{value:.3f}", mIoU=f"{scores.mean_iou:.3f}")
        if self.log:
            lr = self.optimizer.param_groups[0]["lr"]
            self.log.step({"step/loss": value, "step/lr": lr}, self.iteration)

    def _picture(self, model: PSPNet, index: int) -> np.ndarray:
        """Image, labels and prediction side by side ``[h, 3w, 3]``."""
        image, labels = self.val_set[index]
        predicted = model.predict(image[None].to(self.device))[0].cpu()
        pixels = self.val_set.load(index)[0].permute(1, 2, 0).numpy()
        return np.hstack([pixels, *(colorize(map_, self.taxonomy) for map_ in (labels, predicted))])


class _Stop(Exception):
    pass


def _random_state() -> dict[str, Any]:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    torch.cuda.set_rng_state_all(state["cuda"])


def _line(record: dict[str, Any], epochs: int) -> str:
    text = (
        f"epoch {record['epoch']}/{epochs}  loss {record['loss']:.3f}  "
        f"train mIoU {record['train_mIoU']:.3f}  {record['images_per_second']:.1f} images/s"
    )
    if "mIoU" in record:
        text += (
            f"  val mIoU {record['mIoU']:.3f}  mAcc {record['mAcc']:.3f}  "
            f"pixel acc {record['pixel_acc']:.3f}"
        )
    return text
