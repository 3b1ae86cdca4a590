"""CUDA C++ does nothing that a CUDA graph, while it is captured, forbids.

That a whole step reads nothing of the device is in tests/training/test_waits.py, that nothing is
timed meanwhile in tests/ops/test_fastest.py, and a capture itself in test_on_a_gpu.py.
"""

import re
from pathlib import Path

CSRC = Path(__file__).parents[2] / "csrc"
SOURCES = {
    file.relative_to(CSRC): re.sub(r"//.*", "", file.read_text(encoding="utf-8"))
    for ending in ("cpp", "cu", "cuh", "h", "inl")
    for file in CSRC.rglob(f"*.{ending}")
}
# They allocate, copy, synchronise and record nothing.
ALLOWED = {
    "cudaDeviceGetAttribute",
    "cudaFuncSetAttribute",
    "cudaGetDevice",
    "cudaGetErrorString",
    "cudaGetLastError",
}


def test_runtime_is_asked_for_nothing_that_a_capture_forbids() -> None:
    called = {
        name for text in SOURCES.values() for name in re.findall(r"\bcu[A-Zd]\w+(?=\()", text)
    }
    assert called == ALLOWED


def test_every_launch_names_the_stream_of_its_caller() -> None:
    """A launch on the default stream would end a capture of another."""
    assert {str(file) for file, text in SOURCES.items() if "<<<" in text} == {"cuda/launch.h"}
    launches = [
        re.split(r",\s+", arguments)
        for file, text in SOURCES.items()
        if file.name != "launch.h"
        for arguments in re.findall(r"PSPFAST_LAUNCH\(([^;]*)\);", text)
    ]
    assert launches
    assert [arguments for arguments in launches if "stream" not in arguments] == []
    assert "launcher(arguments..., current_stream(device))" in SOURCES[Path("dispatch.h")]
