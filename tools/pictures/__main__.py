"""``python -m tools.pictures [NAME ...]`` draws docs/images/how-<name>.svg, all by default."""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.pictures.convolution import draw_phases, draw_taps
from tools.pictures.drawing import save
from tools.pictures.logits import draw_loss
from tools.pictures.memory import draw_memory
from tools.pictures.pyramid import draw_cells, draw_concatenation

PICTURES = {
    "cells": draw_cells,
    "concatenation": draw_concatenation,
    "taps": draw_taps,
    "phases": draw_phases,
    "loss": draw_loss,
    "memory": draw_memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.pictures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    if unknown := set(options.names) - PICTURES.keys():
        parser.error(f"expected names of {', '.join(PICTURES)}, got {', '.join(sorted(unknown))}")
    for name in options.names or PICTURES:
        save(PICTURES[name](), options.output / f"how-{name}.svg")


if __name__ == "__main__":
    main()
