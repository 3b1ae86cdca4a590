"""The data set that tests and benchmarks train on, where it is."""

import os
from pathlib import Path

import pytest

BESIDE_THE_PROJECT = Path(__file__).parents[2] / "shared/data/camvid"


def camvid_folder() -> Path:
    """In $PSPFAST_CAMVID, or beside the project; skips what runs where it is absent."""
    folder = Path(os.environ.get("PSPFAST_CAMVID", BESIDE_THE_PROJECT))
    if not folder.is_dir():
        pytest.skip("CamVid is not on this machine")
    return folder
