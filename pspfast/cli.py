"""The ``pspfast`` command."""

from __future__ import annotations

import argparse
import sys
import warnings
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def main(args: list[str] | None = None) -> None:
    """Runs the command of ``args``, by default the process's arguments.

    Exits with 1 if predict could not read some files, with 2 after a wrong option, file or
    checkpoint, and with 130 after Ctrl-C.
    """
    args = sys.argv[1:] if args is None else args
    for stream in (sys.stdout, sys.stderr):
        # Names of files may hold what the terminal's encoding does not.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if args == ["info"]:
        _info()
        return
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    command = args[0] if args else ""
    try:
        recipe: dict[str, Any] = {}
        if command in ("train", "eval"):
            recipe, args = _take_recipe(args)
        parser = _make_parser(recipe)
        parsed = parser.parse_args(_with_texts_of_files(parser, args))
        command = parsed.subcommand
        _run(command, parser.instantiate(parsed)[command])
    except ModuleNotFoundError as error:
        _fail(f"{error.name} is not installed; pip install 'pspfast[train]' brings what this needs")
    except argparse.ArgumentError as error:
        _fail(" ".join(f"{command}: {error}".split()).removeprefix(": "))
    except (ValueError, OSError, FloatingPointError) as error:
        _fail(f"{command}: {error}")
    except KeyboardInterrupt as stop:
        print(f"pspfast: {str(stop) or 'stopped'}", file=sys.stderr)
        sys.exit(130)


def _info() -> None:
    from pspfast._info import report

    print(report())


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    """One line without a place in the code, which tells a user of the command nothing."""
    print(f"pspfast: warning: {message}", file=sys.stderr)


def _fail(message: str) -> None:
    print(f"pspfast: error: {message}", file=sys.stderr)
    sys.exit(2)


