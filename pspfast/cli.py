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
        _info()
        return
    try:
        parser = _make_parser()
        parsed = parser.parse_args(args)
        command = parsed.subcommand
        _run(command, parser.instantiate(parsed)[command])
    except ModuleNotFoundError as error:
        _fail(f"{error.name} is not installed; pip install 'pspfast[train]' brings what this needs")
    except (ValueError, OSError, FloatingPointError) as error:
        _fail(f"{command}: {error}")
    except KeyboardInterrupt as stop:
        print(f"pspfast: {str(stop) or 'stopped'}", file=sys.stderr)
        sys.exit(130)


def _info() -> None:
    from pspfast._info import report

    print(report())


def _fail(message: str) -> None:
    print(f"pspfast: error: {message}", file=sys.stderr)
    sys.exit(2)


def _make_parser() -> ArgumentParser:
    from jsonargparse import ArgumentParser, set_parsing_settings

    from pspfast.engine import config

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="pspfast", description="PSPNet on kernels of its own.")
    commands = parser.add_subcommands(title="commands", metavar="COMMAND")

    def add(name: str, usage: str, summary: str, more: str = "") -> ArgumentParser:
        command = ArgumentParser(
            usage=f"pspfast {name} {usage}", description=f"{summary}. {more}".strip()
        )
        commands.add_subcommand(name, command, help=summary[0].lower() + summary[1:])
        return command

    add("info", "", "Print versions, what was built, and which backend serves which device")

    train = add(
        "train",
        "[--config FILE] [--SECTION.OPTION VALUE ...]",
        "Train a PSPNet",
        "Options come from the YAML file; those given here replace the file's.",
    )
    train.add_argument("--config", action="config", help="YAML file with the sections below")
    train.add_class_arguments(config.ModelConfig, "model")
    train.add_class_arguments(config.DataConfig, "data")
    train.add_class_arguments(config.AugmentConfig, "augment")
    train.add_class_arguments(config.TrainConfig, "train")

    add(
        "eval",
        "--checkpoint FILE (--list FILE [--root FOLDER] | --images FOLDER --labels FOLDER)",
        "Score a trained model on labelled images",
        "Prints IoU and accuracy of each class, their means, and pixel accuracy.",
    ).add_class_arguments(config.EvalConfig)

    predict = add(
        "predict",
        "IMAGE [IMAGE ...] --checkpoint FILE [--output FOLDER]",
        "Segment images with a trained model",
        "All images are read before anything is written.",
    )
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="Image file.")
    predict.add_class_arguments(config.PredictConfig, skip={"images"})

    add(
        "demo",
        "[--output FOLDER]",
        "Train a small model on drawn scenes, in minutes, and show what it learnt",
        "Needs no data and no GPU.",
    ).add_class_arguments(config.DemoConfig)
    return parser


def _run(command: str, options: Namespace) -> None:
    # Each command imports what it needs: torchmetrics and TensorBoard take seconds.
    from pspfast.engine import config

    if command == "info":
        _info()
    elif command == "train":
        from pspfast.engine.train import train

        train(config.Config(options.model, options.data, options.augment, options.train))
    elif command == "eval":
        from pspfast.engine.evaluate import evaluate_files

        scores, taxonomy = evaluate_files(config.EvalConfig(**vars(options)))
        print(scores.table(taxonomy.names))
    elif command == "predict":
        from pspfast.engine.predict import predict

        for path in predict(config.PredictConfig(**vars(options))):
            print(path)
    elif command == "demo":
        from pspfast.engine.demo import demo

        demo(config.DemoConfig(**vars(options)))
