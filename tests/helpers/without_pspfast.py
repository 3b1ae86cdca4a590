"""A process in which pspfast cannot be imported."""

import subprocess
import sys
from pathlib import Path

_ABSENT = """
import sys, torch
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "pspfast":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
{code}
assert "pspfast" not in sys.modules
"""


def run_without_pspfast(code: str, folder: Path) -> None:
    """Runs Python code, which finds torch imported, in a folder."""
    script = _ABSENT.format(code=code)
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True)