def _take_recipe(args: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The options of --recipe, which the other arguments replace wherever it stands, and those."""
    from pspfast.recipes import load_recipe

    finder = argparse.ArgumentParser(prog=f"pspfast {args[0]}", add_help=False, allow_abbrev=False)
    finder.add_argument("--recipe", metavar="NAME")
    found, others = finder.parse_known_args(args)
    return load_recipe(found.recipe) if found.recipe else {}, others


def _with_texts_of_files(parser: ArgumentParser, args: list[str]) -> list[str]:
    """The arguments with the text of each --config file in its place.

    Raises:
        ValueError: a file is no YAML of options; names it.
    """
    texts = list(args)
    for i, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        at = i if equals else i + 1
        if option != "--config" or at == len(args):
            continue
        file = Path(value if equals else args[at])
        if not file.is_file():
            continue
        import yaml

        from pspfast.files import read_lines

        text = "\n".join(read_lines(file, "file of options"))
        try:
            options = yaml.safe_load(text)
            training = options.get("train") if isinstance(options, dict) else None
            # YAML 1.1 takes an unquoted no for false (yaml.org/type/bool.html).
            if isinstance(training, dict) and training.get("precision") is False:
                training["precision"] = "no"
                text = yaml.safe_dump(options)
            parser.parse_args([args[0], "--config", text])
        except (yaml.YAMLError, argparse.ArgumentError) as error:
            problem = " ".join(str(error).replace("<unicode string>", str(file)).split())
            raise ValueError(f"{file}: {problem}") from error
        texts[at] = f"--config={text}" if equals else text
    return texts


def _make_parser(recipe: dict[str, Any]) -> ArgumentParser:
    from jsonargparse import ArgumentParser, set_parsing_settings

    from pspfast import config
    from pspfast.demo.options import DemoConfig
    from pspfast.evaluation.options import EvalConfig
    from pspfast.prediction.options import PredictConfig
    from pspfast.recipes import recipe_names

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    # Errors are raised, so that main tells of them in one line.
    parser = ArgumentParser(
        prog="pspfast", description="PSPNet on kernels of its own.", exit_on_error=False
    )
    commands = parser.add_subcommands(title="commands", metavar="COMMAND")

    def add(name: str, usage: str, summary: str, more: str = "") -> ArgumentParser:
        command = ArgumentParser(
            usage=f"pspfast {name} {usage}",
            description=f"{summary}. {more}".strip(),
            exit_on_error=False,
        )
        commands.add_subcommand(name, command, help=summary[0].lower() + summary[1:])
        return command

    add("info", "", "Print versions, what was built, and which backend serves which device")

    train = add(
        "train",
        "[--recipe NAME] [--config FILE] [--SECTION.OPTION VALUE ...]",
        "Train a PSPNet",
        "Options come from the recipe; those of the YAML file replace the recipe's, and those given"
        " here the file's.",
    )
    train.add_argument(
        "--recipe",
        metavar="NAME",
        default=argparse.SUPPRESS,
        help=f"Options of a known training run: {', '.join(recipe_names())}",
    )
    train.add_argument("--config", action="config", help="YAML file with the sections below")
    train.add_class_arguments(config.ModelConfig, "model")
    train.add_class_arguments(config.DataConfig, "data")
    train.add_class_arguments(config.AugmentConfig, "augment")
    train.add_class_arguments(config.TrainConfig, "train")
    train.set_defaults(
        {
            f"{section}.{name}": value
            for section in ("model", "data", "augment", "train")
            for name, value in recipe.get(section, {}).items()
        }
    )

    evaluation = add(
        "eval",
        "--checkpoint FILE (--list FILE [--root FOLDER] | --images FOLDER --labels FOLDER |"
        " --source NAME --root FOLDER) [--recipe NAME]",
        "Score a trained model on labelled images",
        "Prints IoU and accuracy of each class, their means, and pixel accuracy. "
        "As published for semseg: --protocol semseg --flip true "
        "--scales '[0.5,0.75,1,1.25,1.5,1.75]' --base_size 512 (ADE20K, VOC) or 2048 (Cityscapes).",
    )
    evaluation.add_argument(
        "--recipe", metavar="NAME", default=argparse.SUPPRESS, help="Evaluation as of a recipe"
    )
    evaluation.add_class_arguments(EvalConfig)
    evaluation.set_defaults(recipe.get("eval", {}))

    predict = add(
        "predict",
        "INPUT [INPUT ...] --checkpoint FILE [--output FOLDER] [--OPTION VALUE ...]",
        "Segment images and videos with a trained model",
        "Prints the files that it writes and how much of each image each class covers. "
        "Files that cannot be read are named at the end, and the exit status is then 1.",
    )
    predict.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="Image, folder that is searched for images, pattern like 'a/**/*.jpg', or video",
    )
    predict.add_class_arguments(PredictConfig, skip={"inputs"})

    add(
        "demo",
        "[--output FOLDER]",
        "Train a small model on drawn scenes, in minutes, and show what it learnt",
        "Needs no data and no GPU.",
    ).add_class_arguments(DemoConfig)
    return parser


def _run(command: str, options: Namespace) -> None:
    # Each command imports what it needs: torchmetrics and TensorBoard take seconds.
    if command == "info":
        _info()
    elif command == "train":
        from pspfast.config import Config
        from pspfast.training.trainer import train

        if "recipe" in options:
            raise ValueError("recipe: expected as an option, not in a file; use --recipe")
        train(Config(options.model, options.data, options.augment, options.train))
    elif command == "eval":
        from accelerate import PartialState

        from pspfast.evaluation.evaluate import evaluate_files
        from pspfast.evaluation.options import EvalConfig

        scores, class_list = evaluate_files(EvalConfig(**vars(options)))
        PartialState().print(scores.table(class_list.names))
    elif command == "predict":
        from pspfast.prediction.options import PredictConfig
        from pspfast.prediction.predict import predict

        predictions = predict(PredictConfig(**vars(options)))
        print(*predictions.written, "", predictions.shares.table(), sep="\n")
        if predictions.left_out.examples:
            print(f"pspfast: predict: left out {predictions.left_out}", file=sys.stderr)
        for failure in predictions.failures:
            print(f"pspfast: predict: {failure}", file=sys.stderr)
        if predictions.failures:
            sys.exit(1)
    elif command == "demo":
        from pspfast.demo.demo import demo
        from pspfast.demo.options import DemoConfig

        demo(DemoConfig(**vars(options)))
