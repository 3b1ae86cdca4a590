"""Everything of a training run that a checkpoint holds."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object, set_seed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pspfast.config import Config, ModelConfig
from pspfast.data import ClassList
from pspfast.distributed import on_main
from pspfast.model_files import build_model
from pspfast.models import PSPNet
from pspfast.published.own import describe_class_list
from pspfast.training.activation_checkpointing import (
    checkpoint_activations,
    residual_blocks,
)
from pspfast.training.checkpoints import (
    checkpoint_path,
    find_resume,
    load_checkpoint,
    remove_torn,
    save_checkpoint,
)
from pspfast.training.optimizer import make_optimizer, make_schedule
from pspfast.training.step import ADVICE


class RunState:
    """Model, optimizer, schedule and position of a run; new, or as its checkpoint left them.

    The position is ``epoch`` and ``step``: ``step`` steps of ``epoch`` are done. When all are done
    and the epoch has not advanced, its validation is outstanding.

    Args:
        config: all options.
        class_list: the classes.
        accelerator: places the model.
        steps: steps per epoch.

    Raises:
        ValueError, FileNotFoundError: the checkpoint cannot be read or is another run's, or the
            output folder holds a run that would be mixed with this one.
    """

    def __init__(
        self, config: Config, class_list: ClassList, accelerator: Accelerator, steps: int
    ) -> None:
        options = config.train
        self.config, self.class_list, self.accelerator = config, class_list, accelerator
        self.steps = steps
        self.epoch = self.step = 0
        self.best_mean_iou: float | None = None
        self.record: dict[str, Any] = {}

        with accelerator.main_process_first():
            resume = find_resume(options)
            if accelerator.is_main_process:
                remove_torn(Path(options.output))
        saved = self._take_position(resume) if resume else None

        # One seed for the weights of all processes, then one for each process's dropout.
        set_seed(options.seed)
        start = config
        if saved:
            # The checkpoint holds what these files gave, and they may be gone.
            start = replace(config, model=replace(config.model, pretrained=None, weights=None))
        model = build_model(start, class_list.num_classes)
        if options.freeze_backbone:
            model.freeze_backbone()
        set_seed(options.seed, device_specific=True)
        self.bare_model = _prepare(model, config, accelerator)
        optimizer = make_optimizer(self.bare_model, options)
        self.schedule = make_schedule(
            optimizer, options.epochs * steps, options.power, self.iteration
        )
        self.model: Any = self.bare_model
        if options.sharding == "none":
            self.model, self.optimizer = accelerator.prepare(self.bare_model, optimizer)
            # DDP would refuse it on CPUs, where torch's layer does not compute, but kernels do.
            _synchronize_batch_norm(self.bare_model, config, accelerator)
        else:
            self.optimizer = accelerator.prepare(optimizer)
        if options.compile:
            self.model = torch.compile(self.model)
        if saved:
            self._take_tensors(saved)

    @property
    def iteration(self) -> int:
        """Steps done since the start."""
        return self.epoch * self.steps + self.step

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers of the whole network; every process calls it.

        Raises:
            FloatingPointError: they are not finite, so nothing that can be used.
        """
        weights = {name: _whole(value) for name, value in self.bare_model.state_dict().items()}
        for name, value in weights.items():
            if not value.isfinite().all():
                raise FloatingPointError(
                    f"{name} is not finite after step {self.iteration}; {ADVICE}"
                )
        return weights

    def share_statistics(self) -> None:
        """Gives all processes the running statistics of the first, those that are saved.

        They differ where BatchNorm takes its statistics of each process's own images.
        """
        broadcast(list(self.bare_model.buffers()))

    def save(self) -> Path:
        """Writes a checkpoint to the output folder; every process calls it.

        Raises:
            FloatingPointError: see ``weights``.
            OSError: it cannot be written; then all is as before.
        """
        options = self.config.train
        path = checkpoint_path(Path(options.output), self.iteration)
        scaler = self.accelerator.scaler
        state = {
            "model": self.weights(),
            "momentum": self._momenta(),
            "random": self._random_states(),
            "scaler": scaler.state_dict() if scaler else None,
            "epoch": self.epoch,
            "step": self.step,
            "steps_per_epoch": self.steps,
            "record": self.record,
            "best_mIoU": self.best_mean_iou,
            "config": self.config.to_dict(),
            "taxonomy": describe_class_list(self.class_list),
        }
        keep_multiple = options.keep_every * self.steps
        on_main(
            self.accelerator,
            lambda: save_checkpoint(path, state, options.keep_checkpoints, keep_multiple),
        )
        return path

    def _take_position(self, path: Path) -> dict[str, Any]:
        state = load_checkpoint(path)
        needed = {"config", "taxonomy", "steps_per_epoch", "epoch", "step", "record", "best_mIoU"}
        if not needed <= state.keys() or "model" not in state["config"]:
            raise ValueError(f"{path}: not a checkpoint of a run that can be continued")
        here = {
            "model": self.config.to_dict()["model"],
            "classes": describe_class_list(self.class_list),
            "steps per epoch": self.steps,
        }
        # Options that are newer than the checkpoint had their defaults.
        model = asdict(ModelConfig()) | {"bins": [*ModelConfig().bins]} | state["config"]["model"]
        there = model, state["taxonomy"], state["steps_per_epoch"]
        for (name, value), saved in zip(here.items(), there, strict=True):
            if saved != value:
                raise ValueError(f"{path}: cannot continue: {name} was {saved}, now it is {value}")
        self.epoch, self.step, self.record = state["epoch"], state["step"], state["record"]
        self.best_mean_iou = state["best_mIoU"]
        return state

    def _take_tensors(self, state: dict[str, Any]) -> None:
        own = self.bare_model.state_dict()
        self.bare_model.load_state_dict(
            {name: _like(own[name], value) for name, value in state["model"].items()}
        )
        for name, parameter in self.bare_model.named_parameters():
            if name in state["momentum"]:
                momentum = _like(parameter, state["momentum"][name])
                self.optimizer.state[parameter]["momentum_buffer"] = momentum
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self._set_random_state(state["random"])

    def _momenta(self) -> dict[str, Tensor]:
        """None before the first step."""
        return {
            name: _whole(self.optimizer.state[parameter]["momentum_buffer"])
            for name, parameter in self.bare_model.named_parameters()
            if self.optimizer.state[parameter].get("momentum_buffer") is not None
        }

    def _random_states(self) -> dict[str, Tensor]:
        """Of the generators that dropout draws from, of every process."""
        states = {"cpu": torch.get_rng_state()}
        if self.accelerator.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.accelerator.device)
        gathered: list[dict[str, Tensor]] = gather_object([states])
        return {
            f"{rank}/{kind}": value
            for rank, states in enumerate(gathered)
            for kind, value in states.items()
        }

    def _set_random_state(self, states: dict[str, Tensor]) -> None:
        """The inverse; with another number of processes they stay as the seed left them."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        if len({name.partition("/")[0] for name in states}) != processes:
            return
        torch.set_rng_state(states[f"{rank}/cpu"])
        if self.accelerator.device.type == "cuda" and f"{rank}/cuda" in states:
            torch.cuda.set_rng_state(states[f"{rank}/cuda"], self.accelerator.device)


def _prepare(model: PSPNet, config: Config, accelerator: Accelerator) -> PSPNet:
    options, processes = config.train, accelerator.num_processes
    model = model.to(accelerator.device)
    if options.channels_last and options.sharding == "none":
        model = model.to(memory_format=torch.channels_last)
    if options.checkpoint_activations:
        checkpoint_activations(model)
    if options.sharding == "fsdp2":
        if processes == 1:
            raise ValueError('train.sharding: expected "none" for one process, got "fsdp2"')
        _synchronize_batch_norm(model, config, accelerator)
        mesh = init_device_mesh(accelerator.device.type, (processes,))
        for block in residual_blocks(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def _synchronize_batch_norm(model: PSPNet, config: Config, accelerator: Accelerator) -> None:
    """In place, with the parameters and buffers that are there."""
    is_compiled_for_cpu = config.train.compile and accelerator.device.type == "cpu"
    if accelerator.num_processes > 1 and not is_compiled_for_cpu:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(own: Tensor, value: Tensor) -> Tensor:
    """Device, memory format and sharding of a tensor with the values of another."""
    if isinstance(own, DTensor):
        return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
    return torch.empty_like(own).copy_(value)
