"""Everything of a training run that a checkpoint holds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import memory_format, nn

from pspfast.data import Taxonomy
from pspfast.engine.checkpoint import (
    find_resume,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from pspfast.engine.config import Config
from pspfast.engine.optimizer import make_optimizer, make_schedule
from pspfast.engine.weights import build_model, describe_taxonomy
from pspfast.models import PSPNet


class RunState:
    """Model, optimizer, schedule and position of a run; new, or as its checkpoint left them.

    The position is ``epoch`` and ``step``: ``step`` steps of ``epoch`` are done. When all are done
    and the epoch has not advanced, its validation is outstanding.

    Args:
        config: all options.
        taxonomy: the classes.
        accelerator: places the model.
        steps: steps per epoch.
        layout: memory format of the model.

    Raises:
        ValueError, FileNotFoundError: the checkpoint cannot be read or is another run's, or the
            output folder holds a run that would be mixed with this one.
    """

    def __init__(
        self,
        config: Config,
        taxonomy: Taxonomy,
        accelerator: Accelerator,
        steps: int,
        layout: memory_format,
    ) -> None:
        options = config.train
        self.config, self.taxonomy, self.accelerator = config, taxonomy, accelerator
        self.steps = steps
        self.epoch = self.step = 0
        self.best_mean_iou = -math.inf
        self.record: dict[str, Any] = {}

        # One seed for the weights of all processes, then one for each process's dropout.
        set_seed(options.seed)
        model = build_model(config, taxonomy.num_classes).to(memory_format=layout)
        set_seed(options.seed, device_specific=True)
        if accelerator.num_processes > 1 and accelerator.device.type != "cpu":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        optimizer = make_optimizer(model, options)
        self.schedule = make_schedule(optimizer, options.epochs * steps, options.power)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.bare_model: PSPNet = accelerator.unwrap_model(self.model)

        with accelerator.main_process_first():
            resume = find_resume(options)
        if resume:
            self._load(resume)

    @property
    def iteration(self) -> int:
        """Steps done since the start."""
        return self.epoch * self.steps + self.step

    def save(self) -> Path:
        """Writes a checkpoint to the output folder; every process calls it."""
        folder = Path(self.config.train.output)
        path = folder / f"checkpoint-{self.iteration:08d}.pt"
        random_states = gather_object([random_state()])
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "model": self.bare_model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": scaler.state_dict() if scaler else None,
                "random": random_states,
                "epoch": self.epoch,
                "step": self.step,
                "steps_per_epoch": self.steps,
                "record": self.record,
                "best_mIoU": self.best_mean_iou,
                "config": self.config.to_dict(),
                "taxonomy": describe_taxonomy(self.taxonomy),
            }
            save_checkpoint(path, state, self.config.train.keep_checkpoints)
        self.accelerator.wait_for_everyone()
        return path

    def _load(self, path: Path) -> None:
        state = load_checkpoint(path)
        here = {
            "model": self.config.to_dict()["model"],
            "classes": describe_taxonomy(self.taxonomy),
            "steps per epoch": self.steps,
        }
        there = state["config"]["model"], state["taxonomy"], state["steps_per_epoch"]
        for (name, value), saved in zip(here.items(), there, strict=True):
            if saved != value:
                raise ValueError(f"{path}: cannot continue: {name} was {saved}, now it is {value}")
        self.bare_model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.record = state["epoch"], state["step"], state["record"]
        self.best_mean_iou = state["best_mIoU"]
        if len(state["random"]) == self.accelerator.num_processes:
            set_random_state(state["random"][self.accelerator.process_index])
