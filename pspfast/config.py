"""Options of a training run, as the command line, a YAML file and a model's file hold them.

The defaults are semseg's recipe. A value outside its range is a ``ValueError`` that names the
option. Options of the other commands are in ``options.py`` beside them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from pspfast.files import atomic_open
from pspfast.published.preprocessing import IMAGENET, Preprocessing

Source = Literal["ade20k", "cityscapes", "voc2012"]


@dataclass
class ModelConfig:
    """The network; the number of classes comes from the data."""

    layers: Literal[18, 34, 50, 101, 152] = 50
    """ResNet depth."""
    bins: tuple[int, ...] = (1, 2, 3, 6)
    """Bins b of each pyramid level."""
    dropout: float = 0.1
    """Probability that a channel is dropped before a classifier."""
    zoom_factor: Literal[1, 2, 4, 8] = 8
    """Logits and training labels are at zoom_factor/8 of the image's resolution."""
    use_ppm: bool = True
    """Whether the pyramid pooling module is used."""
    pretrained: str | None = None
    """File of ImageNet weights in semseg's or torchvision's layout."""
    weights: str | None = None
    """File of a trained PSPNet that training starts from: of pspfast train, semseg or mmseg, or
    what pspfast convert wrote. Where its classes are others, the classifiers start anew."""
    stem: Literal["deep", "deep_narrow", "7x7"] = "deep"
    """First layers: 3x3, 64-64-128 (semseg) or 32-32-64 channels (mmseg), or 7x7 (torchvision)."""
    dilation: Literal["uniform", "contracted"] = "uniform"
    """Whether the first block of a dilated stage has the full dilation (semseg) or half (mmseg)."""
    align_corners: bool = True
    """align_corners of every bilinear interpolation."""
    aux_channels: int = 256
    """Width of the auxiliary head."""
    head_channels: int = 512
    """Width of the head."""
    ppm_channels: int | None = None
    """Width of a pyramid level; the default is that of layer4 over the number of levels."""
    block_dilation: Literal["both", "first"] = "both"
    """Which convolutions of a dilated ResNet-18 or 34 block dilate; the first alone in mmseg."""
    output_stride: Literal[8, 32] = 8
    """Stride of the features; 32 where dilated stages stride as well (mmseg's D32)."""
    aux: bool = True
    """Whether there is an auxiliary head."""
    in_channels: int = 3
    """Channels of the images; files of images have 3."""

    def __post_init__(self) -> None:
        self.bins = tuple(self.bins)
        if self.pretrained and self.weights:
            raise ValueError("model: expected pretrained or weights, got both")


@dataclass
class DataConfig:
    """Images and labels: list files ("image label" per line), pairs of folders, or a data set."""

    train_list: str | None = None
    """List file of the training samples."""
    val_list: str | None = None
    """List file of the validation samples."""
    root: str | None = None
    """Folder that the paths in the lists and the folders below are relative to, and where a list
    file is looked for that is not found as given; the default is the list file's own folder."""
    train_images: str | None = None
    """Folder of the training images, when there is no list."""
    train_labels: str | None = None
    """Folder of the training labels, with the stems of the images."""
    val_images: str | None = None
    """Folder of the validation images, when there is no list."""
    val_labels: str | None = None
    """Folder of the validation labels."""
    source: Source | None = None
    """Published data set, unpacked in root, for the splits that neither a list nor folders give:
    images/ and annotations/, leftImg8bit/ and gtFine/ with _labelIds.png, or VOCdevkit/."""
    classes: int | str = "camvid"
    """Name of a built-in class list ("ade20k", "camvid", "cityscapes", "scenes", "voc2012"), or the
    number of classes."""
    labels: Literal["ids", "ade20k", "cityscapes_ids"] = "ids"
    """What label files hold: class ids; ADE20K's ids, 0 ignored and 1 to 150 the classes; or the
    ids of Cityscapes' _labelIds.png, of which 19 are classes and the others ignored."""
    label_map: dict[int, int] | None = None
    """Ids in the label files that mean other class ids, with labels "ids"; {255: 1} for masks of 0
    and 255."""
    ignore_index: int = 255
    """Class id, 0 to 255, that is neither trained nor counted."""
    mean: tuple[float, ...] = IMAGENET.mean
    """Mean of each channel of images scaled to 0..1, which is subtracted; the default is
    ImageNet's."""
    std: tuple[float, ...] = IMAGENET.std
    """Standard deviation of each channel, by which is divided; the default is ImageNet's."""
    channel_order: Literal["rgb", "bgr"] = "rgb"
    """Order of the channels that the network is given, and of mean and std."""
    workers: int = 2
    """Processes that load and augment samples; 0 loads in the training process."""
    skip_bad: bool = False
    """Whether a training sample that cannot be used is replaced by the next one and reported;
    otherwise it stops the run. If so, the training files are not checked before the run."""

    def __post_init__(self) -> None:
        at_least("data.workers", self.workers, 0)
        self.mean, self.std = tuple(self.mean), tuple(self.std)
        Preprocessing(self.mean, self.std, self.channel_order)
        if self.label_map is not None:
            # JSON has no keys but strings.
            self.label_map = {int(file_id): i for file_id, i in self.label_map.items()}
            if self.labels != "ids":
                raise ValueError(
                    f'data.label_map: expected none with data.labels "{self.labels}", got '
                    f"{self.label_map}"
                )
        if not 0 <= self.ignore_index <= 255:
            raise ValueError(f"data.ignore_index: expected 0 to 255, got {self.ignore_index}")
        for split in ("train", "val"):
            folders = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if (folders[0] is None) != (folders[1] is None):
                raise ValueError(
                    f"data: {split}_images and {split}_labels: expected both or neither"
                )
            if folders[0] is not None and getattr(self, f"{split}_list") is not None:
                raise ValueError(f"data: expected {split}_list or {split}_images, got both")


