"""The ``pspfast`` command."""

from __future__ import annotations

import argparse
import sys
import warnings
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from pspfast.cli.parser import make_parser, take_recipe, with_texts_of_files

if TYPE_CHECKING:
    from jsonargparse import Namespace


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
            recipe, args = take_recipe(args)
        parser = make_parser(recipe)
        parsed = parser.parse_args(with_texts_of_files(parser, args))
        command = parsed.subcommand
        _run(command, parser.instantiate(parsed)[command])
    except ModuleNotFoundError as error:
        extra = {
            "gradio": "app",
            "huggingface_hub": "hub",
            "onnx": "export",
            "onnxscript": "export",
        }
        name = f"pspfast[{extra.get(str(error.name), 'train')}]"
        _fail(f"{error.name} is not installed; pip install '{name}' brings what this needs")
    except argparse.ArgumentError as error:
        _fail(" ".join(f"{command}: {error}".split()).removeprefix(": "))
    except (ValueError, OSError, FloatingPointError) as error:
        _fail(f"{command}: {error}")
    except KeyboardInterrupt as stop:
        print(f"pspfast: {str(stop) or 'stopped'}", file=sys.stderr)
        sys.exit(130)


def _info() -> None:
    from pspfast.cli.info import report

    print(report())


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    """One line without a place in the code, which tells a user of the command nothing."""
    print(f"pspfast: warning: {message}", file=sys.stderr)


def _fail(message: str) -> None:
    print(f"pspfast: error: {message}", file=sys.stderr)
    sys.exit(2)


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
    elif command == "convert":
        from pspfast.cli.convert import ConvertConfig, convert

        files = options.pop("files")
        print(convert(files, ConvertConfig(**vars(options))))
    elif command == "export":
        from pspfast.cli.export import ExportConfig, export_file

        print(export_file(ExportConfig(**vars(options))))
    elif command == "demo":
        from pspfast.demo.demo import demo
        from pspfast.demo.options import DemoConfig

        demo(DemoConfig(**vars(options)))
    elif command == "app":
        from pspfast.app.options import AppConfig
        from pspfast.app.serve import serve

        serve(AppConfig(**vars(options)))
