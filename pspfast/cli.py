"""The ``pspfast`` command."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def main(args: list[str] | None = None) -> None:
    """Runs the command of ``args``, by default the process's arguments.

    Exits with 2 after a wrong option, file or checkpoint, and with 130 after Ctrl-C.
    """
    args = sys.argv[1:] if args is None else args
    if args == ["info"]:
        from pspfast._info import report

        print(report())
        return
    try:
        parser = _make_parser()
        import accelerate, torchmetrics  # noqa
    except ImportError as error:
        sys.exit(f"{error.name} is missing, which this needs: pip install 'pspfast[train]'")
    options = parser.parse_args(args)
    try:
        _run(options.subcommand, parser.instantiate(options)[options.subcommand])
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"pspfast {options.subcommand}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


def _make_parser() -> ArgumentParser:
    from jsonargparse import ArgumentParser, set_parsing_settings

    from pspfast.engine.config import (
        AugmentConfig,
        DataConfig,
        DemoConfig,
        EvalConfig,
        ModelConfig,
        PredictConfig,
        TrainConfig,
    )

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="pspfast", description="PSPNet on kernels of its own.")
    commands = parser.add_subcommands(metavar="COMMAND", title="commands")

    def add(name: str, text: str, usage: str) -> ArgumentParser:
        command = ArgumentParser(description=text, usage=f"pspfast {name} {usage}")
        commands.add_subcommand(name, command, help=text[0].lower() + text.split(".")[0][1:])
        return command

    add("info", "Print versions, what was built, and which backend serves which device.", "")

    train = add(
        "train",
        "Train a PSPNet. Options come from the YAML file, and those given here replace the file's.",
        "[--config FILE] [--SECTION.OPTION VALUE ...]",
    )
    train.add_argument("--config", action="config", help="YAML file with the sections below")
    for section, options in (
        ("model", ModelConfig),
        ("data", DataConfig),
        ("augment", AugmentConfig),
        ("train", TrainConfig),
    ):
        train.add_class_arguments(options, section)

    evaluate = add(
        "eval",
        "Score a trained model on labelled images: IoU and accuracy of each class, their means, "
        "and pixel accuracy.",
        "--checkpoint FILE (--list FILE | --images FOLDER --labels FOLDER)",
    )
    evaluate.add_class_arguments(EvalConfig)

    predict = add(
        "predict",
        "Segment images with a trained model. Nothing is written unless every image can be read.",
        "IMAGE [IMAGE ...] --checkpoint FILE [--output FOLDER]",
    )
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="image file")
    predict.add_class_arguments(PredictConfig)

    demo = add(
        "demo",
        "Train a small model on drawn scenes, in minutes, and show what it learnt. "
        "Needs no data and no GPU.",
        "[--output FOLDER]",
    )
    demo.add_class_arguments(DemoConfig)
    return parser


def _run(command: str, options: Namespace) -> None:
    if command == "train":
        from pspfast.engine.config import Config
        from pspfast.engine.train import train
        train(Config(options.model, options.data, options.augment, options.train))