@dataclass
class AugmentConfig:
    """Training augmentation in semseg's order: scale, rotate, blur, flip, crop."""

    crop_size: tuple[int, int] = (473, 473)
    """Height and width of the training crops."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the random scale."""
    rotate: float = 10.0
    """Largest rotation in degrees, either way."""
    blur: float = 0.5
    """Probability of a 5x5 Gaussian blur."""
    flip: float = 0.5
    """Probability of a horizontal flip."""

    def __post_init__(self) -> None:
        self.crop_size = (self.crop_size[0], self.crop_size[1])
        self.scale = (self.scale[0], self.scale[1])
        # Its import takes seconds, which --help should not.
        from pspfast.data.transforms import check_augmentation

        check_augmentation("augment.", **vars(self))


@dataclass
class TrainConfig:
    """Optimisation, output and resuming."""

    output: str = "runs/pspnet"
    """Folder of the checkpoints, the log and the TensorBoard events."""
    epochs: int = 100
    """Passes over the training samples."""
    batch_size: int = 16
    """Images per step, over all processes together; an incomplete last batch is dropped."""
    accumulate: int = 1
    """Parts in which a process computes its share of a batch, one after the other: less memory, the
    same gradient, but BatchNorm's statistics are of a part."""
    lr: float = 0.01
    """Learning rate of the backbone at the first step."""
    head_lr_factor: float = 10.0
    """Factor on lr for the pyramid, the classifier and the auxiliary head."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay, of all parameters."""
    power: float = 0.9
    """Power of the schedule lr * (1 - step / steps) ** power."""
    aux_weight: float = 0.4
    """Weight of the auxiliary loss."""
    precision: Literal["no", "fp16", "bf16"] = "no"
    """Automatic mixed precision; "no" is fp32. fp16 needs a GPU."""
    channels_last: bool = True
    """Whether weights and images are in channels_last memory format, which the kernels read without
    a copy. FSDP2 divides contiguous weights only: with it, images are."""
    compile: bool = False
    """Whether torch.compile compiles the network for training."""
    freeze_backbone: bool = False
    """Whether layer0 to layer4 stay as they are, with their BatchNorm's statistics: heads alone
    learn."""
    checkpoint_activations: bool = False
    """Whether a residual block keeps its input only and is computed again in backward: less memory,
    more time."""
    sharding: Literal["none", "fsdp2"] = "none"
    """What the processes share: "fsdp2" divides weights, gradients and momenta among them (FSDP2),
    "none" gives each a copy (DDP)."""
    seed: int = 0
    """Seed of the initial weights, the order, the augmentation and the dropout."""
    eval_every: int = 1
    """Epochs between validations, besides the one after the last epoch."""
    save_every: int = 1
    """Epochs between checkpoints, besides the one after the last epoch."""
    keep_checkpoints: int = 2
    """Number of checkpoints kept, the newest; the best weights are kept besides."""
    keep_every: int = 0
    """Epochs between checkpoints that are all kept, besides the newest; 0 for none."""
    resume: str | None = None
    """Checkpoint to continue from, or "auto" for the newest in output, if there is one."""
    overwrite: bool = False
    """Whether a run that is already in output is replaced."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "eval_every", "save_every"):
            at_least(f"train.{name}", getattr(self, name), 1)
        at_least("train.keep_checkpoints", self.keep_checkpoints, 1)
        at_least("train.keep_every", self.keep_every, 0)
        if self.compile and self.checkpoint_activations:
            raise ValueError(
                "train.checkpoint_activations: expected false with train.compile, which chooses "
                "itself what is computed again, got true"
            )
        if self.sharding == "fsdp2" and self.precision == "fp16":
            raise ValueError(
                'train.precision: expected "no" or "bf16" with train.sharding fsdp2, got "fp16", '
                "whose loss scale the processes would have to agree on"
            )
        for name in ("lr", "head_lr_factor", "momentum", "weight_decay", "power", "aux_weight"):
            at_least(f"train.{name}", getattr(self, name), 0)


@dataclass
class Config:
    """All options of a training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain dicts, lists, strings and numbers, for YAML, JSON and checkpoints."""
        return {
            section: {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
            for section, options in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, sections: dict[str, dict[str, Any]]) -> Config:
        """The inverse of ``to_dict``."""
        return cls(**{f.name: _SECTIONS[f.name](**sections[f.name]) for f in fields(cls)})

    def save(self, path: Path) -> None:
        """Writes a YAML file that ``pspfast train --config`` reads."""
        with atomic_open(path) as file:
            file.write(yaml.safe_dump(self.to_dict(), sort_keys=False).encode())


_SECTIONS = {
    "model": ModelConfig,
    "data": DataConfig,
    "augment": AugmentConfig,
    "train": TrainConfig,
}


def at_least(name: str, got: float, least: float) -> None:
    """Raises ValueError where an option is smaller."""
    if got < least:
        raise ValueError(f"{name}: expected at least {least}, got {got}")
