"""Instruction sets of the CPU kernels, and tests in processes that have a lower one."""

import os
import subprocess
import sys

import pytest
import torch

# What ATEN_CPU_CAPABILITY chooses from when torch starts.
ISAS = ["default", "avx2", "avx512"]
_own = torch.backends.cpu.get_cpu_capability().lower()
_own_isa = ISAS.index(_own) if _own in ISAS else 0


def _at_isas(count: int, reason: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "isa",
        [
            pytest.param(isa, marks=pytest.mark.skipif(i >= count, reason=reason))
            for i, isa in enumerate(ISAS)
        ],
    )


# torch would take the processor to have what it lacks.
at_every_isa = _at_isas(_own_isa + 1, "the processor has no such vectors")
at_lower_isas = _at_isas(_own_isa, "that of the other tests, or none of this processor's")


def assert_passes_at(isa: str, *arguments: str) -> None:
    """Tests pass in a process of their own: torch picks the instruction set once, at start-up."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--no-header", *arguments],
        env=os.environ | {"ATEN_CPU_CAPABILITY": isa},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
