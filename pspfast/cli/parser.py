"""The commands and their options, from the command line, YAML files and recipes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def take_recipe(args: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The options of --recipe, which the other arguments replace wherever it stands, and those."""
    from pspfast.recipes import load_recipe

    finder = argparse.ArgumentParser(prog=f"pspfast {args[0]}", add_help=False, allow_abbrev=False)
    finder.add_argument("--recipe", metavar="NAME")
    found, others = finder.parse_known_args(args)
    return load_recipe(found.recipe) if found.recipe else {}, others


def with_texts_of_files(parser: ArgumentParser, args: list[str]) -> list[str]:
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


def make_parser(recipe: dict[str, Any]) -> ArgumentParser:
    """The parser of all commands, whose defaults for train and eval are those of a recipe."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    from pspfast import config
    from pspfast.app.options import AppConfig
    from pspfast.cli.convert import ConvertConfig
    from pspfast.cli.export import ExportConfig
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

    conversion = add(
        "convert",
        "FILE [FILE] [--output FILE] [--OPTION VALUE ...]",
        "Convert the weights of another PSPNet",
        "Takes files of semseg, mmsegmentation and pspfast, or CSAIL's encoder and decoder; prints"
        " what was found and what it follows from.",
    )
    conversion.add_argument("files", nargs="+", metavar="FILE", help="Weights; or encoder, decoder")
    conversion.add_class_arguments(ConvertConfig)

    add(
        "export",
        "--checkpoint FILE [--output model.onnx|model.pt2] [--OPTION VALUE ...]",
        "Export a model for other runtimes",
        "The file has standard operators only: it runs where pspfast is not installed.",
    ).add_class_arguments(ExportConfig)

    add(
        "demo",
        "[--output FOLDER]",
        "Train a small model on drawn scenes, in minutes, and show what it learnt",
        "Needs no data and no GPU.",
    ).add_class_arguments(DemoConfig)

    add(
        "app",
        "[--checkpoint FILE] [--host ADDRESS] [--port PORT]",
        "Serve a page on which a model segments your images",
        "Without a checkpoint the page has the model of pspfast demo, and trains it where there is"
        " none.",
    ).add_class_arguments(AppConfig)
    return parser
