"""The ``pspfast`` command."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

_COMMANDS = {
    "info": "print versions, what was built, and which backend serves which device",
    "train": "train a PSPNet",
    "eval": "score a trained model on labelled images",
    "predict": "segment images with a trained model",
    "demo": "train a small model on drawn scenes, in minutes, and show what it learnt",
}
_EXTRA_MODULES = (
    "accelerate jsonargparse matplotlib PIL safetensors tensorboard torchmetrics torchvision tqdm"
).split()


def main(args: list[str] | None = None) -> None:
    """Runs the command line ``args``, by default the process's, and exits.

    Exit codes: 0 done, 2 wrong options or data, 130 stopped by a signal.
    """
    args = sys.argv[1:] if args is None else args
    if args == ["info"]:
        from pspfast._info import report

        print(report())
        return
    try:
        import jsonargparse  # noqa: F401
    except ImportError:
        sys.exit("this command needs the train extra: pip install 'pspfast[train]'")
    parser = _make_parser()
    options = parser.parse_args(args)
    print(options)


def _make_parser() -> ArgumentParser:
    pass
